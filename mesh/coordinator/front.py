"""What the handlers of one coordinator share: the stores of the namespaces, the submitter, what waits."""

from __future__ import annotations

import dataclasses

from mesh.coordinator.events import Events
from mesh.coordinator.gate import Gate
from mesh.coordinator.guard import Guard
from mesh.coordinator.metrics import registry_of
from mesh.coordinator.service import Coordinator
from mesh.coordinator.submitting import Submitter
from mesh.coordinator.waiting import Ends, Waiting
from mesh.core.names import check_name
from mesh.errors import Invalid, NotFound
from mesh.services.audit import Audit
from mesh.services.joining import Issuer
from mesh.store.redis_users import RedisUsers
from mesh.store.rotation import rotation_of
from mesh.store.store import Store

__all__ = ["Front"]

_MOST_NAMESPACES = 1000
_ENVELOPE_BYTES = 64 * 1024  # what a submission may have beside its payload
_BATCH_BYTES = 64 * 1024 * 1024


class Front:
    """The HTTP side of a coordinator. It serves the namespace of its own and any other by name, on one pool of connections."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.settings = coordinator.settings
        self.gate = Gate(self.settings)
        self.gate.revoked = coordinator.revocations.is_revoked
        self.audit = Audit(coordinator.store.client, self.settings.namespace)
        self.issuer = Issuer(
            settings=self.settings,
            users=RedisUsers(coordinator.store.client, shared=self.settings.shared_redis_login),
            kid=lambda: rotation_of(self.settings).signing(),
        )
        self.guard = Guard(self.settings)
        self.metrics = registry_of(coordinator)
        self.submitter = Submitter()
        self.ends = Ends(coordinator.store.client)
        self.waiting = Waiting(self.ends)
        self.events = Events(self.ends)
        self.single_limit = self.settings.max_payload_bytes + _ENVELOPE_BYTES
        self.batch_limit = max(_BATCH_BYTES, self.single_limit)
        self._stores = {self.settings.namespace: coordinator.store}

    def store(self, namespace: str) -> Store:
        """The store of a namespace. Raises `NotFound` for what cannot be the name of one."""
        store = self._stores.get(namespace)
        if store is None:
            try:
                check_name("namespace", namespace)
            except Invalid as error:
                raise NotFound(f"There is no such namespace: {error}") from None
            if len(self._stores) >= _MOST_NAMESPACES:
                self._stores = {self.settings.namespace: self.coordinator.store}
            settings = dataclasses.replace(self.settings, namespace=namespace)
            store = self._stores[namespace] = Store(settings, client=self.coordinator.store.client)
        return store

    def sweep(self) -> None:
        """End what waits for callers whose token has ended, in the event loop; called every second."""
        self.waiting.sweep()
        self.events.sweep()

    def hurry(self) -> None:
        """Answer every waiting call and end every stream that there is, in the event loop: their callers go elsewhere."""
        self.waiting.hurry()
        self.events.end()

    def end_waits(self) -> None:
        """Answer every waiting call and end every stream at once; in the event loop."""
        self.waiting.stop()
        self.events.stop()

    def close(self) -> None:
        """No request is under way any more: end the threads."""
        self.ends.stop()
        self.submitter.close()
        self.audit.close()
