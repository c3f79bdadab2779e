"""What signing costs: CPU-seconds of all processes per 10,000 tasks that do nothing, with signed messages and without.

```
python -m benchmarks.security [--rounds 10] [--tasks 10000] [--json FILE]
```

Two agents of either kind (solo) on one Redis of its own; the rounds alternate between them. A round submits its tasks in bulk,
the last tenth one by one, and waits until all have run. Counted is the CPU time of the producer, of that kind's two agents (user
and system, from /proc) and of Redis (`INFO cpu`). "Without" exists only here: sealing and opening are replaced by nothing.
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
_APPS = {"signed": "benchmarks.contestants.mesh_app", "unsigned": "benchmarks.unsigned_app"}
_TICKS = os.sysconf("SC_CLK_TCK")


def _wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"Waited {seconds:g} s for {what}.")
        time.sleep(0.02)


class Kind:
    """Two agents in a namespace of their own, and a producer that does as they do."""

    def __init__(self, name: str, redis_url: str, folder: Path) -> None:
        self.name, self.sealer = name, None
        namespace = f"bench-{name}"
        environ = {
            **os.environ,
            "REDIS_URL": redis_url,
            "MESH_NAMESPACE": namespace,
            "AGENT_NAMESPACE": namespace,
        }
        self.mesh = Mesh(redis_url=redis_url, namespace=namespace)
        self.agents = []
        for number in (1, 2):
            words = [
                "-m",
                "celery",
                "-A",
                _APPS[name],
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
        """Stop the agents."""
        for agent in self.agents:
            agent.kill()
            agent.wait()
        self.mesh.close()


def _as(kind: str) -> None:
    """This process seals as the agents of a kind open."""
    from mesh.bus import publishing, transport
    from mesh.services import tasks

    tasks.sealer, publishing.sealer, transport.open_task = _WAYS[kind]


_WAYS: dict[str, tuple[Any, Any, Any]] = {}


def main() -> None:
    """Run the rounds and print what they say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("MESH_JWT_SECRET", secrets.token_hex(32))
    os.environ["MESH_RESULT_RETENTION_S"] = os.environ["MESH_IGNORED_RETENTION_S"] = "60"
    from mesh.bus import publishing, transport
    from mesh.services import tasks

    _WAYS["signed"] = (tasks.sealer, publishing.sealer, transport.open_task)
    import benchmarks.unsigned_app  # noqa: F401  (takes the place of both)

    _WAYS["unsigned"] = (tasks.sealer, publishing.sealer, transport.open_task)
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as server:
        kinds = [Kind(name, server.url, Path(folder)) for name in _APPS]
        try:
            report = _rounds(kinds, options.rounds, options.tasks)
        finally:
            for kind in kinds:
                kind.close()
    if options.json:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


def _rounds(kinds: list[Kind], rounds: int, number: int) -> dict[str, Any]:
    for kind in kinds:
        _wait(kind.ready, _START_S, f"the agents ({kind.name})")
        _as(kind.name)
        kind.run(number // 5)  # warm
    spent: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds if turn % 2 else kinds[::-1]:
            _as(kind.name)
            spent[kind.name].append(kind.run(number) * 10_000 / number)
        ratio = spent["signed"][-1] / spent["unsigned"][-1]
        print(
            f"{turn + 1}: signed {spent['signed'][-1]:.2f} s, unsigned {spent['unsigned'][-1]:.2f} s, x {ratio:.3f}",
            flush=True,
        )
    ratios = [one / other for one, other in zip(spent["signed"], spent["unsigned"], strict=True)]
    middle = {name: statistics.median(values) for name, values in spent.items()}
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    print(
        f"CPU-seconds per 10,000 tasks: signed {middle['signed']:.2f}, unsigned {middle['unsigned']:.2f}; "
        f"ratio {statistics.median(ratios):.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}, "
        f"all {min(ratios):.3f} to {max(ratios):.3f})"
    )
    return {"seconds": spent, "ratios": ratios}


if __name__ == "__main__":
    main()
