--#include time queues places nudge withdraw
--#allow-oom
-- An operator's word to an agent, or its own: `how` is cordon (no new work; what waits in its own queue goes back), uncordon, or
-- drain (cordon, finish within `grace_ms` what it runs, leave; '' is the agent's own time of grace). `incarnation`: only to this life of
-- it, or ''. The agent is nudged; one that has left needs no drain. A drain is not taken back, and not put off by the agent itself:
-- an operator's later word may have come before its own.
-- Answers moved | more (call again) | missing | fenced | draining.
local key = AGENT .. agent
local current, left, drain, own_grace = unpack(redis.call('HMGET', key, 'incarnation', 'left', 'drain', 'grace_ms'))
if not current then return 'missing' end
if incarnation ~= '' and incarnation ~= current then return 'fenced' end
if left and how == 'drain' then return 'moved' end
if how == 'uncordon' then
  if drain and not left then return 'draining' end
  redis.call('HDEL', key, 'cordoned')
  if redis.call('ZSCORE', present, agent) then
    local turn = redis.call('GET', sequence) or '0'
    for queue in string.gmatch(redis.call('HGET', key, 'queues') or '', '[^\n]+') do
      redis.call('ZADD', CONSUMERS .. queue, 'NX', turn, agent)
    end
  end
else
  if how == 'drain' then
    local by = now + (tonumber(grace_ms) or tonumber(own_grace) or 60000)
    if incarnation == '' or not drain or by < tonumber(drain) then redis.call('HSET', key, 'drain', text(by)) end
  else
    redis.call('HSET', key, 'cordoned', stamp)
  end
  if withdraw(agent, tonumber(limit)) > 0 then return 'more' end
end
nudge(agent, how)
return 'moved'
