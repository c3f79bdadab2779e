--#include time
--#allow-oom
-- Claims a due chord for 10 s, so that one process completes it. Answers {} or {body, armed, index, document, index, ...}.
local key = CHORD .. group_id
local body, armed, claimed = unpack(redis.call('HMGET', key, 'body', 'armed', 'claimed'))
if not body or (claimed and now - tonumber(claimed) < 10000) or not redis.call('ZSCORE', chords_due, group_id) then return {} end
redis.call('HSET', key, 'claimed', stamp)
local reply = redis.call('HGETALL', PARTS .. group_id)
table.insert(reply, 1, armed)
table.insert(reply, 1, body)
return reply
