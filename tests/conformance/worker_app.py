"""What `celery -A tests.conformance.worker_app worker` loads: the application, and a mark when it is ready."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from celery import signals

from tests.conformance.app import build_app
from tests.conformance.ledger import write_note

PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    # A test run that is itself killed must not leave agents behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

app = build_app()


@signals.worker_ready.connect
def announce(**_: Any) -> None:
    write_note(os.environ["CONFORMANCE_READY_KEY"])
