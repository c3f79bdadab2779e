--#include time queues places withdraw
--#allow-oom
-- An operator's word to an agent: `how` is cordon (no new work; what waits in its own queue goes back), uncordon, or drain
-- (cordon, finish what it runs, leave). The agent is nudged. Answers moved | more (call again) | missing.
local key = AGENT .. agent
if redis.call('EXISTS', key) == 0 then return 'missing' end
if how == 'uncordon' then
  redis.call('HDEL', key, 'cordoned')
  if redis.call('ZSCORE', present, agent) then
    local turn = redis.call('GET', sequence) or '0'
    for queue in string.gmatch(redis.call('HGET', key, 'queues') or '', '[^\n]+') do
      redis.call('ZADD', CONSUMERS .. queue, 'NX', turn, agent)
    end
  end
else
  redis.call('HSET', key, how == 'drain' and 'drain' or 'cordoned', stamp)
  if withdraw(agent, tonumber(limit)) > 0 then return 'more' end
end
if redis.call('LLEN', NUDGE .. agent) == 0 then redis.call('RPUSH', NUDGE .. agent, how) end
redis.call('PEXPIRE', NUDGE .. agent, 60000)
return 'moved'
