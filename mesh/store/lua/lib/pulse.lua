-- The pulse: whoever beats or ticks leaves it. If it is found two beats old, Redis slept or was down, and nobody could
-- renew a lease meanwhile: nothing is reaped before one lease has passed. Needs time; keys pulse, grace; lease_ms, renew_ms.
local function in_grace()
  local last = redis.call('GET', pulse)
  if last and now - tonumber(last) > 2 * tonumber(renew_ms) + 500 then
    redis.call('SET', grace, text(now + tonumber(lease_ms)), 'PX', lease_ms)
  end
  redis.call('SET', pulse, stamp)
  local until_ms = redis.call('GET', grace)
  return until_ms and now < tonumber(until_ms)
end
-- Ms until the next lease ends, the next agent counts as absent or poison is to be told of, -1 if none will. Keys leases,
-- present, poisoned.
local function next_end(silence_ms)
  local first = -1
  local head = redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')
  if head[2] then first = math.max(0, tonumber(head[2]) - now) end
  head = redis.call('ZRANGE', present, 0, 0, 'WITHSCORES')
  if head[2] then
    local silent = math.max(0, tonumber(head[2]) + tonumber(silence_ms) + 1 - now)
    if first < 0 or silent < first then first = silent end
  end
  head = redis.call('ZRANGE', poisoned, 0, 0, 'WITHSCORES')
  if head[2] then
    local untold = math.max(0, tonumber(head[2]) - now)
    if first < 0 or untold < first then first = untold end
  end
  return first
end
