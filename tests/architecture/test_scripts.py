"""The Lua files and their Python signatures: one of each, readable, and never unknown to a server for long."""

import re
from pathlib import Path

import pytest

from mesh.core.states import RULES
from mesh.store import keys
from mesh.store.scripts import Key, Prefix, Script, call_together
from mesh.store.store import SCRIPTS, Store
from tests.integration.stores import entry, open_store, publish, record, settle, take

LUA = Path(keys.__file__).parent / "lua"
FILES = sorted(LUA.rglob("*.lua"))
VERBS = sorted(LUA.glob("*.lua"))
FORBIDDEN = ("KEYS *", "SCAN", "'KEYS'", "os.time", "math.random", "RANDOMKEY", "FLUSH")


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    return open_store(redis_url, namespace)


def name_of(script: Script) -> str:
    return script.name


def test_every_file_has_a_signature_and_every_signature_a_file() -> None:
    assert sorted(script.name for script in SCRIPTS) == [path.stem for path in VERBS]


def test_every_library_is_used_by_some_script() -> None:
    wanted = {
        name
        for path in VERBS
        for line in re.findall(r"^--#include (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for name in line.split()
    }
    assert wanted == {path.stem for path in LUA.glob("lib/*.lua")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_opens_with_what_it_does(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    while lines[0].startswith("--#"):
        assert re.fullmatch(r"--#(include( [a-z]+)+|allow-oom)", lines.pop(0))
    assert re.match(r"-- [A-Z]", lines[0])


@pytest.mark.parametrize("path", VERBS, ids=lambda path: path.stem)
def test_a_verb_says_what_it_answers(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("-- ")]
    assert "Answers" in " ".join(comments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_script_walks_the_whole_database_or_asks_anything_but_redis(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if word in text] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_every_declared_key_and_argument_is_used(script: Script) -> None:
    """A key that a script does not touch is a key that an ACL must grant for nothing."""
    body = script.text.partition("local FENCED = true\n")[2]
    code = "\n".join(line.partition("--")[0] for line in body.splitlines())
    names = [*script.keys, *script.arguments[:-1]]
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_legal_states_come_from_the_table_of_states_only(script: Script) -> None:
    for verb in re.findall(r"LEGAL\.(\w+)", script.text):
        assert verb in RULES
    assert "LEGAL" not in script.text or "local LEGAL = {" in script.text


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_what_ends_or_moves_work_is_allowed_when_memory_is_full(script: Script) -> None:
    adds = {"submit", "submit_one", "enlist", "replay", "annotate", "chord_arm"}
    assert script.text.startswith("#!lua flags=allow-oom\n") == (script.name not in adds)


def test_a_script_without_fences_differs_in_nothing_else() -> None:
    (fenced,) = [script for script in SCRIPTS if script.name == "settle"]
    unfenced = Script(fenced.function, fenced=False)
    assert unfenced.text == fenced.text.replace("FENCED = true", "FENCED = false") != fenced.text
    assert unfenced.sha != fenced.sha


def test_a_key_that_is_not_in_the_table_is_refused() -> None:
    def start(everything: Key, prefix: Prefix) -> None: ...

    with pytest.raises(TypeError, match="everything is not in the key table"):
        Script(start)


def test_loading_twice_is_fine(store: Store) -> None:
    store.preload()
    store.preload()
    shas = [script.sha for script in SCRIPTS]
    assert store.client.execute("SCRIPT", "EXISTS", *shas) == [1] * len(shas)


def test_a_call_teaches_a_server_that_has_forgotten_its_scripts(store: Store) -> None:
    assert publish(store, "a") == "moved"
    store.client.execute("SCRIPT", "FLUSH")
    one = take(store)
    store.client.execute("SCRIPT", "FLUSH")
    assert settle(store, one) == "moved"


def test_calls_in_one_round_trip_teach_it_too_and_each_runs_once(store: Store) -> None:
    publish(store, "a")
    publish(store, "b")
    first, second = store.tasks.fetch(
        holder="w#1", isolated=True, nonce="n", limit=2, held=0, queues=["work"]
    )
    store.client.execute("SCRIPT", "FLUSH")
    tasks = store.tasks
    tasks.bound["release"].load()  # known among unknown ones
    started, released, fetched = call_together(
        store.client,
        [
            tasks.start_words([(first.id, first.fence, 0)]),
            (tasks.bound["release"], [second.id, second.fence]),
            tasks.fetch_words(holder="v#1", isolated=True, nonce="m", limit=1, held=0, queues=["work"]),
        ],
    )
    assert (started, released) == ([b"moved"], [b"moved"])
    assert [one.id for one in tasks.fetched(fetched)[1]] == ["b"]
    assert (record(store, "a").state, record(store, "b").attempt) == ("running", 2)
    assert store.tasks.release([entry(second)]) == ["fenced"]
