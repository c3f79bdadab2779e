--#allow-oom
-- Puts a message in the place of another, where that one is still there: the same task, signed anew. Three arguments each: id, the
-- message that is there, the new one. A held task too: its attempt has its message already. Keeps what is left of its retention.
-- Answers how many were replaced.
local replaced = 0
for at = FIRST, #ARGV, 3 do
  local key = MESSAGE .. ARGV[at]
  if redis.call('GET', key) == ARGV[at + 1] then
    redis.call('SET', key, ARGV[at + 2], 'KEEPTTL')
    replaced = replaced + 1
  end
end
return replaced
