"""Defects planted into the store, to see that the witness finds them: what the mesh would do wrong if it were built carelessly.

`plant(store, name)` gives one store the defect; `python -m tests.chaos.planted NAME MODULE ...` runs a process with it. The
product has no switch for any of this: scripts are rewritten before they are bound, and a plant that finds nothing to rewrite
fails.
"""

from __future__ import annotations

import hashlib
import runpy
import sys
from collections.abc import Callable, Iterable

from mesh.store import agents, task_scripts
from mesh.store.client import pack
from mesh.store.scripts import Script
from mesh.store.store import Store
from mesh.store.tasks import Settlement

_SKEW_S = 7200
#: Defect -> [(script, what it says, what it says instead)]; script '*': all that say it.
REWRITES: dict[str, list[tuple[str, str, str]]] = {
    "no fence": [("*", "local FENCED = true", "local FENCED = false")],
    "submit is not idempotent": [
        ("submit", "if not all_new then state = redis.call('HGET', key, 'state') end", ""),
        ("submit_one", "if redis.call('EXISTS', key) == 1 then return false end", ""),
    ],
    "reap without state guard": [
        # what had lost its lease was noted before
        ("reap", "redis.call('ZRANGE', leases, '-inf', quiet and 0 or stamp, 'BYSCORE', 'LIMIT', 0, limit)",
         "redis.call('ZRANGE', leases .. '-seen', 0, -1)"),
        ("reap", "if state and LEGAL.reap[state] then", "if state then"),
    ],
    "lease by the agent's clock": [
        ("*", "local clock = redis.call('TIME')",
         f"local clock = redis.call('TIME'); clock[1] = tostring(clock[1] + {_SKEW_S})")
    ],
    "settle in two steps": [],
}  # fmt: skip


def _nothing() -> None:
    """No fault in between."""


def plant(store: Store, name: str, between: Callable[[], None] = _nothing) -> Store:
    """Give this store the defect. `between` runs where a careless step can be interrupted."""
    parts = (store.tasks, store.agents)
    for script, text in _rewritten(name, [bound.script for part in parts for bound in part.bound.values()]):
        for part in parts:
            if script.name in part.bound and part.bound[script.name].script.function is script.function:
                part.bound[script.name] = _with_text(script, text).bind(store.client, store.keys)
    if name == "reap without state guard":
        _reap_in_two_steps(store, between)
    elif name == "settle in two steps":
        _settle_in_two_steps(store, between)
    return store


def _rewritten(name: str, scripts: Iterable[Script]) -> list[tuple[Script, str]]:
    """The scripts that the defect changes, with their new texts."""
    found = []
    used = set()
    for script in scripts:
        text = script.text
        for which, old, new in REWRITES[name]:
            if which in ("*", script.name) and old in text:
                text = text.replace(old, new)
                used.add((which, old))
        if text != script.text:
            found.append((script, text))
    missing = [old for which, old, _ in REWRITES[name] if (which, old) not in used]
    assert not missing, f"{name}: no script says {missing}"
    return found


def _with_text(script: Script, text: str) -> Script:
    made = Script(script.function)
    _use(made, text)
    return made


def _use(script: Script, text: str) -> None:
    script.text = text
    script.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    script._load = pack(["SCRIPT", "LOAD", text])


def _reap_in_two_steps(store: Store, between: Callable[[], None]) -> None:
    """Who lost a lease is looked up first, and taken back later, whatever has become of it."""
    leases, client, reap_seen = store.keys["leases"], store.client, store.tasks.reap

    def reap() -> None:
        client.execute("ZRANGESTORE", f"{leases}-seen", leases, "-inf", store.agents.now_ms(), "BYSCORE")
        between()
        reap_seen()
        client.execute("DEL", f"{leases}-seen")

    store.tasks.reap = reap  # type: ignore[assignment, method-assign]


def _settle_in_two_steps(store: Store, between: Callable[[], None]) -> None:
    """The result first, for whoever waits; then the state and the lease."""
    keys, client, settle = store.keys, store.client, store.tasks.settle

    def in_two_steps(settlements: Iterable[Settlement]) -> tuple[list[str], list[str]]:
        ends = list(settlements)
        for one in ends:
            client.execute("SET", keys.of("result", one.id), one.document)
            client.execute("PUBLISH", keys.of("result", one.id), one.document)
        between()
        return settle(ends)

    store.tasks.settle = in_two_steps  # type: ignore[method-assign]


def main(words: list[str]) -> None:
    """Run a module in a process whose scripts have the defect."""
    name, module, *rest = words
    if name in ("reap without state guard", "settle in two steps"):
        raise SystemExit(f"{name} needs somebody who interrupts it: plant it into a store.")
    for script, text in _rewritten(name, [*task_scripts.ALL, *agents.ALL]):
        _use(script, text)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
