-- Moves due tasks from the schedule to their queues, at most `limit`. Needs time, counts, queues, places; keys scheduled, sequence.
local function promote(limit)
  local due = redis.call('ZRANGE', scheduled, '-inf', stamp, 'BYSCORE', 'LIMIT', 0, limit)
  if #due == 0 then return 0 end
  local arrival = redis.call('INCRBY', sequence, #due) - #due
  for index, id in ipairs(due) do
    local state, queue, priority, placing = unpack(redis.call('HMGET', TASK .. id, 'state', 'queue', 'priority', 'placing'))
    if state and LEGAL.promote[state] then
      local score = text((9 - tonumber(priority or 4)) * 562949953421312 + arrival + index)
      if placing then put(id, queue, home(queue, placing), score) else enqueue(id, queue, score) end
      redis.call('HSET', TASK .. id, 'state', 'queued', 'queued', stamp, 'score', score)
      move_count(queue, state, 'queued')
    end
    redis.call('ZREM', scheduled, id)
  end
  return #due
end
