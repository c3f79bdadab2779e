--#include time
--#allow-oom
-- An agent says which queues it consumes: from now on tasks are placed with it. What it no longer consumes is taken off.
-- A cordoned one is only noted. Answers moved | fenced (another life of it has joined).
local key = AGENT .. agent
local current, cordoned = unpack(redis.call('HMGET', key, 'incarnation', 'cordoned'))
if current ~= incarnation then return 'fenced' end
local queues, kept = {}, {}
for at = FIRST, #ARGV do
  queues[#queues + 1] = ARGV[at]
  kept[ARGV[at]] = true
end
for queue in string.gmatch(redis.call('HGET', key, 'queues') or '', '[^\n]+') do
  if not kept[queue] then redis.call('ZREM', CONSUMERS .. queue, agent) end
end
redis.call('HSET', key, 'queues', table.concat(queues, '\n'))
redis.call('ZADD', present, stamp, agent)
redis.call('HDEL', key, 'absent')
if not cordoned then
  local turn = redis.call('GET', sequence) or '0'
  for _, queue in ipairs(queues) do redis.call('ZADD', CONSUMERS .. queue, 'NX', turn, agent) end
end
return 'moved'
