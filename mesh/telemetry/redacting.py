"""No secret leaves the process in words: log lines, tracebacks on standard error, sentences of errors.

`install` teaches the process its own secrets. Log records mask them as they are made: it does not matter which handlers there
are, who has set them up, or that Celery does so anew. Forked children inherit it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

from mesh.core.redaction import Redactor, secrets_of_url
from mesh.settings import TABLE, Settings

__all__ = ["install", "keep", "redact", "secrets_of"]

#: Of programs beside ours in the same process.
_OTHERS = (
    "FLOWER_BASIC_AUTH", "FLOWER_COOKIE_SECRET", "FLOWER_OAUTH2_SECRET", "REDISCLI_AUTH", "OTEL_EXPORTER_OTLP_HEADERS",
)  # fmt: skip
_secrets: set[str] = set()
_redactor = Redactor()


def secrets_of(settings: Settings) -> set[str]:
    """The values that nobody may see."""
    found: set[str] = set()
    for row in TABLE:
        value = getattr(settings, row.attribute)
        if row.secret and isinstance(value, str):
            found |= secrets_of_url(value) if row.kind == "url" else {value}
    for name in _OTHERS:
        value = os.environ.get(name, "")
        found |= {value, value.partition(":")[2], value.partition("=")[2]}
    return found


def redact(text: str) -> str:
    """The text without secrets."""
    return _redactor(text)


def keep(*secrets: str | None) -> None:
    """These are secret, too: what the process was given while it ran."""
    global _redactor
    _secrets.update(one for one in secrets if one)
    _redactor = Redactor(_secrets)


class _Record(logging.LogRecord):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # Formatters take this as it is.
            self.exc_text = redact("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        return redact(super().getMessage())


def _tell(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def install(settings: Settings) -> None:
    """From now on this process keeps its secrets to itself. Again with other settings: theirs, too."""
    keep(*secrets_of(settings))
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _tell
    threading.excepthook = lambda args: _tell(args.exc_type, args.exc_value, args.exc_traceback)
