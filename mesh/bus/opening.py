"""Opening messages where they are fetched, and what becomes of those that are refused.

Every stored message that is to be run, published again or followed by its callbacks is opened by `open_task`: its seal is
verified, and where an agent sealed it, so is every type that it names. A refused one ends as a dead letter with its reason; none
of its callbacks runs. Refusals are counted, logged once a second at most, and never hold up what is in order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from kombu.utils.json import loads as json_loads

from mesh.bus import messages
from mesh.core.canvas import named_types
from mesh.core.envelopes import Opened, Rejected, TaskKeys, lifetime_ms, open_sealed
from mesh.core.policies import matches
from mesh.core.states import Reason
from mesh.core.tokens import Claims
from mesh.store.signing import CHORDS, keys_of
from mesh.store.store import Store

__all__ = ["Refusals", "Seen", "open_body", "open_stored", "open_task"]

logger = logging.getLogger(__name__)
_LOGGED_S = 1.0
_MOST_SEEN = 65_536


def open_task(keys: TaskKeys, queue: str, task_id: str, sealed: bytes, now_ms: int | None) -> Opened:
    """The message of a task, if its signer may have it run. `now_ms`: Redis's clock; None: however old it is.

    Raises `Rejected`.
    """
    opened = open_sealed(keys, queue, task_id, sealed, now_ms)
    if opened.claims is not None:
        _authorise(opened.claims, messages.types_in(opened.message))
    return opened


def _authorise(claims: Claims, names: Iterator[str]) -> None:
    """Every type that a message names, one by one. Raises `Rejected`."""
    try:
        for name in names:
            if not matches(claims.submit or (), name):
                said = f"{claims.subject}, who signed its message, may not submit {name[:200]!r}"
                raise Rejected(Reason.NOT_PERMITTED, said)
    except Rejected:
        raise
    except ValueError as error:
        raise Rejected(Reason.NOT_PERMITTED, f"what its message names cannot be told: {error}") from None


def open_stored(store: Store, queue: str, task_id: str, sealed: bytes) -> bytes:
    """A stored message that somebody is about to sign anew, however old it is. Raises `Rejected`, `Invalid`."""
    message = open_task(keys_of(store.settings), queue, task_id, sealed, None).message
    try:
        messages.readable(message)
    except ValueError as error:
        raise Rejected(Reason.UNREADABLE, f"its message cannot be read: {error}") from None
    return message


def open_body(store: Store, group_id: str, sealed: bytes) -> bytes:
    """A chord's body, Celery's signature as JSON. Raises `Rejected`, `Invalid`.

    The header may take longer than the certificate lives that its body was signed with: it counts for a task's validity longer.
    """
    now_ms = store.now_ms()
    opened = open_sealed(keys_of(store.settings), CHORDS, group_id, sealed, None)
    life_ms = lifetime_ms(store.settings.task_validity_s, None)
    if opened.claims is None:
        raise Rejected(Reason.FORGED, "it is signed in a way in which no chord's body is")
    if now_ms > min(opened.not_after_ms, opened.claims.expires_at * 1000 + life_ms):
        raise Rejected(Reason.SIGNATURE_EXPIRED, "its signature has expired")
    try:
        signature = json_loads(opened.message)
    except (ValueError, RecursionError) as error:
        raise Rejected(Reason.NOT_PERMITTED, f"it cannot be read: {error}") from None
    _authorise(opened.claims, named_types("celery.accumulate", [], {}, {"chord": signature}, {}))
    return opened.message


class Seen:
    """The proofs of the last messages whose end this agent has seen recorded: none of them is run again.

    It holds at least the last 65,536. A new one takes its place when the connection to Redis was lost: Redis may have gone back
    in time (a failover, a restore), and what it has forgotten has to run again.
    """

    def __init__(self) -> None:
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def add(self, proof: bytes) -> None:
        """Its task has ended for good."""
        if len(self._new) >= _MOST_SEEN:
            self._old, self._new = self._new, set()
        self._new.add(proof)

    def __contains__(self, proof: bytes) -> bool:
        return proof in self._new or proof in self._old


class Refusals:
    """How many messages this agent has refused; says so in the log once a second at most. `tell`: (task id, reason, detail)."""

    def __init__(
        self, tell: Callable[[str, Reason, str], None] = lambda task_id, reason, detail: None
    ) -> None:
        self.count = 0
        self.tell = tell
        self._logged_at, self._since = float("-inf"), 0

    def note(self, task_id: str, refused: Rejected) -> None:
        """One more."""
        self.count += 1
        self._since += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOGGED_S:
            others = f" (and {self._since - 1} others)" if self._since > 1 else ""
            logger.error("task %s refused%s: %s", task_id, others, refused.detail)
            self._logged_at, self._since = now, 0
        self.tell(task_id, refused.reason, refused.detail)
