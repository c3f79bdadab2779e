"""What goes wrong: retries, refusals, time limits, revoking, unknown tasks, lost pool processes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from celery.exceptions import (
    MaxRetriesExceededError,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
)
from kombu.exceptions import ContentDisallowed, EncodeError, SerializationError

from tests.conformance.app import SECOND_QUEUE
from tests.conformance.cluster import Cluster
from tests.conformance.ledger import open_gate, read_notes
from tests.conformance.tasks import (
    LastingError,
    TransientError,
    add,
    autoretried,
    die,
    gated,
    ignore,
    linger,
    note,
    reject,
    retry_in_vain,
    retry_until,
    retry_with_other_arguments,
)

NO_SOFT_LIMIT = "Celery sends the soft limit as a signal to a pool process; only prefork has one"
NO_HARD_LIMIT = (
    "Celery's threads and solo pools ignore time limits: nothing can stop their tasks from outside"
)
NO_TERMINATE = "Celery's threads and solo pools cannot terminate a running task"
NO_CHILD = "only prefork has a pool process to lose; on the others the task would end its agent"


def assert_retries(cluster: Cluster, key: str, expected: list[int]) -> None:
    """The attempts' numbers: each of them, in order; a killed attempt may have been repeated."""
    seen = [entry["retries"] for entry in read_notes(key)]
    assert (seen if cluster.calm else sorted(set(seen))) == expected


# --- retries ------------------------------------------------------------------------------------


def test_retry(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(retry_until.delay(key, 3)) == 3
    assert_retries(cluster, key, [0, 1, 2, 3])


def test_state_between_attempts(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = retry_until.delay(key, 1, countdown_s=1.5)
    cluster.wait_for_state(result, "RETRY")
    assert not result.ready()
    assert cluster.get(result) == 1
    first, *_, last = [entry["at_s"] for entry in read_notes(key)]
    assert last - first >= 1.4


def test_retries_used_up(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = retry_in_vain.delay(key, with_cause=True)
    with pytest.raises(TransientError, match="still broken"):
        cluster.get(result)
    cluster.wait_for_state(result, "FAILURE")
    assert_retries(cluster, key, [0, 1, 2])


def test_retries_used_up_without_a_cause(cluster: Cluster) -> None:
    result = retry_in_vain.delay(cluster.new_key(), with_cause=False)
    with pytest.raises(MaxRetriesExceededError):
        cluster.get(result)


def test_retry_with_other_arguments(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(retry_with_other_arguments.delay(key, 1)) == 3
    assert sorted({entry["number"] for entry in read_notes(key)}) == [1, 2, 3]


def test_retry_keeps_its_queue(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(retry_until.apply_async((key, 2), queue=SECOND_QUEUE)) == 2


def test_link_of_a_retried_task_is_called_once(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(retry_until.apply_async((cluster.new_key(), 2), link=note.s(key))) == 2
    cluster.wait_for_notes(key)
    cluster.settle()
    if cluster.calm:
        assert [entry["value"] for entry in read_notes(key)] == [2]


def test_autoretry(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(autoretried.delay(key, failures=2)) == 2
    assert_retries(cluster, key, [0, 1, 2])


def test_autoretry_used_up(cluster: Cluster) -> None:
    key = cluster.new_key()
    with pytest.raises(TransientError, match="for now"):
        cluster.get(autoretried.delay(key, failures=9))
    assert_retries(cluster, key, [0, 1, 2, 3])


def test_autoretry_of_an_excluded_error(cluster: Cluster) -> None:
    key = cluster.new_key()
    with pytest.raises(LastingError):
        cluster.get(autoretried.delay(key, failures=9, lasting=True))
    assert_retries(cluster, key, [0])


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.calm_only(reason="counts executions")
def test_reject(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = reject.delay(key, requeue=False)
    cluster.wait_for_notes(key)
    cluster.settle()
    assert len(read_notes(key)) == 1
    assert not result.successful()


def test_reject_with_requeue(cluster: Cluster) -> None:
    key = cluster.new_key()
    assert cluster.get(reject.delay(key, requeue=True)) == "taken"
    assert len(read_notes(key)) >= 2
    if cluster.calm:
        assert len(read_notes(key)) == 2


def test_ignore(cluster: Cluster) -> None:
    """The state that the task itself has set stays."""
    key = cluster.new_key()
    result = ignore.delay(key)
    cluster.wait_for_notes(key)
    cluster.settle()
    assert (result.state, result.info) == ("BY_HAND", {"written": "by the task"})
    if cluster.calm:
        assert len(read_notes(key)) == 1


# --- time limits --------------------------------------------------------------------------------


@pytest.mark.pools("prefork", reason=NO_SOFT_LIMIT)
def test_soft_time_limit(cluster: Cluster) -> None:
    result = linger.apply_async((cluster.new_key(),), soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        cluster.get(result)
    assert result.state == "FAILURE"


@pytest.mark.pools("prefork", reason=NO_SOFT_LIMIT)
def test_soft_time_limit_that_is_caught(cluster: Cluster) -> None:
    result = linger.apply_async((cluster.new_key(), True), soft_time_limit=1)
    assert cluster.get(result) == "tidied up"


@pytest.mark.pools("prefork", "gevent", reason=NO_HARD_LIMIT)
def test_hard_time_limit(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = linger.apply_async((key,), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        cluster.get(result)
    assert result.state == "FAILURE"
    cluster.settle()
    if cluster.calm:
        assert len(read_notes(key)) == 1


# --- revoking -----------------------------------------------------------------------------------


def test_revoke_of_a_delayed_task(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = note.apply_async(("never", key), countdown=2)
    result.revoke()
    cluster.wait_for_state(result, "REVOKED")
    with pytest.raises(TaskRevokedError):
        cluster.get(result)
    assert read_notes(key) == []


@pytest.mark.calm_only(reason="agents keep Celery's list of revoked tasks in memory")
def test_revoke_of_a_queued_task(cluster: Cluster) -> None:
    key, queue = cluster.new_key(), f"parked-{cluster.new_key()}"
    result = note.apply_async(("never", key), queue=queue)
    other = add.apply_async((1, 2), queue=queue)
    replies = cluster.app.control.revoke(result.id, reply=True, timeout=5, limit=2)
    assert len(replies) == 2
    with cluster.consuming(queue):
        assert cluster.get(other) == 3
        cluster.wait_for_state(result, "REVOKED")
    assert read_notes(key) == []


@pytest.mark.calm_only(
    reason="a killed agent's running task would come back to agents that know it as revoked"
)
def test_revoke_of_a_running_task_lets_it_finish(cluster: Cluster) -> None:
    key = cluster.new_key()
    result = gated.delay(key, "done")
    cluster.wait_for_notes(key)
    result.revoke()
    cluster.settle()
    open_gate(key)
    assert cluster.get(result) == "done"


@pytest.mark.pools("prefork", "gevent", reason=NO_TERMINATE)
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_terminate_of_a_running_task(cluster: Cluster, signal: str) -> None:
    if cluster.pool == "gevent" and signal == "SIGKILL":
        pytest.skip("a greenlet is ended in one way only; the signal says nothing there")
    key = cluster.new_key()
    result = gated.delay(key)
    cluster.wait_for_notes(key)
    result.revoke(terminate=True, signal=signal)
    with pytest.raises(TaskRevokedError):
        cluster.get(result)
    assert result.state == "REVOKED"
    open_gate(key)
    cluster.settle()
    assert result.state == "REVOKED"


# --- what no agent can run ----------------------------------------------------------------------


def test_unknown_task(cluster: Cluster) -> None:
    result = cluster.app.send_task("nobody.knows.this")
    error = cluster.get(result, propagate=False)
    assert result.state == "FAILURE" and type(error).__name__ == "NotRegistered"
    cluster.settle()


def test_wrong_arguments(cluster: Cluster) -> None:
    result = cluster.app.send_task(add.name, args=[1, 2, 3, 4])
    with pytest.raises(TypeError):
        cluster.get(result)


def test_pickle_is_refused(cluster: Cluster) -> None:
    """Whoever notices first, the caller or the agent: the task does not run, and the agents go on."""
    key = cluster.new_key()
    with suppress(ContentDisallowed, EncodeError, SerializationError, ValueError):
        note.apply_async(("from a pickle", key), serializer="pickle")
    cluster.settle()
    assert read_notes(key) == []


@pytest.mark.calm_only(reason="counts the crashes of one task")
@pytest.mark.pools("prefork", reason=NO_CHILD)
def test_lost_pool_process(cluster: Cluster) -> None:
    result = die.delay()
    cluster.wait_for_state(result, "FAILURE")
    assert isinstance(result.result, Exception)
    cluster.settle()
