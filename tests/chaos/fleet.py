"""Agents and coordinators as real processes: started, killed, paused, cut off, waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mesh.client import Mesh
from mesh.store.embedded import free_port
from mesh.verify.proxy import Proxy
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class Fleet:
    """Agents and coordinators of one namespace; all that are still there at the end are killed."""

    def __init__(self, redis_url: str, namespace: str, folder: Path, **environment: str) -> None:
        self.redis_url, self.namespace, self.folder = redis_url, namespace, folder
        self.environment = environment
        self.mesh = Mesh(redis_url=redis_url, namespace=namespace)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}  # of coordinators
        self._proxies: dict[str, Proxy] = {}

    def environ(self, *, redis_url: str | None = None) -> dict[str, str]:
        """What the processes see."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return {
            **os.environ,
            "PYTHONPATH": path,
            "REDIS_URL": redis_url or self.redis_url,
            "MESH_NAMESPACE": self.namespace,
            "MESH_LAME_DUCK_MS": "0",  # no balancer looks
            **self.environment,
        }

    def proxy(self, name: str) -> Proxy:
        """The way to Redis of one process, started with `proxied`: its faults are that process's alone."""
        if name not in self._proxies:
            parts = urlsplit(self.redis_url)
            assert parts.hostname and parts.port
            self._proxies[name] = Proxy(parts.hostname, parts.port)
        return self._proxies[name]

    def run(
        self, name: str, words: Sequence[str], *, proxied: bool = False, **environ: str
    ) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own, as `name`; returns at once. Its output is in `name`.log."""
        url = self.proxy(name).url(self.redis_url) if proxied else None
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                words,
                env={**self.environ(redis_url=url), **environ},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def start(
        self,
        agent_id: str,
        *,
        pool: str = "prefork",
        concurrency: int = 4,
        capabilities: str = "celery",
        app: str = "tests.chaos.kill_app",
        more: Sequence[str] = (),
        proxied: bool = False,
        **environ: str,
    ) -> None:
        """Start an agent of a Celery application."""
        words = [sys.executable, "-m", "celery", "-A", app, "worker", "-P", pool, "-c", str(concurrency)]
        words += ["--agent-id", agent_id, "--capabilities", capabilities, "-l", "info", *more]
        self.run(agent_id, words, proxied=proxied, **{"AGENT_ID": agent_id, **environ})

    def start_coordinator(self, name: str = "coordinator", *, proxied: bool = False, **environ: str) -> None:
        """Start a coordinator beside the agents; `url` says where."""
        self.ports.setdefault(name, free_port())
        words = [sys.executable, "-c", "from mesh.cli import main; main()", "coordinator"]
        own = {"COORDINATOR_ID": name, "MESH_COORDINATOR_PORT": str(self.ports[name])}
        self.run(name, words, proxied=proxied, **{**own, **environ})

    def url(self, name: str = "coordinator") -> str:
        """Where a coordinator answers."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def ready(self, *agent_ids: str, timeout_s: float = 60) -> None:
        """Wait until these agents consume their queues."""
        registered = self.mesh.store.agents.get

        def consuming(name: str) -> bool:
            row = registered(name) or {}
            return bool(row.get("queues")) and row.get("pid") == str(self.processes[name].pid)

        def all_are() -> bool:
            ended = [one for one in agent_ids if self.processes[one].poll() is not None]
            assert not ended, f"{ended} ended: {self.tails()}"
            return all(consuming(one) for one in agent_ids)

        try:
            wait_until(all_are, timeout_s, f"{agent_ids} to consume")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.tails()}") from None

    def signal(self, name: str, which: signal.Signals) -> None:
        """To every process of the group: parent and pool."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[name].pid, which)

    def kill(self, name: str) -> None:
        """SIGKILL to the whole agent: parent and pool."""
        self.signal(name, signal.SIGKILL)
        self.processes.pop(name).wait(10)

    def pause(self, name: str) -> None:
        """SIGSTOP: neither dead nor alive, as a laptop that sleeps or a machine that swaps."""
        self.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """After `pause`."""
        self.signal(name, signal.SIGCONT)

    def stop(self, name: str, timeout_s: float = 30) -> int:
        """SIGTERM; the exit code."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            return process.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def tails(self, lines: int = 8) -> str:
        """The ends of the logs, for messages of failed tests."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(
            "\n".join([f"== {log.name}", *log.read_text(errors="replace").splitlines()[-lines:]])
            for log in logs
        )

    def close(self) -> None:
        """End everything that was started."""
        for name in list(self.processes):
            self.kill(name)
        for proxy in self._proxies.values():
            proxy.close()
        self.mesh.close()
