"""Writes into the documentation what is kept in one table of the sources: `python docs/generate.py`.

A test fails when a page is behind its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mesh.core.states import CELERY_STATUS, RULES, State

DOCS = Path(__file__).resolve().parent


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _names(states: Iterable[State]) -> str:
    chosen = set(states)
    return " ".join(f"`{state}`" for state in State if state in chosen) or "(nothing)"


def states() -> str:
    """The moves of a task, and Celery's word for each state."""
    lines = ["| move | from | to | only its holder | when |", "|---|---|---|---|---|"]
    for verb, rule in RULES.items():
        holder = "yes" if rule.fenced else ""
        lines.append(_row((f"`{verb}`", _names(rule.sources), _names(rule.targets), holder, rule.meaning)))
    lines += ["", "| state | in Celery |", "|---|---|"]
    lines += [_row((f"`{state}`", word)) for state, word in CELERY_STATUS.items()]
    return "\n".join(lines)


#: (page, marker): what stands between `<!-- marker -->` and `<!-- end of marker -->`.
SECTIONS: dict[tuple[str, str], Callable[[], str]] = {("how-it-works.md", "states"): states}


def filled(page: str, text: str) -> str:
    """The page's text with all its generated sections as they should be."""
    for (name, marker), make in SECTIONS.items():
        if name == page:
            head, begin, rest = text.partition(f"<!-- {marker} -->\n")
            _, end, tail = rest.partition(f"<!-- end of {marker} -->")
            if not (begin and end):
                raise ValueError(f"{page} has no section {marker!r}")
            text = f"{head}{begin}{make()}\n{end}{tail}"
    return text


def main() -> None:
    """Rewrite all pages."""
    for page in {name for name, _ in SECTIONS}:
        path = DOCS / page
        path.write_text(filled(page, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
