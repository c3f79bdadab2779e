"""Options of `celery worker` that are wrong are said in one sentence, before anything is started."""

import pytest

from mesh.errors import Invalid
from mesh.settings import Settings
from mesh.workers.steps import _settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"health_port": "abc"}, "--health-port is 'abc'"),
        ({"health_port": "99999"}, "99999"),
        ({"labels": "fast"}, "--labels is 'fast'"),
        ({"labels": "=x"}, "--labels"),
        ({"agent_id": "a/b"}, "agent id"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        _settings(Settings(), options)


def test_options_win_over_settings() -> None:
    chosen = _settings(
        Settings(agent_id="old"), {"agent_id": "w1", "labels": "a=1, b=2", "health_port": "4000"}
    )
    assert (chosen.agent_id, dict(chosen.agent_labels), chosen.agent_port) == (
        "w1",
        {"a": "1", "b": "2"},
        4000,
    )
    assert chosen.port_was_asked
