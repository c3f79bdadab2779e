"""What is sent to the coordinator and what it answers, as types.

Bodies are decoded into them, and the OpenAPI document is made of them.
Answers are built as plain values by the services; their types here say what is in them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from mesh.core.states import State
from mesh.services.agents import LONGEST_GRACE_MS
from mesh.services.dead_letters import LIMIT

MAX_BATCH = 10_000
MAX_WAIT_IDS = 1_000
MAX_WAIT_S = 300.0

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\n)", examples=["data-processing"])]
TaskId = Annotated[str, Meta(min_length=1, max_length=200, examples=["invoice-77"])]
Seconds = Annotated[float, Meta(ge=0, lt=10**9)]
Time = Annotated[str, Meta(description="UTC, ISO 8601", examples=["2026-01-31T12:00:00.000+00:00"])]
Count = Annotated[int, Meta(ge=0)]


# -- bodies


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a task is to be run; what is left out is chosen by the task's type or the settings."""

    requires: Annotated[tuple[Name, ...], Meta(description="Capabilities beyond those of the type.")] = ()
    priority: Annotated[int, Meta(ge=0, le=9, description="9 is first.")] = 4
    countdown_s: Annotated[Seconds, Meta(description="Not before so many seconds from now.")] | None = None
    expires_s: Annotated[Seconds, Meta(description="Not started after so many seconds from now.")] | None = (
        None
    )
    timeout_s: Annotated[Seconds, Meta(description="Bounds one attempt.")] | None = None
    deadline_s: Annotated[Seconds, Meta(description="Ended after so many seconds from now.")] | None = None
    retries: Annotated[int, Meta(ge=0, le=1000, description="How often a failure is tried again.")] | None = (
        None
    )
    ignore_result: Annotated[bool, Meta(description="Nobody will ask for the result.")] = False
    labels: Annotated[dict[str, str], Meta(description="Free marks.")] = {}
    strategy: Literal["capability-match", "round-robin", "least-loaded", "random"] | None = None
    region: Annotated[Name, Meta(description="Preferred; another one serves if it cannot.")] | None = None
    unsatisfiable: Annotated[
        Literal["warn", "accept", "reject"], Meta(description="What if no agent can take it now.")
    ] = "warn"


class Submission(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task. The same id is the same task: submitting it again with the same content changes nothing."""

    type: Name
    payload: Annotated[Any, Meta(description="Any JSON value; without it the task gets no argument.")] = None
    task_id: (
        Annotated[TaskId, Meta(description="By default a new one; may also be the header Idempotency-Key.")]
        | None
    ) = None


class Bulk(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Many tasks of one type with the same options: the compact form of a batch. If one payload is wrong, none is submitted."""

    type: Name
    payloads: Annotated[list[Any], Meta(max_length=MAX_BATCH)]


class Batch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Different tasks; each is accepted or refused for itself."""

    tasks: Annotated[list[Submission], Meta(max_length=MAX_BATCH)]


class WaitBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tasks to wait for."""

    ids: Annotated[list[TaskId], Meta(min_length=1, max_length=MAX_WAIT_IDS)]
    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 20.0


class CancelBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why it is cancelled; the body may be left out."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)] = "cancelled"


class DrainBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long what runs may take; without it, the agent's own MESH_DRAIN_GRACE_MS. The body may be left out."""

    grace_ms: Annotated[int, Meta(ge=0, le=LONGEST_GRACE_MS)] | None = None


PublicKey = Annotated[
    str, Meta(description="Ed25519, base64url without padding.", pattern="^[A-Za-z0-9_-]{43}$")
]
Capabilities = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=256)]


class JoinBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent that wants to join. `public_key` is of a key pair that it has just made, and keeps to itself."""

    id: Name
    capabilities: Capabilities
    public_key: PublicKey


class HeartbeatBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A joined agent, and what it has."""

    life: Annotated[str, Meta(min_length=1, max_length=64)]
    capabilities: Capabilities
    public_key: PublicKey
    kids: Annotated[tuple[str, ...], Meta(max_length=8, description="Of its task keys.")] = ()
    password_hash: (
        Annotated[
            str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of its Redis password, in hexadecimal.")
        ]
        | None
    ) = None
    refused: Annotated[bool, Meta(description="Redis does not take its password, or refuses a command.")] = (
        False
    )
    renew: Annotated[bool, Meta(description="It wants new credentials: those that it has end soon.")] = False


class DeadLetterBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters: those named, or those that a filter takes, or all."""

    ids: Annotated[list[TaskId], Meta(max_length=LIMIT)] = []
    type: Name | None = None
    capability: Name | None = None
    reason: Annotated[str, Meta(max_length=500)] | None = None
    since: Annotated[datetime, Meta(description="Put aside then or later.")] | None = None
    all: bool = False


# -- answers


class Problem(Struct, kw_only=True):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[
        str, Meta(description="Name of the error's class in the Python package.", examples=["NotFound"])
    ]
    task_id: str | UnsetType = UNSET
    state: State | UnsetType = UNSET
    error: dict[str, Any] | UnsetType | None = UNSET


class Accepted(Struct, kw_only=True):
    """A task that was submitted."""

    id: str
    state: State
    queue: str
    warning: Annotated[str, Meta(description="Nobody can take it now.")] | UnsetType = UNSET


_ITEM = {"anyOf": [{"$ref": "#/components/schemas/Accepted"}, {"$ref": "#/components/schemas/Problem"}]}


class BatchAnswer(Struct, kw_only=True):
    """One answer for each task, in their order."""

    items: list[Annotated[Any, Meta(extra_json_schema=_ITEM)]]


class BulkAnswer(Struct, kw_only=True):
    """One id for each payload, in their order."""

    ids: list[str]
    queue: str
    warning: str | UnsetType = UNSET


class Started(Struct, kw_only=True):
    """A task and where it is."""

    id: str
    state: State


class Cancellation(Struct, kw_only=True):
    """Whether it was cancelled by this; if not, it had ended before."""

    id: str
    state: State
    cancelled: bool


class Failure(Struct, kw_only=True):
    """How a task ended otherwise than well."""

    type: str | None
    message: str | None
    traceback: str | None


class End(Struct, kw_only=True):
    """A task that has ended: `result` if it succeeded, else `error`. `state` null: there is no such task."""

    id: str
    state: State | None
    result: Any | UnsetType = UNSET
    error: Failure | UnsetType = UNSET


class WaitAnswer(Struct, kw_only=True):
    """Those that have ended or are unknown; none if the wait ended first."""

    ended: list[End]


class Progress(Struct, kw_only=True):
    """What a running task last told."""

    fraction: float
    note: str


class Attempt(Struct, kw_only=True):
    """One attempt. `how`: how it ended; of the latest, the state of the task. `started_at` null: it never did."""

    attempt: Count
    run: Count
    agent: str | None
    how: Annotated[
        str,
        Meta(
            description="failed, timed_out, crashed, lost (its agent died before the start), released, replaced; or a state."
        ),
    ]
    leased_at: Time | None
    started_at: Time | None
    ended_at: Time | None
    error: Annotated[str, Meta(description="One line.")] | None


class TaskView(Struct, kw_only=True):
    """All that is recorded of a task; `past`: attempts that did not end it, the oldest first, at most 32."""

    id: str
    state: State
    type: str
    queue: str
    strategy: str
    region: str | None
    priority: int
    run: Count
    attempt: Count
    failures: Count
    crashes: Count
    agent: str | None
    error: str | None
    reason: str | None
    labels: dict[str, str]
    by: Annotated[str | None, Meta(description="Who submitted it over HTTP: the subject of the token.")]
    trace_id: Annotated[
        str, Meta(pattern="^[0-9a-f]{32}$", description="Its caller's (traceparent), or one of its own.")
    ]
    created_at: Time | None
    queued_at: Time | None
    leased_at: Time | None
    started_at: Time | None
    ended_at: Time | None
    crashed_at: Time | None
    expires_at: Time | None
    deadline_at: Time | None
    past: list[Attempt]
    progress: Progress | UnsetType | None = UNSET


class TaskList(Struct, kw_only=True):
    """A page of tasks, newest first; `next_cursor` is the `cursor` of the next page."""

    tasks: list[TaskView]
    next_cursor: str | None


class AuditEntry(Struct, kw_only=True):
    """Who did or was refused what; `many`: how many refusals it stands for, `source`: an address, an agent, a process."""

    id: str
    time: Time
    namespace: str
    subject: str
    source: str
    action: str
    object: str
    allowed: bool
    why: str
    many: Annotated[int, Meta(ge=1)]


class AuditList(Struct, kw_only=True):
    """A page of the audit log, newest first; `next_cursor` is the `cursor` of the next page."""

    entries: list[AuditEntry]
    next_cursor: str | None


class DeadLetterList(Struct, kw_only=True):
    """A page of dead letters, newest first; `next_cursor` is the `cursor` of the next page."""

    dead_letters: list[TaskView]
    next_cursor: str | None


class Refusal(Struct, kw_only=True):
    """A dead letter that was left as it is."""

    id: str
    problem: Problem


class DeadLetterAnswer(Struct, kw_only=True):
    """What was done; `more`: there are more than one call handles, ask again."""

    ids: list[str]
    refused: list[Refusal]
    more: bool


class Attempts(Struct, kw_only=True):
    """How often a task was tried. `failures` (tried again) and `crashes` count this run's.

    `past`: attempts that did not end it, the oldest first, at most 32; `latest`: the one that is under way or ended it, if any.
    """

    id: str
    state: State
    run: Count
    attempts: Count
    failures: Count
    crashes: Count
    past: list[Attempt]
    latest: Attempt | None


class NotCapable(Struct, kw_only=True):
    """An agent that would not take it."""

    agent: str
    why: str


class Verdict(Struct, kw_only=True):
    """An agent, and what keeps it from the task (null: nothing). `capable` ones take such tasks, if not this one now."""

    agent: str
    capable: bool
    why: str | None
    slots: Count
    free_slots: Count


class Start(Struct, kw_only=True):
    """When a task is expected to start, by what is before it; null: it does not wait, or that is not known."""

    agents: list[Verdict]
    expected_start_ms: Annotated[Count | None, Meta(description="From now; 0: now.")]
    expected_start_at: Time | None
    expected_start_how: Annotated[str | None, Meta(description="How that is known, or why not.")]
    advice: Annotated[list[str], Meta(description="What would have it start sooner.")]


class Explanation(Start, kw_only=True):
    """How such a task would wait. `ahead`: tasks of its queue that would be served before it."""

    queue: str
    capable: list[str]
    not_capable: list[NotCapable]
    ahead: Count
    free_slots: Count
    warning: str | None


class Why(Start, kw_only=True):
    """Why a task is where it is: `detail` says it; `position`: how many of its queue are served before it."""

    id: str
    state: State
    queue: str
    detail: str
    position: Count | None
    capable: list[str]
    not_capable: list[NotCapable]


class RedisAccess(Struct, kw_only=True):
    """How an agent logs in to Redis. `reach`: `own`, a user limited to its namespace, or `shared`, that of the coordinator."""

    url: str
    username: str | None
    password: str | None
    reach: Literal["own", "shared"]


class Granted(Struct, kw_only=True):
    """What an agent works with. Task keys: base64, by the id of the secret that they come from."""

    agent_type: str
    redis: RedisAccess
    task_keys: Annotated[
        dict[str, Any],
        Meta(description="`namespace`, `capabilities` (its queues' keys), `trusted` (agents' certificates)."),
    ]
    certificate: Annotated[str, Meta(description="Binds the agent's public key to what it may submit.")]
    kids: list[str]


class Membership(Struct, kw_only=True):
    """A joined agent. `granted` is null where it has what it needs."""

    id: str
    namespace: str
    life: Annotated[str, Meta(description="This joining: to be told when it renews or leaves.")]
    expires_at: Time
    expires_in_s: Seconds
    granted: Granted | None


class Withdrawn(Struct, kw_only=True):
    """Whether there was anything to withdraw."""

    withdrawn: bool


class AgentView(Struct, kw_only=True):
    """One agent."""

    id: str
    name: str
    type: str
    namespace: str
    status: Literal["healthy", "degraded", "unhealthy", "draining", "offline"]
    capabilities: list[str]
    region: str | None
    labels: dict[str, str]
    slots: Count
    running: Count
    address: str
    port: int
    pid: Count
    version: str
    incarnation: int
    joined_at: Time
    last_beat_at: Time
    silent_ms: Count
    cordoned: bool
    absent: bool
    condition: str
    status_since: Time | None
    leaves_in_ms: Count | None
    held: Count


class AgentList(Struct, kw_only=True):
    """Agents by id, and how many there are of each health."""

    agents: list[AgentView]
    counts: dict[str, int]


class CapabilityView(Struct, kw_only=True):
    """What autoscalers read: who offers it, what waits for it."""

    capability: str
    agents: Count
    slots: Count
    free_slots: Count
    backlog: Count
    scheduled: Count
    running: Count
    oldest_age_ms: Count | None
    p95_run_ms: float | None


class CapabilityList(Struct, kw_only=True):
    """Capabilities by name: offered, or needed by tasks that have not ended."""

    capabilities: list[CapabilityView]


class Demand(Struct, kw_only=True):
    """What waits for and who offers a capability, or several together: numbers only, 0 where nothing is known.

    `slots`: of the agents that take such work now; `running`: tasks that these or others run; `mean_run_ms`: of about the last
    100 attempts; `slots_wanted`: so that what waits has started within `within_s` seconds, never fewer than are running;
    `agents_wanted`: these in agents of the usual size.
    """

    capability: str
    agents: Count
    slots: Count
    free_slots: Count
    backlog: Count
    scheduled: Count
    running: Count
    oldest_age_ms: Count
    mean_run_ms: Annotated[float, Meta(ge=0)]
    within_s: Count
    slots_wanted: Count
    agents_wanted: Count


class RequirementNeeds(Struct, kw_only=True):
    """What a requirement has and needs; `agents` take such work now; `mean_run_ms`: of about the last 100 attempts."""

    requirement: str
    backlog: Count
    oldest_age_ms: Count | None
    scheduled: Count
    running: Count
    mean_run_ms: float | None
    agents: Count
    slots: Count
    free_slots: Count
    slots_wanted: Count
    agents_to_add: Count
    advice: str | None


class Capacity(Struct, kw_only=True):
    """What to add so that what waits has started within `within_s` seconds. `size`: by `agents_each`, agents of one of the
    mesh's coordinators; `advice`: about coordinators; `requirements`: at most 200 of `total`, what lacks most first."""

    namespace: str
    within_s: Count
    coordinators: Count
    agents: Count
    agents_each: Count
    size: Literal["small", "medium", "large", "too large"]
    backlog: Count
    coordinators_to_add: Count
    advice: str | None
    total: Count
    requirements: list[RequirementNeeds]


class RequirementWaits(Struct, kw_only=True):
    """How long tasks of a requirement waited, and would have; nobody would take those that are `unserved`."""

    requirement: str
    tasks: Count
    unserved: Count
    was_p50_ms: Count | None
    was_p95_ms: Count | None
    was_max_ms: Count | None
    would_p50_ms: Count | None
    would_p95_ms: Count | None
    would_max_ms: Count | None


class Replayed(Struct, kw_only=True):
    """What waits would have been. `left_out`: how many were gone, unfinished, never_started, earlier_attempts, strategies;
    `leaves_out`: what the replay does not know, as sentences; `requirements`: at most 200 of `total`."""

    namespace: str
    from_at: Time | None
    until_at: Time | None
    slots: Count
    tasks: Count
    left_out: dict[str, int]
    leaves_out: list[str]
    total: Count
    requirements: list[RequirementWaits]


class QueueView(Struct, kw_only=True):
    """A queue: `depth` tasks wait; `states`: tasks now in a live state, ever ended in an end state."""

    queue: str
    capabilities: list[str]
    depth: Count
    oldest_age_ms: Count | None
    states: dict[str, int]
    crashes: Count


class TimingView(Struct, kw_only=True):
    """A histogram; `buckets`: attempts in each of those that `/metrics` has, and above."""

    buckets: list[Count]
    sum_ms: Count


class Counted(Struct, kw_only=True):
    """Of a queue, or of all: what is in it, and what has come out of it ever. `failed`: also timed out or put aside."""

    queue: Annotated[str, Meta(description="'': all of them.")]
    depth: Count
    oldest_age_ms: Count | None
    running: Count
    scheduled: Count
    ended: Count
    failed: Count
    wait: TimingView
    run: TimingView


class TopAgent(Struct, kw_only=True):
    """One agent."""

    id: str
    status: Literal["healthy", "degraded", "unhealthy", "draining", "offline"]
    cordoned: bool
    running: Count
    slots: Count
    region: str | None
    capabilities: list[str]
    silent_ms: Count


class Failed(Struct, kw_only=True):
    """A task that has failed, timed out or was put aside."""

    ended_at: Time | None
    state: State
    type: str
    agent: str | None
    id: str
    error: str | None


class Top(Struct, kw_only=True):
    """What `mesh top` shows, counted so far: the difference of two is what has happened between.

    Lists have at most 200 rows, what needs looking after first; `totals`: how many there are. `failures`: the newest ten of the
    dead letters and of the 1,000 tasks that were submitted last.
    """

    namespace: str
    at_ms: Annotated[int, Meta(description="By Redis's clock.")]
    health: dict[str, int]
    cordoned: Count
    slots: Count
    busy: Count
    totals: dict[str, int]
    all: Counted
    queues: list[Counted]
    capabilities: list[CapabilityView]
    agents: list[TopAgent]
    failures: list[Failed]


class QueueList(Struct, kw_only=True):
    """Queues by name."""

    queues: list[QueueView]


class TypeView(Struct, kw_only=True):
    """A task type that agents have advertised."""

    name: str
    queue: str | None
    requires: list[str]
    description: str
    payload_schema: dict[str, Any] | None
    result_schema: dict[str, Any] | None
    examples: list[Any]
    timeout_s: float | None
    retries: int | None
    retry_delay_s: float | None
    retry_delay_cap_s: float | None
    no_retry_for: list[str]


class TypeList(Struct, kw_only=True):
    """Task types by name."""

    types: list[TypeView]


class GoneBack(Struct, kw_only=True):
    """Redis was seen to hold less than it did; `lost_ms` None: how much is not known."""

    noticed_at: Time
    by: str
    lost_ms: Count | None


class Epoch(Struct, kw_only=True):
    """The last restore; `unfinished`: it was interrupted."""

    restored_at: Time | None
    unfinished: bool
    gone_back: GoneBack | None


class RestoreBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`agents`: as `GET agents` lists them; `tasks`: what becomes of those that have not ended, by default `fail`."""

    namespace: Name
    agents: list[dict[str, Any]] = []
    tasks: Literal["fail", "requeue"] | None = None


class RestoreReport(Struct, kw_only=True):
    """What was done, or would be. `agents`: ids to add, change (with fields), unchanged, live, not_in_file; `tasks`: policy,
    numbers by the state that they were in (and by type), and each: id, type, state, agent, now (its state since)."""

    namespace: str
    dry_run: bool
    epoch: int | None
    continues: bool
    agents: dict[str, list[Any]]
    tasks: dict[str, Any]


class TokenBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a token is for, and what it limits. `agent_type`: a row of the policies."""

    subject: Name
    agent_type: Name
    namespaces: Annotated[
        tuple[str, ...], Meta(min_length=1, max_length=64, description="Names, or * alone.")
    ]
    kind: Literal["api", "join"] = "api"
    capabilities: tuple[Name, ...] | None = None
    ttl_s: Annotated[int, Meta(ge=1, le=366 * 86_400)] | None = None


class Issued(Struct, kw_only=True):
    """A new token, told once."""

    token: str
    kind: Literal["api", "join"]
    jti: str
    subject: str
    agent_type: str
    namespaces: list[str]
    capabilities: list[str] | None
    expires_at: Time


class RevokeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token that is not to count any more. It is kept nowhere."""

    token: Annotated[str, Meta(min_length=1, max_length=8_192, description="Its text.")]


class Revoked(Struct, kw_only=True):
    """The jti that does not count any more."""

    revoked: str


class SigningKeys(Struct, kw_only=True):
    """What is signed with, by names that tell nothing of the secrets."""

    in_force: Annotated[str | None, Meta(description="The key that signs, as the leader says.")]
    known: Annotated[
        dict[str, dict[str, int]], Meta(description="key -> {coordinators, agents} that know it.")
    ]
    sealed_otherwise: Annotated[
        int | None, Meta(description="Waiting tasks that are sealed with another key.")
    ]


class ClusterView(Struct, kw_only=True):
    """The coordinators, who leads, the regions, how durable Redis is, which versions run."""

    namespace: str
    coordinators: list[dict[str, Any]]
    leader: dict[str, Any] | None
    epoch: Epoch
    keys: SigningKeys
    regions: dict[str, dict[str, int]]
    durability: dict[str, str | None]
    versions: dict[str, Any]
