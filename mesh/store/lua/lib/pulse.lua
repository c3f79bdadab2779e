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
