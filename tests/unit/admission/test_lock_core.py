"""The lock between processes: every order of requests, lost answers, delays and stalls of a small world is tried."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from prefect_qruntime.admission import lock_core
from prefect_qruntime.admission.lock_core import ANSWER, BEAT, LEASE, SILENCE, Action, Claim, Holding, Row

TICK = 55.0
HORIZON = 2 * TICK  # a takeover, and what a late beat does to it
LOSSES, BEATS = 1, 1
"""Requests of the first process whose answers are lost, and its beats; the second just takes the lock when it may."""


@dataclass
class Request:
    """One request: sent, then written to the table at any later moment, then answered at any later moment, or lost."""

    op: str
    row: Row | None
    sent: float
    applied: bool = False
    answer: Any = None


@dataclass
class Process:
    """A process that claims the lock and then beats; the model stalls it by not letting it act."""

    claim: Claim
    action: Action | None = None
    holding: Holding | None = None
    request: Request | None = None
    beats: int = 0

    def clone(self) -> Process:
        """A copy that can be changed."""
        new = copy.copy(self)
        new.claim, new.holding, new.request = copy.copy(self.claim), copy.copy(self.holding), copy.copy(self.request)
        new.claim._sent = dict(self.claim._sent)
        return new

    def key(self) -> tuple[Any, ...]:
        """What tells two processes apart."""
        holding = self.holding and (self.holding.row, self.holding.until)
        return (_claimed(self.claim), self.action, holding, _facts(self.request), self.beats)


def _facts(request: Request | None) -> tuple[Any, ...] | None:
    return request and (request.op, request.row, request.sent, request.applied, request.answer)


def _claimed(claim: Claim) -> tuple[Any, ...]:
    facts = (getattr(claim, name) for name in claim.__slots__)
    return tuple(tuple(fact.items()) if isinstance(fact, dict) else fact for fact in facts)


@dataclass
class World:
    """The table of locks and two processes."""

    processes: list[Process]
    now: float = 0.0
    row: Row | None = None
    rows: int = 0
    lost: int = 0
    strays: list[Request] = field(default_factory=list)  # given up by their senders, not written yet

    def clone(self) -> World:
        """A copy that can be changed; rows and actions never change."""
        new = copy.copy(self)
        new.processes = [process.clone() for process in self.processes]
        new.strays = [copy.copy(stray) for stray in self.strays]
        return new

    def key(self) -> tuple[Any, ...]:
        """What tells two worlds apart."""
        processes, strays = (one.key() for one in self.processes), (_facts(one) for one in self.strays)
        return (self.now, self.row, self.rows, self.lost, *processes, *strays)


def holders(world: World) -> int:
    return sum(one.holding is not None and one.holding.holds(world.now) for one in world.processes)


def apply(world: World, request: Request) -> None:
    """The server does what a request asks for."""
    request.applied = True
    row = request.row
    if request.op == "create":
        if world.row is None:
            world.rows += 1
            assert row is not None
            world.row = replace(row, id=str(world.rows))
            request.answer = world.row
        else:
            request.answer = None
    elif request.op == "read":
        request.answer = world.row
    elif row is not None and world.row is not None and world.row.id == row.id:
        world.row = None if request.op == "remove" else replace(world.row, beat=row.beat)
        request.answer = True
    else:
        request.answer = False


def send(world: World, process: Process) -> bool:
    """The process sends its next request, if it wants to."""
    if process.holding is None:
        assert process.action is not None
        if process.action.do == "create":
            process.request = Request("create", Row("", process.claim.creating(world.now)), world.now)
        elif process.action.do in ("read", "remove"):
            process.request = Request(process.action.do, process.action.row, world.now)
        else:
            return False
        return True
    if process.beats >= BEATS or process is world.processes[1]:
        return False
    row = process.holding.beat(world.now)
    if row is None:
        return False
    process.beats += 1
    process.request = Request("beat", row, world.now)
    return True


def answer(world: World, process: Process) -> None:
    """The answer of the process's request arrives."""
    request = process.request
    assert request is not None
    process.request = None
    now = world.now
    if request.op == "beat":
        assert process.holding is not None
        if request.answer:
            process.holding.answered(sent=request.sent, now=now)
        else:
            process.holding.gone()
        return
    if request.op == "create":
        process.action = process.claim.created(request.answer, now) if request.answer else process.claim.not_created()
    elif request.op == "read":
        process.action = process.claim.read(request.answer, asked=request.sent, now=now)
    else:
        process.action = process.claim.removed(now)
    if process.action.do == "hold":
        assert process.action.row is not None
        process.holding = Holding.begin(process.action.row, sent=process.action.since)


def lose(process: Process) -> Request:
    """The process gives a request up without an answer; the server may still do it."""
    request = process.request
    assert request is not None
    process.request = None
    if request.op in ("create", "remove"):
        process.action = process.claim.not_created()
    return request


def successors(world: World) -> Iterator[World]:
    """Every world that one event makes of this one."""
    if world.now < HORIZON:
        later = world.clone()
        later.now += TICK
        yield later
    for number, process in enumerate(world.processes):
        if process.request is None:
            new = world.clone()
            if send(new, new.processes[number]):
                request = new.processes[number].request
                if request is not None and request.op == "read":  # a slow one only makes its sender wait longer
                    apply(new, request)
                    answer(new, new.processes[number])
                yield new
        elif not process.request.applied:
            new = world.clone()
            request = new.processes[number].request
            assert request is not None
            apply(new, request)
            if request.op == "remove":
                answer(new, new.processes[number])
            yield new
            if number == 0 and world.lost < LOSSES:
                new = world.clone()
                new.lost += 1
                new.strays.append(lose(new.processes[number]))
                yield new
        else:
            new = world.clone()
            answer(new, new.processes[number])
            yield new
            if number == 0 and world.lost < LOSSES:
                new = world.clone()
                new.lost += 1
                lose(new.processes[number])
                yield new
    for number in range(len(world.strays)):
        new = world.clone()
        apply(new, new.strays.pop(number))
        yield new


def explore(limit: int = 1_000_000) -> tuple[int, World | None]:
    """Visit all worlds; returns how many there were, and one with two holders if there is any."""
    processes = [Process(Claim(name, 1e9, 1e9)) for name in "ab"]
    for process in processes:
        process.action = process.claim.start(0.0)
    first = World(processes)
    seen, stack = {first.key()}, [first]
    while stack and len(seen) < limit:
        for new in successors(stack.pop()):
            if holders(new) > 1:
                return len(seen), new
            key = new.key()
            if key not in seen:
                seen.add(key)
                stack.append(new)
    return len(seen), None


@pytest.mark.uncounted
@pytest.mark.parametrize(("losses", "beats"), [(0, 1), (1, 0)])
def test_two_processes_never_hold_a_lock_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, losses: int, beats: int
) -> None:
    # With a loss and a beat together there are 322,337 states; no two holders among them.
    monkeypatch.setitem(globals(), "LOSSES", losses)
    monkeypatch.setitem(globals(), "BEATS", beats)
    assert SILENCE > LEASE + ANSWER
    assert BEAT < LEASE / 3
    states, broken = explore()
    with capsys.disabled():
        print(f"\nlocks: {states} states explored")
    assert broken is None


@pytest.mark.uncounted
@pytest.mark.parametrize("wrong", [{"SILENCE": 50.0}, {"LEASE": 120.0}])
def test_the_exploration_finds_a_rule_that_is_too_short(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float]
) -> None:
    for name, value in wrong.items():
        monkeypatch.setattr(lock_core, name, value)
    assert explore()[1] is not None


ROW = Row("1", "other", 0, "flow run 7")


def test_a_silent_holder_is_removed_and_a_living_one_is_not() -> None:
    claim = Claim("me", 1e9, 1e9)
    claim.start(0.0)
    assert claim.not_created().do == "read"
    assert claim.read(ROW, asked=0.0, now=0.0).do == "read"
    assert claim.read(ROW, asked=SILENCE - 1, now=SILENCE).do == "read"
    alive = replace(ROW, beat=1)
    assert claim.read(alive, asked=SILENCE, now=SILENCE).do == "read"
    assert claim.read(alive, asked=2 * SILENCE, now=2 * SILENCE) == Action("remove", alive)
    assert claim.contended
    assert claim.removed(2 * SILENCE).do == "create"


def test_no_wait_is_without_end() -> None:
    claim = Claim("me", held_limit=100.0, limit=1e9)
    claim.start(0.0)
    for second in range(100):
        assert claim.read(replace(ROW, beat=second), asked=second, now=second).do == "read"
    assert claim.read(replace(ROW, beat=100), asked=100, now=100).do == "give up"
    # Other holders in turn: each has its own time, and all together have a limit.
    claim = Claim("me", held_limit=100.0, limit=1000.0)
    claim.start(0.0)
    for second in range(0, 1000, 50):
        assert claim.read(replace(ROW, id=str(second)), asked=second, now=second).do == "read"
    assert claim.read(replace(ROW, id="1000"), asked=1000, now=1000).do == "give up"
    assert claim.read(None, asked=1000, now=1000).do == "give up"


def test_a_row_whose_creation_was_not_answered_is_recognised_while_it_is_fresh() -> None:
    for late, done in ((1.0, "hold"), (LEASE, "remove")):
        claim = Claim("me", 1e9, 1e9)
        claim.start(0.0)
        mine = replace(ROW, holder=claim.creating(0.0))
        action = claim.read(mine, asked=late, now=late)
        assert (action.do, action.row) == (done, mine)
        assert not claim.contended
        if done == "hold":
            assert Holding.begin(mine, sent=action.since).until == LEASE


def test_a_lock_that_was_lost_stays_lost() -> None:
    holding = Holding.begin(ROW, sent=0.0)
    beat = holding.beat(BEAT)
    assert beat == replace(ROW, beat=1)
    holding.answered(sent=BEAT, now=BEAT + ANSWER + 1)  # too late to count
    assert not holding.holds(LEASE)
    assert holding.beat(LEASE) is None
    holding.answered(sent=LEASE, now=LEASE)
    assert not holding.holds(LEASE)
    again = Holding.begin(ROW, sent=0.0)
    assert again.beat(BEAT) is not None
    again.answered(sent=BEAT, now=BEAT + 1)
    assert again.holds(LEASE + BEAT - 1)
    again.gone()
    assert not again.holds(0.0)
