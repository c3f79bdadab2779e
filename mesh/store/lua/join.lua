--#include time
--#allow-oom
-- Registers an agent under its id. `gone`: the incarnation that the caller has proved dead, or ''. `lost_ms`: an agent that
-- has not beaten for so long does not block its id. `fields`: msgpack list of registration fields and values.
-- `rejoin`: the incarnation that the caller is itself (its record vanished with Redis's data), or ''.
-- The registration stays for a day after the last beat. Answers {joined, its incarnation, incarnation before it or 0} or {taken, incarnation, ms since its last beat}.
local key = AGENT .. agent
local beat, before, left = unpack(redis.call('HMGET', key, 'beat', 'incarnation', 'left'))
local age = beat and now - tonumber(beat) or -1
if beat and not left and age < tonumber(lost_ms) and before ~= gone and before ~= rejoin then
  return {'taken', tonumber(before), age}
end
local incarnation = rejoin ~= '' and tonumber(rejoin) or (tonumber(before) or 0) + 1
if rejoin == '' and not before then incarnation = now end
-- An operator's word outlives a restart, a leaving does not; what the leader found last it compares with what it finds next.
local kept = {}
for _, field in ipairs({'cordoned', 'judged', 'judged_at'}) do
  local value = redis.call('HGET', key, field)
  if value then
    kept[#kept + 1] = field
    kept[#kept + 1] = value
  end
end
redis.call('DEL', key)
if kept[1] then redis.call('HSET', key, unpack(kept)) end
redis.call('HSET', key, 'id', agent, 'incarnation', text(incarnation), 'beat', stamp, 'joined', stamp, unpack(cmsgpack.unpack(fields)))
redis.call('PEXPIRE', key, 86400000)
redis.call('ZADD', agents, stamp, agent)
return {'joined', incarnation, tonumber(before) or 0}
