"""Flower on the mesh: the true lengths of its queues, and no door open beyond this host without authentication.

Flower chooses how it counts by the scheme of the broker's URL, and for Redis it measures the lists that Celery's own transport
keeps. What it offers to build on is its table of handlers, in which the first match wins: ours stand before its own, and differ
only in whom they ask. Everything of Flower's inside that we use is in this module; its version is pinned, and tests ask the
real one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
from collections.abc import Iterable
from typing import Any

from celery.signals import import_modules
from flower.api.tasks import GetQueueLengths, ListTasks, TaskApply, TaskAsyncApply, TaskSend
from flower.api.tasks import TaskInfo as FlowersTaskInfo
from flower.events import EventsState
from flower.options import options
from flower.urls import handlers
from flower.views import monitor
from flower.views.broker import BrokerView
from flower.views.tasks import TasksDataTable, TasksView, TaskView
from flower.views.workers import WorkersView, WorkerView
from tornado.web import HTTPError, authenticated

from mesh.bus import flower_tasks, runtime
from mesh.bus.flower_page import agents_of, registration, registrations
from mesh.bus.install import TRANSPORT
from mesh.core.agents import AgentInfo
from mesh.core.states import State
from mesh.errors import Invalid, MeshError, StoreUnavailable
from mesh.settings import Settings
from mesh.store.store import Store
from mesh.telemetry import redacting

__all__ = ["extend", "queue_rows", "safe_address"]
logger = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
_PAST = "mesh_past"
_MOST_PAST = 10_000  # the mesh lists no more
#: Of its list of tasks; where nobody has chosen others, the arguments are added.
ITS_COLUMNS = "name,uuid,state,received,runtime,worker"


def extend() -> None:
    """Teach the Flower that this process may become; to be called before it is built, more than once if need be."""
    own = [
        (r"/", Workers),
        (r"/workers", Workers),
        (r"/worker/(.+)", Worker),
        (r"/task/(.+)", Task),
        (r"/tasks", Tasks),
        (r"/tasks/datatable", TasksTable),
        (r"/api/tasks", TaskList),
        (r"/api/task/info/(.*)", TaskInfo),
        (r"/broker", Broker),
        (r"/api/queues/length", QueueLengths),
        (r"/api/task/apply/(.+)", Apply),
        (r"/api/task/async-apply/(.+)", AsyncApply),
        (r"/api/task/send-task/(.+)", Send),
        (r"/metrics", Metrics),
    ]
    if handlers[: len(own)] != own:
        handlers[:0] = own
    EventsState.Task = flower_tasks.Task
    # Flower's command sends this when it has read all its options, and before it listens.
    import_modules.connect(_complete_options, weak=False, dispatch_uid="mesh-flower-options")


# -- queues


def queue_rows(store: Store) -> list[dict[str, Any]]:
    """A row for each queue that ever had a task or that an agent serves, by name, in the words of Flower's page.

    `messages` and `messages_ready`: tasks that wait; `messages_unacknowledged`: tasks that agents hold; `consumers`: agents that
    take new tasks of it. What waits for one region or one agent counts with the requirement that it belongs to.
    """
    counts = store.tasks.counts()
    _, compound = store.agents.requirements()
    offered = {
        one
        for row in store.agents.all()
        if "left" not in row
        for one in row["capabilities"].split(",")
        if one
    }
    names = sorted({*counts, *compound, *offered})
    consumers = store.client.pipeline(*[("ZCARD", store.keys.of("consumers", name)) for name in names])
    return [_row(name, counts.get(name, {}), number) for name, number in zip(names, consumers, strict=True)]


def _row(name: str, states: dict[str, int], consumers: int) -> dict[str, Any]:
    waiting = states.get(State.QUEUED, 0)
    return {
        "name": name,
        "messages": waiting,
        "messages_ready": waiting,
        "messages_unacknowledged": states.get(State.LEASED, 0) + states.get(State.RUNNING, 0),
        "consumers": consumers,
    }


class Queues:
    """What Flower's handlers call a broker."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """All queues of the namespace; `names`, what Flower has heard of, may be behind."""
        try:
            return await asyncio.get_running_loop().run_in_executor(None, queue_rows, self.store)
        except StoreUnavailable as error:
            raise HTTPError(503, "%s", str(error)) from error


class _OnTheMesh:
    """For handlers: ask the store, if the application has joined the mesh."""

    def store(self) -> Store | None:
        """The store of the application's namespace; None if it is another broker's."""
        conf = self.capp.conf  # type: ignore[attr-defined]
        if conf.broker_transport != TRANSPORT:
            return None
        return runtime.store_of(conf.broker_transport_options["namespace"])

    def get_broker(self) -> Any:
        """See `flower.views.BaseHandler.get_broker`."""
        store = self.store()
        return super().get_broker() if store is None else Queues(store)  # type: ignore[misc]


class Broker(_OnTheMesh, BrokerView):
    """The Broker page."""


class QueueLengths(_OnTheMesh, GetQueueLengths):
    """The same for programs."""


# -- agents as they have registered, and tasks from before this Flower began


class _Registered(_OnTheMesh):
    """For pages: what the mesh knows of agents, put in before the first place that reads `before`."""

    before: bytes

    def prepare(self) -> Any:
        """Read it; without Redis the page is Flower's own."""
        store = self.store()
        self.agents: list[AgentInfo] | None = None
        return self._read(store) if store is not None and self.current_user else None  # type: ignore[attr-defined]

    async def _read(self, store: Store) -> None:
        try:
            self.agents = await asyncio.get_running_loop().run_in_executor(None, agents_of, store)
        except StoreUnavailable as error:
            logger.warning("registrations are not shown: %s", error)

    def render_string(self, template_name: str, **names: Any) -> bytes:
        """See `tornado.web.RequestHandler.render_string`."""
        page: bytes = super().render_string(template_name, **names)  # type: ignore[misc]
        if self.agents is None:
            return page
        return page.replace(self.before, self.panel(**names).encode() + self.before, 1)

    def panel(self, **names: Any) -> str:
        """What is put in, as HTML."""
        raise NotImplementedError


class Workers(_Registered, WorkersView):
    """The page of all workers."""

    before = b"</main>"

    def panel(self, **names: Any) -> str:
        """All agents."""
        return registrations(self.capp.conf.broker_transport_options["namespace"], self.agents or [])


class Worker(_Registered, WorkerView):
    """The page of one worker."""

    before = b'<div class="worker-tabs">'

    def panel(self, **names: Any) -> str:
        """The agent of this name."""
        agent_id = names.get("worker", {}).get("name", "").partition("@")[0]
        return "".join(registration(one) for one in self.agents or [] if one.id == agent_id)


class _WithPast(_OnTheMesh):
    """For handlers of tasks: they know those, too, that ended before this Flower began to listen."""

    async def prepare(self) -> None:
        """Once for the process, when somebody first asks."""
        super().prepare()  # type: ignore[misc]
        store, application = self.store(), self.application  # type: ignore[attr-defined]
        if store is None or not self.current_user:  # type: ignore[attr-defined]
            return
        if application.settings.get(_PAST) is None:
            application.settings[_PAST] = asyncio.ensure_future(_tell_past(application, store))
        await asyncio.shield(application.settings[_PAST])


async def _tell_past(application: Any, store: Store) -> None:
    state, loop = application.events.state, asyncio.get_running_loop()
    pages = flower_tasks.past_events(store, min(_MOST_PAST, application.options.max_tasks))
    try:
        while (page := await loop.run_in_executor(None, next, pages, None)) is not None:
            known = set(state.tasks)
            for event in page:
                if event["uuid"] not in known:
                    state.event(event)
            await asyncio.sleep(0)  # who else asks is answered meanwhile
    except StoreUnavailable as error:
        application.settings[_PAST] = None  # the next one tries again
        logger.warning("tasks from before are not shown: %s", error)


class Task(_WithPast, TaskView):
    """The page of one task."""


class Tasks(_WithPast, TasksView):
    """The page of all tasks."""


class TasksTable(_WithPast, TasksDataTable):
    """Its rows."""


class TaskList(_WithPast, ListTasks):
    """The same for programs."""


class TaskInfo(_WithPast, FlowersTaskInfo):
    """One task, for programs."""


# -- who may what


class Metrics(monitor.Metrics):
    """Behind the same login as the pages: it names agents and task types."""

    @authenticated
    async def get(self) -> None:
        """See `flower.views.monitor.Metrics`."""
        await super().get()


class _OneSentence:
    """For handlers that publish a task: what the mesh refuses is said as it says it, with its status."""

    async def post(self, taskname: str) -> None:
        """See `flower.api.tasks`."""
        try:
            await super().post(taskname)  # type: ignore[misc]
        except HTTPError as error:  # Flower makes one of everything
            refused = error.__cause__
            if not isinstance(refused, MeshError):
                raise
            raise HTTPError(refused.http_status, "%s", str(refused)) from error


class Apply(_OneSentence, TaskApply):
    """Run a task and wait."""


class AsyncApply(_OneSentence, TaskAsyncApply):
    """Run a task of a known type."""


class Send(_OneSentence, TaskSend):
    """Run a task of any type."""


# -- options: where it listens, what it lists


def safe_address(given: str, *, protected: bool) -> str:
    """The address that Flower listens on, '' for all; `protected`: it asks who is there.

    Raises `Invalid` for an address that others reach while everybody may do everything.
    """
    if protected:
        return given
    if not given:
        return LOOPBACK
    if not _is_loopback(given):
        raise Invalid(
            f"Flower on {given} would let everybody in who reaches it: set FLOWER_BASIC_AUTH=user:password "
            f"(or --basic-auth, or --auth), or let it listen on {LOOPBACK}."
        )
    return given


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _complete_options(sender: Any = None, **_: Any) -> None:
    redacting.keep(*(word for one in options.basic_auth or () for word in (one, one.partition(":")[2])))
    redacting.install(Settings.load())
    if options.tasks_columns == ITS_COLUMNS:
        options.tasks_columns = f"{ITS_COLUMNS},args"
    if options.unix_socket:
        return
    protected = bool(options.auth) or any(options.basic_auth or ())
    try:
        options.address = safe_address(options.address, protected=protected)
    except Invalid as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
