--#include time queues places withdraw
-- Puts an agent into the registry as offline: one of a backup, or one that the registry has and that does not beat any more. What
-- waited for it alone goes back. Should its process live after all, its next beat is told to join again.
-- `known`: ms of its last beat as the caller has seen it ('' for no record): another one now means that it lives.
-- `fields`: msgpack list of registration fields and values; `cordon`: 1, 0, or '' to leave it as it is.
-- Answers moved | more (call again) | live.
local key = AGENT .. agent
local beat, incarnation = unpack(redis.call('HMGET', key, 'beat', 'incarnation'))
if (beat or '') ~= known then return 'live' end
if withdraw(agent, tonumber(limit)) > 0 then return 'more' end
local raised = tonumber(redis.call('HGET', epoch, 'raised') or now)
redis.call('HSET', key, 'id', agent, 'incarnation', text(math.max(raised, (tonumber(incarnation) or 0) + 1)), 'left', stamp,
  'restored', text(raised), 'running', '0', 'held', '0', unpack(cmsgpack.unpack(fields)))
redis.call('HDEL', key, 'drain', 'absent', 'state')
if cordon == '1' then redis.call('HSET', key, 'cordoned', stamp) elseif cordon == '0' then redis.call('HDEL', key, 'cordoned') end
redis.call('PEXPIRE', key, 86400000)
redis.call('ZREM', present, agent)
redis.call('ZADD', agents, stamp, agent)
redis.call('DEL', NUDGE .. agent)
return 'moved'
