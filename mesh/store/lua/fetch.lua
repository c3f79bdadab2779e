--#include time counts timings queues places nudge finish overdue promote
--#allow-oom
-- Leases up to `limit` queued tasks of the given queues to a holder, oldest and most urgent first.
-- isolated: 1 if each task runs in a process of its own; held: how many tasks the holder has (noted for `least-loaded`).
-- A task with a crash or a lost lease behind it ("watched") is delivered alone, its start recorded at once; a holder
-- whose tasks share one process takes it only while it holds nothing else, or when it has waited `patience_ms`.
-- Answers {now, ms until the next scheduled task or -1, tasks}; seven values a task: id, queue, fence, run, marks (1: delivered
-- before, 2: watched), message, priority.
-- A cordoned agent gets nothing. Rings the queues that it leaves work in, unless it could not take anything there: it would only wake itself up.
-- Invariant: an id is in its queue or among the leases, never in neither: the lease is written before the queue is left.
promote(100)
local want = tonumber(limit)
local names, agent = {}, string.match(holder, '^[^#]*')
for index = FIRST, #ARGV do names[#names + 1] = ARGV[index] end
if #names == 0 then return {now, -1, {}} end
local cordoned, drain, noted = unpack(redis.call('HMGET', AGENT .. agent, 'cordoned', 'drain', 'held'))
if cordoned or drain then
  for index, full in ipairs(redis.call('SMISMEMBER', ready, unpack(names))) do
    if full == 1 then ring(names[index]) end
  end
  return {now, -1, {}}
end

local candidates = {}
for index, full in ipairs(redis.call('SMISMEMBER', ready, unpack(names))) do
  if full == 1 then
    local head = redis.call('ZRANGE', QUEUE .. names[index], 0, 0, 'WITHSCORES')
    if head[1] then
      candidates[#candidates + 1] = {name = names[index], score = tonumber(head[2])}
    else
      redis.call('SREM', ready, names[index])
    end
  end
end
if #candidates > 1 then table.sort(candidates, function(a, b) return a.score < b.score end) end

local taken, gone, alone = {}, {}, false
-- Decides about one queued id: takes it, drops it (ended or vanished), or leaves it.
local function consider(id, queue)
  local r = redis.call('HMGET', TASK .. id, 'state', 'attempt', 'run', 'crashes', 'suspect', 'expires_at', 'queued', 'chord', 'priority', 'deadline_at', 'created')
  local state = r[1]
  if not state or not LEGAL.lease[state] then
    if not state and not string.find(queue, '@@', 1, true) then count(queue, 'queued', -1) end
    gone[queue][#gone[queue] + 1] = id
    return
  end
  local to = (r[6] or r[10]) and lapsed(r[6], r[10])
  if to then
    lapse(id, redis.call('HGET', TASK .. id, 'queue'), state, to, r[8], keep_ms)
    redis.call('ZREM', deadlines, id)
    gone[queue][#gone[queue] + 1] = id
    return
  end
  local watched = r[4] or r[5]
  if watched then
    if #taken > 0 then return end
    if isolated ~= '1' and held ~= '0' and now - tonumber(r[7] or 0) < tonumber(patience_ms) then return end
  end
  local message = redis.call('GET', MESSAGE .. id)
  if not message then
    finish(id, redis.call('HGET', TASK .. id, 'queue'), state, 'dead_lettered', r[8],
      describe(id, 'dead_lettered', 'LookupError', 'builtins', 'its message is gone from Redis'), true, keep_ms, '', 'reason', 'message lost')
    redis.call('ZREM', deadlines, id)
    gone[queue][#gone[queue] + 1] = id
    return
  end
  local attempt = (tonumber(r[2]) or 0) + 1
  local marks = (attempt > 1 and 1 or 0) + (watched and 2 or 0)
  local requirement = queue
  if string.find(queue, '@@', 1, true) then requirement = redis.call('HGET', TASK .. id, 'queue') end
  taken[#taken + 1] = {id, requirement, attempt .. '-' .. nonce, r[3] or '1', marks, message, attempt, watched, r[6], r[9] or '4', r[10], r[7] or r[11] or stamp}
  gone[queue][#gone[queue] + 1] = id
  alone = watched and true or false
end

for _, candidate in ipairs(candidates) do
  local queue = candidate.name
  gone[queue] = {}
  local ids = redis.call('ZRANGE', QUEUE .. queue, 0, want - #taken + 15)
  for _, id in ipairs(ids) do
    if alone or #taken >= want then break end
    consider(id, queue)
  end
  if alone or #taken >= want then break end
end

if noted and tonumber(noted) ~= held + #taken then redis.call('HSET', AGENT .. agent, 'held', held + #taken) end
local lease_end = text(now + tonumber(lease_ms))
local entries = {}
for _, task in ipairs(taken) do
  entries[#entries + 1] = lease_end
  entries[#entries + 1] = task[1]
end
if #entries > 0 then redis.call('ZADD', leases, unpack(entries)) end
for _, task in ipairs(taken) do
  local target = task[8] and 'running' or 'leased'
  if task[8] then
    redis.call('HSET', TASK .. task[1], 'state', target, 'attempt', task[7], 'fence', task[3], 'agent', holder, 'leased', stamp,
      'started', stamp)
    measure('wait', task[2], now - task[12])
  else
    redis.call('HSET', TASK .. task[1], 'state', target, 'attempt', task[7], 'fence', task[3], 'agent', holder, 'leased', stamp)
  end
  if task[9] and task[11] then
    redis.call('ZADD', deadlines, task[11], task[1])
  elseif task[9] then
    redis.call('ZREM', deadlines, task[1])
  end
  move_count(task[2], 'queued', target)
end
for _, candidate in ipairs(candidates) do
  local queue, left = candidate.name, gone[candidate.name] or {}
  if #left > 0 then
    for first = 1, #left, 4000 do
      redis.call('ZREM', QUEUE .. queue, unpack(left, first, math.min(first + 3999, #left)))
    end
  end
  if #left > 0 and redis.call('EXISTS', QUEUE .. queue) == 0 then
    redis.call('SREM', ready, queue)
  elseif #taken > 0 or want < 1 or #left > 0 then
    ring(queue)
  end
end
write_counts()
write_timings()

local next_due = -1
if #taken == 0 then
  local head = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
  if head[2] then next_due = math.max(0, tonumber(head[2]) - now) end
end
local reply = {}
for index, task in ipairs(taken) do
  reply[index] = {task[1], task[2], task[3], task[4], task[5], task[6], task[10]}
end
return {now, next_due, reply}
