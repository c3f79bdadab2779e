"""Secrets that get into errors and log lines do not get out of the processes."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from mesh.errors import StoreUnavailable
from mesh.store.embedded import free_port
from tests.acceptance.conftest import Place, make_place
from tests.acceptance.redis_users import Guarded
from tests.acceptance.test_flower import Dashboard
from tests.conftest import SECRET
from tests.waiting import wait_until

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJlLW9mLWl0"
TASKS = """
import logging
from mesh import task

@task("tell", retries=0)
def tell(payload):
    logging.getLogger("celery.task").warning("a log line with %s", payload)
    print("a printed line with", payload)
    raise ValueError(f"an error with {payload}")
"""


def _command_lines() -> str:
    found = ""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += file.read_text()
        except OSError:
            continue
    return found


def test_no_process_tells(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path / "redis", "telling")
    with make_place(guarded.url("admin"), "telling", tmp_path) as place:
        (tmp_path / "tasks.py").write_text(TASKS)
        port = free_port()
        login = "ann:a-password-of-hers"
        words = ("flower", "--port", str(port))
        flower = Dashboard(
            port=port,
            process=place.start(
                *words, FLOWER_BASIC_AUTH=login, REDIS_URL=guarded.url("flower"), LOG_LEVEL="debug"
            ),
        )
        place.start(
            "coordinator", "--port", str(free_port()), REDIS_URL=guarded.url("coordinator"), LOG_LEVEL="debug"
        )
        options = ("-I", "tasks", "--capabilities", "tell", "--log-level", "debug")
        for pool in ("prefork", "solo"):
            place.agent(f"a-{pool}", *options, "--pool", pool, REDIS_URL=guarded.url("agent"))
        # A payload may say what it likes: what the processes log of it is without what is theirs.
        payload = f"{SECRET} {guarded.url('agent')} {TOKEN}"
        handles = [place.mesh.submit("tell", payload) for _ in range(6)]
        wait_until(
            lambda: all(handle.status() in ("failed", "dead_lettered") for handle in handles),
            60,
            "the tasks to end",
        )
        place.wait_for(flower.process, flower.answers, "Flower to answer")
        command_lines = _command_lines()
        for process in place.running:
            process.terminate()
        for process in place.running:
            process.wait(60)
        said = "".join(process.output() for process in place.running)
    guarded.stop(searched=False)  # the payload is a secret
    assert "an error with ***" in said and "a log line with ***" in said
    secrets = [SECRET, TOKEN, *guarded.passwords.values(), login, base64.b64encode(login.encode()).decode()]
    for secret in secrets:
        lines = [line for line in said.splitlines() if secret in line]
        assert not lines, lines[0]
        assert secret not in command_lines


def test_the_command_line_does_not_tell(place: Place, closed_port: int) -> None:
    url = f"redis://ann:her%2Fpassword@127.0.0.1:{closed_port}/0?password=other-password"
    done = place.run("-v", "status", REDIS_URL=url)
    assert done.returncode == StoreUnavailable.exit_code, done.stderr
    wrong = place.run(
        "-v", "status", MESH_TOKEN=TOKEN, COORDINATOR_URL=f"http://u:{TOKEN}@127.0.0.1:{closed_port}"
    )
    shown = place.run("config", "show", REDIS_URL=url, MESH_TOKEN=TOKEN)
    said = "".join(one.stdout + one.stderr for one in (done, wrong, shown))
    for secret in ("her%2Fpassword", "her/password", "other-password", TOKEN, os.environ["MESH_JWT_SECRET"]):
        assert secret not in said
