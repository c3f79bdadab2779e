"""How an agent leaves: what to do next, from what it still has. Values in, values out."""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """What a leaving agent does next."""

    WAIT = "wait"  # something runs that may still finish
    STOP = "stop"  # nothing is left: the worker stops in order
    GIVE_BACK = "give back"  # the time of grace is over: what still runs goes back, and the process ends


def next_step(*, left_s: float, finishing: int, held: int, stopping_s: float, patience_s: float) -> Step:
    """`left_s`: time of grace that is left. `finishing`: tasks that run and whose outcome counts; `held`: these, and those
    that cannot be stopped although their outcome is refused (lost, cancelled, out of time). `stopping_s`: for how long the
    worker has been asked to stop in order, 0 if it was not; after `patience_s` it is not waited for any more.
    """
    if left_s <= 0 or stopping_s > patience_s or (held and not finishing):
        return Step.GIVE_BACK
    return Step.STOP if not held else Step.WAIT
