"""Faults of Redis: it dies, hangs, is full, fails over, loses its connections. Every process goes on by itself."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.client import Handle
from mesh.core.states import State
from mesh.errors import StoreUnavailable
from mesh.services.tasks import new_id
from mesh.store.client import Client
from mesh.store.embedded import start_server
from mesh.verify.witness import Submission
from tests.chaos.conftest import Recovery
from tests.chaos.matrix import fault
from tests.chaos.sentinel import MAX_LAG_S, Failover
from tests.chaos.stage import Stage
from tests.tokens import bearer
from tests.waiting import wait_until

AGENTS = ("one", "two")
DEBIAN = shutil.which("redis-server")


class Producer:
    """Submits short tasks one after the other; one that was refused is submitted again under its id, until it is taken."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._stop = stage, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.refused: list[str] = []

    def __enter__(self) -> Producer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        ledger = self._stage.ledger
        while not self._stop.wait(0.05):
            number, task_id, tries = len(ledger), new_id(), 0
            body = {"number": number, "effects": str(self._stage.effects_file), "seconds": 0.02}
            taken = False
            while not taken and not (tries and self._stop.wait(0.2)):
                tries += 1
                ledger[task_id] = Submission(id=task_id, number=number, acknowledged=False, tries=tries)
                with self._noted():
                    self._stage.mesh.submit("work", body, task_id=task_id)
                    taken = True
            ledger[task_id] = Submission(id=task_id, number=number, acknowledged=taken, tries=tries)
            self._stage.observer.watch(task_id)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            self.refused.append(str(error))


class Play:
    """Two agents under a stream of tasks, and one long task that must not notice anything."""

    def __init__(self, stage: Stage, *, proxied: bool = False) -> None:
        self.stage = stage
        for name in AGENTS:
            stage.start(name, proxied=proxied)
        stage.ready(*AGENTS)
        self.long: Handle = stage.submit(gate=str(stage.gate()))
        stage.began(self.long)
        self.producer = Producer(stage)

    def flows(self, since: float, timeout_s: float = 60) -> float:
        """Wait until a task has ended that began after `since`; when it ended."""

        def ended() -> list[float]:
            began = {one.fence for one in self.stage.effects(what="begin") if one.at_ms / 1000 >= since}
            return [one.at_ms / 1000 for one in self.stage.effects(what="end") if one.fence in began]

        self.stage.until(ended, "a task to begin and end", timeout_s)
        return min(ended())

    def finish(self) -> None:
        """All that was acknowledged ends, exactly once; nothing was taken for dead."""
        self.stage.gate().touch()
        self.stage.all_end()
        evidence = self.stage.check()
        assert all(record.crashes == 0 for record in evidence.records.values())
        assert self.stage.record(self.long).attempt == 1
        assert len(self.stage.effects(self.long, "begin")) == 1
        for name in AGENTS:
            assert self.stage.processes[name].poll() is None, f"{name} has ended"


def silence(url: str) -> None:
    """Wait until nobody answers there."""

    def gone() -> bool:
        try:
            Client(url).execute("PING")
        except StoreUnavailable:
            return True
        return False

    wait_until(gone, 10, "Redis to be gone")


@fault(
    "redis",
    "killed (SIGKILL) under load and started again, append-only file on",
    expect="nothing acknowledged is lost, nothing runs twice; agents, coordinators and clients go on by themselves",
    tier="test",
    bound_s=10,
)
def test_redis_is_killed(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage)
    stage.start_coordinator()
    with play.producer:
        play.flows(time.time())
        stage.until(lambda: answers(stage) == 404, "the coordinator to be ready")
        stage.server.kill()
        silence(stage.server.url)
        assert answers(stage) == 503
        stage.server.start()
        recovery.took(play.flows(back := time.time()) - back)
        stage.until(lambda: answers(stage) == 404, "the coordinator to be ready again", 10)
    play.finish()


def answers(stage: Stage) -> int:
    """The coordinator's answer about an unknown task: 404, while Redis is away 503 with Retry-After, 0 for none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        url = f"{stage.url()}/v1/namespaces/stage/tasks/none"
        opener.open(urllib.request.Request(url, headers=bearer()), timeout=30).close()
    except urllib.error.HTTPError as error:
        return error.code if error.code != 503 or error.headers["Retry-After"] else 0
    except OSError:
        return 0
    return 200


@fault(
    "redis",
    "stopped for 15 s, longer than a lease, and started again",
    expect="nothing is taken for dead because Redis was down: leases begin anew, nobody is counted absent",
    tier="ci",
    bound_s=10,
)
def test_redis_is_restarted(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage)
    with play.producer:
        play.flows(time.time())
        os.kill(stage.server.pid, signal.SIGTERM)
        stage.until(lambda: not stage.server.running, "the server to end", 15)
        down_until = time.time() + 15
        stage.until(lambda: time.time() > down_until, "15 s", 20)
        stage.server.start()
        recovery.took(play.flows(back := time.time()) - back)
    assert play.producer.refused
    clear = ("cannot be reached", "is loading its data")
    assert [one for one in play.producer.refused if not any(words in one for words in clear)] == []
    play.finish()


@fault(
    "redis",
    "hung for 20 s (SIGSTOP), two leases long",
    expect="nothing is taken for dead because Redis slept; what was submitted meanwhile is taken, or refused and submitted again",
    tier="ci",
    bound_s=10,
)
def test_redis_hangs(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage)
    with play.producer:
        play.flows(time.time())
        os.kill(stage.server.pid, signal.SIGSTOP)
        hangs_until = time.time() + 20
        stage.until(lambda: time.time() > hangs_until, "20 s", 30)
        os.kill(stage.server.pid, signal.SIGCONT)
        recovery.took(play.flows(back := time.time()) - back)
    play.finish()


@fault(
    "redis",
    "memory full (maxmemory reached)",
    expect="submissions are refused with one sentence, running work is recorded; all goes on when there is room",
    tier="test",
    bound_s=5,
)
def test_redis_is_full(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage)
    control = Client(stage.server.url)
    running = stage.submit(gate=str(stage.gate("short")))
    waits = [stage.submit() for _ in range(5)]
    stage.began(running)
    control.execute("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreUnavailable, match=r"is full \(maxmemory\) and takes nothing new"):
        stage.mesh.submit("work", {"number": 0})
    stage.gate("short").touch()
    assert running.result(timeout_s=20)["number"] == stage.ledger[running.id].number
    for one in waits:  # what was taken before is still fetched, run and recorded
        one.result(timeout_s=20)
    with play.producer:
        wait_until(lambda: play.producer.refused, 10, "a submission to be refused")
        control.execute("CONFIG", "SET", "maxmemory", "0")
        recovery.took(play.flows(back := time.time()) - back)
    play.finish()


@fault(
    "redis",
    "disk full: the append-only file cannot grow",
    expect="writes are refused as an outage, results wait in their agents; all goes on when there is room",
    tier="ci",
    bound_s=10,
)
def test_the_disk_is_full(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage)
    with play.producer:
        play.flows(time.time())
        written = max(file.stat().st_size for file in (stage.folder / "redis").glob("**/*.aof"))
        former = resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, (written + 8192, former[1]))
        stage.until(lambda: play.producer.refused, "a submission to be refused")
        assert "cannot write to its disk" in play.producer.refused[0]
        full_until = time.time() + 12  # longer than a lease
        stage.until(lambda: time.time() > full_until, "12 s", 20)
        resource.prlimit(stage.server.pid, resource.RLIMIT_FSIZE, former)
        recovery.took(play.flows(back := time.time()) - back)
    play.finish()


@fault(
    "redis",
    "connections reset in bursts, ten times in five seconds",
    expect="each is made anew; replies that were lost are asked for again, nothing runs twice because of it",
    tier="test",
    bound_s=10,
)
def test_connections_are_reset(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage, proxied=True)
    with play.producer:
        play.flows(time.time())
        for _ in range(10):
            for name in AGENTS:
                stage.proxy(name).reset()
            pause = time.time() + 0.5
            stage.until(lambda until=pause: time.time() > until, "half a second", 5)  # type: ignore[misc]
        recovery.took(play.flows(back := time.time()) - back)
    play.finish()


@fault(
    "redis",
    "half-open sockets: every connection of the agents is dead, and nobody was told",
    expect="they are found out within 15 s, the beat's soon enough to keep the leases; new ones are made",
    tier="ci",
    bound_s=20,
)
def test_sockets_are_half_open(stage: Stage, recovery: Recovery) -> None:
    play = Play(stage, proxied=True)
    with play.producer:
        play.flows(time.time())
        for name in AGENTS:
            stage.proxy(name).strand()
        recovery.took(play.flows(back := time.time() + 1) - back)
    play.finish()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Stage]:
    """A stage on a master, a replica and three sentinels."""
    made = Stage(tmp_path, Failover(tmp_path))
    try:
        yield made
    finally:
        made.close()


@fault(
    "redis",
    "master killed under load, failed over by Sentinel",
    expect="all ask the sentinels for the new master and go on; what the replica had is all there",
    tier="ci",
    bound_s=15,
)
def test_the_master_is_failed_over(watched: Stage, recovery: Recovery) -> None:
    play = Play(watched)
    with play.producer:
        play.flows(time.time())
        watched.server.first.kill()
        back = watched.until(watched.server.promoted, "the replica to be promoted", 30)
        recovery.took(play.flows(back) - back)
    forget_what_was_lost(watched)
    play.finish()


@fault(
    "redis",
    "failed over with a cut link: the replica had missed the last writes",
    expect="what was acknowledged in those seconds is lost, and nothing else; holders of one attempt number are told apart, "
    "nothing is recorded twice, nothing is stuck",
    tier="ci",
    bound_s=30,
)
def test_failed_over_with_a_cut_link(watched: Stage, recovery: Recovery) -> None:
    play = Play(watched)
    with play.producer:
        play.flows(time.time())
        watched.server.cut_link()
        cut = time.time()
        play.flows(cut)
        before = set(watched.ledger)
        watched.until(
            lambda: len(set(watched.ledger) - before) >= 10, "submissions that the replica does not hear of"
        )
        watched.server.first.kill()
        back = watched.until(watched.server.promoted, "the replica to be promoted", 30)
        recovery.took(play.flows(back) - back)
    lost = forget_what_was_lost(watched)
    assert lost, "the link was cut: the last submissions cannot be there"
    watched.gate().touch()
    watched.all_end()
    # One whose result was lost runs again: its attempt looks like one whose agent died, and may count as a crash.
    taken = [one.id for one in watched.ledger.values() if one.acknowledged]
    records = watched.mesh.store.tasks.records(taken)
    assert all(record is not None and record.state is State.SUCCEEDED for record in records)
    assert watched.mesh.store.tasks.counts()["work"]["succeeded"] == len(taken)


def forget_what_was_lost(stage: Stage) -> list[str]:
    """Take what Redis has lost off the ledger; its ids."""
    known = stage.mesh.store.tasks.records(list(stage.ledger))
    lost = [task_id for task_id, record in zip(stage.ledger, known, strict=True) if record is None]
    for task_id in lost:
        del stage.ledger[task_id]
    return lost


@fault(
    "redis",
    "master without its replica, min-replicas-to-write 1",
    expect=f"after {MAX_LAG_S} s it takes no writes: what a failover can lose is bounded",
    tier="ci",
)
def test_a_master_alone_takes_no_writes(tmp_path: Path) -> None:
    servers = Failover(tmp_path, min_replicas=1)
    try:
        client = Client(servers.url)
        client.execute("SET", "key", "value")
        servers.cut_link()

        def refused() -> bool:
            try:
                client.execute("SET", "key", "value")
            except StoreUnavailable as error:
                return "min-replicas-to-write" in str(error)
            return False

        wait_until(refused, MAX_LAG_S + 10, "writes to be refused")
        assert client.execute("GET", "key") == b"value"
    finally:
        servers.stop()


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Stage]:
    """A stage on the redis-server of this system."""
    if DEBIAN is None:
        pytest.skip("there is no redis-server on PATH")
    made = Stage(tmp_path, start_server(tmp_path / "redis", binary=Path(DEBIAN)))
    try:
        yield made
    finally:
        made.close()


@fault(
    "redis",
    "killed and started again, on the system's redis-server",
    expect="as on the embedded server",
    tier="ci",
    bound_s=10,
)
def test_redis_is_killed_on_debians(debian: Stage, recovery: Recovery) -> None:
    play = Play(debian)
    with play.producer:
        play.flows(time.time())
        debian.server.kill()
        silence(debian.server.url)
        debian.server.start()
        recovery.took(play.flows(back := time.time()) - back)
    play.finish()
