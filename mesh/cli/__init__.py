"""The command line `mesh`. Data goes to standard output, talk to standard error."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments name, and end the process with its exit code."""
    from mesh.cli.run import run

    sys.exit(run(sys.argv[1:]))
