"""From single measurements to medians, ratios and a table. Values in, values out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OURS, STOCK = "ours-", "stock-"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure: its key in the measurements, its heading, whether more is better (else less is)."""

    key: str
    title: str
    more_is_better: bool = True


METRICS = (
    Metric(key="submit_one", title="submit one /s"),
    Metric(key="submit_bulk", title="submit bulk /s"),
    Metric(key="execute_ignored", title="run, no result /s"),
    Metric(key="execute_stored", title="run, stored /s"),
    Metric(key="latency_p50", title="p50 ms", more_is_better=False),
    Metric(key="latency_p99", title="p99 ms", more_is_better=False),
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one contestant in one round."""

    contestant: str
    round: int
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times better ours is than another, paired round by round: the machine's drift cancels out."""

    metric: str
    ours: str
    other: str
    times: Spread


def rounds_of(measurements: Iterable[Measurement], contestant: str, key: str) -> dict[int, float]:
    """Round -> figure."""
    return {m.round: m.figures[key] for m in measurements if m.contestant == contestant and key in m.figures}


def ratio(measurements: Sequence[Measurement], metric: Metric, ours: str, other: str) -> Ratio | None:
    """None where they share no round."""
    mine, theirs = rounds_of(measurements, ours, metric.key), rounds_of(measurements, other, metric.key)
    times = [
        mine[number] / theirs[number] if metric.more_is_better else theirs[number] / mine[number]
        for number in mine
        if theirs.get(number) and mine[number]
    ]
    return Ratio(metric=metric.key, ours=ours, other=other, times=Spread.of(times)) if times else None


def best_peer(measurements: Sequence[Measurement], metric: Metric) -> str | None:
    """The contestant with the best median that is neither ours nor stock Celery."""
    names = {m.contestant for m in measurements if not m.contestant.startswith((OURS, STOCK))}
    medians = {
        name: statistics.median(figures.values())
        for name in names
        if (figures := rounds_of(measurements, name, metric.key))
    }
    choose = max if metric.more_is_better else min
    return choose(medians, key=lambda name: (medians[name], name)) if medians else None


def ratios(measurements: Sequence[Measurement]) -> list[Ratio]:
    """Ours against stock Celery with the same pool, and against the best peer, for each metric."""
    found: list[Ratio | None] = []
    for ours in dict.fromkeys(m.contestant for m in measurements if m.contestant.startswith(OURS)):
        for metric in METRICS:
            found.append(ratio(measurements, metric, ours, STOCK + ours.removeprefix(OURS)))
            if peer := best_peer(measurements, metric):
                found.append(ratio(measurements, metric, ours, peer))
    return [one for one in found if one]


def spreads(measurements: Sequence[Measurement]) -> dict[str, dict[str, Spread]]:
    """Contestant -> key -> spread, with every key that was measured, also those that the table leaves out."""
    keys: dict[str, dict[str, None]] = {}
    for m in measurements:
        keys.setdefault(m.contestant, {}).update(dict.fromkeys(m.figures))
    return {
        name: {key: Spread.of(list(rounds_of(measurements, name, key).values())) for key in of}
        for name, of in keys.items()
    }


def number(value: float) -> str:
    """Three figures that matter, thousands with a comma."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(spread: Spread | None) -> str:
    return f"{number(spread.median)} ({number(spread.low)}..{number(spread.high)})" if spread else "-"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first row as heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    heading, *rest = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([heading, "  ".join("-" * width for width in widths), *rest])


def table(measurements: Sequence[Measurement], order: Sequence[str]) -> str:
    """Medians and spreads, then ratios."""
    found = spreads(measurements)
    rows = [["contestant", *(metric.title for metric in METRICS)]]
    for name in (name for name in order if name in found):
        rows.append([name, *(cell(found[name].get(metric.key)) for metric in METRICS)])
        for key in (key for key in found[name] if key.startswith("submit_one_")):
            blank = ["-"] * (len(METRICS) - 1)
            rows.append([f"{name} ({key.removeprefix('submit_one_')})", cell(found[name][key]), *blank])
    text = ["Median (least..greatest) of the rounds:", grid(rows)]
    compared = ratios(measurements)
    if compared:
        titles = {metric.key: metric.title for metric in METRICS}
        rows = [["ours", "against", "in", "times as good"]]
        rows += [[one.ours, one.other, titles[one.metric], cell(one.times)] for one in compared]
        text += [
            "",
            "Ours against stock Celery with the same pool, and against the best peer (over 1 is better):",
        ]
        text.append(grid(rows))
    return "\n".join(text)
