"""Celery and Kombu: app, transport, result backend, routing of calls, envelope."""
