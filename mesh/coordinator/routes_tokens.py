"""Routes: tokens are issued and revoked."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from mesh.coordinator import models, openapi
from mesh.coordinator.access import Call, MeshNeeds, Right
from mesh.coordinator.answers import Json
from mesh.coordinator.requests import posted
from mesh.core.tokens import EVERY, Claims, check_jti, unverified, verify
from mesh.errors import Invalid, Refused, Unauthenticated
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
    _need_all(call, body.namespaces, f"token for {body.subject}")
    own = call.identity.claims.capabilities
    if own is not None and (body.capabilities is None or not set(body.capabilities) <= set(own)):
        why = f"its own token is for capabilities {', '.join(own) or 'none'} only"
        _note_all(call, body.namespaces, f"token for {body.subject}", allowed=False, why=why)
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
    about = f"token {claims.jti} for {claims.subject}"
    _note_all(call, claims.namespaces, about, why=f"{claims.kind}, type {claims.agent_type}")
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


@router.delete("/{jti}", summary="Revoke a token by its jti", responses=openapi.answers(models.Revoked))
def revoke_jti(call: Revoker, jti: Jti) -> Response:
    """For who may administer tokens in all namespaces: a jti does not say whose token it is; `POST /v1/tokens:revoke` is for
    the others. Refused here at once, by the other coordinators within two seconds. Whether there is such a token nobody knows."""
    call.need("administer", _WHAT, namespace=EVERY, about="token by its jti")
    check_jti(jti)
    call.front.coordinator.revocations.revoke(jti)
    call.note(f"token {jti}", namespace=EVERY)
    return Json({"revoked": jti})


@router.post(
    ":revoke",
    summary="Revoke a token that is shown",
    responses=openapi.answers(models.Revoked),
    openapi_extra=openapi.takes(models.RevokeBody, examples={"shown": {"token": "eyJhbGciOi..."}}),
)
def revoke_token(call: Revoker, body: Annotated[models.RevokeBody, posted(models.RevokeBody)]) -> Response:
    """For who may administer tokens in each namespace that it is for. Refused here at once, by the other coordinators within two
    seconds."""
    call.need_somewhere("administer", _WHAT, about="token that is shown")
    claims = _shown(call, body.token)
    _need_all(call, claims.namespaces, f"token {claims.jti}")
    call.front.coordinator.revocations.revoke(claims.jti, claims.expires_at)
    _note_all(call, claims.namespaces, f"token {claims.jti}", why=f"{claims.kind}, subject {claims.subject}")
    return Json({"revoked": claims.jti})


def _shown(call: Call, text: str) -> Claims:
    kind = unverified(text)[0]
    try:
        if kind is not None:
            return verify(kind, text, call.front.settings.keyring, now_s=time.time())
    except Unauthenticated:  # the caller's own is valid: not his 401
        pass
    raise Invalid("That is no valid token of this mesh: forged, cut off, or it has ended by itself.")


def _need_all(call: Call, namespaces: Iterable[str], about: str) -> None:
    """Raise `Refused` or `NotFound` unless the caller may administer tokens in each of these, `*`: in all."""
    for namespace in namespaces:
        there = call if namespace == EVERY else call.at(namespace)
        there.need("administer", _WHAT, namespace=namespace, about=about)


def _note_all(call: Call, namespaces: Iterable[str], about: str, *, why: str, allowed: bool = True) -> None:
    """In the audit log of each namespace that the token is for."""
    for namespace in namespaces:
        call.note(about, allowed=allowed, why=why, namespace=namespace)
