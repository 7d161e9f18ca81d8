"""Every order of opening and closing sessions in a small world; and the old rules, put back, are found out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from prefect_qruntime.client import session_core as core
from prefect_qruntime.errors import QuantumRuntimeError, ServiceUnavailable, SubmissionUncertain
from prefect_qruntime.models import Session, SessionRef
from tests.support.explorer import Explored, Violation, explore_from, twin_of

GRACE = 4
WANTED = core.Wanted("b", "dedicated", 60)
DOWN = ServiceUnavailable("it is down")
NO = QuantumRuntimeError("refused")
ACCEPTING = ("answered", "accepted, answer lost", "accepted, 2xx unreadable")
OUTCOMES = (*ACCEPTING, "lost before", "refused")


@cache
def session(name: str) -> Session:
    return Session(id=name, backend="b", mode="dedicated", max_ttl=60, state="open")


class PlainMemory(core.SessionMemory):
    def __init__(self) -> None:
        super().__init__()
        self.ours: dict[str, None] = {}  # type: ignore[assignment]

    def clone(self) -> PlainMemory:
        other = twin_of(self)
        other.ours, other.posting, other.missing = dict(self.ours), dict(self.posting), dict(self.missing)  # type: ignore[assignment]
        return other


@dataclass
class Caller:
    machine: core.Opening | None = None
    action: core.OpeningAction | None = None
    wakes: float | None = None
    answer: tuple[str, str] | None = None
    end: tuple[str, Any] | None = None
    proof: bool = False
    bought: bool = False  # one of its requests was accepted

    def state(self) -> Hashable:
        machine, end = self.machine, self.end
        facts = (
            ()
            if machine is None or end is not None
            else (machine.posts, machine.accepted, machine.until, machine.looked, machine.pause)
        )
        ended = None if end is None else (end[0], end[1] if isinstance(end[1], str) else type(end[1]).__name__)
        return type(self.action).__name__, self.wakes, self.answer, ended, self.proof, self.bought, facts


@dataclass
class World:
    """Callers that open equal sessions in one process."""

    callers: list[Caller]
    memory: PlainMemory = field(default_factory=PlainMemory)
    machine: type[core.Opening] = core.Opening
    outcomes: tuple[str, ...] = OUTCOMES
    lag: float = 0
    now: float = 0
    sessions: tuple[tuple[str, float], ...] = ()
    dropped: frozenset[str] = frozenset()
    cancels: int = 0
    list_failures: int = 0
    slack: int = 1

    def clone(self) -> World:
        other = twin_of(self)
        other.memory = self.memory.clone()
        other.callers = []
        for caller in self.callers:
            twin = twin_of(caller)
            if caller.machine is not None:
                twin.machine = twin_of(caller.machine)
                twin.machine.memory = other.memory
            other.callers.append(twin)
        return other

    def state(self) -> Hashable:
        memory = (frozenset(self.memory.ours), frozenset(self.memory.posting), frozenset(self.memory.missing))
        counters = (self.now, self.cancels, self.list_failures, self.slack)
        return tuple(one.state() for one in self.callers), memory, self.sessions, self.dropped, counters

    def steps(self) -> Iterator[tuple[str, World]]:
        able = False
        for number, caller in enumerate(self.callers):
            if caller.end is not None:
                continue
            for label, after in self.steps_of(number, caller):
                able = True
                yield f"caller {number} {label}", after
            if self.cancels and caller.machine is not None:
                yield f"caller {number} is cancelled", self.cancelled(number, caller)
        wakes = [caller.wakes for caller in self.callers if caller.wakes is not None]
        if able and self.slack:
            after = self.clone()
            after.now, after.slack = self.now + 1, self.slack - 1
            yield "a second passes", after
        elif not able and wakes:
            after = self.clone()
            after.now = max(self.now, min(wakes))
            yield f"it is {after.now}", after

    def steps_of(self, number: int, caller: Caller) -> Iterator[tuple[str, World]]:
        if caller.machine is None:
            after = self.clone()
            machine = self.machine(WANTED, after.memory, number, grace=GRACE)
            after.callers[number].machine = machine
            yield "starts", after.go(number, lambda m: m.start())
        elif caller.answer is not None:
            yield f"learns {caller.answer[0]!r}", self.clone().answered(number)
        elif isinstance(caller.action, core.Open):
            if caller.proof:
                raise Violation("another session was asked for after a proof of acceptance")
            for outcome in self.outcomes:
                after = self.clone()
                name = f"s{len(self.sessions)}"
                if outcome in ACCEPTING:
                    after.sessions = (*self.sessions, (name, self.now + self.lag))
                    after.callers[number].bought = True
                after.callers[number].answer = (outcome, name)
                yield f"POST {outcome}", after
        elif isinstance(caller.action, core.FindSessions):
            shown = [session(name) for name, visible in self.sessions if visible <= self.now]
            yield "looks", self.clone().go(number, lambda m: m.found(self.now, shown))
            if self.list_failures:
                after = self.clone()
                after.list_failures -= 1
                yield "cannot look", after.go(number, lambda m: m.find_failed(DOWN))
        elif isinstance(caller.action, core.Pause) and caller.wakes is not None and caller.wakes <= self.now:
            yield "wakes", self.clone().go(number, lambda m: m.waited(self.now))

    def go(self, number: int, event: Callable[[core.Opening], core.OpeningAction]) -> World:
        caller = self.callers[number]
        assert caller.machine is not None
        caller.answer, caller.wakes = None, None
        caller.action = action = event(caller.machine)
        if isinstance(action, core.Pause):
            caller.wakes = self.now + action.seconds
        elif isinstance(action, core.Opened):
            caller.end = ("session", action.ref.id)
        elif isinstance(action, core.Fail):
            caller.end = ("error", action.error)
        return self

    def answered(self, number: int) -> World:
        caller = self.callers[number]
        assert caller.answer is not None
        outcome, name = caller.answer
        if outcome == "answered":
            return self.go(number, lambda m: m.opened(SessionRef(id=name)))
        if outcome == "accepted, 2xx unreadable":
            caller.proof = True
            return self.go(number, lambda m: m.unreadable(self.now))
        if outcome == "refused":
            return self.go(number, lambda m: m.refused(NO))
        return self.go(number, lambda m: m.lost(self.now))

    def cancelled(self, number: int, caller: Caller) -> World:
        """A session whose id is learnt is dropped."""
        after = self.clone()
        after.cancels -= 1
        if caller.answer is not None:
            after.answered(number)
        twin = after.callers[number]
        assert twin.machine is not None
        if twin.end is not None and twin.end[0] == "session":
            after.dropped |= {twin.end[1]}
        twin.machine.abandoned()
        twin.end, twin.action, twin.wakes = ("cancelled", ""), None, None
        return after

    def check(self) -> None:
        if self.now > 40:
            raise Violation("somebody waits for ever")
        got = [caller.end[1] for caller in self.callers if caller.end is not None and caller.end[0] == "session"]
        if len(set(got)) < len(got):
            raise Violation("two callers got one session")
        if self.dropped & set(got):
            raise Violation("a caller got a session that was dropped")
        if any(caller.bought and caller.end is not None and caller.end[1] is NO for caller in self.callers):
            raise Violation("a caller is told of a refusal alone although it sent what was accepted")
        if self.lag <= GRACE and len(self.sessions) > len(self.callers):
            raise Violation("more sessions than callers although each is listed within the grace period")

    def check_end(self) -> None:
        if any(caller.end is None for caller in self.callers):
            raise Violation("somebody waits for ever")
        if self.memory.posting or self.memory.missing:
            raise Violation("an opening is never over")
        for caller in self.callers:
            if caller.end is not None and isinstance(caller.end[1], SubmissionUncertain) and not caller.end[1].solution:
                raise Violation("an uncertain end does not say how to go on")


def world(number: int, lag: float = 0, **fields: Any) -> World:
    return World([Caller() for _ in range(number)], lag=lag, **fields)


WORLDS: dict[str, tuple[Callable[[float], World], int]] = {
    "one": (lambda lag: world(1, lag, cancels=1, list_failures=1), 397),
    "two": (lambda lag: world(2, lag), 12_468),
    "two, one of them cancelled": (lambda lag: world(2, lag, cancels=1, slack=0), 2_270),
    "two, and the list fails": (lambda lag: world(2, lag, list_failures=1, slack=0), 1_906),
    "three": (lambda lag: world(3, lag, slack=0, outcomes=("answered", *OUTCOMES[1:4:2])), 7_939),
}
LEAST_STATES = 165_195
LAGS = (0, 2, 7)


@cache
def explored(name: str, lag: float) -> Explored:
    return explore_from(WORLDS[name][0](lag))


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("name", WORLDS)
def test_every_order_of_opening(name: str, lag: float) -> None:
    assert explored(name, lag).states >= WORLDS[name][1], "the explorer sees less than it did"


def test_how_much_was_explored(capsys: pytest.CaptureFixture[str]) -> None:
    found = [explored(name, lag) for name in WORLDS for lag in LAGS]
    states, steps, ends = (sum(getattr(one, field) for one in found) for field in ("states", "steps", "ends"))
    with capsys.disabled():
        print(
            f"\nsession explorer: {states:,} states, {steps:,} steps, {ends:,} ends in {len(found)} worlds. "
            "Held in each:\n"
            "- no session is asked for after a 2xx for the one wanted;\n"
            "- no session is handed to two callers, or handed out after it was dropped;\n"
            "- not more sessions than callers if the workloads show a session within the grace period;\n"
            "- no caller waits for ever, and every uncertain end says how to go on."
        )
    assert states >= LEAST_STATES


class UnreadableIsLost(core.Opening):
    """Before: a 2xx that cannot be read was taken for a lost answer."""

    def unreadable(self, now: float) -> core.OpeningAction:
        return self.lost(now)


class TakesAnother(core.Opening):
    """Before: what is listed was taken although another opening still waited for its answer."""

    def _may_belong_to_another(self) -> bool:
        return False


class NeverForgets(core.Opening):
    """A cancelled opening goes on counting."""

    def abandoned(self) -> None:
        return None


class OnlyRefused(core.Opening):
    """Before: the refusal of a repeated request was the answer also to an earlier one that may have been accepted."""

    def refused(self, error: QuantumRuntimeError) -> core.OpeningAction:
        return self._end(error)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (world(1, 7, machine=UnreadableIsLost), "after a proof"),
        (world(1, 7, machine=OnlyRefused), "a refusal alone"),
        (world(2, 0, machine=TakesAnother), "two callers got one session"),
        (world(2, 0, machine=NeverForgets, cancels=1), "never over|for ever"),
    ],
    ids=[
        "an unreadable 2xx is a lost answer",
        "a refusal answers for all",
        "another's session is taken",
        "a cancelled opening counts on",
    ],
)
def test_an_old_rule_put_back_is_found(made: World, words: str) -> None:
    with pytest.raises(Violation, match=words):
        explore_from(made)


# ---- closing -------------------------------------------------------------------------------------------------


@dataclass
class Door:
    """A session that is being closed.

    Attributes:
        jobs: Its queued jobs.
        fails: How many calls go unanswered, each before or after the service did what was asked.
        lag: Seconds until a closed session says so.
        lapses: How many calls the service answers as if it did not know the session, though it does.
        refuses: How many changes it refuses, whatever the session's state.
        ends: Whether someone else may close the session.
    """

    machine: core.Closing
    jobs: int
    fails: int
    lag: float
    action: core.Close | None = None
    now: float = 0
    closes: float | None = None
    accepting: bool = True
    dropped: int = 0
    gone: bool = False
    lapses: int = 2
    refuses: int = 1
    ends: bool = True

    def clone(self) -> Door:
        other = twin_of(self)
        other.machine = twin_of(self.machine)
        return other

    def state(self) -> Hashable:
        return (
            repr(self.action)[:40],
            repr(self.machine.asked),
            self.machine.until,
            self.machine.unknown_since,
            self.machine.runs_on,
            (self.machine.doubted, self.machine.refused),
            *(self.refuses, self.ends),
            *(self.jobs, self.fails, self.now, self.closes, self.accepting, self.dropped, self.gone, self.lapses),
        )

    def session(self) -> Session:
        closed = self.closes is not None and self.closes <= self.now
        return Session(id="s", state="closed" if closed else "active", accepting_jobs=self.accepting)

    def does(self) -> Door:
        after = self.clone()
        if isinstance(self.action, core.StopAccepting):
            after.accepting = False
        elif isinstance(self.action, core.Drop):
            after.dropped, after.jobs, after.accepting = self.jobs, 0, False
            after.closes = self.now + self.lag if self.closes is None else self.closes
        return after

    def steps(self) -> Iterator[tuple[str, Door]]:
        action = self.action
        if action is None:
            after = self.clone()
            after.action = after.machine.start()
            yield "starts", after
            return
        if isinstance(action, core.Closed | core.Fail):
            return
        if isinstance(action, core.Pause):
            after = self.clone()
            after.now += 5
            after.action = after.machine.waited()
            yield "wakes", after
            return
        if self.gone:
            after = self.clone()
            after.action = after.machine.missing(self.now)
            yield "is not known", after
            return
        if self.lapses and not isinstance(action, core.HasWork):
            after = self.clone()
            after.lapses -= 1
            after.action = after.machine.missing(self.now)
            yield "is not known for a moment", after
        after = self.does()
        after.action = {
            core.StopAccepting: lambda m: m.stopped(),
            core.HasWork: lambda m: m.work(self.jobs > 0),
            core.Drop: lambda m: m.dropped(self.now),
            core.ReadBack: lambda m: m.read(self.now, self.session()),
        }[type(action)](after.machine)
        yield type(action).__name__, after
        if self.fails:
            for whole in (self.clone(), self.does()):
                whole.fails -= 1
                whole.action = whole.machine.failed(DOWN)
                yield f"{type(action).__name__} goes unanswered", whole
        if self.refuses and isinstance(action, core.StopAccepting | core.Drop):
            after = self.clone()
            after.refuses -= 1
            after.action = after.machine.failed(NO)
            yield f"{type(action).__name__} is refused", after
        if self.ends and self.closes is None:
            after = self.clone()
            after.ends, after.closes, after.accepting, after.jobs = False, self.now, False, 0
            yield "someone closes it", after
        if self.jobs and isinstance(action, core.ReadBack | core.HasWork):
            after = self.clone()
            after.jobs -= 1
            yield "a job ends", after
        after = self.clone()
        after.gone = True
        yield "the session is deleted", after

    def check(self) -> None:
        if self.now > 60:
            raise Violation("closing never ends")
        if self.machine.drain and self.dropped:
            raise Violation("a queued job was dropped although it was to run")

    def check_end(self) -> None:
        action = self.action
        if not isinstance(action, core.Closed | core.Fail):
            raise Violation("closing never ends")
        closed = self.closes is not None and self.closes <= self.now
        if isinstance(action, core.Fail) and action.error is NO and closed:
            raise Violation("that it is closed already is an error")
        if isinstance(action, core.Closed) and action.session is None and not self.gone:
            raise Violation("a session that the service did not know for a moment is called closed")
        if isinstance(action, core.Closed) and not self.gone and self.closes is None and not self.machine.drain:
            raise Violation("it was never asked to close")
        said = (
            action.session.ref().is_closed if isinstance(action, core.Closed) and action.session is not None else closed
        )
        if said is not closed and not self.machine.drain:
            raise Violation("it is called closed and is not")


def door(drain: bool, jobs: int, lag: float, machine: type[core.Closing] = core.Closing) -> Door:
    return Door(machine(drain=drain, patience=20.0), jobs, 1, lag)


@pytest.mark.parametrize("lag", [0, 10, 100])
@pytest.mark.parametrize("jobs", [0, 1, 2])
@pytest.mark.parametrize("drain", [True, False])
def test_every_order_of_closing(drain: bool, jobs: int, lag: float) -> None:
    assert explore_from(door(drain, jobs, lag)).states >= 10


class FailureIsNoWork(core.Closing):
    """Before: a question that failed was an error, and an error drops what is queued."""

    def failed(self, error: QuantumRuntimeError) -> core.Close:
        return core.Drop()


class AlwaysDrops(core.Closing):
    """Closing means to drop."""

    def work(self, waiting: bool) -> core.Close:
        return super().work(False)


class BelievesAtOnce(core.Closing):
    """Before: one 404 was taken for the end of the session."""

    def missing(self, now: float) -> core.Close:
        return core.Closed(None)


class RefusalIsFinal(core.Closing):
    """Before: a session that was closed already could not be closed, and its flow failed."""

    def failed(self, error: QuantumRuntimeError) -> core.Close:
        return core.Fail(error)


class RepeatsNothing(core.Closing):
    """Reads after a 404, but does not close what is known again."""

    def waited(self) -> core.Close:
        return core.ReadBack()


@pytest.mark.parametrize(
    ("machine", "found"),
    [
        (FailureIsNoWork, "was dropped"),
        (AlwaysDrops, "was dropped"),
        (BelievesAtOnce, "is called closed"),
        (RepeatsNothing, "never asked to close"),
        (RefusalIsFinal, "closed already"),
    ],
)
def test_an_old_rule_of_closing_put_back_is_found(machine: type[core.Closing], found: str) -> None:
    with pytest.raises(Violation, match=found):
        explore_from(door(found == "was dropped", 1, 0, machine))


def test_a_model_that_may_be_shared_is_not_changed() -> None:
    first = world(1)
    before = first.state()
    for _, after in first.steps():
        assert after.state() != before
    assert first.state() == before
    assert replace(first).state() == before
