--#include time counts queues
-- Publishes tasks. Ten arguments a task: id, queue, type, priority, message, delay_ms or '', expires_ms or '',
-- kind (create | outside | child), token, extra (msgpack list of more fields and values, or '').
--   create   Mesh.submit, HTTP: idempotent while the record lives; token = digest of what must be equal.
--   outside  a Celery call outside of a task: a live id stays as it is, an ended one starts a new run;
--            token = this publication, so that repeating it after a lost reply changes nothing.
--   child    a Celery call by another task's attempt: token = `parent:run`; the first publication of a run wins, and an
--            older run of the parent that publishes late changes nothing about a live id.
-- Answers one word a task: moved | exists | conflict | full.
-- Invariant: an acknowledged task has a record and a message, and is in exactly one of a queue and the schedule.
local WIDTH, LIMIT = 10, 10000
local number = (#ARGV - FIRST + 1) / WIDTH
local arrival = redis.call('INCRBY', sequence, number) - number
local answers, news, told = {}, {}, {}

local function register(queue)
  if told[queue] == nil then
    told[queue] = true
    if string.find(queue, '+', 1, true) and redis.call('HEXISTS', requirements, queue) == 0 then
      if redis.call('HLEN', requirements) >= LIMIT then
        told[queue] = false
        return false
      end
      redis.call('HSET', requirements, queue, stamp)
      redis.call('INCR', requirements_version)
      for _, agent in ipairs(redis.call('ZRANGE', agents, 0, -1)) do
        if redis.call('LLEN', NUDGE .. agent) == 0 then redis.call('RPUSH', NUDGE .. agent, 'requirement') end
        redis.call('PEXPIRE', NUDGE .. agent, 60000)
      end
    end
  end
  return told[queue]
end

-- Takes an older run of the id out of wherever it is.
local function withdraw(id, key, state, queue)
  if state == 'queued' then dequeue(id, queue) end
  redis.call('ZREM', scheduled, id)
  redis.call('ZREM', leases, id)
  redis.call('ZREM', deadlines, id)
  redis.call('ZREM', dead, id)
  redis.call('DEL', RESULT .. id)
  redis.call('HDEL', key, 'failures', 'crashes', 'suspect', 'error', 'reason', 'agent', 'started', 'ended', 'leased', 'was',
    'expires_at', 'chord')
  redis.call('PERSIST', key)
end

local function older_run(token, than)
  local parent, run = string.match(token, '^(.*):(%d+)$')
  local other, later = string.match(than or '', '^(.*):(%d+)$')
  return parent and parent == other and tonumber(run) < tonumber(later)
end

local function publish(at, index)
  local id, queue, kind, token = ARGV[at], ARGV[at + 1], ARGV[at + 7], ARGV[at + 8]
  local key = TASK .. id
  local state, known, run, old_queue = unpack(redis.call('HMGET', key, 'state', 'token', 'run', 'queue'))
  known = known or ''
  if state then
    if kind == 'create' then return token == known and 'exists' or 'conflict' end
    if token == known then return 'exists' end
    if not LEGAL.resubmit[state] and not (kind == 'child' and LEGAL.revise[state] and not older_run(token, known)) then
      return 'exists'
    end
  end
  if not register(queue) then return 'full' end
  local from = nil
  if state then
    from = state
    withdraw(id, key, state, old_queue)
    run = run + 1
    if not LEGAL.resubmit[state] then
      count(old_queue, state, -1)
    end
  else
    run = 1
  end
  local priority, delay, expires, extra = ARGV[at + 3], ARGV[at + 5], ARGV[at + 6], ARGV[at + 9]
  local score = text((9 - tonumber(priority)) * 562949953421312 + arrival + index)
  redis.call('SET', MESSAGE .. id, ARGV[at + 4])
  local target = delay == '' and 'queued' or 'scheduled'
  -- What is empty or follows from another field is left out of a new record: bulk submission is bound by these bytes.
  redis.call('HSET', key, 'v', '1', 'state', target, 'type', ARGV[at + 2], 'queue', queue, 'priority', priority, 'run', run,
    'score', score, 'created', stamp)
  if from or token ~= '' then redis.call('HSET', key, 'token', token, 'queued', stamp, 'fence', '') end
  if extra ~= '' then redis.call('HSET', key, unpack(cmsgpack.unpack(extra))) end
  if expires ~= '' then
    local at_ms = text(now + tonumber(expires))
    redis.call('HSET', key, 'expires_at', at_ms)
    redis.call('ZADD', deadlines, at_ms, id)
  end
  if target == 'scheduled' then
    redis.call('ZADD', scheduled, text(now + tonumber(delay)), id)
  else
    redis.call('ZADD', QUEUE .. queue, score, id)
    told['>' .. queue] = true
  end
  count(queue, target, 1)
  news[#news + 1] = stamp
  news[#news + 1] = id
  return 'moved'
end

for index = 1, number do
  answers[index] = publish(FIRST + (index - 1) * WIDTH, index)
end
for name in pairs(told) do
  if string.sub(name, 1, 1) == '>' then
    local queue = string.sub(name, 2)
    redis.call('SADD', ready, queue)
    ring(queue)
  end
end
for first = 1, #news, 4000 do
  redis.call('ZADD', recent, unpack(news, first, math.min(first + 3999, #news)))
end
if (arrival + number) % 128 < number then redis.call('ZREMRANGEBYRANK', recent, 0, -10001) end
write_counts()
return answers
