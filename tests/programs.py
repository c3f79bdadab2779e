"""Programs that some tests need, which may lie where only the PATH of root looks."""

from __future__ import annotations

import os
import shutil

import pytest

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
