"""Whether and when a failed attempt is tried again: exponential back-off with full jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (the variant called full jitter).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how a task's failures are tried again."""

    max_retries: int = 3
    base_s: float = 1.0
    cap_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a failed attempt: tried again after `delay_s`, or put aside."""

    again: bool
    delay_s: float = 0.0


def decide(policy: RetryPolicy, *, retries: int, dice: float) -> Decision:
    """`retries`: how many retries this run has had; `dice`: a random number in [0, 1)."""
    if retries >= policy.max_retries:
        return Decision(again=False)
    ceiling = min(policy.cap_s, policy.base_s * 2.0 ** min(retries, 60))
    return Decision(again=True, delay_s=ceiling * dice)
