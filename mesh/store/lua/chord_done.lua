--#allow-oom
-- A chord's body is published, or its failure recorded: nothing is due any more. Answers 1; 0 if it was armed anew since
-- (`armed` is what chord_take said of it, '' does not care).
if armed ~= '' and redis.call('HGET', CHORD .. group_id, 'armed') ~= armed then return 0 end
redis.call('ZREM', chords_due, group_id)
redis.call('DEL', CHORD .. group_id, PARTS .. group_id)
return 1
