"""The image and docker-compose.yml without a Docker engine.

The image is laid out in a folder by the Dockerfile's own commands. Each service of docker-compose.yml is started as its process:
the image's entry point with the service's command and environment, as the image's user where this machine lets us, with ports of
its own. What differs from a container: no file system and no network of its own.
"""

from __future__ import annotations

import functools
import importlib.metadata
import ipaddress
import json
import os
import pwd
import random
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from mesh.client import Mesh
from mesh.core.redis_rights import RIGHTS
from mesh.store.client import Client
from mesh.store.embedded import server_binary
from tests.conftest import SECRET
from tests.waiting import wait_until

pytestmark = pytest.mark.ci  # the whole of it, made and run as its files say
ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
UV = ROOT / ".tools" / "bin" / "uv"
SECRETS = {
    "MESH_JWT_SECRET": SECRET,
    "FLOWER_BASIC_AUTH": "ann:of-green",
    **{f"REDIS_{name.upper()}_PASSWORD": secrets.token_hex(24) for name in ("admin", *RIGHTS)},
}
ROLES = ("coordinator", "agent-1", "agent-2", "flower")
PORTS = {"coordinator": "MESH_COORDINATOR_PORT", "flower": "FLOWER_PORT"}  # of agents: AGENT_PORT
START_S = 40


# -- what the two files say


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction of a Dockerfile."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in whole.splitlines())]


BUILD, IMAGE = (
    instructions(f"FROM {stage}") for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
)  # of the first stage, of the second


def last(word: str) -> str:
    """What the image's last instruction of that name says."""
    return [rest for name, rest in IMAGE if name == word][-1]


def services(environ: dict[str, str]) -> dict[str, Any]:
    """The services of docker-compose.yml, with variables filled in. Raises `KeyError` for one that is wanted."""

    def fill(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if not environ.get(name) and kind == "?":
            raise KeyError(f"{name}: {text}")
        return environ.get(name) or text

    parsed: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+):([-?])([^}]*)\}", fill, COMPOSE))["services"]
    return parsed


SERVICES = services(SECRETS)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize(
    "command",
    ["hadolint Dockerfile", "check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml"],
)
def test_linters_find_nothing(command: str) -> None:
    words = shlex.split(command)
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([program, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def compose_config(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("docker-compose") is None:
        pytest.skip("DOCKER-COMPOSE HAS NOT READ docker-compose.yml: install docker-compose (Debian's name)")
    return subprocess.run(
        ["docker-compose", "config", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "COMPOSE_PROFILES": "joining,load-balancer", **environ},
    )  # fmt: skip


def test_docker_compose_reads_it_as_we_do() -> None:
    done = compose_config(**SECRETS)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert set(read) == set(SERVICES)
    for name, service in SERVICES.items():
        assert read[name]["command"] == service["command"]
        assert read[name].get("environment") == service.get("environment")


@pytest.mark.parametrize("missing", SECRETS)
def test_it_does_not_start_without_a_secret(missing: str) -> None:
    given = {name: value for name, value in SECRETS.items() if name != missing}
    with pytest.raises(KeyError, match=rf"{missing}: put .*{missing}.* into \.env"):
        services(given)
    assert compose_config("-q", **given).returncode != 0


def test_the_lines_that_make_the_secrets(tmp_path: Path) -> None:
    """As docs/docker-compose.md has it."""
    page = (ROOT / "docs" / "docker-compose.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```bash\n(\{\n.*?\n\} > \.env)\n```", page, flags=re.DOTALL)
    if shutil.which("openssl") is None:
        pytest.skip("THE LINE THAT MAKES .env WAS NOT TRIED: there is no openssl")
    subprocess.run(["sh", "-c", lines], cwd=tmp_path, check=True)
    made = dict(one.split("=", 1) for one in (tmp_path / ".env").read_text().splitlines())
    assert set(made) == set(SECRETS) and len(made["MESH_JWT_SECRET"]) >= 32
    assert services(made)["flower"]["environment"]["FLOWER_BASIC_AUTH"].startswith("mesh:")


def test_no_secret_is_in_a_file() -> None:
    for service in yaml.safe_load(COMPOSE)["services"].values():
        for name, value in service.get("environment", {}).items():
            asked_for = re.match(r"\$\{\w+:\?", value) or value == f"${{{name}:-}}"
            assert asked_for or not re.search("SECRET|AUTH|PASSWORD|TOKEN", name)
            assert name != "REDIS_URL" or re.match(r"redis://\w+:\$\{\w+:\?", value)
    assert not re.search("(?m)^(ARG|ENV) .*(SECRET|AUTH|PASSWORD|TOKEN)", DOCKERFILE)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert ignored[1] == "*", "only what is named gets into the build"


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_knows_its_own_password_only(name: str) -> None:
    role = next((role for role in RIGHTS if name.startswith(role)), None)
    known = {one for one in RIGHTS if SECRETS[f"REDIS_{one.upper()}_PASSWORD"] in str(SERVICES[name])}
    own = {role} if name in (*ROLES, "coordinator-2", "coordinator-3") else set()
    assert known == (set(RIGHTS) if name == "redis" else own)


def test_flower_gets_no_secret() -> None:
    assert "MESH_JWT_SECRET" in SERVICES["coordinator"]["environment"]
    assert not [name for name in SERVICES["flower"]["environment"] if name.startswith("MESH_JWT")]


def test_every_service_that_others_wait_for_says_when_it_is_well() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy" and "healthcheck" in SERVICES[name]
    for name in ROLES:
        assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_what_is_published() -> None:
    """Nothing beyond this host, unless somebody says so."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "coordinator": ["127.0.0.1:3000:3000"],
        "haproxy": ["127.0.0.1:8080:8080"],
        "flower": ["127.0.0.1:5555:5555"],
    }
    profiles = {name for name, service in SERVICES.items() if service.get("profiles") == ["load-balancer"]}
    assert profiles == {"coordinator-2", "coordinator-3", "haproxy"}, "what is not asked for does not start"


def test_coordinators_believe_the_balancer_and_nobody_else() -> None:
    whole = yaml.safe_load(COMPOSE)["networks"]
    (network,) = whole["balancer"]["ipam"]["config"]
    address = SERVICES["haproxy"]["networks"]["balancer"]["ipv4_address"]
    others, subnet = (ipaddress.ip_network(network[name]) for name in ("ip_range", "subnet"))
    assert ipaddress.ip_address(address) in subnet and ipaddress.ip_address(address) not in others
    assert others.subnet_of(subnet) and list(SERVICES["haproxy"]["networks"]) == ["balancer"]
    behind = {name for name, service in SERVICES.items() if "balancer" in service.get("networks", ())}
    assert behind == {"haproxy", "coordinator", "coordinator-2", "coordinator-3"}
    for name in behind - {"haproxy"}:
        assert SERVICES[name]["environment"]["MESH_TRUSTED_PROXIES"] == address


def test_labels_and_user() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f'version="{version}"' in last("LABEL")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER")), "a number: orchestrators cannot look up names"
    assert json.loads(last("ENTRYPOINT")) and last("HEALTHCHECK").partition(" CMD ")[2].startswith("[")


# -- the image in a folder


@dataclass(kw_only=True)
class Image:
    """The image's file system below `root`; `user`: who its processes are, None: who we are."""

    root: Path
    user: int | None

    def path(self, text: str) -> str:
        """A path of the image where it is here."""
        return re.sub(r"(?<![\w/])/(opt/mesh|wheels|app|data)\b", rf"{self.root}/\1", text)

    def words(self, instruction: str) -> list[str]:
        """The command of an instruction in exec form."""
        return [self.path(word) for word in json.loads(instruction)]

    def environment(self, tmp: Path, **more: str) -> dict[str, str]:
        """What a container of it has."""
        own = dict(pair.split("=", 1) for pair in shlex.split(last("ENV")))
        own["PATH"] = self.path(own["PATH"].replace("$PATH", os.environ["PATH"]))
        return {**own, "TMPDIR": str(tmp), **{name: self.path(value) for name, value in more.items()}}

    def popen(self, words: list[str], environ: dict[str, str], **how: Any) -> subprocess.Popen[bytes]:
        if self.user is not None:
            how |= {"user": self.user, "group": self.user, "extra_groups": []}
        return subprocess.Popen(
            words,
            cwd=self.path(last("WORKDIR")),
            env=environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **how,
        )

    def folder(self, name: str) -> Path:
        """A folder that its processes may write to."""
        made = self.root / "tmp" / name
        made.mkdir(parents=True)
        if self.user is not None:
            os.chown(made, self.user, self.user)
        return made


def interpreter(user: int | None) -> str | None:
    """A Python of our version that `user` can start."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = str(Path(sys.base_prefix) / "bin" / name)
    for candidate in dict.fromkeys([own, f"/usr/local/bin/{name}", f"/usr/bin/{name}"]):
        with suppress(OSError):
            done = subprocess.run(
                [candidate, "-c", "import ssl, ctypes, venv, sqlite3"], capture_output=True, check=False, cwd="/",
                **({} if user is None else {"user": user, "group": user, "extra_groups": []}),
            )  # fmt: skip
            if done.returncode == 0:
                return candidate
    return None


def copied(stage: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(source, destination) of what a stage copies from the repository."""
    for word, rest in stage:
        if word == "COPY" and "--from" not in rest:
            *sources, destination = rest.split()
            for source in sources:
                yield source, destination


def build(root: Path, user: int | None) -> Image:
    """Carry out the Dockerfile: all that it copies, and what its first stage runs.

    But for one thing: the packages that ours needs are only looked up, and taken from our own environment.
    """
    image = Image(root=root, user=user)
    source = root / "source"
    environ = {
        **os.environ,
        "PATH": f"{UV.parent}:{os.environ['PATH']}",
        "UV_PYTHON": interpreter(user) or sys.executable,
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(UV.parents[1] / "cache")),
        **package_index(),
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", image.path(command)],
            cwd=source,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stderr

    for name, destination in copied(BUILD):
        target = source / (destination if name.endswith("/") else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if name.endswith("/") else shutil.copy)(ROOT / name, target)
    get_uv, packages, ours = [rest for word, rest in BUILD if word == "RUN"]
    assert get_uv.startswith("pip install uv==")
    needed = re.findall(r"^ \+ (\S+)==(\S+)", run(f"{packages} --dry-run"), flags=re.M)
    assert len(needed) > 20
    (folder,) = root.glob("opt/mesh/lib/python3.*/site-packages")
    (folder / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    have = {canonicalize_name(one.name) for one in importlib.metadata.distributions()}
    missing = [f"{name}=={version}" for name, version in needed if canonicalize_name(name) not in have]
    if missing:  # of another Python's
        run(f"uv pip install --python /opt/mesh --no-deps {shlex.join(missing)}")
    run(ours)
    for name, destination in copied(IMAGE):
        shutil.copytree(ROOT / name, image.path(destination))
    shutil.rmtree(source)
    for made in ("app", "data"):
        (root / made).mkdir()
    return image


def package_index() -> dict[str, str]:
    """pip's own mirror setting, which uv does not read."""
    if "UV_DEFAULT_INDEX" in os.environ:
        return {}
    words = ["python3", "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    found = os.environ.get("PIP_INDEX_URL") or asked.stdout.strip()
    return {"UV_DEFAULT_INDEX": found} if found else {}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if not UV.exists():
        pytest.skip("THE IMAGE WAS NOT TRIED: uv is not in .tools (make install puts it there)")
    wanted = int(last("USER").partition(":")[0]) if os.geteuid() == 0 else None
    root = Path(tempfile.mkdtemp(prefix="mesh-image-"))
    root.chmod(0o755)  # pytest's own folders are closed to other users
    try:
        built = build(root, wanted)
        if wanted is not None:
            probe = built.popen(
                [str(root / "opt/mesh/bin/mesh"), "--version"],
                {},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            built.user = wanted if probe.wait(START_S) == 0 else None
        yield built
    finally:
        shutil.rmtree(root)


@dataclass(kw_only=True)
class Container:
    """A service of docker-compose.yml as a process."""

    name: str
    image: Image
    process: subprocess.Popen[bytes]
    environ: dict[str, str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.environ[PORTS.get(self.name, "AGENT_PORT")])

    def health(self) -> int:
        """The exit code of the image's health check."""
        command = self.image.words(last("HEALTHCHECK").partition(" CMD ")[2])
        process = self.image.popen(command, self.environ, stderr=subprocess.DEVNULL)
        try:
            return process.wait(seconds(re.findall(r"--timeout=(\S+)", last("HEALTHCHECK"))[0]))
        except subprocess.TimeoutExpired:  # to an engine that is: not well
            process.kill()
            return process.wait()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@dataclass(kw_only=True)
class Project:
    """All services, running."""

    mesh: Mesh
    containers: dict[str, Container] = field(default_factory=dict)


@functools.cache
def port_of(name: str) -> int:
    """A port for a service: not one of those that the kernel hands out to others until the service has started."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def url_of(service: str) -> str:
    """The REDIS_URL of a service, with the server where it is here."""
    url: str = SERVICES[service]["environment"]["REDIS_URL"]
    return url.replace("redis:6379", f"127.0.0.1:{port_of('redis')}")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service redis, started by its own command; the URL of its admin."""
    service, port = SERVICES["redis"], port_of("redis")
    folder = tmp_path_factory.mktemp("redis")
    (folder / "redis-server").symlink_to(server_binary())
    words = [word.replace("/usr/local/etc/redis", str(ROOT / "deploy/redis")) for word in service["command"]]
    assert words[0] == "sh" and Path(words[1]).exists()
    environ = {**service["environment"], "PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*words, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environ,
        )  # fmt: skip
    try:
        wait_until(lambda: answers(port), START_S, "Redis to answer")
        yield f"redis://admin:{SECRETS['REDIS_ADMIN_PASSWORD']}@127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(seconds(service["stop_grace_period"]))


def answers(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def start(image: Image, name: str) -> Container:
    service, tmp = SERVICES[name], image.folder(name)
    changed = {"REDIS_URL": url_of(name), PORTS.get(name, "AGENT_PORT"): str(port_of(name))}
    environ = image.environment(
        tmp, **{**service["environment"], "MESH_ALLOWED_COMMANDS": "uname,sleep", **changed}
    )
    command = [*image.words(last("ENTRYPOINT")), *service["command"]]
    with (tmp / "log").open("wb") as log:
        process = image.popen(command, environ, stdout=log, stderr=log)
    return Container(name=name, image=image, process=process, environ=environ, log=tmp / "log")


@pytest.fixture(scope="module")
def project(image: Image, redis: str) -> Iterator[Project]:
    """All services, each of them well. Whoever submits tasks logs in as a producer."""
    namespace = SERVICES["coordinator"]["environment"]["MESH_NAMESPACE"]
    producer = f"redis://producer:{SECRETS['REDIS_PRODUCER_PASSWORD']}@127.0.0.1:{port_of('redis')}/0"
    with Mesh(redis_url=producer, namespace=namespace) as mesh:
        running = Project(mesh=mesh)
        try:
            for name in ROLES:
                running.containers[name] = start(image, name)
            for name, container in running.containers.items():

                def well(container: Container = container) -> bool:
                    assert container.process.poll() is None, container.log.read_text(errors="replace")
                    return answers(container.port) and container.health() == 0

                wait_until(well, START_S, f"{name} to be healthy")
            yield running
        finally:
            for container in running.containers.values():
                with suppress(ProcessLookupError):
                    os.killpg(container.process.pid, 9)
                container.process.wait()


def test_redis_keeps_and_evicts_nothing(redis: str) -> None:
    client = Client(redis)
    for name, value in (
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("maxmemory-policy", "noeviction"),
    ):
        assert client.execute("CONFIG", "GET", name)[1].decode() == value
    client.close()
    assert SERVICES["redis"]["volumes"] == ["redis-data:/data", "./deploy/redis:/usr/local/etc/redis:ro"]
    if shutil.which("redis-cli"):
        program, *more = SERVICES["redis"]["healthcheck"]["test"][1:]
        words = [program, "-p", str(port_of("redis")), *more]
        for password, status in ((SECRETS["REDIS_ADMIN_PASSWORD"], 0), ("wrong", 1)):
            environ = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password}
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=environ)
            assert (done.returncode, "PONG" in done.stdout) == (status, status == 0)


def test_redis_does_not_start_without_a_password(tmp_path: Path) -> None:
    given = {**SERVICES["redis"]["environment"], "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    del given["REDIS_AGENT_PASSWORD"]
    words = ["sh", str(ROOT / "deploy/redis/start.sh")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=given, timeout=20)
    assert (done.returncode, done.stderr) == (2, "start.sh: set REDIS_AGENT_PASSWORD\n")


def test_a_role_that_does_not_answer_is_not_well(image: Image) -> None:
    """And without a role the entry point says which there are."""
    tmp = image.folder("nothing")
    environ = image.environment(tmp, AGENT_PORT=str(port_of("nothing")))
    (tmp / "mesh-role").write_text("agent\n")
    check = image.words(last("HEALTHCHECK").partition(" CMD ")[2])
    assert image.popen(check, environ, stderr=subprocess.DEVNULL).wait(10) == 1
    process = image.popen(image.words(last("ENTRYPOINT")), environ, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 2 and b"coordinator, agent or flower" in said


def test_every_service_becomes_healthy(project: Project) -> None:
    agents = {agent.id: agent.capabilities for agent in project.mesh.agents(status="healthy")}
    assert agents == {"agent-1": ("data-processing",), "agent-2": ("data-processing", "task-execution")}


def test_the_role_takes_the_place_of_the_entry_point(project: Project) -> None:
    """Signals are sent to the first process."""
    for name, word in (
        ("coordinator", "coordinator"),
        ("agent-1", "worker"),
        ("agent-2", "worker"),
        ("flower", "flower"),
    ):
        words = Path(f"/proc/{project.containers[name].process.pid}/cmdline").read_bytes().split(b"\0")
        assert b"entrypoint" not in b" ".join(words) and (word.encode() in b" ".join(words))


def test_they_are_not_root(project: Project, image: Image) -> None:
    if image.user is None and os.geteuid() == 0:
        pytest.skip(
            "THE IMAGE'S USER WAS NOT TRIED: there is no Python here that users other than root may start"
        )
    for container in project.containers.values():
        assert Path(f"/proc/{container.process.pid}").stat().st_uid != 0
    if image.user is not None:
        with pytest.raises(KeyError):
            pwd.getpwuid(image.user)  # it needs no entry in the system's list either


def test_it_works(project: Project) -> None:
    mesh, containers = project.mesh, project.containers
    assert mesh.submit("data-processing", {"data": [1, 2, 3]}).result(timeout_s=30)["items"] == 3
    done = mesh.submit("task-execution", {"command": ["uname", "-s"]}).result(timeout_s=30)
    assert done["exit_code"] == 0 and done["stdout"].strip() == "Linux"
    wait_until(
        lambda: json.loads(containers["coordinator"].get("/health")[1])["leads"], START_S, "it to lead"
    )
    status, body = containers["coordinator"].get("/health")
    assert status == 200 and json.loads(body)["leads"] is True
    flower = containers["flower"]
    assert flower.get("/broker")[0] == 401
    login = "Basic " + b64encode(SECRETS["FLOWER_BASIC_AUTH"].encode()).decode()
    status, page = flower.get("/broker", Authorization=login)
    assert status == 200 and "task-execution" in page


def test_sigterm_drains_within_the_grace_period(project: Project) -> None:
    mesh, containers = project.mesh, project.containers
    running = mesh.submit("task-execution", {"command": ["sleep", "1.5"]})
    wait_until(lambda: running.status() == "running", 20, "the task to run")
    waiting = mesh.submit_many("task-execution", [{"command": ["uname"]}] * 40)
    begun = time.monotonic()
    for container in containers.values():
        container.process.terminate()
    for name, container in containers.items():
        left = seconds(SERVICES[name]["stop_grace_period"]) - (time.monotonic() - begun)
        assert container.process.wait(left) == 0, container.log.read_text(errors="replace")
    assert running.result(timeout_s=1)["exit_code"] == 0
    assert {handle.status() for handle in waiting} <= {"queued", "succeeded"}
    assert {agent.id: str(agent.status) for agent in mesh.agents()} == {
        "agent-1": "offline",
        "agent-2": "offline",
    }


def test_nobody_needed_more_than_his_role_may(project: Project, redis: str) -> None:
    admin = Client(redis)
    refused = [row[row.index(b"object") + 1] for row in admin.execute("ACL", "LOG", 128)]
    admin.close()
    assert set(refused) <= {b"AUTH"}, "but for the wrong password of the health check's test"
