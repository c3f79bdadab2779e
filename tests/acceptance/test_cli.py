"""What people and scripts see of `mesh`: data, one sentence, an exit code; and nothing half-done in Redis."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.acceptance.conftest import Place

EXECUTE = ("execute", "--task-type", "data-processing")
MEGABYTE = 1_000_000

#: name -> (arguments, standard input, environment, exit code, what the sentence says)
ERRORS: dict[str, tuple[tuple[str, ...], bytes, dict[str, str], int, str]] = {
    "payload is no JSON": (
        (*EXECUTE, "--payload", '{"data":'), b"", {}, 2, r"The payload in --payload is not JSON: .* line 1, column 9\."),
    "payload on standard input is no JSON": ((*EXECUTE, "--payload", "-"), b"{", {}, 2, "standard input is not JSON"),
    "payload is no text": ((*EXECUTE, "--payload", "-"), b"\xff\xfe\xfa", {}, 2, "standard input is not JSON"),
    "payload is nested too deeply": ((*EXECUTE, "--payload", "-"), b"[" * 200_000, {}, 2, "standard input is not JSON"),
    "no payload file": ((*EXECUTE, "--payload", "@no-such.json"), b"", {}, 2, "no-such.json cannot be read: No such file"),
    "payload of 50 MB": (
        (*EXECUTE, "--payload", "-"), b'"' + b"x" * 50 * MEGABYTE + b'"', {}, 2, r"larger than the 1,048,576 bytes allowed"),
    "payload of 2 MB": (
        (*EXECUTE, "--payload", "-"), b'"' + b"x" * 2 * MEGABYTE + b'"', {}, 2, r"has 2,000,\d+ bytes, more than the 1,048,576"),
    "nobody offers it": (
        ("execute", "--task-type", "ocr", "--reject-unsatisfiable"), b"", {}, 7, r"No agent offers ocr \(no agent is there\)\."),
    "bad task type": (("execute", "--task-type", "a b"), b"", {}, 2, "task type"),
    "bad requirement": ((*EXECUTE, "--requires", "a,b+c"), b"", {}, 2, "capability"),
    "bad task id": ((*EXECUTE, "--task-id", "a b"), b"", {}, 2, "Task id 'a b' is not"),
    "no task type": (("execute",), b"", {}, 2, "Missing option '--task-type'. See `mesh execute --help`."),
    "bad priority": ((*EXECUTE, "--priority", "10"), b"", {}, 2, "10 is not in the range 0<=x<=9"),
    "bad namespace": (("status", "-n", "Not A Name"), b"", {}, 2, "namespace"),
    "bad setting": (("status",), b"", {"MESH_LEASE_MS": "soon"}, 2, "MESH_LEASE_MS"),
    "bad capability of an agent": (("deploy", "--capabilities", "a b"), b"", {}, 2, "capability"),
    "bad port of an agent": (("deploy", "--port", "99999"), b"", {}, 2, "99999 is not in the range"),
    "unknown command": (("exec",), b"", {}, 2, "No such command 'exec'"),
    "unknown task": (("status", "no-such-task"), b"", {}, 3, "There is no task 'no-such-task' in namespace"),
    "not a Redis URL": (("status",), b"", {"REDIS_URL": "http://localhost"}, 2, "REDIS_URL"),
}  # fmt: skip


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
    words, stdin, environ, code, sentence = ERRORS[name]
    done = place.call(*words, stdin=stdin, **environ)
    assert re.search(sentence, one_sentence(done))
    assert (done.returncode, done.stdout, place.keys()) == (code, "", [])
    assert len(done.stderr.splitlines()) <= 2  # a warning may come before it


@pytest.mark.parametrize("words", [("status",), ("discover",), EXECUTE, ("coordinator",), ("deploy",), ("demo",)])
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
    assert re.fullmatch(r"Warning: No agent offers data-processing and gpu .*: the task waits until one does\.", line)
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
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
