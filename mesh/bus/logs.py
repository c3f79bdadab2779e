"""Logs of agents: Celery's handlers, levels and files, and the mesh's lines, which tell the attempt that was running.

What somebody has set up himself stays as it is: handlers of his own, a `worker_log_format`, or a receiver of `setup_logging`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import click
from celery._state import get_current_task
from celery.app.defaults import DEFAULT_PROCESS_LOG_FMT, DEFAULT_TASK_LOG_FMT
from celery.signals import after_setup_logger, after_setup_task_logger
from celery.utils.log import ColorFormatter, get_multiprocessing_logger
from click.core import ParameterSource

from mesh.bus.messages import ATTEMPT_HEADER
from mesh.settings import Settings
from mesh.telemetry import logging as lines
from mesh.telemetry import redacting, tracing

__all__ = ["attempt_fields", "set_up"]


def attempt_fields() -> Mapping[str, Any]:
    """Of the attempt that this thread runs: task, type, attempt, trace."""
    task = get_current_task()
    request = task.request if task is not None else None
    if request is None or not request.id:
        return {}
    fields = {"task": request.id, "type": task.name}
    fence = (getattr(request, ATTEMPT_HEADER, None) or {}).get("fence")
    if fence:
        fields["attempt"] = int(fence.partition("-")[0])
        trace = tracing.current()
        if trace is not None:
            fields |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
    return fields


def set_up(settings: Settings) -> None:
    """Of an agent that is about to start, before anything is logged; its pool's processes are forked later."""
    redacting.install(settings)
    lines.about(namespace=settings.namespace)
    lines.tell_context(attempt_fields)
    layout = lines.formatter(settings)
    context = click.get_current_context(silent=True)
    source = None if context is None else context.get_parameter_source("loglevel")
    asked = source not in (None, ParameterSource.DEFAULT)

    level = settings.log_level.upper() if settings.was_set("log_level") and not asked else None

    def lay_out(logger: logging.Logger, format: str, **_: Any) -> None:
        if level is not None:
            logger.setLevel(level)
        if format in (DEFAULT_PROCESS_LOG_FMT, DEFAULT_TASK_LOG_FMT):
            for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
                if isinstance(handler.formatter, ColorFormatter):
                    handler.setFormatter(layout)

    after_setup_logger.connect(lay_out, weak=False, dispatch_uid="mesh-logs")
    after_setup_task_logger.connect(lay_out, weak=False, dispatch_uid="mesh-task-logs")
