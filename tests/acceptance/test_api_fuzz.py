"""Schemathesis makes requests up from the coordinator's OpenAPI document: none may end in a 5xx, none answer otherwise than said.

`FUZZ_REQUESTS=5000 pytest tests/acceptance/test_api_fuzz.py` sends so many instead of some hundreds.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from pathlib import Path

import pytest

from mesh.core.states import State
from mesh.store.tasks import Settlement
from tests.acceptance.conftest import Place, Running
from tests.acceptance.test_coordinator import start
from tests.tokens import token

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "200"))
GROWTH_KB = 80_000  # what was loaded at the first use, and tables that have a bound
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def furnish(place: Place) -> list[str]:
    """An agent's registration, and tasks of several states; their ids."""
    mesh, agents = place.mesh, place.mesh.store.agents
    joined = agents.join("w1", {"capabilities": "a,b", "slots": 2, "state": "ready"})
    ids = [
        mesh.submit("a", number, task_id=f"task/{number}", unsatisfiable="accept").id for number in range(4)
    ]
    ids.append(mesh.submit("b", 1, countdown_s=999, unsatisfiable="accept").id)
    one, two = mesh.store.tasks.fetch(
        holder=f"w1#{joined.incarnation}", isolated=False, nonce="n", limit=2, held=0, queues=["a"]
    )
    error = b'{"status": "FAILURE", "result": {"exc_type": "E", "exc_message": ["no"]}, "traceback": "t"}'
    mesh.store.tasks.settle(
        [
            Settlement(
                one.id, one.fence, State.SUCCEEDED, b'{"status": "SUCCESS", "result": NaN}', keep=True
            ),
            Settlement(two.id, two.fence, State.DEAD_LETTERED, error, keep=True),
        ]
    )
    return ids


def credentials() -> list[str | None]:
    """Values of the header Authorization: an administrator's, other roles', some that are none, and no header."""
    good = token()
    head, body, proof = good.split(".")
    roles = ("operator", "producer", "worker", "viewer", "nobody-has-this-type")
    broken = (
        *(f"{head}.{body}.", f"{head}..{proof}", f"{head}.{body}.{proof[::-1]}", f"{good}.", "a.b.c", "\xff", "", "x" * 5000),
        *(token(kind="join"), token(ttl_s=1), token(secret="another secret of forty letters, at least.")),
    )  # fmt: skip
    shown = [*(token(role) for role in roles), token("producer", namespaces=["elsewhere"]), *broken]
    return [f"Bearer {good}", *(f"Bearer {one}" for one in shown), f"Basic {good}", "Bearer", "", None]


def memory_kb(process: Running) -> int:
    """What a process has in memory."""
    with open(f"/proc/{process.process.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


@pytest.mark.ci
@pytest.mark.fuzz
@pytest.mark.timeout(120 + REQUESTS)
def test_no_request_breaks_it(place: Place) -> None:
    process, url = start(place, "c1", MESH_HTTP_RATE_FAILED="0")
    ids = furnish(place)
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
        operations = sum(len(path) for path in json.load(answer)["paths"].values())
    before = memory_kb(process)
    phases = "examples,coverage,fuzzing" if REQUESTS > 1000 else "examples,fuzzing"
    done = place.run(
        "run", f"{url}/openapi.json", "--checks", CHECKS, "--phases", phases, "--exclude-path-regex", "/events$",
        "--max-examples", str(max(1, REQUESTS // operations + 1)), "--request-timeout", "20", "--no-shrink",
        "--continue-on-failure",
        "--seed", "1" if REQUESTS <= 1000 else "2", "--generation-database", "none", "--no-color", "--warnings", "off",
        command=[str(Path(sys.executable).with_name("schemathesis"))], timeout_s=60 + REQUESTS,
        SCHEMATHESIS_HOOKS=str(Path(__file__).with_name("fuzz_hooks.py")), FUZZ_NAMESPACE=place.namespace,
        FUZZ_TASKS=",".join(ids), FUZZ_TOKENS=json.dumps(credentials()),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None and int(found[1]) >= REQUESTS // 2, done.stdout[-2000:]
    assert "Traceback" not in process.output(), process.output()[-6000:]
    grown = memory_kb(process) - before
    assert grown < GROWTH_KB, f"{grown} KB more after {found[1]} requests"
    print(f"{found[1]} requests to {operations} operations, no failure, {grown} KB more than before")
