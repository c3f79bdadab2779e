"""Taskiq with the stream broker of taskiq-redis. A broker has one result backend, so each kind has its own workers."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.contestants import base
from benchmarks.contestants.base import Contestant, python_module

#: Taskiq has no bulk call; this many submissions are kept in flight at once on one event loop.
IN_FLIGHT = 50
STREAM = "taskiq"

broker = RedisStreamBroker(url=base.redis_url(), queue_name=STREAM)
if os.environ.get(base.RESULTS_VARIABLE, "1") == "1":
    broker = broker.with_result_backend(RedisAsyncResultBackend(redis_url=base.redis_url()))


@broker.task(task_name="noop")
async def noop() -> None:
    """Nothing."""


@broker.task(task_name="noop-stored")
async def noop_stored() -> int:
    """Nothing, with a result (where the broker has a result backend)."""
    return 1


@broker.task(task_name="mark")
async def mark() -> None:
    """Say which process this is. It blocks its loop on purpose: the other process gets the next one."""
    base.mark()


class Taskiq(Contestant):
    name = "taskiq"
    packages = ("taskiq", "taskiq-redis", "redis")
    rough_rate = 4500
    workers_serve_both = False
    settings = (
        "2 workers, streams, async tasks; acknowledged after the result is saved, returned after 10 min idle"
    )

    def prepare(self) -> None:
        self.tasks: dict[str, Any] = {"noop": noop, "noop-stored": noop_stored, "mark": mark}
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(broker.startup())

    def send(self, task: str, n: int) -> None:
        self.loop.run_until_complete(self._send(self.tasks[task], n))

    @staticmethod
    async def _send(task: Any, n: int) -> None:
        for _ in range(n):
            await task.kiq()

    def send_bulk(self, task: str, n: int) -> None:
        async def run() -> None:
            share, rest = divmod(n, IN_FLIGHT)
            await asyncio.gather(
                *(self._send(self.tasks[task], share + (i < rest)) for i in range(IN_FLIGHT))
            )

        self.loop.run_until_complete(run())

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        return [
            python_module(
                "taskiq", "worker", f"{__name__}:broker", "--workers", "2", "--log-level", "WARNING"
            )
        ]

    def remaining(self) -> int:
        (group,) = self.client.xinfo_groups(STREAM)
        return int(group["lag"] or 0) + int(group["pending"])

    def round_trip(self) -> None:
        self.loop.run_until_complete(self._round_trip())

    @staticmethod
    async def _round_trip() -> None:
        # The interval is 0.2 s by default, which would be all that one sees.
        handle = await noop_stored.kiq()
        await handle.wait_result(check_interval=0.001, timeout=10)

    def close(self) -> None:
        self.loop.run_until_complete(broker.shutdown())
        self.loop.close()
