"""The metrics of the mesh: one table, and what a process answers when Prometheus scrapes it.

Figures of a namespace are told by the coordinator that leads it, and by no other: a sum over all targets is right, however many
coordinators there are. Figures of a process are told by itself. No label holds an id of a task or an agent: an agent is a target
of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mesh.core.timings import BOUNDS_MS, Timing

__all__ = ["BY_NAME", "PREFIX", "TABLE", "HttpMeter", "Pulse", "Registry", "Row", "Sample"]

PREFIX = "agent_mesh_"
_BOUNDS = tuple(f"{bound / 1000:g}" for bound in BOUNDS_MS)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric. `of`: whose figure it is (namespace, coordinator, agent; process: of each coordinator and agent)."""

    name: str
    kind: str  # counter | gauge | histogram
    of: str
    labels: tuple[str, ...]
    help: str

    @property
    def full_name(self) -> str:
        """As Prometheus knows it."""
        return PREFIX + self.name


def _row(of: str, kind: str, name: str, labels: str, help: str) -> Row:
    return Row(name=name, kind=kind, of=of, labels=tuple(labels.split()), help=help)


TABLE = (
    _row("namespace", "counter", "tasks_total", "namespace capability status", "Tasks that have ended, by how."),
    _row("namespace", "gauge", "tasks", "namespace capability state", "Tasks that have not ended, by where they are."),
    _row("namespace", "histogram", "task_queue_wait_seconds", "namespace capability",
         "Of attempts: from when one could be taken to its start."),
    _row("namespace", "histogram", "task_run_seconds", "namespace capability",
         "Of attempts that an agent told the end of: from start to end."),
    _row("namespace", "gauge", "queue_depth", "namespace capability", "Tasks that wait for an agent."),
    _row("namespace", "gauge", "queue_oldest_age_seconds", "namespace capability",
         "How long the task has waited that waits longest, 0 where none does."),
    _row("namespace", "gauge", "agents", "namespace status", "Agents by health."),
    _row("namespace", "gauge", "agents_cordoned", "namespace", "Agents that are to be given no new work."),
    _row("namespace", "gauge", "capable_agents", "namespace capability", "Agents that take such tasks now."),
    _row("namespace", "gauge", "slots", "namespace capability state",
         "Slots of the agents that take such tasks: free or busy. An agent's count with each of its capabilities."),
    _row("namespace", "counter", "retries_total", "namespace capability", "Attempts that failed and were tried again."),
    _row("namespace", "counter", "reassignments_total", "namespace capability reason",
         "Attempts taken from who had them: agent_lost (its lease ended), process_died (a process of its pool)."),
    _row("namespace", "counter", "refused_results_total", "namespace capability",
         "Ends told by who did not have the attempt any more: they changed nothing."),
    _row("namespace", "counter", "refused_messages_total", "namespace capability",
         "Messages that an agent put aside because of what they are signed with, or are."),
    _row("namespace", "gauge", "dead_letters", "namespace", "Tasks that are put aside now."),
    _row("namespace", "gauge", "scheduled", "namespace", "Tasks that wait for a time."),
    _row("namespace", "gauge", "coordinators", "namespace", "Coordinators that are there."),
    _row("coordinator", "gauge", "leader", "namespace", "1: this coordinator leads."),
    _row("coordinator", "gauge", "signing_key_info", "namespace kid use",
         "1 for each key that this coordinator knows: in_force is what it signs with, known only verifies."),
    _row("coordinator", "counter", "http_requests_total", "route method code",
         "Answers; no route: what was refused before it had one, or there is nothing."),
    _row("coordinator", "histogram", "http_request_seconds", "route",
         "From the request's head to the end of its answer; a wait for a result or events is in it."),
    _row("coordinator", "gauge", "connections", "", "Connections of HTTP that are open."),
    _row("agent", "gauge", "agent_slots", "namespace state", "Slots of this agent: running, held (not started), free."),
    _row("agent", "gauge", "agent_status", "namespace status", "1 for how this agent is, by what it knows itself."),
    _row("process", "gauge", "redis_up", "", "1: Redis has answered the last beat, and lets none wait for a second."),
    _row("process", "gauge", "redis_beat_age_seconds", "", "Since the last beat that Redis has answered."),
    _row("process", "histogram", "redis_latency_seconds", "", "Of beats: one round trip to Redis and its script."),
    _row("process", "gauge", "build_info", "version", "1: the version of Agent Mesh."),
)  # fmt: skip
BY_NAME = {row.name: row for row in TABLE}
_SILENT_S = 1.0  # so long does no beat take that goes well
_LATENCY_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Sample(NamedTuple):
    """One figure: the name of its row, the values of its labels in the row's order, and it."""

    name: str
    labels: tuple[str, ...]
    value: float | Timing


class _Read(Collector):
    """What is read when a scrape comes."""

    def __init__(self, of: frozenset[str], read: Callable[[], Iterable[Sample]]) -> None:
        self._of, self._read = of, read

    def collect(self) -> Iterator[Metric]:
        found: dict[str, list[Sample]] = {}
        for sample in self._read():
            found.setdefault(sample.name, []).append(sample)
        for row in TABLE:
            if row.of in self._of and row.name in found:
                yield _family(row, found[row.name])

    def describe(self) -> Sequence[Metric]:
        """Nothing: registering it reads nothing."""
        return []


def _family(row: Row, samples: Iterable[Sample]) -> Metric:
    if row.kind == "histogram":
        histogram = HistogramMetricFamily(row.full_name, row.help, labels=row.labels)
        for _, labels, timing in samples:
            assert isinstance(timing, Timing)
            histogram.add_metric(labels, list(_cumulative(timing)), timing.sum_ms / 1000)
        return histogram
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(row.full_name, row.help, labels=row.labels)
    for _, labels, value in samples:
        assert not isinstance(value, Timing)
        family.add_metric(labels, value)
    return family


def _cumulative(timing: Timing) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, number in zip((*_BOUNDS, "+Inf"), timing.buckets, strict=True):
        total += number
        yield bound, total


class Pulse:
    """What a process knows of its beats to Redis: one at a time, from one thread."""

    def __init__(self) -> None:
        row = BY_NAME["redis_latency_seconds"]
        self.latency = Histogram(row.full_name, row.help, buckets=_LATENCY_BOUNDS, registry=None)
        self._well = False
        self._asked: float | None = None  # what waits for its answer
        self._answered = time.monotonic()

    @contextlib.contextmanager
    def beat(self) -> Iterator[None]:
        """Around one round trip."""
        self._asked = begun = time.monotonic()
        try:
            yield
        except BaseException:
            self._well = False
            raise
        finally:
            self._asked = None
        self._well, self._answered = True, time.monotonic()
        self.latency.observe(self._answered - begun)

    @property
    def up(self) -> bool:
        """Whether Redis has answered the last beat, and the one under way does not wait for long."""
        asked = self._asked
        return self._well and (asked is None or time.monotonic() - asked < _SILENT_S)

    @property
    def age_s(self) -> float:
        """Since the last answer; before the first, since it was made."""
        return time.monotonic() - self._answered


class Registry:
    """The metrics of one process: `of` names the rows' owners; `read` gives the samples that are not instruments.

    What `read` raises is raised by `exposition`.
    """

    def __init__(self, *of: str, read: Callable[[], Iterable[Sample]], pulse: Pulse, version: str) -> None:
        def all_samples() -> Iterator[Sample]:
            yield from read()
            yield Sample("redis_up", (), int(pulse.up))
            yield Sample("redis_beat_age_seconds", (), pulse.age_s)
            yield Sample("build_info", (version,), 1)

        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each, that says when the process began
        self._registry = CollectorRegistry()
        self._registry.register(_Read(frozenset(of), all_samples))
        self._registry.register(pulse.latency)
        self.http = HttpMeter(self._registry if "coordinator" in of else None)
        ProcessCollector(registry=self._registry)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(the text, its media type), for a header Accept."""
        encode, media = choose_encoder(accept)
        return encode(self._registry), media


_METHODS = frozenset(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))


class HttpMeter:
    """Counts answers. Its labels are routes of the application, known methods and status codes: they are bounded."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        total, seconds = BY_NAME["http_requests_total"], BY_NAME["http_request_seconds"]
        self._total = Counter(total.full_name, total.help, total.labels, registry=registry)
        self._seconds = Histogram(
            seconds.full_name, seconds.help, seconds.labels, buckets=_LATENCY_BOUNDS, registry=registry
        )
        self._known: dict[tuple[str, str, int], Counter] = {}  # `labels` costs more than counting
        self._routes: dict[str, Histogram] = {}

    def count(self, route: str, method: str, status: int) -> None:
        """One answer."""
        one = (route, method, status)
        counter = self._known.get(one)
        if counter is None:
            known = method if method in _METHODS else ""
            counter = self._known[route, known, status] = self._total.labels(route, known, str(status))
        counter.inc()

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """One answer of a route, and how long it took."""
        self.count(route, method, status)
        histogram = self._routes.get(route)
        if histogram is None:
            histogram = self._routes[route] = self._seconds.labels(route)
        histogram.observe(seconds)
