--#include time
--#allow-oom
-- Leader election for economy: the loops are safe to run twice. Takes or renews the lead for `lead_ms`.
-- Answers {1 if the caller leads else 0, term, id of the leader}.
local id, term, until_ms = unpack(redis.call('HMGET', leader, 'id', 'term', 'until'))
if id and id ~= coordinator and now < tonumber(until_ms) then return {0, tonumber(term), id} end
if id ~= coordinator or now >= tonumber(until_ms) then term = (tonumber(term) or 0) + 1 end
redis.call('HSET', leader, 'id', coordinator, 'term', term, 'until', text(now + tonumber(lead_ms)))
return {1, tonumber(term), coordinator}
