"""What keeps agents from a task, when it is expected to start, what would change that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.agents import Health
from mesh.core.explaining import Before, Task, advice, expected, judge, serves


@dataclass(frozen=True, kw_only=True)
class Agent:
    id: str = "w1"
    capabilities: tuple[str, ...] = ("ocr",)
    region: str | None = None
    status: Health = Health.HEALTHY
    slots: int = 4
    held: int = 0
    cordoned: bool = False
    absent: bool = False
    silent_ms: int = 1000


OCR = Task(needs=frozenset({"ocr"}), mean_run_ms=2000.0)
FULL = Agent(held=4)


def others(**changes: Any) -> Task:
    return replace(OCR, **changes)


@pytest.mark.parametrize(
    ("agent", "task", "why", "capable"),
    [
        (Agent(), OCR, None, True),
        (Agent(status=Health.OFFLINE, cordoned=True), OCR, "it has left", False),
        (Agent(capabilities=("scan",)), others(needs=frozenset({"ocr", "gpu"})), "it does not offer gpu and ocr", False),
        (Agent(status=Health.DRAINING, cordoned=True), OCR, "it is draining", False),
        (Agent(absent=True, status=Health.DEGRADED, silent_ms=41_900), OCR, "it has been silent for 41 s", False),
        (Agent(status=Health.UNHEALTHY, silent_ms=301_000), OCR, "it has been silent for 301 s", False),
        (Agent(status=Health.DEGRADED), OCR, None, True),
        (replace(FULL, cordoned=True), OCR, "it is cordoned", False),
        (FULL, others(agent="w2"), "the task was placed with agent w2", True),
        (Agent(), others(agent="w1"), None, True),
        (Agent(region="south"), others(region="north", spills_in_ms=3200),
         "it is of another region: the task is offered to region north first for 3.2 s more", True),
        (Agent(region="north"), others(region="north", spills_in_ms=3200), None, True),
        (FULL, OCR, "all its slots are full (4 of 4)", True),
        (Agent(held=5), OCR, "all its slots are full (4 of 4)", True),  # it has fetched ahead
    ],
)  # fmt: skip
def test_what_keeps_an_agent_from_a_task(agent: Agent, task: Task, why: str | None, capable: bool) -> None:
    verdict = judge(task, agent)
    assert (verdict.why, verdict.capable) == (why, capable)


def test_who_may_not_know_which_agents_there_are_reads_no_name() -> None:
    agents = [
        Agent(id="secret-1", cordoned=True),
        Agent(id="secret-2", cordoned=True),
        Agent(id="secret-3", absent=True),
    ]
    task = others(agent="secret-9")
    verdicts = [judge(task, agent, lambda _: False) for agent in [*agents, Agent(id="secret-4")]]
    said = advice(task, verdicts, expected(task, agents, []))
    assert "secret" not in repr((verdicts, said))
    assert said[0] == "Uncordon one of the 2 agents that are cordoned."
    assert verdicts[-1].why == "the task was placed with another agent"


@pytest.mark.parametrize(
    ("place", "is_served"),
    [("ocr", True), ("gpu+ocr", True), ("scan", False), ("ocr@@eu", True), ("ocr@@us", False), ("@@w1", True), ("@@w2", False)],
)  # fmt: skip
def test_what_an_agent_serves(place: str, is_served: bool) -> None:
    assert serves(Agent(capabilities=("gpu", "ocr"), region="eu"), place) is is_served


def waits(tasks: int, place: str = "ocr", **more: Any) -> Before:
    return Before(place=place, tasks=tasks, mean_run_ms=2000.0, **more)


@pytest.mark.parametrize(
    ("task", "agents", "before", "start_ms"),
    [
        (OCR, [], [], None),  # nobody is there
        (OCR, [Agent(cordoned=True)], [], None),
        (OCR, [Agent()], [waits(0)], 0),
        (OCR, [Agent()], [waits(3)], 0),  # the fourth slot is its own
        (OCR, [Agent()], [waits(4)], 500),  # when the first of four slots is free again
        (OCR, [FULL], [waits(0)], 500),
        (OCR, [FULL, Agent(id="w2", held=4)], [waits(79)], 20_000),  # 80 times 2 s on 8 slots
        (OCR, [FULL, Agent(id="w2", cordoned=True)], [waits(79)], 40_000),  # ... on 4
        (others(mean_run_ms=None), [FULL], [waits(0)], None),  # nothing has run yet
        (others(mean_run_ms=None), [Agent()], [waits(0)], 0),
        (others(due_in_ms=9000), [FULL], [], 9000),
        (others(due_in_ms=9000), [], [], None),
        # What else these agents serve first, by their part of the slots that serve it.
        (OCR, [replace(FULL, capabilities=("ocr", "scan"))], [waits(0), waits(9, "scan")], 5000),
        (OCR, [replace(FULL, capabilities=("ocr", "scan")), replace(FULL, id="w2", capabilities=("scan",))],
         [waits(0), waits(8, "scan")], 2500),
        (OCR, [FULL, Agent(id="w2", held=4)], [waits(0), waits(7, "@@w2")], 2000),
        # A region first, then the others.
        (others(region="north", spills_in_ms=3000), [replace(FULL, region="north"), Agent(id="w2", region="south")],
         [waits(0, "ocr@@north")], 500),
        (others(region="north", spills_in_ms=3000), [replace(FULL, region="north"), Agent(id="w2", region="south")],
         [waits(7, "ocr@@north")], 3000),
        (others(region="north", spills_in_ms=3000), [replace(FULL, region="north"), Agent(id="w2", region="south")],
         [waits(99, "ocr@@north")], 24_000),
        # Placed with one agent: the free slots of others do not help.
        (others(agent="w1"), [FULL, Agent(id="w2")], [waits(3, "@@w1")], 2000),
    ],
)  # fmt: skip
def test_when_a_task_is_expected_to_start(
    task: Task, agents: list[Agent], before: list[Before], start_ms: int | None
) -> None:
    start = expected(task, agents, before)
    assert start.start_ms == start_ms
    assert start.how.endswith(".")


def test_how_that_was_found_out_is_said() -> None:
    busy = expected(OCR, [FULL], [waits(12)])
    assert (
        busy.how
        == "12 tasks are served before it, 0 slots are free, and an attempt holds one of 4 for 2.0 s on average."
    )
    shared = expected(
        OCR, [replace(FULL, capabilities=("ocr", "scan"))], [waits(1), waits(2, "scan", elsewhere=True)]
    )
    assert shared.how.startswith("3 tasks are served before it (2 of other queues), 0 slots are free, ")
    new = expected(others(mean_run_ms=None), [FULL], [waits(1)])
    assert new.how.startswith(
        "1 task is served before it, 0 slots are free; how long an attempt runs is not known"
    )


ADVICE = [
    (OCR, [Agent()], [waits(0)], []),  # it starts now
    (others(due_in_ms=900), [FULL], [], []),  # it waits for its time
    (others(needs=frozenset({"ocr", "gpu"})), [Agent()], [], ["Start an agent with --capabilities gpu,ocr."]),
    (OCR, [Agent(cordoned=True)], [],
     ["Uncordon w1: mesh agent uncordon w1.", "Start an agent with --capabilities ocr."]),
    (OCR, [Agent(absent=True)], [],
     ["Start an agent with --capabilities ocr.", "Bring w1 back: it offers ocr, but is silent."]),
    (OCR, [FULL], [waits(0)],
     ["Start agents with --capabilities ocr: 1 slot more than the 4 there are would have it start at once."]),
    (OCR, [FULL], [waits(120, urgent=20)],
     ["Start agents with --capabilities ocr: 4 slots more than the 4 there are would halve the wait.",
      "Submit it with a higher priority than 4: 9 would get past 100 of the 120 tasks before it."]),
    (others(priority=9, expires_in_ms=10_000), [FULL], [waits(120, urgent=120)],
     ["Start agents with --capabilities ocr: 4 slots more than the 4 there are would halve the wait.",
      "Let it expire later: it does in 10.0 s, before it would start."]),
    (others(agent="w1"), [replace(FULL, slots=1), Agent(id="w2", slots=3)], [waits(0, "@@w1")],
     ["Submit such tasks with strategy capability-match: other agents have 3 free slots.",
      "Start agents with --capabilities ocr: 1 slot more than the 1 there are would have it start at once."]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "agents", "before", "said"), ADVICE)
def test_what_would_change_it(task: Task, agents: list[Agent], before: list[Before], said: list[str]) -> None:
    verdicts = [judge(task, agent) for agent in agents]
    assert advice(task, verdicts, expected(task, agents, before)) == said


fleets = st.lists(
    st.builds(
        Agent,
        id=st.sampled_from(["a", "b", "c", "d"]),
        capabilities=st.sampled_from([("ocr",), ("ocr", "scan"), ("scan",)]),
        slots=st.integers(1, 8),
        held=st.integers(0, 8),
        cordoned=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda agent: agent.id,
)
queues = st.tuples(st.integers(0, 500), st.integers(0, 500))


@given(agents=fleets, waiting=queues)
def test_more_before_it_never_means_sooner_and_more_slots_never_later(
    agents: list[Agent], waiting: tuple[int, int]
) -> None:
    def start(fleet: list[Agent], more: int = 0) -> float:
        before = [waits(waiting[0] + more), waits(waiting[1], "scan")]
        found = expected(OCR, fleet, before).start_ms
        return float("inf") if found is None else found

    assert start(agents) <= start(agents, 7)
    assert start([*agents, Agent(id="new")]) <= start(agents) + 1  # ms, rounded


@given(agents=fleets, waiting=queues)
def test_as_many_slots_as_it_says_halve_the_wait(agents: list[Agent], waiting: tuple[int, int]) -> None:
    before = [waits(waiting[0])]
    now = expected(OCR, agents, before)
    said = [one for one in advice(OCR, [judge(OCR, agent) for agent in agents], now) if "slot" in one]
    if said and now.start_ms:
        number = int(said[0].split(": ")[1].split()[0])
        then = expected(OCR, [*agents, Agent(id="new", slots=number)], before)
        assert then.start_ms is not None and then.start_ms <= now.start_ms / 2 + 1
