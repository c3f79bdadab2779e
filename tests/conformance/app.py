"""The Celery application under test: on the mesh, or on Celery's own Redis transport for comparison.

`CONFORMANCE_TRANSPORT=stock` chooses the latter. Both read the server's address from `REDIS_URL`.
"""

from __future__ import annotations

import os

from celery import Celery

from tests.conformance import tasks

DEFAULT_QUEUE = "celery"
SECOND_QUEUE = "second"
STOCK = os.environ.get("CONFORMANCE_TRANSPORT") == "stock"


def build_app() -> Celery:
    """A Celery application with the tasks of this suite, set as the current one."""
    app = Celery("conformance", set_as_current=True)
    app.set_default()
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_default_queue=DEFAULT_QUEUE,
        task_routes={f"{tasks.__name__}.routed": {"queue": SECOND_QUEUE}},
        task_send_sent_event=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=True,
        include=[tasks.__name__],
    )
    if STOCK:
        _use_stock_redis(app)
    else:
        from mesh import install

        install(app)
    return app


def _use_stock_redis(app: Celery) -> None:
    url = os.environ["REDIS_URL"]
    app.conf.update(
        broker_url=url,
        result_backend=url,
        task_acks_late=True,
        broker_connection_retry_on_startup=True,
        # Ten steps instead of four, strictly in their order; the stock transport takes 0 first.
        broker_transport_options={"priority_steps": list(range(10)), "queue_order_strategy": "priority"},
    )
