"""How healthy an agent is, by the intervals of the settings."""

from __future__ import annotations

import pytest

from mesh.core.agents import health
from mesh.settings import Settings

DEFAULTS = Settings()


@pytest.mark.parametrize(
    ("seconds", "marks", "expected"),
    [
        (0, "", "healthy"),
        (29.9, "", "healthy"),
        (30.1, "", "degraded"),
        (299.9, "", "degraded"),
        (300.1, "", "unhealthy"),
        (86_000, "", "unhealthy"),
        (11, "absent", "degraded"),  # its leases have ended: that is known before its heartbeat is missed
        (301, "absent", "unhealthy"),
        (1, "condition", "degraded"),
        (301, "condition", "unhealthy"),
        (1, "draining", "draining"),
        (1, "draining condition", "draining"),
        (31, "draining", "degraded"),
        (301, "draining", "unhealthy"),
        (1, "left", "offline"),
        (301, "left draining absent condition", "offline"),
    ],
)
def test_health_with_the_default_intervals(seconds: float, marks: str, expected: str) -> None:
    assert (DEFAULTS.heartbeat_interval_ms, DEFAULTS.unhealthy_threshold_ms) == (30_000, 300_000)
    found = health(
        silent_ms=int(seconds * 1000),
        left="left" in marks,
        absent="absent" in marks,
        draining="draining" in marks,
        condition="condition" in marks,
        heartbeat_interval_ms=DEFAULTS.heartbeat_interval_ms,
        unhealthy_threshold_ms=DEFAULTS.unhealthy_threshold_ms,
    )
    assert found == expected
