"""SAQ on Redis. A job's `ttl` says how long its result is kept; -1 keeps none."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import asyncio as redis_asyncio
from saq.queue.redis import RedisQueue

from benchmarks.contestants import base
from benchmarks.contestants.base import Contestant, python_module

#: SAQ has no bulk call; it lets 20 submissions run at once, so more in flight would only wait.
IN_FLIGHT = 20


def new_queue() -> RedisQueue:
    """A queue whose blocking fetch may block: redis-py 8 gives up after 5 s unless told otherwise."""
    return RedisQueue(redis_asyncio.from_url(base.redis_url(), socket_timeout=None), name="bench")


async def noop(context: object) -> None:
    """Nothing."""


async def noop_stored(context: object) -> int:
    """Nothing, with a result."""
    return 1


async def mark(context: object) -> None:
    """Say which process this is. It blocks its loop on purpose: the other process gets the next one."""
    base.mark()


def worker_settings() -> dict[str, Any]:
    """What `python -m saq` reads."""
    functions = [("noop", noop), ("noop-stored", noop_stored), ("mark", mark)]
    return {"queue": new_queue(), "functions": functions, "concurrency": 10}


class Saq(Contestant):
    name = "saq"
    packages = ("saq", "redis")
    rough_rate = 1600
    settings = "2 workers x 10 coroutines (its default); jobs stay in an active list, stuck ones are swept every 60 s"

    def prepare(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.queue = new_queue()
        self.loop.run_until_complete(self.queue.connect())

    async def _send(self, task: str, n: int) -> None:
        ttl = 600 if task == "noop-stored" else -1
        for _ in range(n):
            await self.queue.enqueue(task, ttl=ttl)

    def send(self, task: str, n: int) -> None:
        self.loop.run_until_complete(self._send(task, n))

    def send_bulk(self, task: str, n: int) -> None:
        async def run() -> None:
            share, rest = divmod(n, IN_FLIGHT)
            await asyncio.gather(*(self._send(task, share + (i < rest)) for i in range(IN_FLIGHT)))

        self.loop.run_until_complete(run())

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        command = python_module("saq", f"{__name__}.worker_settings")
        return [command, command]

    def remaining(self) -> int:
        return int(self.client.zcard("saq:bench:incomplete"))

    def round_trip(self) -> None:
        self.loop.run_until_complete(self._round_trip())

    async def _round_trip(self) -> None:
        # Polled every millisecond; its default is 0.5 s, which would be all that one sees.
        if await self.queue.apply("noop-stored", timeout=10, poll_interval=0.001, ttl=600) != 1:
            raise TimeoutError("SAQ returned no result within 10 s.")

    def close(self) -> None:
        self.loop.run_until_complete(self.queue.disconnect())
        self.loop.close()
