"""Faults of the network between agents and Redis, wrong clocks, and what is delivered twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from mesh.client import Handle
from mesh.core.states import State
from mesh.services.tasks import new_id
from mesh.store.tasks import Settlement
from mesh.verify.proxy import Proxy
from mesh.verify.witness import Submission
from tests.chaos.conftest import Recovery
from tests.chaos.fleet import ROOT
from tests.chaos.matrix import fault
from tests.chaos.netns import node
from tests.chaos.stage import Stage

LEASE_S = 20.0
TWO_HOURS_S = 7200


def cut_off(stage: Stage, recovery: Recovery, how: Callable[[Proxy], None], *, pool: str = "prefork") -> None:
    """An agent falls silent with running tasks. They end in the silence, run elsewhere, and it comes back to tell of them."""
    stage.start("victim", proxied=True, pool=pool)
    stage.start("steady")
    stage.ready("victim", "steady")
    gate = stage.gate()
    lost = stage.busy(gate)["victim"]
    how(stage.proxy("victim"))
    cut = time.time()
    gate.touch()
    recovery.took(max(stage.began(one, 2).at_ms for one in lost) / 1000 - cut)
    stage.all_end()
    stage.proxy("victim").heal()
    stage.kill("steady")
    assert stage.began(stage.submit()).agent == "victim", "it works again"
    stage.all_end()
    stage.check()
    assert {(one.attempt, one.agent) for one in map(stage.record, lost)} == {(2, "steady")}


@fault(
    "network",
    "an agent is cut off from Redis only: its connections die, new ones are refused",
    expect="its tasks run elsewhere when their leases end, its late results are refused, it works again",
    tier="ci",
    bound_s=LEASE_S,
)
def test_cut_off(stage: Stage, recovery: Recovery) -> None:
    cut_off(stage, recovery, Proxy.cut)


@fault(
    "network",
    "an agent is cut off silently: its connections stay open, and nothing passes",
    expect="the same",
    tier="ci",
    bound_s=LEASE_S,
)
def test_cut_off_silently(stage: Stage, recovery: Recovery) -> None:
    cut_off(stage, recovery, Proxy.freeze)


@fault(
    "network",
    "what an agent sends is swallowed, replies would reach it",
    expect="the same",
    tier="ci",
    bound_s=LEASE_S,
)
def test_requests_are_swallowed(stage: Stage, recovery: Recovery) -> None:
    cut_off(stage, recovery, lambda proxy: proxy.drop("requests"))


@fault(
    "network",
    "a partitioned agent with a pool of threads comes back after its tasks ran elsewhere",
    expect="tasks that cannot be killed end twice, and are recorded once",
    tier="ci",
    bound_s=LEASE_S,
)
def test_a_partitioned_agent_comes_back(stage: Stage, recovery: Recovery) -> None:
    cut_off(stage, recovery, Proxy.freeze, pool="threads")
    assert len([one for one in stage.effects(what="end") if one.agent == "victim"]) == 3


@fault(
    "network",
    "what an agent sends arrives, replies to it are swallowed",
    expect="results that arrive count once; tasks leased by a lost reply run elsewhere when that lease ends",
    tier="ci",
    bound_s=40,
)
def test_replies_are_swallowed(stage: Stage, recovery: Recovery) -> None:
    stage.start("victim", proxied=True)
    stage.start("steady")
    stage.ready("victim", "steady")
    gate = stage.gate()
    stage.busy(gate)
    stage.proxy("victim").drop("replies")
    deaf = time.time()
    gate.touch()
    for _ in range(20):
        stage.submit()
    recovery.took(stage.all_end() - deaf)
    stage.proxy("victim").heal()
    stage.kill("steady")
    assert stage.began(stage.submit()).agent == "victim", "it works again"
    stage.all_end()
    stage.check()


@fault(
    "network",
    "connections of all agents are reset again and again for 10 s",
    expect="work goes on between the resets; nothing is lost, nothing recorded twice",
    tier="ci",
    bound_s=30,
)
def test_resets_in_bursts(stage: Stage, recovery: Recovery) -> None:
    agents = ("a1", "a2")
    for one in agents:
        stage.start(one, proxied=True)
    stage.ready(*agents)
    over, storm = threading.Event(), time.time()

    def resets() -> None:
        while not over.wait(0.4):
            for one in agents:
                stage.proxy(one).reset()

    thread = threading.Thread(target=resets)
    thread.start()
    try:
        while time.time() < storm + 10:
            task = stage.submit(seconds=0.2)
            stage.until(lambda one=task: stage.effects(one), "it to begin")  # type: ignore[misc]
    finally:
        over.set()
        thread.join()
    calm = time.time()
    recovery.took(stage.all_end() - calm)
    stage.check()


def in_bad_weather(stage: Stage, *agents: str) -> float:
    """Work on agents whose network is slow or lossy; seconds for 40 short tasks beside one that outlasts its lease."""
    gate = stage.gate()
    long = stage.submit(gate=str(gate))
    started = stage.began(long).at_ms / 1000
    begun = time.time()
    tasks = [stage.submit(seconds=0.05) for _ in range(40)]
    took = (
        stage.until(lambda: all(stage.record(one).ended_already for one in tasks), "40 tasks to end") - begun
    )
    stage.until(lambda: time.time() > started + 15, "a lease and a half to be over")
    gate.touch()
    stage.all_end()
    assert stage.record(long).attempt == 1, "its lease held all the time"
    assert {one.agent for one in stage.effects()} == set(agents), "all of them worked"
    stage.check()
    return took


@fault(
    "network",
    "every packet between agents and Redis takes 300 ms there and back",
    expect="leases hold, work goes on, slower",
    tier="ci",
    bound_s=40,
)
def test_slow_network(stage: Stage, recovery: Recovery) -> None:
    for one in ("a1", "a2"):
        stage.proxy(one).delay(150)
        stage.start(one, proxied=True)
    stage.ready("a1", "a2")
    recovery.took(in_bad_weather(stage, "a1", "a2"))


@fault(
    "network",
    "300 ms there and back, and every fifth packet is sent twice (20 % loss, as TCP shows it)",
    expect="leases hold, work goes on, slower",
    tier="ci",
    bound_s=60,
)
def test_slow_and_lossy_network(stage: Stage, recovery: Recovery) -> None:
    for one in ("a1", "a2"):
        stage.proxy(one).delay(150)
        stage.proxy(one).lose(0.2, 300)
        stage.start(one, proxied=True)
    stage.ready("a1", "a2")
    recovery.took(in_bad_weather(stage, "a1", "a2"))


@fault(
    "network",
    "the kernel drops 20 % of an agent's packets, both ways (needs root)",
    expect="nothing is lost, nothing recorded twice; the agent works on, or its tasks run elsewhere",
    tier="all",
    bound_s=60,
    timeout_s=240,
)
def test_the_kernel_loses_packets(stage: Stage, recovery: Recovery) -> None:
    with node() as far:
        execute = stage.mesh.store.client.execute
        execute("CONFIG", "SET", "bind", f"127.0.0.1 {far.here}")
        execute("CONFIG", "SET", "protected-mode", "no")
        url = f"redis://{far.here}:{stage.server.port}/0"
        inside = ("ip", "netns", "exec", far.name, sys.executable)
        stage.start("far", python=inside, REDIS_URL=url)
        stage.start("near")
        stage.ready("far", "near")
        running = stage.busy(stage.gate())
        far.lose(20)
        begun = time.time()
        for _ in range(60):
            stage.submit(seconds=0.1)
        stage.until(lambda: time.time() > begun + 20, "20 s of loss")
        stage.gate().touch()
        stage.all_end(120)
        far.heal()
        healed = time.time()
        stage.kill("near")
        recovery.took(stage.began(stage.submit()).at_ms / 1000 - healed)
        stage.all_end()
        stage.check()
        assert running["far"]
        stage.kill("far")


def shifted(seconds: int) -> tuple[str, ...]:
    """What runs modules on a node whose clock is wrong."""
    return (sys.executable, "-m", "tests.chaos.shifted", str(seconds))


@fault(
    "network",
    "the clocks of agents are 2 h ahead and 2 h behind",
    expect="leases hold, nobody's tasks are taken, countdown and expiry mean what they say",
    tier="ci",
)
def test_agents_with_wrong_clocks(stage: Stage) -> None:
    stage.start_coordinator()
    stage.start("ahead", python=shifted(TWO_HOURS_S))
    stage.start("behind", python=shifted(-TWO_HOURS_S))
    stage.ready("ahead", "behind")
    gate = stage.gate()
    running = [task for tasks in stage.busy(gate).values() for task in tasks]
    began = {one.agent: one.at_ms / 1000 - time.time() for one in stage.effects(what="begin")}
    assert began["ahead"] > 7000 and began["behind"] < -7000, "their clocks are wrong"
    # longer than a lease
    waiting = stage.submit(options={"countdown_s": 15, "expires_s": 60})
    stage.until(lambda: stage.record(waiting).state is State.QUEUED, "its countdown")
    assert {stage.record(one).attempt for one in running} == {1}, "every lease held"
    gate.touch()
    stage.all_end()
    stage.check()
    record = stage.record(waiting)
    assert record.created and record.queued and 15_000 <= record.queued - record.created <= 22_000


@fault(
    "network",
    "the clock of a producer is 2 h wrong: eta and expires of Celery",
    expect="only what lies between its now and its times counts, on Redis's clock",
    tier="ci",
)
@pytest.mark.parametrize("seconds", [TWO_HOURS_S, -TWO_HOURS_S])
def test_a_producer_with_a_wrong_clock(stage: Stage, seconds: int) -> None:
    stage.start("worker")
    stage.ready("worker")
    number, task_id = len(stage.ledger), new_id()
    payload = json.dumps({"number": number, "effects": str(stage.effects_file)})
    words = [*shifted(seconds), "-m", "tests.chaos.producer", "10", "70", payload, task_id]
    subprocess.run(words, env=stage.environ(), cwd=ROOT, check=True, timeout=120)
    stage.ledger[task_id] = Submission(id=task_id, number=number, acknowledged=True)
    stage.all_end()
    record = stage.record(stage.mesh.handle(task_id))
    assert record.state is State.SUCCEEDED, record
    assert record.created and record.queued and 1_000 <= record.queued - record.created <= 20_000
    stage.check()


@fault(
    "network",
    "a message is delivered twice: its id is queued again while it runs and when it has ended",
    expect="the second delivery is dropped; one execution, one result",
    tier="ci",
)
def test_an_id_is_queued_twice(stage: Stage) -> None:
    stage.start("a1")
    stage.start("a2")
    stage.ready("a1", "a2")
    store, keys = stage.mesh.store, stage.mesh.store.keys

    def deliver_again(task: Handle) -> None:
        store.client.pipeline(("ZADD", keys.of("queue", "work"), 1, task.id), ("SADD", keys["ready"], "work"))
        store.tasks.ring(keys.of("bell", "work").encode())
        stage.until(
            lambda: store.client.execute("ZSCORE", keys.of("queue", "work"), task.id) is None,
            "the copy to be dropped",
        )

    gate = stage.gate()
    task = stage.submit(gate=str(gate))
    stage.began(task)
    deliver_again(task)
    gate.touch()
    stage.all_end()
    deliver_again(task)
    neighbour = stage.submit()
    stage.began(neighbour)
    stage.all_end()
    assert len(stage.effects(task, "begin")) == 1 and stage.record(task).attempt == 1
    stage.check()


@fault(
    "network",
    "a fetch reply reaches two agents, and both report a result for the same attempt",
    expect="the first result is recorded, the second changes nothing",
    tier="test",
)
def test_a_fetch_reply_reaches_two(stage: Stage) -> None:
    store = stage.mesh.store
    task = stage.submit()
    (leased,) = store.tasks.fetch(
        holder="a1#1", isolated=True, nonce=new_id()[:8], limit=1, held=0, queues=["work"]
    )
    words = []

    def settle(result: str) -> None:
        document = json.dumps({"status": "SUCCESS", "result": result}).encode()
        ended = Settlement(
            id=leased.id, fence=leased.fence, state=State.SUCCEEDED, document=document, keep=True
        )
        words.append(store.tasks.settle([ended])[0][0])

    both = [threading.Thread(target=settle, args=(name,)) for name in ("one", "two")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(words) == ["moved", "repeated"]
    assert store.tasks.counts()["work"]["succeeded"] == 1
    assert task.result(timeout_s=5) in ("one", "two")
    stage.until(lambda: len(stage.observer.pushes) == 1, "one end to be told")
