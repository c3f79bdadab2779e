"""Results: AsyncResult, states, payloads and what JSON can carry."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from celery import group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult, GroupResult
from kombu.exceptions import EncodeError

from tests.conformance import tasks
from tests.conformance.cluster import Cluster
from tests.conformance.ledger import open_gate, read_notes


def test_get(cluster: Cluster) -> None:
    assert cluster.get(tasks.add.delay(2, 3)) == 5


def test_success(cluster: Cluster) -> None:
    result = tasks.add.delay(2, 3)
    cluster.wait_until(result.ready, "the result to be ready")
    again = AsyncResult(result.id, app=cluster.app)
    assert (again.state, again.result, again.traceback) == ("SUCCESS", 5, None)
    assert again.successful() and not again.failed()
    assert again.date_done is not None


def test_failure(cluster: Cluster) -> None:
    result = tasks.fail.delay("no luck")
    with pytest.raises(ValueError, match="no luck"):
        cluster.get(result)
    again = AsyncResult(result.id, app=cluster.app)
    assert again.state == "FAILURE" and again.failed() and again.ready()
    assert isinstance(again.result, ValueError) and again.result.args == ("no luck",)
    assert "raise ValueError(message)" in again.traceback
    assert isinstance(cluster.get(result, propagate=False), ValueError)


def test_unknown_id_is_pending(cluster: Cluster) -> None:
    result = AsyncResult(str(uuid.uuid4()), app=cluster.app)
    assert (result.state, result.result) == ("PENDING", None)


def test_get_times_out(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = tasks.gated.delay(key, 1)
    with pytest.raises(CeleryTimeoutError):
        result.get(timeout=0.3)
    open_gate(key)
    assert cluster.get(result) == 1


def test_own_task_id(cluster: Cluster) -> None:
    task_id = f"chosen-{cluster.new_key()}"
    assert cluster.get(tasks.add.apply_async((1, 1), task_id=task_id)) == 2
    assert AsyncResult(task_id, app=cluster.app).result == 2


def test_send_task_by_name(cluster: Cluster) -> None:
    result = cluster.app.send_task("tests.conformance.tasks.add", args=[4], kwargs={"y": 5})
    assert cluster.get(result) == 9


def test_started(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = tasks.gated.delay(key, "done")
    cluster.wait_for_state(result, "STARTED")
    assert not result.ready()
    open_gate(key)
    assert cluster.get(result) == "done"


def test_custom_state(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = tasks.progress.delay(key)
    cluster.wait_for_state(result, "PROGRESS")
    assert result.info == {"done": 3, "of": 7}
    open_gate(key)
    assert cluster.get(result) == "complete"
    assert result.state == "SUCCESS"


def test_children(cluster: Cluster) -> None:
    result = tasks.spawn.delay(20, 22)
    assert cluster.get(result) == 20
    (child,) = result.children
    assert cluster.get(child) == 42


def test_forget(cluster: Cluster) -> None:
    result = tasks.add.delay(1, 2)
    assert cluster.get(result) == 3
    result.forget()
    again = AsyncResult(result.id, app=cluster.app)
    assert (again.state, again.result) == ("PENDING", None)


def test_ignore_result_of_task(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = tasks.note_ignored.delay("kept from nobody", key)
    assert result.get(timeout=1) is None
    assert cluster.wait_for_notes(key)[0]["value"] == "kept from nobody"
    cluster.settle()
    assert AsyncResult(result.id, app=cluster.app).result is None


def test_ignore_result_of_call(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = tasks.note.apply_async(("here", key), ignore_result=True)
    cluster.wait_for_notes(key)
    cluster.settle()
    assert AsyncResult(result.id, app=cluster.app).result is None
    key = cluster.new_key()
    assert cluster.get(tasks.note_ignored.apply_async(("there", key), ignore_result=False)) == "there"


def test_group_result(cluster: Cluster) -> None:
    result = group(tasks.add.s(i, i) for i in range(5)).apply_async()
    assert cluster.get(result) == [0, 2, 4, 6, 8]
    assert result.successful() and result.completed_count() == 5
    result.save()
    restored = GroupResult.restore(result.id, app=cluster.app)
    assert cluster.get(restored) == [0, 2, 4, 6, 8]
    restored.delete()
    assert GroupResult.restore(result.id, app=cluster.app) is None


def test_group_result_with_a_failure(cluster: Cluster) -> None:
    result = group(tasks.add.s(1, 1), tasks.fail.s("one of two")).apply_async()
    with pytest.raises(ValueError, match="one of two"):
        cluster.get(result)
    value, error = cluster.get(result, propagate=False)
    assert value == 2 and isinstance(error, ValueError)
    assert result.failed() and not result.successful()


def test_iterating_over_results(cluster: Cluster) -> None:
    result = group(tasks.double.s(i) for i in range(6)).apply_async()
    pairs = dict(result.iter_native(timeout=cluster.patience_s))
    assert sorted(meta["result"] for meta in pairs.values()) == [0, 2, 4, 6, 8, 10]
    assert set(pairs) == {child.id for child in result}


@pytest.mark.parametrize(
    "value",
    [None, False, 0, "", [], {}, "żółć 漢字 🦊", 2**53 + 1, -0.5, {"a": [{"b": None}]}],
    ids=["none", "false", "zero", "empty", "list", "dict", "unicode", "large", "float", "nested"],
)
def test_json_values(cluster: Cluster, value: object) -> None:
    result = cluster.get(tasks.echo.delay(value))
    assert result == value and type(result) is type(value)


def test_python_types_that_celery_knows(cluster: Cluster) -> None:
    values = [datetime(2024, 2, 29, 12, tzinfo=UTC), date(2024, 2, 29), Decimal("0.10"), uuid.uuid4()]
    assert cluster.get(tasks.types_of.delay(*values)) == ["datetime", "date", "Decimal", "UUID"]
    assert cluster.get(tasks.echo.delay(values)) == values


def test_arguments(cluster: Cluster) -> None:
    assert cluster.get(tasks.echo.delay(1, "b", c=[3])) == [[1, "b"], {"c": [3]}]


def test_large_payload(cluster: Cluster) -> None:
    text = uuid.uuid4().hex * 16_000
    assert len(text) > 500_000
    assert cluster.get(tasks.echo.delay(text)) == text


def test_argument_that_is_not_json(cluster: Cluster) -> None:
    with pytest.raises(EncodeError):
        tasks.echo.delay(object())


def test_result_that_is_not_json(cluster: Cluster) -> None:
    result = tasks.return_unserialisable.delay()
    error = cluster.get(result, propagate=False)
    assert result.state == "FAILURE" and type(error).__name__ == "EncodeError"


def test_error_that_is_not_json(cluster: Cluster) -> None:
    result = tasks.fail_awkwardly.delay()
    error = cluster.get(result, propagate=False)
    assert result.state == "FAILURE"
    assert type(error).__name__ == "AwkwardError" and "object object" in str(error)


def test_burst(cluster: Cluster) -> None:
    key = cluster.new_key()
    results = [tasks.square_noted.delay(number, key) for number in range(300)]
    assert [cluster.get(result) for result in results] == [number * number for number in range(300)]
    times = Counter(entry["value"] for entry in read_notes(key))
    assert set(times) == set(range(300))
    if cluster.calm:
        assert set(times.values()) == {1}


def test_date_done(cluster: Cluster) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    result = tasks.add.delay(1, 1)
    cluster.get(result)
    done = result.date_done
    done = done if done.tzinfo else done.replace(tzinfo=UTC)
    assert before <= done <= datetime.now(UTC) + timedelta(seconds=1)
