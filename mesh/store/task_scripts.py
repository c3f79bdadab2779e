"""The scripts of task records: their signatures, which are their KEYS and ARGV lists (see `mesh.store.scripts`).

What each does, takes and answers stands at the top of its Lua file; `mesh.store.tasks` calls them.
"""

from __future__ import annotations

from typing import Any

from mesh.store.scripts import Arg, Args, Key, Prefix, script


@script
def submit(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    recent: Key,
    dead: Key,
    requirements: Key,
    requirements_version: Key,
    sequence: Key,
    present: Key,
    prefix: Prefix,
    tasks: Args[Any],
) -> None: ...


@script
def submit_one(
    ready: Key,
    counters: Key,
    recent: Key,
    sequence: Key,
    prefix: Prefix,
    queue: Arg[str],
    task_type: Arg[str],
    id: Arg[str],
    message: Arg[bytes],
    token: Arg[str],
) -> None: ...


@script
def retry(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    requirements: Key,
    requirements_version: Key,
    sequence: Key,
    present: Key,
    timings: Key,
    prefix: Prefix,
    task_id: Arg[str],
    fence: Arg[str],
    queue: Arg[str],
    task_type: Arg[str],
    priority: Arg[int],
    message: Arg[bytes],
    delay_ms: Arg[str],
    how: Arg[str],
    problem: Arg[str],
) -> None: ...


@script
def replay(
    ready: Key,
    counters: Key,
    dead: Key,
    requirements: Key,
    requirements_version: Key,
    sequence: Key,
    present: Key,
    recent: Key,
    prefix: Prefix,
    task_id: Arg[str],
    run: Arg[int],
    message: Arg[bytes],
) -> None: ...


@script
def fetch(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    sequence: Key,
    timings: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    holder: Arg[str],
    isolated: Arg[int],
    patience_ms: Arg[int],
    lease_ms: Arg[int],
    nonce: Arg[str],
    limit: Arg[int],
    held: Arg[int],
    queues: Args[str],
) -> None: ...


@script
def start(counters: Key, timings: Key, prefix: Prefix, entries: Args[str]) -> None: ...


@script
def settle(
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    timings: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    ignored_keep_ms: Arg[int],
    dead_keep_ms: Arg[int],
    entries: Args[str],
) -> None: ...


@script
def release(
    ready: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    prefix: Prefix,
    entries: Args[str],
) -> None: ...


@script
def crash(
    ready: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    poisoned: Key,
    timings: Key,
    prefix: Prefix,
    dead_keep_ms: Arg[int],
    max_crashes: Arg[int],
    task_id: Arg[str],
    fence: Arg[str],
    sentence: Arg[str],
) -> None: ...


@script
def reap(
    ready: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    poisoned: Key,
    present: Key,
    pulse: Key,
    grace: Key,
    prefix: Prefix,
    dead_keep_ms: Arg[int],
    max_crashes: Arg[int],
    lease_ms: Arg[int],
    renew_ms: Arg[int],
    limit: Arg[int],
    claim: Arg[int],
) -> None: ...


@script
def cancel(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    task_id: Arg[str],
    reason: Arg[str],
) -> None: ...


@script
def conclude(
    ready: Key,
    scheduled: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    prefix: Prefix,
    keep_ms: Arg[int],
    task_id: Arg[str],
    state: Arg[str],
    document: Arg[bytes],
) -> None: ...


@script
def annotate(
    prefix: Prefix, keep_ms: Arg[int], task_id: Arg[str], fence: Arg[str], document: Arg[bytes]
) -> None: ...


@script
def tick(
    ready: Key,
    scheduled: Key,
    leases: Key,
    deadlines: Key,
    counters: Key,
    dead: Key,
    chords_due: Key,
    sequence: Key,
    leader: Key,
    prefix: Prefix,
    lead: Arg[str],
    keep_ms: Arg[int],
    dead_keep_ms: Arg[int],
    spill_ms: Arg[int],
    limit: Arg[int],
) -> None: ...


@script
def reseal(prefix: Prefix, entries: Args[Any]) -> None: ...


ALL = (
    submit,
    submit_one,
    retry,
    replay,
    fetch,
    start,
    settle,
    release,
    crash,
    reap,
    cancel,
    conclude,
    annotate,
    tick,
    reseal,
)
