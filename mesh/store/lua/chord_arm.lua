--#include time
-- Tells a chord its body (before its header is published; '' leaves it) and its size (-1: not known yet).
-- token: whose publication this is (`parent:run`), or '' where it is nobody's. Armed again by the same token the chord stays
-- as it is, since its header is not published a second time either; armed by any other it starts anew.
-- Answers 1 if the chord is due by it.
local key, parts = CHORD .. group_id, PARTS .. group_id
if body ~= '' and (token == '' or redis.call('HGET', key, 'armed') ~= token) then
  redis.call('ZREM', chords_due, group_id)
  redis.call('DEL', key, parts)
  redis.call('HSET', key, 'body', body, 'armed', token == '' and stamp or token, 'keep', keep_ms)
end
redis.call('PEXPIRE', key, keep_ms)
redis.call('PEXPIRE', parts, keep_ms)
if tonumber(size) >= 0 and redis.call('EXISTS', key) == 1 then
  redis.call('HSET', key, 'size', size)
  local done = redis.call('HLEN', parts)
  if done > 0 and done >= tonumber(size) + tonumber(redis.call('HGET', key, 'added') or 0) then
    redis.call('ZADD', chords_due, 'NX', stamp, group_id)
    return 1
  end
end
return 0
