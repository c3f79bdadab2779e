"""Faults of agents: killed, paused, out of memory, at the worst moments; and many of them at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.chaos.conftest import Recovery
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage

LEASE_S = 20.0  # 10 s of lease, and what a busy machine needs


def children(pid: int) -> list[int]:
    """The pool processes of an agent."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@fault(
    "agents",
    "whole agent killed (SIGKILL), with tasks running, leased and waiting",
    expect="the others run its tasks when its leases end, 10 s after its last sign of life",
    tier="test",
    bound_s=LEASE_S,
)
def test_a_whole_agent_is_killed(stage: Stage, recovery: Recovery) -> None:
    stage.start("steady")
    stage.start("victim", concurrency=4)
    stage.ready("steady", "victim")
    stage.load(60)
    stage.until(lambda: len(stage.held_by("victim")) >= 4, "the victim to hold tasks")
    lost = stage.held_by("victim")
    stage.kill("victim")
    killed = time.time()
    recovery.took(stage.all_end() - killed)
    assert lost
    stage.check()


@fault(
    "agents",
    "one pool process killed (SIGKILL)",
    expect="its task is counted as crashed and runs again at once; the agent and its other tasks go on",
    tier="test",
    bound_s=5,
)
def test_a_pool_process_is_killed(stage: Stage, recovery: Recovery) -> None:
    stage.start("parent")
    stage.ready("parent")
    gate = stage.gate()
    tasks = [stage.submit(gate=str(gate)) for _ in range(2)]
    victim = stage.began(tasks[0])
    stage.began(tasks[1])
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.time()
    recovery.took(stage.began(tasks[0], 2).at_ms / 1000 - killed)
    assert stage.record(tasks[0]).crashes == 1
    gate.touch()
    stage.all_end()
    stage.check()
    assert stage.record(tasks[1]).crashes == 0
    assert len(stage.effects(tasks[1], "begin")) == 1
