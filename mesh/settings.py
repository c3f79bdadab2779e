"""Every knob of Agent Mesh, once.

`Settings` is the table: a field is a row with its type, environment names, path in the JSON file, unit, default
and one line of why. `TABLE` is the same as data; documentation and tests are generated from it.

The environment wins over the file, the file over the default. An empty variable counts as unset (compose files
and charts pass empty strings for "not given"). Secrets may also come from a file that ``NAME_FILE`` names.
Reading is strict (`mesh.errors.Invalid`, one sentence: what, where, what to do), except that unknown variables
only warn: other software shares our prefix, and Kubernetes injects ``AGENT_MESH_*`` for its services.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mesh.core.keyring import Keyring, check_secret
from mesh.core.places import Strategy
from mesh.core.policies import DEFAULT_POLICIES, Policies
from mesh.core.policies import parse as parse_policies
from mesh.core.setting_rows import Setting, check, parse, shown
from mesh.errors import Invalid

__all__ = ["DEFAULT_FILE", "TABLE", "Setting", "Settings", "give_back", "tell", "withhold"]

DEFAULT_FILE = Path("config/production.json")
"""Read when it exists and ``MESH_CONFIG`` names no other; relative to the working directory."""

_STRATEGIES = tuple(map(str, Strategy))
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_REDIS = ("redis", "rediss", "unix", "redis+socket", "sentinel")
_YEAR_S = 366 * 24 * 3600
_BOUNDS = {"ms": (1, _YEAR_S * 1000), "s": (1, _YEAR_S), "port": (1, 65535), "bytes": (1, 512 * 1024 * 1024)}


def _row(env: str, path: str, unit: str, default: Any, why: str, **more: Any) -> Any:
    """A dataclass field that carries its row. `env`: one or more names; a callable `default` is a factory,
    and then `shown` is what the documentation says instead."""
    made = callable(default)
    more.setdefault("kind", {bool: "bool", int: "int"}.get(type(default), "text"))
    more["default"] = more.pop("shown", "" if default is None or made else str(default))
    if unit in _BOUNDS:
        low, high = _BOUNDS[unit]
        more = {"low": low, "high": high} | more
    row = {"env": tuple(env.split()), "path": path, "unit": unit, "why": why} | more
    shown_in_repr = not more.get("secret", False)
    if made:
        return dataclasses.field(default_factory=default, metadata=row, repr=shown_in_repr)
    return dataclasses.field(default=default, metadata=row, repr=shown_in_repr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process: immutable, checked when built, cheap to pass around.

    ``Settings()`` is all defaults; `Settings.load` is what programs use; `dataclasses.replace` makes a checked
    variant. ``warnings`` holds sentences for the log; ``sources`` says where each value that was set came from;
    ``port_was_asked`` is False when the agent may give up a taken port for a free one.
    """

    # Two lines a row: attribute, environment, path in the file, unit, default / why and limits.
    # fmt: off

    # -- store
    redis_url: str = _row("REDIS_URL", "redis.url", "URL", "redis://localhost:6379",
        "The one store of the mesh; with Sentinel, sentinel://user:password@host:port,host:port,host:port/service/database.",
        kind="url", schemes=_REDIS, secret=True)
    redis_socket_timeout_ms: int = _row("MESH_REDIS_SOCKET_TIMEOUT_MS", "redis.socketTimeout", "ms", 10_000,
        "A command without an answer for so long means a dead connection: drop it and reconnect.")
    redis_connect_timeout_ms: int = _row("MESH_REDIS_CONNECT_TIMEOUT_MS", "redis.connectTimeout", "ms", 3_000,
        "A host that is gone must not hold a connection attempt for minutes.")
    agent_redis_url: str | None = _row("MESH_AGENT_REDIS_URL", "redis.agentUrl", "URL", None,
        "Where agents that join over HTTP reach Redis; by default the coordinator's own URL. Its user and password are left out.",
        kind="url", schemes=_REDIS, secret=True)
    shared_redis_login: bool = _row("MESH_SHARED_REDIS_LOGIN", "redis.sharedLogin", "yes/no", False,
        "Where the coordinator can make no Redis users, agents that join over HTTP get its own login, instead of none "
        "(docs/joining.md).")

    # -- this agent
    namespace: str = _row("AGENT_NAMESPACE MESH_NAMESPACE", "mesh.namespace", "name", "default",
        "The isolated part of the mesh that this process belongs to.", named="namespace")
    agent_id: str | None = _row("AGENT_ID", "mesh.agent.id", "name", None,
        "Unique among live agents; by default made from the host name.", named="agent id")
    agent_name: str | None = _row("AGENT_NAME", "mesh.agent.name", "text", None,
        "What people read in lists; by default the id.")
    agent_type: str = _row("AGENT_TYPE", "mesh.agent.type", "name", "worker",
        "Policies are written per agent type.", named="agent type")
    agent_capabilities: tuple[str, ...] = _row("AGENT_CAPABILITIES", "mesh.agent.capabilities", "names", tuple,
        "What the agent can do, comma-separated; by default what its imported task types need.",
        kind="names", named="capability")
    agent_port: int = _row("AGENT_PORT", "mesh.agent.port", "port", 3000,
        "Health and metrics of the agent; unless asked for, a taken port gives way to a free one.")
    heartbeat_file: str | None = _row("MESH_HEARTBEAT_FILE", "mesh.agent.heartbeatFile", "path", None,
        "The agent's event loop touches it every 5 s, so that a probe can tell by its age whether the loop still turns "
        "(docs/operating.md).")
    agent_region: str | None = _row("AGENT_REGION MESH_REGION", "mesh.agent.region", "name", None,
        "Routing prefers the caller's region; coordinators carry one too.", named="region")
    agent_labels: Mapping[str, str] = _row("AGENT_LABELS", "mesh.agent.labels", "a=b,c=d", dict,
        "Free marks to select agents by.", kind="labels", named="label")
    join_token: str | None = _row("MESH_JOIN_TOKEN", "mesh.agent.joinToken", "token", None,
        "An agent without REDIS_URL registers with it at COORDINATOR_URL, and is told there all else that it needs "
        "(docs/joining.md).", secret=True)

    # -- coordinator
    coordinator_url: str = _row("COORDINATOR_URL", "mesh.coordinatorUrl", "URLs", "http://coordinator:3000",
        "Where coordinators answer: one or several, comma-separated; calls fail over.",
        kind="urls", schemes=("http", "https"))
    coordinator_id: str | None = _row("COORDINATOR_ID", "mesh.coordinator.id", "name", None,
        "Unique among coordinators; by default made from the host name.", named="coordinator id")
    coordinator_port: int = _row("MESH_COORDINATOR_PORT", "mesh.coordinator.port", "port", 3000,
        "The HTTP service of a coordinator.")
    lame_duck_ms: int = _row("MESH_LAME_DUCK_MS", "mesh.coordinator.lameDuck", "ms", 5_000,
        "A stopping coordinator is not ready but still answers for so long: load balancers look every 1 to 2 s.", low=0)
    load_balancing_strategy: str = _row("LOAD_BALANCING_STRATEGY", "mesh.coordinator.loadBalancingStrategy",
        "choice", "capability-match", "Who gets a task; by default whichever capable agent is free takes it.",
        among=_STRATEGIES)

    # -- its HTTP service
    coordinator_cert_file: str | None = _row("MESH_COORDINATOR_CERT_FILE", "mesh.coordinator.tls.certificate", "path", None,
        "With it and its key the coordinator speaks HTTPS only: a PEM file, those that lead to the authority behind it.")
    coordinator_key_file: str | None = _row("MESH_COORDINATOR_KEY_FILE", "mesh.coordinator.tls.key", "path", None,
        "The certificate's key: a PEM file without a password. Both are read again on SIGHUP.")
    coordinator_ca_file: str | None = _row("MESH_COORDINATOR_CA_FILE", "mesh.coordinator.tls.ca", "path", None,
        "For callers: the authorities that a coordinator's certificate must come from; by default those of the system.")
    http_read_timeout_ms: int = _row("MESH_HTTP_READ_TIMEOUT_MS", "mesh.http.readTimeout", "ms", 20_000,
        "A request must arrive within so long, and a second more for each MiB of it: who sends a byte now and then is cut off.")
    http_max_connections: int = _row("MESH_HTTP_MAX_CONNECTIONS", "mesh.http.maxConnections", "count", 10_000,
        "Callers beyond that get 503 at once; each takes a file descriptor and some KB of memory.", low=1)
    http_rate_subject: int = _row("MESH_HTTP_RATE_SUBJECT", "mesh.http.rateSubject", "requests/s", 10_000,
        "Of one token's subject, at each coordinator; beyond it 429. 0: no limit.")
    http_rate_address: int = _row("MESH_HTTP_RATE_ADDRESS", "mesh.http.rateAddress", "requests/s", 10_000,
        "Of one address, likewise; of IPv6, one /64.")
    http_rate_failed: int = _row("MESH_HTTP_RATE_FAILED", "mesh.http.rateFailed", "tokens/s", 10,
        "Of one address, tokens that are not valid; beyond it 429 without looking at the token.")
    trusted_proxies: tuple[str, ...] = _row("MESH_TRUSTED_PROXIES", "mesh.http.trustedProxies", "addresses", tuple,
        "Balancers whose X-Forwarded-For is believed: addresses or networks (10.0.0.0/24), comma-separated; none by default.",
        kind="names")

    region_spill_ms: int = _row("MESH_REGION_SPILL_MS", "mesh.coordinator.regionSpill", "ms", 5_000,
        "A task that has waited for its own region for so long is offered to every region.")

    # -- life of a task
    max_task_retries: int = _row("MAX_TASK_RETRIES", "mesh.coordinator.maxTaskRetries", "count", 3,
        "Retries after the first attempt, before a task is dead-lettered.")
    retry_delay_ms: int = _row("MESH_RETRY_DELAY_MS", "mesh.coordinator.retryDelay", "ms", 1_000,
        "The longest wait before the first retry; it doubles with each, and a random part of it is waited (full jitter).")
    retry_delay_cap_ms: int = _row("MESH_RETRY_DELAY_CAP_MS", "mesh.coordinator.retryDelayCap", "ms", 600_000,
        "The doubling ends here: a task that fails all day is still tried every few minutes.")
    task_timeout_ms: int = _row("TASK_TIMEOUT_MS", "mesh.coordinator.taskTimeout", "ms", 300_000,
        "Bounds one attempt: first a soft limit, then a hard one.")
    max_crashes: int = _row("MESH_MAX_CRASHES", "mesh.coordinator.maxCrashes", "count", 3,
        "A task that killed its agents so often is poison and is stopped.", low=1)
    lease_ms: int = _row("MESH_LEASE_MS", "mesh.lease.duration", "ms", 10_000,
        "How long a silent agent keeps its tasks; the main part of the time to recover.")
    lease_renew_ms: int = _row("MESH_LEASE_RENEW_MS", "mesh.lease.renewInterval", "ms", 3_000,
        "Three chances to renew within one lease; must stay below half of it.")
    drain_grace_ms: int = _row("MESH_DRAIN_GRACE_MS", "mesh.agent.drainGrace", "ms", 60_000,
        "What runs may finish for so long once its agent is to leave. Keep it well below the supervisor's own patience "
        "(terminationGracePeriodSeconds, 120).", low=0)
    result_retention_s: int = _row("MESH_RESULT_RETENTION_S", "mesh.retention.result", "s", 86_400,
        "How long a finished task and its result can be read.")
    ignored_retention_s: int = _row("MESH_IGNORED_RETENTION_S", "mesh.retention.ignored", "s", 300,
        "How long a finished task whose result nobody wants is remembered (late duplicates meet it).")
    dead_letter_retention_s: int = _row("MESH_DEAD_LETTER_RETENTION_S", "mesh.retention.deadLetter", "s",
        2_592_000, "How long a dead letter waits for a person.")
    max_payload_bytes: int = _row("MESH_MAX_PAYLOAD_BYTES", "mesh.limits.payload", "bytes", 1_048_576,
        "Redis is memory, and scripts copy messages: bigger data belongs in files or object stores.")
    max_result_bytes: int = _row("MESH_MAX_RESULT_BYTES", "mesh.limits.result", "bytes", 1_048_576,
        "The same bound for what a task gives back.")
    data_dirs: tuple[Path, ...] = _row("MESH_DATA_DIRS", "mesh.dataDirs", "paths", lambda: (Path.cwd(),),
        "The only folders that built-in tasks read and write, separated like PATH.",
        kind="paths", shown="the working directory")
    allowed_commands: tuple[str, ...] = _row("MESH_ALLOWED_COMMANDS", "mesh.allowedCommands", "names", tuple,
        "Programs that `task-execution` runs here, names or absolute paths; none by default. Allow a shell, and you allow all.",
        kind="names")

    # -- health
    heartbeat_interval_ms: int = _row("HEARTBEAT_INTERVAL_MS", "mesh.discovery.heartbeatInterval", "ms", 30_000,
        "How often an agent reports its health.")
    health_check_interval_ms: int = _row("HEALTH_CHECK_INTERVAL_MS", "mesh.discovery.healthCheckInterval", "ms",
        60_000, "How often the leader judges the agents' health.")
    unhealthy_threshold_ms: int = _row("UNHEALTHY_THRESHOLD_MS", "mesh.discovery.unhealthyThreshold", "ms",
        300_000, "Silence after which an agent counts as unhealthy.")

    # -- transport of clients
    max_concurrent_connections: int = _row("MAX_CONCURRENT_CONNECTIONS", "mesh.transport.maxConcurrentConnections",
        "count", 10, "Connections of one client; one for calls and one that waits for results it has in any case.", low=1)
    transport_timeout_ms: int = _row("TRANSPORT_TIMEOUT_MS", "mesh.transport.timeout", "ms", 30_000,
        "A coordinator that says nothing for so long is given up, and the next one is asked.")
    transport_retries: int = _row("TRANSPORT_RETRIES", "mesh.transport.retries", "count", 3,
        "Further tries of a call that met no coordinator.")
    transport_retry_delay_ms: int = _row("TRANSPORT_RETRY_DELAY_MS", "mesh.transport.retryDelay", "ms", 1_000,
        "Pause before the next try; grows with each.")
    keep_alive: bool = _row("TRANSPORT_KEEP_ALIVE", "mesh.transport.keepAlive", "yes/no", True,
        "Reuse connections between calls.")

    # -- security
    jwt_secret: str | None = _row("MESH_JWT_SECRET", "mesh.jwt.secret", "at least 32 bytes", None,
        "Tokens and task messages are signed with keys derived from it.", secret=True)
    jwt_secret_new: str | None = _row("MESH_JWT_SECRET_NEW", "mesh.jwt.secretNew", "at least 32 bytes", None,
        "The coming secret during a rotation: both are valid then.", secret=True)
    jwt_expires_in_s: int = _row("MESH_JWT_EXPIRES_IN_S", "mesh.jwt.expiresIn", "s", 3_600,
        "A token is valid for so long.")
    task_validity_s: int = _row("MESH_TASK_VALIDITY_S", "mesh.taskValidity", "s", 604_800,
        "The signature of a task's message is believed for so long, an hour more and its delay; a task that waits longer is "
        "put aside.", low=1)
    token: str | None = _row("MESH_TOKEN", "mesh.token", "API token", None,
        "Shown to coordinators over HTTP; `mesh auth` makes one. Who has the secret needs none.", secret=True)
    credentials_ttl_s: int = _row("MESH_CREDENTIALS_TTL_S", "mesh.credentialsTtl", "s", 3_600,
        "What an agent gets that joins over HTTP is good for so long; it is renewed at half of it, and withdrawn after it.",
        high=86_400)
    policy_file: str | None = _row("MESH_POLICY_FILE", "mesh.policyFile", "path", None,
        "Who may do what, by agent type and namespace (docs/security.md); without one, the table that is shipped.")
    env: str = _row("MESH_ENV", "mesh.env", "name", "production",
        "Only 'development' allows weak secrets and the like.", named="environment")

    # -- network and logs
    tailscale_enabled: bool = _row("TAILSCALE_ENABLED", "tailscale.enabled", "yes/no", False,
        "Names and addresses come from the local tailscaled; services bind to the tailnet only.")
    tailscale_service_prefix: str = _row("TAILSCALE_SERVICE_PREFIX", "tailscale.servicePrefix", "name", "agent-mesh",
        "First part of the host names that agents advertise.", named="namespace")
    log_level: str = _row("LOG_LEVEL", "logging.level", "choice", "info",
        "The least severe log line that is written.", among=_LOG_LEVELS)
    log_format: str = _row("LOG_FORMAT", "logging.format", "choice", "json",
        "json for machines, text for people.", among=("json", "text"))
    # fmt: on

    port_was_asked: bool = False
    warnings: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for row in TABLE:
            check(row, getattr(self, row.attribute), self.sources.get(row.attribute, row.env[0]))
        if self.lease_ms <= 2 * self.lease_renew_ms:
            raise Invalid(
                f"MESH_LEASE_MS ({self.lease_ms}) must be more than twice MESH_LEASE_RENEW_MS "
                f"({self.lease_renew_ms}), or one lost renewal costs an agent its tasks; "
                f"raise the one or lower the other."
            )
        if self.unhealthy_threshold_ms <= self.heartbeat_interval_ms:
            raise Invalid(
                f"UNHEALTHY_THRESHOLD_MS ({self.unhealthy_threshold_ms}) must be more than HEARTBEAT_INTERVAL_MS "
                f"({self.heartbeat_interval_ms}), or every agent is unhealthy between two heartbeats."
            )

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, file: Path | str | None = None) -> "Settings":
        """Settings from `environ` (None: this process's, with what `withhold` took out of it) and the JSON file (`file`,
        else ``MESH_CONFIG``, else `DEFAULT_FILE` if there).

        Raises `Invalid` for a file that cannot be read, unknown keys of it, and bad values: a line for each.
        """
        told = _told if environ is None else {}
        if environ is None:
            environ = {**_withheld, **os.environ}
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        in_file, label, wrong = _read_file(environ, file)
        for row in TABLE:
            try:
                found = _from_environment(row, environ)
                if found is None and row.path in in_file:
                    found = (
                        f"{label}: {row.path}",
                        _substitute(in_file[row.path], environ, f"{label}: {row.path}"),
                    )
                if found is not None:
                    sources[row.attribute], raw = found
                    values[row.attribute] = parse(row, raw, sources[row.attribute])
            except Invalid as error:
                wrong.append(error.message)
        if wrong:
            raise Invalid("\n".join(wrong))
        values |= told
        sources |= dict.fromkeys(told, "the coordinator")
        return cls(
            **values,
            port_was_asked="agent_port" in sources,
            warnings=_warnings(environ),
            sources=sources,
        )

    @property
    def joins(self) -> bool:
        """Whether an agent with these settings joins over HTTP: it has a join token, and nobody says where Redis is."""
        return self.join_token is not None and not self.was_set("redis_url")

    @property
    def coordinator_urls(self) -> tuple[str, ...]:
        """`coordinator_url` taken apart, without trailing slashes, in the order given."""
        return tuple(part.strip().rstrip("/") for part in self.coordinator_url.split(",") if part.strip())

    @functools.cached_property
    def keyring(self) -> Keyring:
        """The keys derived from the secrets. Raises `Invalid` if there is none, or one that can be guessed."""
        if not self.jwt_secret:
            raise Invalid(
                "MESH_JWT_SECRET is not set: every token and every task is signed with it. `mesh secret generate` makes one; "
                "all of one mesh have the same, from the environment or a file that MESH_JWT_SECRET_FILE names."
                + (" MESH_JOIN_TOKEN is only used where REDIS_URL is not set." if self.join_token else "")
            )
        found = {"MESH_JWT_SECRET": self.jwt_secret, "MESH_JWT_SECRET_NEW": self.jwt_secret_new}
        given = {name: secret for name, secret in found.items() if secret}
        for name, secret in given.items():
            check_secret(secret, where=name, lenient=self.env == "development")
        return Keyring(given.values())

    @functools.cached_property
    def policies(self) -> Policies:
        """Who may do what. Raises `Invalid` for a file that cannot be read or is wrong: file, line, what."""
        path = Path(self.policy_file) if self.policy_file else DEFAULT_POLICIES
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(
                f"Cannot read the policy file {path} ({_reason(error)}); correct MESH_POLICY_FILE or the file."
            ) from error
        return parse_policies(text, str(path) if self.policy_file else "the shipped table")

    def was_set(self, attribute: str) -> bool:
        """Whether the environment or the file gave this value (rather than the default)."""
        return attribute in self.sources

    def described(self) -> tuple[tuple[Setting, str, str], ...]:
        """For people: each row with its value in this process, secrets masked, and where it came from."""
        return tuple(
            (row, shown(row, getattr(self, row.attribute)), self.sources.get(row.attribute, "default"))
            for row in TABLE
        )


TABLE: tuple[Setting, ...] = tuple(
    Setting(attribute=field.name, **field.metadata)
    for field in dataclasses.fields(Settings)
    if field.metadata
)
"""All rows, in the order of the class."""

_KNOWN = frozenset(
    {"MESH_CONFIG"}
    | {name for row in TABLE for name in row.env}
    | {f"{name}_FILE" for row in TABLE if row.secret for name in row.env}
)


# -- what others must not inherit

_withheld: dict[str, str] = {}


def withhold() -> tuple[str, ...]:
    """Take the secrets out of this process's environment, so that nothing it starts inherits them; their names.

    `Settings.load` still knows them, here and in forked children. What shows nothing when it is shown stays: an address of
    Redis without a password. So do names of files: who may read them is for the files to say.
    """
    secret = [(row, name) for row in TABLE if row.secret for name in row.env]
    found = [name for row, name in secret if (value := os.environ.get(name)) and shown(row, value) != value]
    _withheld.update({name: os.environ.pop(name) for name in found})
    return tuple(found)


def give_back() -> None:
    """Undo `withhold`: for a process that is about to start itself anew."""
    os.environ.update(_withheld)
    _withheld.clear()


# -- what a process is told that has joined

_told: dict[str, Any] = {}


def tell(settings: Settings, **values: Any) -> Settings:
    """The settings with what a coordinator has told this process; whatever it and its forked children load has that, too."""
    _told.update(values)
    sources = {**settings.sources, **dict.fromkeys(values, "the coordinator")}
    return dataclasses.replace(settings, sources=sources, **values)


# -- where raw values come from


def _from_environment(row: Setting, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """(name, raw value) of the variable that sets `row`, or None. Two names that disagree are an error."""
    found: tuple[str, str] | None = None
    for name in row.env:
        value = _variable(name, environ, or_file=row.secret)
        if value is None:
            continue
        if found is not None and found[1] != value:
            raise Invalid(
                f"{found[0]} and {name} mean the same but have different values; set only one of them."
            )
        found = found or (name, value)
    return found


def _variable(name: str, environ: Mapping[str, str], *, or_file: bool) -> str | None:
    value = environ.get(name) or None
    file = (environ.get(f"{name}_FILE") or None) if or_file else None
    if file is None:
        return value
    if value is not None:
        raise Invalid(f"{name} and {name}_FILE are both set; set only one of them.")
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n") or None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(
            f"{name}_FILE: cannot read {file} ({_reason(error)}); make it a readable text file."
        ) from error


def _read_file(environ: Mapping[str, str], file: Path | str | None) -> tuple[dict[str, Any], str, list[str]]:
    """Leaves of the JSON file by dotted path, what to call the file in messages, and what is wrong with its keys."""
    asked = file if file is not None else environ.get("MESH_CONFIG") or None
    path = Path(asked) if asked is not None else DEFAULT_FILE
    if asked is None and not path.exists():
        return {}, "", []
    import json  # costs 5 ms that a process without a file saves

    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = (
            "correct the file" if isinstance(error, ValueError) else "correct MESH_CONFIG or create the file"
        )
        raise Invalid(f"Cannot read the configuration file {path}: {_reason(error)}; {hint}.") from error
    leaves: dict[str, Any] = {}
    wrong = list(_collect(tree, "", {row.path for row in TABLE}, leaves, str(path)))
    return leaves, str(path), wrong


def _collect(node: Any, prefix: str, known: set[str], leaves: dict[str, Any], label: str) -> Iterator[str]:
    """Fill `leaves`; a sentence for each that is wrong."""
    if not isinstance(node, dict):
        yield f"{label}: {prefix or 'the file'} must be a JSON object with settings inside."
        return
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else key
        if path in known:
            leaves[path] = value
        elif any(other.startswith(f"{path}.") for other in known):
            yield from _collect(value, path, known, leaves, label)
        else:
            yield f"{label}: unknown key {path}; {_suggest(path, known)}."


def _suggest(wrong: str, known: set[str]) -> str:
    import difflib  # only for the sentence of an error

    near = difflib.get_close_matches(wrong, sorted(known), n=1)
    return f"perhaps {near[0]} is meant" if near else "remove it or correct its name"


def _substitute(value: Any, environ: Mapping[str, str], where: str) -> Any:
    """Replace each ``${NAME}`` in a string of the file."""
    if isinstance(value, list):
        return [_substitute(part, environ, where) for part in value]
    if isinstance(value, dict):
        return {key: _substitute(part, environ, where) for key, part in value.items()}
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        found = _variable(match[1], environ, or_file=True)
        if found is None:
            raise Invalid(f"{where} refers to ${{{match[1]}}}, which is not set; set it or remove the key.")
        return found

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lookup, value)


def _warnings(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{name} is not a setting of Agent Mesh and is ignored."
        for name in sorted(environ)
        if name.startswith(("MESH_", "AGENT_")) and not name.startswith("AGENT_MESH_") and name not in _KNOWN
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
