--#include time leads counts queues places finish promote
--#allow-oom
-- One turn of the leader's loops over time: due tasks to their queues, expired waiting tasks ended, old dead letters let go,
-- and what has waited for a region for longer than `spill_ms` offered to all.
-- Answers {promoted, expired, dead letters forgotten, chords due for 2 s, tasks that left their region}, nil if the caller does not
-- lead any more.
if not leads() then return nil end
local promoted = promote(tonumber(limit))
local expired = 0
for _, id in ipairs(redis.call('ZRANGE', deadlines, '-inf', stamp, 'BYSCORE', 'LIMIT', 0, limit)) do
  local state, queue, chord, place = unpack(redis.call('HMGET', TASK .. id, 'state', 'queue', 'chord', 'place'))
  if state and LEGAL.expire[state] then
    finish(id, queue, state, 'expired', chord, describe(id, 'expired', 'TaskRevokedError', 'celery.exceptions', 'expired'), true,
      keep_ms)
    if state == 'queued' then dequeue(id, place or queue) end
    redis.call('ZREM', scheduled, id)
    expired = expired + 1
  end
  redis.call('ZREM', deadlines, id)
end
local forgotten = redis.call('ZREMRANGEBYSCORE', dead, '-inf', text(now - tonumber(dead_keep_ms)))
local spilled = 0
for _, place in ipairs(redis.call('SMEMBERS', ready)) do
  if string.find(place, '.@@') then spilled = spilled + reroute(place, tonumber(limit), now - tonumber(spill_ms)) end
end
write_counts()
return {promoted, expired, forgotten, redis.call('ZRANGE', chords_due, '-inf', text(now - 2000), 'BYSCORE', 'LIMIT', 0, 100), spilled}
