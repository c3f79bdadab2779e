"""How the task type ``task-execution`` runs a command: with bounds, and so that nothing of it is left.

The design it keeps:

* The program runs below a warden (``warden.py``), which ends it with all that it has started when we close a pipe: on a time
  limit, on a cancellation, or because this process has died.
* Input and both outputs are carried at once by one loop. Outputs are kept up to a limit; what is more is counted and thrown
  away, so that the program never waits for us.
"""

import base64
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.errors import Invalid, MeshError

from .engine_command import Command, shown

__all__ = ["CommandFailed", "execute"]

GRACE_S = 2.0  # between SIGTERM and SIGKILL
_GIVE_UP_S = 10.0  # a program that does not even end by SIGKILL waits for its disk: the agent does not
_TICK_S = 0.1
_BLOCK_BYTES = 65536
_WARDEN = str(Path(__file__).with_name("warden.py"))


class CommandFailed(MeshError):
    """A command that was to be checked ended otherwise than with 0."""


@dataclass(kw_only=True)
class _Output:
    """What came of one pipe: the beginning, and how much it was in all."""

    limit: int
    kept: bytearray = field(default_factory=bytearray)
    total: int = 0

    def take(self, data: bytes) -> None:
        self.total += len(data)
        self.kept += data[: max(0, self.limit - len(self.kept))]


def _always() -> None:
    """Nothing ends it before its time."""


def execute(
    command: Command, *, result_limit_bytes: int, check: Callable[[], None] = _always
) -> dict[str, Any]:
    """Run it to its end, or end it; what became of it. `check` is called often: what it raises ends the command.

    The answer: ``exit_code`` (null if a signal ended it), ``signal`` (its name, or null), ``stdout`` and ``stderr`` (texts;
    ``{"base64": ...}`` if not UTF-8), ``stdout_bytes`` and ``stderr_bytes`` (all that was written), ``truncated`` (whether that
    was more than is shown), ``duration_s``, ``timed_out`` (by ``timeout_s``). It has less than `result_limit_bytes` as JSON.
    Raises `Invalid` (cannot be started), and `CommandFailed` if it is to be checked and did not end with 0.
    """
    with _Run(command) as run:
        run.pump(check)
    answer = run.answer(result_limit_bytes)
    if command.check and (answer["exit_code"] != 0 or answer["timed_out"]):
        raise CommandFailed(_failure(command, answer))
    return answer


def _failure(command: Command, answer: Mapping[str, Any]) -> str:
    how = f"ended by {answer['signal']}" if answer["signal"] else f"exit code {answer['exit_code']}"
    if answer["timed_out"]:
        how = f"not done within {command.timeout_s} s"
    said = answer["stderr"] if isinstance(answer["stderr"], str) else ""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    return f"command {shown(command.argv[0])}: {how}{f': {last[:300]}' if last else ''}"


class _Run:
    """One running command."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.outputs = {name: _Output(limit=command.max_output_bytes) for name in ("stdout", "stderr")}
        self.report = bytearray()
        self.timed_out = False
        self._started: float | None = None
        self._unsent = memoryview(command.stdin or b"")
        self._ends: dict[str, int] = {}  # our ends of the pipes
        self._selector = selectors.DefaultSelector()
        self._warden: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Run":
        try:
            self._start()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise Invalid(f"{shown(self.command.argv[0])} cannot be started: {error.strerror}") from None
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for name in list(self._ends):  # "life" among them: the warden ends what still runs
            self._close(name)
        self._selector.close()
        if self._warden is not None:
            try:
                self._warden.wait(GRACE_S + _GIVE_UP_S)
            except subprocess.TimeoutExpired:
                self._warden.kill()

    def _start(self) -> None:
        theirs: dict[str, int] = {}
        try:
            for name in ("stdin", "stdout", "stderr", "status", "life"):
                if name == "stdin" and self.command.stdin is None:
                    theirs[name] = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                    continue
                reader, writer = os.pipe()
                self._ends[name], theirs[name] = (
                    (writer, reader) if name in ("stdin", "life") else (reader, writer)
                )
                os.set_blocking(self._ends[name], False)
            words = [
                sys.executable,
                "-I",
                "-S",
                _WARDEN,
                str(theirs["life"]),
                str(theirs["status"]),
                str(GRACE_S),
            ]
            self._warden = subprocess.Popen(
                [*words, self.command.folder, self.command.program, *self.command.argv],
                stdin=theirs["stdin"],
                stdout=theirs["stdout"],
                stderr=theirs["stderr"],
                pass_fds=(theirs["life"], theirs["status"]),
                env=self.command.env,
                start_new_session=True,
            )
        finally:
            for end in theirs.values():
                os.close(end)
        for name in ("stdout", "stderr", "status"):
            self._selector.register(self._ends[name], selectors.EVENT_READ, name)
        if "stdin" in self._ends:
            self._selector.register(self._ends["stdin"], selectors.EVENT_WRITE, "stdin")

    def pump(self, check: Callable[[], None]) -> None:
        """Carry input and output until the warden has reported and the outputs have ended."""
        limit_s, given_up = self.command.timeout_s, None
        while self._ends.keys() & {"stdout", "stderr", "status"}:
            for key, _ in self._selector.select(_TICK_S):
                self._feed() if key.data == "stdin" else self._read(key.data)
            check()
            now = time.monotonic()
            begun = self._started  # the warden's own start does not count
            if not self.timed_out and limit_s is not None and begun is not None and now - begun > limit_s:
                self.timed_out, given_up = True, now + GRACE_S + _GIVE_UP_S
                self._close("life")
            if given_up is not None and now > given_up:
                raise MeshError(f"{shown(self.command.argv[0])} does not end, not even by SIGKILL")

    def _feed(self) -> None:
        try:
            sent = os.write(self._ends["stdin"], self._unsent[:_BLOCK_BYTES])
        except BlockingIOError:
            return
        except OSError:  # it does not read on
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._close("stdin")

    def _read(self, name: str) -> None:
        try:
            data = os.read(self._ends[name], _BLOCK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close(name)
        elif name == "status":
            self.report += data
            self._started = self._started or time.monotonic()
        else:
            self.outputs[name].take(data)

    def _close(self, name: str) -> None:
        end = self._ends.pop(name, None)
        if end is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            os.close(end)

    def answer(self, result_limit_bytes: int) -> dict[str, Any]:
        """What became of it, see `execute`."""
        words = [word for word in self.report.decode().split() if word != "started"]
        if words[:1] == ["error"]:
            why = os.strerror(int(words[1]))
            raise Invalid(f"{shown(self.command.argv[0])} cannot be started: {why}")
        if len(words) != 3:
            raise MeshError(
                f"the warden of {shown(self.command.argv[0])} was killed, and the program with it"
            )
        number = int(words[1])
        ended: dict[str, Any] = {
            "exit_code": number if words[0] == "exit" else None,
            "signal": _signal_name(number) if words[0] == "signal" else None,
            "duration_s": float(words[2]),
            "timed_out": self.timed_out,
        }
        limit = self.command.max_output_bytes
        while True:
            answer = {**ended, **self._outputs(limit)}
            if len(json.dumps(answer)) <= result_limit_bytes or not limit:
                return answer
            limit = (
                min(limit, *(max(1, len(output.kept)) for output in self.outputs.values() if output.kept))
                // 2
            )

    def _outputs(self, limit: int) -> dict[str, Any]:
        shown: dict[str, Any] = {"truncated": False}
        for name, output in self.outputs.items():
            data = bytes(output.kept[:limit])
            cut = output.total > len(data)
            shown[name] = _text(data, cut)
            shown[f"{name}_bytes"] = output.total
            shown["truncated"] = shown["truncated"] or cut
        return shown


def _text(data: bytes, cut: bool) -> str | dict[str, str]:
    """UTF-8 as text, also if it was cut within a character; anything else as base64."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - 3 and error.reason == "unexpected end of data":
            return data[: error.start].decode()
        return {"base64": base64.b64encode(data).decode("ascii")}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"
