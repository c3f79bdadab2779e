"""Runs each test on each pool, `calm` and `killed`; ids look like `test_chain[prefork-calm]`.

`pytest tests/conformance -k "prefork and calm"` selects one of the eight combinations. Over Celery's own transport
(`CONFORMANCE_TRANSPORT=stock`) only `calm` exists: it loses the tasks of killed workers, or keeps them for an hour.
"""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from mesh.store.embedded import Server
from tests.conformance.app import STOCK, build_app
from tests.conformance.cluster import CONCURRENCY, ROOT, Cluster

TIMEOUT_S = {"calm": 60, "killed": 240}
LEASE = {"MESH_LEASE_MS": "3000", "MESH_LEASE_RENEW_MS": "750"}
"""Short enough that a killed agent's tasks come back many times within a run."""
WORK_S = {"calm": "0", "killed": "0.1"}
BY_CHANCE = {"killed": {"MESH_MAX_CRASHES": "100"}}
"""The kills are no task's fault: one that is hit three times is not poison."""

CELERYS_OWN_WARNINGS = (
    # An application that is closed, or a connection that is given back, leaves its sockets to the collector.
    "ignore:unclosed:ResourceWarning",
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
    # Its Redis result backend calls redis-py's old names.
    "ignore:Call to deprecated setex:DeprecationWarning",
)

_kills: dict[str, int] = {}
_running: Cluster | None = None


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "calm_only(reason): not in runs where agents are killed",
        "mesh_only(reason): Celery's own Redis transport fails it",
        "pools(*names, reason): on these pools only, for Celery itself has nothing of the kind on the others",
    ):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cluster" not in metafunc.fixturenames:
        return
    runs = ["calm"] if STOCK else ["calm", "killed"]
    if metafunc.definition.get_closest_marker("calm_only"):
        runs = ["calm"]
    combinations = [(pool, run) for pool in CONCURRENCY for run in runs]
    metafunc.parametrize(
        "cluster", combinations, ids=map("-".join, combinations), indirect=True, scope="session"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for ignored in CELERYS_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(ignored))
        if not isinstance(item, pytest.Function) or "cluster" not in getattr(item, "fixturenames", ()):
            continue
        pool, run = item.callspec.params["cluster"]
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[run]))
        pools = item.get_closest_marker("pools")
        if pools is not None and pool not in pools.args:
            item.add_marker(pytest.mark.skip(reason=pools.kwargs["reason"]))
        mesh_only = item.get_closest_marker("mesh_only")
        if mesh_only is not None and STOCK:
            item.add_marker(pytest.mark.skip(reason=mesh_only.kwargs["reason"]))


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two agents in a namespace (over stock Celery: a database) of their own, and the application as their client.

    The server is the whole session's: a result that outlives its test still talks to it when it is collected.
    """
    global _running
    pool, run = request.param
    base = tmp_path_factory.mktemp(f"{pool}-{run}")
    with pytest.MonkeyPatch.context() as patch:
        environment = {
            "REDIS_URL": f"{server.url.rstrip('/').removesuffix('/0')}/{list(CONCURRENCY).index(pool) if STOCK else 0}",
            "MESH_NAMESPACE": f"conformance-{pool}-{run}",
            "MESH_JWT_SECRET": secrets.token_hex(32),
            "CONFORMANCE_WORK_S": WORK_S[run],
            "PYTHONPATH": str(ROOT),
            **LEASE,
            **BY_CHANCE.get(run, {}),
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        made = Cluster(pool=pool, run=run, app=build_app(), environment=dict(os.environ), logs=base)
        try:
            made.start()
            _running = made
            yield made
        finally:
            _running = None
            _kills[f"{pool}-{run}"] = made.kills
            made.stop()
            made.app.close()
            gc.collect()
    if made.killer_error is not None:
        raise made.killer_error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _running is not None:
        report.sections.extend((f"log of {name}", text) for name, text in _running.describe_logs())
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, kills in _kills.items():
        if kills:
            terminalreporter.write_line(f"{name}: {kills} agents killed")
