-- How long attempts waited and ran: collected while a script works, written once at its end. Needs time and the key `timings`.
local timed = {wait = {}, run = {}}
local function measure(kind, queue, ms)
  ms = math.max(0, math.floor(ms))
  local row = timed[kind][queue]
  if not row then
    row = {sum = 0}
    timed[kind][queue] = row
  end
  local bucket = 1
  while BOUNDS_MS[bucket] and ms > BOUNDS_MS[bucket] do bucket = bucket + 1 end
  row.sum, row[bucket] = row.sum + ms, (row[bucket] or 0) + 1
end
local function write_timings()
  for kind, queues in pairs(timed) do
    for queue, row in pairs(queues) do
      local number = 0
      for name, by in pairs(row) do
        if name ~= 'sum' then number = number + by end
        if by > 0 then redis.call('HINCRBY', timings, queue .. '|' .. kind .. '|' .. name, by) end
      end
      if kind == 'run' then -- the mean of about the last RECENT_RUNS, and of how many it is
        local field = queue .. '|run|recent'
        local mean, of = string.match(redis.call('HGET', timings, field) or '0:0', '^(.+):(.+)$')
        mean, of = tonumber(mean), tonumber(of)
        mean = (mean * of + row.sum) / (of + number)
        redis.call('HSET', timings, field, string.format('%.1f:%d', mean, math.min(of + number, RECENT_RUNS)))
      end
    end
  end
end
