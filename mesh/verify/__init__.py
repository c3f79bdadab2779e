"""`mesh verify`: faults on purpose, and a witness beside the system that says what came of the tasks."""
