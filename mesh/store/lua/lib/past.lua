-- Ended attempts that did not end their task, in the record's field `past`: one JSON object a line, the newest last, at most 32.
-- Called before the record is changed: what ends is the attempt that the record tells of. Once each: on replay the last one may
-- be there already. `how`: failed | timed_out | crashed | lost (leased, its agent died before the start) | released | replaced;
-- `ended`: ms, or nil for now; `problem`: one line, or ''. Needs time.
local MOST_PAST = 32
local function remember(id, how, problem, ended)
  local key = TASK .. id
  local state, run, attempt, agent, leased, started, past =
    unpack(redis.call('HMGET', key, 'state', 'run', 'attempt', 'agent', 'leased', 'started', 'past'))
  past = past or ''
  if not attempt or not leased or string.match(past, '"attempt":(%d+)[^\n]*$') == attempt then return end
  if state == 'leased' then -- its start was not told: what has run has just begun
    started = how ~= 'lost' and how ~= 'released' and stamp
  end
  local function quoted(value) return value and value ~= '' and cjson.encode(value) or 'null' end
  local lines = (past == '' and '' or past .. '\n') .. '{"run":' .. (run or '1') .. ',"attempt":' .. attempt
    .. ',"agent":' .. quoted(agent and string.match(agent, '^[^#]*')) .. ',"leased":' .. leased
    .. ',"started":' .. (started or 'null') .. ',"ended":' .. (ended or stamp) .. ',"how":"' .. how
    .. '","error":' .. quoted(problem) .. '}'
  local _, more = string.gsub(lines, '\n', '\n')
  for _ = MOST_PAST, more do lines = string.match(lines, '\n(.*)$') end
  redis.call('HSET', key, 'past', lines)
end
