--#include time counts queues places finish past requeue
--#allow-oom
-- One page of what begin_epoch.lua has put aside, at most `limit` tasks: by the epoch's policy each is failed (its chord is told), or,
-- if it was held, queued again at its old place as a new attempt, uncounted. Either way its old fence is gone.
-- An id that somebody has fetched since the epoch began was given back by an agent of before, and is left to him.
-- Answers {1 if there is more, five values a task: id, type, state that it was in, agent or '', its state now}.
-- Invariant: an id leaves what was put aside last; a page that is repeated finds it ended or queued.
local name = redis.call('SRANDMEMBER', restoring)
if not name then return {0, {}} end
local policy = redis.call('HGET', epoch, 'tasks')
local page = redis.call('ZRANGE', ASIDE .. name, 0, limit - 1)
local reply = {}
local WHERE = {running = 'running on ', leased = 'delivered to ', queued = 'queued', scheduled = 'scheduled'}
local function restore(id)
  local state, queue, score, chord, place, holder, kind =
    unpack(redis.call('HMGET', TASK .. id, 'state', 'queue', 'score', 'chord', 'place', 'agent', 'type'))
  if not state or not LEGAL.restore[state] then return end
  local held = state == 'leased' or state == 'running'
  local agent = held and string.match(holder or '?', '^[^#]*') or ''
  local target = state
  local anew = held and redis.call('ZSCORE', leases, id)
  if policy == 'requeue' and held and not anew then
    target = 'queued'
    remember(id, 'released', 'the mesh was restored from a backup')
    requeue(id, queue, state, score)
  elseif policy == 'fail' and not anew then
    local sentence = 'was ' .. WHERE[state] .. agent .. ' when the backup was made; it may have run since'
    target = 'failed'
    finish(id, queue, state, target, chord, describe(id, target, 'RuntimeError', 'builtins', sentence), true, keep_ms,
      '', 'reason', 'restored', 'error', sentence)
    if state == 'queued' then dequeue(id, place or queue) end
    redis.call('ZREM', scheduled, id)
    redis.call('ZREM', deadlines, id)
  end
  for _, word in ipairs({id, kind or queue, state, agent, target}) do reply[#reply + 1] = word end
end
for _, id in ipairs(page) do
  restore(id)
  redis.call('ZREM', ASIDE .. name, id)
end
if #page < tonumber(limit) then redis.call('SREM', restoring, name) end
write_counts()
return {redis.call('SCARD', restoring) > 0 and 1 or 0, reply}
