"""Agent Mesh: run work on a fleet of Celery agents, with leases, exact results and recovery in seconds.

Importing this package does no work: each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh import errors
    from mesh.bus.app import app
    from mesh.bus.current import current
    from mesh.bus.install import install
    from mesh.bus.task import task
    from mesh.client import Handle, Mesh
    from mesh.telemetry.tracing import continue_trace

__version__ = "0.1.0"
__all__ = ["Handle", "Mesh", "app", "continue_trace", "current", "errors", "install", "task"]

_HOMES = {
    "Handle": "mesh.client",
    "Mesh": "mesh.client",
    "app": "mesh.bus.app",
    "continue_trace": "mesh.telemetry.tracing",
    "current": "mesh.bus.current",
    "errors": "mesh.errors",
    "install": "mesh.bus.install",
    "task": "mesh.bus.task",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module = importlib.import_module(_HOMES[name])
        value = module if name == "errors" else getattr(module, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
