"""`mesh` on a terminal, in a pipe, and under the shell's completion."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import termios
import threading
from dataclasses import dataclass, field

import pytest

from tests.acceptance.conftest import MESH, Place
from tests.waiting import wait_until

ESCAPE = "\x1b["
EXECUTE = ("execute", "--task-type", "half", "--payload")
HALF = """
from mesh import current, task

@task("half")
def half(payload: dict):
    current.progress(0.5, "half way")
    with open(payload["fifo"]) as fifo:
        return fifo.read()
"""


@dataclass(kw_only=True)
class Terminal:
    """A command on a pseudo-terminal; what it writes is read all the time, as a terminal does."""

    process: subprocess.Popen[bytes]
    master: int
    written: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux's way of saying that the other end is closed
                return
            if not data:
                return
            self.written += data

    def text(self) -> str:
        return self.written.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Its exit code, once all that it wrote is read."""
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
        self._reader.join(10)
        os.close(self.master)
        return code


def on_terminal(place: Place, *words: str, columns: int = 100, **environ: str | None) -> Terminal:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = place.environment({"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": None, **environ})
    process = subprocess.Popen(
        [*MESH, *words], stdin=slave, stdout=slave, stderr=slave, cwd=place.folder, env=environment,
        start_new_session=True, preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(slave)
    return Terminal(process=process, master=master)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_help_stands_out_on_a_terminal_only(place: Place) -> None:
    shown = on_terminal(place, "task", "list", "--help")
    assert shown.end() == 0
    assert f"{ESCAPE}1mUsage:" in shown.text() and f"{ESCAPE}36m--state" in shown.text()
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = on_terminal(place, "task", "list", "--help", **environ)
        assert plain.end() == 0 and ESCAPE not in plain.text() and "--state" in plain.text()
    assert ESCAPE not in place.run("task", "list", "--help").stdout


def test_a_table_fits_the_terminal(place: Place) -> None:
    for number in range(2):
        place.mesh.submit(
            "a-task-type-with-a-long-name", None, task_id=f"invoice-{number}", unsatisfiable="accept"
        )
    for columns in (40, 80, 200):
        shown = on_terminal(place, "task", "list", "--no-color", columns=columns)
        assert shown.end() == 0
        lines = shown.text().splitlines()
        assert max(map(len, lines)) <= columns and lines[1].startswith("invoice-1  queued"), lines
        assert ("a-task-type-with-a-long-name" in lines[1]) == (columns == 200)
    piped = place.run("task", "list").stdout.splitlines()
    assert "a-task-type-with-a-long-name  a-task-type-with-a-long-name" in piped[1]


def test_a_view_is_redrawn_in_place_until_ctrl_c(place: Place) -> None:
    watching = on_terminal(place, "status", "--watch=0.1")
    wait_until(lambda: watching.text().count("leader") >= 3, 30, "three views")
    assert f"{ESCAPE}1A" in watching.text()  # the cursor goes up: nothing scrolls
    watching.type(b"\x03")
    assert watching.end() == 130
    assert "Traceback" not in watching.text() and watching.text().endswith(
        f"{ESCAPE}?25h\n"
    )  # the cursor is back


def test_dead_letters_are_discarded_after_a_question(place: Place) -> None:
    store = place.mesh.store
    for number in range(3):
        store.client.execute("ZADD", store.keys["dead"], number, f"t{number}")
        store.client.execute(
            "HSET",
            store.keys.of("task", f"t{number}"),
            *["state", "dead_lettered", "type", "a", "queue", "a"],
        )
    asked = on_terminal(place, "dead-letter", "discard", "--all")
    wait_until(lambda: "Discard 3 dead letters? [y/N]" in asked.text(), 30, "the question")
    asked.type(b"n\n")
    assert asked.end() == 0 and "Nothing was changed." in asked.text()
    assert len(place.mesh.dead_letters()) == 3
    asked = on_terminal(place, "dead-letter", "discard", "--all")
    wait_until(lambda: "[y/N]" in asked.text(), 30, "the question")
    asked.type(b"y\n")
    assert asked.end() == 0 and place.mesh.dead_letters() == []


def test_long_work_shows_its_progress(place: Place) -> None:
    (place.folder / "work.py").write_text(HALF)
    place.agent("w1", "-I", "work")
    gate = place.gate()
    payload = json.dumps({"fifo": str(gate.fifo)})
    shown = on_terminal(place, *EXECUTE, payload, "--wait", columns=120)
    wait_until(lambda: "running, on w1, 50% half way" in shown.text(), 60, "the progress")
    gate.open("done")
    assert shown.end() == 0
    assert "━" in shown.text() and shown.text().endswith('"done"\n')
    plain = place.start(*EXECUTE, payload, "--wait", "-v")
    place.wait_for(plain, lambda: "50% half way" in plain.output(), "the progress")
    gate.open("again")
    assert plain.wait() == 0
    assert plain.output().splitlines() == ["running, on w1, 50% half way", "succeeded, on w1", '"again"']


@pytest.mark.parametrize("words", ["--help", "config show -o json", "discover --watch=0.1 -o json"])
def test_a_reader_that_has_gone_is_no_news(place: Place, words: str) -> None:
    script = f"set -o pipefail; {MESH[0]} {words} | true"
    done = place.run("-c", script, command=["bash"])
    assert (done.returncode, done.stderr) == (141, "")  # as of any program that SIGPIPE ends


COMPLETIONS = {
    "mesh ta": ["task"],
    "mesh task ": ["list", "get", "watch", "why", "cancel", "retry"],
    "mesh discover --st": ["--status"],
    "mesh discover --status dr": ["draining"],
    "mesh agent describe w": ["w-one", "w-two"],
    "mesh drain w-one w-t": ["w-two"],
    "mesh execute --requires gpu,": ["gpu,gpu", "gpu,ocr"],
    "mesh discover --region ": ["eu"],
    "mesh task get inv": ["invoice-1"],
    "mesh -n elsewhere agent describe ": [],
}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_what_is_in_the_registry(place: Place, closed_port: int) -> None:
    for name, capability in (("w-one", "ocr"), ("w-two", "gpu")):
        place.mesh.store.agents.join(
            name, {"id": name, "region": "eu", "capabilities": capability}, [capability]
        )
    place.mesh.submit("ocr", None, task_id="invoice-1", unsatisfiable="accept")
    script = place.run("completion", "bash").stdout
    asks = "\n".join(
        f"COMP_WORDS=({line}{' ' if line[-1] != ' ' else chr(34) * 2}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        'COMPREPLY=(); _mesh_completion mesh; echo "${COMPREPLY[*]}"'
        for line in COMPLETIONS
    )
    path = f"{os.path.dirname(MESH[0])}:{os.environ['PATH']}"
    done = place.run("-c", f"{script}\n{asks}", command=["bash"], PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(zip(COMPLETIONS, (line.split() for line in done.stdout.splitlines()), strict=True))
    assert {line: sorted(words) for line, words in found.items()} == {
        line: sorted(words) for line, words in COMPLETIONS.items()
    }
    down = {"COMP_WORDS": "mesh agent describe ", "COMP_CWORD": "3", "_MESH_COMPLETE": "bash_complete"}
    silent = place.run(REDIS_URL=f"redis://127.0.0.1:{closed_port}", **down)
    assert (silent.returncode, silent.stdout.strip(), silent.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(place: Place, shell: str) -> None:
    done = place.call("completion", shell)
    assert done.returncode == 0 and f"_MESH_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        checked = subprocess.run(
            [shell, "-n"], input=done.stdout, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_a_module_is_the_command_too(place: Place) -> None:
    done = place.run(
        "-m", "mesh", "--version", command=[shutil.which("python3", path=os.path.dirname(MESH[0])) or ""]
    )
    assert done.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
