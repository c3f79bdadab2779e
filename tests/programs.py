"""Programs that some tests need, which may lie where only the PATH of root looks, and ports for what tests start."""

from __future__ import annotations

import os
import shutil
import socket

import pytest

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment; no program asks for it unless told to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
