"""While somebody listens to events, an agent says so often that it is there that he knows within seconds.

Heartbeats are events that every worker sends, listener or not, so the mesh sends them as seldom as it can afford. A listener
(Flower, `celery events`) asks all workers again and again to send events, and each time is answered by a heartbeat. That also
keeps a promise of Celery's: to a new listener its workers say that their heartbeats come every five seconds.

What happens to tasks is told in batches: publishing costs as much as a short task, and Celery would do it at every turn of its
event loop, or at every event where it has none. Listeners know `task.multi` messages: these are Celery's own.

Nothing here waits for Redis: Celery lets its event loop stand still until a heartbeat has gone out. Here what cannot be told is
kept until the next connection, which the event loop sees to.
"""

from __future__ import annotations

import math
from typing import Any

from celery import Celery
from celery.events import EventDispatcher
from celery.utils.sysinfo import load_average
from celery.worker import control
from celery.worker import state as worker_state

_BATCH_S = 0.2  # nobody who looks at a page sees it; a listener that counts gets the time of each event in it
_FREQUENCY_S = 5  # how often Flower asks; it calls offline who misses two heartbeats
_celerys_own = control.enable_events


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Celery's, that tries each event once."""

    def send(self, type: str, *args: Any, retry: bool = False, **fields: Any) -> Any:
        """Send an event, or keep it; `retry` is Celery's wish to wait until it is sent."""
        return super().send(type, *args, **fields)


def send_events(app: Celery) -> None:
    """Send events so from now on, and answer the remote control command `enable_events`."""
    app.events.dispatcher_cls = Dispatcher
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


def tell_in_batches(consumer: Any) -> None:
    """Let events of tasks wait for others of the next moment, from now on and until the connection is lost."""
    dispatcher = consumer.event_dispatcher
    if dispatcher is None:
        return
    waits = False

    def tell() -> None:
        nonlocal waits
        waits = False
        dispatcher.flush()

    def tell_soon() -> None:
        nonlocal waits
        if not waits:
            waits = True
            consumer.timer.call_after(_BATCH_S, tell)

    dispatcher.buffer_group = frozenset({"task"})
    # Time alone ends a batch: at a limit each of a pool's threads would publish what the others had just added.
    dispatcher.buffer_limit = math.inf
    dispatcher.on_send_buffered = tell_soon


def tell_the_rest(consumer: Any) -> None:
    """The pool has stopped: nothing will happen any more."""
    if consumer.event_dispatcher is not None:
        consumer.event_dispatcher.flush()
