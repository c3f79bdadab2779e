-- Has an agent beat at once: a cancellation, a new requirement, a passed deadline reaches it without waiting for its next beat.
local function nudge(agent, why)
  if redis.call('LLEN', NUDGE .. agent) == 0 then redis.call('RPUSH', NUDGE .. agent, why) end
  redis.call('PEXPIRE', NUDGE .. agent, 60000)
end
