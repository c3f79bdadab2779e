-- Chooses the agent's own queue that a task goes to, by the strategy in its `placing`; `number`: how many tasks this script
-- publishes. Nobody there: the requirement's queue, where whoever comes first finds it. Needs places.
--   round-robin   the consumer that was given a task longest ago
--   least-loaded  of those that were given a task longest ago (as many as tasks, from 4 to 64), the one with the fewest
--                 waiting and held tasks a slot: a few choices balance nearly as well as all
--   random        any, with equal chances
local FEWEST, MOST = 4, 64
local pools = {}
local function pool_of(place, strategy, number)
  local name = strategy .. '|' .. place
  local pool = pools[name]
  if pool then return pool end
  pool = {place = place, agents = {}, loads = {}, slots = {}, turns = {}, at = 0}
  pools[name] = pool
  if strategy == 'random' then
    pool.agents = redis.call('ZRANDMEMBER', CONSUMERS .. place, -number)
  elseif strategy == 'round-robin' then
    pool.agents = redis.call('ZRANGE', CONSUMERS .. place, 0, number - 1)
  elseif strategy == 'least-loaded' then
    pool.agents = redis.call('ZRANGE', CONSUMERS .. place, 0, math.max(FEWEST, math.min(MOST, number)) - 1)
    for index, agent in ipairs(pool.agents) do
      local slots, held = unpack(redis.call('HMGET', AGENT .. agent, 'slots', 'held'))
      pool.slots[index] = math.max(1, tonumber(slots) or 1)
      pool.loads[index] = (tonumber(held) or 0) + redis.call('ZCARD', QUEUE .. '@@' .. agent)
      pool.turns[index] = index
    end
  end
  return pool
end
local function least_loaded(pool, turn)
  local best
  for index = 1, #pool.agents do
    local load = pool.loads[index] / pool.slots[index]
    if not best or load < best.load or (load == best.load and pool.turns[index] < best.turn) then
      best = {index = index, load = load, turn = pool.turns[index]}
    end
  end
  pool.loads[best.index] = pool.loads[best.index] + 1
  pool.turns[best.index] = MOST + turn
  return best.index
end
local function choose(queue, placing, turn, number)
  local place = home(queue, placing)
  local strategy = string.match(placing, '^[^|]*')
  if strategy == '' or strategy == 'capability-match' then return place end
  local pool = pool_of(place, strategy, number)
  if #pool.agents == 0 then return place end
  local index
  if strategy == 'least-loaded' then
    index = least_loaded(pool, turn)
  else
    index = pool.at % #pool.agents + 1
    pool.at = pool.at + 1
  end
  local agent = pool.agents[index]
  if strategy ~= 'random' then redis.call('ZADD', CONSUMERS .. place, 'XX', turn, agent) end
  return '@@' .. agent
end
