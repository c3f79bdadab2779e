"""The README's commands and programs in their order, as a reader would run them; and the generated pages of docs/."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.conftest import Place, Running

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", flags=re.M | re.S)
BLOCKS = BLOCK.findall(README)
STAY = ("mesh up", "mesh deploy", "celery -A")  # they run until they are stopped
ASSIGNMENT = re.compile(r"(\w+)=(\S*) +")  # in front of a command


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_what_make_would_do() -> None:
    """`make demo` is `mesh demo`, and `make test` these tests: each has tests of its own."""
    (block,) = [text for language, text in BLOCKS if language == "bash" and text.startswith("make")]
    assert block.splitlines() == ["make demo", "make test"]
    for target, command in (("demo", "mesh demo"), ("test", "pytest"), ("install", "")):
        environ = {
            name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")
        }
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        assert command in done.stdout


@pytest.fixture
def reader(place: Place) -> Place:
    """A folder without anything, a shell without settings but the namespace (and a private Redis instead of none)."""
    (place.folder / "tasks.py").unlink()
    place.environ["PATH"] = f"{Path(sys.executable).parent}:{place.environ['PATH']}"
    place.environ.pop("MESH_DATA_DIRS")
    return place


def run_blocks(reader: Place, blocks: list[tuple[str, str]]) -> list[str]:
    """What the blocks print, in their order."""
    outputs: list[str] = []
    for language, text in blocks:
        if language == "python":
            outputs += run_python(reader, text)
        elif not text.startswith("make"):
            for line in text.splitlines():
                outputs += run_line(reader, line)
    return outputs


def test_every_block_in_its_order(reader: Place) -> None:
    del reader.environ["MESH_JWT_SECRET"]  # `mesh up` makes one, and its line carries it
    outputs = run_blocks(reader, BLOCKS)
    seen = "\n".join(outputs)
    assert seen.count('"words": 6') == 1 and "{'words': 6}" in seen  # by the command and from Python
    assert "count-words" in seen and re.search(r"^w1 +healthy", seen, flags=re.M)
    assert re.search(r"^w2 +healthy", seen, flags=re.M) and '"queue":"count-words"' in seen
    assert outputs[-1].strip() == "5"


PAGES = {
    "capabilities.md": '"letters": 5',
    "celery-project.md": "",
    "routing.md": "No agent offers gpu and ocr",
    "security.md": "eyJ",
    "task-types.md": '"exit_code": 0',
}


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_commands_in_their_order(reader: Place, page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if page == "routing.md":
        reader.agent("w1", "--capabilities", "celery")
    assert PAGES[page] in "\n".join(run_blocks(reader, BLOCK.findall(text)))


def run_python(reader: Place, text: str) -> list[str]:
    """A module of the name that its first line says, or a program."""
    named = re.match(r"# (\w+\.py)\n", text)
    if named:
        (reader.folder / named[1]).write_text(text)
        return []
    done = reader.run("-c", text, command=[sys.executable])
    assert done.returncode == 0, done.stderr
    return [done.stdout]


def run_line(reader: Place, line: str) -> list[str]:
    exported = re.fullmatch(r"export (\w+)=\$\((.*)\)", line)
    if exported:
        (output,) = run_line(reader, exported[2])
        reader.environ[exported[1]] = output.strip()
        return []
    environ: dict[str, str | None] = {}
    while assigned := ASSIGNMENT.match(line):
        environ[assigned[1]] = assigned[2]
        line = line[assigned.end() :]
    words = [expanded(word, reader) for word in shlex.split(line, comments=True)]
    if line.startswith(STAY):
        process = reader.start(*words[1:], command=[program(words[0], reader)], **environ)
        reader.wait_for(process, ready(reader, process, line), line)
        if line.startswith("mesh up"):  # what the reader pastes into the other shells
            (exported,) = re.findall(r"^export (.*)$", process.output(), flags=re.M)
            reader.environ.update(word.split("=", 1) for word in shlex.split(exported))
        return []
    done = reader.run(*words[1:], command=[program(words[0], reader)], **environ)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return [done.stdout]


def expanded(word: str, reader: Place) -> str:
    return re.sub(r"\$(\w+)", lambda name: reader.environ[name[1]], word)


def program(name: str, reader: Place) -> str:
    found = shutil.which(name, path=reader.environ["PATH"])
    assert found, name
    return found


def ready(reader: Place, process: Running, line: str) -> Callable[[], object]:
    named = re.search(r"--agent-id (\S+)", line)
    if named:
        return lambda: reader.pid_of(named[1]) == process.process.pid
    return lambda: "export REDIS_URL=" in process.output()


def test_the_other_commands_that_it_names() -> None:
    from mesh.cli.run import COMMANDS

    named = set(re.findall(r"`mesh ([a-z]+)", README))
    assert named and named <= set(COMMANDS)


def test_the_generated_pages_are_current() -> None:
    """Else run `python docs/generate.py`."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in {name for name, _ in module.SECTIONS}:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert module.filled(page, text) == text, page
    for name, make in module.FILES.items():
        assert (ROOT / name).read_text(encoding="utf-8") == make(), name


def test_links_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *(ROOT / "examples").rglob("*.md"),
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
