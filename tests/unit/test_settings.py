"""Settings: the names and defaults that people's scripts rely on, who wins, and one clear line for a mistake."""

import dataclasses
import json
import re
import secrets
from pathlib import Path

import pytest

from mesh.errors import Invalid
from mesh.settings import TABLE, Setting, Settings, tell

ROWS = {row.attribute: row for row in TABLE}

# Fixed by contract with the users: variable, path in the file, default.
FIXED = {
    "redis_url": ("REDIS_URL", None, "redis://localhost:6379"),
    "env": ("MESH_ENV", None, "production"),
    "log_level": ("LOG_LEVEL", "logging.level", "info"),
    "log_format": (None, "logging.format", "json"),
    "max_task_retries": ("MAX_TASK_RETRIES", "mesh.coordinator.maxTaskRetries", 3),
    "task_timeout_ms": ("TASK_TIMEOUT_MS", "mesh.coordinator.taskTimeout", 300000),
    "load_balancing_strategy": (None, "mesh.coordinator.loadBalancingStrategy", "capability-match"),
    "heartbeat_interval_ms": ("HEARTBEAT_INTERVAL_MS", "mesh.discovery.heartbeatInterval", 30000),
    "health_check_interval_ms": ("HEALTH_CHECK_INTERVAL_MS", "mesh.discovery.healthCheckInterval", 60000),
    "unhealthy_threshold_ms": (None, "mesh.discovery.unhealthyThreshold", 300000),
    "max_concurrent_connections": (
        "MAX_CONCURRENT_CONNECTIONS",
        "mesh.transport.maxConcurrentConnections",
        10,
    ),
    "transport_timeout_ms": ("TRANSPORT_TIMEOUT_MS", "mesh.transport.timeout", 30000),
    "transport_retries": (None, "mesh.transport.retries", 3),
    "transport_retry_delay_ms": (None, "mesh.transport.retryDelay", 1000),
    "keep_alive": (None, "mesh.transport.keepAlive", True),
    "coordinator_url": ("COORDINATOR_URL", "mesh.coordinatorUrl", "http://coordinator:3000"),
    "coordinator_id": ("COORDINATOR_ID", None, None),
    "jwt_secret": ("MESH_JWT_SECRET", "mesh.jwt.secret", None),
    "jwt_secret_new": ("MESH_JWT_SECRET_NEW", None, None),
    "jwt_expires_in_s": (None, "mesh.jwt.expiresIn", 3600),
    "tailscale_enabled": ("TAILSCALE_ENABLED", "tailscale.enabled", False),
    "tailscale_service_prefix": (None, "tailscale.servicePrefix", "agent-mesh"),
    "agent_id": ("AGENT_ID", None, None),
    "agent_name": ("AGENT_NAME", None, None),
    "agent_type": ("AGENT_TYPE", None, "worker"),
    "namespace": ("AGENT_NAMESPACE", None, "default"),
    "agent_capabilities": ("AGENT_CAPABILITIES", None, ()),
    "agent_port": ("AGENT_PORT", None, 3000),
    "agent_region": ("AGENT_REGION", None, None),
    "agent_labels": ("AGENT_LABELS", None, {}),
}


def written(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("attribute", FIXED)
def test_fixed_names_and_defaults(attribute: str) -> None:
    variable, path, default = FIXED[attribute]
    row = ROWS[attribute]
    assert getattr(Settings(), attribute) == default
    assert variable is None or row.env[0] == variable
    assert path is None or row.path == path


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.attribute)
def test_each_row_is_complete(row: Setting) -> None:
    assert row.env
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in row.env)
    assert re.fullmatch(r"[a-zA-Z]+(\.[a-zA-Z]+)+", row.path)
    assert row.unit
    assert row.why.endswith(".")
    if row.unit in ("ms", "s", "bytes"):
        assert row.attribute.endswith(f"_{row.unit}"), "a unit stands in the name"


def test_no_name_is_used_twice() -> None:
    names = [name for row in TABLE for name in row.env]
    paths = [row.path for row in TABLE]
    assert len(set(names)) == len(names)
    assert len(set(paths)) == len(paths)
    assert not any(one.startswith(f"{other}.") for one in paths for other in paths)


def test_every_row_can_be_set_from_the_environment_and_from_the_file(tmp_path: Path) -> None:
    for row in TABLE:
        text, value = _example(row)
        from_environment = Settings.load({row.env[0]: text})
        tree: object = text
        for key in reversed(row.path.split(".")):
            tree = {key: tree}
        from_file = Settings.load({}, written(tmp_path / "c.json", tree))
        assert getattr(from_environment, row.attribute) == value
        assert getattr(from_file, row.attribute) == value
        assert from_environment.was_set(row.attribute)
        assert from_file.was_set(row.attribute)


def _example(row: Setting) -> tuple[str, object]:
    """(text that sets the row, the typed value it must give), legal together with all other defaults."""
    special: dict[str, tuple[str, object]] = {
        "lease_ms": ("20000", 20000),
        "lease_renew_ms": ("2000", 2000),
        "heartbeat_interval_ms": ("5000", 5000),
        "unhealthy_threshold_ms": ("90000", 90000),
        "redis_url": ("rediss://:pw@redis.example:6380/1", "rediss://:pw@redis.example:6380/1"),
        "agent_redis_url": ("redis://redis.example:6380/1", "redis://redis.example:6380/1"),
        "coordinator_url": ("https://a:3000,http://b", "https://a:3000,http://b"),
    }
    kinds: dict[str, tuple[str, object]] = {
        "int": ("17", 17),
        "bool": ("yes", True),
        "text": ("some-text", "some-text"),
        "names": ("a, b,a,", ("a", "b")),
        "labels": ("a=b,c=d", {"a": "b", "c": "d"}),
        "paths": ("/data:/more", (Path("/data"), Path("/more"))),
    }
    if row.among:
        return row.among[-1].upper(), row.among[-1]
    return special.get(row.attribute) or kinds[row.kind]


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"mesh": {"transport": {"timeout": 5, "retries": 7}}})
    settings = Settings.load({"TRANSPORT_TIMEOUT_MS": "6", "MESH_CONFIG": str(file)})
    assert (settings.transport_timeout_ms, settings.transport_retries, settings.transport_retry_delay_ms) == (
        6,
        7,
        1000,
    )
    assert settings.sources == {
        "transport_timeout_ms": "TRANSPORT_TIMEOUT_MS",
        "transport_retries": f"{file}: mesh.transport.retries",
    }


def test_the_default_file_is_read_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}).log_level == "info"
    (tmp_path / "config").mkdir()
    written(tmp_path / "config" / "production.json", {"logging": {"level": "debug"}})
    assert Settings.load({}).log_level == "debug"


def test_names_in_the_file_come_from_the_environment(tmp_path: Path) -> None:
    file = written(
        tmp_path / "c.json",
        {"redis": {"url": "redis://:${PW}@${HOST}:6379"}, "mesh": {"agent": {"labels": {"rack": "${RACK}"}}}},
    )
    settings = Settings.load({"PW": "geheim", "HOST": "redis", "RACK": "r1"}, file)
    assert settings.redis_url == "redis://:geheim@redis:6379"
    assert settings.agent_labels == {"rack": "r1"}


def test_typed_values_in_the_file(tmp_path: Path) -> None:
    tree = {"mesh": {"agent": {"capabilities": ["a", "b"]}, "transport": {"keepAlive": False}}}
    settings = Settings.load({}, written(tmp_path / "c.json", tree))
    assert settings.agent_capabilities == ("a", "b")
    assert settings.keep_alive is False


def test_secrets_come_from_files_too_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("geheim-geheim\n", encoding="utf-8")
    settings = Settings.load(
        {"MESH_JWT_SECRET_FILE": str(tmp_path / "secret"), "REDIS_URL": "redis://user:geheim@redis:6379"}
    )
    assert settings.jwt_secret == "geheim-geheim"
    assert settings.warnings == ()
    shown = {row.attribute: value for row, value, _ in settings.described()}
    assert shown["redis_url"] == "redis://user:***@redis:6379"
    assert "geheim" not in repr(settings) + str(settings.described())


def test_an_empty_variable_counts_as_unset() -> None:
    settings = Settings.load(
        {"AGENT_PORT": "", "REDIS_URL": "", "MESH_CONFIG": "", "MESH_JWT_SECRET_FILE": ""}
    )
    assert settings == Settings()


def test_a_port_that_was_asked_for_is_marked() -> None:
    assert not Settings.load({}).port_was_asked
    assert Settings.load({"AGENT_PORT": "3000"}).port_was_asked


def test_unknown_variables_only_warn_and_those_of_kubernetes_do_not() -> None:
    settings = Settings.load(
        {"MESH_LAESE_MS": "1", "AGENT_X": "1", "AGENT_MESH_REDIS_PORT": "tcp://x", "PATH": "/"}
    )
    assert [warning.split()[0] for warning in settings.warnings] == ["AGENT_X", "MESH_LAESE_MS"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TASK_TIMEOUT_MS": "5m"}, "TASK_TIMEOUT_MS is '5m'"),
        ({"TASK_TIMEOUT_MS": "0"}, "TASK_TIMEOUT_MS is 0"),
        ({"TASK_TIMEOUT_MS": "1_000"}, "whole number"),
        ({"AGENT_PORT": "70000"}, "from 1 to 65535"),
        ({"MAX_TASK_RETRIES": "-1"}, "MAX_TASK_RETRIES is -1"),
        ({"MESH_LEASE_MS": "6000"}, "more than twice MESH_LEASE_RENEW_MS"),
        ({"UNHEALTHY_THRESHOLD_MS": "30000"}, "more than HEARTBEAT_INTERVAL_MS"),
        ({"AGENT_NAMESPACE": "Prod"}, "AGENT_NAMESPACE: 'Prod' is not a valid namespace"),
        ({"AGENT_NAMESPACE": "a", "MESH_NAMESPACE": "b"}, "set only one"),
        ({"AGENT_CAPABILITIES": "a,b c"}, "'b c' is not a valid capability"),
        ({"AGENT_LABELS": "a"}, "pairs like"),
        ({"TAILSCALE_ENABLED": "maybe"}, "true or false"),
        ({"LOAD_BALANCING_STRATEGY": "fastest"}, "one of capability-match"),
        ({"COORDINATOR_URL": "coordinator:3000"}, "begins with http://"),
        ({"COORDINATOR_URL": "http://a:3000,"}, "begins with http://"),
        ({"MESH_CONFIG": "/does/not/exist.json"}, "/does/not/exist.json: No such file"),
        ({"MESH_JWT_SECRET": "a", "MESH_JWT_SECRET_FILE": "b"}, "set only one"),
        ({"MESH_JWT_SECRET_FILE": "/does/not/exist"}, "MESH_JWT_SECRET_FILE: cannot read"),
    ],
)
def test_a_bad_variable_is_one_clear_sentence(environ: dict[str, str], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        Settings.load(environ)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_bad_secret_is_not_repeated() -> None:
    with pytest.raises(Invalid) as caught:
        Settings.load({"REDIS_URL": "redis.example:geheim"})
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "correct the file"),
        ("[]", "must be a JSON object"),
        ('{"mesh": 3}', "mesh must be a JSON object"),
        (
            '{"mesh": {"transport": {"timeot": 1}}}',
            "unknown key mesh.transport.timeot; perhaps mesh.transport.timeout",
        ),
        ('{"server": {}}', "unknown key server"),
        ('{"mesh": {"transport": {"timeout": true}}}', "mesh.transport.timeout is True"),
        ('{"mesh": {"transport": {"timeout": 1.5}}}', "mesh.transport.timeout is 1.5"),
        ('{"mesh": {"namespace": null}}', "mesh.namespace is None"),
        ('{"mesh": {"jwt": {"secret": "${NOT_THERE}"}}}', "refers to ${NOT_THERE}, which is not set"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(Invalid) as caught:
        Settings.load({}, file)
    assert said in caught.value.message
    assert str(file) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")


def test_a_name_in_the_file_need_not_be_set_where_the_environment_wins(tmp_path: Path) -> None:
    file = written(tmp_path / "c.json", {"mesh": {"jwt": {"secret": "${NOT_THERE}"}}})
    assert Settings.load({"MESH_JWT_SECRET": "given"}, file).jwt_secret == "given"


def test_variants_are_checked_too() -> None:
    settings = dataclasses.replace(Settings(), lease_ms=2000, lease_renew_ms=500)
    assert settings.lease_ms == 2000
    with pytest.raises(Invalid, match="AGENT_PORT is 0"):
        dataclasses.replace(settings, agent_port=0)


def test_several_coordinators() -> None:
    settings = Settings(coordinator_url="http://a:3000/, http://b:3000")
    assert settings.coordinator_urls == ("http://a:3000", "http://b:3000")


def test_keys_come_from_both_secrets_and_a_missing_one_is_told() -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    assert len(Settings(jwt_secret=old, jwt_secret_new=new).keyring.kids) == 2
    with pytest.raises(Invalid, match="mesh secret generate"):
        _ = Settings().keyring
    with pytest.raises(Invalid, match="MESH_JWT_SECRET_NEW has 5 bytes"):
        _ = Settings(jwt_secret=old, jwt_secret_new="short").keyring


def test_what_a_coordinator_told_is_in_all_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.settings._told", {})
    before = Settings.load({"MESH_JOIN_TOKEN": "a.b.c"})
    assert before.joins and "a.b.c" not in repr(before)
    after = tell(before, redis_url="redis://told:1/0")
    assert after.was_set("redis_url") and not after.joins
    assert Settings.load().redis_url == "redis://told:1/0"
    assert Settings.load({}).redis_url == "redis://localhost:6379"


def test_everything_that_is_wrong_is_told_at_once_a_line_for_each(tmp_path: Path) -> None:
    tree = {"mesh": {"agent": {"slotz": 1}}, "server": {}}
    with pytest.raises(Invalid) as raised:
        Settings.load(
            {"MAX_TASK_RETRIES": "many", "MESH_LEASE_MS": "soon"}, written(tmp_path / "c.json", tree)
        )
    told = raised.value.message.splitlines()
    assert len(told) == 4
    for word in ("slotz", "server", "MAX_TASK_RETRIES", "MESH_LEASE_MS"):
        assert sum(word in line for line in told) == 1
