"""A small mesh on this machine, for `mesh demo` and `mesh up`: a server, a coordinator, agents and Flower.

Every process leads a process group of its own: Ctrl-C reaches this program only, which then stops them in order, and
one signal kills an agent with its pool. On Linux they also end when this program is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mesh.cli.deploy import worker_command
from mesh.cli.flower import flower_command
from mesh.client import Mesh
from mesh.errors import Conflict, CoordinatorUnavailable, MeshError
from mesh.services import namespaces
from mesh.settings import Settings
from mesh.store.coordinators import Coordinators
from mesh.store.embedded import Server, find_or_start, free_port

__all__ = ["Fleet", "Member", "stoppable"]
START_S = 60.0
GRACE_S = 10.0
_PAUSE_S = 0.05
_SECRETS = ("MESH_JWT_SECRET", "MESH_JWT_SECRET_NEW")
# What is said of one process must not reach three agents, and two names of one setting must not disagree.
_NOT_HANDED_ON = (
    "AGENT_ID", "AGENT_NAME", "AGENT_PORT", "AGENT_CAPABILITIES", "AGENT_NAMESPACE", "COORDINATOR_ID",
    "MESH_COORDINATOR_PORT", "REDIS_URL_FILE", *(f"{name}{end}" for name in _SECRETS for end in ("", "_FILE")),
)  # fmt: skip
# Runs in place of the program until exec: dies with its parent. The check closes the race with one that died before.
_TRAMPOLINE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1 = PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(kw_only=True)
class Member:
    """One process of the fleet."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: int) -> None:
        """Send a signal to it and to all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut would."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@dataclass(kw_only=True)
class Fleet:
    """Use as a context manager: starts nothing by itself, stops everything at the end.

    `environment`: settings of all its processes; `folder`: where they run (None: in a folder of their own); `keep`: leave
    the logs and what is in a server that is not its own.
    """

    settings: Settings
    namespace: str
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    members: list[Member] = field(default_factory=list)
    keep: bool = False
    server: Server | None = None
    redis_url: str = ""
    flower_port: int = 0

    def __enter__(self) -> Fleet:
        if self.settings.jwt_secret is None:  # of this fleet alone, kept nowhere
            self.settings = dataclasses.replace(self.settings, jwt_secret=secrets.token_hex(32))
        _ = self.settings.keyring  # one that can be guessed is told before anything starts
        self.directory = Path(tempfile.mkdtemp(prefix="mesh-"))
        try:
            self.redis_url, self.server = find_or_start(self.settings)
            self.mesh = Mesh(namespace=self.namespace, redis_url=self.redis_url, settings=self.settings)
            self.mesh.store.check()
        except BaseException:
            self._stop_server()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A second Ctrl-C would leave processes behind; this ends within the grace time anyhow.
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        former = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
        try:
            self.stop_members()
            self.mesh.close()
            self._stop_server()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop_server(self) -> None:
        if self.server is not None:
            self.server.stop()
        if not self.keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    # -- starting

    @property
    def secret_variables(self) -> dict[str, str]:
        """The mesh's secrets, as the variables that name them."""
        given = zip(_SECRETS, (self.settings.jwt_secret, self.settings.jwt_secret_new), strict=True)
        return {name: value for name, value in given if value}

    def spawn(self, name: str, command: list[str], **environment: str) -> Member:
        """Start a process of the fleet that knows the mesh's secrets; its output goes to a log."""
        return self._spawn(name, command, {**self.secret_variables, **self.environment, **environment})

    def _spawn(self, name: str, command: list[str], environment: Mapping[str, str]) -> Member:
        handed = {key: value for key, value in os.environ.items() if key not in _NOT_HANDED_ON}
        handed |= {"REDIS_URL": self.redis_url, "MESH_NAMESPACE": self.namespace}
        handed.setdefault("LOG_FORMAT", "text")  # read by people
        # Whoever stops a fleet waits for it: what runs goes back well before it would be killed, no balancer is waited for.
        handed |= {"MESH_DRAIN_GRACE_MS": str(int(GRACE_S * 500)), "MESH_LAME_DUCK_MS": "0"}
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]
        log = self.directory / f"{name}.log"
        with log.open("ab") as out:  # of all its lives
            process = subprocess.Popen(
                command,
                cwd=self.folder or self.directory,
                env={**handed, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        member = Member(name=name, process=process, log=log)
        self.members.append(member)
        return member

    def start_agents(
        self,
        names: list[str],
        *,
        capabilities: str = "",
        pool: str = "prefork",
        concurrency: int = 2,
        include: tuple[str, ...] = (),
        **environment: str,
    ) -> list[Member]:
        """Start agents of these ids. Without capabilities they offer what the task types that they import need."""
        command = worker_command(pool=pool, concurrency=concurrency, include=include)
        more = {"AGENT_CAPABILITIES": capabilities} if capabilities else {}
        return [self.spawn(name, command, AGENT_ID=name, **more, **environment) for name in names]

    def start_coordinator(
        self, name: str = "coordinator", *, port: int | None = None, **environment: str
    ) -> Member:
        """Start a coordinator on loopback; without a port, its own choice is found in the registry."""
        command = [
            sys.executable,
            "-c",
            "import mesh.cli; mesh.cli.main()",
            "coordinator",
            "--host",
            "127.0.0.1",
        ]
        command += ["--port", str(port)] if port else []
        return self.spawn(name, command, COORDINATOR_ID=_coordinator_id(name), **environment)

    def start_flower(self) -> Member:
        """Start Flower on a free loopback port."""
        self.flower_port = free_port()
        return self._spawn("flower", flower_command(port=self.flower_port), self.environment)

    # -- waiting

    def wait(self, member: Member, ready: Callable[[], bool]) -> None:
        """Wait for a process to be ready. Raises `CoordinatorUnavailable` with its last words if it never is."""
        deadline = time.monotonic() + START_S
        while not ready():
            code = member.process.poll()
            if code is not None or time.monotonic() > deadline:
                what = f"ended with {code}" if code is not None else f"was not ready within {START_S:.0f} s"
                kind = Conflict if code == Conflict.exit_code else CoordinatorUnavailable
                raise kind(f"{member.name} {what}: {member.last_words()}")
            time.sleep(_PAUSE_S)

    def wait_for_agents(self, agents: list[Member]) -> None:
        """Wait until all have joined."""
        for agent in agents:
            self.wait(agent, lambda name=agent.name: name in self._joined())  # type: ignore[misc]

    def _joined(self) -> set[str]:
        return {agent.id for agent in self.mesh.agents(status="healthy")}

    def coordinator_url(self, coordinator: Member) -> str:
        """Wait until it runs; where its HTTP service answers."""
        registry = Coordinators(self.mesh.store.client, self.mesh.store.keys)
        known_as = _coordinator_id(coordinator.name)
        self.wait(coordinator, lambda: registry.get(known_as) is not None)
        return f"http://127.0.0.1:{(registry.get(known_as) or {})['port']}"

    def flower_url(self, flower: Member) -> str:
        """Wait until it answers; its address."""
        url = f"http://127.0.0.1:{self.flower_port}"
        self.wait(flower, lambda: _answers(f"{url}/healthcheck"))
        return url

    # -- stopping

    def stop_members(self) -> None:
        """SIGTERM to all at once, SIGKILL to the groups of those that are still there after the grace time."""
        for member in self.members:
            if member.process.poll() is None:
                # To the main process only: Celery's drains its pool itself.
                member.process.terminate()
        deadline = time.monotonic() + GRACE_S
        for member in self.members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, deadline - time.monotonic()))
            member.kill()
        self.members.clear()

    def forget_namespace(self) -> None:
        """Remove what this fleet wrote into a server that is not its own."""
        if self.server is None and not self.keep:
            with contextlib.suppress(MeshError):
                namespaces.drop(self.mesh.store)


def _coordinator_id(name: str) -> str:
    """Unique on this machine: coordinators of all namespaces share one list."""
    return f"{name}-{os.getpid()}"


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # loopback, whatever the proxy settings say
    try:
        with opener.open(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
