--#include time
--#allow-oom
-- An agent leaves: no longer found by its capabilities; its registration stays for a day, to be seen as offline.
-- Then its capabilities. Answers moved | fenced (another life of it has joined).
local key = AGENT .. agent
local current = redis.call('HGET', key, 'incarnation')
if current ~= incarnation then return 'fenced' end
redis.call('HSET', key, 'left', stamp)
redis.call('PEXPIRE', key, 86400000)
for at = FIRST, #ARGV do redis.call('SREM', CAPABILITY .. ARGV[at], agent) end
redis.call('DEL', NUDGE .. agent)
return 'moved'
