"""The prefork pool: whatever the size of a task, it goes to a child that has nothing to do."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from tests.acceptance.conftest import CELERY, START_S, Place

SIZES = [0, 1, 65_536, 300_000, *range(select.PIPE_BUF - 1500, select.PIPE_BUF + 100, 100)]


@pytest.mark.ci
@pytest.mark.parametrize("options", [(), ("--max-tasks-per-child", "20")], ids=["lasting", "recycled"])
def test_tasks_of_all_sizes_run_beside_a_child_that_is_busy(
    place: Place, tmp_path: Path, options: tuple[str, ...]
) -> None:
    gate = place.gate("busy")
    words = ("--capabilities", "gate", "-I", "tasks", "--pool", "prefork", "--concurrency", "2")
    place.agent("w1", *words, *options, command=[*CELERY, "worker"], AGENT_ID="w1")
    busy = place.mesh.submit("gate", gate.payload)
    gate.wait_until_started()
    started = tmp_path / "started"
    payloads = [{"started": str(started), "fifo": os.devnull, "more": "x" * size} for size in SIZES * 4]
    handles = place.mesh.submit_many("gate", payloads)
    assert [handle.result(timeout_s=START_S) for handle in handles] == [""] * len(handles)
    gate.open("done")
    assert busy.result(timeout_s=START_S) == "done"
    assert len(started.read_text().split()) == len(handles)  # none of them twice
