"""The fault matrix: one test a row, and what a row says of itself. docs/faults.md is made from these (`tests.chaos.table`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

Area = Literal["agents", "coordinators", "redis", "network", "poison", "time", "leaving", "disaster"]
Tier = Literal["test", "ci", "all"]
AREAS: tuple[Area, ...] = (
    "agents",
    "coordinators",
    "redis",
    "network",
    "poison",
    "time",
    "leaving",
    "disaster",
)
TIERS: tuple[Tier, ...] = ("test", "ci", "all")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row. `bound_s`: the most that recovery may take, in seconds; None where nothing has to recover."""

    area: Area
    fault: str
    expect: str
    tier: Tier
    bound_s: float | None

    @property
    def key(self) -> str:
        """Names the row."""
        return f"{self.area}: {self.fault}"


def fault(
    area: Area,
    fault: str,
    *,
    expect: str,
    tier: Tier,
    bound_s: float | None = None,
    timeout_s: int = 180,
) -> Callable[[F], F]:
    """Make a test a row of the matrix.

    `fault` and `expect` are what the documentation's table says: what happens, and what the mesh promises then. `tier`: the
    smallest run that has it; `make test` runs "test", `.ci/run` also "ci", `make chaos` all. `bound_s` bounds what the test
    hands to the fixture `recovery`. `timeout_s`: a hanging test is ended then.
    """
    row = Fault(area=area, fault=fault, expect=expect, tier=tier, bound_s=bound_s)

    def mark(test: F) -> F:
        marked: F = pytest.mark.timeout(timeout_s)(pytest.mark.fault(row)(test))
        return marked

    return mark


def row_of(item: pytest.Item) -> Fault | None:
    """The row that a collected test is."""
    mark = item.get_closest_marker("fault")
    return mark.args[0] if mark is not None else None


def rows() -> list[Fault]:
    """Every row, by area, in the order of the sources; runs nothing."""
    found: dict[str, Fault] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for test in vars(importlib.import_module(f"tests.chaos.{path.stem}")).values():
            for mark in getattr(test, "pytestmark", ()) if callable(test) else ():
                if mark.name == "fault":
                    found[mark.args[0].key] = mark.args[0]
    return sorted(found.values(), key=lambda row: AREAS.index(row.area))
