"""Huey on Redis. It stores a result unless that is None, and takes a task off the queue before running it."""

from __future__ import annotations

from huey import RedisHuey

from benchmarks.contestants import base
from benchmarks.contestants.base import Contestant, python_module

huey = RedisHuey("bench", url=base.redis_url())


@huey.task(name="noop")
def noop() -> None:
    """Nothing."""


@huey.task(name="noop-stored")
def noop_stored() -> int:
    """Nothing, with a result."""
    return 1


@huey.task(name="mark")
def mark() -> None:
    """Say which process this is."""
    base.mark()


class Huey(Contestant):
    name = "huey"
    packages = ("huey", "redis")
    rough_rate = 4500
    settings = "one consumer with 2 worker processes; no acknowledgement: what a killed worker held is lost"

    def prepare(self) -> None:
        self.tasks = {"noop": noop, "noop-stored": noop_stored, "mark": mark}

    def send(self, task: str, n: int) -> None:
        submit = self.tasks[task]
        for _ in range(n):
            submit()

    def send_bulk(self, task: str, n: int) -> None:
        self.tasks[task].map([()] * n)

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        return [
            python_module(
                "huey.bin.huey_consumer", f"{__name__}.huey", "-k", "process", "-w", "2", "-q", "-n"
            )
        ]

    def remaining(self) -> int:
        # The two tasks being worked on are not written down anywhere.
        return int(self.client.llen("huey.redis.bench"))

    def round_trip(self) -> None:
        # Polled every millisecond; Huey's default is 50 ms and more, which would be all that one sees.
        noop_stored().get(blocking=True, timeout=10, max_delay=0.001)

    def close(self) -> None:
        huey.storage.conn.close()
