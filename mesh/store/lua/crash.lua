--#include time counts timings queues places finish past requeue crashed
--#allow-oom
-- The process that ran this attempt died while the agent lives (a killed pool child): counted; again, or poison.
-- What follows from poison (see reap) is the caller's for 10 s, then anybody's. Answers {word, state it is in now or '', chord that became due or '', the sentence that is kept of it}.
local key = TASK .. task_id
local state, held, queue, score, chord, crashes, agent, queued, created =
  unpack(redis.call('HMGET', key, 'state', 'fence', 'queue', 'score', 'chord', 'crashes', 'agent', 'queued', 'created'))
if not state then return {'missing', '', '', ''} end
if not LEGAL.crash[state] then return {'stale', '', '', ''} end
if FENCED and held ~= fence then return {'fenced', '', '', ''} end
if state == 'leased' then measure('wait', queue, now - (queued or created or now)) end -- its start was not told: it had just begun
agent = string.match(agent, '^[^#]*')
local now_in, group, said = crashed(task_id, queue, state, score, chord, crashes, max_crashes, dead_keep_ms, agent, sentence)
if now_in == 'queued' then count(queue, 'process_died', 1) end
if now_in == 'dead_lettered' then redis.call('ZADD', poisoned, text(now + 10000), task_id) end
redis.call('ZREM', leases, task_id)
write_counts()
write_timings()
return {'moved', now_in, group or '', said}
