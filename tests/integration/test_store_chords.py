"""Chords in the store: the script that ends a task counts its part; a complete header is due until done (rule 4)."""

import pytest

from mesh.core.states import State
from mesh.store.store import Store
from mesh.store.tasks import Fetched, Settlement
from tests.integration.stores import (
    LONG_AGO_MS,
    MINUTE_MS,
    entry,
    fetch,
    lose_holder,
    members,
    open_store,
    publish,
    settle,
    tick,
)


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace, max_crashes=1)


def begin_chord(store: Store, size: int = 2, token: str = "") -> list[Fetched]:
    """A chord `g` whose header is published and held."""
    store.chords.arm("g", body=b"body", token=token)
    for index in range(size):
        publish(store, f"h{index}", kind="child", token=token or "p:1", extra=("chord", f"g|{index}"))
    store.chords.arm("g", size=size)
    return fetch(store, limit=99)


def due(store: Store) -> list[str]:
    return members(store, "chords_due")


def test_a_header_is_complete_with_its_last_part_and_its_results_keep_their_order(store: Store) -> None:
    header = begin_chord(store, size=12)
    for one in reversed(header):
        assert due(store) == []
        settle(store, one, document=one.id.encode())
    assert due(store) == ["g"]
    chord = store.chords.take("g")
    assert chord is not None and chord.body == b"body"
    assert chord.documents == [f"h{index}".encode() for index in range(12)]


def test_the_end_that_completes_a_header_tells_so(store: Store) -> None:
    one, two = begin_chord(store)
    first, last = [Settlement(held.id, held.fence, State.SUCCEEDED) for held in (one, two)]
    assert store.tasks.settle([first]) == (["moved"], [])
    assert store.tasks.settle([last]) == (["moved"], ["g"])
    assert store.tasks.settle([last]) == (["repeated"], [])  # its reply may have been lost: nothing changes


def test_only_the_attempt_that_moved_its_task_counts(store: Store) -> None:
    one, two = begin_chord(store)
    store.tasks.release([entry(one)])
    assert settle(store, one) == "stale"
    settle(store, two)
    (current,) = fetch(store)
    assert settle(store, one, document=b'"late"') == "fenced" and due(store) == []
    settle(store, current, document=b'"current"')
    chord = store.chords.take("g")
    assert chord is not None and chord.documents[0] == b'"current"'


@pytest.mark.parametrize("end", ["cancel", "crash", "reap", "conclude", "expire"])
def test_every_other_end_counts_as_a_part_too(store: Store, end: str) -> None:
    one, _ = begin_chord(store, size=2)
    settle(store, one)
    publish(store, "x", extra=("chord", "g|1"), expires_ms=MINUTE_MS)
    told = ""
    match end:
        case "cancel":
            told = store.tasks.cancel("x", "why")[2]
        case "crash":
            told = store.tasks.crash(entry(fetch(store)[0]), "died")[2]
        case "reap":
            (held,) = fetch(store)
            store.tasks.start([(held.id, held.fence, 0)])
            lose_holder(store, held)
            told = due(store)[0]
        case "conclude":
            told = store.tasks.conclude("x", State.FAILED, b"{}")[1]
        case "expire":
            store.client.execute("HSET", store.keys.of("task", "x"), "expires_at", LONG_AGO_MS)
            assert fetch(store) == []
            told = due(store)[0]
    assert told == "g" and due(store) == ["g"]


def test_a_part_that_was_never_published_is_counted_by_itself(store: Store) -> None:
    one, _ = begin_chord(store)
    settle(store, one)
    assert store.chords.part("g", "1", b'"failed"') is True
    chord = store.chords.take("g")
    assert chord is not None and chord.documents[1] == b'"failed"'


def test_a_header_whose_tasks_end_before_its_size_is_known_is_due_by_the_size(store: Store) -> None:
    store.chords.arm("g", body=b"body")
    for index in range(2):
        publish(store, f"h{index}", extra=("chord", f"g|{index}"))
    for one in fetch(store, limit=2):
        settle(store, one)
    assert due(store) == []
    assert store.chords.arm("g", size=3) is False
    assert store.chords.arm("g", size=2) is True
    assert due(store) == ["g"]


@pytest.mark.parametrize("when", ["before the size", "after the size"])
def test_a_header_may_grow_while_it_runs(store: Store, when: str) -> None:
    store.chords.arm("g", body=b"body")
    if when == "before the size":
        store.chords.grow("g")
    store.chords.arm("g", size=1)
    if when == "after the size":
        store.chords.grow("g")
    assert store.chords.part("g", "0", b"{}") is False
    assert store.chords.part("g", "1", b"{}") is True


# -- completing


def test_a_due_chord_is_claimed_once_and_stays_due_until_it_is_done(store: Store) -> None:
    for one in begin_chord(store):
        settle(store, one)
    assert store.chords.take("g") is not None
    assert store.chords.take("g") is None, "another process is at it"
    assert due(store) == ["g"]
    store.client.execute("HSET", store.keys.of("chord", "g"), "claimed", LONG_AGO_MS)
    again = store.chords.take("g")
    assert again is not None, "that process died"
    assert store.chords.done("g", again.armed) is True
    assert (store.chords.take("g"), due(store)) == (None, [])


def test_a_chord_that_is_not_complete_cannot_be_claimed(store: Store) -> None:
    one, _ = begin_chord(store)
    settle(store, one)
    assert store.chords.take("g") is None and store.chords.take("none") is None


def test_whoever_beats_or_ticks_hears_of_chords_left_due_for_two_seconds(store: Store) -> None:
    for one in begin_chord(store):
        settle(store, one)
    assert tick(store)[3] == [] and store.agents.renew("w", 1, {}, []).chords_due == []
    store.client.execute("ZADD", store.keys["chords_due"], LONG_AGO_MS, "g")
    assert tick(store)[3] == ["g"] and store.agents.renew("w", 1, {}, []).chords_due == ["g"]


# -- armed again


def test_a_second_attempt_of_its_parent_does_not_disturb_a_chord_under_way(store: Store) -> None:
    """The header is not published a second time (`exists`), so what it has ended must not be forgotten."""
    one, two = begin_chord(store, token="p:1")
    settle(store, one)
    assert begin_chord(store, token="p:1") == []
    assert due(store) == []
    settle(store, two)
    chord = store.chords.take("g")
    assert chord is not None and len(chord.documents) == 2 and chord.armed == "p:1"


def test_a_newer_run_of_its_parent_or_a_new_call_starts_it_anew(store: Store) -> None:
    for token in ("p:1", "p:2", "", ""):
        store.chords.arm("g", body=b"body", token=token)
        store.chords.arm("g", size=1)
        assert due(store) == []
        assert store.chords.part("g", "0", b"{}") is True


def test_the_end_of_an_older_arming_does_not_take_the_newer_one_away(store: Store) -> None:
    for one in begin_chord(store, token="p:1"):
        settle(store, one)
    older = store.chords.take("g")
    assert older is not None
    header = begin_chord(store, token="p:2")
    assert store.chords.done("g", older.armed) is False
    for one in header:
        settle(store, one)
    assert store.chords.take("g") is not None


def test_what_nobody_completes_ends_with_its_retention(store: Store) -> None:
    one, two = begin_chord(store)
    settle(store, one, keep=False)
    for family in ("chord", "parts"):
        assert store.client.execute("PTTL", store.keys.of(family, "g")) > 1000 * MINUTE_MS
    store.chords.done("g")
    settle(store, two)
    assert store.client.execute("EXISTS", store.keys.of("parts", "g")) == 0, "nobody waits for this part"
    assert store.chords.part("g", "1", b"{}") is False
