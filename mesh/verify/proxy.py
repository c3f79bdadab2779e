"""A TCP proxy on loopback whose network can be broken: cut, frozen, deaf or mute, slow, lossy.

One thread serves all connections. Whatever is asked of it happens in that thread, and has happened when the call returns.
It plays what TCP lets an application see of a broken network, and nothing else: bytes are late or the connection dies,
but they never arrive in another order or with a gap. So a connection that lost bytes in one direction is reset by `heal`.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from mesh.store.embedded import free_port

__all__ = ["Direction", "Proxy"]

Direction = Literal["requests", "replies"]

_CHUNK_BYTES = 65536
_HELD_BYTES = 1 << 20  # a direction: the sender waits then, as with a full socket buffer
_BACKLOG = 512
_PORT_ATTEMPTS = 8
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER without time: close sends RST


@dataclass(eq=False)
class _Flow:
    """One direction of a connection. `held`: (when it may go on, bytes), in order."""

    direction: Direction
    source: socket.socket
    target: socket.socket
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    held_bytes: int = 0
    last_due: float = 0.0
    blocked: bool = False  # the target takes no more now
    ended: bool = False  # the source has sent its last byte
    lost: bool = False  # something of it was swallowed


@dataclass(eq=False)
class _Pair:
    """One connection: two sockets, two flows."""

    requests: _Flow
    replies: _Flow
    connecting: bool = True
    stranded: bool = False  # nothing goes through any more, and neither side is told

    def flows(self) -> tuple[_Flow, _Flow]:
        return self.requests, self.replies


@dataclass(frozen=True, kw_only=True)
class _Weather:
    """What is wrong with the network; each field on its own."""

    cut: bool = False
    frozen: bool = False
    dropped: frozenset[Direction] = frozenset()
    delay_s: float = 0.0
    lost_share: float = 0.0
    stall_s: float = 0.0


class Proxy:
    """Forwards connections to `host`:`port`. Listens on 127.0.0.1:`.port` from its construction on; `close` ends it.

    `seed`: of the dice that `lose` throws. Made for some 500 connections.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.host, self.upstream_port = host, port
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._family, self._upstream = found[0], found[4]
        self._dice = random.Random(seed)
        self._weather = _Weather()
        self._pairs: set[_Pair] = set()
        self._of: dict[socket.socket, tuple[_Pair, _Flow, _Flow]] = {}  # pair, flow from it, flow to it
        self._late: set[_Flow] = set()  # flows that hold bytes
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._closing = False
        self._listener = _listener()
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    # -- what a user calls

    def cut(self) -> None:
        """Reset all connections, refuse new ones."""
        self._change(cut=True)

    def freeze(self) -> None:
        """Accept, but forward nothing, either way; `heal` lets what waits go on."""
        self._change(frozen=True)

    def drop(self, direction: Direction) -> None:
        """Swallow what comes in one direction, also that the sender has closed; the other one works."""
        self._do(lambda: self._set(dropped=self._weather.dropped | {direction}))

    def delay(self, ms: float) -> None:
        """Let all that is sent arrive `ms` later, in both directions."""
        self._change(delay_s=ms / 1000)

    def lose(self, share: float, stall_ms: float = 300) -> None:
        """Let this share of what is sent (0 to 1) arrive `stall_ms` later, and all behind it: lost and sent again."""
        self._change(lost_share=share, stall_s=stall_ms / 1000)

    def reset(self) -> None:
        """Reset the connections that are open now; new ones work."""
        self._do(self._reset_all)

    def strand(self) -> None:
        """Leave the connections that are open now half-open: what they send is swallowed, nobody is told; new ones work."""
        self._do(self._strand_all)

    def heal(self) -> None:
        """The network is whole again."""
        self._do(self._heal)

    def url(self, redis_url: str) -> str:
        """The same URL through this proxy."""
        parts = urlsplit(redis_url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._pairs)

    def close(self) -> None:
        """Reset all connections, and listen no more."""
        if self._thread.is_alive():
            with contextlib.suppress(OSError, RuntimeError):  # somebody else closed it meanwhile
                self._do(self._end)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- orders, carried out by the thread

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.append((order, done))
        self._rope.send(b"!")
        while not done.wait(1.0):
            if not self._thread.is_alive():
                raise RuntimeError("The proxy is closed.")

    def _change(self, **fields: Any) -> None:
        self._do(lambda: self._set(**fields))

    def _set(self, **fields: Any) -> None:
        before = self._weather
        self._weather = replace(before, **fields)
        if self._weather.cut and not before.cut:
            self._refuse()
        for pair in self._pairs:
            self._watch(pair)

    def _refuse(self) -> None:
        self._selector.unregister(self._listener)
        # Linux: listens no more and keeps its port, so that connections are refused and `heal` gets it back.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:  # elsewhere: accepted, and reset at once
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._reset_all()

    def _heal(self) -> None:
        was_cut = self._weather.cut
        for pair in [one for one in self._pairs if one.requests.lost or one.replies.lost]:
            self._drop_pair(pair)
        self._set(**vars(_Weather()))
        if was_cut:
            self._listener.listen(_BACKLOG)
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._listener)
            self._selector.register(self._listener, selectors.EVENT_READ)
        for flow in list(self._late):
            flow.held = deque((0.0, chunk) for _, chunk in flow.held)
            flow.last_due = 0.0

    def _strand_all(self) -> None:
        for pair in self._pairs:
            pair.stranded = True

    def _reset_all(self) -> None:
        for pair in list(self._pairs):
            self._drop_pair(pair)

    def _end(self) -> None:
        self._closing = True

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, events in self._selector.select(self._pause_s()):
                    self._handle(key.fileobj, events)  # type: ignore[arg-type]
                self._obey()
                self._push_due()
        finally:
            self._reset_all()
            for one in (self._listener, self._bell, self._rope):
                one.close()
            self._selector.close()

    def _obey(self) -> None:
        while self._orders:
            order, done = self._orders.popleft()
            order()
            done.set()

    def _pause_s(self) -> float | None:
        """Until the next held bytes may go on; None: nothing is held."""
        if self._weather.frozen:
            return None
        due = [flow.held[0][0] for flow in self._late if not flow.blocked]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _push_due(self) -> None:
        if self._late and not self._weather.frozen:
            for flow in list(self._late):
                if flow in self._late:  # its pair may have died by the push before
                    self._push(flow)

    def _handle(self, one: socket.socket, events: int) -> None:
        if one is self._listener:
            self._accept()
        elif one is self._bell:
            with contextlib.suppress(BlockingIOError):
                one.recv(4096)
        elif one in self._of:
            pair, outgoing, incoming = self._of[one]
            if events & selectors.EVENT_WRITE:
                if pair.connecting and one is pair.requests.target:
                    self._connected(pair)
                incoming.blocked = False
                if one in self._of:
                    self._push(incoming)
            if events & selectors.EVENT_READ and one in self._of:
                self._read(pair, outgoing)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it went away before it was looked at
        if self._weather.cut:
            _abort(client)
            return
        try:
            server = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError:  # no descriptors are left: this connection dies, the proxy does not
            _abort(client)
            return
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.connect_ex(self._upstream)
        pair = _Pair(_Flow("requests", client, server), _Flow("replies", server, client))
        self._pairs.add(pair)
        self._of[client] = (pair, pair.requests, pair.replies)
        self._of[server] = (pair, pair.replies, pair.requests)
        self._watch(pair)

    def _connected(self, pair: _Pair) -> None:
        if pair.requests.target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop_pair(pair)
            return
        pair.connecting = False
        self._watch(pair)

    def _read(self, pair: _Pair, flow: _Flow) -> None:
        try:
            chunk = flow.source.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop_pair(pair)
            return
        flow.ended = not chunk
        weather = self._weather
        if pair.stranded or flow.direction in weather.dropped:
            flow.lost = True
            self._settle(pair)
            return
        due = 0.0
        if weather.delay_s or weather.lost_share:
            due = time.monotonic() + weather.delay_s
            if self._dice.random() < weather.lost_share:
                due += weather.stall_s
            due = max(due, flow.last_due)
        flow.last_due = due
        flow.held.append((due, chunk))  # b'' stands for the end
        flow.held_bytes += len(chunk)
        self._late.add(flow)
        self._push(flow)

    def _push(self, flow: _Flow) -> None:
        """Send on what is due."""
        if self._weather.frozen:
            return
        pair = self._of[flow.source][0]
        now = time.monotonic()
        try:
            while flow.held and not pair.connecting and flow.held[0][0] <= now:
                due, chunk = flow.held[0]
                if not chunk:
                    flow.target.shutdown(socket.SHUT_WR)
                sent = flow.target.send(chunk) if chunk else 0
                flow.held_bytes -= sent
                if sent < len(chunk):
                    flow.held[0] = (due, chunk[sent:])
                    flow.blocked = True
                    break
                flow.held.popleft()
        except (BlockingIOError, InterruptedError):
            flow.blocked = True
        except OSError:
            self._drop_pair(pair)
            return
        flow.blocked = flow.blocked or pair.connecting
        if not flow.held:
            self._late.discard(flow)
        self._settle(pair)

    def _settle(self, pair: _Pair) -> None:
        """Close a connection that both sides have ended; go on with another."""
        if all(flow.ended and not flow.held for flow in pair.flows()):
            self._drop_pair(pair, abort=False)
        else:
            self._watch(pair)

    def _watch(self, pair: _Pair) -> None:
        """Ask the selector for what the two sockets are to be woken by."""
        frozen = self._weather.frozen
        for outgoing, incoming in ((pair.requests, pair.replies), (pair.replies, pair.requests)):
            one, events = outgoing.source, 0
            connecting = pair.connecting and outgoing is pair.replies
            if not (outgoing.ended or frozen or connecting) and outgoing.held_bytes < _HELD_BYTES:
                events |= selectors.EVENT_READ
            if connecting or (incoming.blocked and not frozen and not pair.connecting):
                events |= selectors.EVENT_WRITE
            known = self._selector.get_map().get(one)
            if known is None and events:
                self._selector.register(one, events)
            elif known is not None and not events:
                self._selector.unregister(one)
            elif known is not None and known.events != events:
                self._selector.modify(one, events)

    def _drop_pair(self, pair: _Pair, *, abort: bool = True) -> None:
        self._pairs.discard(pair)
        for flow in pair.flows():
            self._late.discard(flow)
            self._of.pop(flow.source, None)
            with contextlib.suppress(KeyError):
                self._selector.unregister(flow.source)
            if abort:
                _abort(flow.source)
            else:
                flow.source.close()


def _listener() -> socket.socket:
    """On a free port of loopback, asked for by number: only then it stays ours while nobody listens."""
    for number in range(_PORT_ATTEMPTS):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(("127.0.0.1", free_port()))
            listener.listen(_BACKLOG)
        except OSError:  # somebody was faster
            listener.close()
            if number == _PORT_ATTEMPTS - 1:
                raise
            continue
        return listener
    raise AssertionError("unreachable: the last attempt returns or raises")


def _abort(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()
