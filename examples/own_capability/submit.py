"""Submits a task for each file of this folder, and prints the results as they come."""

from pathlib import Path

from mesh import Mesh
from mesh.errors import Invalid

with Mesh() as mesh:
    handles = mesh.submit_many("checksum", [{"path": str(path)} for path in Path().glob("*.py")])
    for handle in mesh.as_completed(handles, timeout_s=60):
        result = handle.result()
        print(result["sha256"][:12], result["path"])
    try:
        mesh.submit("checksum", {"file": "tasks.py"})
    except Invalid as error:  # said here, not by an agent later: the agents have told the schema
        print(error)
