--#include time counts queues finish
--#allow-oom
-- Records an outcome for an id that no attempt holds: a chain or chord that failed before it was published, or is waiting.
-- Answers {moved | fenced | stale, chord that became due or ''}: what an agent holds is the agent's to settle.
local key = TASK .. task_id
local record_state, queue, chord, place = unpack(redis.call('HMGET', key, 'state', 'queue', 'chord', 'place'))
if record_state and not LEGAL.conclude[record_state] then
  return {(record_state == 'leased' or record_state == 'running') and 'fenced' or 'stale', ''}
end
if not record_state then
  queue = ''
  redis.call('HSET', key, 'v', '1', 'queue', '', 'created', stamp)
end
local group = finish(task_id, queue, record_state, state, chord, document, true, keep_ms, '')
if record_state == 'queued' then dequeue(task_id, place or queue) end
redis.call('ZREM', scheduled, task_id)
redis.call('ZREM', deadlines, task_id)
write_counts()
return {'moved', group or ''}
