--#include time counts queues places choose nudge requirements
-- Publishes tasks. What tasks have in common is a template: queue, type, priority, delay_ms or '', expires_ms or '', deadline_ms
-- or '', kind (create | outside | child), placing (see places.lua), extra (msgpack list of more fields and values, or ''). The arguments:
-- how many templates, the templates, then four a task: number of its template, id, message, token.
--   create   Mesh.submit, HTTP: idempotent while the record lives; token = digest of what must be equal.
--   outside  a Celery call outside of a task: a live id stays as it is, an ended one starts a new run;
--            token = this publication, so that repeating it after a lost reply changes nothing.
--   child    a Celery call by another task's attempt: token = `parent:run`; the first publication of a run wins, and an
--            older run of the parent that publishes late changes nothing about a live id.
-- Answers one word a task: moved | exists | conflict | full.
-- The script is laid out for new tasks in bulk: few closures, one MSET, one ZADD a queue.
-- Invariant: an acknowledged task has a record and a message, and is in exactly one of a queue and the schedule.
local COMMON, WIDTH = 9, 4
local templates = {}
for at = FIRST + 1, FIRST + ARGV[FIRST] * COMMON, COMMON do
  local priority, delay = ARGV[at + 2], ARGV[at + 3]
  templates[#templates + 1] = {queue = ARGV[at], type = ARGV[at + 1], priority = priority, delay = delay, expires = ARGV[at + 4],
    deadline = ARGV[at + 5], kind = ARGV[at + 6], placing = ARGV[at + 7], extra = ARGV[at + 8], first = (9 - priority) * 562949953421312,
    target = delay == '' and 'queued' or 'scheduled'}
end
local first_task = FIRST + 1 + #templates * COMMON
local number = (#ARGV - first_task + 1) / WIDTH
local arrival = redis.call('INCRBY', sequence, number) - number
local answers, news, told, queued, arrivals, messages = {}, {}, {}, {}, {}, {}

-- One look for all: nearly always none of the ids is known, and none is given twice.
local keys, all_new, given = {}, true, {}
for index = 1, number do
  local id = ARGV[first_task + (index - 1) * WIDTH + 1]
  keys[index] = TASK .. id
  if given[id] then all_new = false end
  given[id] = true
end
for first = 1, number, 4000 do
  if redis.call('EXISTS', unpack(keys, first, math.min(first + 3999, number))) > 0 then all_new = false end
end

local function publish(at, index)
  local template, id, token = templates[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 3]
  local queue = template.queue
  local key = keys[index]
  local state, known, run, old_queue, old_place
  if not all_new then state = redis.call('HGET', key, 'state') end
  if state then
    known, run, old_queue, old_place = unpack(redis.call('HMGET', key, 'token', 'run', 'queue', 'place'))
    known, run = known or '', run or 1
    local kind = template.kind
    if kind == 'create' then return token == known and 'exists' or 'conflict' end
    if token == known then return 'exists' end
    -- The very message that has ended: each publication is sealed anew, so somebody repeats what he has seen.
    if LEGAL.resubmit[state] and redis.call('GET', MESSAGE .. id) == ARGV[at + 2] then return 'exists' end
    if not LEGAL.resubmit[state] then
      if kind ~= 'child' or not LEGAL.revise[state] then return 'exists' end
      local parent, its_run = string.match(token, '^(.*):(%d+)$')
      local other, later = string.match(known, '^(.*):(%d+)$')
      if parent and parent == other and tonumber(its_run) < tonumber(later) then return 'exists' end
    end
  end
  if told[queue] == nil then told[queue] = register(queue) end
  if not told[queue] then return 'full' end
  if state then
    -- Take the older run of the id out of wherever it is.
    if state == 'queued' then dequeue(id, old_place or old_queue) end
    for _, index_key in ipairs({scheduled, leases, deadlines, dead}) do redis.call('ZREM', index_key, id) end
    redis.call('DEL', RESULT .. id)
    redis.call('HDEL', key, 'failures', 'crashes', 'suspect', 'error', 'reason', 'agent', 'started', 'ended', 'leased', 'was',
      'expires_at', 'deadline_at', 'chord', 'place', 'placing', 'past', 'trace')
    redis.call('PERSIST', key)
    if not LEGAL.resubmit[state] then count(old_queue, state, -1) end
  end
  local expires, placing, target = template.expires, template.placing, template.target
  local score = text(template.first + arrival + index)
  messages[#messages + 1] = MESSAGE .. id
  messages[#messages + 1] = ARGV[at + 2]
  -- What is empty, the default or follows from another field is left out of a new record: bulk submission is bound by
  -- these bytes. Whoever reads a record fills in: type = queue, priority = 4, run = 1, queued = created.
  redis.call('HSET', key, 'v', '1', 'state', target, 'queue', queue, 'score', score, 'created', stamp)
  if state or template.type ~= queue then redis.call('HSET', key, 'type', template.type) end
  if state or template.priority ~= '4' then redis.call('HSET', key, 'priority', template.priority) end
  if state then redis.call('HSET', key, 'run', run + 1, 'queued', stamp, 'fence', '') end
  if state or token ~= '' then redis.call('HSET', key, 'token', token) end
  if placing ~= '' then redis.call('HSET', key, 'placing', placing) end
  if template.extra ~= '' then redis.call('HSET', key, unpack(cmsgpack.unpack(template.extra))) end
  if expires ~= '' or template.deadline ~= '' then
    local expires_at = expires ~= '' and text(now + expires) or nil
    local deadline_at = template.deadline ~= '' and text(now + template.deadline) or nil
    if expires_at then redis.call('HSET', key, 'expires_at', expires_at) end
    if deadline_at then redis.call('HSET', key, 'deadline_at', deadline_at) end
    redis.call('ZADD', deadlines, earlier(expires_at, deadline_at), id)
  end
  if target == 'scheduled' then
    redis.call('ZADD', scheduled, text(now + template.delay), id)
    count(queue, target, 1)
  else
    local place = queue
    if placing ~= '' then
      place = choose(queue, placing, arrival + index, number)
      if place ~= queue then redis.call('HSET', key, 'place', place) end
    end
    queued[queue] = (queued[queue] or 0) + 1
    local entries = arrivals[place]
    if not entries then
      entries = {}
      arrivals[place] = entries
    end
    entries[#entries + 1] = score
    entries[#entries + 1] = id
  end
  news[#news + 1] = stamp
  news[#news + 1] = id
  return 'moved'
end

for index = 1, number do
  answers[index] = publish(first_task + (index - 1) * WIDTH, index)
end
for first = 1, #messages, 4000 do
  redis.call('MSET', unpack(messages, first, math.min(first + 3999, #messages)))
end
for queue, many in pairs(queued) do count(queue, 'queued', many) end
for place, entries in pairs(arrivals) do
  for first = 1, #entries, 4000 do
    redis.call('ZADD', QUEUE .. place, unpack(entries, first, math.min(first + 3999, #entries)))
  end
  redis.call('SADD', ready, place)
  ring(place)
end
for first = 1, #news, 4000 do
  redis.call('ZADD', recent, unpack(news, first, math.min(first + 3999, #news)))
end
if (arrival + number) % 128 < number then redis.call('ZREMRANGEBYRANK', recent, 0, -10001) end
write_counts()
return answers
