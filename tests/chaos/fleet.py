"""Agents as real processes: started, killed, waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.client import Mesh
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class Fleet:
    """Agents of one namespace; all that are still there at the end are killed."""

    def __init__(self, redis_url: str, namespace: str, folder: Path, **environment: str) -> None:
        self.redis_url, self.namespace, self.folder = redis_url, namespace, folder
        self.environment = environment
        self.mesh = Mesh(redis_url=redis_url, namespace=namespace)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def environ(self) -> dict[str, str]:
        """What the processes see."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return {
            **os.environ,
            "PYTHONPATH": path,
            "REDIS_URL": self.redis_url,
            "MESH_NAMESPACE": self.namespace,
            **self.environment,
        }

    def start(
        self,
        agent_id: str,
        *,
        pool: str = "prefork",
        concurrency: int = 4,
        capabilities: str = "celery",
        app: str = "tests.chaos.kill_app",
        more: Sequence[str] = (),
    ) -> None:
        """Start an agent; returns at once."""
        log = (self.folder / f"{agent_id}.log").open("ab")
        words = [sys.executable, "-m", "celery", "-A", app, "worker", "-P", pool, "-c", str(concurrency)]
        words += ["--agent-id", agent_id, "--capabilities", capabilities, "-l", "info", *more]
        self.processes[agent_id] = subprocess.Popen(
            words,
            env={**self.environ(), "AGENT_ID": agent_id},
            cwd=self.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def start_coordinator(self) -> None:
        """Start a coordinator beside the agents."""
        log = (self.folder / "coordinator.log").open("ab")
        words = [sys.executable, "-c", "from mesh.cli import main; main()", "coordinator"]
        self.processes["coordinator"] = subprocess.Popen(
            words, env=self.environ(), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def ready(self, *agent_ids: str, timeout_s: float = 60) -> None:
        """Wait until these agents consume their queues."""
        registered = self.mesh.store.agents.get

        def consuming(name: str) -> bool:
            return (registered(name) or {}).get("state") == "ready" and self.processes[name].poll() is None

        try:
            wait_until(lambda: all(consuming(one) for one in agent_ids), timeout_s, f"{agent_ids} to consume")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.tails()}") from None

    def kill(self, name: str) -> None:
        """SIGKILL to the whole agent: parent and pool."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

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
        self.mesh.close()
