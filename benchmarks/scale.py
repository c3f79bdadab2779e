"""Does routing cost more when the mesh is larger? 2 agents and 2 requirements against 200 and 100, on one Redis.

Registered agents are real registrations that consume all requirements; one of them submits, fetches and settles. Figures are
µs a task, medians of alternating rounds; what counts is the ratio, which `make bench` prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable

from mesh.core.places import Strategy, own_queue
from mesh.core.states import State
from mesh.services.tasks import Options, submit, submit_many
from mesh.settings import Settings
from mesh.store.embedded import start_server
from mesh.store.store import Store
from mesh.store.tasks import Settlement

SMALL, LARGE = (2, 2), (200, 100)
TASKS, ROUNDS, LIMIT = 1000, 7, 1.3
_nonces = itertools.count()


class Fleet:
    """A namespace with so many registered agents, each of which consumes so many requirements."""

    def __init__(self, url: str, agents: int, requirements: int) -> None:
        self.store = Store(
            dataclasses.replace(Settings(), redis_url=url, namespace=f"scale-{agents}-{requirements}")
        )
        self.extra = [f"x{number}" for number in range(requirements)]
        self.queues = [f"scale+{one}" for one in self.extra]
        self.words = {}
        for number in range(agents):
            agent = f"w{number}"
            joined = self.store.agents.join(agent, {"name": agent, "slots": 8, "lease_ms": 3_600_000})
            self.store.agents.offer(agent, joined.incarnation, self.queues)
            self.words[agent] = f"{agent}#{joined.incarnation}"

    def submit_one_by_one(self, strategy: str) -> None:
        """Single submissions, over all requirements in turn."""
        for number in range(TASKS):
            options = Options(requires=(self.extra[number % len(self.extra)],), strategy=strategy)
            submit(self.store, "scale", None, options)

    def submit_in_bulk(self, strategy: str) -> None:
        """One submission of many."""
        submit_many(
            self.store, "scale", [None] * TASKS, Options(requires=(self.extra[0],), strategy=strategy)
        )

    def work_off(self) -> None:
        """Fetch and settle all, 50 at a time, as one agent that consumes everything."""
        places = [own_queue("w0"), *self.queues]
        done = 0
        while done < TASKS:
            tasks = self.store.tasks.fetch(
                holder=self.words["w0"],
                isolated=True,
                nonce=f"n{next(_nonces)}",
                limit=50,
                held=0,
                queues=places,
            )
            self.store.tasks.settle([Settlement(one.id, one.fence, State.SUCCEEDED) for one in tasks])
            done += len(tasks)

    def clear(self) -> None:
        """Take what strategies gave to agents out of the way: cordoned agents give it back."""
        for agent in self.words:
            self.store.agents.cordon(agent, "cordon")
            self.store.agents.cordon(agent, "uncordon")


def measure(fleet: Fleet) -> dict[str, float]:
    """One round: µs a task of each thing."""
    figures = {}

    def timed(name: str, work: Callable[[], None]) -> None:
        begun = time.perf_counter()
        work()
        figures[name] = (time.perf_counter() - begun) / TASKS * 1e6

    for strategy in Strategy:
        timed(f"submit, {strategy}", lambda chosen=str(strategy): fleet.submit_one_by_one(chosen))  # type: ignore[misc]
        if strategy is not Strategy.CAPABILITY_MATCH:
            fleet.clear()
        timed(f"fetch and settle, {strategy}", fleet.work_off)
        timed(f"submit in bulk, {strategy}", lambda chosen=str(strategy): fleet.submit_in_bulk(chosen))  # type: ignore[misc]
        if strategy is not Strategy.CAPABILITY_MATCH:
            fleet.clear()
        fleet.work_off()
    return figures


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if submitting or fetching by the default strategy costs more than `LIMIT` times as much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args(argv).rounds
    with start_server() as server:
        fleets = [Fleet(server.url, *size) for size in (SMALL, LARGE)]
        measured: list[list[dict[str, float]]] = [[], []]
        for number in range(rounds + 1):
            for index in (0, 1) if number % 2 else (1, 0):
                figures = measure(fleets[index])
                if number:  # the first round warms up
                    measured[index].append(figures)
    print(f"{'µs a task':<36}{'2 agents, 2':>14}{'200 agents, 100':>18}{'ratio':>8}")
    worst = 0.0
    for name in measured[0][0]:
        small, large = (statistics.median(one[name] for one in rows) for rows in measured)
        print(f"{name:<36}{small:>14.1f}{large:>18.1f}{large / small:>8.2f}")
        if "capability-match" in name and "bulk" not in name:
            worst = max(worst, large / small)
    print(f"default strategy: at most {worst:.2f} times (limit {LIMIT})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
