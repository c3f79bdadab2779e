"""The agent's boot steps: join, beat, drain, leave. Wiring only; what they wire is in the modules beside this one."""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown
from celery.worker import state as worker_state

from .. import __version__
from ..bus import runtime
from ..bus.holdings import Holding, Holdings
from ..bus.install import use_broker
from ..bus.limits import end_overrun
from ..bus.task import task_types
from ..bus.tracing import watch
from ..bus.transport import carries_tasks
from ..core.agents import Health, condition
from ..core.names import check_name
from ..core.places import regional
from ..core.requirements import capabilities_of, is_compound, satisfies
from ..core.states import Reason
from ..errors import Invalid, MeshError, Unauthenticated
from ..services.audit import Audit
from ..settings import Settings, give_back
from ..store.client import safe_url
from ..store.revocations import Revocations
from ..store.signing import become, keys_of
from ..store.store import Store
from ..telemetry.logging import about
from ..telemetry.metrics import Registry, Sample
from .beat import Beat
from .certificate import OwnCertificate
from .events import send_events, tell_in_batches, tell_the_rest
from .health import TOUCHED_EVERY_S, HealthServer, HeartbeatFile
from .identity import Membership, join, leave
from .joining import Joining
from .leaving import Leaving
from .seclusion import keep_secrets

logger = logging.getLogger(__name__)
_POOL_CHECK_S = 0.5
_DEFAULT_REQUEST = "celery.worker.request:Request"


class Agent:
    """One agent: a Celery worker that has joined a namespace."""

    def __init__(self, worker: Any, options: dict[str, Any]) -> None:
        self.worker, self.app = worker, worker.app
        self.namespace: str = self.app.conf.broker_transport_options["namespace"]
        self.settings = _settings(runtime.settings_of(self.namespace), options)
        self.consumer: Any = None
        self.calls: deque[Callable[[], Any]] = deque()  # that wait for the main loop
        self.consuming = False
        self.isolated = "prefork" in type(worker.pool).__module__
        if self.isolated:
            from .pool import Pool  # not where there are no such pipes

            worker.pool.Pool = Pool
        self.capabilities = self._capabilities()
        self.joining = Joining(self.settings, self.capabilities) if self.settings.joins else None
        if self.joining is not None:
            self.settings = self.joining.join()
            use_broker(self.app, self.settings)
        try:
            self._enter()
        except BaseException:
            if self.joining is not None:
                self.joining.leave()
            raise

    def _enter(self) -> None:
        """Join the namespace in Redis, and prepare all that the boot steps start."""
        if self.joining is not None:
            self.kids = self.joining.kids
        else:  # without a secret, or with a wrong file of policies, it ends here
            self.kids, _ = self.settings.keyring.kids, self.settings.policies
        self.heartbeat = HeartbeatFile(self.settings.heartbeat_file)
        self.store = runtime.store_of(self.namespace)
        self.health = HealthServer(
            self.settings.agent_port,
            asked=self.settings.port_was_asked,
            report=self.report,
            metrics=lambda accept: self.metrics.exposition(accept),
        )
        try:
            self.durability = self.store.check(config=False)  # agents may not read Redis's settings
            self.store.preload()
            self.types = task_types(self.app, self.capabilities)
            self.store.types.advertise(self.types)  # before it joins: who sees the agent knows its types
            self.membership: Membership = join(
                self.store,
                self.settings,
                self.capabilities,
                port=self.health.port,
                slots=self.slots(),
                grace_ms=self.settings.drain_grace_ms,
                kids=",".join(self.kids),  # for `mesh.core.rotation`
                **(self.joining.proof if self.joining is not None else {}),
            )
            self.certificate = (
                OwnCertificate(self.store, self.settings, self.membership.agent_id)
                if self.joining is None
                else None
            )
        except BaseException:
            self.health._server.server_close()
            raise
        about(agent=self.membership.agent_id)
        self.store.client.close()  # pool children are forked next: no socket is shared with them
        self.holdings = Holdings(
            self.store, holder=self.membership.holder, slots=self.slots, isolated=self.isolated
        )
        self.holdings.region = self.settings.agent_region
        self.holdings.offered = frozenset(self.capabilities)
        self.holdings.outbox.on_chords_due = self.complete_chords
        self.holdings.stop = self.stop
        self.leaving = Leaving(self.settings, self.membership, self.holdings, self.worker)
        self.audit = Audit(self.store.client, self.namespace, self.store.keys["told"])
        self.revocations: Revocations | None = None
        self.holdings.refusals.tell = self.tell_refused
        self.beat = Beat(
            self.settings,
            self.membership,
            self.holdings,
            on_main=self.on_main,
            on_requirements=lambda names: self.on_main(lambda: self.consume_compound(names)),
            on_chords_due=lambda groups: self.on_main(lambda: self.complete_chords(groups)),
            on_poison=lambda ids: self.on_main(lambda: self.tell_of_poison(ids)),
            on_lost=self.stop_lost,
            on_overrun=self.end_overrun,
            pool_stops=self.isolated or self.worker.pool.is_green,
            on_absent=lambda: self.on_main(self.offer),
            on_asked=self.obey,
            on_usurped=self.usurped,
            load=self.load,
            renew=self.renew,
            types=self.types,
        )
        self.metrics = Registry(
            "agent", "process", read=self.samples, pulse=self.beat.pulse, version=__version__
        )
        self._prepare_tasks()
        watch(forks=self.isolated)
        self._select_queues()
        if self.joining is not None:
            self.joining.on_cut_off, self.joining.on_usurped = self.cut_off, self.usurped
        runtime.become_agent(self.holdings, self.tell_revoked)
        send_events(self.app)

    def renew(self, store: Store) -> None:
        """With each beat, in its thread and on its connections: what it signs with, and which certificates no longer count.

        Raises `StoreUnavailable`.
        """
        if self.certificate is not None:
            self.certificate.renew(store)
        if self.revocations is None:
            self.revocations = Revocations(store.client)
        self.revocations.refresh()
        keys_of(self.settings).revoked = self.revocations.is_revoked

    # -- what it offers

    def _capabilities(self) -> tuple[str, ...]:
        given = self.settings.agent_capabilities
        default = {self.app.conf.task_default_queue}
        if not given:
            asked = set(self.app.amqp.queues.consume_from)  # -Q, or the application's own task_queues
            given = tuple(sorted(asked)) if asked != default else ()
        if not given:
            own = [task for name, task in self.app.tasks.items() if not name.startswith("celery.")]
            needed = {one for task in own for one in capabilities_of(getattr(task, "queue", None) or "")}
            plain = any(not getattr(task, "queue", None) for task in own)
            given = tuple(sorted(needed | (default if plain or not needed else set())))
        return tuple(dict.fromkeys(check_name("capability", name) for name in given))

    def _select_queues(self) -> None:
        _, compound = self.store.agents.requirements()
        offered = frozenset(self.capabilities)
        self.app.amqp.queues.select(
            [*self.capabilities, *(name for name in compound if satisfies(offered, name))]
        )

    def _prepare_tasks(self) -> None:
        """Every task's request is watched, and acknowledged when it has ended: the lease says who has it until then."""
        self.app.finalize()
        for task in self.app.tasks.values():
            if task.Request == _DEFAULT_REQUEST:
                task.Request = "mesh.bus.request:Request"
            task.acks_late = True
            task.acks_on_failure_or_timeout = True

    # -- what it is asked

    def slots(self) -> int:
        """How many tasks it runs at once."""
        try:
            return int(self.worker.pool.num_processes or 1)
        except AttributeError:  # prefork counts its processes, and has not started any yet
            return int(self.worker.concurrency or 1)

    def load(self) -> dict[str, Any]:
        """Figures that each beat tells."""
        overran, taken = self.holdings.running_on()
        running = sum(holding.started_at is not None for holding in self.holdings.held())
        return {
            "slots": self.slots(),
            "running": running,
            "held": len(self.holdings.by_tag),
            "state": "draining"
            if self.leaving.begun
            else "ready"
            if self.consumer is not None
            else "starting",
            "average_ms": int(self.holdings.run_time.average_s * 1000),
            "overrunning": overran + taken,
            "kids": ",".join(self.joining.kids if self.joining is not None else self.kids),
            "condition": condition(overran=overran, taken=taken),
        }

    def report(self) -> dict[str, Any]:
        """The body of `/health`."""
        silent_s = time.monotonic() - self.beat.last_beat
        load, status = self.load(), "healthy"
        trouble = self.joining.trouble if self.joining is not None else ""
        if self.leaving.begun:
            status = "draining"
        elif silent_s >= self.settings.lease_ms / 1000:
            status = "unhealthy"
        elif load["condition"] or trouble:
            status = "degraded"
        return {
            "status": status,
            "ready": self.consuming and status in ("healthy", "degraded"),
            **({"detail": trouble} if trouble else {}),
            **({"leaves_in_s": round(self.leaving.left_s, 1)} if self.leaving.begun else {}),
            "agent": self.membership.agent_id,
            "namespace": self.namespace,
            "capabilities": list(self.capabilities),
            "seconds_since_beat": round(silent_s, 3),
            "refused_results": self.holdings.outbox.refused,
            "refused_tasks": self.holdings.refusals.count,
            **load,
        }

    def samples(self) -> Iterator[Sample]:
        """What `/metrics` tells beside its beats."""
        report = self.report()
        running, held = report["running"], report["held"]
        slots = {"running": running, "held": held - running, "free": max(0, report["slots"] - running)}
        for state, number in slots.items():
            yield Sample("agent_slots", (self.namespace, state), number)
        for status in Health:
            yield Sample("agent_status", (self.namespace, str(status)), int(report["status"] == status))

    # -- what its beat tells it

    def on_main(self, function: Callable[[], Any]) -> None:
        """Run a function in the main loop: soon, or as soon as there is one."""
        self.calls.append(function)
        if self.consumer is not None:
            self.consumer.call_soon(self.next_call)
            self.holdings.wake.set()

    def next_call(self) -> None:
        """One of these functions, if any is left."""
        if self.calls:
            self.calls.popleft()()

    def tell_refused(self, task_id: str, reason: Reason, detail: str) -> None:
        """Into the audit log: a message that this agent does not run."""
        self.audit.note(
            subject="", source=f"agent {self.membership.agent_id}", action="run", object=f"task {task_id}",
            allowed=False, why=f"{reason}: {detail}",
        )  # fmt: skip

    def consume_compound(self, names: list[str]) -> None:
        """Consume the requirements of several capabilities that this agent satisfies."""
        offered, new = frozenset(self.capabilities), False
        for name in names:
            if (
                is_compound(name)
                and satisfies(offered, name)
                and not self.consumer.task_consumer.consuming_from(name)
            ):
                self.consumer.add_task_queue(name)
                new = True
        if new:
            self.offer()

    def offer(self) -> None:
        """Tell the store what this agent consumes: from now on tasks are placed with it."""
        if self.leaving.begun:
            return
        keys, names = keys_of(self.settings), self.app.amqp.queues.consume_from
        consumed = [name for name in names if carries_tasks(name) and keys.covers(name)]
        queues = regional(consumed, self.settings.agent_region)
        self.store.agents.offer(self.membership.agent_id, self.membership.incarnation, queues)

    def obey(self, asked: str, drain_ms: int) -> None:
        """An operator's word: `cordoned`, `drain`, or '' (go on). In the beat's thread, which gives back what has not started."""
        self.holdings.cordoned = bool(asked)
        if asked == "drain":
            self.leaving.ask(drain_ms / 1000)
        else:
            logger.warning("cordoned: takes no new work" if asked else "uncordoned: takes new work again")
            self.holdings.wake.set()

    def complete_chords(self, groups: list[str]) -> None:
        """Publish the bodies of chords whose headers are complete."""
        backend = self.app.backend
        if hasattr(backend, "complete_chords"):
            backend.complete_chords(groups)

    def end_overrun(self, holding: Holding, store: Store) -> None:
        """It runs past its time limit: ended without its pool's help, from the beat's thread, since the main one may be held up
        by it; then stopped if the pool can. Raises `StoreUnavailable`."""
        request = holding.request
        if request is None:
            return
        follow = end_overrun(store, self.app.backend, request)
        holding.overran = True
        holding.drop()
        if follow is not None:
            if self.worker.pool.is_green:  # no native thread may use the sockets of its greenlets
                self.on_main(follow)
            else:
                follow()
        self.on_main(lambda: self.stop_lost(holding))

    def stop_lost(self, holding: Holding) -> None:
        """Another agent has it, or it was cancelled: stop it if the pool can; its outcome is refused anyhow."""
        request = holding.request
        logger.warning("task %s (attempt %s) is no longer this agent's", holding.id, holding.fence)
        if request is None or holding.started_at is None:
            self.holdings.forget(holding)
            return
        try:
            self.stop(request)
        except NotImplementedError:
            return  # threads cannot be stopped: its slot is taken until it ends
        self.holdings.forget(holding)

    def stop(self, request: Any) -> None:
        """Stop what the pool runs of an attempt that is over. Raises `NotImplementedError` if the pool cannot."""
        request.holding.seen = "lost"
        request.cancel(self.worker.pool, signal="SIGKILL", emit_retry=False)

    def tell_revoked(self, task_id: str) -> None:
        """A task that waited was revoked here: say so to whoever listens to events."""
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send("task-revoked", uuid=task_id, terminated=False, signum=None, expired=False)

    def tell_of_poison(self, task_ids: list[str]) -> None:
        """Tasks killed their agents, so none of these could say that they failed: their callbacks, and whoever listens."""
        backend = self.app.backend
        if not hasattr(backend, "tell_of_poison"):
            return
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        for task_id, error in backend.tell_of_poison(task_ids):
            logger.error("task %s was put aside as poison: %s", task_id, error)
            if dispatcher is not None and dispatcher.enabled:
                dispatcher.send("task-failed", uuid=task_id, exception=repr(error), traceback=None)

    def usurped(self) -> None:
        """Another process took this id over."""
        logger.critical("another agent has joined as %s: this one stops", self.membership.agent_id)
        self.leaving.usurped = True
        worker_state.should_stop = 7

    def cut_off(self, why: str) -> None:
        """Neither Redis nor the coordinators let it in any more: what it runs is no longer its own."""
        logger.critical("cut off, this agent ends: %s", why)
        self.leaving.usurped = True
        worker_state.should_stop = Unauthenticated.exit_code
        self.leaving.begin("coordinator", 0.0)

    # -- its life

    def start(self) -> None:
        """The pool has started: threads may."""
        # What was loaded so far stays for good: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        threading.Thread(target=self.holdings.outbox.run, daemon=True, name="mesh-outbox").start()
        self.beat.start()
        self.leaving.start()
        self.health.start()
        if self.joining is not None:
            self.joining.start()
            worker_shutdown.connect(
                lambda **_: self.joining.leave(), weak=False
            )  # when all connections are closed
        logger.info(
            "agent %s joined namespace %s on %s: capabilities %s, %d slots, health on port %d",
            self.membership.agent_id,
            self.namespace,
            safe_url(self.settings.redis_url),
            ", ".join(self.capabilities),
            self.slots(),
            self.health.port,
        )
        logger.info("Redis: %s", self.durability.sentence)

    def drain(self, grace_s: float | None = None) -> None:
        """Celery has begun to stop, whatever made it: what runs has no more than the time of grace."""
        if grace_s is not None or not self.leaving.begun:
            self.leaving.begin("worker", grace_s)

    def leave(self) -> None:
        """The pool has stopped: record what is still in the outbox, give back the rest, deregister."""
        while not self.leaving.claim():
            time.sleep(1.0)  # its time was over: this process ends any moment
        if self.holdings.outbox.stop():
            try:
                self.holdings.release([holding for holding in self.holdings.held() if not holding.ended])
                self.beat.stop()
                leave(self.store, self.membership)
            except MeshError as error:
                logger.warning("left without saying so: %s", error)
        self.beat.stop()
        self.audit.close()
        self.health.stop()
        self.heartbeat.remove()
        runtime.become_agent(None)
        become(self.namespace, None, None)
        give_back()  # on SIGHUP Celery starts this program anew


def _settings(settings: Settings, options: dict[str, Any]) -> Settings:
    """The settings with the options of the command line."""
    given = {name: value for name, value in options.items() if value}
    changes: dict[str, Any] = {}
    for name in ("agent_id", "agent_name", "agent_type"):
        if name in given:
            changes[name] = given[name] if name == "agent_name" else check_name("agent id", given[name])
    if "region" in given:
        changes["agent_region"] = given["region"]
    if "capabilities" in given:
        changes["agent_capabilities"] = tuple(
            one.strip() for one in given["capabilities"].split(",") if one.strip()
        )
    if "labels" in given:
        changes["agent_labels"] = _labels(given["labels"])
    if "health_port" in given:
        if not str(given["health_port"]).isdigit():
            raise Invalid(
                f"--health-port is {given['health_port']!r}, but must be a port number from 1 to 65535."
            )
        changes["agent_port"], changes["port_was_asked"] = int(given["health_port"]), True
    return dataclasses.replace(settings, **changes)


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise Invalid(f"--labels is {text!r}, but must be written as name=value,name=value.")
    return {name: value for name, _, value in pairs}


class AgentStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Joins before the pool forks, starts the threads after it, drains before it stops."""

    requires = ("celery.worker.components:Pool",)
    label = "Mesh agent"

    def __init__(self, worker: Any, **options: Any) -> None:
        worker.mesh_agent = None
        self._options = options
        super().__init__(worker, **options)

    def create(self, worker: Any) -> None:
        """Join, or say in one sentence why not."""
        keep_secrets()
        try:
            worker.mesh_agent = Agent(worker, self._options)
        except MeshError as error:
            print(f"Error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from None
        if not worker.options.get("heartbeat_interval"):
            # Flower judges workers by Celery's event heartbeat: slowed to the mesh's own, not dropped.
            worker.options["heartbeat_interval"] = worker.mesh_agent.settings.heartbeat_interval_ms / 1000

    def start(self, worker: Any) -> None:
        """The pool runs."""
        worker.mesh_agent.start()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """A dead pool child is often noticed before it can be waited for; Celery would look again after 5 s only."""
        hub.call_repeatedly(_POOL_CHECK_S, worker.pool.maintain_pool)

    def stop(self, worker: Any) -> None:
        """The pool will stop next: it finishes what it runs."""
        worker.mesh_agent.drain()

    def close(self, worker: Any) -> None:
        """The worker begins to stop."""
        worker.mesh_agent.drain()

    def terminate(self, worker: Any) -> None:
        """At once: the same, without waiting."""
        worker.mesh_agent.drain(0.0)


class MembershipStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells the agent its consumer after each (re)connect, and leaves at the very end."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Mesh membership"
    _touches: Any = None

    def __init__(self, consumer: Any, **more: Any) -> None:
        super().__init__(consumer, **more)
        agent = consumer.controller.mesh_agent
        if agent is not None:  # before the first connection, which may take long
            consumer.on_waiting = agent.heartbeat.touch

    def start(self, consumer: Any) -> None:
        """Connected."""
        agent = consumer.controller.mesh_agent
        agent.consumer = consumer
        while agent.calls:  # its beats began before
            agent.next_call()
        agent.offer()
        agent.consuming = True
        tell_in_batches(consumer)
        # Not every event loop keeps its timers over a reconnect: it is started anew with each connection.
        self._touches = consumer.timer.call_repeatedly(TOUCHED_EVERY_S, agent.heartbeat.touch)

    def stop(self, consumer: Any) -> None:
        """The connection is lost, or the worker stops."""
        agent = consumer.controller.mesh_agent
        if agent is not None:
            agent.consuming = False
        if self._touches is not None:
            consumer.timer.cancel(self._touches)

    def shutdown(self, consumer: Any) -> None:
        """The pool has stopped."""
        tell_the_rest(consumer)
        agent = consumer.controller.mesh_agent
        if agent is not None:
            agent.leave()
