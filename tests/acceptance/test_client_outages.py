"""Clients that wait while Redis goes away and comes back: what they wait for reaches them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mesh.client import Mesh
from mesh.errors import Cancelled
from mesh.store.embedded import start_server
from tests.acceptance.conftest import make_place
from tests.acceptance.test_coordinator import start
from tests.waiting import wait_until

WAIT_S = 30


def test_redis_goes_away_while_somebody_waits(tmp_path: Path, namespace: str) -> None:
    (tmp_path / "server").mkdir()
    ends: dict[str, BaseException | None] = {}
    with start_server(tmp_path / "server") as server, make_place(server.url, namespace, tmp_path) as place:
        _, url = start(place, "c1")
        with Mesh(coordinator_url=url, namespace=namespace) as http:
            handles = {
                name: mesh.submit("nothing", 1, unsatisfiable="accept")
                for name, mesh in (("direct", place.mesh), ("http", http))
            }

            def wait(name: str) -> None:
                with pytest.raises(Cancelled) as caught:
                    handles[name].result(timeout_s=WAIT_S)
                ends[name] = caught.value

            threads = [threading.Thread(target=wait, args=(name,)) for name in handles]
            for thread in threads:
                thread.start()
            channels = [place.mesh.store.keys.of("result", handle.id).encode() for handle in handles.values()]
            client = place.mesh.store.client

            def heard() -> bool:
                counts = client.execute("PUBSUB", "NUMSUB", *channels)
                return all(counts[1::2])

            wait_until(heard, 10, "both to listen")
            server.kill()
            server.restart()
            for handle in handles.values():
                place.mesh.handle(handle.id).cancel()
            for thread in threads:
                thread.join(WAIT_S)
    assert set(ends) == {"direct", "http"}
