"""`python -m mesh`: the command line, where the script `mesh` is not on PATH."""

from __future__ import annotations

from mesh.cli import main

if __name__ == "__main__":
    main()
