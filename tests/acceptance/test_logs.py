"""What agents and coordinators log: JSON lines that say whose they are, or text for people."""

import json
from typing import Any

import pytest

from mesh.core.tracing import trace_id_of
from tests.acceptance.conftest import START_S, Place, Running
from tests.waiting import wait_until

TASKS = """
import logging
from mesh import task

logger = logging.getLogger("shop")

@task("count", retry_delay_s=0)
def count(payload):
    logger.warning("counted %s", "\\u00e9", extra={"pages": 4, "odd": {(1, 2): "\\ud800"}})
    if payload == "again" and not getattr(count, "failed", False):
        count.failed = True
        raise ValueError("once")
    print("printed")
    return 1
"""


def lines(agent: Running) -> list[dict[str, Any]]:
    """The log lines so far."""
    return [json.loads(line) for line in agent.output().splitlines() if line.startswith("{")]


def run(place: Place, pool: str, **environ: str) -> tuple[str, Running]:
    (place.folder / "shop_tasks.py").write_text(TASKS)
    agent = place.start(
        "deploy", "--agent-id", "a1", "-I", "shop_tasks", "--pool", pool, "--concurrency", "1", **environ
    )
    place.wait_for(agent, lambda: place.mesh.agents(), "the agent")
    handle = place.mesh.submit("count", "again")
    assert handle.result(timeout_s=START_S) == 1
    wait_until(lambda: "succeeded" in agent.output(), START_S, "the agent to say that it is done")
    return handle.id, agent


@pytest.mark.ci  # the tests of traces read lines, too
@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_a_line_of_a_task_says_which_attempt_wrote_it(place: Place, pool: str) -> None:
    task_id, agent = run(place, pool, LOG_FORMAT="json")
    told = [line for line in lines(agent) if "message" in line]  # audit entries have fields of their own
    first, second = [line for line in told if line["logger"] == "shop"]
    for line, attempt in ((first, 1), (second, 2)):
        assert line["level"] == "warning" and line["message"] == "counted é" and line["pages"] == 4
        assert (line["namespace"], line["agent"]) == (place.namespace, "a1")
        assert (line["task"], line["type"], line["attempt"]) == (task_id, "count", attempt)
        assert line["trace_id"] == trace_id_of(task_id) and len(line["span_id"]) == 16
    assert first["span_id"] != second["span_id"]
    printed = next(line for line in told if line["message"] == "printed")
    assert printed["task"] == task_id
    received = next(line for line in told if "received" in line["message"])
    assert (received["task"], received["type"]) == (task_id, "count") and "args" not in received
    joined = next(line for line in told if "joined namespace" in line["message"])
    assert joined["agent"] == "a1" and "task" not in joined


@pytest.mark.ci
def test_text_is_for_people(place: Place) -> None:
    task_id, agent = run(place, "prefork", LOG_FORMAT="text", LOG_LEVEL="info")
    assert not lines(agent)
    told = next(line for line in agent.output().splitlines() if "counted" in line)
    assert f"WARNING shop: counted é [task={task_id} type=count attempt=1 " in told and "pages=4" in told
