-- Tells agents of a requirement of several capabilities that is new; false if there are too many of them. Needs time, nudge; the
-- keys requirements, requirements_version, present.
local MOST_REQUIREMENTS = 10000
local function register(queue)
  if not string.find(queue, '+', 1, true) or redis.call('HEXISTS', requirements, queue) == 1 then return true end
  if redis.call('HLEN', requirements) >= MOST_REQUIREMENTS then return false end
  redis.call('HSET', requirements, queue, stamp)
  redis.call('INCR', requirements_version)
  for _, agent in ipairs(redis.call('ZRANGE', present, 0, -1)) do nudge(agent, 'requirement') end
  return true
end
