"""While somebody listens to events, an agent says so often that it is there that he knows within seconds.

Heartbeats are events that every worker sends, listener or not, so the mesh sends them as seldom as it can afford. A listener
(Flower, `celery events`) asks all workers again and again to send events, and each time is answered by a heartbeat. That also
keeps a promise of Celery's: to a new listener its workers say that their heartbeats come every five seconds.
"""

from __future__ import annotations

from typing import Any

from celery.utils.sysinfo import load_average
from celery.worker import control
from celery.worker import state as worker_state

_FREQUENCY_S = 5  # how often Flower asks; it calls offline who misses two heartbeats
_celerys_own = control.enable_events


def answer_listeners() -> None:
    """Answer the remote control command `enable_events` from now on."""
    control.control_command(name="enable_events")(enable_events)


def enable_events(state: Any) -> Any:
    """Tell worker(s) to send task-related events."""
    answer = _celerys_own(state)
    dispatcher = state.consumer.event_dispatcher
    if dispatcher is not None and dispatcher.enabled:
        dispatcher.send(
            "worker-heartbeat",
            freq=_FREQUENCY_S,
            active=len(worker_state.active_requests),
            processed=worker_state.all_total_count[0],
            loadavg=load_average(),
            **worker_state.SOFTWARE_INFO,
        )
    return answer
