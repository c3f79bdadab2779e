-- Whether `lead` (`<coordinator>#<term>`) is the lead of now: it has not run out, and nobody has taken it since. What only the
-- leader does asks this first, so that one who was stopped or cut off changes nothing with a lead that is over. The id counts
-- as well as the term: a failover of Redis that loses writes may give one term to two. Needs time; key leader; lead.
local function leads()
  local id, term, until_ms = unpack(redis.call('HMGET', leader, 'id', 'term', 'until'))
  return not FENCED or (id and lead == id .. '#' .. term and now < tonumber(until_ms))
end
