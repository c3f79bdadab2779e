"""What the store should do, in plain Python: the reference that the state machine compares the real store with.

Which moves are legal, where they lead and who must show a fence comes from `mesh.core.states.RULES`; what a move does
to the rest (counts, order in the queue, fence) is written here a second time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mesh.core.states import HELD, LIVE, RULES, TERMINAL, WAITING, Answer, State, Verb, check

MAX_CRASHES = 2
REPLAYABLE = RULES[Verb.REPLAY].sources  # their messages are kept


@dataclass
class Task:
    """What is known of one task."""

    state: State
    queue: str
    priority: int
    arrival: int
    token: str
    message: bytes
    run: int = 1
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    suspect: bool = False
    leased: bool = False  # in this run or one before it
    fence: str = ""
    ahead: bool = False  # it was interrupted by a death: its turn had come, whatever its priority
    holder: str = ""
    retried_by: str = ""  # the fence of the attempt that published its own id again
    due: bool = False
    parked: bool = False
    expires: bool = False
    lapsed: bool = False
    deadline: bool = False  # it has to have ended by some time ...
    passed: bool = False  # ... which has passed
    ended_by_deadline: bool = False
    result: bool = False
    dead: bool = False
    poison: bool = False
    past: list[tuple[int, int, str]] = field(default_factory=list)  # (run, attempt, how), each once

    @property
    def can_expire(self) -> bool:
        """Whether its expiry ends it while it waits; what is parked has been started, and waits for its own canvas."""
        return self.expires and not self.parked and self.state in WAITING

    @property
    def is_late(self) -> State | None:
        """The state that time ends it in, if it does; of both times, the expiry is set to be the earlier."""
        if self.lapsed and self.can_expire:
            return State.EXPIRED
        return State.TIMED_OUT if self.passed and self.state in LIVE else None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among queued tasks: most urgent first, then by arrival."""
        return (-9 if self.ahead else -self.priority, self.arrival)


class Model:
    """The tasks of one namespace. Every method answers as the store's method of that name does."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.events: Counter[tuple[str, str]] = (
            Counter()
        )  # (queue, what): ends by state, retries, crashes ...
        self.arrivals = 0

    # -- every move goes through here

    def refusal(self, verb: Verb, task_id: str, fence: str) -> Answer | None:
        """Why the table forbids the move, None if it does not."""
        task = self.tasks.get(task_id)
        if task is None:
            return Answer.MISSING
        if task.state not in RULES[verb].sources:
            return Answer.STALE
        return Answer.FENCED if RULES[verb].fenced and task.fence != fence else None

    def move(self, verb: Verb, task_id: str, target: State) -> None:
        """Make a legal move."""
        task = self.tasks[task_id]
        check(verb, task.state, target)
        task.state, task.due, task.parked, task.ahead = target, False, False, False
        if target not in HELD:
            task.fence = task.holder = ""
        if target in TERMINAL:
            self.events[task.queue, target] += 1
            task.dead = target is State.DEAD_LETTERED

    def arrive(self) -> int:
        """The next number in the order of arrival."""
        self.arrivals += 1
        return self.arrivals

    # -- producers

    def submit(self, task_id: str, kind: str, fresh: Task) -> str:
        """`fresh`: the task as it is if this is its first publication."""
        arrival = fresh.arrival = self.arrive()
        old = self.tasks.get(task_id)
        if old is not None:
            if kind == "create":
                return "exists" if old.token == fresh.token else "conflict"
            ended, live = old.state in RULES[Verb.RESUBMIT].sources, old.state in RULES[Verb.REVISE].sources
            if old.token == fresh.token or not (ended or (kind == "child" and live)):
                return "exists"
            if live and older_run(fresh.token, old.token):
                return "exists"
            check(Verb.RESUBMIT if ended else Verb.REVISE, old.state, fresh.state)
            fresh.run, fresh.attempt = old.run + 1, old.attempt
        else:
            check(Verb.SUBMIT, None, fresh.state)
        fresh.arrival = arrival
        self.tasks[task_id] = fresh
        return "moved"

    def replay(self, task_id: str, run: int, message: bytes) -> str:
        """An operator runs it again, as he has seen it at this run."""
        refusal = self.refusal(Verb.REPLAY, task_id, "")
        if refusal:
            return refusal
        task = self.tasks[task_id]
        if task.run != run:
            return "stale"
        timed_out = task.state is State.TIMED_OUT
        self.remember(task_id, "timed_out" if timed_out else "crashed" if task.poison else "failed")
        self.move(Verb.REPLAY, task_id, State.QUEUED)
        task.run, task.message, task.arrival = run + 1, message, self.arrive()
        task.failures = task.crashes = 0
        task.suspect = task.result = task.dead = task.expires = task.poison = False
        task.deadline = task.passed = task.ended_by_deadline = False
        task.retried_by = ""
        return "moved"

    def remember(self, task_id: str, how: str) -> None:
        """The attempt that ends now without ending the task, unless it is there already."""
        task = self.tasks[task_id]
        if task.attempt and task.leased and task.attempt not in [attempt for _, attempt, _ in task.past]:
            task.past = [*task.past, (task.run, task.attempt, how)][-32:]

    def cancel(self, task_id: str) -> tuple[str, str]:
        """(word, state it was in)."""
        refusal = self.refusal(Verb.CANCEL, task_id, "")
        if refusal:
            return refusal, "" if refusal is Answer.MISSING else self.tasks[task_id].state
        was = self.tasks[task_id].state
        self.move(Verb.CANCEL, task_id, State.CANCELLED)
        self.tasks[task_id].result = True
        return "moved", was

    def conclude(self, task_id: str, target: State) -> str:
        """An outcome for an id that nobody holds; what somebody holds is his (`fenced`)."""
        task = self.tasks.get(task_id)
        if task is None:
            check(Verb.CONCLUDE, None, target)
            self.tasks[task_id] = Task(target, "", 4, 0, "", b"", result=True)
            self.tasks[task_id].dead = target is State.DEAD_LETTERED
            self.events["", target] += 1
            return "moved"
        if task.state not in RULES[Verb.CONCLUDE].sources:
            return "fenced" if task.state in HELD else "stale"
        self.move(Verb.CONCLUDE, task_id, target)
        task.result = True
        return "moved"

    # -- holders

    def queued(self, queue: str) -> list[str]:
        """Ids of a queue in their order."""
        ids = [one for one, task in self.tasks.items() if task.state is State.QUEUED and task.queue == queue]
        return sorted(ids, key=lambda one: self.tasks[one].place)

    def fetch(
        self, queues: list[str], *, holder: str, isolated: bool, patient: bool, limit: int, nonce: str
    ) -> list[tuple[str, str, int, bool, bool]]:
        """(id, fence, run, redelivered, watched) of what the holder gets."""
        idle = all(task.holder != holder for task in self.tasks.values())
        self.promote()
        heads = sorted((queue for queue in queues if self.queued(queue)), key=lambda q: self.place_of_head(q))
        taken: list[tuple[str, str, int, bool, bool]] = []
        for task_id in [task_id for queue in heads for task_id in self.queued(queue)]:
            task = self.tasks[task_id]
            if len(taken) >= limit:
                break
            if task.is_late:
                self.run_out(task_id)
                continue
            watched = bool(task.crashes or task.suspect)
            if watched and (taken or not (isolated or idle or not patient)):
                continue
            self.move(Verb.LEASE, task_id, State.RUNNING if watched else State.LEASED)
            task.attempt += 1
            task.leased = True
            task.fence, task.holder = f"{task.attempt}-{nonce}", holder
            taken.append((task_id, task.fence, task.run, task.attempt > 1, watched))
            if watched:
                break
        return taken

    def place_of_head(self, queue: str) -> tuple[int, int]:
        """Where the first task of a non-empty queue stands."""
        return self.tasks[self.queued(queue)[0]].place

    def start(self, task_id: str, fence: str) -> str:
        """A pool accepts it."""
        refusal = self.refusal(Verb.START, task_id, fence)
        if not refusal:
            self.move(Verb.START, task_id, State.RUNNING)
        return refusal or "moved"

    def settle(self, task_id: str, fence: str, target: State, *, keep: bool) -> str:
        """The attempt ends."""
        refusal = self.refusal(Verb.SETTLE, task_id, fence)
        if refusal is Answer.STALE and (self.tasks[task_id].fence, self.tasks[task_id].state) == (
            fence,
            target,
        ):
            return Answer.REPEATED
        if refusal and refusal != "missing":
            self.events[self.tasks[task_id].queue, "late"] += 1
        if not refusal:
            self.move(Verb.SETTLE, task_id, target)
            self.tasks[task_id].fence = fence  # only an end that was settled keeps it
            self.tasks[task_id].result = self.tasks[task_id].result or keep
        return refusal or "moved"

    def release(self, task_id: str, fence: str) -> str:
        """The holder gives it back; nothing is counted."""
        refusal = self.refusal(Verb.RELEASE, task_id, fence)
        if not refusal:
            self.requeue(Verb.RELEASE, task_id, "released")
        return refusal or "moved"

    def requeue(self, verb: Verb, task_id: str, how: str) -> None:
        """Back to its old place in its queue; ahead of all priorities if a death interrupted it."""
        self.remember(task_id, how)
        self.move(verb, task_id, State.QUEUED)
        self.tasks[task_id].ahead = how != "released"
        self.tasks[task_id].result = False

    def retry(self, task_id: str, fence: str, fresh: Task, *, failed: bool) -> str:
        """The attempt publishes its id again; `fresh` says how."""
        refusal = self.refusal(Verb.RETRY, task_id, fence)
        if refusal:
            return refusal
        task = self.tasks[task_id]
        if not fresh.parked and (task.passed or (task.deadline and fresh.state is State.SCHEDULED)):
            return "late"
        task.expires = task.expires and not fresh.parked
        self.remember(task_id, "failed" if failed else "replaced")
        self.move(Verb.RETRY, task_id, fresh.state)
        task.queue, task.priority, task.parked, task.arrival = (
            fresh.queue,
            fresh.priority,
            fresh.parked,
            self.arrive(),
        )
        task.message = fresh.message or task.message
        task.retried_by = fence
        if failed:
            task.failures += 1
            self.events[task.queue, "retries"] += 1
        return "moved"

    def crash(self, task_id: str, fence: str) -> tuple[str, str]:
        """Its process died: (word, state it is in now)."""
        refusal = self.refusal(Verb.CRASH, task_id, fence)
        if refusal:
            return refusal, ""
        self.crashed(Verb.CRASH, task_id)
        if self.tasks[task_id].state is State.QUEUED:
            self.events[self.tasks[task_id].queue, "process_died"] += 1
        return "moved", self.tasks[task_id].state

    def crashed(self, verb: Verb, task_id: str) -> None:
        """Again, or poison."""
        task = self.tasks[task_id]
        task.crashes += 1
        self.events[task.queue, "crashes"] += 1
        if task.crashes < MAX_CRASHES:
            self.requeue(verb, task_id, "crashed")
        else:
            self.move(verb, task_id, State.DEAD_LETTERED)
            task.result = task.poison = True

    def annotate(self, task_id: str, fence: str) -> str:
        """A document that ends nothing: by the holder, by the one that retried, by outsiders while nobody holds it."""
        task = self.tasks.get(task_id)
        if task is None:
            return "missing"
        if task.state in TERMINAL:
            return "stale"
        if task.state in HELD:
            allowed = fence == task.fence
        else:
            allowed = fence in ("", task.retried_by)
        task.result = task.result or allowed
        return "moved" if allowed else "fenced"

    def renew(self, task_id: str, fence: str) -> str:
        """One attempt in a beat."""
        task = self.tasks.get(task_id)
        if task is None or task.state in WAITING or task.state is State.CANCELLED or task.ended_by_deadline:
            return "lost"
        if task.state in HELD:
            return "held" if task.fence == fence else "lost"
        return "settled"

    # -- time

    def reap(self, lost: list[str]) -> tuple[int, int]:
        """These ids have lost their leases: (queued again, put aside)."""
        for task_id in lost:
            task = self.tasks[task_id]
            self.events[task.queue, "reassigned"] += 1
            if task.state is State.RUNNING:
                self.crashed(Verb.REAP, task_id)
            else:
                task.suspect = True
                self.requeue(Verb.REAP, task_id, "lost")
        aside = sum(self.tasks[one].state is State.DEAD_LETTERED for one in lost)
        return len(lost) - aside, aside

    def promote(self) -> int:
        """How many scheduled tasks had fallen due."""
        due = sorted(one for one, task in self.tasks.items() if task.due)
        for task_id in due:
            self.move(Verb.PROMOTE, task_id, State.QUEUED)
            self.tasks[task_id].arrival = self.arrive()
        return len(due)

    def run_out(self, task_id: str) -> State:
        """Nobody started it before its expiry, or its deadline has passed; the state that it ends in."""
        task = self.tasks[task_id]
        target = State.EXPIRED if task.is_late is State.EXPIRED else State.TIMED_OUT
        self.move(Verb.EXPIRE if target is State.EXPIRED else Verb.TIME_OUT, task_id, target)
        task.result, task.ended_by_deadline = True, target is State.TIMED_OUT
        return target

    def overdue(self) -> Counter[State]:
        """Everything that is late ends: how many in which state."""
        return Counter([self.run_out(one) for one, task in self.tasks.items() if task.is_late])

    def tick(self) -> tuple[int, int, int]:
        """(promoted, expired, timed out)."""
        promoted, ended = self.promote(), self.overdue()
        return promoted, ended[State.EXPIRED], ended[State.TIMED_OUT]

    # -- what must be seen

    def counters(self) -> dict[tuple[str, str], int]:
        """Non-zero counters: tasks that are in a live state, ends and events so far."""
        live = Counter((task.queue, str(task.state)) for task in self.tasks.values() if task.state in LIVE)
        return {**live, **{(queue, str(what)): number for (queue, what), number in self.events.items()}}


def older_run(token: str, than: str) -> bool:
    """Whether both tokens name runs of one parent, and this one the older."""
    parent, _, run = token.rpartition(":")
    other, _, later = than.rpartition(":")
    return bool(parent) and parent == other and int(run) < int(later)
