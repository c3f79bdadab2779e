"""The tasks that the suite runs. Each is as small as the feature that it exercises allows."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import chain, chord, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from tests.conformance.ledger import pass_gate, read_notes, write_note

WORK_S = float(os.environ.get("CONFORMANCE_WORK_S", "0"))


class TransientError(Exception):
    """Worth another attempt."""


class LastingError(TransientError):
    """Never worth another attempt, although it is a kind of `TransientError`."""


class AwkwardError(Exception):
    """Carries something that JSON cannot."""

    def __init__(self, thing: object) -> None:
        super().__init__(thing)
        self.thing = thing


def work() -> None:
    """Take as long as the run asks for: a longer body is likelier to be caught by a kill."""
    if WORK_S:
        time.sleep(WORK_S)


# --- values -------------------------------------------------------------------------------------


@shared_task
def add(x: int, y: int) -> int:
    work()
    return x + y


@shared_task
def double(x: int) -> int:
    work()
    return 2 * x


@shared_task
def total(numbers: list[int]) -> int:
    work()
    return sum(numbers)


@shared_task
def echo(*args: Any, **kwargs: Any) -> Any:
    """The only argument, or a list of [args, kwargs] when there are several."""
    return args[0] if len(args) == 1 and not kwargs else [list(args), kwargs]


@shared_task
def types_of(*args: Any) -> list[str]:
    return [type(arg).__name__ for arg in args]


@shared_task
def note(value: Any, key: str) -> Any:
    """Write `value` down under `key`, and hand it on."""
    write_note(key, value=value)
    return value


@shared_task
def square_noted(number: int, key: str) -> int:
    write_note(key, value=number)
    return number * number


@shared_task(ignore_result=True)
def note_ignored(value: Any, key: str) -> Any:
    write_note(key, value=value)
    return value


@shared_task(bind=True, track_started=True)
def gated(self: Any, key: str, value: Any = None) -> Any:
    """Say where it runs, wait for the gate of `key`, return `value`."""
    write_note(key, hostname=self.request.hostname, redelivered=self.request.delivery_info.get("redelivered"))
    pass_gate(key)
    return value


@shared_task(bind=True, acks_late=True)
def gated_late(self: Any, key: str, value: Any = None) -> Any:
    write_note(key, hostname=self.request.hostname)
    pass_gate(key)
    return value


@shared_task(bind=True, acks_late=False)
def gated_early(self: Any, key: str, value: Any = None) -> Any:
    write_note(key, hostname=self.request.hostname)
    pass_gate(key)
    return value


@shared_task(rate_limit="5/s", bind=True)
def limited(self: Any, key: str) -> None:
    write_note(key, hostname=self.request.hostname)


# --- the request --------------------------------------------------------------------------------


@shared_task(bind=True)
def describe(self: Any, previous: Any = None) -> dict[str, Any]:
    """The fields of the request that Celery promises to a bound task."""
    request = self.request
    return {
        "id": request.id,
        "task": request.task,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "group": request.group,
        "correlation_id": request.correlation_id,
        "retries": request.retries,
        "hostname": request.hostname,
        "is_eager": request.is_eager,
        "called_directly": request.called_directly,
        "args": list(request.args),
        "kwargs": dict(request.kwargs),
        "routing_key": request.delivery_info["routing_key"],
        "priority": request.delivery_info.get("priority"),
        "timelimit": list(request.timelimit),
        "expires": request.expires is not None,
        "eta": request.eta is not None,
        "origin": request.origin,
        "x-colour": request.get("x-colour") or (request.headers or {}).get("x-colour"),
        "previous": previous["id"] if isinstance(previous, dict) else None,
    }


@shared_task(bind=True)
def routed(self: Any) -> str:
    """The queue that it came by; the application's `task_routes` send it to one of its own."""
    return str(self.request.delivery_info["routing_key"])


@shared_task(bind=True)
def spawn(self: Any, x: int, y: int) -> int:
    """Start another task, which becomes this one's child."""
    add.delay(x, y)
    return x


# --- errors -------------------------------------------------------------------------------------


@shared_task
def fail(message: str = "on purpose") -> None:
    work()
    raise ValueError(message)


@shared_task
def fail_after(value: Any) -> None:
    """Fails, and takes what a chain hands on."""
    raise ValueError(f"after {value}")


@shared_task
def fail_awkwardly() -> None:
    raise AwkwardError(object())


@shared_task
def return_unserialisable() -> object:
    return object()


@shared_task
def on_error(request: Any, exc: BaseException, traceback: Any, key: str) -> None:
    """An errback of the new style: it is called in the worker, with the request."""
    write_note(key, id=request.id, error=type(exc).__name__, text=str(exc))


@shared_task
def on_error_id(task_id: str) -> None:
    """An errback of the old style: one argument, so Celery runs it as a task, with the failed one's id."""
    write_note(task_id, id=task_id)


@shared_task
def die() -> None:
    """End the pool's process without a word."""
    os._exit(3)


# --- retries and refusals ---------------------------------------------------------------------


@shared_task(bind=True)
def retry_until(self: Any, key: str, wanted: int, countdown_s: float = 0.2) -> int:
    """Retry until attempt `wanted` (0 is the first); the number of that attempt."""
    write_note(key, retries=self.request.retries)
    if self.request.retries < wanted:
        raise self.retry(countdown=countdown_s, max_retries=wanted)
    return int(self.request.retries)


@shared_task(bind=True, max_retries=2)
def retry_in_vain(self: Any, key: str, with_cause: bool) -> None:
    write_note(key, retries=self.request.retries)
    if with_cause:
        try:
            raise TransientError("still broken")
        except TransientError as exc:
            raise self.retry(exc=exc, countdown=0.1) from exc
    raise self.retry(countdown=0.1)


@shared_task(bind=True)
def retry_with_other_arguments(self: Any, key: str, number: int) -> int:
    write_note(key, number=number)
    if number < 3:
        raise self.retry(args=(key, number + 1), countdown=0.1)
    return number


@shared_task(
    bind=True,
    autoretry_for=(TransientError,),
    dont_autoretry_for=(LastingError,),
    retry_kwargs={"max_retries": 3, "countdown": 0.1},
)
def autoretried(self: Any, key: str, failures: int, lasting: bool = False) -> int:
    write_note(key, retries=self.request.retries)
    if lasting:
        raise LastingError("for good")
    if self.request.retries < failures:
        raise TransientError("for now")
    return int(self.request.retries)


@shared_task(bind=True, acks_late=True)
def reject(self: Any, key: str, requeue: bool) -> str:
    """Refuse the first delivery; with `requeue` a later one is taken."""
    seen = len(read_notes(key))
    write_note(key)
    if not requeue or seen == 0:
        raise Reject("not today", requeue=requeue)
    return "taken"


@shared_task(bind=True)
def ignore(self: Any, key: str) -> None:
    self.update_state(state="BY_HAND", meta={"written": "by the task"})
    write_note(key)
    raise Ignore


@shared_task(bind=True)
def progress(self: Any, key: str) -> str:
    self.update_state(state="PROGRESS", meta={"done": 3, "of": 7})
    pass_gate(key)
    return "complete"


# --- time limits ------------------------------------------------------------------------------


@shared_task(bind=True)
def linger(self: Any, key: str, catch: bool = False) -> str:
    """Run until a time limit ends it; `catch` turns the soft one into a result."""
    write_note(key)
    try:
        pass_gate(key, timeout_s=30)
    except SoftTimeLimitExceeded:
        if not catch:
            raise
        return "tidied up"
    return "nothing stopped it"


# --- canvases built at run time -----------------------------------------------------------------


@shared_task(bind=True)
def replaced_by_sum(self: Any, x: int, y: int) -> Any:
    raise self.replace(add.s(x, y))


@shared_task(bind=True)
def replaced_by_chain(self: Any, x: int) -> Any:
    raise self.replace(chain(add.s(x, 1), double.s()))


@shared_task(bind=True)
def replaced_by_group(self: Any, count: int) -> Any:
    raise self.replace(group(double.s(i) for i in range(count)))


@shared_task(bind=True)
def replaced_by_chord(self: Any, count: int) -> Any:
    raise self.replace(chord([double.s(i) for i in range(count)], total.s()))


@shared_task(bind=True)
def replaced_by_failure(self: Any) -> Any:
    raise self.replace(fail.s("replaced"))
