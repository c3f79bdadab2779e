--#include time
--#allow-oom
-- Task types as an agent describes them, each kept as `<ms of now> <its JSON>`; forgets those that no agent has
-- advertised for `kept_ms`. Then name and JSON of each. Answers how many types are known.
for at = FIRST, #ARGV, 2 do redis.call('HSET', types, ARGV[at], stamp .. ' ' .. ARGV[at + 1]) end
local all = redis.call('HGETALL', types)
for at = 1, #all, 2 do
  local seen = string.match(all[at + 1], '^%d+')
  if not seen or tonumber(seen) < now - kept_ms then redis.call('HDEL', types, all[at]) end
end
return redis.call('HLEN', types)
