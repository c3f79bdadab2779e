"""What schemathesis is told beyond the OpenAPI document: it reads this file as its hooks.

Every request goes to one namespace, half of those about a task to one that is there, and nothing waits for long. Half of the
requests show an administrator's token, the others one of another role, a broken one, or none.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import schemathesis

TASKS = os.environ.get("FUZZ_TASKS", "").split(",")
AGENT = os.environ.get("FUZZ_AGENT", "w1")
TOKENS: list[str | None] = json.loads(os.environ.get("FUZZ_TOKENS", "[null]"))
LONGEST_WAIT_S = 0.05


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Change a request that was made up before it is sent."""
    headers = case.headers = case.headers or {}
    headers.pop("Authorization", None)
    shown = TOKENS[hash(f"token of {case.id}") // 2 % len(TOKENS)] if hash(case.id) % 2 else TOKENS[0]
    if shown is not None:
        headers["Authorization"] = shown
    path = case.path_parameters
    if path is not None and "namespace" in path:
        known = hash(case.id) % 10  # one in ten keeps the namespace that was made up
        path["namespace"] = path["namespace"] if known == 9 else os.environ["FUZZ_NAMESPACE"]
        if "task_id" in path and known < 5:
            path["task_id"] = TASKS[known % len(TASKS)]
        if "agent_id" in path and known < 5:
            path["agent_id"] = AGENT
    if case.query and "wait_s" in case.query:
        with contextlib.suppress(
            TypeError, ValueError
        ):  # what is no number is refused, and waits for nothing
            if float(case.query["wait_s"]) > LONGEST_WAIT_S:
                case.query["wait_s"] = LONGEST_WAIT_S
    if isinstance(case.body, dict) and isinstance(case.body.get("wait_s"), (int, float)):
        case.body["wait_s"] = min(case.body["wait_s"], LONGEST_WAIT_S)
    elif isinstance(case.body, dict) and case.path.endswith("tasks:wait") and "wait_s" not in case.body:
        case.body["wait_s"] = LONGEST_WAIT_S
