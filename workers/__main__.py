"""`python -m mesh.workers`: what `celery -A mesh worker` does, without loading the commands and plug-ins beside it.

`mesh deploy` becomes this. Celery's own command line imports every command and every plug-in that is installed (Flower
among them): half of an agent's start.
"""

from __future__ import annotations

import os
import sys

from celery import maybe_patch_concurrency


def main() -> None:
    """Run a worker with the arguments of this process."""
    arguments = sys.argv[1:]
    # Celery starts itself anew from these words: `python` and all of them on SIGHUP, `python -m celery` and all but the
    # first for --detach.
    detaching = {"-D", "--detach"} & set(arguments)
    words = ["celery", "-A", "mesh", "worker"] if detaching else ["-m", "mesh.workers"]
    sys.argv = [*words, *arguments]
    maybe_patch_concurrency()  # before anything else is imported
    from celery.bin.base import CLIContext
    from celery.bin.worker import worker

    from ..bus.app import app

    worker.params.extend(app.user_options["worker"])
    context = CLIContext(app=app, no_color=bool(os.environ.get("NO_COLOR")), workdir=None)
    worker.main(arguments, prog_name="mesh deploy --", obj=context, auto_envvar_prefix="CELERY_WORKER")


if __name__ == "__main__":
    main()
