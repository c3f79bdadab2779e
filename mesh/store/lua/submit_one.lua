--#include time queues
-- Publishes one new task that says nothing but its queue and type, the most frequent call of all: what submit.lua does for it,
-- in half the time. Answers moved, or nothing where the id is known: then submit.lua decides, and nothing was changed.
local key = TASK .. id
if redis.call('EXISTS', key) == 1 then return false end
local arrival = redis.call('INCR', sequence)
local score = text(5 * 562949953421312 + arrival)
redis.call('SET', MESSAGE .. id, message)
redis.call('HSET', key, 'v', '1', 'state', 'queued', 'queue', queue, 'score', score, 'created', stamp)
if task_type ~= queue then redis.call('HSET', key, 'type', task_type) end
if token ~= '' then redis.call('HSET', key, 'token', token) end
enqueue(id, queue, score)
redis.call('ZADD', recent, stamp, id)
if arrival % 128 == 0 then redis.call('ZREMRANGEBYRANK', recent, 0, -10001) end
redis.call('HINCRBY', counters, queue .. '|queued', 1)
return 'moved'
