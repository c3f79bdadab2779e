"""Faults that are real: processes killed by signal, on a real server."""
