--#include time leads counts queues places nudge finish overdue promote
--#allow-oom
-- One turn of the leader's loops over time: due tasks to their queues, expired and overdue tasks ended, old dead letters let go,
-- and what has waited for a region for longer than `spill_ms` offered to all.
-- Answers {promoted, expired, dead letters forgotten, chords due for 2 s, tasks that left their region, timed out}, nil if the caller
-- does not lead any more.
if not leads() then return nil end
local promoted = promote(tonumber(limit))
local ended = overdue(limit, keep_ms)
local forgotten = redis.call('ZREMRANGEBYSCORE', dead, '-inf', text(now - tonumber(dead_keep_ms)))
local spilled = 0
for _, place in ipairs(redis.call('SMEMBERS', ready)) do
  if string.find(place, '.@@') then spilled = spilled + reroute(place, tonumber(limit), now - tonumber(spill_ms)) end
end
write_counts()
return {promoted, ended.expired, forgotten, redis.call('ZRANGE', chords_due, '-inf', text(now - 2000), 'BYSCORE', 'LIMIT', 0, 100), spilled,
  ended.timed_out}
