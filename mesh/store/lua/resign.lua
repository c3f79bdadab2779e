--#allow-oom
-- A leader that stops gives the lead up, if it still has it. Answers 1 or 0.
if redis.call('HGET', leader, 'id') ~= coordinator then return 0 end
redis.call('HSET', leader, 'until', '0')
return 1
