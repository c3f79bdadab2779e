"""The built-in task type ``data-processing``: binds the engine to the mesh, and does nothing else."""

from functools import cache
from pathlib import Path
from typing import Any

from mesh import task
from mesh.settings import Settings

from .engine_files import process

__all__ = ["data_processing"]


@cache
def _data_dirs() -> tuple[Path, ...]:
    return Settings.load().data_dirs


@task("data-processing")
def data_processing(payload: dict[str, Any]) -> dict[str, Any]:
    """SQL, map and reduce over files of the agent's data directories, or statistics of inline data.

    Payloads and answers are those of `mesh.tasks.engine_files.process`.
    """
    return process(payload, data_dirs=_data_dirs())
