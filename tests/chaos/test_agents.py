"""Faults of agents: killed, paused, out of memory, at the worst moments."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from mesh.core.states import State
from mesh.workers.identity import process_start
from tests.chaos.conftest import Recovery
from tests.chaos.joining import Joiner, joining
from tests.chaos.limits import limit_address_space, limited_memory
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage

LEASE_S = 20.0  # 10 s of lease, the survivor's wake-up, and what a busy machine needs


def children(pid: int) -> list[int]:
    """The pool processes of an agent."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@fault(
    "agents",
    "a whole agent is killed (SIGKILL) with tasks running, leased and waiting",
    expect="the others run its tasks when their leases end, with or without a coordinator",
    tier="test",
    bound_s=LEASE_S,
)
@pytest.mark.parametrize(
    ("pool", "coordinator"), [("prefork", True), pytest.param("threads", False, marks=pytest.mark.ci)]
)
def test_a_whole_agent_is_killed(stage: Stage, recovery: Recovery, pool: str, coordinator: bool) -> None:
    if coordinator:
        stage.start_coordinator()
    stage.start("steady", pool=pool)
    stage.start("victim", pool=pool, concurrency=4)
    stage.ready("steady", "victim")
    stage.load(60)
    stage.until(lambda: len(stage.held_by("victim")) >= 4, "the victim to hold tasks")
    stage.kill("victim")
    killed = time.time()
    recovery.took(stage.all_end() - killed)
    stage.check()


@fault(
    "agents",
    "one pool process is killed (SIGKILL)",
    expect="its task counts one crash and runs again at once; the agent and its other tasks go on",
    tier="test",
    bound_s=5,
)
def test_a_pool_process_is_killed(stage: Stage, recovery: Recovery) -> None:
    stage.start("parent")
    stage.ready("parent")
    gate = stage.gate()
    task, neighbour = stage.busy(gate)["parent"]
    os.kill(stage.began(task).pid, signal.SIGKILL)
    killed = time.time()
    recovery.took(stage.began(task, 2).at_ms / 1000 - killed)
    assert stage.record(task).crashes == 1
    gate.touch()
    stage.all_end()
    stage.check()
    assert (stage.record(neighbour).crashes, stage.record(neighbour).attempt) == (0, 1)


@fault(
    "agents",
    "out of memory: the kernel kills the pool process that takes too much",
    expect="as for a killed pool process",
    tier="ci",
    bound_s=10,
)
def test_the_kernel_kills_a_pool_process(stage: Stage, recovery: Recovery) -> None:
    with limited_memory(400) as enter:
        stage.start("parent")
        enter(stage.processes["parent"].pid)
        stage.ready("parent")
        task = stage.submit(hoards=True)
        hoarder = stage.began(task).pid
        killed = stage.until(lambda: not process_start(hoarder), "the kernel to kill the process")
        recovery.took(stage.all_end() - killed)
        assert stage.record(task).crashes == 1
        stage.check()
        assert stage.processes["parent"].poll() is None
        stage.kill("parent")


@fault(
    "agents",
    "out of memory: the kernel kills the whole agent (pool of threads)",
    expect="as for a killed agent: another runs its tasks when their leases end",
    tier="ci",
    bound_s=LEASE_S,
)
def test_the_kernel_kills_a_whole_agent(stage: Stage, recovery: Recovery) -> None:
    with limited_memory(400) as enter:
        stage.start("victim", pool="threads")
        enter(stage.processes["victim"].pid)
        stage.ready("victim")
        hoarder, neighbour = stage.submit(hoards=True), stage.submit(gate=str(stage.gate()))
        stage.began(neighbour)
        stage.start("steady", pool="threads")
        stage.until(lambda: stage.processes["victim"].poll() is not None, "the kernel to kill the agent")
        died = time.time()
        stage.gate().touch()
        recovery.took(stage.all_end() - died)
        stage.check()
        assert stage.record(hoarder).attempt == stage.record(neighbour).attempt == 2


@fault(
    "agents",
    "out of memory: Python gets none (RLIMIT_AS)",
    expect="a MemoryError is a failure as any other: the task is tried again, the agent goes on",
    tier="ci",
    bound_s=20,
)
def test_python_gets_no_memory(stage: Stage, recovery: Recovery) -> None:
    stage.start("tight", concurrency=1)
    stage.ready("tight")
    for pid in children(stage.processes["tight"].pid):
        limit_address_space(pid, more_mb=200)
    task = stage.submit(hoards=True)
    stage.until(lambda: stage.record(task).failures == 1, "the first attempt to fail")
    failed = time.time()
    recovery.took(stage.all_end() - failed)
    record = stage.record(task)
    assert (record.crashes, record.failures, record.attempt) == (0, 1, 2)
    stage.check()


def paused_for(stage: Stage, recovery: Recovery, seconds: float) -> None:
    """SIGSTOP to an agent with running tasks, which end when it goes on: too late."""
    stage.start("victim")
    stage.start("steady")
    stage.ready("victim", "steady")
    gate = stage.gate()
    lost = stage.busy(gate)["victim"]
    stage.pause("victim")
    paused = time.time()
    gate.touch()
    recovery.took(max(stage.began(one, 2).at_ms for one in lost) / 1000 - paused)
    stage.all_end()
    stage.until(lambda: time.time() > paused + seconds, "the pause to be over", seconds + 10)
    stage.resume("victim")
    stage.kill("steady")
    assert stage.began(stage.submit()).agent == "victim", "it works again"
    stage.all_end()
    stage.check()
    assert {(one.attempt, one.agent) for one in map(stage.record, lost)} == {(2, "steady")}


@fault(
    "agents",
    "an agent is paused for 15 s and resumed (SIGSTOP)",
    expect="its tasks run elsewhere, its late results are refused, it works again",
    tier="ci",
    bound_s=LEASE_S,
)
def test_an_agent_is_paused(stage: Stage, recovery: Recovery) -> None:
    paused_for(stage, recovery, 15)


@fault(
    "agents",
    "an agent is paused for 60 s and resumed (SIGSTOP)",
    expect="the same",
    tier="all",
    bound_s=LEASE_S,
)
def test_an_agent_is_paused_for_long(stage: Stage, recovery: Recovery) -> None:
    paused_for(stage, recovery, 60)


@fault(
    "agents",
    "an agent is killed between the fetch of a task and its start",
    expect="the task runs elsewhere when its lease ends; no crash is counted",
    tier="ci",
    bound_s=LEASE_S,
)
def test_killed_between_fetch_and_start(stage: Stage, recovery: Recovery) -> None:
    stage.start("victim", concurrency=1)
    stage.start("steady")
    stage.ready("victim", "steady")
    stage.mesh.cordon("steady")
    (pool_process,) = children(stage.processes["victim"].pid)
    os.kill(pool_process, signal.SIGSTOP)  # takes nothing from its pipe: what is fetched does not start
    task = stage.submit()
    stage.until(lambda: stage.record(task).state is State.LEASED, "the task to be fetched")
    stage.kill("victim")
    killed = time.time()
    assert stage.record(task).state is State.LEASED and not stage.effects(task)
    stage.mesh.uncordon("steady")
    recovery.took(stage.began(task).at_ms / 1000 - killed)
    stage.all_end()
    assert (stage.record(task).attempt, stage.record(task).crashes) == (2, 0)
    stage.check()


@fault(
    "agents",
    "an agent is killed between the work of a task and the record of its result",
    expect="the task is executed a second time, and recorded once",
    tier="ci",
    bound_s=LEASE_S,
)
def test_killed_between_work_and_settle(stage: Stage, recovery: Recovery) -> None:
    stage.start("victim", proxied=True)
    stage.ready("victim")
    after = stage.gate("after")
    task = stage.submit(after=str(after))
    stage.began(task, what="end")
    stage.start("steady")
    stage.ready("steady")
    stage.proxy("victim").freeze()  # its result stays on the way
    after.touch()
    frozen = time.time()
    recovery.took(stage.began(task, 2).at_ms / 1000 - frozen)
    stage.kill("victim")
    stage.all_end()
    assert [one.attempt for one in stage.effects(task, "end")] == [1, 2]
    stage.check()


@fault(
    "agents",
    "an agent is killed and started again under its id",
    expect="it proves that its former life is over and takes its tasks over at once, before their leases end",
    tier="ci",
    bound_s=20,  # nearly all of it is the start of a process
)
def test_restart_under_the_same_id(stage: Stage, recovery: Recovery) -> None:
    stage.start("phoenix")
    stage.ready("phoenix")
    gate = stage.gate()
    lost = stage.busy(gate)["phoenix"]
    stage.kill("phoenix")
    killed = time.time()
    gate.touch()
    stage.start("phoenix")
    recovery.took(stage.all_end() - killed)
    assert {stage.record(one).attempt for one in lost} == {2}
    stage.check()


@fault(
    "agents",
    "200 agents join at once: 196 registrations that beat, without pools, and 4 real agents",
    expect="all are there within seconds, each hears of new requirements; the cost of an agent does not grow with their number",
    tier="all",
    bound_s=60,
    timeout_s=300,
)
def test_200_agents_join_at_once(stage: Stage, recovery: Recovery) -> None:
    def commands() -> int:
        rows = stage.mesh.store.client.execute("INFO", "stats").decode().splitlines()
        (found,) = [row for row in rows if row.startswith("total_commands_processed:")]
        return int(found.partition(":")[2])

    def cost(agents: list[Joiner], before: int) -> float:
        """Commands of one agent, from its joining on, for some beats."""
        joined = stage.until(lambda: all(one.joined_at for one in agents), "all to join")
        stage.until(lambda: time.time() > joined + 7, "some beats")
        return (commands() - before) / len(agents)

    before = commands()
    with joining(stage.mesh.settings, 10, ("idle",), "few") as few:
        cost_of_few = cost(few, before)
    before, begun = commands(), time.time()
    with joining(stage.mesh.settings, 196, ("work", "rare"), "many") as many:
        real = [f"real{index}" for index in range(4)]
        for one in real:
            stage.start(one, pool="threads", capabilities="work,rare")
        cost_of_many = cost(many, before)
        recovery.took(max(one.joined_at for one in many) - begun)
        stage.ready(*real)
        asked = time.time()
        stage.submit(options={"requires": ["rare"]})
        stage.until(lambda: all("rare+work" in one.heard for one in many), "all to hear of a requirement")
        assert max(one.heard["rare+work"] for one in many) - asked < 15
        stage.load(20)
        assert len(stage.mesh.agents(capability="rare")) == 200
        stage.all_end()
    assert not [one.error for one in many if one.error]
    assert cost_of_many < 2 * cost_of_few, (cost_of_few, cost_of_many)
    stage.check()
