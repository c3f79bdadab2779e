-- Counters: collected while a script works, written once at its end. Needs the key `counters`.
local deltas = {}
local function count(queue, state, by)
  local field = queue .. '|' .. state
  deltas[field] = (deltas[field] or 0) + by
end
local function move_count(queue, from, to)
  if from == to then return end
  if from then count(queue, from, -1) end
  count(queue, to, 1)
end
local function write_counts()
  for field, by in pairs(deltas) do
    if by ~= 0 then redis.call('HINCRBY', counters, field, by) end
  end
end
