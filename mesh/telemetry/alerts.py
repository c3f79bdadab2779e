"""Recording and alert rules for Prometheus: one table, from which their file, its tests and the page of runbooks are written."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AGENTS", "ALERTS", "COORDINATORS", "RECORDS", "RUNBOOK", "Alert", "Record", "rules"]

COORDINATORS, AGENTS = "agent-mesh-coordinators", "agent-mesh-agents"  # the jobs in prometheus.yml
RUNBOOK = "docs/alerts.md"
_FAILED = 'status=~"failed|timed_out|dead_lettered"'
_ASKED = 'route!~"/health.*|/metrics"'


@dataclass(frozen=True, kw_only=True)
class Record:
    """A recording rule. `{window}` in `expr` is `window_s` seconds."""

    name: str
    expr: str
    window_s: int
    help: str


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert: it fires when `expr` has held for `for_s` seconds.

    `says`: one sentence, in Prometheus' templates. `causes`, `steps`: the runbook.
    """

    name: str
    severity: str  # critical: work stands still or fails now; warning: it will, or somebody should look
    expr: str
    for_s: int
    window_s: int = 0
    says: str
    causes: str
    steps: tuple[str, ...]

    @property
    def limit(self) -> float:
        """What its figure is compared with: the last word of `expr`."""
        return float(self.expr.split()[-1])


RECORDS = (
    Record(
        name="agent_mesh:task_failures:ratio_rate",
        expr=f"sum by (namespace) (rate(agent_mesh_tasks_total{{{_FAILED}}}[{{window}}]))"
        ' / (sum by (namespace) (rate(agent_mesh_tasks_total{status!="cancelled"}[{window}])) > 0)',
        window_s=300,
        help="Share of the tasks that ended in the last 5 minutes and did not succeed; cancelled ones do not count.",
    ),
    Record(
        name="agent_mesh:task_run_seconds:mean",
        expr="sum by (namespace, capability) (rate(agent_mesh_task_run_seconds_sum[{window}]))"
        " / (sum by (namespace, capability) (rate(agent_mesh_task_run_seconds_count[{window}])) > 0)",
        window_s=900,
        help="Average run time of an attempt in the last 15 minutes.",
    ),
    Record(
        name="agent_mesh:task_queue_wait_seconds:p95",
        expr="histogram_quantile(0.95, sum by (namespace, capability, le)"
        " (rate(agent_mesh_task_queue_wait_seconds_bucket[{window}])))",
        window_s=300,
        help="How long 95 % of the attempts of the last 5 minutes have waited at most.",
    ),
    Record(
        name="agent_mesh:http_failures:ratio_rate",
        expr=f'sum(rate(agent_mesh_http_requests_total{{code=~"5..",{_ASKED}}}[{{window}}]))'
        f" / (sum(rate(agent_mesh_http_requests_total{{{_ASKED}}}[{{window}}])) > 0)",
        window_s=300,
        help="Share of the answers of the last 5 minutes that were failures of the coordinators (5xx); probes do not count.",
    ),
)

ALERTS = (
    Alert(
        name="AgentMeshCoordinatorDown",
        severity="critical",
        expr=f'up{{job="{COORDINATORS}"}} == 0',
        for_s=60,
        says="Coordinator {{ $labels.instance }} does not answer.",
        causes="The process has ended or hangs, its machine is away, or its token for Prometheus has expired (401).",
        steps=(
            "`curl http://<instance>/health`: what does it say, does it answer at all?",
            "Prometheus, Status > Targets: 401 is the token (make a new one), a refused connection the process.",
            "Its log; start it again. Tasks go on meanwhile: agents fetch, finish and take over without any coordinator.",
        ),
    ),
    Alert(
        name="AgentMeshRedisLost",
        severity="critical",
        expr="count by (job) (agent_mesh_redis_up == 0) > 0",
        for_s=30,
        says="{{ $value }} processes of {{ $labels.job }} have lost their connection to Redis.",
        causes="Redis is down, full, loading or fails over; the network; a password that was changed.",
        steps=(
            "`mesh doctor` on one of the machines: it says what Redis answers.",
            "Redis itself: `redis-cli ping`, its log, its memory. One process alone: its network and credentials.",
            "Nothing acknowledged is lost if Redis keeps its data (docs/durability.md); leases do not end while it sleeps.",
        ),
    ),
    Alert(
        name="AgentMeshNoLeader",
        severity="critical",
        expr=f"max by (namespace) (agent_mesh_leader) == 0 and on () max(agent_mesh_redis_up{{job=\"{COORDINATORS}\"}}) == 1",
        for_s=60,
        says="No coordinator leads namespace {{ $labels.namespace }}: its figures are missing and its loops stand still.",
        causes="Coordinators that cannot run the script of the lead (rights of their Redis user), or whose loops have ended.",
        steps=("`mesh status`: who leads?", "`/health` of each coordinator: `loops`, and its log."),
    ),
    Alert(
        name="AgentMeshNoHealthyAgents",
        severity="critical",
        expr='sum by (namespace) (agent_mesh_agents{status="healthy"}) == 0',
        for_s=60,
        says="No agent of namespace {{ $labels.namespace }} is healthy.",
        causes="All agents were stopped, drained or killed, or cannot reach Redis.",
        steps=(
            "`mesh discover`: which agents are there, since when are they silent?",
            "Start agents: `mesh deploy`, or `celery worker`.",
        ),
    ),
    Alert(
        name="AgentMeshTasksFailing",
        severity="critical",
        expr="agent_mesh:task_failures:ratio_rate > 0.10",
        for_s=120,
        says="{{ $value | humanizePercentage }} of the tasks of namespace {{ $labels.namespace }} fail.",
        causes="A new version of a task, a service that tasks need and that is away, payloads that do not fit.",
        steps=(
            "`mesh task list --state failed` and `mesh dead-letter list`: which type, which error?",
            "When the cause is mended: `mesh dead-letter replay`.",
        ),
    ),
    Alert(
        name="AgentMeshAgentsDegraded",
        severity="warning",
        expr='sum by (namespace) (agent_mesh_agents{status=~"degraded|unhealthy"}) > 0',
        for_s=120,
        says="{{ $value }} agents of namespace {{ $labels.namespace }} are not well.",
        causes="Agents that were killed, lost their network, or run tasks that they cannot stop.",
        steps=(
            "`mesh discover --status degraded`, `--status unhealthy`; `mesh agent describe ID` says what is wrong.",
            "Who is gone for good leaves the list after a day; its tasks were taken over when its leases ended.",
        ),
    ),
    Alert(
        name="AgentMeshNobodyTakes",
        severity="warning",
        expr="agent_mesh_queue_depth > 0 and agent_mesh_capable_agents == 0",
        for_s=60,
        says="{{ $labels.capability }} in namespace {{ $labels.namespace }}: tasks wait, and no agent takes them.",
        causes="Agents that are gone, cordoned or draining; nobody who offers all of it together; a misspelt name.",
        steps=("`mesh task why ID` says what each agent lacks.", "`mesh deploy --capabilities ...`, `mesh agent uncordon ID`."),
    ),
    Alert(
        name="AgentMeshQueueLong",
        severity="warning",
        expr="agent_mesh_queue_depth > 500",
        for_s=120,
        says="{{ $value }} tasks wait for {{ $labels.capability }} in namespace {{ $labels.namespace }}.",
        causes="More work than slots; tasks that have become slow; agents that are gone.",
        steps=(
            "`mesh queue list`: how old is the oldest, is the queue getting shorter?",
            "More agents or slots for this capability; see the average run time, too.",
        ),
    ),
    Alert(
        name="AgentMeshTasksSlow",
        severity="warning",
        expr="agent_mesh:task_run_seconds:mean > 300",
        for_s=300,
        says="Tasks of {{ $labels.capability }} take {{ $value | humanizeDuration }} on average.",
        causes="Bigger inputs, a slow service, agents with too many slots for their machine.",
        steps=("`mesh task list --state running`: what runs for long?", "More agents; smaller tasks; a time limit."),
    ),
    Alert(
        name="AgentMeshRequestsFailing",
        severity="warning",
        expr="agent_mesh:http_failures:ratio_rate > 0.05",
        for_s=120,
        says="{{ $value | humanizePercentage }} of the answers of the coordinators are failures.",
        causes="Redis is away or slow (503), a coordinator has too many connections (503), a defect (500: its log has it).",
        steps=(
            "`sum by (route, code) (rate(agent_mesh_http_requests_total[5m]))`: which?",
            "The coordinators' logs at that time.",
        ),
    ),
    Alert(
        name="AgentMeshMessagesRefused",
        severity="warning",
        expr="sum by (namespace) (increase(agent_mesh_refused_messages_total[{window}])) > 0",
        for_s=0,
        window_s=600,
        says="Agents of namespace {{ $labels.namespace }} have put aside messages that are not signed as they should be.",
        causes="Somebody with access to Redis who does not hold the secret; a process with another secret.",
        steps=(
            "`mesh dead-letter list`: the reason of each.",
            "`mesh audit --action run`: who refused it. See docs/security.md.",
        ),
    ),
)  # fmt: skip


def rules(*, faster: float = 1.0) -> dict[str, object]:
    """The content of a file of rules. `faster`: all times divided by it, for a test that cannot wait for minutes."""

    def seconds(number: int) -> str:
        return f"{max(1, round(number / faster))}s"

    every = {"interval": seconds(15)}
    records = [
        {"record": one.name, "expr": one.expr.replace("{window}", seconds(one.window_s))} for one in RECORDS
    ]
    alerts = [
        {
            "alert": one.name,
            "expr": one.expr.replace("{window}", seconds(one.window_s)),
            **({"for": seconds(one.for_s)} if one.for_s else {}),
            "labels": {"severity": one.severity},
            "annotations": {"summary": one.says, "runbook": f"{RUNBOOK}#{one.name.lower()}"},
        }
        for one in ALERTS
    ]
    return {
        "groups": [
            {"name": "agent-mesh-records", **every, "rules": records},
            {"name": "agent-mesh-alerts", **every, "rules": alerts},
        ]
    }
