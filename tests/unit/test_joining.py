"""What agents that join are told of Redis."""

import pytest

from mesh.services.joining import redis_url_for_agents
from mesh.settings import Settings


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("rediss://coordinator:p%40ss@redis:6380/1?ssl_ca_certs=/ca.pem", "rediss://redis:6380/1?ssl_ca_certs=/ca.pem"),
        ("redis://:secret@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("sentinel://u:secret@a:1,b:2/service/0", "sentinel://a:1,b:2/service/0"),
        ("unix://u:secret@/run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
    ],
)  # fmt: skip
def test_no_user_and_password_in_it(url: str, told: str) -> None:
    assert redis_url_for_agents(Settings(redis_url=url)) == told
    assert redis_url_for_agents(Settings(redis_url="redis://other", agent_redis_url=url)) == told
