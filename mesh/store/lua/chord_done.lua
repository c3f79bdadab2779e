-- A chord's body is published, or its failure recorded: nothing is due any more. Answers 1.
redis.call('ZREM', chords_due, group_id)
redis.call('DEL', CHORD .. group_id, PARTS .. group_id)
return 1
