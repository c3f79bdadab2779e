"""The rules of Prometheus by its own `promtool`: each alert fires with the series that it is for, and not with others."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from mesh.telemetry.alerts import AGENTS, ALERTS, COORDINATORS, RECORDS, rules
from mesh.telemetry.dashboard import ANNOTATED, ROWS, VARIABLES
from mesh.telemetry.metrics import BY_NAME, PREFIX

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
MINUTES = 30
ONE = 'namespace="default"'
GPU = f'{ONE},capability="gpu"'


class Scene(NamedTuple):
    """Series for half an hour, a value a minute: with those the alert fires, with these it does not."""

    fires: dict[str, str]
    quiet: dict[str, str]


def flat(value: float) -> str:
    return f"{value}+0x{MINUTES}"


def rising(a_minute: float) -> str:
    return f"0+{a_minute}x{MINUTES}"


def tasks(status: str) -> str:
    return f'agent_mesh_tasks_total{{{GPU},status="{status}"}}'


def answers(code: int, route: str = "/v1/cluster") -> str:
    return f'agent_mesh_http_requests_total{{route="{route}",method="GET",code="{code}"}}'


def up(kind: str, job: str = COORDINATORS) -> str:
    return f'{kind}{{job="{job}",instance="c1"}}'


def agents(status: str) -> str:
    return f'agent_mesh_agents{{{ONE},status="{status}"}}'


DEPTH, CAPABLE = f"agent_mesh_queue_depth{{{GPU}}}", f"agent_mesh_capable_agents{{{GPU}}}"
RUN_SUM, RUN_COUNT = (
    f"agent_mesh_task_run_seconds_sum{{{GPU}}}",
    f"agent_mesh_task_run_seconds_count{{{GPU}}}",
)
LEADER = f'agent_mesh_leader{{{ONE},job="{COORDINATORS}",instance="c1"}}'
REFUSED = f"agent_mesh_refused_messages_total{{{GPU}}}"

SCENES = {
    "AgentMeshCoordinatorDown": Scene({up("up"): flat(0)}, {up("up"): flat(1), up("up", AGENTS): flat(0)}),
    "AgentMeshRedisLost": Scene({up("agent_mesh_redis_up"): flat(0)}, {up("agent_mesh_redis_up"): flat(1)}),
    "AgentMeshNoLeader": Scene(
        {LEADER: flat(0), up("agent_mesh_redis_up"): flat(1)},
        {LEADER: flat(0), up("agent_mesh_redis_up"): flat(0)},
    ),
    "AgentMeshNoHealthyAgents": Scene(
        {agents("healthy"): flat(0), agents("unhealthy"): flat(3)}, {agents("healthy"): flat(1)}
    ),
    "AgentMeshTasksFailing": Scene(
        {tasks("succeeded"): rising(85), tasks("failed"): rising(10), tasks("timed_out"): rising(5)},
        {tasks("succeeded"): rising(95), tasks("failed"): rising(5), tasks("cancelled"): rising(500)},
    ),
    "AgentMeshAgentsDegraded": Scene(
        {agents("degraded"): flat(1), agents("healthy"): flat(9)},
        {agents("healthy"): flat(9), agents("offline"): flat(4), agents("draining"): flat(1)},
    ),
    "AgentMeshNobodyTakes": Scene({DEPTH: flat(1), CAPABLE: flat(0)}, {DEPTH: flat(400), CAPABLE: flat(1)}),
    "AgentMeshQueueLong": Scene({DEPTH: flat(501)}, {DEPTH: flat(500)}),
    "AgentMeshTasksSlow": Scene(
        {RUN_SUM: rising(3100), RUN_COUNT: rising(10)}, {RUN_SUM: rising(2900), RUN_COUNT: rising(10)}
    ),
    "AgentMeshRequestsFailing": Scene(
        {answers(200): rising(90), answers(503): rising(10)},
        {answers(200): rising(90), answers(404): rising(50), answers(503, "/health/ready"): rising(60)},
    ),
    "AgentMeshMessagesRefused": Scene({REFUSED: f"0+0x{MINUTES - 5} 1+0x4"}, {REFUSED: f"5+0x{MINUTES}"}),
}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    return found


def run(*words: str, folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_scene_that_fires_it_and_one_that_does_not() -> None:
    assert set(SCENES) == {one.name for one in ALERTS}


@pytest.mark.ci
def test_alerts_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules()))

    def case(name: str, series: dict[str, str], firing: int) -> dict[str, object]:
        expr = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
        samples = [{"labels": "{}", "value": firing}] if firing else []
        return {
            "interval": "1m",
            "name": f"{name} {'fires' if firing else 'is quiet'}",
            "input_series": [{"series": one, "values": values} for one, values in series.items()],
            "promql_expr_test": [{"expr": expr, "eval_time": f"{MINUTES - 2}m", "exp_samples": samples}],
        }

    cases = [case(name, scene.fires, 1) for name, scene in SCENES.items()]
    cases += [case(name, scene.quiet, 0) for name, scene in SCENES.items()]
    text = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(text))
    run(promtool, "test", "rules", "tests.yml", folder=tmp_path)


def test_a_rule_that_never_fires_is_found(promtool: str, tmp_path: Path) -> None:
    """Teeth of the test above."""
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules()).replace("> 500", "> 5000"))
    text = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": DEPTH, "values": flat(501)}],
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertname="AgentMeshQueueLong",alertstate="firing"})',
                        "eval_time": "20m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(text))
    with pytest.raises(AssertionError):
        run(promtool, "test", "rules", "tests.yml", folder=tmp_path)


def test_the_shipped_files_are_valid(promtool: str, tmp_path: Path) -> None:
    for one in DEPLOY.glob("*.yml"):
        shutil.copy(one, tmp_path)
    (tmp_path / "token").write_text("a token")
    run(promtool, "check", "config", "prometheus.yml", folder=tmp_path)


def test_rules_and_the_dashboard_name_only_metrics_and_labels_that_there_are() -> None:
    suffixes = ("", "_bucket", "_sum", "_count")
    known = {f"{row.full_name}{suffix}": {*row.labels} for row in BY_NAME.values() for suffix in suffixes}
    known |= {
        one.name: set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", one.expr)))) for one in RECORDS
    }
    exprs = [(one.name, one.expr) for one in (*RECORDS, *ALERTS)]
    exprs += [(panel.title, expr) for row in ROWS for panel in row.panels for expr, _ in panel.queries]
    exprs += [*VARIABLES.items(), ("annotation", ANNOTATED)]
    for where, expr in exprs:
        found = re.findall(r"(agent_mesh[\w:]*)(?:{([^{}]*)})?", expr)
        for name, matchers in found:
            assert name in known, f"{where}: {name}"
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))
            assert labels <= known[name] | {"job"}, f"{where}: {labels}"
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \((.*?)\)", expr))))
        there = set().union(*(known[name] for name, _ in found))
        assert grouped <= there | {"le", "job", "instance"}, f"{where}: {grouped}"


def test_names_are_as_prometheus_wants_them() -> None:
    for row in BY_NAME.values():
        assert row.full_name.startswith(PREFIX) and re.fullmatch(r"[a-z_]+", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        assert row.kind != "histogram" or row.name.endswith("_seconds")
        assert not {"task", "task_id", "agent", "agent_id"} & set(row.labels)
