-- Takes an agent off the consumers of all its queues and moves what waits in its own queue, at most `limit`, back to the
-- requirements' queues; so too what waits for a region that it was the last to serve. Returns how many moved. Needs places.
local function withdraw(agent, limit)
  local moved = 0
  for queue in string.gmatch(redis.call('HGET', AGENT .. agent, 'queues') or '', '[^\n]+') do
    redis.call('ZREM', CONSUMERS .. queue, agent)
    if string.find(queue, '@@', 1, true) and redis.call('EXISTS', CONSUMERS .. queue) == 0 then
      moved = moved + reroute(queue, limit)
    end
  end
  return moved + reroute('@@' .. agent, limit)
end
