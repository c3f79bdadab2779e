-- A started attempt whose process died: again, or put aside as poison at the limit. Needs time, counts, finish, past, requeue.
local function died(agent) return 'agent ' .. agent .. ' died while it ran' end
local function listed(names)
  local last = table.remove(names)
  return #names > 0 and table.concat(names, ', ') .. ' and ' .. last or last
end
-- What a task of poison killed in this run, as a sentence: whole agents, or only their pool processes.
local function killed(id, agent, sentence)
  local run, past = unpack(redis.call('HMGET', TASK .. id, 'run', 'past'))
  local whole, processes = {}, {}
  local function one(name, problem) table.insert(problem == died(name) and whole or processes, name) end
  for line in string.gmatch(past or '', '[^\n]+') do
    local attempt = cjson.decode(line)
    if attempt.how == 'crashed' and attempt.run == tonumber(run or 1) then one(attempt.agent, attempt.error) end
  end
  one(agent, sentence)
  local parts = {}
  if #whole > 0 then parts[1] = 'agent' .. (#whole > 1 and 's ' or ' ') .. listed(whole) end
  if #processes > 0 then parts[#parts + 1] = 'its pool process on ' .. listed(processes) end
  return 'it killed ' .. table.concat(parts, ', and ') .. (sentence == died(agent) and '' or '; the last time ' .. sentence)
end
-- Returns the state it is in now, the chord that became due by it, and the sentence that is kept of it.
local function crashed(id, queue, from, score, chord, crashes, limit, keep_ms, agent, sentence)
  crashes = (tonumber(crashes) or 0) + 1
  local poison = crashes >= tonumber(limit)
  if poison then sentence = killed(id, agent, sentence) else remember(id, 'crashed', sentence) end
  redis.call('HSET', TASK .. id, 'crashes', crashes, 'crashed', stamp)
  redis.call('HINCRBY', counters, queue .. '|crashes', 1)
  if not poison then
    requeue(id, queue, from, ahead(score))
    return 'queued', nil, sentence
  end
  redis.call('ZREM', deadlines, id)
  local document = describe(id, 'dead_lettered', 'WorkerLostError', 'billiard.exceptions', sentence)
  local due = finish(id, queue, from, 'dead_lettered', chord, document, true, keep_ms, '', 'reason', 'poison', 'error', sentence)
  return 'dead_lettered', due, sentence
end
