"""Celery's own features, checked on every pool through real `celery worker` processes."""
