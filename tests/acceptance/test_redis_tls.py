"""TLS to Redis: every process works over it, and a connection that cannot be trusted is refused with a sentence that helps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.errors import StoreUnavailable
from mesh.store.client import Client
from mesh.store.embedded import Server, free_port, start_server
from tests.acceptance.certificates import Authority
from tests.acceptance.conftest import START_S, Place, make_place
from tests.acceptance.test_flower import Dashboard
from tests.waiting import wait_until

DEBIANS = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(
    DEBIANS is None, reason="there is no redis-server on PATH: the embedded one has no TLS"
)
PRODUCER = """
import tasks
from mesh import Mesh
from mesh.bus.app import app
app.set_current()
with Mesh() as mesh:
    print(mesh.submit("double", 4).result(timeout_s=60), tasks.double.delay(5).get(timeout=60))
"""
TASKS = """
from mesh import task

@task("double")
def double(payload):
    return 2 * payload
"""


@dataclass(kw_only=True)
class Secured:
    """A server with a port for TLS, on which it wants client certificates, beside the plain one; an authority, another one."""

    server: Server
    port: int
    authority: Authority
    stranger: Authority
    client: tuple[Path, Path]

    def url(
        self, *, host: str = "localhost", ca: Path | None = None, mine: tuple[Path, Path] | bool | None = True
    ) -> str:
        """What a process gets; `ca` None: of this server; `mine` False: no client certificate."""
        words = [f"ssl_ca_certs={ca or self.authority.ca}"]
        if mine:
            certificate, key = self.client if mine is True else mine
            words += [f"ssl_certfile={certificate}", f"ssl_keyfile={key}"]
        return f"rediss://{host}:{self.port}/0?{'&'.join(words)}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(folder / "ca"), Authority(folder / "other", "somebody else")
    certificate, key = authority.issue("redis", "localhost", "127.0.0.1")
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    options += ("--tls-ca-cert-file", str(authority.ca))
    with start_server(folder / "redis", binary=Path(DEBIANS or ""), options=options) as server:
        yield Secured(
            server=server, port=port, authority=authority, stranger=stranger, client=authority.issue("client")
        )


@pytest.mark.ci
def test_every_process_works_over_tls(secured: Secured, tmp_path: Path) -> None:
    with make_place(secured.url(), f"tls-{uuid.uuid4().hex[:8]}", tmp_path) as place:
        (tmp_path / "tasks.py").write_text(TASKS)
        (tmp_path / "producer.py").write_text(PRODUCER)
        port = free_port()
        flower = Dashboard(
            port=port, process=place.start("flower", "--port", str(port), FLOWER_UNAUTHENTICATED_API="1")
        )
        coordinator = place.start("coordinator", "--port", str(free_port()))
        for pool in ("solo", "prefork"):
            place.agent(f"a-{pool}", "-I", "tasks", "--capabilities", "double", "--pool", pool)
        done = place.run("producer.py", command=[sys.executable], timeout_s=2 * START_S)
        assert done.stdout == "8 10\n", done.stderr
        place.wait_for(flower.process, flower.answers, "Flower to answer")
        wait_until(
            lambda: set(flower.agents()) == {"a-solo", "a-prefork"}, START_S, "Flower to show the agents"
        )
        said = place.call("doctor")
        assert "ok    redis" in said.stdout, said.stdout + said.stderr
        assert coordinator.process.poll() is None
        _nobody_spoke_plainly(secured, place)


def _nobody_spoke_plainly(secured: Secured, place: Place) -> None:
    clients = place.mesh.store.client.execute("CLIENT", "LIST").decode().splitlines()
    ours = [
        line
        for line in clients
        if f"laddr=127.0.0.1:{secured.port}" in line or f"laddr=[::1]:{secured.port}" in line
    ]
    assert len(ours) == len(clients) > 5


SENTENCES = {
    "not signed by an authority that this process trusts": lambda one: one.url(ca=one.stranger.ca),
    "its certificate is for another host name": lambda one: one.url(host="127.1"),
    "it (wants|may want) a client certificate": lambda one: one.url(mine=False),
    "it (wants|may want) a client certificate.*": lambda one: one.url(mine=one.stranger.issue("impostor")),
    "it may not speak TLS on this port": lambda one: one.url().replace(
        f":{one.port}/", f":{one.server.port}/"
    ),
    "if this is a TLS port, the URL begins with rediss://": lambda one: f"redis://localhost:{one.port}/0",
    "ssl_ca_certs names /nowhere/ca.crt, which cannot be read": lambda one: one.url(
        ca=Path("/nowhere/ca.crt")
    ),
    "there is no option ssl_ca_cert,": lambda one: one.url().replace("ssl_ca_certs", "ssl_ca_cert"),
    "options of TLS are for rediss:// only": lambda one: one.url().replace("rediss", "redis"),
}


@pytest.mark.parametrize(
    "sentence",
    [
        pytest.param(one, marks=pytest.mark.ci) if "not speak TLS" in one else one for one in SENTENCES
    ],  # waits for 10 s
)
def test_what_is_wrong_is_said(secured: Secured, sentence: str) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        Client(SENTENCES[sentence](secured), connect_timeout_ms=500).execute("PING")
    assert re.search(sentence, str(refused.value))


def test_the_command_line_says_it_too(secured: Secured, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("mesh"), "status"],
        env={**os.environ, "REDIS_URL": secured.url(ca=secured.stranger.ca)},
        cwd=tmp_path, capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip
    assert done.returncode == StoreUnavailable.exit_code
    assert (
        done.stderr.count("\n") == 1 and "not signed by an authority that this process trusts" in done.stderr
    )


@pytest.mark.skipif(shutil.which("redis-sentinel") is None, reason="there is no redis-sentinel on PATH")
def test_sentinels_are_asked_over_tls(secured: Secured, tmp_path: Path) -> None:
    port = free_port()
    certificate, key = secured.authority.issue("sentinel", "localhost", "127.0.0.1")
    lines = [
        "port 0", f"tls-port {port}", "bind 127.0.0.1", f"dir {tmp_path}", f"tls-cert-file {certificate}", f"tls-key-file {key}",
        f"tls-ca-cert-file {secured.authority.ca}", "tls-replication yes", f"sentinel monitor mesh 127.0.0.1 {secured.port} 1",
    ]  # fmt: skip
    config = tmp_path / "sentinel.conf"
    config.write_text("\n".join(lines) + "\n")
    options = secured.url().partition("?")[2]
    with (tmp_path / "sentinel.log").open("wb") as log:
        process = subprocess.Popen(
            [DEBIANS or "", str(config), "--sentinel"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        client = Client(f"sentinel://127.0.0.1:{port}/mesh/0?ssl=true&{options}")

        def answers() -> bool:
            try:
                return bool(client.execute("PING") == b"PONG")
            except StoreUnavailable:
                return False

        wait_until(answers, START_S, "the sentinel to lead to the master")
        client.close()
        stranger = options.replace(str(secured.authority.ca), str(secured.stranger.ca))
        with pytest.raises(StoreUnavailable, match="not signed by an authority that this process trusts"):
            Client(f"sentinel://127.0.0.1:{port}/mesh/0?ssl=true&{stranger}").execute("PING")
    finally:
        process.terminate()
        process.wait(10)
