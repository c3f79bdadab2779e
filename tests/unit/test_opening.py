"""What an agent remembers of messages that have ended, and what it says of those that it refuses."""

import logging

import pytest

from mesh.bus.opening import _MOST_SEEN, Refusals, Seen
from mesh.core.envelopes import Rejected
from mesh.core.states import Reason


def test_the_last_are_remembered_and_no_more_than_twice_as_many() -> None:
    seen, number = Seen(), 3 * _MOST_SEEN + 10
    for one in range(number):
        seen.add(one.to_bytes(16, "big"))
    assert all(one.to_bytes(16, "big") in seen for one in range(number - _MOST_SEEN, number))
    assert sum(one.to_bytes(16, "big") in seen for one in range(number)) <= 2 * _MOST_SEEN


def test_refusals_are_counted_one_by_one_and_logged_seldom(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    refusals = Refusals(lambda task_id, reason, detail: told.append(task_id))
    with caplog.at_level(logging.ERROR):
        for number in range(500):
            refusals.note(str(number), Rejected(Reason.UNSIGNED, "its message is not signed"))
    assert refusals.count == len(told) == 500 and len(caplog.records) == 1
    assert caplog.messages == ["task 0 refused: its message is not signed"]
