"""Celery's message factory with what the store wants to know, and callbacks whose ids are the same in each attempt."""

from __future__ import annotations

import uuid
from typing import Any

from celery.app.amqp import AMQP as CeleryAMQP

from mesh.bus.messages import CALL_HEADER


def with_ids(callbacks: list[Any] | None, parent_id: str, kind: str) -> list[Any] | None:
    """Copies of the signatures; those without an id get one derived from parent, kind and index.

    A parent that runs twice then publishes the same ids, and the second publication changes nothing.
    """
    if not callbacks:
        return callbacks
    named = []
    for index, signature in enumerate(callbacks):
        if isinstance(signature, dict) and not (signature.get("options") or {}).get("task_id"):
            signature = signature.clone() if hasattr(signature, "clone") else {**signature}
            derived = uuid.uuid5(uuid.NAMESPACE_OID, f"{parent_id}/{kind}/{index}")
            signature["options"] = {**(signature.get("options") or {}), "task_id": str(derived)}
        named.append(signature)
    return named


class AMQP(CeleryAMQP):  # type: ignore[misc]
    """See the module's text."""

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        group_id: Any = None,
        group_index: Any = None,
        expires: Any = None,
        retries: int = 0,
        chord: Any = None,
        callbacks: Any = None,
        errbacks: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Celery's protocol 2 message; `mesh_call` among its headers does not reach the task."""
        message = super().as_task_v2(
            task_id,
            name,
            args,
            kwargs,
            countdown,
            eta,
            group_id,
            group_index,
            expires,
            retries,
            chord,
            with_ids(callbacks, task_id, "link"),
            with_ids(errbacks, task_id, "link_error"),
            *more,
            **options,
        )
        call: dict[str, Any] = {"nonce": uuid.uuid4().hex}
        if options.get("priority") is not None:
            call["priority"] = options["priority"]
        for choice in ("strategy", "region", "deadline_s"):
            if options.get(choice) is not None:
                call[choice] = options[choice]
        if chord is not None:
            call["chord"] = True
        message.headers[CALL_HEADER] = call
        return message
