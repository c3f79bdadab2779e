--#include time counts timings queues places choose nudge requirements past
--#allow-oom
-- The running attempt publishes its own id again (Celery's self.retry and Task.replace), with a new message.
-- how: failed or timed_out, by `problem` (one line), or replaced (by itself). An attempt that ran out of time does not publish: its
-- agent does. delay_ms '' means at once, 'parked' until another
-- publication of the id comes (a replacing chord's body). Answers moved | missing | fenced | stale | full |
-- late (its next try would come after its deadline: nothing is changed).
local key = TASK .. task_id
local state, held, old_queue, expires_at, placing, deadline_at, started, queued, created = unpack(redis.call('HMGET', key,
  'state', 'fence', 'queue', 'expires_at', 'placing', 'deadline_at', 'started', 'queued', 'created'))
if not state then return 'missing' end
if not LEGAL.retry[state] then return 'stale' end
if FENCED and held ~= fence then return 'fenced' end
if deadline_at and delay_ms ~= 'parked' and now + (tonumber(delay_ms) or 0) >= tonumber(deadline_at) then return 'late' end
if not register(queue) then return 'full' end
remember(task_id, how, problem)
if state == 'leased' then -- its start was not told: it has just begun
  started = now
  measure('wait', old_queue, now - (queued or created or now))
end
measure('run', old_queue, now - (started or now))
local arrival = redis.call('INCR', sequence)
local score = text((9 - tonumber(priority)) * 562949953421312 + arrival)
local target = delay_ms == '' and 'queued' or 'scheduled'
if message ~= '' then redis.call('SET', MESSAGE .. task_id, message) end
if delay_ms ~= '' and delay_ms ~= 'parked' then
  redis.call('ZADD', scheduled, text(now + tonumber(delay_ms)), task_id)
end
redis.call('HSET', key, 'state', target, 'fence', '', 'was', fence, 'queue', queue, 'type', task_type, 'priority', priority,
  'score', score, 'queued', stamp)
if how ~= 'replaced' then redis.call('HINCRBY', key, 'failures', 1) end
if target == 'queued' then put(task_id, queue, placing and choose(queue, placing, arrival, 1) or queue, score) end
if expires_at and delay_ms == 'parked' then
  redis.call('HDEL', key, 'expires_at') -- it has been started; what waits now is its canvas
elseif expires_at then
  redis.call('ZADD', deadlines, earlier(expires_at, deadline_at), task_id)
end
redis.call('ZREM', leases, task_id)
count(old_queue, state, -1)
count(queue, target, 1)
if how ~= 'replaced' then redis.call('HINCRBY', counters, queue .. '|retries', 1) end
write_counts()
write_timings()
return 'moved'
