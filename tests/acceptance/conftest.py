"""Real processes through the real command line, in a namespace of the test's own."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mesh.cli.run import run
from mesh.client import Mesh
from mesh.errors import StoreUnavailable
from mesh.services import namespaces
from mesh.store.coordinators import Coordinators
from tests.waiting import wait_until

if TYPE_CHECKING:
    from selenium import webdriver

MESH = [str(Path(sys.executable).with_name("mesh"))]
CELERY = [sys.executable, "-m", "celery", "-A", "mesh"]
START_S = 60
STOP_S = 30
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1440,900"
)

#: Task types as a user writes them, under the commonest file name. `gate` blocks until somebody writes to its FIFO.
USER_TASKS = """
import os
from mesh import task

@task("gate")
def gate(payload):
    with open(payload["started"], "a") as started:
        started.write(os.environ["AGENT_ID"] + "\\n")
    with open(payload["fifo"]) as fifo:
        return fifo.read()
"""


@dataclass(kw_only=True)
class Running:
    """A process in a group of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, timeout_s: float = STOP_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.output()}") from None


@dataclass(kw_only=True)
class Gate:
    """A task that waits for the test."""

    started: Path
    fifo: Path

    @property
    def payload(self) -> dict[str, str]:
        return {"started": str(self.started), "fifo": str(self.fifo)}

    def starts(self) -> list[str]:
        """The agents that have started it, in order."""
        return self.started.read_text().split() if self.started.exists() else []

    def wait_until_started(self, times: int = 1) -> None:
        wait_until(lambda: len(self.starts()) >= times, START_S, f"start {times} of the task")

    def open(self, word: str = "through") -> None:
        """Let it end; its result is `word`."""
        self.fifo.write_text(word)


@dataclass(kw_only=True)
class Place:
    """A namespace, and a folder that its processes run in."""

    redis_url: str
    namespace: str
    folder: Path
    environ: dict[str, str]
    mesh: Mesh
    running: list[Running] = field(default_factory=list)

    def environment(self, changes: dict[str, str | None]) -> dict[str, str]:
        merged = {**self.environ, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def run(
        self, *words: str, command: list[str] = MESH, stdin: bytes = b"", timeout_s: float = START_S,
        **environ: str | None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run to the end."""
        done = subprocess.run(
            [*command, *words], input=stdin, capture_output=True, cwd=self.folder, timeout=timeout_s, check=False,
            env=self.environment(environ),
        )  # fmt: skip
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def call(
        self, *words: str, stdin: bytes = b"", **environ: str | None
    ) -> subprocess.CompletedProcess[str]:
        """What `run` does, in this process: everything but the console script and the start of an interpreter."""
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.chdir(self.folder)
            with only_environment(self.environment(environ)):
                code = run(words)
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def start(self, *words: str, command: list[str] = MESH, **environ: str | None) -> Running:
        """Start in the background; killed at the end of the test."""
        log = self.folder / f"process-{len(self.running) + 1}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=self.folder,
                env=self.environment(environ), start_new_session=True,
            )  # fmt: skip
        self.running.append(Running(process=process, log=log))
        return self.running[-1]

    def wait_for(self, process: Running, ready: Callable[[], object], what: str) -> None:
        def check() -> object:
            answer = ready()
            if not answer and process.process.poll() is not None:
                raise AssertionError(f"{what}: ended with {process.process.returncode}:\n{process.output()}")
            return answer

        wait_until(check, START_S, what)

    def agent(
        self, agent_id: str, *words: str, command: list[str] | None = None, **environ: str | None
    ) -> Running:
        """Start an agent (solo pool, unless `words` say otherwise), and wait until it has joined."""
        if "--pool" not in words and command is None:
            words = (*words, "--pool", "solo")
        process = self.start(
            *(command or [*MESH, "deploy"]), "--agent-id", agent_id, *words, command=[], **environ
        )
        self.wait_for(
            process, lambda: self.pid_of(agent_id) == process.process.pid, f"agent {agent_id} to join"
        )
        return process

    def pid_of(self, agent_id: str) -> int:
        """Process id of an agent that is registered and has not left, 0 if there is none."""
        record = self.mesh.store.agents.get(agent_id) or {}
        return int(record.get("pid", 0)) if "left" not in record and record.get("state") else 0

    def discover(self, *words: str) -> list[dict[str, Any]]:
        done = self.call("discover", "--format", "json", *words)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def gate(self, name: str = "gate") -> Gate:
        fifo = self.folder / f"{name}.fifo"
        os.mkfifo(fifo)
        return Gate(started=self.folder / f"{name}.started", fifo=fifo)

    def keys(self) -> list[str]:
        """All that the namespace has in Redis."""
        found = self.mesh.store.client.execute("KEYS", f"{self.mesh.store.keys.prefix}*")
        return sorted(key.decode() for key in found)

    def close(self) -> None:
        for process in self.running:
            process.kill()
        with suppress(StoreUnavailable):  # a test that took Redis away failed before: that is what is shown
            namespaces.drop(self.mesh.store)
            # The list of coordinators is of the whole mesh: a dead one's port may be another's in the next test.
            registry = Coordinators(self.mesh.store.client, self.mesh.store.keys)
            for one in registry.all():
                if one["namespace"] == self.namespace:
                    registry.withdraw(one["id"])
        self.mesh.close()


@contextmanager
def only_environment(environ: dict[str, str]) -> Iterator[None]:
    """Exactly these variables; as before afterwards, whatever was changed meanwhile."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def make_place(redis_url: str, namespace: str, folder: Path) -> Iterator[Place]:
    (folder / "tasks.py").write_text(USER_TASKS)
    environ = {
        **os.environ,
        "REDIS_URL": redis_url,
        "MESH_NAMESPACE": namespace,
        "MESH_DATA_DIRS": str(folder),
        "MESH_LAME_DUCK_MS": "0",  # no balancer looks
    }
    mesh = Mesh(redis_url=redis_url, namespace=namespace)
    place = Place(redis_url=redis_url, namespace=namespace, folder=folder, environ=environ, mesh=mesh)
    try:
        yield place
    finally:
        place.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            # Starting an interpreter with Celery takes seconds on a busy machine.
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture
def place(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Place]:
    """A namespace of this test's own, with a folder that holds a user's tasks.py."""
    with make_place(redis_url, namespace, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A window without a screen; what the pages' scripts complain of is in its log `browser`."""
    from selenium import webdriver  # takes a while, and few tests have a window
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("THE PAGES WERE NOT LOOKED AT: install chromium and chromium-driver (Debian's names)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for word in CHROMIUM.split():
        options.add_argument(word)
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield window
    finally:
        window.quit()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])
