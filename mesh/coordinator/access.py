"""What a caller may do: each request gets a `Call` from the one dependency of its route, `Needs` or `MeshNeeds`.

A test fails for a route under /v1 that has none. What depends on a single thing (whose task, which type) the handler asks of
the call. Every refusal is written to the audit log here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from mesh.coordinator.front import Front
from mesh.coordinator.gate import Identity
from mesh.coordinator.requests import front_of
from mesh.core.canvas import named_types
from mesh.core.policies import Decision, Object, decide
from mesh.errors import Invalid, NotFound, Refused, Unauthenticated
from mesh.services import tasks as task_services
from mesh.store.store import Store

__all__ = ["Call", "MeshNeeds", "Needs", "Reads", "ReadsAll", "Right", "enter"]
_CELERY = "celery."  # types that run what their arguments name


@dataclass(frozen=True, kw_only=True, slots=True)
class Right:
    """What a route needs: an action of `mesh.core.policies`.

    `what`: the name that is asked for. `each`: it depends on the thing, and the handler asks for each: here it is only
    seen to that the caller has the right at all. `verb`: what the audit log calls it. `kind`: of the token.
    """

    action: str
    what: str = ""
    each: bool = False
    verb: str = ""
    kind: str = "api"


class Call:
    """One request in one namespace: who makes it, from where; what he may do; what is written to the audit log."""

    __slots__ = ("_right", "front", "identity", "source", "store")

    def __init__(self, front: Front, identity: Identity, source: str, store: Store, right: Right) -> None:
        self.front, self.identity, self.source, self.store = front, identity, source, store
        self._right = right

    @property
    def subject(self) -> str:
        """Who calls."""
        return self.identity.claims.subject

    def decide(
        self, action: str, name: str = "", *, owner: str | None = None, namespace: str | None = None
    ) -> Decision:
        """Whether the caller may; `namespace` None: that of the call, `*`: all of them."""
        asked = Object(namespace=namespace or self.store.keys.namespace, name=name, owner=owner)
        return decide(self.front.settings.policies, self.identity.claims, action, asked)

    def may(self, action: str, name: str = "", *, owner: str | None = None) -> bool:
        """Whether the caller may; nothing is recorded."""
        return self.decide(action, name, owner=owner).allowed

    def need(
        self,
        action: str,
        name: str = "",
        *,
        owner: str | None = None,
        about: str = "",
        namespace: str | None = None,
    ) -> None:
        """Raise `Refused` unless the caller may, and record that. `about`: the thing, for the record."""
        decision = self.decide(action, name, owner=owner, namespace=namespace)
        if not decision.allowed:
            self.note(about or name, allowed=False, why=decision.why, namespace=namespace)
            raise Refused(f"{self.subject} may not: {decision.why}.")

    def need_somewhere(self, action: str, name: str, *, about: str = "") -> None:
        """Raise `Refused` unless the caller may in one namespace of his token at least."""
        found = [self.decide(action, name, namespace=one) for one in self.identity.claims.namespaces]
        if not any(one.allowed for one in found):
            self.note(about or name, allowed=False, why=found[0].why)
            raise Refused(f"{self.subject} may not: {found[0].why}.")

    def need_submit(self, task_type: str, *payloads: Any) -> None:
        """Raise `Refused` unless the caller may submit such tasks, and all that they are told to run; `Invalid` if that cannot be
        told."""
        if (self.store.keys.namespace, task_type) not in self.identity.granted:
            self.need("submit", task_type, about=f"type {task_type}")
            self.identity.grant(self.store.keys.namespace, task_type)
        if not task_type.startswith(_CELERY):  # any other's payload is only data
            return
        try:
            for inner in {
                one for payload in payloads for one in named_types(task_type, [payload], {}, {}, {})
            }:
                self.need("submit", inner, about=f"type {inner} in {task_type}")
        except ValueError as error:
            raise Invalid(f"What {task_type} is to run cannot be told: {error}.") from None

    def need_tasks(self, action: str, task_ids: Sequence[str]) -> Sequence[str]:
        """Those of these tasks with which the caller may do that: what is not there now is not his when it comes a moment later.

        Raises `Refused` for one that is there and with which he may not.
        """
        if self.may(action):
            return task_ids
        owners = task_services.owners(self.store, task_ids)
        for task_id, owner in owners.items():
            self.need(action, owner=owner, about=f"task {task_id}")
        return list(owners)

    def need_task(self, action: str, task_id: str) -> None:
        """The same for one task. Raises `NotFound`, `Refused`."""
        if not self.need_tasks(action, [task_id]):
            raise task_services.missing(self.store, task_id)

    def at(self, namespace: str) -> Call:
        """The same caller in another namespace, for a route of the whole mesh. Raises `NotFound`, also if he may not see it."""
        if not self.identity.claims.covers(namespace):
            why = self.decide(self._right.action, self._right.what, namespace=namespace).why
            self.note(f"namespace {namespace}", allowed=False, why=why, namespace=namespace)
            raise NotFound(f"There is no namespace {namespace!r}.")
        return Call(self.front, self.identity, self.source, self.front.store(namespace), self._right)

    def note(self, what: str, *, allowed: bool = True, why: str = "", namespace: str | None = None) -> None:
        """Write it to the audit log; `namespace` None: that of the call, `*`: what is of the whole mesh."""
        self.front.audit.note(
            subject=self.subject, source=self.source, action=self._right.verb or self._right.action, object=what,
            allowed=allowed, why=why, namespace=namespace or self.store.keys.namespace,
        )  # fmt: skip

    def check(self) -> None:
        """Raise `Unauthenticated` once the token has ended: for what lasts."""
        self.front.gate.check(self.identity)

    def valid(self) -> bool:
        """Whether the token still holds."""
        try:
            self.check()
        except Unauthenticated:
            return False
        return True

    def begin(self) -> None:
        """Raise `Refused` unless the caller has the right of the route."""
        right, namespace = self._right, self.store.keys.namespace
        if not right.each:
            self.need(right.action, right.what, about=right.what or f"namespace {namespace}")
        elif (namespace, f":{right.action}") not in self.identity.granted:
            claims = self.identity.claims
            if not self.front.settings.policies.grants(claims.agent_type, namespace, right.action):
                self.need(right.action, owner=claims.subject, about=f"namespace {namespace}")
            self.identity.grant(namespace, f":{right.action}")


def enter(request: Request, right: Right, namespace: str | None) -> Call:
    """Let a request in. `namespace` None: a route of the whole mesh, for which that of the coordinator stands.

    Raises `Unauthenticated`, `TooManyRequests`; `NotFound`, also for a namespace that the caller may not see; `Refused`.
    """
    front = front_of(request)
    address = request.scope.get("client")
    source: str = address[0] if address else ""
    try:
        identity = front.gate.identity(right.kind, request.scope["headers"])
    except Unauthenticated as error:
        if "authorization" in request.headers:
            front.guard.failed(source)
        _refused(front, request, source, "", right, namespace, error.reason)
        raise
    front.guard.subject(identity.claims.subject)
    if namespace is not None and not identity.claims.covers(namespace):
        why = f"the token is for namespaces {', '.join(identity.claims.namespaces)}"
        _refused(front, request, source, identity.claims.subject, right, namespace, why)
        raise NotFound(f"There is no namespace {namespace!r}.")
    store = front.coordinator.store if namespace is None else front.store(namespace)
    call = Call(front, identity, source, store, right)
    if namespace is not None or not right.each:
        call.begin()
    return call


def _refused(
    front: Front, request: Request, source: str, subject: str, right: Right, namespace: str | None, why: str
) -> None:
    route = getattr(request.scope.get("route"), "path", "/v1/namespaces/{namespace}/tasks")
    front.audit.note(
        subject=subject, source=source, action=right.verb or right.action, object=f"{request.method} {route}",
        allowed=False, why=why, namespace=namespace,
    )  # fmt: skip


def Needs(right: Right) -> Any:
    """The dependency of a route in a namespace. It gives the `Call`."""

    async def needs(
        request: Request,
        namespace: Annotated[str, Path(description="Name of the namespace.", examples=["default"])],
    ) -> Call:
        return enter(request, right, namespace)

    needs.right = right  # type: ignore[attr-defined]
    return Depends(needs)


def MeshNeeds(right: Right) -> Any:
    """The dependency of a route of the whole mesh; with `each` the handler asks, for the namespaces that it is about."""

    async def needs(request: Request) -> Call:
        return enter(request, right, None)

    needs.right = right  # type: ignore[attr-defined]
    return Depends(needs)


Reads = Annotated[Call, Needs(Right(action="read", each=True))]
"""The handler asks for each thing, or shows what the caller may see only."""
ReadsAll = Annotated[Call, Needs(Right(action="read"))]
"""What shows a whole namespace."""
