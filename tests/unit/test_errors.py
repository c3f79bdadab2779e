"""The error tree: complete, one base, every leaf with an HTTP status and an exit code, whole after pickling."""

import pickle
import re

import pytest

from mesh import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]
EXIT_CODES = range(1, 8)  # 0 is "done", which no error is


def test_all_names_every_class_of_the_module() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_has_one_base_a_status_and_an_exit_code(kind: type[errors.MeshError]) -> None:
    assert issubclass(kind, errors.MeshError)
    assert 400 <= kind.http_status <= 599
    assert kind.exit_code in EXIT_CODES


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if not kind.__subclasses__()])
def test_each_leaf_stands_in_the_drawn_tree_with_its_numbers(kind: type[errors.MeshError]) -> None:
    line = next(
        line for line in (errors.__doc__ or "").splitlines() if re.search(rf"── {kind.__name__}\b", line)
    )
    assert line.endswith(f"{kind.http_status}   exit {kind.exit_code}")


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.TaskFailed, 1),
        (errors.Invalid, 2),
        (errors.NotFound, 3),
        (errors.Refused, 4),
        (errors.StoreUnavailable, 5),
        (errors.CoordinatorUnavailable, 5),
        (errors.ResultTimeout, 6),
        (errors.Conflict, 7),
    ],
)
def test_the_exit_codes_that_scripts_rely_on(kind: type[errors.MeshError], exit_code: int) -> None:
    assert kind.exit_code == exit_code


@pytest.mark.parametrize("kind", CLASSES)
def test_the_sentence_is_kept(kind: type[errors.MeshError]) -> None:
    error = kind("The sentence.")
    assert error.message == str(error) == "The sentence."


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, errors.TaskFailed)])
def test_a_failed_task_crosses_processes_whole(kind: type[errors.TaskFailed]) -> None:
    sent = kind("It failed.", task_id="t1", error={"type": "ValueError", "message": "bad"})
    came = pickle.loads(pickle.dumps(sent))
    assert type(came) is kind
    assert (came.message, came.task_id, came.state, came.error) == (
        "It failed.",
        "t1",
        sent.state,
        sent.error,
    )


def test_each_kind_of_failed_task_knows_its_state() -> None:
    states = {
        kind.__name__: kind("x").state for kind in (errors.TaskFailed, errors.TimedOut, errors.Cancelled)
    }
    assert states == {"TaskFailed": "failed", "TimedOut": "timed_out", "Cancelled": "cancelled"}
    assert errors.DeadLettered("x").state == "dead_lettered"
    assert errors.TaskFailed("x", state="expired").state == "expired"
