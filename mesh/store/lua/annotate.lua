--#include time
-- Stores a result document that ends nothing: a custom state, progress, the exception of a retry. By the attempt that holds
-- the task, or the one that has just published it again. fence '' (somebody outside): only while no attempt holds it.
-- Answers moved | missing | fenced | stale.
local key = TASK .. task_id
local state, held, was = unpack(redis.call('HMGET', key, 'state', 'fence', 'was'))
if state == 'leased' or state == 'running' then
  if FENCED and held ~= fence then return 'fenced' end
elseif state == 'scheduled' or state == 'queued' then
  if FENCED and fence ~= '' and was ~= fence then return 'fenced' end
elseif state then
  return 'stale'
end
redis.call('SET', RESULT .. task_id, document, 'PX', keep_ms)
redis.call('PUBLISH', RESULT .. task_id, document)
return state and 'moved' or 'missing'
