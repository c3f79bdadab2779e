"""A server, two agents of one pool, and in `killed` runs a thread that keeps killing them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

from tests.conformance.app import DEFAULT_QUEUE, SECOND_QUEUE, STOCK
from tests.conformance.ledger import open_gate, read_notes
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
HOST = "conformance"
CONCURRENCY = {"prefork": 2, "threads": 4, "gevent": 10, "solo": 1}
START_S = 30
STOP_S = 15
KILL_PAUSE_S = (0.5, 2.5)
"""Shortest and longest pause between a replacement's being ready and the next kill."""


def list_process_tree(pid: int) -> list[int]:
    """`pid` and all its living descendants, read from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree = [pid]
    for member in tree:
        tree.extend(children.get(member, []))
    return tree


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(kw_only=True)
class Agent:
    """One `celery worker` process with its children, in a process session of its own."""

    agent_id: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_key: str
    _asked: bool = False

    @property
    def nodename(self) -> str:
        return f"{self.agent_id}@{HOST}"

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            message = f"agent {self.agent_id} ended with {self.process.returncode}:\n{self.tail()}"
            raise AssertionError(message)
        return bool(read_notes(self.ready_key))

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, timeout_s=START_S, description=f"agent {self.agent_id} to be ready")

    def kill(self) -> None:
        """SIGKILL the parent and all children; returns when none of them lives."""
        tree = list_process_tree(self.process.pid)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until(
            lambda: not any(map(is_alive, tree)), description=f"the children of {self.agent_id} to end"
        )

    def ask_to_stop(self) -> None:
        if self.process.poll() is None and not self._asked:
            self._asked = True  # a second SIGTERM would cut the warm shutdown short
            self.process.terminate()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left after the grace time."""
        if self.process.poll() is None:
            self.ask_to_stop()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass(kw_only=True)
class Cluster:
    """What a test holds: the application, the agents, and how long to be patient."""

    pool: str
    run: str
    app: Celery
    environment: Mapping[str, str]
    logs: Path
    agents: list[Agent] = field(default_factory=list)
    kills: int = 0
    killer_error: BaseException | None = None
    _started: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _killer: threading.Thread | None = None

    @property
    def calm(self) -> bool:
        return self.run == "calm"

    @property
    def patience_s(self) -> float:
        """How long a result may take: a bound against waiting for ever. A machine that stands still for seconds at a time makes
        one kill into several lost leases."""
        return 20 if self.calm else 90

    def new_key(self) -> str:
        return uuid.uuid4().hex

    def get(self, result: Any, **options: Any) -> Any:
        """The value of an AsyncResult or a GroupResult."""
        return result.get(timeout=self.patience_s, **options)

    def wait_until(self, predicate: Any, description: str) -> None:
        wait_until(predicate, timeout_s=self.patience_s, description=description)

    def wait_for_state(self, result: Any, *states: str) -> None:
        self.wait_until(lambda: result.state in states, f"{result.id} to be {' or '.join(states)}")

    def wait_for_notes(self, key: str, count: int = 1) -> list[dict[str, Any]]:
        self.wait_until(lambda: len(read_notes(key)) >= count, f"{count} note(s) of {key}")
        return read_notes(key)

    def settle(self) -> None:
        """Return when tasks sent now have passed through each agent's queue: what came before is past, too."""
        from tests.conformance.tasks import echo

        for result in [echo.delay(number) for number in range(12)]:
            self.get(result)

    def start_agent(
        self, *, queues: str = f"{DEFAULT_QUEUE},{SECOND_QUEUE}", concurrency: int | None = None
    ) -> Agent:
        """Start one more agent; the caller waits until it is ready, and stops it."""
        with self._lock:
            self._started += 1
            agent_id = f"{self.pool}-{self.run}-{self._started}"
        ready_key = f"ready-{agent_id}-{self.new_key()}"
        identity = ["-Q", queues] if STOCK else ["--agent-id", agent_id, "--capabilities", queues]
        slots = str(concurrency or CONCURRENCY[self.pool])
        command = [sys.executable, "-m", "celery", "-A", "tests.conformance.worker_app", "worker"]
        command += ["-n", f"{agent_id}@{HOST}", "-P", self.pool, "-c", slots, "-E", "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", *identity]
        log = self.logs / f"{agent_id}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self.environment, "CONFORMANCE_READY_KEY": ready_key},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Agent(agent_id=agent_id, process=process, log=log, ready_key=ready_key)

    @contextmanager
    def extra_agent(self, *, queues: str) -> Iterator[Agent]:
        """An agent beside the two, for `queues` only, with one slot; the killer leaves it alone."""
        agent = self.start_agent(queues=queues, concurrency=1)
        try:
            agent.wait_until_ready()
            yield agent
        finally:
            agent.stop()

    @contextmanager
    def consuming(self, queue: str) -> Iterator[None]:
        """Let all agents consume `queue` too, for the length of the block."""
        everyone = {"reply": True, "timeout": self.patience_s, "limit": len(self.agents)}
        self.app.control.add_consumer(queue, **everyone)
        try:
            yield
        finally:
            self.app.control.cancel_consumer(queue, **everyone)

    def wait_until_answering(self, agent: Agent) -> None:
        """Return when `agent` hears remote control, which on gevent is a moment after it is ready."""

        def answers() -> bool:
            return bool(self.app.control.ping([agent.nodename], timeout=1, limit=1))

        self.wait_until(answers, f"agent {agent.agent_id} to answer a ping")

    def start(self) -> None:
        self.agents = [self.start_agent(), self.start_agent()]
        for agent in self.agents:
            agent.wait_until_ready()
            self.wait_until_answering(agent)
        if not self.calm:
            self._killer = threading.Thread(target=self._keep_killing, name="killer", daemon=True)
            self._killer.start()

    def replace_agent(self, agent: Agent) -> None:
        """Kill `agent` and put a new one, with an id of its own, into its place."""
        agent.kill()
        substitute = self.start_agent()
        self.agents[self.agents.index(agent)] = substitute
        substitute.wait_until_ready()
        if self.calm:
            self.wait_until_answering(substitute)

    def _keep_killing(self) -> None:
        try:
            while not self._stop.wait(random.uniform(*KILL_PAUSE_S)):
                self.replace_agent(random.choice(self.agents))
                self.kills += 1
        except BaseException as error:
            self.killer_error = error

    def stop(self) -> None:
        self._stop.set()
        if self._killer is not None:
            self._killer.join()
        for agent in self.agents:
            agent.ask_to_stop()
        for agent in self.agents:
            agent.stop()

    def describe_logs(self) -> Iterator[tuple[str, str]]:
        """The newest logs, by name."""
        for log in sorted(self.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[-4:]:
            yield log.name, "\n".join(log.read_text(errors="replace").splitlines()[-40:])


__all__ = ["Agent", "Cluster", "open_gate", "read_notes"]
