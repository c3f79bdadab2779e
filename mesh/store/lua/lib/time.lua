-- Redis's clock, in ms: `now` as a number, `stamp` as text (Lua and Redis both shorten large numbers).
local function text(number) return string.format('%.0f', number) end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stamp = text(now)
-- The earlier of two times as texts, of which each may be missing.
local function earlier(one, other)
  if one and other then return tonumber(one) <= tonumber(other) and one or other end
  return one or other
end
