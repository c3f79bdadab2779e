--#include time
--#allow-oom
-- Begins an epoch: what Redis holds is taken for a backup's, and nobody's word about it counts any more. In one step all leases are
-- put aside for restore.lua (`everything` 1: the schedule and every queue too), so that nobody renews, reaps or fetches them. The
-- epoch is a time, not a count: a count would come back with the backup, and two restores of one file would be the same epoch.
-- Terms go on from the epoch: they stay above those that were given after the backup was made.
-- `tasks`: the policy (fail | requeue). Answers {epoch, its policy, 1 if it goes on with a restore that was interrupted, else 0}.
local raised, ended, policy = unpack(redis.call('HMGET', epoch, 'raised', 'ended', 'tasks'))
if raised and not ended then return {raised, policy, 1} end
local number = math.max(now, (tonumber(raised) or 0) + 1)
local function put_aside(name, key)
  if redis.call('EXISTS', key) == 0 then return end
  redis.call('SADD', restoring, name)
  redis.call('RENAME', key, ASIDE .. name)
end
put_aside('leases', leases)
if everything == '1' then
  put_aside('scheduled', scheduled)
  for _, place in ipairs(redis.call('SMEMBERS', ready)) do put_aside('queue:' .. place, QUEUE .. place) end
  redis.call('DEL', ready)
end
redis.call('HSET', leader, 'term', text(math.max(number, tonumber(redis.call('HGET', leader, 'term') or 0))), 'until', '0')
redis.call('DEL', epoch)
redis.call('HSET', epoch, 'raised', text(number), 'tasks', tasks)
return {text(number), tasks, 0}
