"""`python -m tests.chaos.producer ETA_S EXPIRES_S PAYLOAD ID`: publishes a task as Celery does, with times of its own clock."""

from __future__ import annotations

import datetime
import json
import sys

import tests.chaos.witness  # noqa: F401 - registers the type
from mesh.bus.app import app

if __name__ == "__main__":
    eta_s, expires_s, payload, task_id = sys.argv[1:]
    now = datetime.datetime.now(datetime.UTC)
    app.tasks["work"].apply_async(
        (json.loads(payload),),
        task_id=task_id,
        eta=now + datetime.timedelta(seconds=float(eta_s)),
        expires=now + datetime.timedelta(seconds=float(expires_s)),
    )
