-- Puts a held task back to where it stood in its queue, whichever agent it was placed with; it may expire there again.
-- Needs time, counts, queues, places; the key deadlines.
local function requeue(id, queue, from, score, ...)
  local expires_at, placing = unpack(redis.call('HMGET', TASK .. id, 'expires_at', 'placing'))
  if placing then put(id, queue, home(queue, placing), score) else enqueue(id, queue, score) end
  redis.call('HSET', TASK .. id, 'state', 'queued', 'fence', '', 'queued', stamp, ...)
  if expires_at then redis.call('ZADD', deadlines, expires_at, id) end
  redis.call('DEL', RESULT .. id)
  move_count(queue, from, 'queued')
end
-- A started attempt whose process died: again, or put aside as poison at the limit.
-- Returns the state it is in now, and the chord that became due by it. Needs finish.
local function crashed(id, queue, from, score, chord, crashes, limit, keep_ms, agent, sentence)
  crashes = (tonumber(crashes) or 0) + 1
  redis.call('HSET', TASK .. id, 'crashes', crashes, 'crashed', stamp, 'error', sentence)
  redis.call('HINCRBY', counters, queue .. '|crashes', 1)
  if crashes < tonumber(limit) then
    requeue(id, queue, from, score)
    return 'queued'
  end
  local document = describe(id, 'dead_lettered', 'WorkerLostError', 'billiard.exceptions', sentence)
  local due = finish(id, queue, from, 'dead_lettered', chord, document, true, keep_ms, 'reason', 'poison')
  return 'dead_lettered', due
end
