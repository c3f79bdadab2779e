"""Who asks too often, by subject, by address, by wrong tokens; straight and through the HAProxy that is shipped."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from mesh.client import Mesh
from mesh.store.embedded import free_port
from tests.acceptance.conftest import Place, make_place
from tests.acceptance.test_coordinator import start
from tests.programs import HAPROXY, needs_haproxy
from tests.tokens import bearer
from tests.waiting import wait_until

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


@pytest.fixture(scope="module")
def limited(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """A coordinator that lets little through and believes 127.0.0.1."""
    with make_place(redis_url, f"rates-{uuid.uuid4().hex[:12]}", tmp_path_factory.mktemp("rates")) as place:
        process, url = start(
            place, "c1", MESH_HTTP_RATE_SUBJECT="5", MESH_HTTP_RATE_ADDRESS="50", MESH_HTTP_RATE_FAILED="1",
            MESH_TRUSTED_PROXIES="127.0.0.1", LOG_FORMAT="text",
        )  # fmt: skip
        yield place, url
        assert "Traceback" not in process.output()


def statuses(url: str, times: int, headers: dict[str, str], address: str = "127.0.0.1") -> Counter[int]:
    """How often each status; what is 429 says when to come again."""
    found: Counter[int] = Counter()
    with httpx2.Client(transport=httpx2.HTTPTransport(local_address=address)) as client:
        for _ in range(times):
            answer = client.get(url, headers=headers)
            found[answer.status_code] += 1
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["code"] == "TooManyRequests"
    return found


def test_a_subject_that_asks_too_often(limited: tuple[Place, str]) -> None:
    place, url = limited
    queues = f"{url}/v1/namespaces/{place.namespace}/queues"
    found = statuses(queues, 30, bearer(subject="greedy"), "127.0.0.8")
    assert found[200] >= 10 and found[429] > 0 and found.total() == 30
    assert statuses(queues, 5, bearer(subject="modest"), "127.0.0.8") == {200: 5}


def test_an_address_that_asks_too_often(limited: tuple[Place, str]) -> None:
    _, url = limited
    assert statuses(url, 400, {}, "127.0.0.9")[429] > 0
    assert statuses(f"{url}/health/live", 5, {}, "127.0.0.9") == {200: 5}
    assert statuses(url, 5, {}, "127.0.0.10") == {200: 5}
    assert 429 not in statuses(f"{url}/v1/cluster", 20, {}, "127.0.0.11"), "no token is no wrong token"


def test_our_client_comes_again_when_it_may(limited: tuple[Place, str]) -> None:
    place, url = limited
    with Mesh(coordinator_url=url, namespace=place.namespace) as mesh:
        for number in range(14):
            mesh.submit("x", number, countdown_s=999, unsatisfiable="accept")


@needs_haproxy
def test_who_is_behind_a_proxy_is_counted_for_himself(limited: tuple[Place, str], tmp_path: Path) -> None:
    place, url = limited
    port = free_port()
    target = url.removeprefix("http://")
    environ = {"LB_BIND": f"127.0.0.1:{port}", **{f"COORDINATOR_{one}": target for one in (1, 2, 3)}}
    process = subprocess.Popen(
        [str(HAPROXY), "-f", str(CONFIG), "-db"], env={**os.environ, **environ}, cwd=tmp_path
    )
    try:
        front = f"http://127.0.0.1:{port}"
        path = f"{front}/v1/namespaces/{place.namespace}/queues"

        def ready() -> bool:
            try:
                return httpx2.get(f"{front}/health/live").status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(ready, 20, "the balancer to answer")
        wrong = {"Authorization": "Bearer a.b.c"}
        found = statuses(path, 40, wrong, "127.0.0.2")
        assert found[401] >= 10 and found[429] > 10
        spoofed = {**wrong, "X-Forwarded-For": "198.51.100.7"}
        assert statuses(path, 5, spoofed, "127.0.0.2")[429] >= 3, "what the caller writes is not believed"
        good = bearer(subject="behind")

        def not_looked_at() -> (
            bool
        ):  # until it has waited long enough, which a busy machine may do between two requests
            statuses(path, 10, wrong, "127.0.0.2")
            return statuses(path, 3, good, "127.0.0.2")[429] >= 1

        wait_until(not_looked_at, 20, "its good tokens not to be looked at")
        assert statuses(path, 3, good, "127.0.0.3") == {200: 3}, "another one's are"
        assert statuses(f"{front}/health/live", 3, wrong, "127.0.0.2") == {200: 3}
        # The audit log has whose request it was, not the balancer's address.
        viewer, spoofed = bearer("viewer", "vera", [place.namespace]), {"X-Forwarded-For": "198.51.100.7"}
        assert statuses(f"{front}/v1/audit", 1, {**viewer, **spoofed}, "127.0.0.5") == {403: 1}
        wait_until(lambda: bool(place.mesh.audit(subject="vera")), 20, "it to be written")
        assert [row["source"] for row in place.mesh.audit(subject="vera")] == ["127.0.0.5"]
        # Straight, from an address that is trusted by nobody, the header says nothing.
        found = statuses(url + "/v1/cluster", 40, {**wrong, "X-Forwarded-For": "127.0.0.3"}, "127.0.0.4")
        assert found[429] > 10 and statuses(path, 2, good, "127.0.0.3") == {200: 2}
    finally:
        process.terminate()
        process.wait(10)
