"""How processes of the mesh write their logs: JSON lines or text, by LOG_FORMAT.

A line says what happened and where: fields of the process (`about`), and those of the task that was running (`Context`). They are
looked up when a line is written, so that a task that logs nothing pays nothing. Whatever else a caller adds (`extra=` of the
standard library; structlog's `render_to_log_kwargs` does so, too) is a field of the JSON line.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from mesh.settings import Settings
from mesh.telemetry import redacting
from mesh.telemetry.redacting import redact

__all__ = ["Context", "about", "formatter", "process_fields", "set_up", "tell_context"]

#: Fields of what this thread does just now.
Context = Callable[[], Mapping[str, Any]]

_STANDARD = frozenset(
    {
        *logging.LogRecord("", 0, "", 0, "", (), None).__dict__,
        "message",
        "asctime",
        "taskName",
        "fields",
        "data",
    }
)
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_process: dict[str, str] = {}
_context: Context = dict


def about(**fields: str) -> None:
    """Fields of every line of this process, and of those that it forks."""
    _process.update(fields)


def process_fields() -> Mapping[str, str]:
    """What `about` was told."""
    return _process


def tell_context(context: Context) -> None:
    """Called for each line that is written."""
    global _context
    _context = context


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """What a line has beside its message, whatever the format."""
    yield from _context().items()
    given = record.__dict__
    data = given.get("data")
    if type(data) is dict and record.name.startswith("celery."):
        # Of a task that is not running in this thread (any more); its arguments, which Celery adds, are left out.
        yield from ((name, data[of]) for name, of in (("task", "id"), ("type", "name")) if data.get(of))
    for name in given.keys() - _STANDARD:
        yield name, given[name]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            **(getattr(record, "fields", None) or {"message": record.getMessage()}),
        }
        for name, value in (*_process.items(), *_fields(record)):
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            written = msgspec.json.encode(line, enc_hook=repr).decode()
        except (TypeError, ValueError, RecursionError):  # keys of other kinds, half a surrogate pair
            plain = {name: one if isinstance(one, (str, int)) else _shown(one) for name, one in line.items()}
            written = json.dumps(plain)
        return redact(written)


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__}>"


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        told = super().formatMessage(record)
        if getattr(record, "fields", None):
            return redact(told)
        more = " ".join(f"{name}={_shown(value)}" for name, value in _fields(record))
        return redact(f"{told} [{more}]" if more else told)


def formatter(settings: Settings) -> logging.Formatter:
    """What lays out the lines."""
    return _Json() if settings.log_format == "json" else _Text(_TEXT)


def set_up(settings: Settings) -> None:
    """This process logs to standard error, at LOG_LEVEL, in place of whatever was set up before. Agents leave the handlers to
    Celery, see `mesh.bus.logs`."""
    redacting.install(settings)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(settings))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
