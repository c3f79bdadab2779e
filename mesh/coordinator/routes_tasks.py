"""Routes: looking at tasks, waiting for them, cancelling them, running them again; dead letters.

An id may contain slashes (percent-encoded or not), so the routes that end in a word come before the one that ends in the id.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from mesh.coordinator import models, openapi, problems
from mesh.coordinator.access import Call, Needs, Reads, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import FrontOf, posted
from mesh.core.states import HELD, State
from mesh.errors import Invalid, MeshError
from mesh.services import dead_letters, explaining, listing, views
from mesh.services import tasks as task_services
from mesh.store.store import Store

router = APIRouter(prefix="/v1/namespaces/{namespace}", default_response_class=Json)

_ID = "2f8c7a52-6f0b-4c7e-9a53-0c8f1f0a9b11"
TaskId = Annotated[str, Path(description="Id of the task.", examples=[_ID], min_length=1)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=300)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Length of a page.")]
Since = Annotated[
    datetime.datetime | None,
    Query(description="Submitted then or later: ISO 8601, UTC unless it says otherwise."),
]
Letters = Right(action="administer", what="dead-letters")
_ENDED = {"id": _ID, "state": "succeeded", "result": 42}


def ms_of(since: datetime.datetime | None) -> int | None:
    """Milliseconds since 1970."""
    if since is None:
        return None
    return int((since if since.tzinfo else since.replace(tzinfo=datetime.UTC)).timestamp() * 1000)


def _whose(call: Call) -> str | None:
    """Whose tasks the caller may see; None: everybody's."""
    return None if call.may("read") else call.subject


@router.get("/tasks", tags=["tasks"], summary="List tasks", responses=openapi.answers(models.TaskList))
def list_tasks(
    call: Reads,
    state: State | None = None,
    type: str | None = None,
    capability: str | None = None,
    agent: str | None = None,
    since: Since = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """The newest first, as far as the newest 10,000 go; who reads only his own sees these."""
    found, following = listing.tasks(
        call.store, state=state, type=type, capability=capability, agent=agent, by=_whose(call), since_ms=ms_of(since),
        cursor=cursor, limit=limit,
    )  # fmt: skip
    return Json({"tasks": found, "next_cursor": following})


@router.post(
    "/tasks:wait",
    tags=["tasks"],
    summary="Wait for many tasks",
    responses=openapi.answers(models.WaitAnswer, example={"ended": [_ENDED]}),
    openapi_extra=openapi.takes(
        models.WaitBody, examples={"two": {"ids": [_ID, "invoice-77"], "wait_s": 20}}
    ),
)
async def wait(
    request: Request, call: Reads, front: FrontOf, body: Annotated[models.WaitBody, posted(models.WaitBody)]
) -> Response:
    """Answers as soon as one at least has ended, with all that have; with none of them after `wait_s`."""
    ids = list(dict.fromkeys(body.ids))
    there = await run_in_threadpool(call.need_tasks, "read", ids)
    unknown = [{"id": one, "state": None} for one in ids if one not in set(there)]
    ended, _ = await front.waiting.ended(
        call.store, there, 0 if unknown else body.wait_s, request, call.valid
    )
    call.check()
    return Json({"ended": [*ended.values(), *unknown]})


@router.get(
    "/tasks/{task_id:path}/attempts",
    tags=["tasks"],
    summary="How often a task was tried",
    responses=openapi.answers(models.Attempts),
)
def attempts(call: Reads, task_id: TaskId) -> Response:
    """What the record holds of its attempts."""
    call.need_task("read", task_id)
    return Json(views.attempts(task_services.get(call.store, task_id)))


@router.get(
    "/tasks/{task_id:path}/result",
    tags=["tasks"],
    summary="Wait for a result",
    responses=openapi.answers(
        models.End, example=_ENDED, _202=(models.Started, {"id": _ID, "state": "running"})
    ),
)
async def result(
    request: Request,
    call: Reads,
    front: FrontOf,
    task_id: TaskId,
    wait_s: Annotated[
        float,
        Query(ge=0, le=models.MAX_WAIT_S, description="How long to wait for the end.", allow_inf_nan=False),
    ] = 0,
) -> Response:
    """200 once it has ended, well or not; 202 if it has not within `wait_s` seconds."""
    await run_in_threadpool(call.need_task, "read", task_id)
    ended, under_way = await front.waiting.ended(call.store, [task_id], wait_s, request, call.valid)
    call.check()
    if task_id not in ended:
        return Json({"id": task_id, "state": under_way[task_id]}, 202)
    if ended[task_id]["state"] is None:
        raise task_services.missing(call.store, task_id)
    return Json(ended[task_id])


@router.get(
    "/tasks/{task_id:path}/why",
    tags=["tasks"],
    summary="Why a task is where it is",
    responses=openapi.answers(models.Why),
)
def why(call: Reads, task_id: TaskId) -> Response:
    """Its place in the queue, who could take it and why the others would not, when it should start, what would change that.

    Who may not see all agents gets '' in place of the ids of others.
    """
    call.need_task("read", task_id)
    return Json(explaining.why(call.store, task_id, only=None if call.may("read") else call.subject))


@router.get(
    "/tasks/{task_id:path}",
    tags=["tasks"],
    summary="Look at a task",
    responses=openapi.answers(models.TaskView),
)
def get(call: Reads, task_id: TaskId) -> Response:
    """All that is recorded of it, and its progress while it runs."""
    store = call.store
    call.need_task("read", task_id)
    record = task_services.get(store, task_id)
    told = store.tasks.outcome(task_id)[2] if record.state in HELD else None
    return Json({**views.task(record), "progress": views.progress(told)})


@router.post(
    "/tasks/{task_id:path}:cancel",
    tags=["tasks"],
    summary="Cancel a task",
    responses=openapi.answers(
        models.Cancellation, example={"id": _ID, "state": "cancelled", "cancelled": True}
    ),
    openapi_extra=openapi.takes(
        models.CancelBody, examples={"why": {"reason": "not needed any more"}}, required=False
    ),
)
def cancel(
    call: Annotated[Call, Needs(Right(action="cancel", each=True))],
    task_id: TaskId,
    body: Annotated[models.CancelBody, posted(models.CancelBody, optional=True)],
) -> Response:
    """Wherever it is; one that has ended stays as it is."""
    store = call.store
    call.need_task("cancel", task_id)
    done = task_services.cancel(store, task_id, body.reason)
    call.note(f"task {task_id}", why="" if done else "it had ended")
    return Json({"id": task_id, "state": str(task_services.get(store, task_id).state), "cancelled": done})


@router.post(
    "/tasks/{task_id:path}:retry",
    tags=["tasks"],
    summary="Run a task again",
    status_code=202,
    responses=openapi.answers(models.Started, 202, {"id": _ID, "state": "queued"}),
)
def retry(
    call: Annotated[Call, Needs(Right(action="submit", each=True, verb="retry"))], task_id: TaskId
) -> Response:
    """A new run of a task that has ended otherwise than well, under the same id. Of another's task, this is to replay it."""
    store = call.store
    record = task_services.get(store, task_id)
    if record.other.get("by") != call.subject:
        call.need(Letters.action, Letters.what, about=f"task {task_id}")
    call.need("submit", record.type, about=f"task {task_id}")
    task_services.retry(store, task_id)
    call.note(f"task {task_id}")
    return Json({"id": task_id, "state": str(task_services.get(store, task_id).state)}, 202)


# -- dead letters


@router.get(
    "/dead-letters",
    tags=["dead letters"],
    summary="List dead letters",
    responses=openapi.answers(models.DeadLetterList),
)
def list_dead_letters(
    call: Reads,
    type: str | None = None,
    capability: str | None = None,
    reason: str | None = None,
    since: Since = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """Tasks that were put aside, the newest first; who reads only his own sees these."""
    found, following = listing.dead_letters(
        call.store,
        type=type,
        capability=capability,
        reason=reason,
        by=_whose(call),
        since_ms=ms_of(since),
        cursor=cursor,
        limit=limit,
    )
    return Json({"dead_letters": found, "next_cursor": following})


_LETTERS = {
    "by id": {"ids": [_ID]},
    "by filter": {"type": "data-processing", "reason": "poison"},
    "all": {"all": True},
}
_HANDLED = {"ids": [_ID], "refused": [], "more": False}


def _selected(store: Store, body: models.DeadLetterBody) -> tuple[list[str], bool]:
    filtered = any(one is not None for one in (body.type, body.capability, body.reason, body.since))
    if bool(body.ids) + filtered + body.all != 1:
        raise Invalid(
            "Say which dead letters: ids, or a filter (type, capability, reason, since), or all: true."
        )
    return dead_letters.select(
        store,
        ids=body.ids,
        type=body.type,
        capability=body.capability,
        reason=body.reason,
        since_ms=ms_of(body.since),
    )


def _handled(call: Call, ids: list[str], refused: list[tuple[str, MeshError]], more: bool) -> Response:
    for one in ids:
        call.note(f"task {one}")
    said: list[dict[str, Any]] = [{"id": one, "problem": problems.document(error)} for one, error in refused]
    return Json({"ids": ids, "refused": said, "more": more})


@router.post(
    "/dead-letters:replay",
    tags=["dead letters"],
    summary="Run dead letters again",
    responses=openapi.answers(models.DeadLetterAnswer, example=_HANDLED),
    openapi_extra=openapi.takes(models.DeadLetterBody, examples=_LETTERS),
)
def replay(
    call: Annotated[Call, Needs(replace(Letters, verb="replay"))],
    body: Annotated[models.DeadLetterBody, posted(models.DeadLetterBody)],
) -> Response:
    """A new run of each, under the same id; at most 1,000 in a call."""
    ids, more = _selected(call.store, body)
    return _handled(call, *dead_letters.replay(call.store, ids), more)


@router.post(
    "/dead-letters:discard",
    tags=["dead letters"],
    summary="Take dead letters off the list",
    responses=openapi.answers(models.DeadLetterAnswer, example=_HANDLED),
    openapi_extra=openapi.takes(models.DeadLetterBody, examples=_LETTERS),
)
def discard(
    call: Annotated[Call, Needs(replace(Letters, verb="discard"))],
    body: Annotated[models.DeadLetterBody, posted(models.DeadLetterBody)],
) -> Response:
    """At most 1,000 in a call. What is recorded of them can be read until its retention ends."""
    ids, more = _selected(call.store, body)
    return _handled(call, *dead_letters.discard(call.store, ids), more)
