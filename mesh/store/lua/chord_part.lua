--#include time
-- A header's task failed before it was published (a chain that broke): its part is counted here.
-- Answers 1 if the chord is due by it.
redis.call('HSET', PARTS .. group_id, index, document)
local size, added = unpack(redis.call('HMGET', CHORD .. group_id, 'size', 'added'))
if size and redis.call('HLEN', PARTS .. group_id) >= tonumber(size) + tonumber(added or 0) then
  redis.call('ZADD', chords_due, 'NX', stamp, group_id)
  return 1
end
return 0
