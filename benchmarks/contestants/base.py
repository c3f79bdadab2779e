"""What every contestant must be able to do, and what they share: starting, freezing and stopping worker processes.

A contestant is one task system in one configuration (`stock-solo`: stock Celery with the solo pool). It knows how its
own users submit, run and await tasks; how long that takes is the business of `benchmarks.measure`. Three tasks exist
in each system: `noop` (result ignored), `noop-stored` (the same body, result stored), `mark` (see `mark`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import redis

WORKERS_KEY = "bench:workers"
URL_VARIABLE = "BENCH_REDIS_URL"
RESULTS_VARIABLE = "BENCH_RESULTS"
PROJECT = Path(__file__).resolve().parents[2]
MARK_S = 0.02


def redis_url() -> str:
    """The server and database of this run, as handed to this process by the one that started it."""
    return os.environ[URL_VARIABLE]


def mark(pid: int | None = None) -> None:
    """Body of the `mark` task: write down which process works, slowly enough that the other one gets some as well.

    Only warm-up runs it. `pid` is the worker's where the body runs in a child that lives for one task (RQ).
    """
    with redis.Redis.from_url(redis_url()) as client:
        client.sadd(WORKERS_KEY, pid or os.getpid())
    time.sleep(MARK_S)


@dataclass(frozen=True, kw_only=True)
class WorkerProcess:
    """One started command, leader of a process group of its own, and the file with all it printed."""

    process: subprocess.Popen[bytes]
    log: Path

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the command and to the pool processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def tail(self) -> str:
        """The last lines that it printed, for an error message."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class Contestant(ABC):
    """One task system in one configuration.

    Life: `prepare` once; any number of `submit_*`; `start_workers` once; more submitting, `completed`, `round_trip`;
    `stop`. Counts are tasks since `prepare`.
    """

    name: ClassVar[str]
    pool: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]]
    """What `pip` calls the distributions whose versions go into the report; all must be there."""
    rough_rate: ClassVar[int]
    """Tasks/s to expect; only scales how many tasks a measurement takes, never enters a result."""
    measures_submit: ClassVar[bool] = True
    """False in all but one configuration of a system: submitting does not depend on the pool."""
    workers_serve_both: ClassVar[bool] = True
    """Whether one set of workers can run both the tasks with ignored and those with stored results."""
    settings: ClassVar[str]
    """One line for the reader: how it is configured, and what its acknowledgements are worth."""

    def __init__(self, log_dir: Path, started: Callable[[int], None] = lambda group: None) -> None:
        self.log_dir = log_dir
        self.submitted = 0
        self.workers: list[WorkerProcess] = []
        self._started = started
        self.client = redis.Redis.from_url(redis_url())

    # --- what a contestant says about its system
    @abstractmethod
    def prepare(self) -> None:
        """Import the system and connect, so that the first measured call pays for neither."""

    @abstractmethod
    def send(self, task: str, n: int) -> None:
        """Submit n tasks one at a time, as the system's documentation shows it; return when all are accepted."""

    def send_bulk(self, task: str, n: int) -> None:
        """Submit n tasks at once by the fastest way that the system itself offers."""
        self.send(task, n)

    def variants(self) -> Mapping[str, Callable[[int], None]]:
        """Further ways of submitting `noop` one at a time that are worth a figure of their own."""
        return {}

    @abstractmethod
    def worker_commands(self, *, results: bool) -> list[list[str]]:
        """Command lines that together make two worker processes."""

    @abstractmethod
    def remaining(self) -> int:
        """Tasks that are queued or being worked on, in one cheap read of the system's own state."""

    @abstractmethod
    def round_trip(self) -> None:
        """Submit one `noop-stored` and return when its result is here."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and loops."""

    def environment(self) -> dict[str, str]:
        """Variables that the workers need besides the common ones."""
        return {}

    # --- what the measurement calls
    def submit_one(self, n: int, *, stored: bool = False) -> None:
        """n tasks one at a time."""
        self.send("noop-stored" if stored else "noop", n)
        self.submitted += n

    def submit_bulk(self, n: int, *, stored: bool = False) -> None:
        """n tasks at once."""
        self.send_bulk("noop-stored" if stored else "noop", n)
        self.submitted += n

    def submit_marks(self, n: int) -> None:
        """n `mark` tasks."""
        self.send("mark", n)
        self.submitted += n

    def completed(self) -> int:
        """Tasks done and, where the system acknowledges, acknowledged."""
        return self.submitted - self.remaining()

    def start_workers(self, *, results: bool) -> list[WorkerProcess]:
        """Start two worker processes; they may not be ready yet."""
        environment = {
            **os.environ,
            **self.environment(),
            RESULTS_VARIABLE: "1" if results else "0",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
        }
        for number, command in enumerate(self.worker_commands(results=results)):
            log = self.log_dir / f"{self.name}-{number}-{'stored' if results else 'ignored'}.log"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    process_group=0,
                )  # fmt: skip
            self.workers.append(WorkerProcess(process=process, log=log))
            self._started(process.pid)
        return self.workers

    def freeze(self) -> None:
        """Halt all worker processes where they stand."""
        for worker in self.workers:
            worker.signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for worker in self.workers:
            worker.signal_group(signal.SIGCONT)

    def stop_workers(self, *, grace_s: float = 3.0) -> None:
        """Ask all to end, then end what is left. Every process that was started is gone afterwards."""
        self.thaw()
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
        deadline = time.monotonic() + grace_s
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.signal_group(signal.SIGKILL)
            worker.process.wait()
        self.workers = []

    def stop(self) -> None:
        """Stop the workers and let go of everything."""
        try:
            self.stop_workers()
        finally:
            self.close()
            self.client.close()


def python_module(module: str, *arguments: str) -> list[str]:
    """Command line of a console module under this interpreter."""
    return [sys.executable, "-m", module, *arguments]
