"""Tasks that say who ran them."""

from __future__ import annotations

import os
import time

from celery import Celery

from mesh import install, task

app = install(Celery("routing"))


@task("who")
def who(seconds: float = 0.0) -> str:
    """The id of the agent that runs it."""
    time.sleep(seconds)
    return os.environ["AGENT_ID"]


@task("needy", requires=["rare"])
def needy() -> str:
    """The same, for those who have a rare capability."""
    return os.environ["AGENT_ID"]
