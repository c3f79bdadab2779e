"""The contestants, in the order in which an odd round runs them: ours next to stock Celery with the same pool."""

from __future__ import annotations

import importlib
from importlib import metadata

from benchmarks.contestants.base import Contestant

PLACES: dict[str, str] = {
    "ours-solo": "ours:OursSolo",
    "stock-solo": "stock:StockSolo",
    "ours-threads": "ours:OursThreads",
    "stock-threads": "stock:StockThreads",
    "ours-prefork": "ours:OursPrefork",
    "stock-prefork": "stock:StockPrefork",
    "taskiq": "peer_taskiq:Taskiq",
    "huey": "peer_huey:Huey",
    "dramatiq": "peer_dramatiq:Dramatiq",
    "saq": "peer_saq:Saq",
    "rq": "peer_rq:Rq",
    "rq-simple": "peer_rq:RqSimple",
}


def load(name: str) -> type[Contestant]:
    """The class of a contestant. ImportError says what is not installed."""
    module, _, attribute = PLACES[name].partition(":")
    found: type[Contestant] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found


def versions(contestant: type[Contestant]) -> dict[str, str]:
    """Distribution name -> version."""
    return {package: metadata.version(package) for package in contestant.packages}
