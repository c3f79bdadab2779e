"""The `@task` decorator: task types of the mesh, with the mesh's retry policy."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from celery import shared_task
from celery.exceptions import Ignore, Reject, Retry

from mesh.bus.current import Current, activate
from mesh.bus.described import Described
from mesh.bus.messages import RETRIES_HEADER
from mesh.bus.publishing import TooLate
from mesh.core.names import check_name
from mesh.core.requirements import canonical, capabilities_of
from mesh.core.retries import RetryPolicy, decide
from mesh.errors import Invalid
from mesh.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
_CONTROL: tuple[type[BaseException], ...] = (Ignore, Reject, Retry)  # Celery's own, said by the task
_HARD_AFTER_S = 10.0  # the hard limit comes so long after the soft one, which the task may use to clean up


class Retries(NamedTuple):
    """What a task type says of its retries; None leaves it to the settings."""

    retries: int | None = None
    retry_delay_s: float | None = None
    retry_delay_cap_s: float | None = None

    def check(self, name: str) -> None:
        """Raise `Invalid` for what cannot be."""
        for what, value in self._asdict().items():
            kinds = int if what == "retries" else (int, float)
            if value is not None and not (
                isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value < 10**9
            ):
                raise Invalid(f"{what} of task type {name} is {value!r}, but must be a number from 0 on.")

    def policy(self, asked: Any, settings: Settings) -> RetryPolicy:
        """The policy of one task. `asked`: the retries that its submitter wants, if he said so."""
        first = (value for value in (asked, self.retries) if isinstance(value, int))
        delay, cap = self.retry_delay_s, self.retry_delay_cap_s
        return RetryPolicy(
            max_retries=next(first, settings.max_task_retries),
            base_s=settings.retry_delay_ms / 1000 if delay is None else delay,
            cap_s=settings.retry_delay_cap_ms / 1000 if cap is None else cap,
        )


def task(
    name: str,
    *,
    requires: Sequence[str] = (),
    retries: int | None = None,
    timeout_s: float | None = None,
    no_retry_for: tuple[type[BaseException], ...] = (),
    retry_delay_s: float | None = None,
    retry_delay_cap_s: float | None = None,
    ignore_result: bool = False,
    examples: Sequence[Any] = (),
    payload_schema: Mapping[str, Any] | None = None,
    result_schema: Mapping[str, Any] | None = None,
) -> Callable[[F], Any]:
    """Make a function a task type of the mesh.

    A type needs the capability of its own name and what `requires` adds. `retries`: how often a failure is tried again
    (MAX_TASK_RETRIES); exceptions of `no_retry_for`, and `mesh.errors.Invalid` (the payload will not get better), fail at
    once. A retry waits a random time up to `retry_delay_s` (MESH_RETRY_DELAY_MS), which doubles with each retry as far as
    `retry_delay_cap_s` (MESH_RETRY_DELAY_CAP_MS). `timeout_s` bounds one attempt (TASK_TIMEOUT_MS).

    The annotations of the function's first parameter and of what it returns (pydantic models, dataclasses, plain types) are
    its schemas: agents advertise them with the first line of its docstring and `examples` (payloads), so that a wrong
    payload is refused where it is submitted; the function gets what it is annotated with. `payload_schema` and
    `result_schema` (JSON Schema) say it instead, and convert nothing.
    """
    check_name("task type", name)
    requirement = canonical([name, *(check_name("capability", one) for one in requires)])
    said = Retries(retries, retry_delay_s, retry_delay_cap_s)
    said.check(name)
    final: tuple[type[BaseException], ...] = (*_CONTROL, Invalid, *no_retry_for)

    def decorate(function: F) -> Any:
        described = Described(
            name,
            function,
            requires=requires,
            timeout_s=timeout_s,
            retries={**said._asdict(), "no_retry_for": [one.__name__ for one in no_retry_for]},
            examples=examples,
            payload_schema=payload_schema,
            result_schema=result_schema,
        )
        call = described.call  # the function itself, unless there is something to convert

        @functools.wraps(function)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            with activate(Current(self)):
                try:
                    if call is not function and self.request.called_directly:
                        return function(*args, **kwargs)
                    return call(*args, **kwargs)
                except final:
                    raise
                except Exception as error:
                    if self.request.called_directly or self.request.is_eager:
                        raise
                    again = _retry(self, error, said)
                    if again is None:
                        raise
                    raise again from error

        def route(cls: Any, app: Any) -> None:
            """Celery deprecates a `queue` in a task's definition, and warns of it; its value is honoured all the same."""
            cls.queue = requirement

        soft_s = timeout_s if timeout_s is not None else Settings.load().task_timeout_ms / 1000
        return shared_task(
            name=name,
            bind=True,
            on_bound=classmethod(route),
            ignore_result=ignore_result,
            soft_time_limit=soft_s,
            time_limit=soft_s + _HARD_AFTER_S,
            typing=False,
            described=described,
            mesh_retries=said,
            mesh_final=final,
        )(run)

    return decorate


def task_types(app: Any, capabilities: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What the task types of `app` say of themselves, by name. Raises `Invalid`.

    Those made with `@task` describe themselves. Of Celery's own kind only the queue is known that the application routes them
    to; it is told where an agent with these `capabilities` serves that queue, and not the task's name itself.
    """
    rows = {}
    for name, one in app.tasks.items():
        described = getattr(one, "described", None)
        if isinstance(described, Described):
            rows[described.name] = described.row()
        elif not name.startswith("celery.") and name not in capabilities:
            queue = getattr(one, "queue", None) or app.amqp.router.route({}, name)["queue"]
            queue = getattr(queue, "name", queue)
            if capabilities_of(queue) <= set(capabilities):
                description = (one.__doc__ or "").strip().partition("\n")[0]
                rows[name] = {"queue": queue, "description": description}
    return rows


def _retry(self: Any, error: Exception, said: Retries) -> Exception | None:
    """Publish the task again, and what is to be raised then; None if its retries are used up."""
    policy = said.policy(getattr(self.request, RETRIES_HEADER, None), self.backend.store.settings)
    decision = decide(policy, retries=self.request.retries, dice=random.random())
    if not decision.again:
        error.mesh_retries_used_up = True  # type: ignore[attr-defined]
        return None
    try:
        again: Exception = self.retry(exc=error, countdown=decision.delay_s, max_retries=None, throw=False)
    except Reject as refused:  # what Celery makes of a publication that fails
        if not isinstance(refused.reason, TooLate):
            raise
        error.mesh_too_late = True  # type: ignore[attr-defined]
        return None
    return again
