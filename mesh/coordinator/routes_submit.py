"""Routes: submitting tasks, one or many, and asking first."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from mesh.coordinator import models, openapi, problems
from mesh.coordinator.access import Call, Needs, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import BODY, FrontOf, decode, decode_part, front_of, posted, read
from mesh.coordinator.submitting import accept, options_of
from mesh.coordinator.traced import told_trace
from mesh.core import strict_json
from mesh.core.tracing import TRACEPARENT, TRACESTATE, Trace
from mesh.errors import Invalid, MeshError
from mesh.services import agents as agent_services
from mesh.services import explaining
from mesh.services import tasks as task_services
from mesh.telemetry.spans import Sending
from mesh.telemetry.tracing import continuing, current

router = APIRouter(prefix="/v1/namespaces/{namespace}", tags=["tasks"], default_response_class=Json)

_EXAMPLE = {
    "type": "data-processing",
    "payload": {"data": "example"},
    "priority": 7,
    "labels": {"team": "billing"},
}
_ACCEPTED = {"id": "2f8c7a52-6f0b-4c7e-9a53-0c8f1f0a9b11", "state": "queued", "queue": "data-processing"}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The id of the task; the same as `task_id` in the body.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}
_TRACE: tuple[dict[str, Any], ...] = tuple(
    {"name": name, "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
    for name, meaning in (
        (
            TRACEPARENT,
            "The caller's trace (W3C trace context), which the tasks continue. A malformed one is ignored.",
        ),
        (TRACESTATE, "What vendors add to it; at most 512 characters are handed on."),
    )
)
SUBMIT = Right(action="submit", each=True)
_submission = msgspec.json.Decoder(models.Submission)
_batch = msgspec.json.Decoder(models.Batch)
_bulk = msgspec.json.Decoder(models.Bulk)


@router.post(
    "/tasks",
    status_code=202,
    summary="Submit a task",
    responses=openapi.answers(models.Accepted, 202, _ACCEPTED),
    openapi_extra=openapi.takes(models.Submission, examples={"plain": _EXAMPLE}, parameters=(_KEY, *_TRACE)),
)
async def submit(request: Request, call: Annotated[Call, Needs(SUBMIT)]) -> Response:
    """Accepted once Redis has it. With an id of your own, a repetition changes nothing and tells the task's present state."""
    return await submit_to(call, request)


async def submit_to(call: Call, request: Request) -> Response:
    """What the route above does; see `mesh.coordinator.shortcut`."""
    front = front_of(request)
    body = decode(_submission, await read(request, front.single_limit))
    key = request.headers.get("idempotency-key")
    if key is not None:
        if body.task_id is not None and body.task_id != key:
            raise Invalid(
                "The header Idempotency-Key and task_id in the body differ: give one of them, or the same twice."
            )
        body = msgspec.structs.replace(body, task_id=key)
    call.need_submit(body.type, body.payload)
    with Sending(_trace_of(request)) as sending:
        answer = await front.submitter.submit(call.store, body, call.subject, sending.trace)
        sending.told(answer["queue"], answer["id"], body.type)
    return Json(answer, 202)


def _trace_of(request: Request) -> Trace | None:
    """The trace that a request continues: the span of the request itself, if there is one."""
    return current() or told_trace(request.headers)


class _Which(msgspec.Struct):
    tasks: msgspec.Raw = msgspec.Raw()
    payloads: msgspec.Raw = msgspec.Raw()


class _RawBatch(msgspec.Struct, forbid_unknown_fields=True):
    tasks: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=models.MAX_BATCH)]


_which = msgspec.json.Decoder(_Which)
_raw_batch = msgspec.json.Decoder(_RawBatch)
_READS = asyncio.Semaphore(16)  # and read by so many
_TURNS = asyncio.Semaphore(2)  # big bodies are decoded by two at once at most: memory


@router.post(
    "/tasks:batch",
    summary="Submit many tasks",
    responses=openapi.answers(
        models.BatchAnswer, example={"items": [_ACCEPTED]}, otherwise=models.BulkAnswer
    ),
    openapi_extra=openapi.takes(
        models.Batch,
        models.Bulk,
        examples={
            "different tasks": {"tasks": [_EXAMPLE]},
            "one type": {"type": "data-processing", "payloads": [{"data": 1}, {"data": 2}]},
        },
        parameters=_TRACE,
    ),
)
async def batch(request: Request, call: Annotated[Call, Needs(SUBMIT)], front: FrontOf) -> Response:
    """Up to 10,000 tasks: `tasks`, with an answer for each, or `type` and `payloads`, with an id for each."""
    async with _READS:
        raw = await read(request, front.batch_limit)
        async with _TURNS:
            return Json(await run_in_threadpool(_publish, call, raw, _trace_of(request)))


def _publish(call: Call, raw: bytes, trace: Trace | None) -> dict[str, Any]:
    strict_json.check(raw, BODY)
    which = decode_part(_which, raw, BODY)
    compact = memoryview(which.payloads).nbytes > 0
    if compact == (memoryview(which.tasks).nbytes > 0):
        raise Invalid("The request body must have either tasks, or type and payloads.")
    if compact:
        with continuing(trace):
            return _publish_bulk(call, decode_part(_bulk, raw, BODY))
    try:
        bodies: list[models.Submission | MeshError] = list(_batch.decode(raw).tasks)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        bodies = _one_by_one(raw)
    for index, body in enumerate(bodies):
        if isinstance(body, models.Submission):
            try:
                call.need_submit(body.type, body.payload)
            except MeshError as error:
                bodies[index] = error
    with Sending(trace) as sending:
        answers = accept(call.store, bodies, [call.subject] * len(bodies), [sending.trace] * len(bodies))
        sending.told("(several)", None, "(several)", len(bodies))
    return {"items": [problems.document(one) if isinstance(one, MeshError) else one for one in answers]}


def _one_by_one(raw: bytes) -> list[models.Submission | MeshError]:
    """The tasks of a batch in which something is wrong: what is wrong with one is that one's answer."""
    bodies: list[models.Submission | MeshError] = []
    for one in decode_part(_raw_batch, raw, BODY).tasks:
        try:
            bodies.append(decode_part(_submission, one, "This task"))
        except Invalid as error:
            bodies.append(error)
    return bodies


def _publish_bulk(call: Call, body: models.Bulk) -> dict[str, Any]:
    call.need_submit(body.type, *body.payloads)
    store, options = call.store, options_of(body)
    queue = task_services.requirement(store, body.type, options.requires)
    warning = agent_services.unmet_warning(store, body.type, queue, body.unsatisfiable)
    ids = task_services.submit_many(store, body.type, body.payloads, options, call.subject)
    return {"ids": ids, "queue": queue, **({} if warning is None else {"warning": warning})}


@router.post(
    "/tasks:explain",
    summary="Ask who could take a task",
    responses=openapi.answers(
        models.Explanation,
        example={
            "queue": "data-processing",
            "capable": ["worker-1"],
            "not_capable": [{"agent": "worker-2", "why": "it is cordoned"}],
            "ahead": 12,
            "free_slots": 0,
            "agents": [
                {
                    "agent": "worker-1", "capable": True, "why": "all its slots are full (4 of 4)", "slots": 4,
                    "free_slots": 0,
                },
                {"agent": "worker-2", "capable": False, "why": "it is cordoned", "slots": 4, "free_slots": 4},
            ],
            "expected_start_ms": 6500,
            "expected_start_at": "2026-01-31T12:00:06.500+00:00",
            "expected_start_how": "12 tasks are served before it, ...",
            "advice": ["Uncordon worker-2: mesh agent uncordon worker-2."],
            "warning": None,
        },
    ),
    openapi_extra=openapi.takes(
        models.Submission, examples={"plain": {"type": "data-processing", "requires": ["gpu"]}}
    ),
)  # fmt: skip
def explain(
    call: Annotated[Call, Needs(Right(action="submit", each=True, verb="explain"))],
    body: Annotated[models.Submission, posted(models.Submission)],
) -> Response:
    """Nothing is submitted: who could take it, when it would start, what would have it start sooner.

    Who may not see all agents gets '' in place of the ids of others.
    """
    call.need_submit(body.type, body.payload)
    only = None if call.may("read") else call.subject
    return Json(explaining.explain(call.store, body.type, options_of(body), only=only))
