"""Every error that Agent Mesh raises on purpose, in one tree.

::

    MeshError
    ├── NotFound                 no such task, agent, namespace ...        404   exit 3
    ├── Unauthenticated          no token, or one that is not valid        401   exit 4
    ├── Refused                  a policy or a token says no               403   exit 4
    ├── Invalid                  a payload, a name or a setting is wrong   422   exit 2
    ├── Unsatisfiable            no agent can meet the requirement         409   exit 7
    ├── Conflict                 the id is in use by something else        409   exit 7
    ├── StaleFence               a late word from what is over             409   exit 7
    ├── StoreUnavailable         Redis does not answer                     503   exit 5
    ├── CoordinatorUnavailable   no coordinator answers                    503   exit 5
    │   └── TooManyRequests      ... or it wants to be asked less often    429   exit 5
    ├── TaskFailed               the task ended without a result           424   exit 1
    │   ├── TimedOut             ... its attempts took too long            424   exit 6
    │   ├── Cancelled            ... somebody cancelled it                 424   exit 1
    │   └── DeadLettered         ... its retries are used up               424   exit 1
    └── ResultTimeout            the caller's wait ended before the task   504   exit 6

One base, so that ``except MeshError`` is a complete net. An error builds its sentence once, in its
constructor, and carries what a program needs as attributes; the HTTP service and the command line read
``http_status`` and ``exit_code`` from the class instead of keeping tables of their own. Errors survive
pickling, because they cross from pool children to the main process.

This module imports nothing: it is the lowest floor.
"""

__all__ = [
    "Cancelled",
    "Conflict",
    "CoordinatorUnavailable",
    "DeadLettered",
    "Invalid",
    "MeshError",
    "NotFound",
    "Refused",
    "ResultTimeout",
    "StaleFence",
    "StoreUnavailable",
    "TaskFailed",
    "TimedOut",
    "TooManyRequests",
    "Unauthenticated",
    "Unsatisfiable",
]


class MeshError(Exception):
    """Base of the tree. ``message`` is one clear sentence; ``str(error)`` is the same."""

    http_status: int = 500
    exit_code: int = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(MeshError):
    """No such thing in this namespace; also the answer for things of a namespace one may not see."""

    http_status = 404
    exit_code = 3


class Unauthenticated(MeshError):
    """There is no token, or it is not valid: one sentence for all of it, so that nobody learns from the answer how near he was.

    ``reason`` says what was wrong, for logs, the audit and those who hold the secret; it never quotes the token.
    """

    http_status = 401
    exit_code = 4

    sentence = "The token is missing or not valid; `mesh auth` makes one."

    def __init__(self, message: str = sentence, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class Refused(MeshError):
    """A policy or a token does not allow it; the message names the missing right."""

    http_status = 403
    exit_code = 4


class Invalid(MeshError):
    """A payload, a name or a setting is wrong; the message says what, where and what to do."""

    http_status = 422
    exit_code = 2


class Unsatisfiable(MeshError):
    """No agent can meet the requirement, and the caller asked to be told rather than to wait."""

    http_status = 409
    exit_code = 7


class Conflict(MeshError):
    """The id is taken: by a task with other content, or by a second live agent."""

    http_status = 409
    exit_code = 7


class StaleFence(MeshError):
    """A word from an attempt that no longer holds the task's lease, or from a leader of before; nothing was changed."""

    http_status = 409
    exit_code = 7


class StoreUnavailable(MeshError):
    """Redis cannot be reached, started or used; trying again later may help."""

    http_status = 503
    exit_code = 5


class CoordinatorUnavailable(MeshError):
    """None of the coordinators that were tried gave an answer."""

    http_status = 503
    exit_code = 5


class TooManyRequests(CoordinatorUnavailable):
    """This caller, or his address, asks too often; ``retry_after_s`` seconds later he may again."""

    http_status = 429
    exit_code = 5

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TaskFailed(MeshError):
    """The task reached a terminal state without a result.

    ``task_id`` is its id, ``state`` the terminal state (a name of the task state machine; by default the one
    that the class stands for), ``error`` what its record says about the last failure (``type``, ``message``,
    ``traceback`` ...) or None.
    """

    http_status = 424
    exit_code = 1
    terminal_state: str = "failed"

    def __init__(
        self,
        message: str,
        *,
        task_id: str = "",
        state: str | None = None,
        error: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.state = state or self.terminal_state
        self.error = error


class TimedOut(TaskFailed):
    """The task's own time limit ended its last attempt."""

    exit_code = 6
    terminal_state = "timed_out"


class Cancelled(TaskFailed):
    """Somebody cancelled the task, before or while it ran."""

    terminal_state = "cancelled"


class DeadLettered(TaskFailed):
    """The task used up its retries or killed its agents too often; it can be replayed."""

    terminal_state = "dead_lettered"


class ResultTimeout(MeshError):
    """The caller's wait ended first; the task itself goes on."""

    http_status = 504
    exit_code = 6
