--#include time leads
--#allow-oom
-- A leader that stops gives the lead up, if it still has it. Answers 1 or 0.
if not leads() then return 0 end
redis.call('HSET', leader, 'until', '0')
return 1
