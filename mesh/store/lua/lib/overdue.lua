-- What has run out of time, by the two times a record may carry: `expires_at` (to be started by then; it counts while the
-- task waits) and `deadline_at` (to have ended by then; it counts in every state). The id stands among the deadlines at the
-- earlier of those that count. Needs time, counts, queues, finish, nudge; the keys scheduled, leases, deadlines.
local function lapsed(expires_at, deadline_at)
  local first = earlier(expires_at, deadline_at)
  if not first or now < tonumber(first) then return nil end
  return first == expires_at and 'expired' or 'timed_out'
end
-- Ends a task that has, and returns the chord that became due. The caller removes the id from where it was.
local function lapse(id, queue, from, to, chord, keep_ms)
  if to == 'expired' then
    local document = describe(id, to, 'TaskRevokedError', 'celery.exceptions', 'expired')
    return finish(id, queue, from, to, chord, document, true, keep_ms, '', 'reason', REASON.not_started)
  end
  local document = describe(id, to, 'TimeLimitExceeded', 'billiard.exceptions', REASON.deadline)
  return finish(id, queue, from, to, chord, document, true, keep_ms, '', 'reason', REASON.deadline)
end
-- Ends all that has, at most `limit`, wherever it is; agents that run it are nudged. Returns {expired = n, timed_out = n}.
local function overdue(limit, keep_ms)
  local ended = {expired = 0, timed_out = 0}
  for _, id in ipairs(redis.call('ZRANGE', deadlines, '-inf', stamp, 'BYSCORE', 'LIMIT', 0, limit)) do
    local state, queue, chord, place, expires_at, deadline_at, agent = unpack(redis.call('HMGET', TASK .. id, 'state', 'queue',
      'chord', 'place', 'expires_at', 'deadline_at', 'agent'))
    local waits, lives = state and LEGAL.expire[state], state and LEGAL.time_out[state]
    local to = lives and lapsed(waits and expires_at, deadline_at)
    if to then
      lapse(id, queue, state, to, chord, keep_ms)
      ended[to] = ended[to] + 1
      if state == 'queued' then
        dequeue(id, place or queue)
      elseif state == 'scheduled' then
        redis.call('ZREM', scheduled, id)
      else
        redis.call('ZREM', leases, id)
        nudge(string.match(agent, '^[^#]*'), 'deadline')
      end
    end
    if lives and not to and deadline_at then
      redis.call('ZADD', deadlines, deadline_at, id)
    else
      redis.call('ZREM', deadlines, id)
    end
  end
  return ended
end
