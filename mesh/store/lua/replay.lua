--#include time counts queues places choose nudge requirements past
-- An operator runs an ended task again: a new run of the same id, with `message` (the old one, its retries forgotten).
-- The attempt that ended the former run is remembered. `run`: the run that the caller has seen. Answers moved | missing | stale (not ended, ended well, or another run) | full.
local key = TASK .. task_id
local state, known, queue, placing, priority, ended, reason, problem =
  unpack(redis.call('HMGET', key, 'state', 'run', 'queue', 'placing', 'priority', 'ended', 'reason', 'error'))
if not state then return 'missing' end
if not LEGAL.replay[state] or tonumber(known or 1) ~= tonumber(run) then return 'stale' end
if not register(queue) then return 'full' end
remember(task_id, state == 'timed_out' and state or reason == 'poison' and 'crashed' or 'failed', problem or '', ended)
local arrival = redis.call('INCR', sequence)
redis.call('SET', MESSAGE .. task_id, message)
redis.call('PERSIST', key)
redis.call('HDEL', key, 'failures', 'crashes', 'suspect', 'error', 'reason', 'agent', 'started', 'ended', 'leased', 'was', 'crashed',
  'expires_at', 'deadline_at')
local score = text((9 - tonumber(priority or 4)) * 562949953421312 + arrival)
redis.call('HSET', key, 'state', 'queued', 'run', run + 1, 'queued', stamp, 'fence', '', 'score', score)
put(task_id, queue, placing and choose(queue, placing, arrival, 1) or queue, score)
redis.call('DEL', RESULT .. task_id)
redis.call('ZREM', dead, task_id)
redis.call('ZADD', recent, stamp, task_id)
count(queue, 'queued', 1)
write_counts()
return 'moved'
