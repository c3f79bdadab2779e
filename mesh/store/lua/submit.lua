--#include time counts queues
-- Publishes tasks. Ten arguments a task: id, message, token, queue, type, priority, delay_ms or '', expires_ms or '',
-- kind (create | outside | child), extra (msgpack list of more fields and values, or '').
--   create   Mesh.submit, HTTP: idempotent while the record lives; token = digest of what must be equal.
--   outside  a Celery call outside of a task: a live id stays as it is, an ended one starts a new run;
--            token = this publication, so that repeating it after a lost reply changes nothing.
--   child    a Celery call by another task's attempt: token = `parent:run`; the first publication of a run wins, and an
--            older run of the parent that publishes late changes nothing about a live id.
-- Answers one word a task: moved | exists | conflict | full.
-- The script is laid out for new tasks in bulk: few closures, one MSET, one ZADD a queue.
-- Invariant: an acknowledged task has a record and a message, and is in exactly one of a queue and the schedule.
local WIDTH, LIMIT = 10, 10000
local number = (#ARGV - FIRST + 1) / WIDTH
local arrival = redis.call('INCRBY', sequence, number) - number
local answers, news, told, arrivals, messages = {}, {}, {}, {}, {}

-- Tells agents of a requirement of several capabilities that is new; false if there are too many of them.
local function register(queue)
  told[queue] = true
  if not string.find(queue, '+', 1, true) or redis.call('HEXISTS', requirements, queue) == 1 then return end
  if redis.call('HLEN', requirements) >= LIMIT then
    told[queue] = false
    return
  end
  redis.call('HSET', requirements, queue, stamp)
  redis.call('INCR', requirements_version)
  for _, agent in ipairs(redis.call('ZRANGE', agents, 0, -1)) do
    if redis.call('LLEN', NUDGE .. agent) == 0 then redis.call('RPUSH', NUDGE .. agent, 'requirement') end
    redis.call('PEXPIRE', NUDGE .. agent, 60000)
  end
end

local function publish(at, index)
  local id, token, queue = ARGV[at], ARGV[at + 2], ARGV[at + 3]
  local key = TASK .. id
  local state, known, run, old_queue = redis.call('HGET', key, 'state'), nil, nil, nil
  if state then
    known, run, old_queue = unpack(redis.call('HMGET', key, 'token', 'run', 'queue'))
    known, run = known or '', run or 1
    local kind = ARGV[at + 8]
    if kind == 'create' then return token == known and 'exists' or 'conflict' end
    if token == known then return 'exists' end
    if not LEGAL.resubmit[state] then
      if kind ~= 'child' or not LEGAL.revise[state] then return 'exists' end
      local parent, its_run = string.match(token, '^(.*):(%d+)$')
      local other, later = string.match(known, '^(.*):(%d+)$')
      if parent and parent == other and tonumber(its_run) < tonumber(later) then return 'exists' end
    end
  end
  if told[queue] == nil then register(queue) end
  if not told[queue] then return 'full' end
  if state then
    -- Take the older run of the id out of wherever it is.
    if state == 'queued' then dequeue(id, old_queue) end
    for _, index_key in ipairs({scheduled, leases, deadlines, dead}) do redis.call('ZREM', index_key, id) end
    redis.call('DEL', RESULT .. id)
    redis.call('HDEL', key, 'failures', 'crashes', 'suspect', 'error', 'reason', 'agent', 'started', 'ended', 'leased', 'was',
      'expires_at', 'chord')
    redis.call('PERSIST', key)
    if not LEGAL.resubmit[state] then count(old_queue, state, -1) end
  end
  local priority, delay, expires, extra = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 9]
  local score = text((9 - priority) * 562949953421312 + arrival + index)
  local target = delay == '' and 'queued' or 'scheduled'
  messages[#messages + 1] = MESSAGE .. id
  messages[#messages + 1] = ARGV[at + 1]
  -- What is empty, the default or follows from another field is left out of a new record: bulk submission is bound by
  -- these bytes. Whoever reads a record fills in: type = queue, priority = 4, run = 1, queued = created.
  redis.call('HSET', key, 'v', '1', 'state', target, 'queue', queue, 'score', score, 'created', stamp)
  if state or ARGV[at + 4] ~= queue then redis.call('HSET', key, 'type', ARGV[at + 4]) end
  if state or priority ~= '4' then redis.call('HSET', key, 'priority', priority) end
  if state then redis.call('HSET', key, 'run', run + 1, 'queued', stamp, 'fence', '') end
  if state or token ~= '' then redis.call('HSET', key, 'token', token) end
  if extra ~= '' then redis.call('HSET', key, unpack(cmsgpack.unpack(extra))) end
  if expires ~= '' then
    local at_ms = text(now + expires)
    redis.call('HSET', key, 'expires_at', at_ms)
    redis.call('ZADD', deadlines, at_ms, id)
  end
  if target == 'scheduled' then
    redis.call('ZADD', scheduled, text(now + delay), id)
    count(queue, target, 1)
  else
    local entries = arrivals[queue]
    if not entries then
      entries = {}
      arrivals[queue] = entries
    end
    entries[#entries + 1] = score
    entries[#entries + 1] = id
  end
  news[#news + 1] = stamp
  news[#news + 1] = id
  return 'moved'
end

for index = 1, number do
  answers[index] = publish(FIRST + (index - 1) * WIDTH, index)
end
for first = 1, #messages, 4000 do
  redis.call('MSET', unpack(messages, first, math.min(first + 3999, #messages)))
end
for queue, entries in pairs(arrivals) do
  count(queue, 'queued', #entries / 2)
  for first = 1, #entries, 4000 do
    redis.call('ZADD', QUEUE .. queue, unpack(entries, first, math.min(first + 3999, #entries)))
  end
  redis.call('SADD', ready, queue)
  ring(queue)
end
for first = 1, #news, 4000 do
  redis.call('ZADD', recent, unpack(news, first, math.min(first + 3999, #news)))
end
if (arrival + number) % 128 < number then redis.call('ZREMRANGEBYRANK', recent, 0, -10001) end
write_counts()
return answers
