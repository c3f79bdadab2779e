"""Task types for the rotation of the secret: one that only works, one that publishes another by the agent's own certificate."""

from __future__ import annotations

from typing import Any

from mesh import Mesh, task


@task("double")
def double(payload: dict[str, Any]) -> int:
    """Twice the number."""
    return 2 * int(payload["n"])


@task("parent")
def parent(payload: dict[str, Any]) -> str:
    """The id of a child."""
    with Mesh() as mesh:
        return mesh.submit("double", payload).id
