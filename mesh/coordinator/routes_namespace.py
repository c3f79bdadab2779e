"""Routes: agents, capabilities, queues, task types and events of a namespace; the cluster."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from mesh import __version__
from mesh.coordinator import models, openapi
from mesh.coordinator.access import Call, MeshNeeds, Needs, Reads, ReadsAll, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import FrontOf, decode, posted, read
from mesh.coordinator.routes_tasks import Cursor, Limit, Since, ms_of
from mesh.core.agents import AgentInfo, Health
from mesh.core.names import check_name
from mesh.core.replay import Change
from mesh.core.tokens import EVERY
from mesh.errors import NotFound
from mesh.services import agents as agent_services
from mesh.services import audit, capacity, forecast, listing, views
from mesh.services import restore as restores
from mesh.services import top as top_services
from mesh.services import types as type_services
from mesh.store.store import Store

router = APIRouter(prefix="/v1/namespaces/{namespace}", default_response_class=Json)
cluster_router = APIRouter(prefix="/v1", default_response_class=Json)

Capability = Annotated[
    str, Path(description="Its name; `gpu+ocr` for what needs both.", examples=["data-processing"])
]
Within = Annotated[int, Query(ge=1, le=86_400, description="Seconds in which what waits is to have started.")]
AgentId = Annotated[str, Path(description="Id of the agent.", examples=["worker-1"])]

_LABELS = ("agent", "namespace", "region", "capabilities")
_TARGETS = "Agents that have not left: {targets: [address], labels: {__meta_agent_mesh_...: text}} each."
_TARGETS_CONTENT = {
    "application/json": {
        "schema": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["targets", "labels"],
                "properties": {
                    "targets": {"type": "array", "items": {"type": "string"}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
            },
        },
        "example": [
            {
                "targets": ["10.0.0.7:3001"],
                "labels": {
                    f"__meta_agent_mesh_{name}": value
                    for name, value in zip(_LABELS, ("worker-1", "default", "", "gpu,ocr"), strict=True)
                },
            }
        ],
    }
}


@router.get("/agents", tags=["agents"], summary="List agents", responses=openapi.answers(models.AgentList))
def list_agents(
    call: Reads, capability: str | None = None, status: Health | None = None, region: str | None = None
) -> Response:
    """From the live registry, with how many there are of each health; one that has left is seen as offline for a day. An agent
    that reads only its own sees itself."""
    found = agent_services.discover(call.store, capability=capability, status=status, region=region)
    if not call.may("read"):
        found = [agent for agent in found if agent.id == call.subject]
    return Json({"agents": [agent.to_json() for agent in found], "counts": agent_services.counts(found)})


def _agent(store: Store, agent_id: str) -> AgentInfo:
    for agent in agent_services.discover(store):
        if agent.id == agent_id:
            return agent
    raise NotFound(f"There is no agent {agent_id!r} in namespace {store.settings.namespace!r}.")


@router.get(
    "/agents/{agent_id}",
    tags=["agents"],
    summary="Look at an agent",
    responses=openapi.answers(models.AgentView),
)
def get_agent(call: Reads, agent_id: AgentId) -> Response:
    """Its registration and its health."""
    call.need("read", owner=agent_id, about=f"agent {agent_id}")
    return Json(_agent(call.store, agent_id).to_json())


@router.post(
    "/agents/{agent_id}:cordon",
    tags=["agents"],
    summary="Cordon an agent",
    responses=openapi.answers(models.AgentView),
)
def cordon(
    call: Annotated[Call, Needs(Right(action="drain", each=True, verb="cordon"))], agent_id: AgentId
) -> Response:
    """It gets no new work; what waited for it alone goes to the others."""
    call.need("drain", owner=agent_id, about=f"agent {agent_id}")
    agent_services.cordon(call.store, agent_id, True)
    call.note(f"agent {agent_id}")
    return Json(_agent(call.store, agent_id).to_json())


@router.post(
    "/agents/{agent_id}:uncordon",
    tags=["agents"],
    summary="Uncordon an agent",
    responses=openapi.answers(models.AgentView),
)
def uncordon(
    call: Annotated[Call, Needs(Right(action="drain", each=True, verb="uncordon"))], agent_id: AgentId
) -> Response:
    """It gets work again. One that drains does not (409): that is not taken back."""
    call.need("drain", owner=agent_id, about=f"agent {agent_id}")
    agent_services.cordon(call.store, agent_id, False)
    call.note(f"agent {agent_id}")
    return Json(_agent(call.store, agent_id).to_json())


@router.post(
    "/agents/{agent_id}:drain",
    tags=["agents"],
    summary="Drain an agent",
    status_code=202,
    responses=openapi.answers(models.AgentView, 202),
)
def drain(
    call: Annotated[Call, Needs(Right(action="drain", each=True))],
    agent_id: AgentId,
    body: Annotated[models.DrainBody, posted(models.DrainBody, optional=True)],
) -> Response:
    """It gives back what it has not started, and finishes what it runs, within its time of grace; then it leaves."""
    call.need("drain", owner=agent_id, about=f"agent {agent_id}")
    agent_services.drain(call.store, agent_id, body.grace_ms)
    call.note(f"agent {agent_id}")
    return Json(_agent(call.store, agent_id).to_json(), 202)


@router.get(
    "/capabilities",
    tags=["queues"],
    summary="List capabilities",
    responses=openapi.answers(
        models.CapabilityList,
        example={
            "capabilities": [
                {
                    "capability": "data-processing", "agents": 2, "slots": 8, "free_slots": 3, "backlog": 120,
                    "scheduled": 0, "running": 5, "oldest_age_ms": 4200, "p95_run_ms": 1750.0,
                }
            ]
        },
    ),
)  # fmt: skip
def list_capabilities(call: ReadsAll) -> Response:
    """Who offers each, and what waits for it: what an autoscaler needs."""
    return Json({"capabilities": listing.capabilities(call.store)})


@router.get(
    "/capabilities/{capability}",
    tags=["queues"],
    summary="Look at a capability",
    responses=openapi.answers(
        models.Demand,
        example={
            "capability": "ocr", "agents": 2, "slots": 8, "free_slots": 0, "backlog": 120, "scheduled": 0, "running": 8,
            "oldest_age_ms": 4200, "mean_run_ms": 30000.0, "within_s": 300, "slots_wanted": 12, "agents_wanted": 3,
        },
    ),
)  # fmt: skip
def get_capability(call: ReadsAll, capability: Capability, within_s: Within = capacity.WITHIN_S) -> Response:
    """What waits for it and who offers it, as an autoscaler reads it: see docs/scaling.md. Of a name that nobody has used yet all
    numbers are 0."""
    return Json(capacity.demand(call.store, capability, within_s=within_s))


@router.get(
    "/capacity", tags=["queues"], summary="Advise on capacity", responses=openapi.answers(models.Capacity)
)
def get_capacity(call: ReadsAll, within_s: Within = capacity.WITHIN_S) -> Response:
    """How many agents and coordinators to add, and why: what `mesh capacity` tells."""
    return Json(capacity.advice(call.store, within_s=within_s))


@router.get(
    "/capacity/replay",
    tags=["queues"],
    summary="Replay the history with other agents",
    responses=openapi.answers(models.Replayed),
)
def get_replay(
    call: ReadsAll,
    agents: Annotated[
        int | None, Query(ge=0, le=100_000, description="So many agents, as big as now.")
    ] = None,
    slots: Annotated[int | None, Query(ge=0, le=1_000_000, description="So many slots instead.")] = None,
    without_region: Annotated[str | None, Query(description="No agent of that region.")] = None,
    requires: Annotated[
        str, Query(description="Of the agents that offer these: `a,b`. The others stay.")
    ] = "",
) -> Response:
    """How long the newest 3,000 tasks would have waited: arrivals and run times replayed by the rules of who takes what."""
    offered = frozenset(check_name("capability", part) for part in requires.split(",") if part)
    change = Change(agents=agents, slots=slots, without_region=without_region, requires=offered)
    return Json(forecast.forecast(call.store, change))


@router.get(
    "/metrics-targets",
    tags=["agents"],
    summary="List the agents for Prometheus",
    responses={**openapi.answers(None), 200: {"description": _TARGETS, "content": _TARGETS_CONTENT}},
)
def list_targets(call: ReadsAll) -> Response:
    """The agents that have not left, as Prometheus' HTTP service discovery wants it; see docs/metrics.md."""
    found = [agent for agent in agent_services.discover(call.store) if agent.status is not Health.OFFLINE]
    return Json(
        [
            {
                "targets": [f"{agent.address}:{agent.port}"],
                "labels": {
                    f"__meta_agent_mesh_{name}": value
                    for name, value in zip(
                        _LABELS,
                        (agent.id, agent.namespace, agent.region or "", ",".join(agent.capabilities)),
                        strict=True,
                    )
                },
            }
            for agent in found
        ]
    )


@router.get("/queues", tags=["queues"], summary="List queues", responses=openapi.answers(models.QueueList))
def list_queues(call: ReadsAll) -> Response:
    """A queue holds the tasks of one requirement."""
    return Json({"queues": listing.queues(call.store)})


@router.get("/top", tags=["queues"], summary="Look at a namespace", responses=openapi.answers(models.Top))
def top(call: ReadsAll) -> Response:
    """Agents, queues, times and failures in one answer of bounded size: what `mesh top` asks for."""
    return Json(top_services.counted(call.store))


@router.get("/types", tags=["queues"], summary="List task types", responses=openapi.answers(models.TypeList))
def list_types(call: Reads) -> Response:
    """The types that agents have advertised, with the schemas of their payloads; who reads only his own sees those that he may
    submit."""
    found = type_services.advertised(call.store)
    everything = call.may("read")
    return Json({"types": [info.to_json() for info in found if everything or call.may("submit", info.name)]})


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `task` (one has ended), `counts` (tasks by state), `missed` (so many ends were left out).",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/events",
    tags=["events"],
    summary="Follow a namespace",
    response_class=StreamingResponse,
    responses={**openapi.answers(None), **_STREAM},
)
async def events(call: ReadsAll, front: FrontOf) -> Response:
    """Server-sent events: each end of a task, and how many tasks are in each state whenever that changes. The
    stream ends with the token."""
    front.events.check()
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(
        front.events.stream(call.store, call.valid), media_type="text/event-stream", headers=headers
    )


_RESTORE = {
    "namespace": "prod",
    "agents": [
        {
            "id": "w1", "name": "w1", "type": "worker", "namespace": "prod", "capabilities": ["ocr"], "region": None,
            "labels": {}, "cordoned": False, "absent": False,
        }
    ],
    "tasks": "requeue",
}  # fmt: skip


@cluster_router.post(
    "/snapshots:restore",
    tags=["cluster"],
    summary="Restore a namespace",
    responses=openapi.answers(models.RestoreReport),
    openapi_extra=openapi.takes(models.RestoreBody, examples={"requeue": _RESTORE}),
)
async def restore(
    request: Request,
    call: Annotated[Call, MeshNeeds(Right(action="administer", what="restore", each=True, verb="restore"))],
    front: FrontOf,
    dry_run: bool = False,
) -> Response:
    """The registry, offline, from its backup; no lease or attempt of before counts any more, and what had not ended is failed or
    queued again. `dry_run=true` only tells. If it breaks off, call it again: it goes on."""
    call.need_somewhere("administer", "restore")  # before it sends that much
    raw = await read(request, front.batch_limit)
    body = await run_in_threadpool(decode, _restoration, raw)
    there = call.at(body.namespace)
    there.need("administer", "restore", about=f"namespace {body.namespace}")
    report = await run_in_threadpool(_restore, there.store, body, dry_run)
    if not dry_run:
        there.note(f"namespace {body.namespace}", why=f"tasks: {body.tasks or 'fail'}")
    return Json(report)


_restoration = msgspec.json.Decoder(models.RestoreBody)


def _restore(store: Store, body: models.RestoreBody, dry_run: bool) -> dict[str, Any]:
    rows = restores.check_rows(body.agents, body.namespace)
    return restores.restore(store, rows, tasks=body.tasks, dry_run=dry_run)


@cluster_router.get(
    "/cluster", tags=["cluster"], summary="Look at the cluster", responses=openapi.answers(models.ClusterView)
)
def cluster(call: Annotated[Call, MeshNeeds(Right(action="read"))], front: FrontOf) -> Response:
    """The coordinators and who of them leads, regions, Redis's durability, versions: of the coordinator's own namespace."""
    return Json(views.cluster(front.coordinator.store, __version__))


@cluster_router.get(
    "/audit", tags=["cluster"], summary="Read the audit log", responses=openapi.answers(models.AuditList)
)
def read_audit(
    call: Annotated[Call, MeshNeeds(Right(action="administer", what="audit", each=True, verb="audit"))],
    subject: str | None = None,
    action: str | None = None,
    allowed: bool | None = None,
    since: Since = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """Who did or was refused what, the newest first: in the namespaces that the token names."""
    spaces = call.identity.claims.namespaces
    for namespace in spaces:
        call.need("administer", "audit", namespace=namespace, about="audit log")
    found, following = audit.entries(
        call.store.client, subject=subject, action=action, allowed=allowed, since_ms=ms_of(since),
        namespaces=None if EVERY in spaces else spaces, cursor=cursor, limit=limit,
    )  # fmt: skip
    return Json({"entries": found, "next_cursor": following})
