--#include time counts queues places withdraw finish past requeue crashed pulse
--#allow-oom
-- Takes back tasks whose lease has ended, at most `limit`. One that had started counts a crash for it (its agent died with
-- it); one that had not is only watched from now on. Nothing is reaped within the grace that follows a silence of Redis.
-- An agent that has not beaten for a lease is absent: what waits in its own queue goes back to the requirements' queues.
-- claim: of how many poisoned tasks the caller will say so to whoever waits for their end (error callbacks, chains); a claim
-- lasts 10 s, then they are anybody's again until somebody has done it.
-- Answers {tasks queued again, ids put aside as poison, ms until there is more to do or -1, chords that became due, ids claimed}.
local again, aside, due = 0, {}, {}
local quiet = in_grace()
for _, id in ipairs(redis.call('ZRANGE', leases, '-inf', quiet and 0 or stamp, 'BYSCORE', 'LIMIT', 0, limit)) do
  local state, queue, score, chord, crashes, agent =
    unpack(redis.call('HMGET', TASK .. id, 'state', 'queue', 'score', 'chord', 'crashes', 'agent'))
  if state and LEGAL.reap[state] then
    redis.call('HINCRBY', counters, queue .. '|reassigned', 1)
    agent = string.match(agent or '?', '^[^#]*')
    if state == 'running' then
      local now_in, group = crashed(id, queue, state, score, chord, crashes, max_crashes, dead_keep_ms, agent, died(agent))
      if now_in == 'queued' then again = again + 1 else
        aside[#aside + 1] = id
        redis.call('ZADD', poisoned, stamp, id)
      end
      if group then due[#due + 1] = group end
    else
      remember(id, 'lost', 'agent ' .. agent .. ' died before it started')
      requeue(id, queue, state, ahead(score), 'suspect', '1')
      again = again + 1
    end
  end
  redis.call('ZREM', leases, id)
end
if not quiet then
  for _, agent in ipairs(redis.call('ZRANGE', present, '-inf', text(now - lease_ms), 'BYSCORE', 'LIMIT', 0, 20)) do
    local moved = withdraw(agent, tonumber(limit))
    again = again + moved
    if moved == 0 then
      redis.call('ZREM', present, agent)
      if redis.call('EXISTS', AGENT .. agent) == 1 then
        redis.call('HSET', AGENT .. agent, 'absent', stamp, 'running', '0', 'held', '0')
      end
    end
  end
end
local claimed = {}
if tonumber(claim) > 0 then
  claimed = redis.call('ZRANGE', poisoned, '-inf', stamp, 'BYSCORE', 'LIMIT', 0, claim)
  for _, id in ipairs(claimed) do redis.call('ZADD', poisoned, text(now + 10000), id) end
end
write_counts()
return {again, aside, next_end(lease_ms), due, claimed}
