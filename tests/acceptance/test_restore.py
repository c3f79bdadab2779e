"""`mesh restore` as people, scripts and HTTP callers see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mesh.client import Mesh
from mesh.errors import Conflict, Invalid
from mesh.services import restore as service
from tests.acceptance.conftest import Place
from tests.acceptance.test_coordinator import start
from tests.integration.stores import begin, publish, record, take
from tests.tokens import bearer


def silent(place: Place, *names: str) -> None:
    """Agents that are registered, and have not beaten for long."""
    store = place.mesh.store
    for name in names:
        fields = {"name": name, "type": "worker", "namespace": place.namespace, "capabilities": "ocr"}
        store.agents.join(name, fields)
        store.client.execute("HINCRBY", store.keys.of("agent", name), "beat", -3_600_000)


def saved(place: Place) -> Path:
    file = place.folder / "agents-backup.json"
    file.write_text(place.call("discover", "-o", "json").stdout)
    return file


def forget(place: Place, name: str) -> None:
    store = place.mesh.store
    store.client.execute("DEL", store.keys.of("agent", name))
    store.client.execute("ZREM", store.keys["agents"], name)


def work(place: Place) -> None:
    """One task that runs, two that wait."""
    store = place.mesh.store
    for name in ("runs", "waits", "waits-too"):
        publish(store, name)
    begin(store, take(store, holder="w1#1"))


def test_it_shows_what_differs_and_changes_nothing_before_a_yes(place: Place) -> None:
    silent(place, "w1", "w2")
    file = saved(place)
    forget(place, "w2")
    work(place)
    shown = place.call("restore", "--file", str(file), "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "agents to add" in shown.stdout and "1: w2" in shown.stdout
    assert "agents unchanged" in shown.stdout and "1: w1" in shown.stdout
    assert "3 tasks had not ended, and would be failed:" in shown.stdout
    asked = place.call("restore", "--file", str(file))
    assert asked.returncode == 2 and "look at --dry-run, then add --yes" in asked.stderr
    assert [one["id"] for one in place.discover()] == ["w1"]
    assert record(place.mesh.store, "runs").state == "running"
    assert json.loads(place.call("status", "-o", "json").stdout)["epoch"]["restored_at"] is None


def test_it_restores_reports_and_says_so_in_status_and_doctor(place: Place) -> None:
    silent(place, "w1", "w2")
    place.mesh.cordon("w2")
    file = saved(place)
    forget(place, "w2")
    work(place)
    done = place.call("restore", "--file", str(file), "--yes", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["agents"]["add"] == ["w2"] and report["tasks"]["states"] == {"queued": 2, "running": 1}
    agents = place.discover()
    assert [(one["id"], one["status"], one["cordoned"]) for one in agents] == [
        ("w1", "offline", False),
        ("w2", "offline", True),
    ]
    (failed,) = json.loads(place.call("task", "list", "--agent", "w1", "-o", "json").stdout)
    assert (failed["state"], failed["reason"]) == ("failed", "restored")
    assert failed["error"] == "was running on w1 when the backup was made; it may have run since"
    assert "restored      20" in place.call("status").stdout
    assert "restored at" in place.call("doctor").stdout
    again = place.call("restore", "--file", str(file), "--yes")
    assert "none that had not ended" in again.stdout


def test_requeueing_over_standard_input_keeps_what_waits(place: Place) -> None:
    work(place)
    done = place.call("restore", "--file", "-", "--tasks", "requeue", "-y", "-o", "name", stdin=b"[]")
    assert (done.returncode, done.stdout) == (0, "runs\n"), done.stderr
    assert [record(place.mesh.store, one).state for one in ("runs", "waits")] == ["queued", "queued"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"agents-backup\.json cannot be read: No such file or directory"),
        ("{", "agents-backup.json is not JSON"),
        ("{}", "agents-backup.json is not the list of agents"),
        ('[{"id": "w1"}]', "agent 'w1' is wrong: Object missing required field `name`"),
        ('[{"id": "w1", "moons": 1}]', "the field 'moons', which this version does not know; a newer one"),
    ],
)
def test_a_bad_file_is_one_sentence_and_changes_nothing(
    place: Place, content: str | None, sentence: str
) -> None:
    work(place)
    before = place.keys()
    file = place.folder / "agents-backup.json"
    if content is not None:
        file.write_text(content)
    done = place.call("restore", "--file", str(file), "--yes")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert sentence.replace("\\", "") in done.stderr
    assert place.keys() == before and record(place.mesh.store, "runs").state == "running"


def test_a_file_of_another_namespace_is_refused(place: Place) -> None:
    silent(place, "w1")
    done = place.call("restore", "-n", f"{place.namespace}-b", "--file", str(saved(place)), "--yes")
    assert done.returncode == 2 and f"is of namespace '{place.namespace}', not" in done.stderr


@pytest.mark.ci
def test_http_and_python_restore_the_same_way(place: Place) -> None:
    silent(place, "w1")
    url = start(place, "c1")[1]
    rows = httpx2.get(f"{url}/v1/namespaces/{place.namespace}/agents", headers=bearer()).json()["agents"]
    forget(place, "w1")
    work(place)

    def ask(query: str = "", **body: Any) -> httpx2.Response:
        whole = {"namespace": place.namespace, "agents": rows, **body}
        return httpx2.post(f"{url}/v1/snapshots:restore{query}", json=whole, headers=bearer(), timeout=30)

    planned = ask("?dry_run=true")
    assert planned.status_code == 200 and planned.json()["agents"]["add"] == ["w1"]
    assert planned.json()["tasks"]["states"] == {"queued": 2, "running": 1}
    for bad in ({"tasks": "forget"}, {"agents": [{"id": "w1"}]}, {"namespace": "other"}, {"more": 1}):
        assert ask(**bad).status_code == 422
    assert record(place.mesh.store, "runs").state == "running"
    with Mesh(namespace=place.namespace, coordinator_url=url) as remote:
        with pytest.raises(Invalid, match="tasks"):
            remote.restore(rows, tasks="forget")
        report = remote.restore(rows, tasks="requeue")
        assert {row["id"]: row["now"] for row in report["tasks"]["list"]} == {"runs": "queued"}
        assert remote.overview()["epoch"] == place.mesh.overview()["epoch"]
    cluster = httpx2.get(f"{url}/v1/cluster", headers=bearer()).json()["epoch"]
    assert cluster["restored_at"] and cluster["unfinished"] is False and cluster["gone_back"] is None


def test_a_mesh_that_works_wants_to_be_told_what_becomes_of_its_tasks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(place)
    monkeypatch.setattr(service, "beating", lambda _: {"w1": True})
    with pytest.raises(Conflict, match="are alive"):
        place.mesh.restore([])
    done = place.call("restore", "--file", "-", "--yes", stdin=b"[]")
    assert done.returncode == 7 and "say what is to become of these" in done.stderr
