--#include time
--#allow-oom
-- A header's task failed before it was published (a chain that broke): its part is counted here.
-- Answers 1 if the chord is due by it; 0 also where nobody waits for it any more.
local key, parts = CHORD .. group_id, PARTS .. group_id
local size, added, keep = unpack(redis.call('HMGET', key, 'size', 'added', 'keep'))
if not keep then return 0 end
redis.call('HSET', parts, index, document)
redis.call('PEXPIRE', parts, keep)
redis.call('PEXPIRE', key, keep)
if size and redis.call('HLEN', parts) >= tonumber(size) + tonumber(added or 0) then
  redis.call('ZADD', chords_due, 'NX', stamp, group_id)
  return 1
end
return 0
