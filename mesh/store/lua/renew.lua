--#include time counts queues nudge finish overdue pulse
--#allow-oom
-- An agent's beat: renews the leases of exactly the attempts that it names, and its registration. `fields`: msgpack list of
-- registration fields that change (load figures). Then two arguments an attempt: id, fence.
-- Answers {word: known | absent (it must offer its queues again) | unknown | restored (both: it must join again) | usurped, now, version of the requirements, ms until the next lease ends or -1,
-- chords due for 2 s, one word an attempt: held | settled | lost, what it is asked: cordoned | drain | '',
-- ms of the beat before this one that Redis knows of, or 0, ms that it has for a drain or -1}.
in_grace()
local key = AGENT .. agent
local known = 'unknown'
local current, cordoned, drain, before, restored = unpack(redis.call('HMGET', key, 'incarnation', 'cordoned', 'drain', 'beat', 'restored'))
if current == incarnation then
  known = 'known'
  redis.call('HSET', key, 'beat', stamp, unpack(cmsgpack.unpack(fields)))
  redis.call('PEXPIRE', key, 86400000)
  redis.call('ZADD', agents, stamp, agent)
  -- Others have taken it for absent, or it has not said yet what it consumes.
  if redis.call('ZADD', present, 'XX', 'CH', stamp, agent) == 0 and not redis.call('ZSCORE', present, agent) then known = 'absent' end
elseif restored then
  known = 'restored'
elseif current and tonumber(current) > tonumber(incarnation) then -- an older life is there only if Redis has gone back in time
  known = 'usurped'
end
overdue(100, keep_ms) -- where no coordinator runs, beats end what has run out of time
local answers, held = {}, {}
local lease_end = text(now + tonumber(lease_ms))
for at = FIRST, #ARGV, 2 do
  local state, fence, reason = unpack(redis.call('HMGET', TASK .. ARGV[at], 'state', 'fence', 'reason'))
  local word = 'lost'
  if state == 'leased' or state == 'running' then
    if fence == ARGV[at + 1] or not FENCED then
      word = 'held'
      held[#held + 1] = lease_end
      held[#held + 1] = ARGV[at]
    end
  elseif state and reason ~= 'restored' and reason ~= REASON.deadline and state ~= 'cancelled' and state ~= 'queued'
    and state ~= 'scheduled' then
    word = 'settled'
  end
  answers[#answers + 1] = word
end
for first = 1, #held, 4000 do
  redis.call('ZADD', leases, 'XX', unpack(held, first, math.min(first + 3999, #held)))
end
write_counts()
local due = redis.call('ZRANGE', chords_due, '-inf', text(now - 2000), 'BYSCORE', 'LIMIT', 0, 20)
return {known, now, tonumber(redis.call('GET', requirements_version) or 0), next_end(lease_ms), due, answers, drain and 'drain' or cordoned and 'cordoned' or '',
  tonumber(before or 0), drain and tonumber(drain) - now or -1}
