--#include time
--#allow-oom
-- Leader election: takes or renews the lead for `lead_ms`. A lead that has run out is taken under a new term, by whomever.
-- Answers {1 if the caller leads else 0, term, id of the leader, ms until the lead ends}.
local id, term, until_ms = unpack(redis.call('HMGET', leader, 'id', 'term', 'until'))
if id and id ~= coordinator and now < tonumber(until_ms) then return {0, tonumber(term), id, tonumber(until_ms) - now} end
if id ~= coordinator or now >= tonumber(until_ms) then term = (tonumber(term) or 0) + 1 end
redis.call('HSET', leader, 'id', coordinator, 'term', term, 'until', text(now + tonumber(lead_ms)))
return {1, tonumber(term), coordinator, tonumber(lead_ms)}
