"""The examples, by the commands of their own READMEs, with real agents."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Place, Running, make_place

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def commands(example: str) -> list[str]:
    text = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.M | re.S)
    return [line for line in block.splitlines() if line]


@pytest.fixture
def place(redis_url: str, namespace: str, tmp_path: Path) -> Iterator[Place]:
    with make_place(redis_url, namespace, tmp_path) as made:
        (tmp_path / "tasks.py").unlink()
        del made.environ["MESH_JWT_SECRET"]
        made.environ["PATH"] = f"{Path(sys.executable).parent}:{made.environ['PATH']}"
        yield made


def follow(place: Place, example: str) -> list[str]:
    """Type the README's commands; what each that ends prints."""
    shutil.copytree(EXAMPLES / example, place.folder, dirs_exist_ok=True)
    agents: dict[str, Running] = {}
    printed = []
    for line in commands(example):
        if made := re.fullmatch(r"export (\w+)=\$\(mesh (.*)\)", line):
            place.environ[made[1]] = place.call(*made[2].split()).stdout.strip()
            continue
        words = shlex.split(line.removesuffix(" &"))
        if line.endswith(" &"):
            agents[words[words.index("--agent-id") + 1]] = place.start(*words, command=[])
            continue
        for agent_id, process in agents.items():
            place.wait_for(process, lambda name=agent_id: place.pid_of(name), f"agent {agent_id}")  # type: ignore[misc]
        done = place.call(*words[1:]) if words[0] == "mesh" else place.run(*words, command=[])
        assert done.returncode == 0, f"{line}: {done.stderr}"
        printed.append(done.stdout)
    return printed


def test_a_capability_of_ones_own(place: Place) -> None:
    assert len((EXAMPLES / "own_capability" / "tasks.py").read_text().splitlines()) <= 21
    listed, submitted, executed = follow(place, "own_capability")
    assert "agent-1" in listed and "agent-2" in listed
    files = {name: (EXAMPLES / "own_capability" / name).read_bytes() for name in ("tasks.py", "submit.py")}
    *lines, refused = submitted.splitlines()
    assert sorted(lines) == sorted(
        f"{hashlib.sha256(data).hexdigest()[:12]} {name}" for name, data in files.items()
    )
    assert refused == "The payload of task checksum is wrong at payload: path is missing."
    assert refused in (EXAMPLES / "own_capability" / "README.md").read_text()
    assert json.loads(executed) == {"path": "tasks.py", "md5": hashlib.md5(files["tasks.py"]).hexdigest()}


def test_a_celery_project_that_was_taken_over(place: Place) -> None:
    listed, called, by_name, status = follow(place, "celery_project")
    assert by_name.strip() == "8", "a task of Celery's own kind, by its name"
    assert "clerk" in listed and "celery" in listed and "invoices" in listed
    assert called.splitlines() == ["6", "{'charged': 20, 'attempts': 2}", "{'lines': 2, 'total': 26}"]
    assert "invoices" in status
    assert (EXAMPLES / "celery_project" / "shop" / "celery.py").read_text().count("install") == 2, (
        "import, and the one line"
    )
