--#include time queues places withdraw
--#allow-oom
-- An agent leaves: nothing is placed with it any more, what waits in its own queue goes back; its registration stays for a
-- day, to be seen as offline. Answers {moved | more (call again) | fenced (another life of it has joined)}.
local key = AGENT .. agent
if redis.call('HGET', key, 'incarnation') ~= incarnation then return 'fenced' end
if withdraw(agent, tonumber(limit)) > 0 then return 'more' end
redis.call('ZREM', present, agent)
redis.call('HSET', key, 'left', stamp)
redis.call('HDEL', key, 'drain')
redis.call('PEXPIRE', key, 86400000)
redis.call('DEL', NUDGE .. agent)
return 'moved'
