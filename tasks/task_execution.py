"""The built-in task type ``task-execution``: binds the engine of commands to the mesh."""

from functools import cache
from typing import Any

from mesh import task
from mesh.errors import Refused
from mesh.settings import Settings

from .attempt import check
from .engine_command import (
    OUTPUT_DEFAULT_BYTES,
    OUTPUT_LIMIT_BYTES,
    TIMEOUT_LIMIT_S,
    WORDS_LIMIT,
    parse,
)
from .engine_process import execute

__all__ = ["task_execution"]

_DATA = {
    "type": "object",
    "properties": {"base64": {"type": "string"}},
    "required": ["base64"],
    "additionalProperties": False,
}
_TEXT_OR_DATA = {"anyOf": [{"type": "string"}, _DATA]}
PAYLOAD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "command": {
            "description": "The program and its arguments; no shell reads them. It must be allowed on the agent.",
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "maxItems": WORDS_LIMIT,
        },
        "env": {
            "description": "Variables beside PATH, LANG and HOME, which are all that the program is given.",
            "type": "object",
            "additionalProperties": {"type": "string"},
        },
        "stdin": {"description": "Its standard input; empty if not given.", **_TEXT_OR_DATA},
        "timeout_s": {
            "description": "It is ended after so many seconds.",
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": TIMEOUT_LIMIT_S,
        },
        "max_output_bytes": {
            "description": "How much of each output is kept, from its beginning.",
            "type": "integer",
            "minimum": 0,
            "maximum": OUTPUT_LIMIT_BYTES,
            "default": OUTPUT_DEFAULT_BYTES,
        },
        "cwd": {
            "description": "The folder to run in, below one of the agent's data directories.",
            "type": "string",
        },
        "check": {
            "description": "Whether another end than exit code 0 is a failure of the task.",
            "type": "boolean",
            "default": False,
        },
    },
    "required": ["command"],
    "additionalProperties": False,
}
RESULT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "exit_code": {"type": ["integer", "null"]},
        "signal": {"type": ["string", "null"], "description": "What ended it, such as SIGKILL."},
        "stdout": _TEXT_OR_DATA,
        "stderr": _TEXT_OR_DATA,
        "stdout_bytes": {"type": "integer"},
        "stderr_bytes": {"type": "integer"},
        "truncated": {"type": "boolean"},
        "duration_s": {"type": "number"},
        "timed_out": {"type": "boolean"},
    },
    "required": ["exit_code", "signal", "stdout", "stderr", "truncated", "duration_s", "timed_out"],
}
EXAMPLES = (
    {"command": ["wc", "-l"], "stdin": "one\ntwo\n"},
    {"command": ["sort", "--unique", "names.txt"], "cwd": "reports", "timeout_s": 60, "check": True},
    {"command": ["date", "+%A"], "env": {"TZ": "UTC", "LC_ALL": "C"}},
)


@cache
def _settings() -> Settings:
    return Settings.load()


@task(
    "task-execution",
    no_retry_for=(Refused,),
    payload_schema=PAYLOAD_SCHEMA,
    result_schema=RESULT_SCHEMA,
    examples=EXAMPLES,
)
def task_execution(payload: dict[str, Any]) -> dict[str, Any]:
    """Run one allowed program with arguments, environment, standard input, and limits of time and output.

    Payloads are described by `PAYLOAD_SCHEMA`, answers by `mesh.tasks.engine_process.execute`. A task may run more than once
    (its agent may die), so a command should bear being repeated.
    """
    settings = _settings()
    command = parse(payload, allowed=settings.allowed_commands, data_dirs=settings.data_dirs)
    # What Celery's document of a result adds is far less than what is left for it here.
    return execute(command, result_limit_bytes=settings.max_result_bytes - 4096, check=check)
