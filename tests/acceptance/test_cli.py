"""What people and scripts see of `mesh`: data, one sentence, an exit code; and nothing half-done in Redis."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from tests.acceptance.conftest import Place

EXECUTE = ("execute", "--task-type", "data-processing")
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that fails with an exit code and a sentence."""

    words: tuple[str, ...]
    code: int
    sentence: str
    stdin: bytes = b""
    environ: dict[str, str] = field(default_factory=dict)


def case(*words: str, code: int, says: str, stdin: bytes = b"", **environ: str) -> Case:
    return Case(words=words, code=code, sentence=says, stdin=stdin, environ=environ)


READ = (*EXECUTE, "--payload", "-")
NOT_JSON = "The payload in standard input is not JSON: "
ERRORS = {
    "payload is no JSON": case(
        *EXECUTE, "--payload", '{"data":', code=2, says=r"in --payload is not JSON: .* line 1, column 9\."
    ),
    "payload on standard input is no JSON": case(*READ, stdin=b"{", code=2, says=NOT_JSON),
    "payload is no text": case(*READ, stdin=b"\xff\xfe\xfa", code=2, says=NOT_JSON),
    "payload is nested too deeply": case(*READ, stdin=b"[" * 200_000, code=2, says=NOT_JSON),
    "no payload file": case(
        *EXECUTE, "--payload", "@no.json", code=2, says=r"no\.json cannot be read: No such file"
    ),
    "payload of 50 MB": case(
        *READ,
        stdin=b'"' + b"x" * 50 * MEGABYTE + b'"',
        code=2,
        says="larger than the 1,048,576 bytes allowed",
    ),
    "payload of 2 MB": case(
        *READ,
        stdin=b'"' + b"x" * 2 * MEGABYTE + b'"',
        code=2,
        says=r"has 2,000,\d+ bytes, more than the 1,048,576",
    ),
    "nobody offers it": case(
        *("execute", "--task-type", "ocr", "--reject-unsatisfiable"),
        code=7,
        says=r"No agent offers ocr \(no agent is",
    ),
    "bad task type": case("execute", "--task-type", "a b", code=2, says="task type"),
    "bad requirement": case(*EXECUTE, "--requires", "a,b+c", code=2, says="capability"),
    "bad task id": case(*EXECUTE, "--task-id", "a b", code=2, says="Task id 'a b' is not"),
    "no task type": case("execute", code=2, says="Missing option '--task-type'. See `mesh execute --help`."),
    "bad priority": case(*EXECUTE, "--priority", "10", code=2, says="10 is not in the range 0<=x<=9"),
    "bad namespace": case("status", "-n", "Not A Name", code=2, says="namespace"),
    "bad setting": case("status", MESH_LEASE_MS="soon", code=2, says="MESH_LEASE_MS"),
    "bad capability of an agent": case("deploy", "--capabilities", "a b", code=2, says="capability"),
    "bad labels of an agent": case("deploy", "--labels", "ssd", code=2, says="AGENT_LABELS"),
    "bad port of an agent": case("deploy", "--port", "99999", code=2, says="99999 is not in the range"),
    "no such module": case(
        "deploy", "-I", "no.such", code=2, says=r"There is no module 'no\.such' to include"
    ),
    "no such module for a fleet": case(
        "up", "-I", "tasks,nope", code=2, says="There is no module 'nope' to include"
    ),
    "payload is not a value": case(
        *READ, stdin=b'{"a": NaN}', code=2, says=f"{NOT_JSON}NaN is not a value of JSON"
    ),
    "unknown command": case("exec", code=2, says="No such command 'exec'"),
    "unknown task": case(
        "status", "no-such-task", code=3, says="There is no task 'no-such-task' in namespace"
    ),
    "not a Redis URL": case("status", REDIS_URL="http://localhost", code=2, says="REDIS_URL"),
    "an address of somebody else": case(
        "coordinator", "--host", "192.0.2.1", code=2, says=r"192\.0\.2\.1:3000 cannot"
    ),
}


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The error that a command ended with: exactly one line, no traceback, no data."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_the_console_script_ends_with_the_exit_code(place: Place) -> None:
    done = place.run("status", "no-such-task")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no-such-task" in one_sentence(done)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_one_sentence_and_leaves_nothing(place: Place, name: str) -> None:
    case = ERRORS[name]
    done = place.call(*case.words, stdin=case.stdin, **case.environ)
    assert re.search(case.sentence, one_sentence(done))
    assert (done.returncode, done.stdout, place.keys()) == (case.code, "", [])
    assert len(done.stderr.splitlines()) <= 2  # a warning may come before it


@pytest.mark.parametrize(
    "words", [("status",), ("discover",), EXECUTE, ("coordinator",), ("deploy",), ("demo",)]
)
def test_redis_is_down(place: Place, closed_port: int, words: tuple[str, ...]) -> None:
    run = place.run if words[0] in ("status", "deploy") else place.call
    done = run(*words, REDIS_URL=f"redis://user:secret@127.0.0.1:{closed_port}/0")
    assert done.returncode == 5, done.stderr
    assert f"127.0.0.1:{closed_port}" in one_sentence(done) and "secret" not in done.stderr


@pytest.mark.parametrize("command", ["deploy", "coordinator"])
def test_a_port_that_was_asked_for_is_taken(place: Place, taken_port: int, command: str) -> None:
    done = place.run(command, "--port", str(taken_port))
    assert done.returncode == 7, done.stderr
    assert f"Port {taken_port} is taken" in one_sentence(done)
    assert place.keys() == []


def test_a_submission_that_nobody_can_take_is_accepted_with_a_warning(place: Place) -> None:
    done = place.run(*EXECUTE, "--requires", "gpu", "--payload", '{"data": 1}', "-o", "json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"Warning: No agent offers data-processing and gpu .*: the task waits until one does\.", line
    )
    task = json.loads(done.stdout)
    shown = json.loads(place.call("status", task["id"], "-o", "json").stdout)
    assert (task["state"], shown["state"], shown["queue"]) == ("queued", "queued", "data-processing+gpu")
    overview = json.loads(place.call("status", "-o", "json").stdout)
    assert overview["queues"] == {"data-processing+gpu": {"queued": 1}}
    assert (overview["agents"], overview["leader"], overview["namespace"]) == ({}, None, place.namespace)


def test_the_same_task_id_is_the_same_task(place: Place) -> None:
    words = (*EXECUTE, "--task-id", "invoice-77", "-o", "name", "--payload")
    assert [place.call(*words, '{"data": 1}').stdout for _ in range(2)] == ["invoice-77\n"] * 2
    other = place.call(*words, '{"data": 2}')
    assert (other.returncode, other.stdout) == (7, "")
    assert "'invoice-77' is in use" in one_sentence(other)
    assert place.mesh.queues() == {"data-processing": {"queued": 1}}


def test_waiting_has_an_end(place: Place) -> None:
    done = place.call(*EXECUTE, "--wait", "--wait-timeout", "0.1")
    assert (done.returncode, done.stdout) == (6, "")
    assert "it is queued" in one_sentence(done)


def test_an_empty_namespace_is_shown_as_such(place: Place) -> None:
    done = place.run("discover", "--format", "json")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    assert place.call("discover", "-o", "name").stdout == ""
    assert "agents        none" in place.call("status").stdout


def test_an_unknown_variable_warns(place: Place) -> None:
    done = place.call("status", "-o", "name", MESH_NAMESAPCE="x", AGENT_MESH_PORT="tcp://10.0.0.1:3000")
    assert (done.returncode, done.stdout) == (0, place.namespace + "\n")
    assert done.stderr == "Warning: MESH_NAMESAPCE is not a setting of Agent Mesh and is ignored.\n"


def test_a_namespace_option_wins_over_the_environment(place: Place) -> None:
    done = place.call("-n", "blue", "status", "-o", "name", AGENT_NAMESPACE="red", MESH_NAMESPACE=None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "blue\n", "")


def test_help_costs_nothing() -> None:
    """Shells ask for it at every completion: neither Redis's client nor Celery is loaded."""
    code = (
        "import sys\nfrom mesh.cli.run import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "heavy = {'redis', 'celery', 'kombu', 'fastapi', 'rich', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for words in (["--help"], ["execute", "--help"], ["deploy", "-h"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
