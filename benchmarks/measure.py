"""Measure one contestant once, in a process of its own: `python -m benchmarks.measure --help`.

Standard output carries JSON lines: `{"group": <pid>}` for each worker command that was started (whoever runs this can
then clean up after a crash), `{"figures": {...}}` at the end. Rates are tasks/s, latencies ms.

How executing is timed, for all alike:

1. The workers are started and run `mark` tasks until two different processes have reported, then some no-ops: both
   are up, connected and warm. Start-up times do not enter any figure.
2. Their process groups are halted (SIGSTOP), N tasks are submitted in bulk, and at least IDLE_S pass, in which all
   idle sleeps and blocking reads end. So submitting competes with nobody, and nobody has a head start.
3. They go on (SIGCONT). Every POLL_S the tasks that are not finished are counted in the system's own books (queue and
   in-flight entries, or a counter that it keeps anyway), in one constant-time read. The task bodies do nothing at all.
4. The rate is what was finished between the first sample that shows progress and the first that shows everything
   finished, divided by the time between them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contestants import load, versions
from benchmarks.contestants.base import WORKERS_KEY, Contestant

POLL_S = 0.01
IDLE_S = 1.2
READY_TIMEOUT_S = 40.0
FINISH_TIMEOUT_S = 60.0
WARM_UP_TASKS = 200
MIN_TASKS = 100
ONE_CHUNK, BULK_CHUNK = 100, 1000


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much to measure: aimed length of a window (s), most tasks in it, round trips."""

    seconds: float
    tasks: int
    samples: int


def submit_rate(submit: Callable[[int], None], chunk: int, size: Size) -> float:
    """Tasks/s over about half a window, in chunks; one chunk goes ahead to connect and to load scripts."""
    submit(min(chunk, size.tasks))
    done, start = 0, time.perf_counter()
    while True:
        submit(chunk)
        done += chunk
        elapsed = time.perf_counter() - start
        if elapsed >= size.seconds / 2 or done >= size.tasks:
            return done / elapsed


def measure_submit(contestant: Contestant, size: Size) -> dict[str, float]:
    """Submitting with no worker about: one at a time, in bulk, and the system's further ways."""
    figures = {"submit_one": submit_rate(contestant.submit_one, ONE_CHUNK, size)}
    for name, variant in contestant.variants().items():
        figures[f"submit_one_{name}"] = submit_rate(variant, ONE_CHUNK, size)
    figures["submit_bulk"] = submit_rate(contestant.submit_bulk, min(BULK_CHUNK, size.tasks), size)
    return figures


def wait_until(ready: Callable[[], bool], what: str, contestant: Contestant, timeout_s: float) -> None:
    """Poll; TimeoutError with the end of the workers' output when it does not come true or a worker ends."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        ended = [worker for worker in contestant.workers if worker.process.poll() is not None]
        if ended or time.monotonic() > deadline:
            reason = "a worker ended" if ended else f"not within {timeout_s:g} s"
            tails = "\n".join(worker.tail() for worker in contestant.workers)
            raise TimeoutError(f"{contestant.name}: waiting until {what}: {reason}.\n{tails}")
        time.sleep(POLL_S)


def warm_up(contestant: Contestant, *, stored: bool) -> None:
    """Return when two worker processes have proven to consume, all is drained, and some no-ops have run."""
    contestant.client.delete(WORKERS_KEY)
    next_wave = 0.0

    def both_reported() -> bool:
        nonlocal next_wave
        if contestant.client.scard(WORKERS_KEY) >= 2:
            return True
        if time.monotonic() >= next_wave:
            contestant.submit_marks(4)
            next_wave = time.monotonic() + 0.5
        return False

    wait_until(both_reported, "both worker processes consume", contestant, READY_TIMEOUT_S)
    contestant.submit_bulk(min(WARM_UP_TASKS, contestant.rough_rate // 2), stored=stored)
    wait_until(
        lambda: contestant.completed() >= contestant.submitted, "the warm-up is done", contestant, 20.0
    )


def measure_execute(contestant: Contestant, size: Size, *, stored: bool) -> float:
    """Tasks/s of two warm worker processes; see the module's text."""
    n = max(MIN_TASKS, min(size.tasks, int(contestant.rough_rate * size.seconds)))
    contestant.freeze()
    frozen = time.monotonic()
    contestant.submit_bulk(n, stored=stored)
    time.sleep(max(0.0, frozen + IDLE_S - time.monotonic()))
    before, goal = contestant.completed(), contestant.submitted
    if goal - before < 0.9 * n:
        raise RuntimeError(
            f"{contestant.name}: {n - goal + before} of {n} tasks were finished by halted workers."
        )
    samples: list[tuple[float, int]] = []

    def sample() -> bool:
        samples.append((time.perf_counter(), contestant.completed()))
        # Between a fetch and its entry in the books a task may be in neither: three times all done is done.
        return len(samples) > 3 and all(done >= goal for _, done in samples[-3:])

    contestant.thaw()
    wait_until(sample, f"{n} tasks are finished", contestant, FINISH_TIMEOUT_S)
    first_s, first_done = next((at, done) for at, done in samples if done > before)
    last_s = samples[-3][0]
    if last_s <= first_s:
        raise RuntimeError(f"{contestant.name}: {n} tasks are too few to time; raise --seconds or --tasks.")
    return (goal - first_done) / (last_s - first_s)


def measure_latency(contestant: Contestant, size: Size) -> dict[str, float]:
    """Submit one, wait for its result, again: p50 and p99 in ms over `samples`, fewer if slow."""
    for _ in range(5):
        contestant.round_trip()
    times_ms: list[float] = []
    deadline = time.monotonic() + 4 * size.seconds
    while len(times_ms) < size.samples and time.monotonic() < deadline:
        start = time.perf_counter()
        contestant.round_trip()
        times_ms.append((time.perf_counter() - start) * 1000)
    times_ms.sort()
    at = [times_ms[min(len(times_ms) - 1, int(len(times_ms) * q))] for q in (0.5, 0.99)]
    return {"latency_p50": at[0], "latency_p99": at[1], "latency_samples": len(times_ms)}


def measure_workers(contestant: Contestant, size: Size) -> dict[str, float]:
    """Everything that needs workers: executing with results ignored and stored, and the round trip."""
    both = contestant.workers_serve_both
    contestant.start_workers(results=both)
    warm_up(contestant, stored=False)
    figures = {"execute_ignored": measure_execute(contestant, size, stored=False)}
    if not both:
        contestant.stop_workers()
        contestant.start_workers(results=True)
        warm_up(contestant, stored=True)
    figures["execute_stored"] = measure_execute(contestant, size, stored=True)
    return figures | measure_latency(contestant, size)


def emit(**line: object) -> None:
    """One JSON line."""
    print(json.dumps(line), flush=True)


def interrupted(number: int, frame: object) -> None:
    """SIGTERM ends this process through its `finally` clauses, which stop the workers."""
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one contestant once.")
    parser.add_argument("contestant")
    parser.add_argument("part", choices=("submit", "workers"))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--log-dir", type=Path, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    found = load(arguments.contestant)
    contestant = found(arguments.log_dir, started=lambda group: emit(group=group))
    size = Size(seconds=arguments.seconds, tasks=arguments.tasks, samples=arguments.samples)
    contestant.prepare()
    try:
        figures = (measure_submit if arguments.part == "submit" else measure_workers)(contestant, size)
    finally:
        contestant.stop()
    emit(figures=figures, settings=found.settings, versions=versions(found))


if __name__ == "__main__":
    main()
