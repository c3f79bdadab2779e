"""The mesh's own Celery application: `celery -A mesh worker`."""

from __future__ import annotations

from celery import Celery

from mesh.bus.install import install

app = install(Celery("mesh", include=["mesh.tasks.data_processing", "mesh.tasks.task_execution"]))
