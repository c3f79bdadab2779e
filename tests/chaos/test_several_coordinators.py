"""Several coordinators behind one address: a real HAProxy with the file of deploy/, and a DNS name with several addresses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from mesh.client import Mesh
from mesh.errors import CoordinatorUnavailable
from mesh.store.embedded import free_port
from mesh.verify.proxy import Proxy
from mesh.verify.witness import Submission
from tests.chaos.conftest import Recovery
from tests.chaos.fleet import ROOT
from tests.chaos.matrix import fault
from tests.chaos.stage import Stage
from tests.chaos.test_coordinators import over_http, start
from tests.programs import HAPROXY, needs_haproxy
from tests.tokens import bearer

NAMES = ("c1", "c2", "c3")
ROUNDS = 5  # of each caller, after each fault
CALLERS = 2  # of each kind
CUT = (502, 503, 504)  # what HAProxy says of a request that it lost on the way


def get(url: str, timeout_s: float = 100) -> tuple[int, Any]:
    """(status, body) of what answers there; errors of the network are raised."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=bearer()), timeout=timeout_s
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Bare:
    """A caller in another language: one connection a request; what fails it sends again under the same Idempotency-Key."""

    def __init__(self, url: str, namespace: str) -> None:
        self.tasks = f"{url}/v1/namespaces/{namespace}/tasks"
        self.failed: Counter[str] = Counter()

    def submit(self, task_type: str, payload: Any, *, task_id: str, unsatisfiable: str) -> str:
        """Until it is accepted."""
        body = json.dumps({"type": task_type, "payload": payload, "unsatisfiable": unsatisfiable}).encode()
        headers = {"content-type": "application/json", "idempotency-key": task_id, **bearer()}
        request = urllib.request.Request(self.tasks, data=body, headers=headers)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=100) as answer:
                    assert json.load(answer)["id"] == task_id
                    return task_id
            except urllib.error.HTTPError as error:
                if error.code not in CUT:
                    raise
                self.failed[f"POST {error.code}"] += 1
            except OSError as error:
                self.failed[f"POST {type(error).__name__}"] += 1

    def wait(self, task_id: str) -> None:
        """Until it has ended."""
        while True:
            try:
                status, body = get(f"{self.tasks}/{task_id}/result?wait_s=10")
            except OSError as error:
                self.failed[f"GET {type(error).__name__}"] += 1
                continue
            if status == 200:
                return
            assert status in (202, *CUT), body
            self.failed[f"GET {status}"] += status != 202


class Traffic:
    """Callers that submit a task and wait for its end, over and over, each in a thread."""

    def __init__(self, stage: Stage, url: str) -> None:
        self.stage, self.url = stage, url
        self.bare = Bare(url, stage.namespace)
        self.rounds: Counter[str] = Counter()
        self.slowest_s = 0.0  # of the mesh's clients
        self.errors: list[BaseException] = []
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(f"{kind.__name__}-{number}", kind))
            for kind in (self._with_the_client, self._bare)
            for number in range(CALLERS)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def goes_on(self) -> None:
        """Wait until every caller has done some more rounds."""
        before = dict(self.rounds)
        self.stage.until(
            lambda: self.errors or all(self.rounds[name] >= before[name] + ROUNDS for name in before),
            "the traffic to go on",
        )
        assert not self.errors, self.errors

    def _repeat(self, name: str, kind: Callable[[Callable[[], None]], None]) -> None:
        self.rounds[name] = 0

        def done() -> None:
            self.rounds[name] += 1

        try:
            kind(done)
        except BaseException as error:
            self.errors.append(error)

    def _with_the_client(self, done: Callable[[], None]) -> None:
        with over_http(self.stage, self.url) as mesh:
            while not self._end.is_set():
                begun = time.monotonic()
                self.stage.submit(by=mesh, seconds=0.01).result(timeout_s=60)
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                done()

    def _bare(self, done: Callable[[], None]) -> None:
        while not self._end.is_set():
            handle = self.stage.submit(by=cast(Mesh, self.bare), seconds=0.01)
            self.bare.wait(cast(str, handle))
            done()


@needs_haproxy
@fault(
    "coordinators",
    "one of three behind HAProxy stopped, killed, cut off (nothing is refused, nothing arrives), under steady traffic",
    expect="clients of the mesh notice a delay at most; other callers lose what is cut in flight, and repeat it safely",
    tier="ci",
    bound_s=15,
)
def test_one_of_three_behind_haproxy(stage: Stage, recovery: Recovery) -> None:
    stage.start("w1")
    start(stage, *NAMES)
    stage.ready("w1")
    with Proxy("127.0.0.1", stage.ports["c3"]) as way:
        url = f"http://127.0.0.1:{(port := free_port())}"
        at = {"c1": stage.ports["c1"], "c2": stage.ports["c2"], "c3": way.port}
        addresses = {f"COORDINATOR_{name[1]}": f"127.0.0.1:{number}" for name, number in at.items()}
        words = [str(HAPROXY), "-db", "-f", str(ROOT / "deploy/haproxy/haproxy.cfg")]
        stage.run("haproxy", words, LB_BIND=f"127.0.0.1:{port}", **addresses)

        def serving() -> set[str]:
            """Who answers through it, in turn."""
            try:
                found = [get(f"{url}/health") for _ in NAMES]
            except OSError:
                return set()
            return {json.loads(body)["id"] for status, body in found if status == 200}

        stage.until(lambda: serving() == set(NAMES), "all to serve")
        with Traffic(stage, url) as traffic:
            stage.until(
                lambda: len(traffic.rounds) == 2 * CALLERS and all(traffic.rounds.values()), "traffic"
            )
            for fault_of, mend in (
                (lambda: stage.stop("c1"), lambda: start(stage, "c1")),
                (lambda: stage.kill("c2"), lambda: start(stage, "c2")),
                (way.freeze, way.heal),
            ):
                failed = traffic.bare.failed.total()
                fault_of()
                traffic.goes_on()
                lost = traffic.bare.failed.total() - failed
                assert lost <= CALLERS, (
                    f"{lost} requests failed, {CALLERS} at most were in flight: {traffic.bare.failed}"
                )
                mend()
                stage.until(lambda: serving() == set(NAMES), "all to serve again")
            traffic.goes_on()
        assert not traffic.errors, traffic.errors
        recovery.took(traffic.slowest_s)
        stage.all_end()
        stage.check()
        print(f"failed of {sum(traffic.rounds.values())} rounds: {dict(traffic.bare.failed)}")
        for name in NAMES:
            stage.kill(name)
        stage.until(
            lambda: get(f"{url}/haproxy/health")[0] == 503, "the balancer to say that nobody is there"
        )
        with over_http(stage, url, transport_retries=0) as mesh, pytest.raises(CoordinatorUnavailable):
            mesh.agents()


HOST = "coordinators.test"


class Names:
    """An /etc/hosts of our own, for processes with `words` in front; without root too, where users may make namespaces."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "hosts"
        self.words = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        self.words += [f'mount --bind "{self.file}" /etc/hosts && exec "$@"', "sh"]

    def say(self, *addresses: str) -> None:
        """The addresses of `HOST` from now on."""
        self.file.write_text("".join(f"{one} {HOST}\n" for one in addresses))

    def missing(self) -> str:
        """Why this cannot be done here, '' if it can."""
        for address in ADDRESSES:
            with socket.socket() as probe:
                try:
                    probe.bind((address, 0))
                except OSError as error:
                    return f"{address} cannot be listened on: {error.strerror}"
        self.say(*ADDRESSES[:3])
        asked = (
            "import socket, sys; print(*sorted({one[4][0] for one in socket.getaddrinfo(sys.argv[1], 1)}))"
        )
        try:
            done = subprocess.run(
                [*self.words, sys.executable, "-c", asked, HOST], capture_output=True, text=True, check=False
            )
        except OSError as error:
            return f"unshare cannot be run: {error.strerror}"
        if done.stdout.split() != list(ADDRESSES[:3]):
            return f"a hosts file of its own gives a name no addresses: {done.stdout or done.stderr}"
        return ""


ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")


@fault(
    "coordinators",
    "behind one DNS name with three addresses: one killed, one paused, then the last replaced by another address",
    expect="clients go to the next address, and ask for the name again",
    tier="ci",
    bound_s=15,
)
def test_one_name_with_several_addresses(stage: Stage, recovery: Recovery) -> None:
    names = Names(stage.folder)
    if why := names.missing():
        pytest.skip(why)
    port, stop = free_port(), stage.folder / "stop"

    def start_at(name: str, address: str) -> None:
        words = [sys.executable, "-c", "from mesh.cli import main; main()", "coordinator"]
        words += ["--id", name, "--host", address, "--port", str(port)]
        stage.run(name, words)

    stage.start("w1")
    coordinators = dict(zip(("c1", "c2", "c3", "c4"), ADDRESSES, strict=True))
    for name, address in coordinators.items():
        start_at(name, address)
    stage.until(
        lambda: {one["id"] for one in stage.mesh.overview()["coordinators"]} == set(coordinators), "all"
    )
    stage.ready("w1")
    words = [*names.words, sys.executable, "-m", "tests.chaos.named_client"]
    words += [f"http://{HOST}:{port}", stage.namespace, str(stage.effects_file), str(stop)]
    client = stage.run("client", words, TRANSPORT_TIMEOUT_MS="3000")

    def done() -> list[dict[str, Any]]:
        """What came back to the client."""
        lines = (stage.folder / "client.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def goes_on() -> None:
        known = len(done())
        stage.until(lambda: client.poll() is not None or len(done()) > known + ROUNDS, "the client to go on")
        assert client.poll() is None, stage.tails()

    def asked() -> str:
        """The coordinator that the client keeps to."""
        goes_on()
        address = done()[-1]["asked"].removeprefix("http://").partition(":")[0]
        return next(name for name, at in coordinators.items() if at == address)

    first = asked()
    stage.kill(first)
    second = asked()
    stage.pause(second)
    third = asked()
    names.say(coordinators["c4"])
    assert asked() == third, "what works is kept"
    stage.kill(third)
    assert asked() == "c4" and {first, second, third} == {"c1", "c2", "c3"}
    stop.touch()
    assert client.wait(60) == 0
    for one in done():
        stage.ledger[one["id"]] = Submission(id=one["id"], number=one["number"], acknowledged=True)
    recovery.took(max(one["took_s"] for one in done()))
    stage.all_end()
    stage.check()
