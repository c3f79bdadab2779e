"""How often who may ask: by subject, by address, and by address after tokens that were none.

In the memory of each coordinator: N of them let N times as much through. What only shares an address (one office, one proxy that
MESH_TRUSTED_PROXIES does not name) shares its limit.
"""

from __future__ import annotations

import logging
import time

from mesh.core.rates import Buckets
from mesh.core.sources import Proxies, limited_as
from mesh.errors import TooManyRequests
from mesh.settings import Settings

__all__ = ["Guard"]
logger = logging.getLogger(__name__)
_BURST_S = 2.0  # of the rates of requests: a batch of callers that start at the same moment
_FAILED_BURST_S = 10.0


class Guard:
    """The limits of one coordinator. Called in its event loop only. `addresses`: by `limited_as`, on the loop's clock."""

    def __init__(self, settings: Settings) -> None:
        def of(rate: int, burst_s: float) -> Buckets:
            return Buckets(rate=rate, burst=max(1.0, rate * burst_s))

        self.proxies = Proxies(settings.trusted_proxies)
        self._subjects = of(settings.http_rate_subject, _BURST_S)
        self.addresses = of(settings.http_rate_address, _BURST_S)
        self._failures = of(settings.http_rate_failed, _FAILED_BURST_S)
        self._warned = False

    def subject(self, subject: str) -> None:
        """Count a request of who has shown a token. Raises `TooManyRequests`."""
        wait_s = self._subjects.take(subject, time.monotonic())
        if wait_s:
            raise TooManyRequests(f"{subject} asks too often (MESH_HTTP_RATE_SUBJECT).", retry_after_s=wait_s)

    def locked_s(self, key: str) -> float:
        """Seconds for which no token of an address is looked at."""
        return self._failures.wait_s(key, time.monotonic())

    def failed(self, address: str) -> None:
        """Count a token that was none."""
        self._failures.take(limited_as(address), time.monotonic())

    def told_for(self, peer: str) -> None:
        """`peer` says for whom it speaks, and is not trusted: say so once, since its callers share its limits."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s sends X-Forwarded-For but is not in MESH_TRUSTED_PROXIES: all who come through it count as one address",
                peer,
            )
