"""What `mesh doctor` looks at: each check is a function that says what it found, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mesh import __version__
from mesh.errors import Invalid, MeshError
from mesh.services import agents as agent_services
from mesh.services import views
from mesh.settings import Settings
from mesh.store.client import ResponseError, safe_url
from mesh.store.coordinators import Coordinators
from mesh.store.durability import durability
from mesh.store.store import Store

__all__ = ["FAIL", "OK", "WARN", "Finding", "examine"]
OK, WARN, FAIL = "ok", "warn", "fail"
_HTTP_S = 2.0
_SKEW_MS = 1000
_NEARLY = 0.8
_FEW_CLIENTS = 1000  # each agent holds about ten connections
_PACKAGE = "agent-mesh"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, `status` ok, warn or fail, what was found, and what to do ('' if nothing)."""

    check: str
    status: str
    finding: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "check": self.check,
            "status": self.status,
            "finding": self.finding,
            "advice": self.advice or None,
        }


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, in the order in which people should mend them; each as soon as it is there."""
    yield from _python()
    yield from _ports(settings)
    if settings.was_set("coordinator_url"):
        yield from _named_coordinators(settings)
        if not settings.was_set("redis_url"):
            yield Finding(
                check="redis", status=OK, finding="is not set here: commands go through the coordinators"
            )
            return
    yield _secret(settings)
    yield from _mesh(settings)


def _mesh(settings: Settings) -> Iterator[Finding]:
    store = Store(settings)
    try:
        reached = _redis(store)
        yield reached
        for check in _IN_REDIS if reached.status != FAIL else ():
            name = check.__name__.strip("_").replace("_", " ")
            try:
                yield from check(store)
            except ResponseError as error:
                advice = "Give the user that REDIS_URL names the right to (ACL)."
                yield Finding(check=name, status=FAIL, finding=str(error), advice=advice)
            except MeshError as error:
                yield Finding(check=name, status=FAIL, finding=str(error))
    finally:
        store.close()


# -- this machine


def _secret(settings: Settings) -> Finding:
    """Whether what everything is signed with is there; only the names of its keys are shown."""
    if settings.jwt_secret is None:
        return Finding(
            check="secret",
            status=WARN,
            finding="MESH_JWT_SECRET is not set here: nothing can be submitted on Redis, no agent or coordinator started",
            advice="All of one mesh have the same; `mesh secret generate` makes one.",
        )
    try:
        kids = settings.keyring.kids
    except Invalid as error:
        return Finding(check="secret", status=FAIL, finding=str(error))
    both = ", two of them: the secret is being rotated" if len(kids) > 1 else ""
    return Finding(check="secret", status=OK, finding=f"keys {', '.join(kids)}{both}")


def _python() -> Iterator[Finding]:
    yield Finding(check="python", status=OK, finding=f"{platform.python_version()}, Agent Mesh {__version__}")
    try:
        asked = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(check="packages", status=WARN, finding=f"{_PACKAGE} is not installed, only importable.",
                      advice="Install it with pip, so that its packages are checked.")  # fmt: skip
        return
    wrong = [sentence for line in asked if (sentence := _unfulfilled(line))]
    if wrong:
        yield Finding(
            check="packages", status=FAIL, finding="; ".join(wrong), advice=f"Run pip install {_PACKAGE}."
        )
    else:
        main = ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in ("celery", "kombu", "redis")
        )
        yield Finding(check="packages", status=OK, finding=main)


def _unfulfilled(line: str) -> str | None:
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return None
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(version, prereleases=True):
        return None
    return f"{wanted.name} {version} is not {wanted.specifier}"


def _ports(settings: Settings) -> Iterator[Finding]:
    """Whether an agent and a coordinator that are started here get the ports that they are meant to have."""
    insisted_on = {
        getattr(settings, name) for name in ("agent_port", "coordinator_port") if settings.was_set(name)
    }
    for port in sorted({settings.agent_port, settings.coordinator_port}):
        if _is_free(port):
            yield Finding(check=f"port {port}", status=OK, finding="is free on this machine")
        elif port in insisted_on:
            yield Finding(check=f"port {port}", status=WARN, finding="is set, and taken on this machine",
                          advice="Fine if that is a part of the mesh; else set AGENT_PORT or MESH_COORDINATOR_PORT.",
                          )  # fmt: skip
        else:
            yield Finding(
                check=f"port {port}", status=OK, finding="is taken; what is started here uses a free one"
            )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


# -- Redis


def _redis(store: Store) -> Finding:
    where = safe_url(store.settings.redis_url)
    try:
        store.client.execute("PING")  # connects
        begun = time.monotonic()
        store.client.execute("PING")
        took_ms = (time.monotonic() - begun) * 1000
        info = _info(store, "server")
        name = "valkey" if "valkey_version" in info else "redis"
        version = f"{name.capitalize()} {info.get(f'{name}_version', 'of unknown version')}"
    except (MeshError, ResponseError) as error:
        return Finding(check="redis", status=FAIL, finding=str(error),
                       advice="Start Redis, or set REDIS_URL to where it answers.")  # fmt: skip
    finding = f"{version} at {where} answers in {took_ms:.1f} ms"
    slow = took_ms > 50
    return Finding(check="redis", status=WARN if slow else OK, finding=finding,
                   advice="Each step of a task waits for it: move closer, or lighten its load." if slow else "",
                   )  # fmt: skip


def _info(store: Store, section: str) -> dict[str, str]:
    lines = store.client.execute("INFO", section).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _config(store: Store, name: str) -> str | None:
    """A setting of the server; None if it may not be read."""
    try:
        pair = store.client.execute("CONFIG", "GET", name)
    except ResponseError:
        return None
    return pair[1].decode() if pair else None


def _durability(store: Store) -> Iterator[Finding]:
    found = durability(store.client)
    advice = ""
    if not found.appends:
        advice = "Set appendonly yes and appendfsync everysec in redis.conf."
    elif found.settings["appendfsync"] == "no":
        advice = "Set appendfsync everysec."
    elif found.sentinels and not found.agree:
        advice = "Look at the sentinels that are down, or name another master."
    elif found.sentinels and not (found.replicas and found.bounded):
        advice = "Run a replica, and set min-replicas-to-write 1 and min-replicas-max-lag 10."
    yield Finding(check="durability", status=WARN if advice else OK, finding=found.sentence, advice=advice)


def _memory(store: Store) -> Iterator[Finding]:
    policy = _config(store, "maxmemory-policy")
    if policy not in (None, "noeviction"):
        yield Finding(check="memory", status=FAIL, finding=f"maxmemory-policy {policy} drops keys, which loses tasks",
                      advice="Set maxmemory-policy noeviction; agents refuse to start without.")  # fmt: skip
        return
    info = _info(store, "memory")
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    finding = f"noeviction, {used / 1e6:,.0f} MB used of {f'{limit / 1e6:,.0f} MB' if limit else 'no limit'}"
    full = bool(limit) and used > _NEARLY * limit
    yield Finding(check="memory", status=WARN if full else OK, finding=finding,
                  advice="Raise maxmemory, or shorten MESH_RESULT_RETENTION_S." if full else "")  # fmt: skip


def _clients(store: Store) -> Iterator[Finding]:
    info = _info(store, "clients")
    now = int(info.get("connected_clients", 0))
    most = int(_config(store, "maxclients") or info.get("maxclients") or 0)
    few = bool(most) and (most < _FEW_CLIENTS or now > _NEARLY * most)
    yield Finding(check="clients", status=WARN if few else OK, finding=f"{now} connections of {most or 'unknown'}",
                  advice="Set maxclients 10000: an agent holds about ten." if few else "")  # fmt: skip


def _clock(store: Store) -> Iterator[Finding]:
    before = time.time()
    theirs_ms = store.agents.now_ms()
    skew_ms = theirs_ms - (before + time.time()) / 2 * 1000
    off = abs(skew_ms) > _SKEW_MS
    side = "behind" if skew_ms > 0 else "ahead of"
    yield Finding(check="clock", status=WARN if off else OK,
                  finding=f"this machine is {abs(skew_ms) / 1000:.1f} s {side} Redis" if off else "agrees with Redis's",
                  advice="Synchronise it: the mesh goes by Redis's clock, but logs and eta do not." if off else "",
                  )  # fmt: skip


def _scripts(store: Store) -> Iterator[Finding]:
    store.preload()
    yield Finding(check="scripts", status=OK, finding="Redis takes the mesh's Lua scripts")


# -- the mesh


def _history(store: Store) -> Iterator[Finding]:
    """Whether Redis holds what it has confirmed."""
    epoch = views.epoch(store)
    advice = "Run mesh restore: tasks of before are failed or queued again, and reported (docs/backup.md)."
    if epoch["unfinished"]:
        finding = f"the restore of {epoch['restored_at']} was interrupted"
        yield Finding(check="history", status=WARN, finding=finding, advice=advice)
    elif gone := epoch["gone_back"]:
        far = f" by about {gone['lost_ms'] // 1000} s" if gone["lost_ms"] else ""
        finding = f"Redis went back in time{far}: {gone['by']} noticed it at {gone['noticed_at']}"
        yield Finding(check="history", status=WARN, finding=finding, advice=advice)
    else:
        restored = f"restored at {epoch['restored_at']}" if epoch["restored_at"] else "never restored"
        yield Finding(check="history", status=OK, finding=restored)


def _coordinators(store: Store) -> Iterator[Finding]:
    registry = Coordinators(store.client, store.keys)
    here = [one for one in registry.all() if one.get("namespace") == store.settings.namespace]
    term, leader = registry.leader()
    if not here:
        yield Finding(check="coordinators", status=WARN,
                      finding=f"none for namespace {store.settings.namespace}; agents recover tasks by themselves",
                      advice="Start one or more with mesh coordinator: they promote, reap and clean up.")  # fmt: skip
        return
    led = f"{leader} leads, term {term}" if leader else "nobody leads"
    yield Finding(check="coordinators", status=OK if leader else WARN,
                  finding=f"{', '.join(one['id'] for one in here)}; {led}",
                  advice="" if leader else "An election takes some seconds: look again.")  # fmt: skip
    for one in here:
        yield _answer(f"coordinator {one['id']}", f"http://{one['address']}:{one['port']}")


def _named_coordinators(settings: Settings) -> Iterator[Finding]:
    for url in settings.coordinator_urls:
        yield _answer("COORDINATOR_URL", url)


def _answer(check: str, url: str) -> Finding:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health/ready", timeout=_HTTP_S) as answer:
            status = json.loads(answer.read()).get("status")
        return Finding(check=check, status=OK, finding=f"{url} answers: {status}")
    except urllib.error.HTTPError as error:
        why, advice = f"{url} answers with {error.code}", "Look into its log."
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        why, advice = (
            f"{url} does not answer from here: {reason}",
            "Check its address, its port and the firewall.",
        )
    return Finding(check=check, status=WARN, finding=why, advice=advice)


def _agents(store: Store) -> Iterator[Finding]:
    agents = agent_services.discover(store)
    health = Counter(str(one.status) for one in agents)
    there = [one for one in agents if one.status not in ("offline", "unhealthy")]
    finding = ", ".join(f"{number} {status}" for status, number in sorted(health.items())) or "none"
    if not there:
        yield Finding(check="agents", status=WARN, finding=finding,
                      advice="Start one with mesh deploy: what is submitted waits until then.")  # fmt: skip
    else:
        ill = [one.id for one in agents if one.status in ("degraded", "unhealthy")]
        yield Finding(check="agents", status=WARN if ill else OK, finding=finding,
                      advice=f"See mesh agent describe {ill[0]}." if ill else "")  # fmt: skip
    others = sorted({one.version for one in there} - {__version__})
    if others:
        yield Finding(check="versions", status=WARN, finding=f"agents run {', '.join(others)}, this is {__version__}",
                      advice="Finish the rolling update.")  # fmt: skip


def _work(store: Store) -> Iterator[Finding]:
    """Tasks that wait for something that nobody offers, and those that were put aside."""
    for queue, states in sorted(store.tasks.counts().items()):
        waiting = states.get("queued", 0)
        sentence = agent_services.unmet(store, queue) if waiting and not queue.startswith("@") else None
        if sentence:
            yield Finding(check=f"queue {queue}", status=WARN, finding=f"{waiting} waiting: {sentence}",
                          advice="Start an agent that offers it.")  # fmt: skip
    dead = int(store.client.execute("ZCARD", store.keys["dead"]))
    yield Finding(check="dead letters", status=WARN if dead else OK, finding=f"{dead}" if dead else "none",
                  advice="See mesh dead-letter list; replay or discard them." if dead else "")  # fmt: skip


_IN_REDIS: tuple[Callable[[Store], Iterator[Finding]], ...] = (
    _durability, _memory, _clients, _clock, _scripts, _history, _coordinators, _agents, _work,
)  # fmt: skip
