--#include time counts queues nudge finish
--#allow-oom
-- Cancels a task that has not ended, wherever it is; the agent that runs it is nudged and stops it.
-- Answers {moved | missing | stale, the state it was in, chord that became due or ''}.
local key = TASK .. task_id
local state, queue, agent, chord, place = unpack(redis.call('HMGET', key, 'state', 'queue', 'agent', 'chord', 'place'))
if not state then return {'missing', '', ''} end
if not LEGAL.cancel[state] then return {'stale', state, ''} end
local document = describe(task_id, 'cancelled', 'TaskRevokedError', 'celery.exceptions', reason)
local group = finish(task_id, queue, state, 'cancelled', chord, document, true, keep_ms, '', 'reason', reason)
if state == 'queued' then
  dequeue(task_id, place or queue)
elseif state ~= 'scheduled' and agent then
  nudge(string.match(agent, '^[^#]*'), 'cancel')
end
redis.call('ZREM', scheduled, task_id)
redis.call('ZREM', leases, task_id)
redis.call('ZREM', deadlines, task_id)
write_counts()
return {'moved', state, group or ''}
