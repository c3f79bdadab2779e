-- Places: where a task of a requirement waits. Usually the requirement's own queue; `<requirement>@@<region>` if a region is
-- preferred and served; `@@<agent>` if a strategy chose the agent. `placing` is `<strategy>|<region>`, or '' for neither.
-- Needs time, queues.
local function home(queue, placing)
  local region = placing and string.match(placing, '|(.+)$')
  if region and redis.call('EXISTS', CONSUMERS .. queue .. '@@' .. region) == 1 then return queue .. '@@' .. region end
  return queue
end
-- Puts a task into a place and notes it on the record where it is not the requirement's queue.
local function put(id, queue, place, score)
  enqueue(id, place, score)
  if place == queue then redis.call('HDEL', TASK .. id, 'place') else redis.call('HSET', TASK .. id, 'place', place) end
end
-- Moves what waits in a place to where it waits without that place, at most `limit`; only what was queued by `before` ms if
-- that is given. Returns how many ids it has looked at that left, the destination being written first.
local function reroute(place, limit, before)
  local page = redis.call('ZRANGE', QUEUE .. place, 0, limit - 1, 'WITHSCORES')
  local moved = 0
  for at = 1, #page, 2 do
    local id, score = page[at], page[at + 1]
    local state, queue, placing, here, queued, created =
      unpack(redis.call('HMGET', TASK .. id, 'state', 'queue', 'placing', 'place', 'queued', 'created'))
    if not before or tonumber(queued or created or 0) <= before then
      if state == 'queued' and here == place then
        local target = home(queue, placing)
        if before or target == place then target = queue end
        put(id, queue, target, text(tonumber(score)))
      end
      redis.call('ZREM', QUEUE .. place, id)
      moved = moved + 1
    end
  end
  if redis.call('EXISTS', QUEUE .. place) == 0 then redis.call('SREM', ready, place) end
  return moved
end
