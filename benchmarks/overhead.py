"""What one thing costs: CPU-seconds of all processes per 10,000 tasks that do nothing, with it and without.

```
python -m benchmarks.overhead security|telemetry|flower [--rounds 10] [--tasks 10000] [--json FILE]
```

Two agents of either kind (solo) on one Redis of its own. A round alternates between the kinds ten times, so that what else the
machine does meets both alike: each time it submits a tenth of its tasks, most in bulk and the last of them one by one, and waits
until all have run. Counted is the CPU time of the producer, of that kind's two agents (user
and system, from /proc) and of Redis (`INFO cpu`). "Without" exists only here (`benchmarks.without`); `flower` compares a mesh to
whose events a Flower listens with one to whose nobody does, and counts not what Flower does with them.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesh.client import Mesh
from mesh.store.embedded import start_server

_START_S, _ROUND_S = 60.0, 120.0
_PARTS = 10  # of a round
_WITH, _WITHOUT = "with", "without"
_TICKS = os.sysconf("SC_CLK_TCK")


def _wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"Waited {seconds:g} s for {what}.")
        time.sleep(0.02)


class Kind:
    """Two agents in a namespace of their own, and a producer that does as they do."""

    def __init__(self, name: str, what: str, redis_url: str, folder: Path) -> None:
        self.name = name
        namespace = f"bench-{name}"
        bare = name == _WITHOUT and what != "flower"
        app = "benchmarks.without" if bare else "benchmarks.contestants.mesh_app"
        environ = {
            **os.environ,
            "REDIS_URL": redis_url,
            "MESH_NAMESPACE": namespace,
            "AGENT_NAMESPACE": namespace,
            "BENCH_WITHOUT": what,
        }
        self.mesh = Mesh(redis_url=redis_url, namespace=namespace)
        self.agents = []
        for number in (1, 2):
            words = [
                "-m",
                "celery",
                "-A",
                app,
                "worker",
                "-P",
                "solo",
                "--capabilities",
                "noop",
                "-l",
                "warning",
            ]
            with (folder / f"{name}-{number}.log").open("wb") as log:
                self.agents.append(
                    subprocess.Popen(
                        [sys.executable, *words, "--agent-id", f"a{number}"],
                        env=environ,
                        stdout=log,
                        stderr=log,
                    )
                )

        self.flower = None
        if what == "flower" and name == _WITH:
            words = [
                "-m",
                "celery",
                "-A",
                app,
                "flower",
                "--port=0",
                "--address=127.0.0.1",
                "--logging=warning",
            ]
            with (folder / "flower.log").open("wb") as log:
                self.flower = subprocess.Popen([sys.executable, *words], env=environ, stdout=log, stderr=log)

    def ready(self) -> bool:
        """Whether both consume."""
        rows = (self.mesh.store.agents.get(f"a{number}") for number in (1, 2))
        return all(row and row.get("queues") for row in rows)

    def cpu_s(self) -> float:
        """Of the producer, the agents and Redis."""
        ticks = 0
        for agent in self.agents:
            fields = Path(f"/proc/{agent.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        info = dict(
            line.split(":", 1)
            for line in self.mesh.store.client.execute("INFO", "cpu").decode().splitlines()
            if ":" in line
        )
        redis_s = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        return time.process_time() + ticks / _TICKS + redis_s

    def run(self, number: int) -> float:
        """CPU-seconds of so many tasks."""
        counts = self.mesh.store.tasks.counts
        goal = counts().get("noop", {}).get("succeeded", 0) + number
        before, single = self.cpu_s(), number // 10
        for _ in self.mesh.submit_many("noop", [{"n": 1}] * (number - single)):
            pass
        for _ in range(single):
            self.mesh.submit("noop", {"n": 1})
        _wait(lambda: counts()["noop"].get("succeeded", 0) >= goal, _ROUND_S, f"{number} tasks ({self.name})")
        return self.cpu_s() - before

    def close(self) -> None:
        """Stop the processes."""
        for one in [*self.agents, *([self.flower] if self.flower else [])]:
            one.kill()
            one.wait()
        self.mesh.close()


_Ways = dict[str, tuple[Any, Any, Any]]


def _ways(what: str) -> _Ways:
    """How this process, the producer, seals and opens for either kind; the rest of it costs it nothing."""
    from mesh.bus import publishing, transport
    from mesh.services import tasks

    def now() -> tuple[Any, Any, Any]:
        return tasks.sealer, publishing.sealer, transport.open_task

    ways = {_WITH: now()}
    if what == "security":
        os.environ["BENCH_WITHOUT"] = what
        import benchmarks.without  # noqa: F401  (takes their place)
    return {**ways, _WITHOUT: now()}


def _become(way: tuple[Any, Any, Any]) -> None:
    from mesh.bus import publishing, transport
    from mesh.services import tasks

    tasks.sealer, publishing.sealer, transport.open_task = way


def main() -> None:
    """Run the rounds and print what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("security", "telemetry", "flower"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("MESH_JWT_SECRET", secrets.token_hex(32))
    os.environ["MESH_RESULT_RETENTION_S"] = os.environ["MESH_IGNORED_RETENTION_S"] = "60"
    ways = _ways(options.what)
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as server:
        kinds = [Kind(name, options.what, server.url, Path(folder)) for name in (_WITH, _WITHOUT)]
        try:
            report = _rounds(options.what, kinds, ways, options.rounds, options.tasks)
        finally:
            for kind in kinds:
                kind.close()
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def _rounds(what: str, kinds: list[Kind], ways: _Ways, rounds: int, number: int) -> dict[str, Any]:
    for kind in kinds:
        _wait(kind.ready, _START_S, f"the agents ({kind.name})")
        _become(ways[kind.name])
        kind.run(number // 5)  # warm
    spent: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds:
            spent[kind.name].append(0.0)
        for part in range(_PARTS):
            for kind in kinds if (turn + part) % 2 else kinds[::-1]:
                _become(ways[kind.name])
                spent[kind.name][-1] += kind.run(number // _PARTS) * 10_000 / number
        ratio = spent[_WITH][-1] / spent[_WITHOUT][-1]
        print(
            f"{turn + 1}: with {what} {spent[_WITH][-1]:.2f} s, without {spent[_WITHOUT][-1]:.2f} s, x {ratio:.3f}",
            flush=True,
        )
    ratios = [one / other for one, other in zip(spent[_WITH], spent[_WITHOUT], strict=True)]
    middle = {name: statistics.median(values) for name, values in spent.items()}
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    print(
        f"CPU-seconds per 10,000 tasks: with {what} {middle[_WITH]:.2f}, without {middle[_WITHOUT]:.2f}; "
        f"ratio {statistics.median(ratios):.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}, "
        f"all {min(ratios):.3f} to {max(ratios):.3f})"
    )
    return {"seconds": spent, "ratios": ratios}


if __name__ == "__main__":
    main()
