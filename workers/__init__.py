"""The agent process, installed as mesh.workers."""
