"""The engine of the task type task-execution: what may be run, with what, and that nothing of it is left."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import Invalid, MeshError, Refused
from mesh.tasks.engine_command import SEARCH_PATH, parse
from mesh.tasks.engine_process import CommandFailed, execute
from mesh.tasks.task_execution import EXAMPLES, PAYLOAD_SCHEMA
from mesh.tasks.warden import _kill
from tests.waiting import wait_until

ALLOWED = ("sh", "cat", "wc", "sleep", "/bin/echo", "nonesuch", "/no/such/program")


def run(
    payload: Any, folder: Path, *, limit: int = 1 << 20, hook: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    command = parse(payload, allowed=ALLOWED, data_dirs=[folder])
    answer = execute(command, result_limit_bytes=limit, check=hook)
    assert len(json.dumps(answer)) <= limit
    return answer


def shell(script: str, folder: Path, **more: Any) -> dict[str, Any]:
    hooks = {name: more.pop(name) for name in ("limit", "hook") if name in more}
    return run({"command": ["sh", "-c", script], **more}, folder, **hooks)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- what it does


def test_a_program_gets_words_input_and_variables(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    answer = run(
        {
            "command": ["sh", "-c", 'cat; echo "$WHO:$1:$PWD:$HOME" >&2; exit 3', "sh", "a b; $(id)"],
            "env": {"WHO": "é"},
            "stdin": "in\n",
            "cwd": "sub",
        },
        tmp_path,
    )
    assert answer.pop("duration_s") > 0
    err = f"é:a b; $(id):{tmp_path}/sub:{tmp_path}/sub\n"
    assert answer == {
        "exit_code": 3, "signal": None, "timed_out": False, "truncated": False,
        "stdout": "in\n", "stdout_bytes": 3, "stderr": err, "stderr_bytes": len(err.encode()),
    }  # fmt: skip


def test_nothing_of_the_agent_is_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_JWT_SECRET", "secret")
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        answer = shell("env | cut -d= -f1 | sort; ls /proc/self/fd | wc -l", tmp_path)
    finally:
        os.close(secret)
    assert answer["stdout"].split() == ["HOME", "LANG", "PATH", "PWD", "4"], (
        "0, 1, 2, and the folder that ls reads"
    )


def test_without_input_it_reads_nothing_and_large_input_does_not_block(tmp_path: Path) -> None:
    assert run({"command": ["wc", "-c"]}, tmp_path)["stdout"].strip() == "0"
    text = "x" * 3_000_000
    assert run({"command": ["wc", "-c"], "stdin": text}, tmp_path)["stdout"].strip() == "3000000"
    answer = run({"command": ["cat"], "stdin": text, "max_output_bytes": 10}, tmp_path)
    assert (answer["stdout"], answer["stdout_bytes"], answer["truncated"]) == ("x" * 10, 3_000_000, True)
    assert shell("exec <&-; exit 0", tmp_path, stdin=text)["exit_code"] == 0, "it does not read at all"


def test_bytes_go_in_and_out_as_base64(tmp_path: Path) -> None:
    data = bytes(range(256))
    answer = run({"command": ["cat"], "stdin": {"base64": base64.b64encode(data).decode()}}, tmp_path)
    assert base64.b64decode(answer["stdout"]["base64"]) == data


def test_text_is_cut_between_characters_and_fits_the_result(tmp_path: Path) -> None:
    answer = run({"command": ["cat"], "stdin": "aé" * 100, "max_output_bytes": 5}, tmp_path)
    assert (answer["stdout"], answer["truncated"]) == ("aéa", True)
    answer = shell("cat; cat /dev/zero | head -c 50000 >&2", tmp_path, stdin="é" * 40_000, limit=20_000)
    assert answer["truncated"] and answer["stdout"] and answer["stderr"]
    assert (answer["stdout_bytes"], answer["stderr_bytes"]) == (80_000, 50_000)


def test_both_outputs_are_read_at_once(tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5; do head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; done"
    answer = shell(script, tmp_path, max_output_bytes=0)
    assert (answer["stdout_bytes"], answer["stderr_bytes"], answer["stdout"]) == (1_000_000, 1_000_000, "")


# -- how it ends


def test_a_time_limit_ends_the_whole_group(tmp_path: Path) -> None:
    script = "echo $$; (sleep 1000 & echo $!); trap '' TERM; sleep 1000 & echo $!; setsid sleep 1000 & wait"
    answer = shell(script, tmp_path, timeout_s=1)
    assert (answer["timed_out"], answer["exit_code"], answer["signal"]) == (True, None, "SIGKILL")
    pids = [int(word) for word in answer["stdout"].split()]
    assert len(pids) == 3 and not any(map(is_there, pids))


def test_what_is_left_behind_is_ended_with_it(tmp_path: Path) -> None:
    answer = shell("setsid sh -c 'echo $$; sleep 1000' & sleep 1000 & echo $!; kill -9 $$", tmp_path)
    assert (answer["signal"], answer["exit_code"]) == ("SIGKILL", None)
    assert not any(is_there(int(word)) for word in answer["stdout"].split())


def test_it_may_end_by_itself_when_it_is_asked_to(tmp_path: Path) -> None:
    answer = shell("trap 'echo bye; exit 7' TERM; sleep 1000 & wait", tmp_path, timeout_s=1)
    assert (answer["timed_out"], answer["exit_code"], answer["stdout"]) == (True, 7, "bye\n")


@pytest.mark.parametrize("left", [False, True], ids=["in its group", "left its group"])
def test_a_signal_reaches_it_once(left: bool) -> None:
    """Real-time signals are counted by the kernel; of others it delivers two in quick succession as one, or as two."""
    code = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
if sys.argv[1] == "True":
    os.setpgid(0, os.getpgid(os.getppid()))
print("ready", flush=True)
input()
received = 0
while signal.sigtimedwait([signal.SIGRTMIN], 0):
    received += 1
print(received)
"""
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(left)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert program.stdin is not None and program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    _kill(program.pid, signal.SIGRTMIN)
    assert program.communicate("go\n")[0] == "1\n"


class Over(BaseException):
    pass


def test_the_attempts_own_end_ends_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def over() -> None:
        if pid.exists():
            raise Over

    with pytest.raises(Over):
        shell("echo $$ > new; mv new pid; sleep 1000", tmp_path, hook=over)
    assert not is_there(int(pid.read_text()))


def test_it_does_not_outlive_the_process_that_runs_it(tmp_path: Path) -> None:
    code = """
import pathlib, sys
from mesh.tasks.engine_command import parse
from mesh.tasks.engine_process import execute

script = "sleep 1000 & echo $! $$ $PPID > new; mv new pids; wait"
command = parse({"command": ["sh", "-c", script]}, allowed=["sh"], data_dirs=[pathlib.Path(sys.argv[1])])
execute(command, result_limit_bytes=1000)
"""
    agent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until((tmp_path / "pids").exists, 20, "the program to start")
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert all(map(is_there, pids))
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    wait_until(lambda: not any(map(is_there, pids)), 10, "the program, its child and its warden to end")


def test_it_does_not_outlive_its_warden(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="the warden of 'sh' was killed, and the program with it"):
        shell("echo $$ > pid; kill -9 $PPID; exec sleep 1000", tmp_path)
    wait_until(lambda: not is_there(int((tmp_path / "pid").read_text())), 10, "the program to end")


def test_with_check_a_bad_end_is_a_failure(tmp_path: Path) -> None:
    assert shell("exit 0", tmp_path, check=True)["exit_code"] == 0
    for script, words in (
        ("echo no such page >&2; echo >&2; exit 4", "command 'sh': exit code 4: no such page"),
        ("kill -11 $$", "command 'sh': ended by SIGSEGV"),
        ("sleep 1000", "command 'sh': not done within 0.2 s"),
    ):
        with pytest.raises(CommandFailed, match=words):
            shell(script, tmp_path, check=True, timeout_s=0.2 if "sleep" in script else 60)


# -- what is refused


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ("ls", "payload is an object, not str"),
        ({}, "'command' must be a list of 1 to"),
        ({"command": "cat /etc/passwd"}, "the program first (no shell reads it), not 'cat /etc/passwd'"),
        ({"command": []}, "'command' must be a list"),
        ({"command": [""]}, "'command'[0] must name a program"),
        ({"command": ["cat", 1]}, "'command'[1] must be a text, not 1"),
        ({"command": ["cat", "a\0b"]}, "'command'[1] must not contain a NUL"),
        ({"command": ["cat", "\ud800"]}, "'command'[1] is not valid Unicode"),
        ({"command": ["cat"], "comand": 1}, "unknown key 'comand' (known: command, env"),
        ({"command": ["cat"], "shell": True}, "unknown key 'shell'"),
        ({"command": ["cat"], "env": ["A=b"]}, "'env' must be an object"),
        ({"command": ["cat"], "env": {"A=B": "c"}}, "'env' has 'A=B', which is no name of a variable"),
        ({"command": ["cat"], "env": {"A": 1}}, "'env' A must be a text, not 1"),
        ({"command": ["cat"], "env": {"A": "\0"}}, "'env' A must not contain a NUL"),
        ({"command": ["cat"], "env": {"LD_PRELOAD": "x.so"}}, "'env' must not set LD_PRELOAD"),
        ({"command": ["cat"], "env": {"PATH": "/tmp"}}, "'env' must not set PATH"),
        ({"command": ["cat"], "env": {"PYTHONPATH": "/tmp"}}, "'env' must not set PYTHONPATH"),
        ({"command": ["cat"], "stdin": 1}, "'stdin' must be a text or {'base64': text}, not 1"),
        ({"command": ["cat"], "stdin": {"base64": "?"}}, "'stdin' has a 'base64' that is not base64"),
        ({"command": ["cat"], "stdin": {"base64": "", "more": 1}}, "'stdin' must be a text or"),
        ({"command": ["cat"], "timeout_s": 0}, "'timeout_s' must be a number of seconds above 0"),
        ({"command": ["cat"], "timeout_s": True}, "'timeout_s' must be"),
        ({"command": ["cat"], "timeout_s": float("nan")}, "'timeout_s' must be"),
        ({"command": ["cat"], "max_output_bytes": -1}, "'max_output_bytes' must be a whole number from 0"),
        ({"command": ["cat"], "max_output_bytes": 1.5}, "'max_output_bytes' must be"),
        ({"command": ["cat"], "check": 1}, "'check' must be true or false, not 1"),
        ({"command": ["cat"], "cwd": ".."}, "'cwd' '..' is not a folder in the agent's data directories"),
        ({"command": ["cat"], "cwd": "/"}, "'cwd' '/' is not a folder"),
        ({"command": ["cat"], "cwd": "link"}, "'cwd' 'link' is not a folder"),
        ({"command": ["cat"], "cwd": "file"}, "'cwd' 'file' is not a folder"),
        ({"command": ["nonesuch"]}, "program 'nonesuch' is allowed, but there is none on this agent"),
        ({"command": ["/no/such/program"]}, "program '/no/such/program' is allowed, but there is none"),
    ],
)  # fmt: skip
def test_a_bad_payload_gets_one_sentence(payload: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path)
    (tmp_path / "data" / "file").touch()
    with pytest.raises(Invalid) as caught:
        run(payload, tmp_path / "data")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").write_text("#!/no/such/interpreter\n")
    (tmp_path / "broken").chmod(0o755)
    payload = {"command": [str(tmp_path / "broken")]}
    command = parse(payload, allowed=[str(tmp_path / "broken")], data_dirs=[tmp_path])
    with pytest.raises(Invalid, match="cannot be started: No such file or directory"):
        execute(command, result_limit_bytes=1000)
    with pytest.raises(Invalid, match="'cat' cannot be started: Argument list too long"):
        run({"command": ["cat", "x" * 200_000]}, tmp_path)


def test_nothing_is_allowed_by_default(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match="this agent runs no commands: its operator allows programs by MESH_ALLOWED_COMMANDS"
    ):
        parse({"command": ["cat"]}, allowed=(), data_dirs=[tmp_path])


@pytest.mark.parametrize(
    "name", ["ls", "./cat", "bin/cat", "../bin/cat", "/tmp/cat", "cat ", "CAT", "/usr/bin/../bin/env"]
)
def test_only_allowed_programs_are_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        Refused,
        match="is not allowed on this agent: MESH_ALLOWED_COMMANDS has /bin/echo, /no/such/program, cat",
    ):
        run({"command": [name]}, tmp_path)


def test_a_program_is_its_name_and_its_file(tmp_path: Path) -> None:
    """As in a multi-call binary: one file, many programs; and as with links: one name, many files."""
    real = tmp_path / "real"
    real.write_text('#!/bin/sh\necho "$0"\n')
    real.chmod(0o755)
    for name in ("one", "two", "deep/one"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(real)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "one").write_bytes(real.read_bytes())
    (tmp_path / "other" / "one").chmod(0o755)

    def allowed(path: str) -> bool:
        try:
            parse({"command": [str(tmp_path / path)]}, allowed=[str(tmp_path / "one")], data_dirs=[tmp_path])
        except Refused:
            return False
        return True

    names = ("one", "deep/one", "other/../one", "two", "real", "other/one")
    assert [allowed(path) for path in names] == [True, True, True, False, False, False]


def test_names_are_looked_up_on_a_fixed_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "cat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run({"command": ["cat"], "stdin": "real"}, tmp_path)["stdout"] == "real"
    assert str(tmp_path) not in SEARCH_PATH


def test_the_schema_and_the_engine_agree() -> None:
    import jsonschema_rs

    validator = jsonschema_rs.validator_for(PAYLOAD_SCHEMA)
    for example in EXAMPLES:
        validator.validate(example)
    for bad in (
        {},
        {"command": []},
        {"command": "ls"},
        {"command": ["ls"], "cwd": 1},
        {"command": ["ls"], "timeout_s": 0},
    ):
        assert not validator.is_valid(bad)
