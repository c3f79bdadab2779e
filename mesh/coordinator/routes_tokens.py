"""Routes: tokens are issued and revoked."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from mesh.coordinator import models, openapi
from mesh.coordinator.access import Call, MeshNeeds, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import posted
from mesh.core.tokens import EVERY, check_jti
from mesh.errors import Refused
from mesh.services import tokens, views

router = APIRouter(prefix="/v1/tokens", default_response_class=Json, tags=["tokens"])

_WHAT = "tokens"
Issuer = Annotated[Call, MeshNeeds(Right(action="administer", what=_WHAT, each=True, verb="issue token"))]
Revoker = Annotated[Call, MeshNeeds(Right(action="administer", what=_WHAT, each=True, verb="revoke token"))]
Jti = Annotated[str, Path(description="The token's own name, as it was told when it was issued.")]
_BODY = {"subject": "billing", "agent_type": "producer", "namespaces": ["prod"], "ttl_s": 86_400}


@router.post(
    "",
    status_code=201,
    summary="Issue a token",
    responses=openapi.answers(models.Issued, 201),
    openapi_extra=openapi.takes(models.TokenBody, examples={"producer": _BODY}),
)
def issue_token(call: Issuer, body: Annotated[models.TokenBody, posted(models.TokenBody)]) -> Response:
    """For namespaces in which the caller may administer tokens, and for no more capabilities than his own token has. The token is
    told once and kept nowhere."""
    for namespace in body.namespaces:
        if namespace == EVERY:
            call.need("administer", _WHAT, namespace=EVERY, about=f"token for {body.subject}")
        else:
            call.at(namespace).need("administer", _WHAT, about=f"token for {body.subject}")
    own = call.identity.claims.capabilities
    if own is not None and (body.capabilities is None or not set(body.capabilities) <= set(own)):
        why = f"its own token is for capabilities {', '.join(own) or 'none'} only"
        call.note(f"token for {body.subject}", allowed=False, why=why)
        raise Refused(f"{call.subject} may not issue this: {why}.")
    text, claims = tokens.issue(
        call.front.settings,
        body.kind,
        subject=body.subject,
        agent_type=body.agent_type,
        namespaces=body.namespaces,
        capabilities=body.capabilities,
        ttl_s=body.ttl_s,
    )
    call.note(f"token {claims.jti} for {claims.subject}", why=f"{claims.kind}, type {claims.agent_type}")
    shown: dict[str, Any] = {
        "token": text,
        "kind": claims.kind,
        "jti": claims.jti,
        "subject": claims.subject,
        "agent_type": claims.agent_type,
        "namespaces": list(claims.namespaces),
        "capabilities": None if claims.capabilities is None else list(claims.capabilities),
        "expires_at": views.iso(claims.expires_at * 1000),
    }
    return Json(shown, 201)


@router.delete("/{jti}", summary="Revoke a token", responses=openapi.answers(models.Revoked))
def revoke_token(call: Revoker, jti: Jti) -> Response:
    """Refused here at once, by the other coordinators within two seconds. Whether there is such a token nobody knows."""
    check_jti(jti)
    call.need_somewhere("administer", _WHAT, about=f"token {jti}")  # a jti is known only to who was told it
    call.front.coordinator.revocations.revoke(jti)
    call.note(f"token {jti}")
    return Json({"revoked": jti})
