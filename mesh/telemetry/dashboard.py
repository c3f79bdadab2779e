"""The dashboard for Grafana: one table of its panels, from which deploy/grafana/agent-mesh.json is written.

Figures that a leader tells are taken as `max by`: when the lead changes hands, two coordinators may be seen to tell them for a
moment, and a sum would show them doubled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mesh.telemetry.alerts import AGENTS, ALERTS, COORDINATORS, RECORDS, RUNBOOK, Alert

__all__ = ["ANNOTATED", "ROWS", "VARIABLES", "Panel", "Row", "dashboard"]

_COLUMNS = 24  # of Grafana's grid; a unit of height is 38 pixels with its gap
_STAT_HEIGHT, _GRAPH_HEIGHT = 3, 7
_HERE = 'namespace="$namespace"'
_OF = f'{_HERE},capability=~"$capability"'
_JOBS = f'job=~"{COORDINATORS}|{AGENTS}"'
_ALERTS = {one.name: one for one in ALERTS}
_WINDOW_S = {one.name: one.window_s for one in RECORDS}
_PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
_GOOD, _COLOURS = "green", {"critical": "red", "warning": "orange"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `queries`: (PromQL, what each of its series is called); `unit`: one of Grafana's.

    `alerts`: their runbooks are in the panel's description, and it links to them. `limit`: what is drawn as the first one's
    limit; values from it on are bad, those below it if `low_is_bad`.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str
    alerts: tuple[str, ...] = ()
    limit: float | None = None
    low_is_bad: bool = False
    stacked: bool = False
    colours: Mapping[str, str] | None = None  # of a series, by its name


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels that answer one question; four of them side by side at most, those of the first row as single figures."""

    title: str
    answers: str
    panels: tuple[Panel, ...]


def _limit(alert: str) -> float:
    return _ALERTS[alert].limit


def _rate(metric: str, matchers: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{matchers}}}[$__rate_interval]))"


_SUCCESS = f"1 - agent_mesh:task_failures:ratio_rate{{{_HERE}}}"
# The recorded series is empty while nobody asks for anything, and before the first failure.
_FAILED_REQUESTS = "agent_mesh:http_failures:ratio_rate or 0 * sum(agent_mesh_connections)"
_RUN = "agent_mesh_task_run_seconds"
_WAIT = "agent_mesh_task_queue_wait_seconds"

ROWS = (
    Row(
        title="Now",
        answers="Is all well? Red and orange are the limits of the alerts.",
        panels=(
            Panel(
                title="Alerts firing",
                unit="short",
                queries=(
                    ('count(ALERTS{alertname=~"AgentMesh.+",alertstate="firing"}) or vector(0)', "alerts"),
                ),
                description="The shipped alerts that fire now, in all namespaces that this Prometheus knows.",
                limit=1,
            ),
            Panel(
                title="Throughput",
                unit="suffix:/s",
                queries=((_rate("agent_mesh_tasks_total", _OF), "tasks"),),
                description="Tasks that end in a second, however they do.",
            ),
            Panel(
                title="Success rate",
                unit="percentunit",
                queries=((_SUCCESS, "succeeded"),),
                description="Of the tasks of all capabilities that ended in the last 5 minutes; cancelled ones do not count. "
                "Empty while none ends.",
                alerts=("AgentMeshTasksFailing",),
                limit=1 - _limit("AgentMeshTasksFailing"),
                low_is_bad=True,
            ),
            Panel(
                title="Healthy agents",
                unit="short",
                queries=((f'max(agent_mesh_agents{{{_HERE},status="healthy"}})', "healthy"),),
                description="Agents that are there and well.",
                alerts=("AgentMeshNoHealthyAgents",),
                limit=_limit("AgentMeshNoHealthyAgents") + 1,
                low_is_bad=True,
            ),
            Panel(
                title="Average run time",
                unit="s",
                queries=((f"{_rate(f'{_RUN}_sum', _OF)} / ({_rate(f'{_RUN}_count', _OF)} > 0)", "average"),),
                description="Of the attempts that end now, over the chosen capabilities. Empty while none ends.",
                alerts=("AgentMeshTasksSlow",),
                limit=_limit("AgentMeshTasksSlow"),
            ),
            Panel(
                title="Longest queue",
                unit="short",
                queries=((f"max(agent_mesh_queue_depth{{{_OF}}})", "tasks"),),
                description="Tasks that wait for the capability that most wait for.",
                alerts=("AgentMeshQueueLong",),
                limit=_limit("AgentMeshQueueLong"),
            ),
            Panel(
                title="Active connections",
                unit="short",
                queries=(("sum(agent_mesh_connections)", "connections"),),
                description="HTTP connections that are open, of all coordinators.",
            ),
            Panel(
                title="Failed requests",
                unit="percentunit",
                queries=((_FAILED_REQUESTS, "failed"),),
                description="Share of the coordinators' answers of the last 5 minutes that were their failures (5xx).",
                alerts=("AgentMeshRequestsFailing",),
                limit=_limit("AgentMeshRequestsFailing"),
            ),
        ),
    ),
    Row(
        title="Tasks",
        answers="Is work done, does it succeed, has it become slower?",
        panels=(
            Panel(
                title="Throughput by outcome",
                unit="suffix:/s",
                queries=((_rate("agent_mesh_tasks_total", _OF, "status"), "{{status}}"),),
                description="Tasks that end in a second, by how they end.",
                stacked=True,
                colours={
                    "succeeded": "green",
                    "failed": "red",
                    "timed_out": "orange",
                    "dead_lettered": "dark-red",
                    "expired": "yellow",
                    "cancelled": "gray",
                },
            ),
            Panel(
                title="Success rate",
                unit="percentunit",
                queries=((_SUCCESS, "succeeded"),),
                description="Of the tasks of all capabilities that ended in the 5 minutes before; cancelled ones do not count.",
                alerts=("AgentMeshTasksFailing",),
                limit=1 - _limit("AgentMeshTasksFailing"),
                low_is_bad=True,
            ),
            Panel(
                title="Average run time by capability",
                unit="s",
                queries=((f"agent_mesh:task_run_seconds:mean{{{_OF}}}", "{{capability}}"),),
                description="Of the attempts that ended in the 15 minutes before.",
                alerts=("AgentMeshTasksSlow",),
                limit=_limit("AgentMeshTasksSlow"),
            ),
        ),
    ),
    Row(
        title="Waiting",
        answers="Does work wait, for what, and for how long?",
        panels=(
            Panel(
                title="Wait before the start, p50 and p95",
                unit="s",
                queries=(
                    (
                        f"histogram_quantile(0.5, sum by (capability, le) (rate({_WAIT}_bucket{{{_OF}}}"
                        f"[{_WINDOW_S['agent_mesh:task_queue_wait_seconds:p95']}s])))",
                        "{{capability}} p50",
                    ),
                    (f"agent_mesh:task_queue_wait_seconds:p95{{{_OF}}}", "{{capability}} p95"),
                ),
                description="Of the attempts that started in the 5 minutes before: from when one could be taken to its start.",
            ),
            Panel(
                title="Queue depth",
                unit="short",
                queries=((f"max by (capability) (agent_mesh_queue_depth{{{_OF}}})", "{{capability}}"),),
                description="Tasks that wait for an agent.",
                alerts=("AgentMeshQueueLong",),
                limit=_limit("AgentMeshQueueLong"),
            ),
            Panel(
                title="Age of the oldest that waits",
                unit="s",
                queries=(
                    (f"max by (capability) (agent_mesh_queue_oldest_age_seconds{{{_OF}}})", "{{capability}}"),
                ),
                description="It grows by a second a second where nothing is taken any more.",
            ),
        ),
    ),
    Row(
        title="Agents",
        answers="Are the agents well, and is there room for more work?",
        panels=(
            Panel(
                title="Agents by health",
                unit="short",
                queries=((f"max by (status) (agent_mesh_agents{{{_HERE}}})", "{{status}}"),),
                description="All agents of the namespace.",
                alerts=("AgentMeshNoHealthyAgents", "AgentMeshAgentsDegraded"),
                stacked=True,
                colours={
                    "healthy": "green",
                    "degraded": "orange",
                    "unhealthy": "red",
                    "draining": "blue",
                    "offline": "gray",
                },
            ),
            Panel(
                title="Slots",
                unit="short",
                queries=((f"sum by (state) (agent_mesh_agent_slots{{{_HERE}}})", "{{state}}"),),
                description="Of all agents that Prometheus reaches, each slot once: running, held (fetched, not started), free.",
                stacked=True,
                colours={"running": "blue", "held": "yellow", "free": "green"},
            ),
            Panel(
                title="Free and busy slots by capability",
                unit="short",
                queries=(
                    (
                        f"max by (capability, state) (agent_mesh_slots{{{_OF}}})",
                        "{{capability}} {{state}}",
                    ),
                ),
                description="Slots of the agents that take such tasks. An agent's count with each of its capabilities: no sum.",
            ),
        ),
    ),
    Row(
        title="Trouble",
        answers="What is tried again, put aside, refused, or taken by nobody?",
        panels=(
            Panel(
                title="Retried, reassigned, refused",
                unit="suffix:/s",
                queries=(
                    (_rate("agent_mesh_retries_total", _OF), "retried"),
                    (_rate("agent_mesh_reassignments_total", _OF, "reason"), "{{reason}}"),
                    (_rate("agent_mesh_refused_results_total", _OF), "late results refused"),
                    (_rate("agent_mesh_refused_messages_total", _OF), "messages refused"),
                ),
                description="Attempts that failed and were tried again; that were taken from an agent that was lost, or whose "
                "process died; results that came too late, and changed nothing; messages with a wrong signature.",
                alerts=("AgentMeshMessagesRefused",),
            ),
            Panel(
                title="Dead letters and scheduled tasks",
                unit="short",
                queries=(
                    (f"max(agent_mesh_dead_letters{{{_HERE}}})", "dead letters"),
                    (f"max(agent_mesh_scheduled{{{_HERE}}})", "scheduled"),
                ),
                description="Tasks of all capabilities that are put aside (`mesh dead-letter list`), and that wait for a time: "
                "retries that back off, and later starts.",
            ),
            Panel(
                title="Tasks that nobody takes",
                unit="short",
                queries=(
                    (
                        f"max by (capability) (agent_mesh_queue_depth{{{_OF}}})"
                        f" * (max by (capability) (agent_mesh_capable_agents{{{_OF}}}) == bool 0)",
                        "{{capability}}",
                    ),
                ),
                description="Tasks that wait where no agent takes such tasks now.",
                alerts=("AgentMeshNobodyTakes",),
            ),
        ),
    ),
    Row(
        title="HTTP",
        answers="Do the coordinators answer, and how soon?",
        panels=(
            Panel(
                title="Requests by status code",
                unit="reqps",
                queries=(
                    ("sum by (code) (rate(agent_mesh_http_requests_total[$__rate_interval]))", "{{code}}"),
                ),
                description="Answers of all coordinators, probes among them.",
                stacked=True,
            ),
            Panel(
                title="Failed requests",
                unit="percentunit",
                queries=((_FAILED_REQUESTS, "failed"),),
                description="Share of the answers of the 5 minutes before that were failures of the coordinators (5xx); probes "
                "do not count.",
                alerts=("AgentMeshRequestsFailing",),
                limit=_limit("AgentMeshRequestsFailing"),
            ),
            Panel(
                title="Request time p95, slowest routes",
                unit="s",
                queries=(
                    (
                        "topk(6, histogram_quantile(0.95, sum by (route, le)"
                        " (rate(agent_mesh_http_request_seconds_bucket[$__rate_interval]))) >= 0)",
                        "{{route}}",
                    ),
                ),
                description="To the end of the answer: a wait for a result (`wait_s`) or for events is in it.",
            ),
            Panel(
                title="Active connections",
                unit="short",
                queries=(("sum by (instance) (agent_mesh_connections)", "{{instance}}"),),
                description="HTTP connections that are open, by coordinator.",
                stacked=True,
            ),
        ),
    ),
    Row(
        title="Coordinators and Redis",
        answers="Is there one leader, does every process reach Redis, and how fast is it?",
        panels=(
            Panel(
                title="Coordinators and leaders",
                unit="short",
                queries=(
                    (f"max(agent_mesh_coordinators{{{_HERE}}})", "coordinators"),
                    (f"sum(agent_mesh_leader{{{_HERE}}})", "leaders"),
                    (f'sum(up{{job="{COORDINATORS}"}})', "answer Prometheus"),
                ),
                description="One leads. What the registry counts and what Prometheus reaches differ where a network is cut.",
                alerts=("AgentMeshNoLeader", "AgentMeshCoordinatorDown"),
            ),
            Panel(
                title="Processes that have lost Redis",
                unit="short",
                queries=(("sum by (job) (agent_mesh_redis_up == bool 0)", "{{job}}"),),
                description="Whose last beat Redis did not answer, or whose beat waits for a second.",
                alerts=("AgentMeshRedisLost",),
            ),
            Panel(
                title="Redis latency, p50 and p99",
                unit="s",
                queries=tuple(
                    (
                        f"histogram_quantile({part}, sum by (job, le)"
                        f" (rate(agent_mesh_redis_latency_seconds_bucket{{{_JOBS}}}[$__rate_interval])))",
                        f"{{{{job}}}} {name}",
                    )
                    for part, name in ((0.5, "p50"), (0.99, "p99"))
                ),
                description="Of beats: one round trip to Redis and its script.",
            ),
        ),
    ),
)

#: Name -> the query of its values.
VARIABLES = {
    "namespace": "label_values(agent_mesh_agents, namespace)",
    "capability": f"label_values(agent_mesh_queue_depth{{{_HERE}}}, capability)",
}
#: What marks the graphs where alerts fired.
ANNOTATED = 'ALERTS{alertname=~"AgentMesh.+",alertstate="firing"}'


def dashboard() -> dict[str, object]:
    """What Grafana imports: the JSON model of schema version 41 (Grafana 12; later ones take it over)."""
    return {
        "uid": "agent-mesh",
        "title": "Agent Mesh",
        "description": "One namespace: its tasks, waits and agents, and the coordinators and Redis that they need.",
        "tags": ["agent-mesh"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": _PROMETHEUS,
                    "enable": True,
                    "iconColor": "red",
                    "expr": ANNOTATED,
                    "step": "60s",
                    "tagKeys": "severity",
                    "titleFormat": "{{alertname}}",
                }
            ]
        },
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, object]]:
    yield {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"}
    for name, query in VARIABLES.items():
        many = name == "capability"
        yield {
            "type": "query",
            "name": name,
            "label": name.capitalize(),
            "datasource": _PROMETHEUS,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # when the time range changes
            "sort": 1,
            "multi": many,
            "includeAll": many,
            **({"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}} if many else {}),
        }


def _panels() -> Iterator[dict[str, object]]:
    top, number = 0, 0
    for index, row in enumerate(ROWS):
        if index:
            number += 1
            place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
            yield {
                "type": "row",
                "id": number,
                "title": row.title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
            top += 1
        kind, height = ("timeseries", _GRAPH_HEIGHT) if index else ("stat", _STAT_HEIGHT)
        width = _COLUMNS // len(row.panels)
        for column, panel in enumerate(row.panels):
            number += 1
            place = {"x": column * width, "y": top, "w": width, "h": height}
            yield {"type": kind, "id": number, "gridPos": place, **_panel(panel, single=not index)}
        top += height


def _panel(panel: Panel, *, single: bool) -> dict[str, object]:
    alerts = [_ALERTS[name] for name in panel.alerts]
    return {
        "title": panel.title,
        "description": "\n\n".join([panel.description, *map(_runbook, alerts)]),
        "datasource": _PROMETHEUS,
        "links": [
            {"title": one.name, "url": f"/alerting/list?search={one.name}", "targetBlank": True}
            for one in alerts
        ],
        "targets": [
            {
                "refId": "ABCDEFGH"[index],
                "datasource": _PROMETHEUS,
                "expr": expr,
                "legendFormat": legend,
                "instant": single,
                "range": not single,
            }
            for index, (expr, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": _field(panel, single=single),
        "options": _SINGLE if single else _GRAPH,
    }


#: A single figure is the present one, and none where there is none: a last one of hours ago would look like it.
_SINGLE = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "colorMode": "value",
    "graphMode": "none",
    "textMode": "value",
}
_GRAPH = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def _runbook(alert: Alert) -> str:
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(alert.steps, 1))
    return f"**{alert.name}** ({alert.severity}, {RUNBOOK}#{alert.name.lower()}): {alert.causes}\n\n{steps}"


def _field(panel: Panel, *, single: bool) -> dict[str, object]:
    defaults: dict[str, object] = {
        "unit": panel.unit,
        "min": 0,
        **({"max": 1} if panel.unit == "percentunit" and panel.low_is_bad else {}),
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        "color": {"mode": "thresholds" if single else "palette-classic"},
        **({"noValue": "–"} if single else {"custom": _line(panel)}),
    }
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for name, colour in (panel.colours or {}).items()
    ]
    return {"defaults": defaults, "overrides": overrides}


def _line(panel: Panel) -> dict[str, object]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 5,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if panel.limit is None else "dashed"},
    }


def _steps(panel: Panel) -> list[dict[str, object]]:
    """Grafana's thresholds: each colour from its value on; `None` is the least."""
    if panel.limit is None:
        return [{"color": "text", "value": None}]
    bad = _COLOURS[_ALERTS[panel.alerts[0]].severity] if panel.alerts else "red"
    below, above = (bad, _GOOD) if panel.low_is_bad else (_GOOD, bad)
    return [{"color": below, "value": None}, {"color": above, "value": panel.limit}]
