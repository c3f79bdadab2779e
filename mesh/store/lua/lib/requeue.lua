-- The place of a task that was interrupted: its turn had come, so it goes ahead of all that waits, whatever its priority; else a
-- busy mesh would let what its dead agent ran wait behind everything more urgent that comes.
local function ahead(score) return text(tonumber(score) % 562949953421312) end
-- Puts a held task back into its queue at `score`, whichever agent it was placed with; it may expire there again.
-- Needs time, counts, queues, places; the key deadlines.
local function requeue(id, queue, from, score, ...)
  local expires_at, placing, deadline_at = unpack(redis.call('HMGET', TASK .. id, 'expires_at', 'placing', 'deadline_at'))
  if placing then put(id, queue, home(queue, placing), score) else enqueue(id, queue, score) end
  redis.call('HSET', TASK .. id, 'state', 'queued', 'fence', '', 'queued', stamp, ...)
  if expires_at then redis.call('ZADD', deadlines, earlier(expires_at, deadline_at), id) end
  redis.call('DEL', RESULT .. id)
  move_count(queue, from, 'queued')
end
