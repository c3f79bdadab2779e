"""Ours, stock Celery and the peers in one run on one Redis server: `python -m benchmarks.compare --help`.

Each measurement is a process of its own (`benchmarks.measure`); contestants alternate, and every second round goes
backwards, so that a machine that slows down or warms up favours nobody. `benchmarks/README.md` says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.contestants import PLACES
from benchmarks.contestants.base import PROJECT, URL_VARIABLE
from benchmarks.report import Measurement, ratios, spreads, table

MEASURE_TIMEOUT_S = 150.0
STOP_GRACE_S = 8.0
SUBMIT_MEASURED_BY = ("ours-solo", "stock-solo", "taskiq", "huey", "dramatiq", "saq", "rq")
#: It takes seconds, and hangs on where the scheduler has put two processes: more rounds of it are cheap and tell more.
SUBMIT_ROUNDS = 3
EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one measuring process said; `error` where it failed, `absent` where its packages are not installed."""

    figures: dict[str, float] = field(default_factory=dict)
    settings: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""
    absent: bool = False


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


class Store:
    """The one Redis server of a run: started here, or the one of REDIS_URL; a database for each contestant."""

    def __init__(self, url: str, *, owned: bool) -> None:
        self.base = url.rstrip("/").rsplit("/", 1)[0] if url.count("/") > 2 else url
        self.owned = owned
        if owned:
            with self.client(0) as client:
                # A rewrite of the append-only file would hit whoever happens to run when it grew enough.
                client.config_set("auto-aof-rewrite-percentage", "0")

    def url(self, database: int) -> str:
        return f"{self.base}/{database}"

    def client(self, database: int) -> redis.Redis:
        return redis.Redis.from_url(self.url(database), socket_timeout=30)

    def require_empty(self, databases: Iterator[int]) -> None:
        """SystemExit where somebody else's data would be in the way."""
        for database in databases:
            with self.client(database) as client:
                if client.dbsize():
                    sys.exit(
                        f"Database {database} of REDIS_URL is not empty; databases 1 to {len(PLACES)} are used."
                    )

    def clear(self, database: int) -> None:
        """Empty a contestant's database; on a foreign server key by key, in a database that was found empty."""
        with self.client(database) as client:
            if not self.owned:
                for key in client.scan_iter(count=1000):
                    client.unlink(key)
                return
            client.flushdb()
            client.bgrewriteaof()
            deadline = time.monotonic() + 10
            while client.info("persistence")["aof_rewrite_in_progress"] and time.monotonic() < deadline:
                time.sleep(0.02)

    def facts(self) -> dict[str, Any]:
        with self.client(0) as client:
            info = client.info("server")
            kept = {
                key: info[key] for key in ("server_name", "redis_version", "valkey_version") if key in info
            }
            try:
                durability = client.config_get("append*")
            except redis.ResponseError:
                durability = {}
            wanted = ("appendonly", "appendfsync")
            return (
                kept | {"owned": self.owned} | {key: durability[key] for key in wanted if key in durability}
            )


@contextlib.contextmanager
def open_store() -> Iterator[Store]:
    """REDIS_URL's server, else an embedded one that ends with the run."""
    url = os.environ.get("REDIS_URL")
    if url:
        store = Store(url, owned=False)
        store.require_empty(iter(range(1, len(PLACES) + 1)))
        yield store
        return
    from mesh.store.embedded import start_server

    with start_server() as server:
        yield Store(server.url, owned=True)


def end_groups(groups: list[int]) -> None:
    """End worker groups that a measuring process left behind (it was killed); those that are gone are gone."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def run_measurement(name: str, part: str, url: str, arguments: argparse.Namespace, logs: Path) -> Outcome:
    """Run `benchmarks.measure` to its end or its time limit; nothing that it started survives."""
    command = [sys.executable, "-m", "benchmarks.measure", name, part, "--log-dir", str(logs)]
    variables = {**os.environ, URL_VARIABLE: url}
    for option in ("seconds", "tasks", "samples"):
        command += [f"--{option}", str(getattr(arguments, option))]
    errors = logs / f"{name}-{part}.err"
    with errors.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=variables, stdout=subprocess.PIPE, stderr=out, text=True
        )
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True)
    reader.start()
    reason = ""
    try:
        process.wait(MEASURE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"not done within {MEASURE_TIMEOUT_S:g} s"
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_GRACE_S)
            process.kill()
            process.wait()
        reader.join(2)
        said = [json.loads(lines.get()) for _ in range(lines.qsize())]
        if process.returncode:
            # An orderly end has stopped its workers; their ids may already belong to somebody else.
            end_groups([line["group"] for line in said if "group" in line])
    figures = next((line for line in said if "figures" in line), None)
    if figures is None:
        text = errors.read_text(errors="replace").strip()
        last = text.rsplit("\n", 1)[-1] or f"ended with code {process.returncode}"
        absent = last.startswith("ModuleNotFoundError")
        return Outcome(error=f"{reason or last}\n{text}", absent=absent)
    return Outcome(**figures)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement to do."""

    round: int
    contestant: str
    part: str


def plan(names: list[str], rounds: int) -> list[Step]:
    """All steps in order; even rounds go backwards. Submitting has SUBMIT_ROUNDS rounds in each."""
    steps = []

    def add(part: str, number: int, measured: list[str]) -> None:
        order = measured if number % 2 else reversed(measured)
        steps.extend(Step(round=number, contestant=name, part=part) for name in order)

    submitting = [name for name in names if name in SUBMIT_MEASURED_BY]
    for number in range(1, rounds + 1):
        for turn in range(SUBMIT_ROUNDS):
            add("submit", (number - 1) * SUBMIT_ROUNDS + turn + 1, submitting)
        add("workers", number, names)
    return steps


def brief(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:,.4g}" for key, value in figures.items())


def run(store: Store, arguments: argparse.Namespace, logs: Path) -> dict[str, Any]:
    """Do the plan within the time limit. What was measured, what each contestant is, what failed."""
    start = time.monotonic()
    measured: dict[tuple[str, int], dict[str, float]] = {}
    about: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    repeated: list[str] = []
    steps = plan(arguments.only, arguments.rounds)
    databases = {name: number for number, name in enumerate(PLACES, start=1)}
    for number, step in enumerate(steps, start=1):
        elapsed = time.monotonic() - start
        if elapsed > arguments.limit_s:
            done = f"{number - 1} of {len(steps)} steps"
            failures["(all)"] = f"time limit of {arguments.limit_s:g} s reached after {done}"
            break
        if step.contestant in failures:
            continue
        say(f"[{number}/{len(steps)} {elapsed:4.0f} s] round {step.round} {step.contestant} {step.part}")
        database = databases[step.contestant]
        outcome = Outcome()
        for _ in range(
            2
        ):  # a peer that lost a message waits for it: it gets a second chance, and the report says so
            store.clear(database)
            outcome = run_measurement(step.contestant, step.part, store.url(database), arguments, logs)
            store.clear(database)
            if not outcome.error or outcome.absent:
                break
            repeated.append(
                f"{step.contestant} {step.part}, round {step.round}: {outcome.error.splitlines()[0]}"
            )
            say(f"    {repeated[-1]}")
        if outcome.error:
            failures[step.contestant] = ("not installed: " if outcome.absent else "") + outcome.error
            say(f"    {failures[step.contestant]}")
            continue
        say(f"    {brief(outcome.figures)}")
        measured.setdefault((step.contestant, step.round), {}).update(outcome.figures)
        about[step.contestant] = {"settings": outcome.settings, "versions": outcome.versions}
    measurements = [Measurement(contestant=name, round=r, figures=f) for (name, r), f in measured.items()]
    seconds = time.monotonic() - start
    return {
        "measurements": measurements,
        "contestants": about,
        "failures": failures,
        "repeated": repeated,
        "seconds": seconds,
    }


def environment(store: Store) -> dict[str, Any]:
    """What the figures depend on."""
    facts = {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()}
    return facts | {"load_before": os.getloadavg(), "store": store.facts()}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all contestants (3)")
    parser.add_argument("--tasks", type=int, default=20_000, help="most tasks in one measurement (20000)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="aimed length of one execution window, s (2)"
    )
    parser.add_argument("--samples", type=int, default=300, help="round trips per latency measurement (300)")
    parser.add_argument(
        "--limit-s", type=float, default=1200.0, help="begin no measurement after this time, s (1200)"
    )
    parser.add_argument(
        "--only", default=",".join(PLACES), help="comma-separated names or beginnings of names"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    arguments = parser.parse_args(argv)
    wanted = tuple(part for part in arguments.only.split(",") if part)
    arguments.only = [name for name in PLACES if name.startswith(wanted)]
    if not arguments.only or any(not any(n.startswith(part) for n in PLACES) for part in wanted):
        parser.error(f"--only takes names, or beginnings of names, out of: {', '.join(PLACES)}")
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.samples = 1, 0.5, 50
        arguments.tasks = min(arguments.tasks, 2000)
    if min(arguments.rounds, arguments.tasks, arguments.samples) < 1 or arguments.seconds <= 0:
        parser.error("--rounds, --tasks, --samples and --seconds must be positive")
    return arguments


def interrupted(number: int, frame: object) -> None:
    """SIGTERM ends the run through its `finally` clauses, which stop everything that was started."""
    sys.exit(128 + number)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, interrupted)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as logs, open_store() as store:
        facts = environment(store)
        say(f"{facts['cpus']} CPUs, load {facts['load_before'][0]:.2f}, store {facts['store']}")
        result = run(store, arguments, Path(logs))
    measurements: list[Measurement] = result["measurements"]
    print(table(measurements, list(PLACES)) if measurements else "Nothing was measured.")
    for reason in result["repeated"]:
        print(f"did not end at first: {reason}")
    for name, reason in result["failures"].items():
        print(f"{name}: {reason.splitlines()[0]}")
    print(f"{result['seconds']:.0f} s, {arguments.rounds} rounds, load before {facts['load_before'][0]:.2f}")
    if arguments.json:
        document = result | {
            "environment": facts,
            "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
            "measurements": [asdict(m) for m in measurements],
            "medians": {n: {k: asdict(s) for k, s in of.items()} for n, of in spreads(measurements).items()},
            "ratios": [asdict(one) for one in ratios(measurements)],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    failed = [reason for reason in result["failures"].values() if not reason.startswith("not installed")]
    return EXIT_FAILED if failed or not measurements else 0


if __name__ == "__main__":
    raise SystemExit(main())
