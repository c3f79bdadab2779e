"""A capability of your own: agents that import this module offer `checksum`."""

import hashlib
from pathlib import Path

from pydantic import BaseModel

from mesh import task


class File(BaseModel):
    path: str
    algorithm: str = "sha256"


@task("checksum", examples=[File(path="tasks.py")])
def checksum(payload: File) -> dict[str, str]:
    """Compute the checksum of a file."""
    digest = hashlib.new(payload.algorithm, Path(payload.path).read_bytes())
    return {"path": payload.path, payload.algorithm: digest.hexdigest()}
