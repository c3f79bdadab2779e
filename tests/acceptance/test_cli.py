"""What people and scripts see of `mesh`: data, one sentence, an exit code; and nothing half-done in Redis."""

from __future__ import annotations

import importlib.util
import json
import re
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mesh.cli.run import COMMANDS, EXIT_CODES
from mesh.errors import MeshError
from mesh.settings import TABLE
from tests.acceptance.conftest import MESH, Place

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
        *EXECUTE, "--payload", '{"data":', code=2, says=r"in --payload is not JSON: .* line 1 column 8\."
    ),
    "payload on standard input is no JSON": case(*READ, stdin=b"{", code=2, says=NOT_JSON),
    "payload is no text": case(*READ, stdin=b"\xff\xfe\xfa", code=2, says=NOT_JSON),
    "payload is nested too deeply": case(
        *READ, stdin=b"[" * 200_000, code=2, says="nested deeper than 200 levels"
    ),
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
        *READ, stdin=b'{"a": NaN}', code=2, says=f"{NOT_JSON}expected value at line 1 column 7"
    ),
    "unknown command": case(
        "exec", code=2, says=r"No such command 'exec'\. Did you mean 'execute'\? See `mesh --help`\."
    ),
    "unknown command of a group": case("task", "lst", code=2, says="Did you mean 'list'"),
    "unknown option": case(
        "execute", "--task-tpe", "x", code=2, says=r"No such option '--task-tpe'.*'--task-type'"
    ),
    "unknown strategy": case(
        *EXECUTE, "--strategy", "best", code=2, says="'best' is not one of .*'least-loaded'"
    ),
    "negative retries": case(*EXECUTE, "--retries", "-1", code=2, says="-1 is not in the range 0<=x<=1000"),
    "bad region": case(*EXECUTE, "--region", "e u", code=2, says="'e u' is not a valid region"),
    "bad labels": case(
        *EXECUTE, "--labels", "urgent", code=2, says="--labels is 'urgent', but must be written as"
    ),
    "bad countdown": case(*EXECUTE, "--countdown", "-3", code=2, says="Invalid value for '--countdown'"),
    "no number of seconds": case(*EXECUTE, "--timeout", "soon", code=2, says="'soon' is not a valid float"),
    "a type that is nearly one": case(
        *("execute", "--task-type", "data_processing", "--reject-unsatisfiable"),
        code=7,
        says="No agent offers",
    ),
    "nobody could take it": case(
        "execute",
        "--task-type",
        "ocr",
        "--requires",
        "a b",
        "--explain",
        code=2,
        says="'a b' is not a valid capability",
    ),
    "a time that is none": case(
        "task", "list", "--since", "yesterday", code=2, says="'yesterday' is not a time: write 30m"
    ),
    "a limit of nothing": case("task", "list", "--limit", "0", code=2, says="0 is not in the range"),
    "a state that is none": case(
        "task", "list", "--state", "done", code=2, says="'done' is not one of 'scheduled'"
    ),
    "watching too often": case("discover", "--watch=0", code=2, says="Invalid value for '--watch'"),
    "an output that is none": case("discover", "-o", "yaml", code=2, says="'yaml' is not one of 'table'"),
    "a task too many": case(
        "task", "get", "a", "b", code=2, says=r"unexpected extra argument \(b\)\. See `mesh task get"
    ),
    "bad id of a task": case("task", "get", "a b", code=2, says="Task id 'a b' is not"),
    "unknown task to watch": case(
        "task", "watch", "nope", code=3, says=r"no task 'nope' .* `mesh task list` shows"
    ),
    "unknown task to explain": case("task", "why", "nope", code=3, says="There is no task 'nope'"),
    "unknown task to cancel": case("task", "cancel", "nope", code=3, says="There is no task 'nope'"),
    "unknown task to retry": case("task", "retry", "nope", code=3, says="There is no task 'nope'"),
    "unknown agent": case(
        "agent", "describe", "nope", code=3, says=r"no agent 'nope' .* `mesh discover` shows"
    ),
    "a time of grace that is none": case(
        "drain", "w1", "--grace", "soon", code=2, says="not a time like 30s"
    ),
    "unknown agent to drain": case("drain", "nope", code=3, says="There is no agent 'nope'"),
    "unknown agent to cordon": case("agent", "cordon", "nope", code=3, says="There is no agent 'nope'"),
    "unknown dead letter": case("dead-letter", "show", "nope", code=3, says="There is no task 'nope'"),
    "no dead letter named": case(
        "dead-letter", "replay", code=2, says="Name the dead letters to replay, or select them"
    ),
    "dead letters named twice": case(
        "dead-letter", "discard", "a", "--all", code=2, says="Name the dead letters"
    ),
    "unknown type": case("type", "show", "ocr", code=3, says="No agent has advertised task type 'ocr'"),
    "unknown shell": case("completion", "tcsh", code=2, says="'tcsh' is not one of 'bash'"),
    "an argument of deploy": case(
        "deploy", "w1", code=2, says="unexpected argument 'w1'; options of .* stand behind --"
    ),
    "a pool that is none": case(
        "deploy", "--pool", "fibers", code=2, says="'fibers' is not one of 'prefork'"
    ),
    "a coordinator's URL that is none": case(
        "status", "--url", "ftp://x", code=2, says="COORDINATOR_URL is 'ftp://x'"
    ),
    "over HTTP what needs Redis": case(
        "--url", "http://localhost:3000", "up", code=2, says="--url does not apply"
    ),
    "two namespaces": case(
        "status",
        AGENT_NAMESPACE="red",
        MESH_NAMESPACE="blue",
        code=2,
        says="mean the same but have different values",
    ),
    "a heartbeat that is too slow": case(
        "status",
        HEARTBEAT_INTERVAL_MS="400000",
        code=2,
        says="every agent is unhealthy between two heartbeats",
    ),
    "a secret's file that is not there": case(
        "status",
        MESH_JWT_SECRET=None,
        MESH_JWT_SECRET_FILE="none.txt",
        code=2,
        says="MESH_JWT_SECRET_FILE: cannot read none.txt",
    ),
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


FILES = {
    "not JSON": ("{", r"Cannot read the configuration file .*file\.json: .*line 1"),
    "no object": ("[]", "the file must be a JSON object"),
    "unknown key": ('{"mesh": {"jwtt": 1}}', r"unknown key mesh\.jwtt; perhaps mesh\.jwt"),
    "bad value": (
        '{"mesh": {"lease": {"duration": "soon"}}}',
        r"mesh\.lease\.duration is 'soon', but must be a whole number",
    ),
    "missing variable": (
        '{"redis": {"url": "${NO_SUCH_URL}"}}',
        r"refers to \$\{NO_SUCH_URL\}, which is not set",
    ),
    "sets nothing": ("{}", "sets nothing"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_configuration_file_is_one_sentence(place: Place, name: str) -> None:
    text, sentence = FILES[name]
    (place.folder / "file.json").write_text(text)
    names = ("REDIS_URL", "MESH_NAMESPACE", "MESH_DATA_DIRS", "MESH_LAME_DUCK_MS", "MESH_JWT_SECRET")
    done = place.call("config", "check", "file.json", **dict.fromkeys(names))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(sentence, one_sentence(done))


def test_a_right_configuration_file(place: Place) -> None:
    (place.folder / "file.json").write_text(
        '{"mesh": {"lease": {"duration": 8000}}, "logging": {"level": "${LEVEL}"}}'
    )
    done = place.call("config", "check", "file.json", LEVEL="debug", MESH_LAME_DUCK_MS=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ok: file.json sets 2, the environment 4; policies: the shipped table, 5 rows.\n"
    (place.folder / "who.json").write_text('{"viewer": {\n"*": {"raed": "any"}}}')
    wrong = place.call("config", "check", MESH_POLICY_FILE="who.json")
    assert wrong.returncode == 2 and "who.json, line 2: unknown right 'raed'; there are" in one_sentence(
        wrong
    )
    missing = place.call("config", "check", "none.json")
    assert missing.returncode == 2 and "Cannot read the configuration file none.json" in one_sentence(missing)


def test_every_setting_is_shown_with_its_source(place: Place) -> None:
    (place.folder / "file.json").write_text('{"mesh": {"lease": {"duration": 8000}}}')
    url, secret = "redis://me:hidden@localhost:6379", "a-secret-of-more-than-thirty-two-bytes"
    environ = {"MESH_CONFIG": "file.json", "REDIS_URL": url, "MESH_JWT_SECRET": secret}
    done = place.call("config", "show", "-o", "json", **environ)
    rows = {row["setting"]: row for row in json.loads(done.stdout)}
    assert set(rows) == {row.env[0] for row in TABLE}
    assert (rows["MESH_LEASE_MS"]["value"], rows["MESH_LEASE_MS"]["source"]) == (
        "8000",
        "file.json: mesh.lease.duration",
    )
    assert (rows["REDIS_URL"]["value"], rows["REDIS_URL"]["source"]) == (
        "redis://me:***@localhost:6379",
        "REDIS_URL",
    )
    assert (rows["MESH_JWT_SECRET"]["value"], rows["MAX_TASK_RETRIES"]["source"]) == ("***", "default")
    assert "hidden" not in done.stdout and secret not in done.stdout
    assert (
        "MESH_LEASE_MS" in place.call("config", "show", "--set-only", "-o", "name", **environ).stdout.split()
    )


@pytest.mark.parametrize(
    "words", [("status",), ("discover",), EXECUTE, ("coordinator",), ("deploy",), ("demo",), ("task", "list")]
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
    assert place.mesh.store.tasks.counts() == {"data-processing": {"queued": 1}}


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


def test_a_coordinator_that_is_not_there(place: Place, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    done = place.call("discover", "--url", url, TRANSPORT_RETRIES="0")
    assert (done.returncode, done.stdout) == (5, "")
    assert url in one_sentence(done)


def test_the_reference_is_current() -> None:
    """Else run `python docs/generate.py`."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("docs_generate", docs / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (docs / "reference" / "cli.md").read_text(encoding="utf-8")
    assert module.filled("reference/cli.md", text) == text
    assert all(f"`mesh {name}" in text for name in COMMANDS)


def test_every_exit_code_is_documented() -> None:
    def leaves(kind: type[MeshError]) -> set[int]:
        return {kind.exit_code}.union(*map(leaves, kind.__subclasses__()))

    assert leaves(MeshError) <= set(EXIT_CODES)
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "--help"], capture_output=True, text=True, check=True
    )
    words = " ".join(done.stdout.split())
    assert all(f"{code} {meaning}" in words for code, meaning in EXIT_CODES.items())


def test_without_a_word_help_is_shown(place: Place) -> None:
    for words in ((), ("task",)):
        done = place.call(*words)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("Usage: mesh")


def test_help_costs_nothing() -> None:
    """Shells ask for it at every completion: neither Redis's client nor Celery is loaded."""
    code = (
        "import sys\nfrom mesh.cli.run import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "heavy = {'redis', 'celery', 'kombu', 'fastapi', 'rich', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for words in (
        ["--help"],
        ["execute", "--help"],
        ["deploy", "-h"],
        ["task", "-h"],
        ["task", "list", "-h"],
        ["--version"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def cpu_s(*command: str) -> float:
    """The least CPU time of five runs."""

    def children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(5):
        before = children()
        subprocess.run(command, capture_output=True, check=True)
        times.append(children() - before)
    return min(times)


def test_help_is_hardly_slower_than_click() -> None:
    """200 ms on a normal machine; said in a unit that holds on a slow and busy one too."""
    click = cpu_s(sys.executable, "-c", "import click")
    assert cpu_s(*MESH, "--help") < 2 * click
