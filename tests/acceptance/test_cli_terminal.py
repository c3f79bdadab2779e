"""`mesh` on a terminal, in a pipe, and under the shell's completion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from click.shell_completion import BashComplete

from mesh.cli.run import COMPLETING, group
from tests.acceptance.conftest import MESH, Place, only_environment
from tests.acceptance.terminal import ESCAPE, on_terminal
from tests.waiting import wait_until


def test_help_stands_out_on_a_terminal_only(place: Place) -> None:
    shown = on_terminal(place, "task", "list", "--help")
    assert shown.end() == 0
    assert f"{ESCAPE}1mUsage:" in shown.text() and f"{ESCAPE}36m--state" in shown.text()
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = on_terminal(place, "task", "list", "--help", **environ)
        assert plain.end() == 0 and ESCAPE not in plain.text() and "--state" in plain.text()
    assert ESCAPE not in place.run("task", "list", "--help").stdout


def test_a_table_fits_the_terminal(place: Place) -> None:
    piped = place.run("config", "show").stdout.splitlines()
    setting = max((line.split()[0] for line in piped), key=len)
    for columns in (50, 90):
        shown = on_terminal(place, "config", "show", columns=columns)
        assert shown.end() == 0
        lines = shown.text().splitlines()
        assert len(lines) == len(piped) and max(map(len, lines)) <= columns
        assert any(line.split()[0] == setting for line in lines)  # the name of a thing is never cut
        assert "…" in shown.text() and "…" not in "".join(piped)


def test_a_view_is_redrawn_in_place_until_ctrl_c(place: Place) -> None:
    watching = on_terminal(place, "status", "--watch=0.1")
    wait_until(lambda: watching.text().count("leader") >= 3, 30, "three views")
    assert f"{ESCAPE}1A" in watching.text()  # the cursor goes up: nothing scrolls
    watching.type(b"\x03")
    assert watching.end() == 130
    assert "Traceback" not in watching.text()
    assert watching.text().rstrip().endswith(f"{ESCAPE}?25h")  # the cursor is back


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


@pytest.mark.parametrize("words", ["--help", "config show -o json"])
def test_a_reader_that_has_gone_is_no_news(place: Place, words: str) -> None:
    script = f"set -o pipefail; {MESH[0]} {words} | true"
    done = place.run("-c", script, command=["bash"])
    assert (done.returncode, done.stderr) == (141, "")  # as of any program that SIGPIPE ends


COMPLETIONS = {
    "mesh ta": ["task"],
    "mesh task ": ["list", "get", "watch", "why", "cancel", "retry"],
    "mesh discover --st": ["--status"],
    "mesh discover --status dr": ["draining"],
    "mesh discover --region ": ["eu"],
    "mesh agent describe w": ["w-one", "w-two"],
    "mesh drain w-one w-t": ["w-two"],
    "mesh execute --requires ocr,": ["ocr,gpu", "ocr,ocr"],
    "mesh task get inv": ["invoice-1"],
    "mesh -n elsewhere agent describe ": [],
}


def completed(place: Place, line: str, **environ: str) -> list[str]:
    *words, begun = line.split(" ")
    with only_environment(place.environment(dict(environ))):
        completer = BashComplete(group, {}, "mesh", COMPLETING)
        return [str(item.value) for item in completer.get_completions(words[1:], begun)]


@pytest.fixture
def registry(place: Place) -> Place:
    """A namespace in which two agents have registered and a task waits."""
    for name, capability in (("w-one", "ocr"), ("w-two", "gpu")):
        place.mesh.store.agents.join(name, {"id": name, "region": "eu", "capabilities": capability})
    place.mesh.submit("ocr", None, task_id="invoice-1", unsatisfiable="accept")
    return place


def test_words_are_completed_from_the_registry(registry: Place, closed_port: int) -> None:
    found = {line: sorted(completed(registry, line)) for line in COMPLETIONS}
    assert found == {line: sorted(words) for line, words in COMPLETIONS.items()}
    gone = f"redis://127.0.0.1:{closed_port}"
    assert completed(registry, "mesh agent describe w", REDIS_URL=gone) == []
    assert completed(registry, "mesh agent describe w", REDIS_URL="nonsense") == []


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_script_completes_in_bash(registry: Place) -> None:
    script = registry.call("completion", "bash").stdout
    ask = "COMP_WORDS=(mesh agent describe w); COMP_CWORD=3; _mesh_completion mesh; echo ${COMPREPLY[*]}; complete -p mesh"
    path = f"{os.path.dirname(MESH[0])}:{os.environ['PATH']}"
    done = registry.run("-c", f"{script}\n{ask}", command=["bash"], PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.splitlines()[0] == "w-one w-two"
        and "_mesh_completion mesh" in done.stdout.splitlines()[1]
    )


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
