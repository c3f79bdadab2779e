-- Moves due tasks from the schedule to their queues, at most `limit`. Needs time, counts, queues; keys scheduled, sequence.
local function promote(limit)
  local due = redis.call('ZRANGE', scheduled, '-inf', stamp, 'BYSCORE', 'LIMIT', 0, limit)
  if #due == 0 then return 0 end
  local arrival = redis.call('INCRBY', sequence, #due) - #due
  for index, id in ipairs(due) do
    local state, queue, priority = unpack(redis.call('HMGET', TASK .. id, 'state', 'queue', 'priority'))
    if state and LEGAL.promote[state] then
      local score = text((9 - tonumber(priority or 4)) * 562949953421312 + arrival + index)
      enqueue(id, queue, score)
      redis.call('HSET', TASK .. id, 'state', 'queued', 'queued', stamp, 'score', score)
      move_count(queue, state, 'queued')
    end
    redis.call('ZREM', scheduled, id)
  end
  return #due
end
