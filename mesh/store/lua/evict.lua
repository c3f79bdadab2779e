--#allow-oom
-- Ends the leases that a holder has, so that the next reaper takes its tasks back: its former life is known to be over.
-- Looks at `limit` leases from `cursor` on. Answers {leases ended, next cursor or -1}.
local page = redis.call('ZRANGE', leases, cursor, cursor + limit - 1)
local ended = 0
for _, id in ipairs(page) do
  if redis.call('HGET', TASK .. id, 'agent') == holder then
    redis.call('ZADD', leases, 0, id)
    ended = ended + 1
  end
end
if #page < tonumber(limit) then return {ended, -1} end
return {ended, cursor + limit}
