"""What can be asked about agents: who is there, what they can do, whether anybody can take a task."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mesh.core.agents import AgentInfo, Health, agent_info
from mesh.core.requirements import capabilities_of, satisfies
from mesh.errors import Conflict, Invalid, NotFound, Unsatisfiable
from mesh.services.types import unknown_hint
from mesh.store.store import Store

_OFFERED_FOR_S = 5.0  # how long "somebody can take it" is believed
_MISSED_FOR_S = 1.0  # ... and "nobody can"
_REMEMBERED = 10_000
_PAGE = 500  # verdicts that one script records
LONGEST_GRACE_MS = 86_400_000


def _info(store: Store, row: dict[str, str], now_ms: int) -> AgentInfo:
    settings = store.settings
    return agent_info(
        row,
        now_ms,
        heartbeat_interval_ms=settings.heartbeat_interval_ms,
        unhealthy_threshold_ms=settings.unhealthy_threshold_ms,
    )


def discover(
    store: Store, *, capability: str | None = None, status: str | None = None, region: str | None = None
) -> list[AgentInfo]:
    """The agents of the namespace, by id; filtered."""
    now_ms = store.agents.now_ms()
    agents = [_info(store, row, now_ms) for row in store.agents.all()]
    return [
        agent
        for agent in agents
        if (capability is None or capability in agent.capabilities)
        and (status is None or agent.status == status)
        and (region is None or agent.region == region)
    ]


def counts(agents: Iterable[AgentInfo]) -> dict[str, int]:
    """How many agents there are of each health; those that nobody has are left out."""
    number = Counter(agent.status for agent in agents)
    return {str(status): number[status] for status in Health if number[status]}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the leader found: agents whose health has changed with what it was before, how many went from the list."""

    changed: list[tuple[AgentInfo, str]]
    forgotten: int


def judge(store: Store, lead: str) -> Judged:
    """Judge the health of all agents, and record what has changed. Raises `StaleFence` if `lead` is over."""
    now_ms = store.agents.now_ms()
    rows = {row["id"]: row for row in store.agents.all()}
    verdicts: dict[str, str] = {name: "" for name in store.agents.names() if name not in rows}
    changed = []
    for agent_id, row in rows.items():
        agent, before = _info(store, row, now_ms), row.get("judged", "")
        if agent.status != before:
            verdicts[agent_id] = str(agent.status)
            changed.append((agent, before))
    words = list(verdicts.items())
    pages = [dict(words[first : first + _PAGE]) for first in range(0, len(words), _PAGE)]
    return Judged(changed=changed, forgotten=sum(store.agents.judge(lead, page) for page in pages))


def capable(store: Store, requirement: str) -> list[AgentInfo]:
    """The agents that could take a task of this requirement: they offer it all and take work."""
    return [
        agent
        for agent in discover(store)
        if agent.takes_work and satisfies(frozenset(agent.capabilities), requirement)
    ]


def unmet(store: Store, requirement: str) -> str | None:
    """A sentence that says why no agent can take a task of this requirement now; None if one can."""
    if store.agents.consumers(requirement) or capable(store, requirement):
        return None
    offered = {
        name for agent in discover(store) if agent.status != Health.OFFLINE for name in agent.capabilities
    }
    needed = capabilities_of(requirement)
    missing = sorted(needed - offered)
    if missing:
        near = f" (offered: {', '.join(sorted(offered))})" if offered else " (no agent is there)"
        return f"No agent offers {' and '.join(missing)}{near}: the task waits until one does."
    offering = [one for one in discover(store) if satisfies(frozenset(one.capabilities), requirement)]
    if any(agent.cordoned for agent in offering):
        return f"Every agent that offers {' and '.join(sorted(needed))} is cordoned: the task waits until one is not."
    if any(agent.status is not Health.OFFLINE for agent in offering):
        return f"Every agent that offers {' and '.join(sorted(needed))} is silent or leaving: the task waits until one is back."
    return f"No single agent offers {' and '.join(sorted(needed))} together: the task waits until one does."


def unmet_warning(store: Store, task_type: str, requirement: str, unsatisfiable: str) -> str | None:
    """What a submitter is to be told if nobody can take such a task now; the answer is remembered for some seconds.

    `unsatisfiable`: "warn", "accept" (nothing is told), "reject". Raises `Unsatisfiable` if it is to be rejected, `Invalid`.
    """
    if unsatisfiable == "accept":
        return None
    if unsatisfiable not in ("warn", "reject"):
        raise Invalid(f"unsatisfiable={unsatisfiable!r} is not one of warn, accept, reject.")
    cache, now = store.agents.cache, time.monotonic()
    known = cache.get(requirement)
    if known is not None and known[0] > now:
        sentence: str | None = known[1]
    else:
        sentence = unmet(store, requirement)
        if sentence is not None and (hint := unknown_hint(store, task_type)):
            sentence = f"{sentence} {hint}"
        if len(cache) >= _REMEMBERED:
            cache.clear()
        cache[requirement] = (now + (_OFFERED_FOR_S if sentence is None else _MISSED_FOR_S), sentence)
    if sentence is not None and unsatisfiable == "reject":
        raise Unsatisfiable(re.sub(": the task waits until [^.]*", "", sentence))
    return sentence


def cordon(store: Store, agent_id: str, on: bool = True) -> None:
    """Give an agent no new work (or again); what waited in its own queue goes to the others.

    Raises `NotFound`, and `Conflict` for work to an agent that drains: it is leaving.
    """
    _tell(store, agent_id, "cordon" if on else "uncordon")


def drain(store: Store, agent_id: str, grace_ms: int | None = None) -> None:
    """Let an agent finish what it runs and leave; what it has not started goes to the others at once, what runs after
    `grace_ms` (None: its own MESH_DRAIN_GRACE_MS) then. Said again, the later word counts. Raises `NotFound`, `Invalid`.
    """
    if grace_ms is not None and not 0 <= grace_ms <= LONGEST_GRACE_MS:
        raise Invalid(f"A time of grace of {grace_ms} ms is not from 0 to {LONGEST_GRACE_MS} ms (a day).")
    _tell(store, agent_id, "drain", grace_ms)


def _tell(store: Store, agent_id: str, how: str, grace_ms: int | None = None) -> None:
    word = store.agents.cordon(agent_id, how, grace_ms=grace_ms)
    if word == "missing":
        raise NotFound(f"There is no agent {agent_id!r} in namespace {store.settings.namespace!r}.")
    if word == "draining":
        raise not_taken_back([agent_id])


def not_taken_back(agent_ids: Sequence[str]) -> Conflict:
    """The error of whoever uncordons agents that drain."""
    many = len(agent_ids) > 1
    return Conflict(
        f"{'Agents' if many else 'Agent'} {', '.join(agent_ids)} {'are' if many else 'is'} draining: a drain is not taken back. "
        f"Start {'them' if many else 'it'} again."
    )
