"""What the built-in task types ask of the attempt that runs them."""

from celery.exceptions import Ignore, SoftTimeLimitExceeded

from mesh import current

__all__ = ["check"]


def check() -> None:
    """Raise, if the running attempt is over: cancelled, taken from this agent, out of time. Costs nothing.

    Pools of processes enforce both by themselves; in threads and greenlets a task has to look.
    """
    if current.stopped:
        raise Ignore("its attempt is over")
    left = current.remaining_s
    if left is not None and left <= 0:
        raise SoftTimeLimitExceeded()
