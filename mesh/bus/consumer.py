"""Celery's consumer, except that no message is lost because nobody here can read it.

Celery rejects tasks of unknown types and acknowledges what it cannot decode: both would be gone. Here they become dead letters,
with the reason, to be replayed once an agent knows the type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import signals
from celery.exceptions import NotRegistered
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as CeleryConsumer

from mesh.bus import runtime
from mesh.bus.documents import one_line
from mesh.core.states import State

logger = get_logger(__name__)
#: Seconds between tries to connect anew. Celery's own rise to 30: an agent would sleep on while Redis is back.
_PAUSES = {"interval_start": 0.2, "interval_step": 0.3, "interval_max": 1.5}


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """`worker_consumer = "mesh.bus.consumer:Consumer"`."""

    on_waiting: Callable[[], None] | None = (
        None  # called with each try to connect: the event loop does not turn then
    )

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long it takes."""
        connect = conn.ensure_connection

        def patiently(errback: Any, max_retries: Any, callback: Callable[[], None]) -> Any:
            def again() -> None:
                if self.on_waiting is not None:
                    self.on_waiting()
                callback()

            return connect(errback, max_retries, callback=again, **_PAUSES)

        conn.ensure_connection = patiently
        return super().ensure_connected(conn)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """No task type of that name is registered here."""
        if not self._put_aside(message, NotRegistered(message.headers.get("task")), "unknown type"):
            super().on_unknown_task(body, message, exc)
            return
        signals.task_unknown.send(
            sender=self,
            message=message,
            exc=exc,
            name=message.headers.get("task"),
            id=message.headers.get("id"),
        )

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Not a task at all."""
        if not self._put_aside(message, ValueError("not a task message"), "unreadable"):
            super().on_unknown_message(body, message)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task message that breaks the protocol."""
        if not self._put_aside(message, exc, "unreadable"):
            super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A body that nobody here can decode."""
        if not self._put_aside(message, exc, "unreadable"):
            super().on_decode_error(message, exc)

    def _put_aside(self, message: Any, exc: Exception, reason: str) -> bool:
        holding, holdings = getattr(message, "holding", None), runtime.holdings
        if holding is None or holdings is None:
            return False
        logger.error(
            "task %s of type %s put aside (%s): %r", holding.id, message.headers.get("task"), reason, exc
        )
        document = self.app.backend.failure_document(holding.id, exc)
        settlement = holdings.settlement(holding, State.DEAD_LETTERED, document, keep=True)._replace(
            reason=reason, error=one_line(exc)
        )
        holdings.end(holding, settlement)
        holdings.forget(holding)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=holding.id, exception=repr(exc))
        return True
