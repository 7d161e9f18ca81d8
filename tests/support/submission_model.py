"""A small world around the pure submission core, for the explorer.

The world has one service, some processes with a memory each, and callers that want jobs. Each step is one thing that
can happen: a caller goes on, a request reaches the service, its answer arrives, a caller is cancelled, a process
crashes and its callers start again in a new one, a job fails, time passes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from prefect_qruntime.client import submission_core as core
from prefect_qruntime.client.submission_keys import Payload, Record, SubmissionMemory
from prefect_qruntime.errors import (
    SEARCH_FIRST,
    InvalidInput,
    QuantumRuntimeError,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_qruntime.models import Job, JobRef, JobStatus
from tests.support.explorer import Explored, Violation, explore_from, twin_of

GRACE = 4
LAGS = {"none": 0, "short": 2, "beyond": 7}
"""Seconds until the list shows a new job: at once, within the grace period, after it."""

# What becomes of a POST: whether the service accepts it, and what the caller is told. A lost answer, a 5xx and a
# timeout are one event for the core, and so are a 429, a refused connection and a 400.
ACCEPTING = ("answered", "accepted, answer lost", "accepted, answered 5xx", "accepted, 2xx unreadable")
NOT_ACCEPTING = ("lost before", "answered 5xx", "answered 429")
OUTCOMES = ACCEPTING + NOT_ACCEPTING
TOO_LARGE = "answered 413 by a proxy"  # does not accept; in some worlds
CLEAN = ("answered", "answered 429")

Steps = Iterator[tuple[str, "World"]]


@dataclass(frozen=True)
class Person:
    """A caller as planned.

    Attributes:
        process: Where it runs.
        intent: What it wants; callers with equal intents have equal keys.
        explicit: Its key is explicit: it searches from its start on, and takes the lock if there is one.
        renews: It wants a failed job anew.
    """

    process: int = 0
    intent: str = "a"
    explicit: bool = False
    renews: bool = False


@dataclass(frozen=True)
class Setting:
    """One small world to explore."""

    people: tuple[Person, ...]
    lag: int = 0
    lags: tuple[int, ...] = ()  # each job has one of these instead
    outcomes: tuple[str, ...] = OUTCOMES
    locked: bool = False  # callers with explicit keys hold a lock across processes
    marks: bool = False  # each process leaves a mark under the lock before it sends, and after a 2xx
    crashes: int = 0
    cancels: int = 0
    list_failures: int = 0
    refusals: int = 0  # by the budget
    deaths: int = 0  # jobs that fail
    slack: int = 1  # times that the clock moves although somebody could go on
    slow_looks: bool = False  # time may pass between a list and its arrival
    foreign: bool = False  # a job of somebody else carries the key
    attempts: int = 2
    machine: type[core.Submission] = core.Submission
    shared_memory: bool = True
    stable_keys: bool = True
    later: bool = False  # only the later caller of `check_next_callers` is still to come

    def with_lag(self, lag: int) -> Setting:
        """The same world with another lag; with lags of their own, the jobs have this one more to choose from."""
        return replace(self, lag=lag, lags=(*self.lags, lag) if self.lags else ())

    @property
    def told(self) -> bool:
        """Whether the caller is told of each acceptance, readable or not."""
        return not self.later and not set(self.outcomes) & {"accepted, answer lost", "accepted, answered 5xx"}

    @property
    def longest_lag(self) -> int:
        return max((self.lag, *self.lags))


@dataclass(frozen=True)
class Known:
    """A job of the service."""

    number: int
    intent: str
    tag: str
    visible: float
    dead: bool = False
    foreign: bool = False
    memory: int | None = None  # of the process that sent it, while that lives

    @property
    def name(self) -> str:
        return f"d{self.number}"


@cache
def listed_job(name: str, tag: str, dead: bool) -> Job:
    return Job(id=name, status=JobStatus.FAILED if dead else JobStatus.QUEUED, tags=(tag,))


@cache
def handle(name: str) -> JobRef:
    return JobRef(id=name)


@cache
def key_tag(intent: str, generation: int) -> str:
    return f"qr-key:{intent}{generation}"


LOST = ServiceUnavailable("no answer")
NOT_THROUGH = InvalidInput("too large", advice=SEARCH_FIRST)
DOWN = ServiceUnavailable("the list is down")
NO_ROOM = QuantumRuntimeError("no more budget")
SLOW_DOWN = QuantumRuntimeError("too many requests")


def _copy_of(record: Record) -> Record:
    return Record(record.owner, record.sent, record.accepted, record.ref, record.job, record.payload, record.uncertain)


class PlainMemory(SubmissionMemory):
    """The real memory on plain dicts, which are quickly copied; nothing is dropped in so small a world."""

    def __init__(self) -> None:
        self._owned, self._settled = {}, {}  # type: ignore[assignment]

    def clone(self) -> PlainMemory:
        other = PlainMemory()
        other._owned = {key: _copy_of(record) for key, record in self._owned.items()}
        other._settled = {key: _copy_of(record) for key, record in self._settled.items()}  # type: ignore[assignment]
        return other

    def facts(self) -> Iterator[Hashable]:
        """What does not depend on when it happened."""
        for key, record in self._settled.items():
            yield key, record.sent is None, record.accepted is None, record.ref and record.ref.id

    def state(self) -> Hashable:
        both = [*self._owned.items(), *self._settled.items()]
        return frozenset(
            (
                key,
                record.owner,
                record.sent,
                record.accepted,
                record.ref.id if record.ref else None,
                record.job.status if record.job else None,
                record.uncertain is not None,
            )
            for key, record in both
        )

    @property
    def is_free(self) -> bool:
        return not self._owned


@dataclass
class Caller:
    """A person on its way.

    Attributes:
        action: What the core wants next; None before the start and after the end.
        wakes: When its pause is over.
        answer: The answer to its request, which is under way.
        outcome: How it ended.
        starts: How often it has started; 2 after a crash.
        again: Its process is a new one: there may be earlier attempts, and all of them are over.
        gone: It was cancelled while its request was out, whose outcome may still arrive.
        note: The 2xx that it is about to note.
    """

    person: Person
    memory: int
    machine: core.Submission | None = None
    action: core.Action | None = None
    wakes: float | None = None
    answer: tuple[str, Any] | None = None
    outcome: tuple[str, Any] | None = None
    starts: int = 0
    again: bool = False
    gone: bool = False
    note: tuple[str, str | None] | None = None

    def state(self) -> Hashable:
        machine, action = self.machine, self.action
        what: Hashable = type(action).__name__
        if isinstance(action, core.Pause):
            what = ("Pause", action.seconds)
        if machine is None or (self.outcome is not None and not self.gone):
            return self.memory, what, self.outcome_state(), self.starts, self.again
        return (
            self.memory,
            what,
            self.wakes,
            self.answer,
            self.outcome_state(),
            self.starts,
            self.again,
            self.gone,
            self.note,
            machine.generation,
            machine.posts,
            machine.posting,
            machine.doubt,
            machine.until,
            machine.looked,
            machine.pause,
            machine.search_until,
            machine.lost_before,
            machine.found.id if machine.found else None,
            type(machine.lost_error),
        )

    def outcome_state(self) -> Hashable:
        if self.outcome is None:
            return None
        kind, what = self.outcome
        return (kind, type(what).__name__) if isinstance(what, Exception) else (kind, what)


def end_of(world: World) -> tuple[str, Any]:
    outcome = world.callers[-1].outcome
    assert outcome is not None
    return outcome


@dataclass
class World:
    """Everything at one moment."""

    setting: Setting
    now: float = 0
    callers: list[Caller] = field(default_factory=list)
    memories: list[PlainMemory] = field(default_factory=list)
    jobs: tuple[Known, ...] = ()
    lock: tuple[int, ...] = ()  # callers that hold the lock of the intent "a"
    marked: frozenset[str] = frozenset()
    noted: frozenset[tuple[str, str | None]] = frozenset()  # (tag, job): a 2xx was noted, with the id if readable
    proofs: frozenset[tuple[int, str]] = frozenset()  # (memory, tag): a 2xx arrived there
    doubts: frozenset[str] = frozenset()  # tags of requests without a clear answer
    crashes: int = 0
    cancels: int = 0
    list_failures: int = 0
    refusals: int = 0
    deaths: int = 0
    slack: int = 0
    tried: set[Hashable] = field(default_factory=set)  # ends after which a later caller was tried; shared by all

    @classmethod
    def of(cls, setting: Setting) -> World:
        world = cls(setting, slack=setting.slack)
        for name in ("crashes", "cancels", "list_failures", "refusals", "deaths"):
            setattr(world, name, getattr(setting, name))
        processes = max(person.process for person in setting.people) + 1
        count = processes if setting.shared_memory else len(setting.people)
        world.memories = [PlainMemory() for _ in range(count)]
        world.callers = [
            Caller(person, person.process if setting.shared_memory else number)
            for number, person in enumerate(setting.people)
        ]
        if setting.foreign:
            world.jobs = (Known(0, "nobody", key_tag("a", 0), 0, foreign=True),)
        return world

    def clone(self) -> World:
        other = twin_of(self)
        other.memories = [memory.clone() for memory in self.memories]
        other.callers = []
        for caller in self.callers:
            twin = twin_of(caller)
            if caller.machine is not None:
                twin.machine = twin_of(caller.machine)
                twin.machine.memory = other.memories[caller.memory]
            other.callers.append(twin)
        return other

    def state(self) -> Hashable:
        return (
            self.now,
            tuple(caller.state() for caller in self.callers),
            tuple(memory.state() for memory in self.memories),
            self.jobs,
            self.lock,
            self.marked,
            self.noted,
            self.proofs,
            self.doubts,
            (self.crashes, self.cancels, self.list_failures, self.refusals, self.deaths, self.slack),
        )

    # ---- what can happen -------------------------------------------------------------------------------

    def steps(self) -> Steps:
        """Every thing that can happen now, with the world after it."""
        able = False
        for number, caller in enumerate(self.callers):
            for label, after in self.steps_of(number, caller):
                able = able or not label.startswith("is cancelled")  # whom nobody cancels waits for the time to pass
                yield f"caller {number}: {label}", after
        if self.crashes:
            for memory in sorted({caller.memory for caller in self.callers if caller.starts and not caller.outcome}):
                yield f"process {memory} crashes", self.crashed(memory, late=False)
                if any(caller.memory == memory and self.is_sending(caller) for caller in self.callers):
                    yield f"process {memory} crashes, its request arrives", self.crashed(memory, late=True)
        if self.deaths:
            for job in self.jobs:
                if not job.dead and not job.foreign:
                    after = self.clone()
                    after.deaths -= 1
                    after.jobs = tuple(replace(known, dead=known.dead or known is job) for known in self.jobs)
                    yield f"{job.name} fails", after
        yield from self.time_passes(able)

    def time_passes(self, able: bool) -> Steps:
        wakes = [caller.wakes for caller in self.callers if caller.wakes is not None and caller.outcome is None]
        if able and self.slack and (wakes or any(caller.answer for caller in self.callers)):
            after = self.clone()
            after.slack -= 1
            after.now += 1
            yield "a second passes", after
        elif not able and wakes:
            after = self.clone()
            after.now = max(self.now, min(wakes))
            yield f"it is {after.now}", after

    def steps_of(self, number: int, caller: Caller) -> Steps:
        if caller.outcome is not None:
            if caller.gone and caller.answer is not None:
                yield "its answer arrives after all", self.with_answer(number)
            return
        if caller.starts and self.cancels:
            yield from self.cancelled(number, caller)
        if caller.machine is None:
            if not self.waits_for_lock(caller):
                yield "starts", self.started(number)
            return
        action = caller.action
        if caller.note is not None:
            yield f"notes {caller.note}", self.noting(number)
        elif caller.answer is not None:
            yield f"{caller.answer[0]!r} arrives", self.with_answer(number)
        elif isinstance(action, core.Post):
            for outcome in self.setting.outcomes:
                for lag in self.setting.lags if outcome in ACCEPTING and self.setting.lags else (self.setting.lag,):
                    yield f"POST {outcome}, listed after {lag} s", self.sent(number, outcome, lag)
        elif isinstance(action, core.Look):
            after = self.clone()
            shown = tuple(job for job in self.jobs if job.tag == action.key and job.visible <= self.now)
            after.callers[number].answer = ("list", shown)
            yield "looks", after if self.setting.slow_looks else after.with_answer(number)
            if self.list_failures:
                after = self.clone()
                after.list_failures -= 1
                after.doubt(number)
                yield "list fails", after.go(number, lambda m, now: m.list_failed(now, DOWN))
        elif isinstance(action, core.Pause):
            if caller.wakes is not None and caller.wakes <= self.now:
                yield "wakes", self.clone().go(number, lambda m, now: m.waited(now))
        elif isinstance(action, core.AwaitOther):
            assert caller.machine is not None
            record = self.memories[caller.memory].get(caller.machine.memory_key)
            if record is None or record.owner is None:
                yield "goes on", self.clone().go(number, lambda m, now: m.other_settled(now))
        elif isinstance(action, core.Admit):
            yield "is admitted", self.admitted(number)
            if self.refusals:
                after = self.clone()
                after.refusals -= 1
                yield "is stopped by the budget", after.go(number, lambda m, now: m.refused(now, NO_ROOM))
        elif isinstance(action, core.AskHistory):
            known = self.history_of(action.key)
            yield f"hears of {known}", self.clone().go(number, lambda m, now: m.history(now, known))
        elif isinstance(action, core.Fetch):
            job = next(known for known in self.jobs if known.name == action.job_id)
            seen = listed_job(job.name, job.tag, job.dead)
            yield "fetches", self.clone().go(number, lambda m, now: m.fetched(now, seen))
        elif isinstance(action, core.Compare):
            job = next(known for known in self.jobs if known.name == action.job.id)
            difference = "it has another payload" if job.foreign else None
            yield "compares", self.clone().go(number, lambda m, now: m.compared(now, difference))
        elif isinstance(action, core.Read):
            job = next(known for known in self.jobs if known.name == action.job_id)
            seen = listed_job(job.name, job.tag, job.dead)
            yield "reads", self.clone().go(number, lambda m, now: m.read(now, seen))

    def history_of(self, tag: str) -> core.History:
        jobs = [name for noted, name in self.noted if noted == tag]
        return core.History(tag not in self.marked, bool(jobs), max((name for name in jobs if name), default=None))

    def waits_for_lock(self, caller: Caller) -> bool:
        return self.setting.locked and caller.person.explicit and bool(self.lock)

    def is_sending(self, caller: Caller) -> bool:
        return isinstance(caller.action, core.Post) and caller.answer is None and caller.outcome is None

    # ---- steps -----------------------------------------------------------------------------------------------

    def started(self, number: int) -> World:
        after = self.clone()
        caller = after.callers[number]
        caller.starts += 1
        person, setting = caller.person, self.setting
        if setting.locked and person.explicit:
            after.lock = (number,)
        intent = person.intent if setting.stable_keys or caller.starts == 1 else f"{person.intent}-again"
        ask = core.Ask(
            key_tag=lambda generation: key_tag(intent, generation),
            payload=Payload(person.intent),
            renew_failed=lambda job: person.renews,
            search_until=self.now + GRACE if caller.again else None,
            search_seconds=GRACE if person.explicit else None,
            knows_history=setting.marks,
            grace=GRACE,
            attempts=setting.attempts,
            first_pause=GRACE,
        )
        caller.machine = setting.machine(ask, after.memories[caller.memory], f"{number}.{caller.starts}")
        return after.go(number, lambda m, now: m.start(now))

    def go(self, number: int, event: Callable[[core.Submission, float], core.Action]) -> World:
        """Feed one event; `self` is already a copy."""
        caller = self.callers[number]
        assert caller.machine is not None
        caller.answer = None
        caller.wakes = None
        action = event(caller.machine, self.now)
        if caller.outcome is not None:  # an answer that came too late for its caller
            return self
        caller.action = action
        if isinstance(action, core.Pause):
            caller.wakes = self.now + action.seconds
        elif isinstance(action, core.Bought | core.Attach):
            return self if caller.note is not None else self.ended(number, ("job", action.ref.id))
        elif isinstance(action, core.GiveUp):
            kind = "uncertain" if isinstance(action.error, SubmissionUncertain) else "error"
            return self.ended(number, (kind, action.error))
        return self

    def ended(self, number: int, outcome: tuple[str, Any], *, abandon: bool = False) -> World:
        """`self` is already a copy."""
        caller = self.callers[number]
        assert caller.machine is not None
        if abandon:
            caller.machine.abandoned(self.now)
        if outcome[1] in (SLOW_DOWN, NO_ROOM, DOWN) or isinstance(outcome[1], InvalidInput):
            mine = (caller.machine.key, caller.memory)
            if any((job.tag, job.memory) == mine for job in self.jobs):
                raise Violation("somebody is told of a refusal alone although its process sent what was accepted")
        caller.outcome, caller.action, caller.wakes = outcome, None, None
        self.lock = tuple(holder for holder in self.lock if holder != number)
        return self

    def admitted(self, number: int) -> World:
        after = self.clone()
        action = after.callers[number].action
        assert isinstance(action, core.Admit)
        if self.setting.marks:
            after.marked |= {action.key}
        return after.go(number, lambda m, now: m.admitted(now))

    def sent(self, number: int, outcome: str, lag: int) -> World:
        after = self.clone()
        caller = after.callers[number]
        action = caller.action
        assert isinstance(action, core.Post)
        if (caller.memory, action.key) in self.proofs or any(tag == action.key for tag, _ in self.noted):
            raise Violation("a POST after a proof of acceptance")
        number_of_job = len(self.jobs)
        if outcome in ACCEPTING:
            job = Known(number_of_job, caller.person.intent, action.key, self.now + lag, memory=caller.memory)
            after.jobs = (*self.jobs, job)
        if outcome not in (*CLEAN, TOO_LARGE):
            after.doubts |= {action.key}
        caller.answer = (outcome, (action.key, f"d{number_of_job}"))
        return after

    def doubt(self, number: int) -> None:
        """What the caller has sent, if anything, stays without a clear answer; `self` is already a copy."""
        machine = self.callers[number].machine
        if machine is not None and machine.posts:
            self.doubts |= {machine.key}

    def with_answer(self, number: int) -> World:
        after = self.clone()
        caller = after.callers[number]
        assert caller.answer is not None
        kind, what = caller.answer
        if kind == "list":
            jobs = [listed_job(job.name, job.tag, job.dead) for job in what]
            return after.go(number, lambda m, now: m.listed(now, jobs))
        tag, name = what
        if kind in ("answered", "accepted, 2xx unreadable"):
            after.proofs |= {(caller.memory, tag)}
            if self.setting.marks and caller.outcome is None:
                caller.note = (tag, name if kind == "answered" else None)
        if kind == "answered":
            return after.go(number, lambda m, now: m.posted(now, handle(name)))
        if kind == "accepted, 2xx unreadable":
            return after.go(number, lambda m, now: m.unreadable(now))
        if kind == "answered 429":
            return after.go(number, lambda m, now: m.refused(now, SLOW_DOWN))
        return after.go(number, lambda m, now: m.lost(now, NOT_THROUGH if kind == TOO_LARGE else LOST))

    def noting(self, number: int) -> World:
        after = self.clone()
        caller = after.callers[number]
        assert caller.note is not None
        after.noted |= {caller.note}
        caller.note = None
        if isinstance(caller.action, core.Bought):
            return after.ended(number, ("job", caller.action.ref.id))
        return after

    def cancelled(self, number: int, caller: Caller) -> Steps:
        """The shell waits for the answer to a request that is out, but not for ever."""
        if caller.machine is None:
            return
        if caller.answer is not None and isinstance(caller.action, core.Post):
            learnt = self.with_answer(number)
            learnt.cancels -= 1
            learnt.callers[number].note = None
            if learnt.callers[number].outcome is None:
                learnt.doubt(number)
                learnt.ended(number, ("cancelled", None), abandon=True)
            yield "is cancelled, having learnt the answer", learnt
            after = self.clone()
            after.cancels -= 1
            answer = after.callers[number].answer
            after.doubt(number)
            after.ended(number, ("cancelled", None), abandon=True)
            after.callers[number].answer, after.callers[number].gone = answer, True
            yield "is cancelled before the answer", after
            return
        after = self.clone()
        after.cancels -= 1
        after.callers[number].answer = after.callers[number].note = None
        after.doubt(number)
        yield "is cancelled", after.ended(number, ("cancelled", None), abandon=True)

    def crashed(self, memory: int, *, late: bool) -> World:
        """The process is gone, and with it its memory; its callers will start again in a new one."""
        after = self.clone()
        after.crashes -= 1
        for number, caller in enumerate(self.callers):
            if caller.memory != memory:
                continue
            after.doubt(number)
            if late and self.is_sending(caller):
                assert isinstance(caller.action, core.Post)
                job = Known(len(after.jobs), caller.person.intent, caller.action.key, self.now + self.setting.lag)
                after.jobs = (*after.jobs, job)
            twin = after.callers[number]
            twin.gone, twin.answer = False, None
            if caller.outcome is None:
                after.callers[number] = Caller(caller.person, memory, starts=caller.starts, again=True)
            after.lock = tuple(holder for holder in after.lock if holder != number)
        after.memories[memory] = PlainMemory()
        after.jobs = tuple(replace(job, memory=None) if job.memory == memory else job for job in after.jobs)
        after.proofs = frozenset(proof for proof in after.proofs if proof[0] != memory)
        return after

    # ---- invariants --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold in every state."""
        if self.now > 60:
            raise Violation("somebody waits for ever")
        bought: dict[tuple[str, str], int] = {}
        for job in self.jobs:
            if not job.foreign:
                generation = job.tag[-1]
                bought[job.intent, generation] = bought.get((job.intent, generation), 0) + 1
        if any(count > 1 for count in bought.values()):
            if self.setting.longest_lag <= GRACE:
                raise Violation("two jobs for one intent although the list shows each within the grace period")
            if self.setting.marks and self.setting.told and not (self.setting.crashes or self.setting.cancels):
                raise Violation("two jobs for one intent although each process was told and noted it")
        for caller in self.callers:
            if caller.outcome is not None and caller.outcome[0] == "job":
                job = next(known for known in self.jobs if known.name == caller.outcome[1])
                if job.foreign or job.intent != caller.person.intent:
                    raise Violation("somebody got a job that is not what was asked for")
            if caller.outcome is not None and caller.outcome[0] == "uncertain":
                error = caller.outcome[1]
                if not error.solution or "qr-key:" not in error.solution or error.submission_key is None:
                    raise Violation("an uncertain end does not say how to go on")
                if error.submission_key not in self.doubts and not self.setting.foreign:
                    raise Violation("an uncertain end although each request had a clear answer")

    def check_end(self) -> None:
        """What must hold when nothing can happen any more."""
        if any(caller.outcome is None for caller in self.callers):
            raise Violation("somebody waits for ever")
        if not all(memory.is_free for memory in self.memories) or self.lock:
            raise Violation("a key or the lock is never given back")
        if self.setting.longest_lag <= GRACE and not self.setting.deaths and not self.setting.foreign:
            for intent in {caller.person.intent for caller in self.callers}:
                got = {
                    c.outcome[1]
                    for c in self.callers
                    if c.person.intent == intent and c.outcome and c.outcome[0] == "job"
                }
                if len(got) > 1:
                    raise Violation("equal keys got different jobs")
        if self.setting.stable_keys:
            self.check_next_callers()

    def check_next_callers(self) -> None:
        """A later caller of the key "a", in each process or in a new one, gets a job or advice, and buys no second one.

        When a job was listed makes no difference so much later, so equal ends are tried once.
        """
        jobs = tuple(replace(job, visible=0) for job in self.jobs)
        for memory in (None, *range(len(self.memories))):
            known = None if memory is None else frozenset(self.memories[memory].facts())
            proofs = frozenset(tag for place, tag in self.proofs if place == memory)
            end = (known, jobs, self.marked, self.noted, proofs)
            if end in self.tried:
                continue
            self.tried.add(end)
            probe = self.clone()
            probe.setting = replace(self.setting, slow_looks=False, outcomes=("answered",), lags=(), later=True)
            probe.now += 2 * GRACE + self.setting.longest_lag
            probe.slack = probe.crashes = probe.cancels = probe.list_failures = probe.refusals = probe.deaths = 0
            if memory is None:
                probe.memories.append(PlainMemory())
            place = len(probe.memories) - 1 if memory is None else memory
            probe.callers.append(Caller(Person(place, "a", explicit=True), place))
            had = len(probe.jobs)
            while probe.callers[-1].outcome is None:
                options = list(probe.steps())
                if not options:
                    raise Violation("a later caller waits for ever")
                probe = options[0][1]
                probe.check()
            if len(probe.jobs) > had and any(job.tag == key_tag("a", 0) for job in probe.jobs[:had]):
                raise Violation("a later caller bought again what was listed")
            listed = [job for job in self.jobs if job.tag == key_tag("a", 0)]
            looks = memory is None and not any(tag == key_tag("a", 0) for tag, _ in self.noted)
            if len(listed) > 1 and looks and end_of(probe)[0] != "uncertain":
                raise Violation("a later caller was not told of two jobs")


def explore(setting: Setting, *, most: int = 2_000_000) -> Explored:
    """Follow every step of every state of a world of callers once."""
    return explore_from(World.of(setting), most=most)
