"""Turns a Celery application into one of the mesh: transport, result backend, agents' boot steps."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import celeryd_init
from celery.utils.nodenames import gethostname, nodesplit
from kombu.connection import resolve_aliases

from mesh.bus import runtime
from mesh.bus.tracing import of_attempt
from mesh.errors import Invalid
from mesh.settings import Settings
from mesh.store.client import safe_url
from mesh.store.connections import HEALTH_CHECK_S, stand_in
from mesh.telemetry.tracing import tell_attempt

TRANSPORT = "mesh.bus.transport:Transport"
#: `python -m celery`, and an agent that `mesh deploy` becomes.
_PROGRAMS = {("celery", "__main__.py"), ("-m", "mesh.workers")}
_STEPS = {
    "worker": ("mesh.workers.steps:AgentStep",),
    "consumer": ("mesh.workers.steps:MembershipStep",),
}


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings, derived from ours; `celeryconfig.py` shows them to people."""
    return {
        "broker_url": stand_in(settings.redis_url),
        "broker_transport": TRANSPORT,
        "broker_transport_options": {
            "namespace": settings.namespace,
            "health_check_interval": HEALTH_CHECK_S,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": "mesh.bus.backend:Backend",
        "result_backend_transport_options": {},
        "result_expires": settings.result_retention_s,
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "task_default_priority": None,
        "task_track_started": False,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_prefetch_count_reduction": False,
        "worker_prefetch_multiplier": 1,
        "worker_consumer": "mesh.bus.consumer:Consumer",
    }


def install(app: Celery, settings: Settings | None = None) -> Celery:
    """Make `app` part of the mesh: its workers are agents, its calls are routed and recorded by the store.

    Settings come from the environment and the configuration file unless given. Raises `Invalid` for bad ones.
    """
    settings = _with_broker_of(app, settings or _settings())
    runtime.configure(settings)
    tell_attempt(of_attempt)
    resolve_aliases[TRANSPORT] = "redis"  # how URLs are shown
    app.conf.update(configuration(settings))
    app.amqp_cls = "mesh.bus.amqp:AMQP"
    app.__dict__.pop("amqp", None)
    for blueprint, steps in _STEPS.items():
        app.steps[blueprint].update(steps)
    _add_options(app)
    celeryd_init.connect(_name_worker, dispatch_uid="mesh-name-worker")
    if (
        "flower.urls" in sys.modules
    ):  # Celery's command line loads its plug-ins, Flower among them, before the app
        from mesh.bus.flower import extend

        extend()
    return app


def _settings() -> Settings:
    """Those of this process. Celery's own command, which would show a traceback, ends with what is wrong with them."""
    try:
        return Settings.load()
    except Invalid as error:
        program = Path(sys.argv[0])
        if program.name == "celery" or program.parts[-2:] in _PROGRAMS or tuple(sys.argv[:2]) in _PROGRAMS:
            print("\n".join(f"Error: {line}" for line in error.message.splitlines()), file=sys.stderr)
            sys.exit(error.exit_code)
        raise


def use_broker(app: Celery, settings: Settings) -> None:
    """Tell `app` where Redis is, before it has connected: an agent that joins over HTTP learns it late."""
    runtime.configure(settings)
    app.conf.update(broker_url=stand_in(settings.redis_url))
    app._backend_cache = None
    app._local.__dict__.pop("backend", None)


def _with_broker_of(app: Celery, settings: Settings) -> Settings:
    """The settings; without REDIS_URL, with the Redis that the application itself names."""
    named = app.conf.broker_url
    if (
        not isinstance(named, str)
        or not named.startswith(("redis://", "rediss://"))
        or named in (settings.redis_url, stand_in(settings.redis_url))
    ):
        return settings
    if settings.was_set("redis_url"):
        warnings.warn(
            f"REDIS_URL {safe_url(settings.redis_url)} takes the place of this application's own broker {safe_url(named)}.",
            UserWarning,
            stacklevel=3,
        )
        return settings
    return dataclasses.replace(settings, redis_url=named)


def _name_worker(sender: str, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """A worker is called after its agent, unless it was given a name: several agents share one host."""
    namespace = conf.broker_transport_options.get("namespace") if conf.broker_transport_options else None
    if namespace is not None:
        from mesh.bus import logs  # only workers need it

        logs.set_up(runtime.settings_of(namespace))
    if namespace is None or nodesplit(sender)[0] != "celery":
        return
    agent_id = options.get("agent_id") or runtime.settings_of(namespace).agent_id
    if agent_id:
        instance.hostname = f"{agent_id}@{gethostname()}"


def _add_options(app: Celery) -> None:
    """Our options of `celery worker`. Celery's command line is click; it is imported only there."""
    from mesh.bus.options import worker_options

    names = {option.name for option in app.user_options["worker"]}
    for option in worker_options():
        if option.name not in names:
            app.user_options["worker"].add(option)
