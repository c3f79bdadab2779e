"""A command on a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from dataclasses import dataclass, field

from tests.acceptance.conftest import MESH, Place

ESCAPE = "\x1b["


@dataclass(kw_only=True)
class Terminal:
    """A command on a pseudo-terminal; what it writes is read all the time, as a terminal does."""

    process: subprocess.Popen[bytes]
    master: int
    written: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux's way of saying that the other end is closed
                return
            if not data:
                return
            self.written += data

    def text(self) -> str:
        return self.written.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """Its exit code, once all that it wrote is read."""
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
        self._reader.join(10)
        os.close(self.master)
        return code


def on_terminal(place: Place, *words: str, columns: int = 100, **environ: str | None) -> Terminal:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = place.environment({"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": None, **environ})
    process = subprocess.Popen(
        [*MESH, *words], stdin=slave, stdout=slave, stderr=slave, cwd=place.folder, env=environment,
        start_new_session=True, preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(slave)
    return Terminal(process=process, master=master)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
