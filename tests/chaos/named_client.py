"""A client in a process of its own: `python -m tests.chaos.named_client URL NAMESPACE EFFECTS STOP`.

Submits a task and waits for its result, over and over, until the file STOP is there; a line of JSON for each that came
back, with the address that it asks now.
"""

from __future__ import annotations

import json
import os
import sys
import time

from mesh.client import Mesh


def main() -> None:
    """Until it is told to stop."""
    url, namespace, effects, stop = sys.argv[1:]
    number = 0
    with Mesh(coordinator_url=url, namespace=namespace) as mesh:
        while not os.path.exists(stop):
            begun = time.monotonic()
            payload = {"number": number, "effects": effects, "seconds": 0.01}
            handle = mesh.submit("work", payload, task_id=f"named-{number}", unsatisfiable="accept")
            result = handle.result(timeout_s=60)
            line = {"id": handle.id, "number": result["number"], "took_s": time.monotonic() - begun}
            asked = mesh._port._calls.endpoints.order()[0].base  # type: ignore[attr-defined]
            print(json.dumps({**line, "asked": asked}), flush=True)
            number += 1


if __name__ == "__main__":
    main()
