"""Celery's prefork pool, told of jobs and results with fewer system calls.

What it does stays Celery's: who gets which job, what happens when a child dies. But Celery's event loop asks before each job, and
after each result, which pipes can be written to; and it writes a job in two parts: a child wakes up for the first, to wait for
the second. With short tasks that costs more than the tasks. Here a job that fits is written whole, at once, to a child that has
nothing to do. All else (large jobs, full pipes, children that come and go) is left to Celery.
"""

from __future__ import annotations

import fcntl
import select
import termios
from typing import Any

from celery.concurrency import asynpool

__all__ = ["Pool"]
_AT_ONCE = 2  # that a child has begun a job, and that it has done it
_NONE = bytes(4)


def _readable(fd: int) -> bool:
    return fcntl.ioctl(fd, termios.FIONREAD, _NONE) != _NONE


class ResultHandler(asynpool.ResultHandler):  # type: ignore[misc]
    """Reads what children say."""

    def _make_process_result(self, hub: Any) -> Any:
        """As Celery's, but the pipe of a child whose message came whole stays registered as it is."""
        children, on_message, receive = self.fileno_to_outq, self.on_state_change, self._recv_message

        def on_readable(fd: int) -> None:
            whole = True

            def listen_again(*words: Any) -> None:
                if not whole:
                    hub.add_reader(*words)

            for _ in range(_AT_ONCE):
                if fd not in children:
                    hub.remove_reader(fd)
                    return
                message = receive(listen_again, fd, on_message)
                try:
                    next(message)
                except StopIteration:
                    if not _readable(fd):
                        return
                except (OSError, EOFError):
                    hub.remove_reader(fd)
                    return
                else:
                    whole = False
                    hub.add_reader(fd, message)
                    return

        return on_readable


class Pool(asynpool.AsynPool):  # type: ignore[misc]
    """See the module's text."""

    ResultHandler = ResultHandler

    def on_job_ready(self, job: int, part: int | None, value: Any, fd: int) -> None:
        """A child has done its job: it gets the next before its parent looks at what it has done."""
        super().on_job_ready(job, part, value, fd)
        self._write(fd)

    def _write(self, fd: int) -> None:
        """The job that waits longest, if there is one, to a child that has nothing to do; what cannot be written whole stays."""
        waiting, child = self.outbound_buffer, self._fileno_to_inq.get(fd)
        if not waiting or child is None or not self._at_once or fd in self._active_writes:
            return
        job = waiting[0]
        header, body, size = job._payload
        if job._accepted or len(header) + size > select.PIPE_BUF:
            return
        try:
            child.send_job_offset(
                b"".join((header, body)), 0
            )  # up to that size the system writes all or nothing
        except OSError:
            return
        waiting.popleft()
        job._scheduled_for = job._write_to = child
        self._busy_workers.add(fd)
        self.write_stats[child.index] += 1

    #: One child, one job: what Celery calls fair, and does unless told otherwise.
    _at_once = False

    def _create_write_handlers(self, hub: Any, **options: Any) -> None:
        super()._create_write_handlers(hub, **options)
        # What has done its job may be about to end.
        recycled = self._maxtasksperchild or self._max_memory_per_child
        self._at_once = self.sched_strategy == asynpool.SCHED_STRATEGY_FAIR and not recycled
        waiting, busy, children = self.outbound_buffer, self._busy_workers, self._all_inqueues
        own: Any = vars(self)
        celerys_put, celerys_poll_start, watched = own["_quick_put"], own["on_poll_start"], True

        def put(words: Any) -> None:
            celerys_put(words)
            if len(waiting) == 1 and len(busy) < len(children):
                self._write(next(fd for fd in children if fd not in busy))

        def on_poll_start() -> None:
            """Pipes are looked at only while a job waits for one, and once more to look away."""
            nonlocal watched
            wanted = bool(waiting) and (not self._at_once or len(busy) < len(children))
            if wanted or watched:
                celerys_poll_start()
            watched = wanted

        own.update(_quick_put=put, on_poll_start=on_poll_start)
