"""Stock Celery: three pools over one application (`stock_app`)."""

from __future__ import annotations

from typing import Any, ClassVar

from benchmarks.contestants.base import Contestant, python_module, redis_url

#: The same for stock Celery and for ours: solo and threads are two workers, prefork is one worker with two children.
POOL_ARGUMENTS: dict[str, tuple[int, list[str]]] = {
    "solo": (2, ["-P", "solo", "-c", "1"]),
    "threads": (2, ["-P", "threads", "-c", "4"]),
    "prefork": (1, ["-P", "prefork", "-c", "2"]),
}


class Stock(Contestant):
    """Celery's Redis transport and result backend; subclasses name the pool."""

    packages = ("celery", "kombu", "redis")
    settings = (
        "acks_late, prefetch multiplier 4 (default), redis result backend, no gossip, no mingle, events off; "
        "a task held by a killed worker returns after the visibility timeout (1 h by default)"
    )
    tasks: dict[str, Any]

    def prepare(self) -> None:
        from celery import Celery

        from benchmarks.contestants import stock_app

        self.app = stock_app.app
        self.tasks = {"noop": stock_app.noop, "noop-stored": stock_app.noop_stored, "mark": stock_app.mark}
        self.unawaited = Celery(
            "bench-unawaited", broker=redis_url(), backend="disabled://", set_as_current=False
        )
        self.unawaited.conf.task_default_queue = self.app.conf.task_default_queue

    def send(self, task: str, n: int) -> None:
        submit = self.tasks[task].apply_async
        for _ in range(n):
            submit((None,))

    def send_bulk(self, task: str, n: int) -> None:
        # Kombu 5.7's publish batch: apply_async as ever, the broker commands leave in pipelines of 1,000. Submitting
        # from an application with a result backend also subscribes to each result; a bulk of stored results that
        # nobody awaits is sent from one without, which spares stock Celery a message per task while it works.
        submit = self.tasks[task].apply_async if task != "noop-stored" else self._submit_unawaited
        with self.app.producer_pool.acquire(block=True) as producer, producer.batch():
            for _ in range(n):
                submit((None,), producer=producer)

    def _submit_unawaited(self, args: tuple[Any, ...], producer: Any) -> None:
        self.unawaited.send_task("noop-stored", args, producer=producer)

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        count, arguments = POOL_ARGUMENTS[self.pool]
        quiet = ["--without-gossip", "--without-mingle", "--loglevel", "warning"]
        command = python_module(
            "celery", "-A", "benchmarks.contestants.stock_app", "worker", *arguments, *quiet
        )
        return [[*command, "-n", f"w{i}@bench"] for i in range(count)]

    def remaining(self) -> int:
        queued, held = self.client.pipeline(transaction=True).llen("noop").hlen("unacked").execute()
        return int(queued) + int(held)

    def round_trip(self) -> None:
        self.tasks["noop-stored"].apply_async((None,)).get(timeout=10)

    def close(self) -> None:
        self.app.close()
        self.unawaited.close()


class StockSolo(Stock):
    name: ClassVar[str] = "stock-solo"
    pool = "solo"
    rough_rate = 2000


class StockThreads(Stock):
    name: ClassVar[str] = "stock-threads"
    pool = "threads"
    rough_rate = 1600
    measures_submit = False


class StockPrefork(Stock):
    name: ClassVar[str] = "stock-prefork"
    pool = "prefork"
    rough_rate = 1000
    measures_submit = False
