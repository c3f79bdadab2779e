"""What every floor of tests shares: one private real server per test process, a fresh namespace per test."""

import itertools
import os
import secrets
import signal
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from mesh.store.embedded import Server, start_server
from tests.leaks import _nothing_leaks, leaks  # a fixture of every run

hypothesis.settings.register_profile("mesh", deadline=None)  # a busy machine is no defect of ours
hypothesis.settings.load_profile("mesh")
_numbers = itertools.count(1)
SECRET = secrets.token_hex(32)
"""Of every mesh that a test of this process starts."""
# A shell starts what runs in the background with Ctrl-C ignored, and so would everything be that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
leaks.know(SECRET)
__all__ = ["_nothing_leaks"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the fault matrix, tests/chaos."""
    chaos = parser.getgroup("chaos", "the fault matrix")
    chaos.addoption(
        "--chaos", choices=("test", "ci", "all"), default="test", help="which rows of tests/chaos to run"
    )
    chaos.addoption(
        "--chaos-report", metavar="FILE", help="write the rows' outcomes and recovery times, as JSON"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as slow, unless slow runs are asked for."""
    if config.getoption("chaos") == "test":
        slow = [item for item in items if item.get_closest_marker("ci")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """The developer's own mesh must neither change what tests see nor be touched by them."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("MESH_", "AGENT_", "COORDINATOR_")) or name in ("REDIS_URL", "REDIS_URL_FILE"):
            patch.delenv(name)
    patch.setenv("MESH_JWT_SECRET", SECRET)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for all tests of this process. A test that stops or freezes a server starts one of its own."""
    with start_server() as running:
        yield running


@pytest.fixture(scope="session")
def redis_url(server: Server) -> str:
    return server.url


@pytest.fixture
def namespace() -> str:
    """A name that no other test, run or process uses, so that nothing needs flushing between tests."""
    return f"t{next(_numbers)}-{uuid.uuid4().hex[:12]}"
