-- Queues: an id enters its queue, the set of non-empty queues and the bell. Needs the key `ready`.
local function ring(queue)
  local bell = BELL .. queue
  if redis.call('LLEN', bell) == 0 then redis.call('RPUSH', bell, '1') end
end
local function enqueue(id, queue, score)
  redis.call('ZADD', QUEUE .. queue, score, id)
  redis.call('SADD', ready, queue)
  ring(queue)
end
local function dequeue(id, queue)
  redis.call('ZREM', QUEUE .. queue, id)
  if redis.call('EXISTS', QUEUE .. queue) == 0 then redis.call('SREM', ready, queue) end
end
