--#allow-oom
-- Puts a chord's body, signed anew, in the place of the one that was read, where that is still there. Answers 1 if it was.
local key = CHORD .. group_id
if redis.call('HGET', key, 'body') ~= was then return 0 end
redis.call('HSET', key, 'body', body)
return 1
