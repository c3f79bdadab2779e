--#include time leads
--#allow-oom
-- What the leader found when it judged the agents' health. Then two arguments an agent: id, health; '' for one whose record has
-- gone with its retention: it goes from the list. Only records that are there are written, so that none lives for ever.
-- Answers how many agents went from the list, nil if the caller does not lead any more.
if not leads() then return nil end
local gone = 0
for at = FIRST, #ARGV, 2 do
  local key = AGENT .. ARGV[at]
  if redis.call('EXISTS', key) == 0 then
    gone = gone + redis.call('ZREM', agents, ARGV[at])
  elseif ARGV[at + 1] ~= '' then
    redis.call('HSET', key, 'judged', ARGV[at + 1], 'judged_at', stamp)
  end
end
return gone
