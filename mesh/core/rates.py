"""How often somebody may: token buckets, one a key, in a table that cannot be made to grow.

A bucket is one number: the moment at which it would be full again ("virtual scheduling", ITU-T I.371; also called GCRA). A full
bucket says nothing, so it need not be kept.
"""

from __future__ import annotations

__all__ = ["Buckets"]


class Buckets:
    """Each key may `rate` times a second, and `burst` times at once. `rate` 0: as often as it likes.

    At most `most` keys are remembered: beyond that those whose bucket is full again are forgotten, then the oldest, who get a
    full bucket with it. Not safe for threads; the clock is an argument, in seconds, and never goes back.
    """

    def __init__(self, *, rate: float, burst: float, most: int = 20_000) -> None:
        self._pause_s = 1 / rate if rate else 0.0
        self._room_s = (burst - 1) * self._pause_s
        self._most = most
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until `key` may again; 0: now."""
        return max(0.0, self._full_at.get(key, 0.0) - now_s - self._room_s)

    def take(self, key: str, now_s: float) -> float:
        """0, and it is counted; or the seconds until `key` may again, and nothing is counted."""
        full_at = self._full_at.get(key, now_s)
        if full_at < now_s:
            full_at = now_s
        late_s = full_at - now_s - self._room_s
        if late_s > 0:
            return late_s
        if self._pause_s:
            self._full_at[key] = full_at + self._pause_s
            if len(self._full_at) > self._most:
                self._forget(now_s)
        return 0.0

    def _forget(self, now_s: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now_s}
        excess = len(self._full_at) - self._most // 2  # half: so that this is done once in many takes
        if excess > 0:
            for key in list(self._full_at)[:excess]:
                del self._full_at[key]
