"""RQ: its default worker, which forks for each job, and its SimpleWorker, which does not."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

from benchmarks.contestants import base
from benchmarks.contestants.base import Contestant, python_module


def noop() -> None:
    """Nothing."""


def noop_stored() -> int:
    """Nothing, with a result."""
    return 1


def mark_child() -> None:
    """Say which worker this is: the parent of the process that runs this one job."""
    base.mark(os.getppid())


def mark_self() -> None:
    """Say which worker this is."""
    base.mark()


class Rq(Contestant):
    name = "rq"
    packages = ("rq", "redis")
    rough_rate = 100
    settings = "2 workers, a fork per job (its default); jobs of a dead worker are marked failed"
    worker_class = "rq.Worker"
    mark = staticmethod(mark_child)

    def prepare(self) -> None:
        self.functions = {"noop": noop, "noop-stored": noop_stored, "mark": self.mark}
        self.queue = Queue("bench", connection=Redis.from_url(base.redis_url()))

    @staticmethod
    def _result_ttl_s(task: str) -> int:
        return 500 if task == "noop-stored" else 0

    def send(self, task: str, n: int) -> None:
        function, ttl = self.functions[task], self._result_ttl_s(task)
        for _ in range(n):
            self.queue.enqueue(function, result_ttl=ttl)

    def send_bulk(self, task: str, n: int) -> None:
        function, ttl = self.functions[task], self._result_ttl_s(task)
        self.queue.enqueue_many(Queue.prepare_data(function, result_ttl=ttl) for _ in range(n))

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        command = python_module(
            "rq.cli",
            "worker",
            "bench",
            "--url",
            base.redis_url(),
            "--quiet",
            "--worker-class",
            self.worker_class,
        )
        return [command, command]

    def remaining(self) -> int:
        pipeline = self.client.pipeline(transaction=True)
        pipeline.llen("rq:queue:bench").llen("rq:queue:bench:intermediate").zcard("rq:wip:bench")
        return sum(int(size) for size in pipeline.execute())

    def round_trip(self) -> None:
        job = self.queue.enqueue(noop_stored, result_ttl=500)
        if job.latest_result(timeout=10) is None:
            raise TimeoutError("RQ returned no result within 10 s.")

    def close(self) -> None:
        self.queue.connection.close()


class RqSimple(Rq):
    name = "rq-simple"
    rough_rate = 250
    measures_submit = False
    settings = "2 SimpleWorkers, no fork; jobs of a dead worker are marked failed"
    worker_class = "rq.SimpleWorker"
    mark = staticmethod(mark_self)
