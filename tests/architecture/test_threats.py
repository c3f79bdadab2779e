"""Each cell of the table of threats names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "threats.md").read_text()
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| **")]
NAMED = re.compile(r"`(\w+/\w+)::(\w+)`")


def test_every_cell_is_shown_by_a_test() -> None:
    assert len(ROWS) >= 13
    for credential, *cells in ROWS:
        assert len(cells) == 3, credential
        for cell in cells:
            assert NAMED.search(cell), f"{credential}: {cell}"


def test_every_test_that_is_named_is_there() -> None:
    for file, name in NAMED.findall(PAGE):
        source = (ROOT / "tests" / f"{file}.py").read_text()
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}::{name}"
