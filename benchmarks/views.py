"""How long what operators look at takes in a large mesh: 1000 registered agents, 100,000 tasks that wait, 10,000 that have ended.

```
python -m benchmarks.views [--agents 1000] [--tasks 100000] [--rounds 40] [--json FILE]
```

One coordinator process, asked for one thing at a time over one connection, in turn; the agents' registrations beat every 3 s
from another process, as theirs would. Commands ask Redis, and run in this process: without their start-up, and `mesh top --once`
without the interval that it watches. Prints p50, p95 and the bytes of each answer, and how much memory the coordinator used.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import io
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.http_submit import NAMESPACE, SECRET, coordinator
from mesh.cli.run import run
from mesh.client import Mesh
from mesh.core import tokens
from mesh.core.states import State
from mesh.settings import Settings
from mesh.store.store import Store
from mesh.store.tasks import Settlement

_CAPABILITIES = 40
_BEAT_S = 3.0
_HISTORY = 10_000
_LIMIT_MS = 300.0


def _paths(namespace: str, task_id: str) -> list[str]:
    own = f"/v1/namespaces/{namespace}"
    return [
        "/metrics", "/health", "/v1/cluster", f"{own}/agents", f"{own}/capabilities", f"{own}/queues", f"{own}/top",
        f"{own}/types", f"{own}/tasks?limit=100", f"{own}/tasks?state=failed&limit=100", f"{own}/dead-letters",
        f"{own}/capabilities/c1", f"{own}/capacity", f"{own}/capacity/replay", f"{own}/capacity/replay?slots=1000",
        "/page/draw.js", f"{own}/metrics-targets", f"{own}/tasks/{task_id}", f"{own}/tasks/{task_id}/why",
        f"{own}/tasks/{task_id}/attempts",
    ]  # fmt: skip


_COMMANDS = (
    "status", "top --once --interval 0.1", "discover", "queue list", "task list", "task why ID", "capacity",
    "capacity --replay",
)  # fmt: skip


def _command_ms(words: list[str]) -> tuple[float, int]:
    """(how long it took, bytes of what it printed)."""
    printed = io.StringIO()
    begun = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        code = run(words)
    took = (time.perf_counter() - begun) * 1000
    if code:
        raise SystemExit(f"mesh {' '.join(words)}: exit code {code}")
    return took - (100 if "--interval" in words else 0), len(printed.getvalue())


class Fleet:
    """Registrations that beat."""

    def __init__(self, settings: Settings, number: int) -> None:
        self.store = Store(settings)
        self.lives = {}
        for index in range(number):
            offered = ",".join([*(f"c{(index + step) % _CAPABILITIES}" for step in range(3)), "ended"])
            fields = {
                "name": f"w{index}", "type": "worker", "namespace": settings.namespace, "capabilities": offered,
                "slots": 8, "running": index % 9, "state": "ready", "address": "10.0.0.7", "port": 3001, "pid": index + 1,
                "region": ("north", "south")[index % 2], "version": "1", "lease_ms": settings.lease_ms,
            }  # fmt: skip
            joined = self.store.agents.join(f"w{index}", fields)
            self.store.agents.offer(f"w{index}", joined.incarnation, offered.split(","))
            self.lives[f"w{index}"] = joined.incarnation
        self._stop = multiprocessing.Event()
        self._process = multiprocessing.Process(target=self._beat, daemon=True)
        self._process.start()

    def _beat(self) -> None:
        pause = _BEAT_S / max(1, len(self.lives))
        while not self._stop.is_set():
            for agent, incarnation in self.lives.items():
                if self._stop.wait(pause):
                    return
                self.store.agents.renew(agent, incarnation, {"state": "ready"}, [])

    def stop(self) -> None:
        """No beat more."""
        self._stop.set()
        self._process.join()


def _history(mesh: Mesh, store: Store, holder: str) -> None:
    """The newest tasks have ended."""
    left = len(mesh.submit_many("ended", [None] * _HISTORY, unsatisfiable="accept"))
    while left > 0:
        taken = store.tasks.fetch(
            holder=holder,
            isolated=False,
            nonce=os.urandom(4).hex(),
            limit=min(left, 250),
            held=0,
            queues=["ended"],
        )
        store.tasks.start([(one.id, one.fence, 0) for one in taken])
        store.tasks.settle([Settlement(one.id, one.fence, State.SUCCEEDED, ran_ms=100) for one in taken])
        left -= len(taken)


def _memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Measure, and say so."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with coordinator() as (url, pid, redis_url):
        settings = dataclasses.replace(
            Settings.load(), redis_url=redis_url, namespace=NAMESPACE, jwt_secret=SECRET
        )
        report = _measure(settings, url, pid, options.agents, options.tasks, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def _measure(settings: Settings, url: str, pid: int, agents: int, number: int, rounds: int) -> dict[str, Any]:
    fleet = Fleet(settings, agents)
    os.environ["MESH_JWT_SECRET"] = SECRET  # this process signs what it submits
    mesh = Mesh(redis_url=settings.redis_url, namespace=settings.namespace)
    ids: list[str] = []
    for index in range(_CAPABILITIES):
        handles = mesh.submit_many(f"c{index}", [None] * (number // _CAPABILITIES), unsatisfiable="accept")
        ids += [handle.id for handle in handles][:1]
    _history(mesh, fleet.store, f"w0#{fleet.lives['w0']}")
    ring, now_s = settings.keyring, time.time()
    token = tokens.issue(
        "api",
        ring,
        ring.kids[0],
        subject="bench",
        agent_type="admin",
        namespaces=["*"],
        ttl_s=3600,
        now_s=now_s,
        jti="bench-views-of-a-mesh",
    )
    host, _, port = url.removeprefix("http://").partition(":")
    link = http.client.HTTPConnection(host, int(port), timeout=60)
    took: dict[str, list[float]] = {}
    size: dict[str, int] = {}
    before_mb = _memory_mb(pid)
    for turn in range(rounds + 1):
        for path in _paths(settings.namespace, ids[-1]):
            begun = time.perf_counter()
            link.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = link.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status} {body[:300]!r}")
            if turn:  # the first is warm-up
                shown = path.replace(ids[-1], "ID")
                took.setdefault(shown, []).append((time.perf_counter() - begun) * 1000)
                size[shown] = len(body)
    link.close()
    os.environ.update(REDIS_URL=settings.redis_url, MESH_NAMESPACE=settings.namespace, COLUMNS="200")
    for turn in range(rounds // 2 + 1):
        for command in _COMMANDS:
            spent, printed = _command_ms(command.replace("ID", ids[-1]).split())
            if turn:
                took.setdefault(f"mesh {command}", []).append(spent)
                size[f"mesh {command}"] = printed
    fleet.stop()
    report = {
        path: {
            "p50_ms": statistics.median(times),
            "p95_ms": statistics.quantiles(times, n=20)[18],
            "bytes": size[path],
        }
        for path, times in took.items()
    }
    print(f"{agents} agents, {number} tasks that wait, {rounds} times each:")
    for path, row in report.items():
        over = "  OVER" if row["p95_ms"] > _LIMIT_MS else ""
        print(
            f"{path:60} p50 {row['p50_ms']:6.0f} ms   p95 {row['p95_ms']:6.0f} ms   {row['bytes']:9,} bytes{over}"
        )
    print(f"coordinator: {before_mb:.0f} MB before, {_memory_mb(pid):.0f} MB at most")
    return report


if __name__ == "__main__":
    main()
