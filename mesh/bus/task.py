"""The `@task` decorator: task types of the mesh, with the mesh's retry policy."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from celery import shared_task
from celery.exceptions import Ignore, Reject, Retry

from mesh.bus.current import Current, activate
from mesh.core.names import check_name
from mesh.core.requirements import canonical
from mesh.core.retries import RetryPolicy, decide
from mesh.errors import Invalid
from mesh.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
_CONTROL: tuple[type[BaseException], ...] = (Ignore, Reject, Retry)  # Celery's own, said by the task
_HARD_AFTER_S = 10.0  # the hard limit comes so long after the soft one, which the task may use to clean up


def task(
    name: str,
    *,
    requires: Sequence[str] = (),
    retries: int | None = None,
    timeout_s: float | None = None,
    no_retry_for: tuple[type[BaseException], ...] = (),
    ignore_result: bool = False,
) -> Callable[[F], Any]:
    """Make a function a task type of the mesh.

    A type needs the capability of its own name and what `requires` adds. `retries`: how often a failure is tried again
    (MAX_TASK_RETRIES), with exponential back-off; exceptions of `no_retry_for`, and `mesh.errors.Invalid` (the payload will
    not get better), fail at once. `timeout_s` bounds one attempt (TASK_TIMEOUT_MS).
    """
    check_name("task type", name)
    requirement = canonical([name, *(check_name("capability", one) for one in requires)])
    final: tuple[type[BaseException], ...] = (*_CONTROL, Invalid, *no_retry_for)

    def decorate(function: F) -> Any:
        @functools.wraps(function)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            with activate(Current(self.request, self.backend)):
                try:
                    return function(*args, **kwargs)
                except final:
                    raise
                except Exception as error:
                    if self.request.called_directly or self.request.is_eager:
                        raise
                    again = _retry(self, error, retries)
                    if again is None:
                        raise
                    raise again from error

        soft_s = timeout_s if timeout_s is not None else Settings.load().task_timeout_ms / 1000
        return shared_task(
            name=name,
            bind=True,
            queue=requirement,
            ignore_result=ignore_result,
            soft_time_limit=soft_s,
            time_limit=soft_s + _HARD_AFTER_S,
            typing=False,
        )(run)

    return decorate


def _retry(self: Any, error: Exception, retries: int | None) -> Exception | None:
    """Publish the task again, and what is to be raised then; None if its retries are used up."""
    limit = retries if retries is not None else self.backend.store.settings.max_task_retries
    decision = decide(RetryPolicy(max_retries=limit), retries=self.request.retries, dice=random.random())
    if not decision.again:
        error.mesh_retries_used_up = True  # type: ignore[attr-defined]
        return None
    again: Exception = self.retry(exc=error, countdown=decision.delay_s, max_retries=None, throw=False)
    return again
