"""The Kombu transport: a fetch leases in one atomic step, an acknowledgement goes through the outbox.

Every queue that carries tasks goes through the store. Fanout (events, remote control) and reply queues stay with Kombu's
own Redis transport, the parent class, under the namespace's prefix. The event loop is the parent's too: where it sends BRPOP,
this channel sends the outbox and a fetch, and, when there was nothing to fetch, waits at the bells of its queues.
"""

from __future__ import annotations

import os
from queue import Empty
from time import monotonic
from typing import Any

from celery.worker import state as worker_state
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.eventio import READ

from mesh.bus import runtime
from mesh.bus.holdings import Batch, Holding, Holdings
from mesh.bus.messages import Delivery, Message
from mesh.bus.opening import Seen, open_task
from mesh.bus.publishing import DEFAULT_PRIORITY, publish
from mesh.core.envelopes import Rejected
from mesh.core.requirements import satisfies
from mesh.core.states import Reason
from mesh.errors import StoreUnavailable
from mesh.store.client import NETWORK_ERRORS, NoScriptError, NotNow, pack, read_reply
from mesh.store.connections import HEALTH_CHECK_S
from mesh.store.scripts import Bound
from mesh.store.signing import keys_of
from mesh.store.store import Store
from mesh.store.tasks import Entry, Fetch

WAIT_S = 1.0  # a wait at the bells ends after so long, then a fetch looks for what no bell told
_REFUSED_S = 0.5  # after Redis has refused a fetch
_REFUSED_ALL = 64  # tasks that are fetched at least after a fetch of which all was refused: what is in order waits behind it
_REPLY_KEPT_MS = 3_600_000


def carries_tasks(queue: str) -> bool:
    """Whether a queue is the store's; the others belong to remote control and events."""
    return not (queue.endswith(".pidbox") or queue.startswith("celeryev"))


class QoS(virtual.QoS):  # type: ignore[misc]
    """Acknowledgements by delivery tag; how much is fetched is decided by the holdings, not by a prefetch count."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._on_collect.cancel()  # nothing is restored when this object goes: the leases say who holds what

    def can_consume(self) -> bool:
        """Whether there is room for more."""
        holdings = runtime.holdings
        if holdings is None or not self.channel.task_queues():
            return True
        if holdings.room() > 0:
            return True
        holdings.starve()
        return False

    def append(self, message: Any, delivery_tag: str) -> None:
        """Tasks are held by the process; replies and events need no acknowledgement."""

    def ack(self, delivery_tag: str) -> None:
        """The message is done with."""
        holding = self._holding(delivery_tag)
        if holding is not None:
            self.channel.holdings.acknowledge(holding, recorded_elsewhere=False)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give it back, or put it aside: nobody here can read it."""
        holding = self._holding(delivery_tag)
        if holding is None:
            return
        if requeue:
            self.channel.holdings.release([holding])
        else:
            self.channel.holdings.acknowledge(holding, recorded_elsewhere=False)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The channel closes: Celery forgets what its pool has not accepted, so that goes back."""
        holdings = runtime.holdings
        if holdings is not None and self.channel.task_queues():
            try:
                holdings.release(holdings.unstarted())
            except Exception as error:
                # Redis is not there: the leases end by themselves.
                kombu_redis.logger.info("unstarted tasks are left to their leases: %s", error)

    def _holding(self, tag: str) -> Holding | None:
        return self.channel.holdings.by_tag.get(tag)  # type: ignore[no-any-return]


class Poller(kombu_redis.MultiChannelPoller):  # type: ignore[misc]
    """The parent's poller, which also listens to the pipe that tells of room for more tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.hub: Any = None  # the event loop, where there is one
        self._watched: int | None = None

    def on_poll_start(self) -> None:
        """Called before each turn of the loop; a channel whose command is under way costs nothing here."""
        wake = runtime.holdings.wake if runtime.holdings is not None else None
        if wake is not None and self.hub is None and self._watched != wake.reader:
            self._watched = wake.reader
            self.poller.register(wake.reader, self.eventflags)
        for channel in self._channels:
            if (
                not channel._in_poll
                and channel.active_queues
                and channel.may_ask()
                and channel.qos.can_consume()
            ):
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_readable(self, fileno: int) -> Any:
        """A reply is read whether there is room or not: what it leases is held already."""
        holdings = runtime.holdings
        if holdings is not None and fileno == holdings.wake.reader:
            holdings.wake.clear()
            return None
        entry = self._fd_to_chan.get(fileno)
        if entry is not None and entry[1] == "BRPOP" and entry[0]._sent is not None:
            return entry[0].handlers["BRPOP"]()
        return super().on_readable(fileno)

    def handle_event(self, fileno: int, event: int) -> Any:
        """The same for loops without a hub."""
        holdings = runtime.holdings
        if holdings is not None and fileno == holdings.wake.reader:
            holdings.wake.clear()
            return None
        entry = self._fd_to_chan.get(fileno)
        if event & READ and entry is not None and entry[1] == "BRPOP" and entry[0]._sent is not None:
            return entry[0].handlers["BRPOP"](), self
        return super().handle_event(fileno, event)

    @property
    def fds(self) -> dict[int, Any]:
        """Descriptors that the loop has to watch and does not yet."""
        wanted: dict[int, Any] = dict(self._fd_to_chan)
        if runtime.holdings is not None and any(channel.task_queues() for channel in self._channels):
            wanted[runtime.holdings.wake.reader] = None
        known = self.hub.readers if self.hub is not None else ()
        return {fd: channel for fd, channel in wanted.items() if fd not in known}


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """See the module's text."""

    QoS = QoS
    Message = Message
    default_priority = DEFAULT_PRIORITY
    body_encoding = "utf-8"  # bodies are bytes in the store: no base64
    namespace = "default"
    priority_order = "nine-first"
    from_transport_options = (*kombu_redis.Channel.from_transport_options, "namespace", "priority_order")

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self._sent: tuple[str, Batch | None, int] | None = (
            None  # what the connection's pending replies belong to
        )
        self._idle = False  # the last fetch brought nothing
        self._refused_all = False  # nothing of the last fetch was in order
        self._not_before = 0.0  # Redis has refused a fetch: none is sent before
        self._next_due_ms = -1
        self._own: Holdings | None = None
        self._consumed: list[str] = []
        self._task_queues: list[str] = []
        self._places: list[str] | None = None
        self.namespace = connection.client.transport_options.get("namespace", "default")
        self.store: Store = runtime.store_of(self.namespace)
        connection.client.transport_options.setdefault("global_keyprefix", self.store.keys.of("kombu", ""))
        super().__init__(connection, **kwargs)

    @property
    def holdings(self) -> Holdings:
        """This process's, or (no agent: a plain consumer) the channel's own."""
        if runtime.holdings is not None:
            return runtime.holdings
        if self._own is None:
            self._own = Holdings(
                self.store, holder=f"consumer-{os.getpid()}#0", slots=lambda: 1, isolated=False
            )
        return self._own

    def may_ask(self) -> bool:
        """Whether a fetch may be sent now."""
        return not self._not_before or monotonic() >= self._not_before

    def task_queues(self) -> list[str]:
        """The store's queues among those that this channel consumes."""
        return self._task_queues

    def places(self) -> list[str]:
        """Where the tasks of these queues may wait: the agent's own queue and its region's beside them."""
        if self._places is None:
            self._places = self.holdings.places(self._task_queues) if self._task_queues else []
        return self._places

    @property
    def active_queues(self) -> list[str]:
        """Queues that are consumed, without fanout; kept, not made anew in each turn of the loop."""
        return self._consumed

    def _update_queue_cycle(self) -> None:
        fanout = self.active_fanout_queues
        wanted = [queue for queue in dict.fromkeys(self._active_queues) if queue not in fanout]
        self._consumed = [queue for queue in wanted if not carries_tasks(queue) or self._has_key(queue)]
        self._task_queues = [queue for queue in self._consumed if carries_tasks(queue)]
        self._places = None
        super()._update_queue_cycle()

    def _has_key(self, queue: str) -> bool:
        """A queue is not consumed whose tasks could only be refused."""
        if keys_of(self.store.settings).covers(queue):
            return True
        kombu_redis.logger.error("queue %s is not consumed: there is no key for its tasks here", queue)
        return False

    # -- producing

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Bodies stay as they are for the store; base64 only where Kombu's JSON needs text."""
        return body, encoding

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if carries_tasks(queue):
            publish(self.store, queue, message, zero_first=self.priority_order == "zero-first")
            return
        if isinstance(message.get("body"), bytes):
            message["body"] = message["body"].decode()
        super()._put(queue, message, **kwargs)
        self.store.client.execute("PEXPIRE", self.store.keys.of("kombu", queue), _REPLY_KEPT_MS)

    def create_publish_batch(self, max_size: int) -> Any:
        """Kombu's own batches write lists: not for tasks."""
        raise NotImplementedError("Use Mesh.submit_many to publish tasks in bulk.")

    # -- connections

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """All of them are made like the store's: one place knows URLs, time-outs, and what a sentinel is."""
        params = self.store.client.pool_options(
            health_check_interval=HEALTH_CHECK_S, max_connections=self.max_connections
        )
        if asynchronous:
            channel = self

            kind: Any = params["connection_class"]

            class Watched(kind):  # type: ignore[misc]
                def disconnect(self, *args: Any, **kwargs: Any) -> None:
                    super().disconnect(*args, **kwargs)
                    if channel._registered:
                        channel._on_connection_disconnect(self)

            params["connection_class"] = Watched
        return params

    # -- queues as Kombu sees them: all that waits for a requirement, wherever it was placed

    def _size(self, queue: str) -> int:
        if not carries_tasks(queue):
            return int(super()._size(queue))
        return self.store.tasks.counts().get(queue, {}).get("queued", 0)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return True if carries_tasks(queue) else super()._has_queue(queue, **kwargs)

    def _purge(self, queue: str) -> int:
        if not carries_tasks(queue):
            return int(super()._purge(queue))
        tasks, purged = self.store.tasks, 0
        while ids := tasks.waiting(queue):
            purged += sum(tasks.cancel(one, "purged")[0] == "moved" for one in ids)
        for place in tasks.places():
            for record in tasks.records(tasks.waiting(place)):
                if record is not None and record.queue == queue:
                    purged += tasks.cancel(record.id, "purged")[0] == "moved"
        return purged

    def _delete(
        self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any
    ) -> None:
        if carries_tasks(queue):
            self._purge(queue)
        else:
            super()._delete(queue, exchange, routing_key, pattern, *args, **kwargs)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        # Celery publishes to a direct queue by its name; only what needs a table gets one.
        if not (carries_tasks(queue) and exchange == queue):
            super()._queue_bind(exchange, routing_key, pattern, queue)

    # -- consuming: the parent's event loop calls these two where it would send and read BRPOP

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self.places()
        if not queues:
            super()._brpop_start(timeout)
            return
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        holdings = self.holdings
        if self._idle and not holdings.outbox._ends:
            wait_s = WAIT_S if self._next_due_ms < 0 else min(WAIT_S, max(0.01, self._next_due_ms / 1000))
            bells = [self.store.keys.of("bell", queue) for queue in queues]
            self._idle = False
            self._sent = ("wait", None, 1)
            connection.send_packed_command([pack(["BLPOP", *bells, wait_s])], check_health=False)
            return
        batch = holdings.outbox.take()
        calls: list[tuple[Bound, list[Any]]] = list(batch.calls) if batch else []
        calls.append(
            self.store.tasks.fetch_words(
                holder=holdings.holder,
                isolated=holdings.isolated,
                nonce=os.urandom(4).hex(),
                limit=max(_REFUSED_ALL if self._refused_all else 1, holdings.room()),
                held=len(holdings.by_tag),
                queues=queues,
            )
        )
        self._sent = ("fetch", batch, len(calls))
        data = b"".join([bound.pack(words) for bound, words in calls])
        connection.send_packed_command(
            [data], check_health=False
        )  # a failure disconnects: the batch is given back

    def _brpop_read(self, **options: Any) -> Any:
        if self._sent is None:
            return super()._brpop_read(**options)
        kind, batch, number = self._sent
        holdings = self.holdings
        connection = self.client.connection
        try:
            replies = [read_reply(connection) for _ in range(number)]
        except NETWORK_ERRORS:
            connection.disconnect()  # which gives the batch back, see `_on_connection_disconnect`
            raise
        self._sent = self._in_poll = None
        failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if failed is not None:
            self._refused(batch, replies, failed)
        elif kind == "wait":
            if replies[0] and holdings.room() <= 0:
                self.store.tasks.ring(replies[0][0])
        else:
            if batch is not None:
                holdings.outbox.confirm(batch, replies[:-1])
            found = self.store.tasks.fetched(replies[-1])
            self._next_due_ms, self._idle = found.next_due_ms, not found.tasks
            if found.tasks:
                self._deliver_all(found, holdings)
                return True
        raise Empty

    def _refused(self, batch: Batch | None, replies: list[Any], error: Exception) -> None:
        """Redis has answered with an error: what it did take is over, the rest is sent again. The agent lives on."""
        outbox = self.holdings.outbox
        if batch is not None and batch.ends and not isinstance(replies[len(batch.calls) - 1], Exception):
            outbox.confirm(batch, replies[: len(batch.calls)])
        else:
            outbox.put_back(batch)
        if isinstance(error, NoScriptError):
            self.store.preload()
            return
        self._not_before = monotonic() + _REFUSED_S
        if isinstance(error, NotNow):
            kombu_redis.logger.warning("no tasks are fetched: Redis %s (%s)", error.sentence, error)
        else:
            kombu_redis.logger.error("no tasks are fetched: %s", error)

    def _on_connection_disconnect(self, connection: Any) -> None:
        """A connection is gone: what was under way on it is sent again on the next one."""
        held = runtime.holdings or self._own
        if held is not None:
            held.seen = Seen()  # who comes back may have forgotten: whatever it has is to be run
        if self._sent is not None and self._in_poll is connection:
            batch, self._sent = self._sent[1], None
            self.holdings.outbox.put_back(batch)
        super()._on_connection_disconnect(connection)

    def _deliver_all(self, found: Fetch, holdings: Holdings) -> None:
        room = max(1, holdings.room())
        deliveries = self._opened(found, holdings, self._task_queues)
        if self._refused_all and len(deliveries) > room:  # more was fetched than there is room for
            holdings.release([one.holding for one in deliveries[room:]])
        self._refused_all = not deliveries
        for delivery in deliveries:
            if delivery.holding.dropped:
                continue
            if (
                worker_state.should_stop is not None
                or worker_state.should_terminate is not None
                or holdings.closed
            ):
                holdings.release([one.holding for one in deliveries if one.holding.started_at is None])
                return
            self.connection._deliver(delivery, delivery.holding.queue)

    def _opened(self, found: Fetch, holdings: Holdings, queues: list[str]) -> list[Delivery]:
        """The attempts that may be run, each held. The others are refused."""
        keys, opened = keys_of(self.store.settings), []
        held = [  # all before any is refused: who is refused makes room
            holdings.add(task.id, task.fence, task.run, task.queue, task.priority) for task in found.tasks
        ]
        for task, holding in zip(found.tasks, held, strict=True):
            try:
                if task.queue not in queues and not self._offers(task.queue):
                    raise Rejected(Reason.MOVED, f"a task of queue {task.queue[:200]!r} is not this agent's")
                message, holding.proof, *_ = open_task(keys, task.queue, task.id, task.message, found.now_ms)
                if holding.proof in holdings.seen:
                    raise Rejected(Reason.REPLAYED, "this very message has been run to its end before")
                delivery = Delivery(holding, message, task.redelivered)
            except Rejected as refused:
                holdings.refuse(holding, refused)
                continue
            except (ValueError, TypeError, RecursionError) as error:  # of who may sign, but no task's message
                holdings.refuse(holding, Rejected(Reason.UNREADABLE, f"its message cannot be read: {error}"))
                continue
            if task.watched and not holdings.isolated:
                holdings.alone_until = monotonic() + holdings.store.settings.lease_ms / 1000
            opened.append(delivery)
        return opened

    def _offers(self, queue: str) -> bool:
        offered = self.holdings.offered
        return offered is not None and satisfies(offered, queue)

    def _get(self, queue: str) -> Any:
        if not carries_tasks(queue):
            return super()._get(queue)
        holdings = self.holdings
        while True:
            bound, words = self.store.tasks.fetch_words(
                holder=holdings.holder,
                isolated=False,
                nonce=os.urandom(4).hex(),
                limit=1,
                held=0,
                queues=[queue],
            )
            found = self.store.tasks.fetched(bound(*words))
            if not found.tasks:
                raise Empty
            for delivery in self._opened(found, holdings, [queue]):
                return delivery

    def close(self) -> None:
        """Close; a fetch under way is read first, and what it brought is given back."""
        if self._sent is not None and self._in_poll:
            kind, batch, _ = self._sent
            if kind == "wait":
                self._sent = self._in_poll = None
            else:
                self._abandon_fetch(batch)
        super().close()

    def _abandon_fetch(self, batch: Batch | None) -> None:
        connection, number = self.client.connection, self._sent[2] if self._sent else 0
        holdings = self.holdings
        self._sent = self._in_poll = None
        try:
            replies = [read_reply(connection) for _ in range(number)]
            if batch is not None:
                holdings.outbox.confirm(batch, replies[:-1])
            tasks = self.store.tasks.fetched(replies[-1]).tasks
            self.store.tasks.release([Entry(task.id, task.fence) for task in tasks])
        except Exception as error:
            holdings.outbox.put_back(batch)
            kombu_redis.logger.info("a fetch was lost with its connection: %s", error)


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """`broker_transport = "mesh.bus.transport:Transport"` with a `redis://` URL."""

    Channel = Channel
    driver_type = "mesh"  # not "redis": gossip and mingle stay off, n agents would send n * n messages
    driver_name = "mesh"
    implements = kombu_redis.Transport.implements.extend(batch_publish=False)
    # What the store says of an outage is one for Celery too: it connects anew, and holds on to what it holds.
    connection_errors = (*kombu_redis.Transport.connection_errors, StoreUnavailable)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Celery's event loop watches our sockets."""
        self.cycle.hub = loop
        super().register_with_event_loop(connection, loop)

    @property
    def supports_batch_publish(self) -> bool:
        """Tasks are published one by one here; see `Mesh.submit_many`."""
        return False
