"""All of a mesh is lost but one agent that nobody could reach; Redis comes back from its backup, and the mesh is restored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.client import Handle
from mesh.core.states import State
from mesh.store.embedded import start_server
from tests.chaos.conftest import Recovery
from tests.chaos.fleet import ROOT
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage

DEBIAN = shutil.which("redis-server")
SCRIPTS = ROOT / "deploy" / "backup"
pytestmark = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="there is no redis-cli on PATH")
DATA = ("appendonlydir", "dump.rdb")


def script(stage: Stage, name: str, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program of the mesh as an operator does."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**stage.environ(), "PATH": path}
    done = subprocess.run(
        [name, *words], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, (name, words, done.stdout, done.stderr)
    return done


def back_up(stage: Stage) -> Path:
    """A backup, the newest of the two that are kept of three."""
    folder = stage.folder / "backups"
    for name in ("2001-01-01T00-00-00Z", "2001-01-02T00-00-00Z"):
        (folder / name).mkdir(parents=True)
    done = script(
        stage, str(SCRIPTS / "redis-backup.sh"), "--url", stage.server.url, "--keep", "2", str(folder)
    )
    assert done.stdout.count("\n") == 1 and "agents of 1 namespaces; 1 older removed" in done.stdout
    old, made = sorted(folder.iterdir())
    assert old.name == "2001-01-02T00-00-00Z"
    assert sorted(file.name for file in made.iterdir()) == ["SHA256SUMS", "agents-stage.json", "dump.rdb"]
    return made


def lose_everything(stage: Stage, backup: Path, *lost: str) -> None:
    """Kill what is named and Redis, take its data away, and put the backup there."""
    for name in lost:
        stage.kill(name)
    script(
        stage, str(SCRIPTS / "redis-restore.sh"), str(backup), str(stage.server.directory), code=2
    )  # it runs
    stage.server.kill()
    for name in DATA:
        shutil.rmtree(stage.server.directory / name, ignore_errors=True)
    script(stage, str(SCRIPTS / "redis-restore.sh"), str(backup), str(stage.server.directory))


def disaster(stage: Stage, policy: str) -> tuple[dict[str, Any], dict[str, Handle], list[Handle], float]:
    """(the report of the restore, some tasks by what they were, those that ran, the moment when Redis was back)."""
    stage.start_coordinator("coordinator")
    for name in ("dies", "survives"):
        stage.start(name)
    stage.ready("dies", "survives")
    done = stage.submit()
    done.result(timeout_s=30)
    gate = stage.gate()
    running = [task for tasks in stage.busy(gate).values() for task in tasks]
    tasks = {
        "done": done,
        "queued": stage.submit(),
        "scheduled": stage.submit(options={"countdown_s": 3600 if policy == "fail" else 20}),
    }
    backup = back_up(stage)
    lose_everything(stage, backup, "dies", "coordinator")
    stage.server.start()
    back = time.time()
    words = ["restore", "-n", "stage", "--file", str(backup / "agents-stage.json"), "-o", "json"]
    shown = json.loads(script(stage, "mesh", *words, "--tasks", policy, "--dry-run").stdout)
    report = json.loads(script(stage, "mesh", *words, "--tasks", policy, "--yes").stdout)
    # The survivor may have taken back what its fellow ran: queued then, and not lost.
    assert sum(shown["tasks"]["states"].values()) == len(running) + 2
    gate.touch()  # whoever still runs an attempt of before comes to its end now
    stage.start_coordinator("coordinator")
    stage.start("dies")
    stage.ready("dies")
    return report, tasks, running, back


def results_of_before_are_refused(stage: Stage, running: Sequence[Handle]) -> None:
    """No attempt of before has settled: the record's result is another attempt's, or none."""
    for task in running:
        record = stage.record(task)
        if record.state is State.SUCCEEDED:
            assert record.attempt > 1, record


def survivor_is_back(stage: Stage) -> None:
    stage.until(
        lambda: {str(one.status) for one in stage.mesh.agents()} == {"healthy"},
        "both agents to be there again",
    )


@fault(
    "disaster",
    "all is lost but one agent: processes killed, Redis's data deleted; backup put back, `mesh restore` run",
    expect="agents register by themselves; what had not ended is failed and reported, results stay, the survivor's are refused",
    tier="ci",
    bound_s=60,
)
def test_failed_and_reported(stage: Stage, recovery: Recovery) -> None:
    report, tasks, running, back = disaster(stage, "fail")
    incomplete = [*running, tasks["queued"], tasks["scheduled"]]
    assert {row["id"] for row in report["tasks"]["list"]} == {task.id for task in incomplete}
    assert stage.submit().result(timeout_s=60)
    recovery.took(time.time() - back)
    survivor_is_back(stage)
    assert tasks["done"].result(timeout_s=5)
    for task in incomplete:
        record = stage.record(task)
        assert (record.state, record.reason) == (State.FAILED, "restored"), record
        assert "when the backup was made; it may have run since" in (record.error or "")
    assert not any(number for _, _, number in stage.mesh.store.tasks.live())


@pytest.mark.skipif(DEBIAN is None, reason="there is no redis-server on PATH")
@fault(
    "disaster",
    "the same on Redis 7.0, with `--tasks requeue`",
    expect="what was held runs again, what waited goes on; no result of before is recorded",
    tier="ci",
    bound_s=90,
)
def test_requeued_and_done(tmp_path: Path, recovery: Recovery) -> None:
    stage = Stage(tmp_path, start_server(tmp_path / "redis", binary=Path(str(DEBIAN))))
    try:
        report, tasks, running, back = disaster(stage, "requeue")
        assert {row["id"] for row in report["tasks"]["list"]} <= {task.id for task in running}
        recovery.took(stage.all_end() - back)
        survivor_is_back(stage)
        results_of_before_are_refused(stage, running)
        for task in (*running, *tasks.values()):
            assert stage.record(task).state is State.SUCCEEDED, stage.record(task)
            assert task.result(timeout_s=5)
    finally:
        stage.close()
