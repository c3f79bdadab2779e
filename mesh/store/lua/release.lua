--#include time counts queues places past requeue
--#allow-oom
-- Gives attempts back to their queues, at their old places, uncounted. Two arguments each: id, fence.
-- Answers one word each: moved | missing | fenced | stale.
local answers = {}
for at = FIRST, #ARGV, 2 do
  local id, fence = ARGV[at], ARGV[at + 1]
  local state, held, queue, score = unpack(redis.call('HMGET', TASK .. id, 'state', 'fence', 'queue', 'score'))
  if not state then
    answers[#answers + 1] = 'missing'
  elseif not LEGAL.release[state] then
    answers[#answers + 1] = 'stale'
  elseif FENCED and held ~= fence then
    answers[#answers + 1] = 'fenced'
  else
    remember(id, 'released', '')
    requeue(id, queue, state, score)
    redis.call('ZREM', leases, id)
    answers[#answers + 1] = 'moved'
  end
end
write_counts()
return answers
