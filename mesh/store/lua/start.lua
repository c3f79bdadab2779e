--#include time counts timings
--#allow-oom
-- Records that a pool has accepted attempts. Three arguments each: id, fence, ms since it started.
-- Answers one word each: moved | missing | fenced | stale.
local answers = {}
for at = FIRST, #ARGV, 3 do
  local id, fence = ARGV[at], ARGV[at + 1]
  local state, held, queue, queued, created = unpack(redis.call('HMGET', TASK .. id, 'state', 'fence', 'queue', 'queued', 'created'))
  if not state then
    answers[#answers + 1] = 'missing'
  elseif not LEGAL.start[state] then
    answers[#answers + 1] = 'stale'
  elseif FENCED and held ~= fence then
    answers[#answers + 1] = 'fenced'
  else
    local started = now - tonumber(ARGV[at + 2])
    redis.call('HSET', TASK .. id, 'state', 'running', 'started', text(started))
    measure('wait', queue, started - (queued or created or started))
    move_count(queue, state, 'running')
    answers[#answers + 1] = 'moved'
  end
end
write_counts()
write_timings()
return answers
