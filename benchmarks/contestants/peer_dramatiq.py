"""Dramatiq on Redis. It has no bulk call: a group sends its messages one by one, like the loop here."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

from benchmarks.contestants import base
from benchmarks.contestants.base import Contestant, python_module

broker = RedisBroker(url=base.redis_url())
broker.add_middleware(Results(backend=RedisBackend(url=base.redis_url())))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="noop")
def noop() -> None:
    """Nothing."""


@dramatiq.actor(actor_name="noop-stored", store_results=True)
def noop_stored() -> int:
    """Nothing, with a result."""
    return 1


@dramatiq.actor(actor_name="mark")
def mark() -> None:
    """Say which process this is."""
    base.mark()


class Dramatiq(Contestant):
    name = "dramatiq"
    packages = ("dramatiq", "redis")
    rough_rate = 4000
    settings = (
        "2 processes x 8 threads (its default); acknowledged after the work, "
        "a dead worker's messages are returned after 60 s without heartbeat"
    )

    def prepare(self) -> None:
        self.actors = {"noop": noop, "noop-stored": noop_stored, "mark": mark}

    def send(self, task: str, n: int) -> None:
        submit = self.actors[task].send
        for _ in range(n):
            submit()

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        return [python_module("dramatiq", __name__, "-p", "2", "-t", "8")]

    def remaining(self) -> int:
        # A message stays in this hash from submission to acknowledgement.
        return int(self.client.hlen("dramatiq:default.msgs"))

    def round_trip(self) -> None:
        noop_stored.send().get_result(block=True, timeout=10_000)

    def close(self) -> None:
        broker.close()
