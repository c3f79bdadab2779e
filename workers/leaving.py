"""How this agent leaves: no new work, a time of grace for what runs; then what still runs goes back, uncounted.

A native thread sees to it, with a connection of its own, because nobody else is sure to be awake: a task of the solo pool
holds the main thread, a greenlet may hold all others, and Celery's own stop waits for the pool without limit. Signals reach
it through Python's wake-up descriptor, which is written even while the main thread is deep in C. As long as something runs,
the event loop goes on: time limits, cancellations and results are dealt with as ever; only when nothing is left is Celery
asked to stop. That is also cleaner than its own way, which closes the loop first and then waits for the pool.

At the end of the grace time the order is: no outcome counts any more (in this process), the processes that run tasks are
killed, what had ended is recorded, the rest is released, the agent leaves, and the process ends with `os._exit`: threads
cannot be ended otherwise.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from celery.apps.worker import _reload_current_worker
from celery.signals import worker_shutting_down
from celery.worker import control
from celery.worker import state as worker_state

from ..bus.holdings import Holdings, Wake
from ..core.leaving import Step, next_step
from ..errors import MeshError, StoreUnavailable
from ..settings import Settings
from ..store.store import Store
from ..store.tasks import Entry
from .beat import start_native_thread
from .identity import Membership, leave

logger = logging.getLogger(__name__)
_LOOK_S = 0.05  # while it leaves
_PATIENCE_S = 10.0  # for a stop in order, once nothing runs any more
_REDIS_S = 5.0  # for the last words; what Redis does not hear of by then, its leases tell
_AGAIN_S = 0.2
_SAME_S = (
    0.5  # timeout(1) and some supervisors send their signal to the process and to its group: that is one word
)
_SOON = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT", signal.SIGHUP: "SIGHUP"}
_AT_ONCE = {signal.SIGQUIT: "SIGQUIT"}


class Leaving:
    """The end of one agent. `begin` is safe in every thread, and in a signal handler."""

    def __init__(self, settings: Settings, membership: Membership, holdings: Holdings, worker: Any) -> None:
        self._membership, self._holdings, self._worker = membership, holdings, worker
        self._grace_s = settings.drain_grace_ms / 1000
        self._store = Store(settings)  # sockets are not shared with greenlets of another hub
        self._wake = Wake()
        self._until: dict[str, float] = {}  # who asked -> when its time is over; the earliest counts
        self._told: float | None = None  # the end that Redis knows of
        self._stop_asked: float | None = None
        self._signalled_at = float("-inf")
        self._ending = _thread.allocate_lock()
        self._owns_process = False
        self._restarts = False
        self.usurped = False  # another process is this agent now: nothing may be said in its name

    # -- what others see

    @property
    def begun(self) -> bool:
        """Whether it takes no new work any more."""
        return bool(self._until)

    @property
    def left_s(self) -> float:
        """Time of grace that is left."""
        return max(0.0, min(list(self._until.values()), default=0.0) - time.monotonic())

    def begin(self, asked_by: str, grace_s: float | None = None) -> None:
        """Take no new work; what runs may go on for `grace_s` (None: the setting). The last word of each who asks counts."""
        self._holdings.closed = True
        self._until[asked_by] = time.monotonic() + (self._grace_s if grace_s is None else grace_s)
        self._wake.set()

    def ask(self, left_s: float) -> None:
        """An operator's drain, heard of in a beat."""
        if not self.begun:
            logger.warning("asked to drain: takes no new work, what runs has %.0f s", left_s)
        self._told = time.monotonic() + left_s  # first: the thread says what nobody has told
        self.begin("operator", left_s)

    def claim(self) -> bool:
        """Whether the caller is the one who says farewell; the other has begun to, and will end the process."""
        return self._ending.acquire(False)

    # -- signals

    def start(self) -> None:
        """The pool has started: take the signals over, start the thread."""
        start_native_thread(self._run)
        control.control_command(name="shutdown")(self._asked_remotely)
        try:
            signal.set_wakeup_fd(self._wake.writer, warn_on_full_buffer=False)
        except ValueError:
            return  # not the main thread: a worker inside another program, whose process is not ours to end
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        self._owns_process = True
        for number in (*_SOON, *_AT_ONCE):
            if number != signal.SIGHUP or callable(
                signal.getsignal(number)
            ):  # Celery takes it without a terminal only
                signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, when it gets to it; the thread has heard of it already."""
        if number == signal.SIGHUP and not self._restarts:
            self._restarts = True
            atexit.register(_reload_current_worker)
        how = "Cold" if number in _AT_ONCE else "Warm"
        worker_shutting_down.send(
            sender=self._worker.hostname, sig=signal.Signals(number).name, how=how, exitcode=0
        )

    def _signalled(self, number: int) -> None:
        first = self._signalled_at == float("-inf")
        if number in _SOON and not first and time.monotonic() - self._signalled_at < _SAME_S:
            return
        if number in _AT_ONCE or (number in _SOON and not first):
            logger.warning("%s: what runs goes back at once", {**_SOON, **_AT_ONCE}[signal.Signals(number)])
            self.begin("signal", 0.0)
        elif number in _SOON:
            self._signalled_at, name = time.monotonic(), _SOON[signal.Signals(number)]
            logger.warning(
                "%s: takes no new work, what runs has %.0f s; a second signal ends it at once",
                name,
                self._grace_s,
            )
            self.begin("signal")

    def _asked_remotely(self, state: Any, msg: str = "Got shutdown from remote", **_: Any) -> None:
        """Shutdown worker(s)."""
        logger.warning(msg)
        self.begin("remote control")

    # -- the thread

    def _run(self) -> None:
        while True:
            try:
                select.select([self._wake.reader], [], [], _LOOK_S if self.begun else None)
                for number in self._wake.clear():
                    self._signalled(number)
                if self.begun:
                    self._look()
            except Exception:
                logger.exception("leaving")
                time.sleep(_AGAIN_S)

    def _look(self) -> None:
        now = time.monotonic()
        held = self._holdings.held()
        step = next_step(
            left_s=self.left_s,
            finishing=sum(not one.dropped for one in held),
            held=len(held),
            stopping_s=0.0 if self._stop_asked is None else now - self._stop_asked,
            patience_s=_PATIENCE_S,
        )
        if step is Step.GIVE_BACK:
            self._end()
            return
        self._tell()
        if step is Step.STOP and self._stop_asked is None:
            self._stop_asked = now
            worker_state.should_stop = worker_state.should_stop or 0
            self._holdings.wake.set()

    def _tell(self) -> None:
        """Let everybody know until when it is here. That nudges the beat, which gives back what has not started."""
        until = min(list(self._until.values()))
        if self.usurped or (self._told is not None and abs(self._told - until) < 1.0):
            return
        with contextlib.suppress(StoreUnavailable):
            self._store.agents.cordon(
                self._membership.agent_id,
                "drain",
                grace_ms=int(self.left_s * 1000),
                incarnation=self._membership.incarnation,
            )
            self._told = until

    def _end(self) -> None:
        """Give back what still runs, say farewell, end the process."""
        if not self.claim():
            time.sleep(_PATIENCE_S + _REDIS_S)  # the main thread is at it
            self._exit()
            return
        cut = [one for one in self._holdings.held() if not one.ended]
        for one in cut:
            one.drop()
        if cut:
            logger.warning("%d tasks that still run go back to their queues", len(cut))
        if self._owns_process:
            kill_descendants()
        self._say_farewell([Entry(one.id, one.fence) for one in self._holdings.held() if one.dropped])
        self._exit()

    def _say_farewell(self, given_back: list[Entry]) -> None:
        holdings, store = self._holdings, self._store
        limit = time.monotonic() + _REDIS_S
        while holdings.outbox.flushing.locked() and time.monotonic() < limit:
            time.sleep(0.01)
        batch = holdings.outbox.take()
        steps: list[Callable[[], object]] = [lambda: store.tasks.release(given_back)] if given_back else []
        if not self.usurped:
            steps.append(lambda: leave(store, self._membership))
        if batch is not None:
            steps.insert(0, lambda: store.tasks.together(batch.calls))
        self._worker.mesh_agent.beat.stop()
        while steps:
            try:
                steps[0]()
                steps.pop(0)
            except StoreUnavailable as error:
                if time.monotonic() > limit:
                    logger.warning("left without saying so, its leases will end: %s", error)
                    return
                time.sleep(_AGAIN_S)
            except MeshError as error:
                logger.warning("left without saying so: %s", error)
                return

    def _exit(self) -> None:
        code = self._worker.exitcode or worker_state.should_stop or 0
        logger.info("agent %s has left", self._membership.agent_id)
        if not self._owns_process:
            worker_state.should_stop = code  # its threads may go on, their outcomes are refused
            self._holdings.wake.set()
            self._ending.release()
            _thread.exit()
        joining = self._worker.mesh_agent.joining
        if joining is not None:
            joining.leave()
        if self._worker.pidlock:
            self._worker.pidlock.release()
        kill_descendants()  # the pool may have replaced what was killed
        with contextlib.suppress(Exception):
            logging.shutdown()
        if self._restarts:
            _reload_current_worker()
        os._exit(code)


def kill_descendants() -> None:
    """SIGKILL to all processes that this one has started, and they in turn. Where there is no /proc: to none, the pool's children
    then end by themselves when they miss their parent."""
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
