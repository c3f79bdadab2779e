"""Agent Mesh: three pools over one application (`mesh_app`), with its defaults: signed messages, a record per task."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from typing import ClassVar

from benchmarks.contestants.base import Contestant, python_module, redis_url
from benchmarks.contestants.stock import POOL_ARGUMENTS

NAMESPACE = "bench"
TASKS = ("noop", "noop-stored", "mark")


class Ours(Contestant):
    """Mesh.submit, Mesh.submit_many, and agents started as Celery workers; subclasses name the pool."""

    packages = ("celery", "kombu", "redis")
    settings = (
        "defaults: a record, a lease and a fence per task, exact counters, signed messages; "
        "a task held by a killed agent runs elsewhere within 20 s"
    )

    def prepare(self) -> None:
        os.environ.update(self.environment())
        from mesh import Mesh

        self.mesh = Mesh(redis_url=redis_url(), namespace=NAMESPACE)
        self.counters = f"mesh:{{{NAMESPACE}}}:counters"

    def environment(self) -> dict[str, str]:
        # One secret for this process and its agents; messages are signed and checked, as in production.
        return {
            "REDIS_URL": redis_url(),
            "MESH_NAMESPACE": NAMESPACE,
            "AGENT_NAMESPACE": NAMESPACE,
            "MESH_JWT_SECRET": os.environ.setdefault("MESH_JWT_SECRET", secrets.token_hex(32)),
            "LOG_LEVEL": "warning",
        }

    def send(self, task: str, n: int) -> None:
        submit = self.mesh.submit
        for _ in range(n):
            submit(task, None)

    def send_bulk(self, task: str, n: int) -> None:
        # As Celery's own call has it from the task's declaration; to a mesh, which need not know the type, the caller says it.
        self.mesh.submit_many(task, [None] * n, ignore_result=task != "noop-stored")

    def variants(self) -> Mapping[str, Callable[[int], None]]:
        return {"apply_async": self._send_through_celery}

    def _send_through_celery(self, n: int) -> None:
        from benchmarks.contestants import mesh_app

        submit = mesh_app.noop.apply_async
        for _ in range(n):
            submit((None,))

    def worker_commands(self, *, results: bool) -> list[list[str]]:
        count, arguments = POOL_ARGUMENTS[self.pool]
        common = ["--capabilities", ",".join(TASKS), "--loglevel", "warning"]
        command = python_module(
            "celery", "-A", "benchmarks.contestants.mesh_app", "worker", *arguments, *common
        )
        return [[*command, "--agent-id", f"b{i}"] for i in range(count)]

    def remaining(self) -> int:
        done = self.client.hmget(self.counters, [f"{task}|succeeded" for task in TASKS])
        return self.submitted - sum(int(count or 0) for count in done)

    def round_trip(self) -> None:
        self.mesh.submit("noop-stored", None).result(timeout_s=10)

    def close(self) -> None:
        self.mesh.close()


class OursSolo(Ours):
    name: ClassVar[str] = "ours-solo"
    pool = "solo"
    rough_rate = 9000


class OursThreads(Ours):
    name: ClassVar[str] = "ours-threads"
    pool = "threads"
    rough_rate = 8000
    measures_submit = False


class OursPrefork(Ours):
    name: ClassVar[str] = "ours-prefork"
    pool = "prefork"
    rough_rate = 2500
    measures_submit = False
