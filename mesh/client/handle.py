"""`Handle`: one task, its state and its result; and waiting for many.

Waiting is one thing in three forms: the port calls back with the end, and the callback hands it to whoever waits: a thread
(through a queue), an event loop (through `call_soon_threadsafe`), or an iteration over many in either.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

from mesh.client.ports import Port, Progress, Tell
from mesh.errors import MeshError, ResultTimeout

__all__ = ["Completions", "Handle"]
_ASK_S = 1.0  # how often progress is read where it is not pushed
_Deadline = float | None


def _deadline(timeout_s: float | None) -> _Deadline:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _left(deadline: _Deadline) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _told_in(loop: asyncio.AbstractEventLoop, take: Callable[[str, Any], object]) -> Tell:
    """Has ends taken in the thread of an event loop."""

    def tell(task_id: str, pushed: Any) -> None:
        if not isinstance(pushed, Progress):
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(take, task_id, pushed)

    return tell


class Handle:
    """One task. Awaitable: `await handle` is its result, also in `asyncio.gather` and `asyncio.wait_for`."""

    __slots__ = ("_ended", "_port", "id")

    def __init__(self, port: Port, task_id: str) -> None:
        self._port = port
        self.id = task_id
        self._ended: Any = None  # as the port pushed it

    def __repr__(self) -> str:
        return f"<Handle {self.id}>"

    def status(self) -> str:
        """The state of the task, see `mesh.core.states.State`. Raises `NotFound`."""
        return str(self.record()["state"])

    def record(self) -> dict[str, Any]:
        """All that is recorded of it, see `mesh.services.views.task`. Raises `NotFound`."""
        return self._port.record(self.id)

    def result(
        self, timeout_s: float | None = None, *, on_progress: Callable[[dict[str, Any]], object] | None = None
    ) -> Any:
        """Wait for the end; what the task returned. It is pushed, not polled.

        `on_progress` is called here with {fraction, note} when the task tells of it (over HTTP: looked for once a second).
        Raises `TaskFailed` (or `TimedOut`, `Cancelled`, `DeadLettered`), `ResultTimeout`, `NotFound`, `StoreUnavailable`,
        `CoordinatorUnavailable`.
        """
        if self._ended is None:
            self._ended = self._wait(timeout_s, on_progress)
        return self._port.value(self.id, self._ended)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._await().__await__()

    def progress(self) -> dict[str, Any] | None:
        """What the task last told of its progress: {fraction, note}, or None."""
        return self._port.progress(self.id)

    def why(self) -> dict[str, Any]:
        """Why it is where it is: its state, its place in the queue, what keeps each agent from it, when it is expected to start,
        what would change that; see `mesh.services.explaining.why`.
        """
        return self._port.why(self.id)

    def cancel(self, reason: str = "cancelled") -> bool:
        """Cancel it, wherever it is; False if it had ended before. Raises `NotFound`."""
        return self._port.cancel(self.id, reason)

    def retry(self) -> None:
        """Run a task that failed, timed out or was put aside again: a new run. Raises `NotFound`, `Conflict`."""
        self._port.retry(self.id)
        self._ended = None

    def _wait(self, timeout_s: float | None, on_progress: Callable[[dict[str, Any]], object] | None) -> Any:
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        deadline = _deadline(timeout_s)
        ask_s = _ASK_S if on_progress is not None and not self._port.pushes_progress else None
        last: dict[str, Any] | None = None

        def tell(_: str, pushed: Any) -> None:
            inbox.put(pushed)

        self._port.watch([self.id], tell)
        try:
            while True:
                left = _left(deadline)
                pause = min((one for one in (left, ask_s) if one is not None), default=None)
                try:
                    pushed = inbox.get(timeout=pause)
                except queue.Empty:
                    if ask_s is None or (left is not None and left <= ask_s):
                        raise self._late(timeout_s) from None
                    pushed = Progress(self.progress() or {})
                if isinstance(pushed, MeshError):
                    raise pushed
                if not isinstance(pushed, Progress):
                    return pushed
                if on_progress is not None and pushed.value not in ({}, last):
                    last = pushed.value
                    on_progress(pushed.value)
        finally:
            self._port.forget([self.id], tell)

    def _late(self, timeout_s: float | None) -> ResultTimeout:
        now = ""
        with contextlib.suppress(MeshError):
            now = f"; it is {self._port.record(self.id, patient=False)['state']}"
        return ResultTimeout(f"Task {self.id} has not ended within {timeout_s} s{now}.")

    async def _await(self) -> Any:
        if self._ended is None:
            if not self._port.listening:
                await asyncio.to_thread(self._port.listen)  # connects
            loop = asyncio.get_running_loop()
            end: asyncio.Future[Any] = loop.create_future()

            def take(_: str, pushed: Any) -> None:
                if not end.done():
                    end.set_result(pushed)

            tell = _told_in(loop, take)
            self._port.watch([self.id], tell)
            try:
                pushed = await end
            finally:
                self._port.forget([self.id], tell)
            if isinstance(pushed, MeshError):
                raise pushed
            self._ended = pushed
        return self._port.value(self.id, self._ended)


class Completions:
    """The handles as their tasks end, each once: `for done in ...` or `async for done in ...`. Raises `ResultTimeout`."""

    def __init__(self, port: Port, handles: Iterable[Handle], timeout_s: float | None) -> None:
        self._port = port
        self._handles = {handle.id: handle for handle in handles}
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[Handle]:
        inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

        def tell(task_id: str, pushed: Any) -> None:
            if not isinstance(pushed, Progress):
                inbox.put((task_id, pushed))

        deadline, waiting = _deadline(self._timeout_s), dict(self._handles)
        try:
            self._port.watch(list(waiting), tell)
            while waiting:
                try:
                    task_id, pushed = inbox.get(timeout=_left(deadline))
                except queue.Empty:
                    raise self._late(waiting) from None
                yield self._ended(waiting.pop(task_id), pushed)
        finally:
            self._port.forget(list(waiting), tell)

    async def __aiter__(self) -> AsyncIterator[Handle]:
        if not self._port.listening:
            await asyncio.to_thread(self._port.listen)
        inbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        tell = _told_in(
            asyncio.get_running_loop(), lambda task_id, pushed: inbox.put_nowait((task_id, pushed))
        )
        deadline, waiting = _deadline(self._timeout_s), dict(self._handles)
        try:
            self._port.watch(list(waiting), tell)
            while waiting:
                try:
                    task_id, pushed = await asyncio.wait_for(inbox.get(), _left(deadline))
                except TimeoutError:
                    raise self._late(waiting) from None
                yield self._ended(waiting.pop(task_id), pushed)
        finally:
            self._port.forget(list(waiting), tell)

    @staticmethod
    def _ended(handle: Handle, pushed: Any) -> Handle:
        if isinstance(pushed, MeshError):
            raise pushed
        handle._ended = pushed
        return handle

    def _late(self, waiting: dict[str, Handle]) -> ResultTimeout:
        return ResultTimeout(f"{len(waiting)} tasks have not ended within {self._timeout_s} s.")
