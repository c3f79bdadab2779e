"""Built-in task bodies, installed as mesh.tasks."""
