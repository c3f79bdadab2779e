"""The backup scripts: what they refuse, in one line and with which exit code, and that nothing half-done stays."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.chaos.fleet import ROOT

SCRIPTS = ROOT / "deploy" / "backup"
pytestmark = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="there is no redis-cli on PATH")


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / name), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "which folder?"),
        (("--keep", "some", "b"), 2, "--keep is 'some', but must be a number"),
        (("--loud", "b"), 2, "there is no option --loud"),
        (("--url", "http://x", "b"), 2, "the URL must begin with redis://"),
        (("--url", "redis://user:secret@127.0.0.1:1", "b"), 5, "Redis at 127.0.0.1:1 does not answer"),
    ],
)
def test_a_backup_that_cannot_be_made_is_one_line(
    tmp_path: Path, words: tuple[str, ...], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("redis-backup.sh", *words)
    assert (done.returncode, done.stdout) == (code, "") and done.stderr.count("\n") == 1
    assert sentence in done.stderr and "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
def test_a_damaged_backup_is_not_restored(tmp_path: Path, redis_url: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "dump.rdb").write_text("what is there")
    assert run("redis-backup.sh", "--url", redis_url, str(tmp_path / "b")).returncode == 0
    (made,) = (tmp_path / "b").iterdir()
    with (made / "dump.rdb").open("ab") as file:
        file.write(b"more")
    done = run("redis-restore.sh", str(made), str(data))
    assert done.returncode == 1 and "is damaged" in done.stderr
    assert [file.name for file in data.iterdir()] == ["dump.rdb"]
    assert run("redis-restore.sh", str(data), str(data)).returncode == 2
    assert run("redis-restore.sh", str(made)).returncode == 2
