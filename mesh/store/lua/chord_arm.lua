--#include time
-- Tells a chord its body (before its header is published; '' leaves it) and its size (-1: not known yet).
-- Answers 1 if the chord is due by it. A chord that is armed with a body again starts anew.
local key = CHORD .. group_id
if body ~= '' then
  redis.call('DEL', key, PARTS .. group_id)
  redis.call('HSET', key, 'body', body, 'armed', stamp)
end
redis.call('PEXPIRE', key, keep_ms)
redis.call('PEXPIRE', PARTS .. group_id, keep_ms)
if tonumber(size) >= 0 then
  redis.call('HSET', key, 'size', size)
  if redis.call('EXISTS', PARTS .. group_id) == 1 and redis.call('HLEN', PARTS .. group_id) >= tonumber(size) then
    redis.call('ZADD', chords_due, 'NX', stamp, group_id)
    return 1
  end
end
return 0
