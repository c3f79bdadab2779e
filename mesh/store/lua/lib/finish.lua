-- Ends a task: result, end of the record, chord part. The caller removes the id from where it was (queue, lease).
-- Needs time, counts; the keys dead, chords_due. `document`: Celery's result document, or '' where nobody made one;
-- `keep_ms`: how long the record and the result stay; `store`: whether the result is kept for readers;
-- `fence`: that of the attempt that settled it, '' if nobody did.
local function describe(id, to, name, module, sentence)
  return '{"status":"' .. CELERY[to] .. '","result":{"exc_type":"' .. name .. '","exc_message":['
    .. cjson.encode(sentence) .. '],"exc_module":"' .. module .. '"},"traceback":null,"children":[],"date_done":null,'
    .. '"task_id":' .. cjson.encode(id) .. '}'
end
local function chord_part(chord, document)
  local group, index = string.match(chord, '^(.*)|([^|]*)$')
  local size, added, keep = unpack(redis.call('HMGET', CHORD .. group, 'size', 'added', 'keep'))
  if not keep then return end
  redis.call('HSET', PARTS .. group, index, document)
  redis.call('PEXPIRE', PARTS .. group, keep)
  redis.call('PEXPIRE', CHORD .. group, keep)
  if size and redis.call('HLEN', PARTS .. group) >= tonumber(size) + tonumber(added or 0) then
    redis.call('ZADD', chords_due, 'NX', stamp, group)
    return group
  end
end
local function finish(id, queue, from, to, chord, document, store, keep_ms, fence, ...)
  local key = TASK .. id
  if document == '' then
    document = '{"status":"' .. CELERY[to] .. '","result":null,"traceback":null,"children":[],"date_done":null,'
      .. '"task_id":' .. cjson.encode(id) .. '}'
  end
  if store then redis.call('SET', RESULT .. id, document, 'PX', keep_ms) end
  redis.call('HSET', key, 'state', to, 'ended', stamp, 'fence', fence, ...)
  if to == 'dead_lettered' then
    redis.call('ZADD', dead, stamp, id)
    redis.call('PEXPIRE', MESSAGE .. id, keep_ms)
  elseif to == 'failed' or to == 'timed_out' then
    redis.call('PEXPIRE', MESSAGE .. id, keep_ms)
  else
    redis.call('DEL', MESSAGE .. id)
  end
  redis.call('PEXPIRE', key, keep_ms)
  move_count(queue, from, to)
  redis.call('PUBLISH', RESULT .. id, document)
  if chord then return chord_part(chord, document) end
end
