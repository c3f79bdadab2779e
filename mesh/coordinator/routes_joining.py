"""Routes of agents that join over HTTP. They show join tokens, which open nothing else."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from mesh.coordinator import models, openapi
from mesh.coordinator.access import Call, Needs, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import posted
from mesh.errors import Invalid
from mesh.services import joining
from mesh.services.joining import Beat

router = APIRouter(prefix="/v1/namespaces/{namespace}/agents", default_response_class=Json, tags=["joining"])

AgentId = Annotated[str, Path(description="Id of the agent.", examples=["worker-1"])]
Life = Annotated[str, Query(description="What the answer to its joining called `life`.")]


def _right(verb: str) -> Any:
    return Needs(Right(action="register", each=True, verb=verb, kind="join"))


def _public_key(text: str) -> bytes:
    try:
        key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != 32:
        raise Invalid("public_key must be an Ed25519 key: 32 bytes in base64url.")
    return key


def _may_register(call: Call, capabilities: tuple[str, ...], agent_id: str) -> None:
    for capability in capabilities:
        call.need("register", capability, about=f"agent {agent_id}, capability {capability}")


@router.post(
    "",
    summary="Join as an agent",
    status_code=201,
    responses=openapi.answers(models.Membership, 201),
)
def join(
    call: Annotated[Call, _right("join")], body: Annotated[models.JoinBody, posted(models.JoinBody)]
) -> Response:
    """With a join token. The agent gets access to Redis, the keys of the tasks that it may take, and a certificate for its own
    key. 409 while an agent of this id lives."""
    key = _public_key(body.public_key)
    _may_register(call, body.capabilities, body.id)
    answer = joining.join(
        call.front.issuer, call.store, body.id, call.identity.claims, body.capabilities, key
    )
    call.note(f"agent {body.id}", why=f"reach {answer['granted']['redis']['reach']}")
    return Json(answer, 201)


@router.put(
    "/{agent_id}/heartbeat",
    summary="Stay an agent",
    responses=openapi.answers(models.Membership),
)
def heartbeat(
    call: Annotated[Call, _right("heartbeat")],
    agent_id: AgentId,
    body: Annotated[models.HeartbeatBody, posted(models.HeartbeatBody)],
) -> Response:
    """Until when its credentials are good; with `renew`, or where it needs them, new ones. 409 if another agent has joined under
    this id since."""
    key = _public_key(body.public_key)
    _may_register(call, body.capabilities, agent_id)
    beat = Beat(
        life=body.life,
        public_key=key,
        capabilities=body.capabilities,
        kids=body.kids,
        password_hash=body.password_hash,
        refused=body.refused,
        renew=body.renew,
    )
    answer = joining.refresh(call.front.issuer, call.store, agent_id, call.identity.claims, beat)
    if answer["granted"] is not None:
        call.note(f"agent {agent_id}", why=f"reach {answer['granted']['redis']['reach']}")
    return Json(answer)


@router.delete("/{agent_id}", summary="Leave", responses=openapi.answers(models.Withdrawn))
def leave(call: Annotated[Call, _right("leave")], agent_id: AgentId, life: Life) -> Response:
    """Its credentials end at once, and so do its connections to Redis. `withdrawn` is false if they had ended before."""
    withdrawn = joining.leave(call.front.issuer, call.store, agent_id, life)
    if withdrawn:
        call.note(f"agent {agent_id}")
    return Json({"withdrawn": withdrawn})
