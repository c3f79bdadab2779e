--#include time counts queues places finish past requeue
--#allow-oom
-- The process that ran this attempt died while the agent lives (a killed pool child): counted; again, or poison.
-- Answers {word, state it is in now or '', chord that became due or '', the sentence that is kept of it}.
local key = TASK .. task_id
local state, held, queue, score, chord, crashes, agent =
  unpack(redis.call('HMGET', key, 'state', 'fence', 'queue', 'score', 'chord', 'crashes', 'agent'))
if not state then return {'missing', '', '', ''} end
if not LEGAL.crash[state] then return {'stale', '', '', ''} end
if FENCED and held ~= fence then return {'fenced', '', '', ''} end
agent = string.match(agent, '^[^#]*')
local now_in, group, said = crashed(task_id, queue, state, score, chord, crashes, max_crashes, dead_keep_ms, agent, sentence)
redis.call('ZREM', leases, task_id)
write_counts()
return {'moved', now_in, group or '', said}
