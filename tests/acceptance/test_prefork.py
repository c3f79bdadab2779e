"""The prefork pool: whatever the size of a task, it goes to a child that has nothing to do; what is over before is not run."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from tests.acceptance.conftest import CELERY, START_S, Place
from tests.chaos.test_agents import children
from tests.waiting import wait_until

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


def test_what_was_over_when_its_child_took_it_up_is_ended_and_holds_nothing_up(
    place: Place, tmp_path: Path
) -> None:
    never = place.gate("never")
    words = ("--capabilities", "gate", "-I", "tasks", "--pool", "prefork", "--concurrency", "1")
    agent = place.agent("w1", *words, command=[*CELERY, "worker"], AGENT_ID="w1")
    (child,) = children(agent.process.pid)
    os.kill(child, signal.SIGSTOP)  # what it is handed now waits in its pipe
    over = place.mesh.submit("gate", never.payload, deadline_s=1)
    wait_until(lambda: over.status() == "timed_out", START_S / 2, "the deadline")
    wait_until(lambda: "no longer this agent's" in agent.output(), START_S / 2, "the agent to know")
    os.kill(child, signal.SIGCONT)
    payload = {"started": str(tmp_path / "started"), "fifo": os.devnull}
    assert place.mesh.submit("gate", payload).result(timeout_s=START_S / 3) == ""
    assert children(agent.process.pid) != [child]
    assert place.mesh.submit("gate", payload).result(timeout_s=START_S / 3) == ""
