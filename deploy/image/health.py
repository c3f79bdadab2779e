"""The image's HEALTHCHECK: exit code 0 if the process of this container's role answers, else a sentence and 1.

It asks whether the process is alive, not whether Redis is: a restart would mend the former only.
"""

import os
import ssl
import sys
import tempfile
import urllib.request
from pathlib import Path

ROLE = Path(tempfile.gettempdir()) / "mesh-role"  # written by entrypoint.sh
PROBES = {
    "coordinator": ("MESH_COORDINATOR_PORT", 3000, "/health/live"),
    "agent": ("AGENT_PORT", 3000, "/health/live"),
    "flower": ("FLOWER_PORT", 5555, "/healthcheck"),
}


def main() -> int:
    """Ask; the exit code."""
    role = ROLE.read_text(encoding="ascii").strip() if ROLE.exists() else ""
    if role not in PROBES:
        return 0  # some other command: nobody to ask
    variable, port, path = PROBES[role]
    prefix = os.environ.get("FLOWER_URL_PREFIX", "").strip("/") if role == "flower" else ""
    scheme = "https" if role == "coordinator" and os.environ.get("MESH_COORDINATOR_CERT_FILE") else "http"
    url = f"{scheme}://127.0.0.1:{os.environ.get(variable) or port}{'/' if prefix else ''}{prefix}{path}"
    no_proxy = urllib.request.ProxyHandler({})  # whatever the proxy settings say
    # Its own process, on its own loopback: the certificate is for the name that callers use.
    tls = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    opener = urllib.request.build_opener(no_proxy, tls)
    try:
        with opener.open(url, timeout=4):
            return 0
    except OSError as error:
        print(f"{role} does not answer at {url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
