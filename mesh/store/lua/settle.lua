--#include time counts timings finish
--#allow-oom
-- Ends attempts: result, state, lease, counters and chord part in one step. Seven arguments each: id, fence, state it ends
-- in, result document or '', 1 to keep the result for readers, ms that it ran or '', reason or '' (and behind a newline the
-- error as one line, if there is one).
-- Answers {one word each: moved | repeated | missing | fenced | stale, chords that became due}.
-- Invariant: an attempt that is not the current one changes nothing. Only an end that was settled keeps its fence.
local answers, due, ended = {}, {}, {}
for at = FIRST, #ARGV, 7 do
  local id, fence = ARGV[at], ARGV[at + 1]
  local state, held, queue, chord, deadline_at, queued, created, started =
    unpack(redis.call('HMGET', TASK .. id, 'state', 'fence', 'queue', 'chord', 'deadline_at', 'queued', 'created', 'started'))
  if not state then
    answers[#answers + 1] = 'missing'
  elseif not LEGAL.settle[state] then
    -- The same end once more: the reply to the first time was lost, and the caller has to go on as if it had come.
    local repeated = held == fence and state == ARGV[at + 2]
    if not repeated then count(queue, 'late', 1) end
    answers[#answers + 1] = repeated and 'repeated' or 'stale'
  elseif FENCED and held ~= fence then
    count(queue, 'late', 1)
    answers[#answers + 1] = 'fenced'
  else
    local to, document, ran = ARGV[at + 2], ARGV[at + 3], ARGV[at + 5]
    local store = ARGV[at + 4] == '1'
    local keep = keep_ms
    if to == 'dead_lettered' then keep = dead_keep_ms elseif not store and to == 'succeeded' then keep = ignored_keep_ms end
    local reason, problem = string.match(ARGV[at + 6], '^([^\n]*)\n?(.*)$')
    local refused = string.sub(reason, 1, 9) == 'refused: ' -- nothing of it was run
    local group
    if state == 'leased' then -- it has ended before its start was told: it cannot have run for long
      ran = tonumber(ran) or 0
      group = finish(id, queue, state, to, chord, document, store, keep, fence, 'started', text(now - ran))
      if not refused then measure('wait', queue, now - ran - (queued or created or now)) end
    else
      ran = tonumber(ran) or now - (started or now)
      group = finish(id, queue, state, to, chord, document, store, keep, fence)
    end
    if refused then count(queue, 'refused', 1) else measure('run', queue, ran) end
    if reason ~= '' then
      redis.call('HSET', TASK .. id, 'reason', reason)
      if problem ~= '' then redis.call('HSET', TASK .. id, 'error', problem) end
    end
    if deadline_at then redis.call('ZREM', deadlines, id) end
    if group then due[#due + 1] = group end
    ended[#ended + 1] = id
    answers[#answers + 1] = 'moved'
  end
end
for first = 1, #ended, 4000 do
  redis.call('ZREM', leases, unpack(ended, first, math.min(first + 3999, #ended)))
end
write_counts()
write_timings()
return {answers, due}
