"""How Celery's own waiting (`AsyncResult.get`) survives an absence of Redis.

Celery subscribes to the results that somebody waits for, and after a lost connection tries to subscribe again until its retries
are used up; then the application has to be restarted. Here each turn of a wait tries once, for as long as the wait lasts, and a
connection that says nothing is asked whether it lives.
"""

from __future__ import annotations

import time
from typing import Any

from celery.backends.redis import ResultConsumer as CeleryResultConsumer
from celery.utils.log import get_logger

from mesh.store.client import NETWORK_ERRORS
from mesh.store.connections import HEALTH_CHECK_S

logger = get_logger(__name__)
_MISSED = 2  # answers, until a connection counts as dead
_PAUSE_S = 0.3


class ResultConsumer(CeleryResultConsumer):  # type: ignore[misc]
    """See the module's text."""

    _asked = 0.0
    _pubsub: Any

    def consume_from(self, task_id: str) -> None:
        """Subscribe; while the connection is lost, with the next one."""
        with self._locked():
            if self._pubsub is None and self.subscribed_to:
                self.subscribed_to.add(self._get_key_for_task(task_id))
                return
        super().consume_from(task_id)

    def drain_events(self, timeout: float | None = None) -> None:
        """One turn of a wait."""
        with self._locked():
            if self._pubsub is None and self.subscribed_to:
                self._reconnect()
            elif self._pubsub is not None and time.monotonic() - self._asked > HEALTH_CHECK_S:
                self._asked = time.monotonic()
                with self.reconnect_on_error():
                    self._ask(self._pubsub)
            lost = self._pubsub is None
        super().drain_events(min(timeout or _PAUSE_S, _PAUSE_S) if lost else timeout)

    @staticmethod
    def _ask(pubsub: Any) -> None:
        if pubsub.connection is None or not pubsub.subscribed:
            return
        if pubsub.health_check_response_counter >= _MISSED:
            raise ConnectionError("the connection for results is silent")
        pubsub.check_health()

    def _reconnect(self) -> None:
        try:
            self._reconnect_pubsub()
        except NETWORK_ERRORS as error:
            self._pubsub = None
            logger.warning("waiting for results: Redis is away: %s", error)
