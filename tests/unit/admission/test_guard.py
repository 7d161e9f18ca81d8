"""Every order of a small world of submissions that share a create rate, budgets and their locks.

Each submission goes the way that `guard.admission_guard` goes: its team's turn, the budget's lock, the count of what is
spent, the POST, the lock given back when the service lists the job. Any process may be killed at any of these steps or
stand still for a while, jobs end when they like and cost what they like, and of all that happens at the same moment
every order is tried. What decides is the package's own: `share_core`, `lock_core`, `budget_core.tally` and
`budget_core.allowed_seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from prefect_qruntime.admission import budget_core, lock_core, share_core
from prefect_qruntime.admission.budget_core import Remaining, allowed_seconds, tally
from prefect_qruntime.admission.lock_core import Claim, Holding
from prefect_qruntime.admission.share_core import Row, Share, Waiter, in_order
from prefect_qruntime.errors import BudgetExhausted
from prefect_qruntime.models import Job, JobStatus
from tests.support.explorer import Violation, explore_from

COUNT, PERIOD = 1, 12  # a create in 12 s is five a minute
PATIENCE, SILENCE = share_core.PATIENCE, lock_core.SILENCE  # as they are, whatever a test makes of them
ALLOWED, CAP = 3, 2
LOOK = 5  # seconds between two looks at a lock that another process holds
LATE = 4  # seconds that a look may be late: a fifth of a quarter of what it waits for, rounded up
WAITS = ("turn", "lock", "listed")


@cache
def told(number: int, cost: int | None) -> Job:
    """The service's answer about a job of which it tells the cost, or which is not over."""
    status = JobStatus.QUEUED if cost is None else JobStatus.COMPLETED
    return Job(id=f"d{number}", status=status, max_execution_time=CAP, usage_seconds=cost, usage_final=cost is not None)


@dataclass(frozen=True)
class Bought:
    """A job of the model; `cost` once it is over and the service tells it."""

    team: str
    created: int
    cost: int | None = None


@dataclass(frozen=True)
class Process:
    """A submission on its way.

    Attributes:
        team: Whose.
        due: When it does something next.
        began: When it began to wait for its team's turn, and later for the lock.
        entitled: What its `Waiter` remembers.
        claim: Its attempt to get the lock.
        holding: The lock it has.
        wants: How many more jobs it wants after this one, one after the other.
    """

    team: str
    phase: str = "new"
    due: int = 0
    began: int = 0
    entitled: tuple[tuple[str, float], ...] = ()
    claim: Claim | None = None
    holding: Holding | None = None
    wants: int = 0

    @property
    def over(self) -> bool:
        return self.phase in ("dead", "bought", "refused", "lost")

    def ticket(self, number: int) -> str:
        """The id of its row."""
        return f"t{number}-{self.wants}"

    def state(self, now: float) -> Hashable:
        claim, holding = self.claim, self.holding
        if self.over:
            return (self.team, self.phase)
        claimed = claim and (
            tuple((name, sent - now) for name, sent in claim._sent.items()),
            claim._seen,
            claim._seen_since - now,
            claim._held_since - now,
            (claim._began or 0.0) - now,
        )
        held = holding and (holding.row, holding.until - now)
        waiting = tuple((name, since - now) for name, since in self.entitled)
        return (self.team, self.phase, self.due - now, self.began - now, waiting, claimed, held, self.wants)


@dataclass
class Waits:
    """The longest waits seen, by what was waited for and whether a process had died."""

    longest: dict[tuple[str, str, bool], float] = field(default_factory=dict)

    def note(self, what: str, team: str, killed: bool, seconds: float) -> None:
        self.longest[what, team, killed] = max(self.longest.get((what, team, killed), 0), seconds)


@dataclass(frozen=True)
class World:
    """Prefect, the service, and the processes.

    Attributes:
        budgets: Teams that spend from a budget of their own.
        crashes: How many processes may still die.
        stalls: How many may still stand still right before their POST, and for how long.
        lag: Seconds after which the service lists a job.
        guarded: Whether submissions under a budget take its lock.
        asked: How many jobs each team wants in all.
        waits: What was seen.
        killed: How many processes died.
        stood: For how long processes stood still.
    """

    shares: tuple[tuple[str, Share], ...]
    processes: tuple[Process, ...]
    budgets: frozenset[str] = frozenset()
    crashes: int = 0
    stalls: tuple[int, ...] = ()
    lag: int = 0
    guarded: bool = True
    asked: tuple[tuple[str, int], ...] = ()
    waits: Waits = field(default_factory=Waits, compare=False)
    now: float = 0
    killed: int = 0
    stood: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()
    locks: tuple[tuple[str, lock_core.Row], ...] = ()
    made: int = 0
    jobs: tuple[Bought, ...] = ()

    def state(self) -> Hashable:
        now = self.now
        rows = tuple(
            (row.id, row.since - now, row.granted and max(row.granted - now, -2.0 * PERIOD), row.start, row.finish)
            for row in self.rows
        )
        jobs = tuple((job.team, min(now - job.created, self.lag), job.cost) for job in self.jobs)
        processes = tuple(one.state(now) for one in self.processes)
        return (processes, rows, self.locks, jobs, self.crashes, self.stalls)

    # ---- what must hold ----------------------------------------------------------------------

    def check(self) -> None:
        for team in self.budgets:
            spent = sum(CAP if job.cost is None else job.cost for job in self.jobs if job.team == team)
            if spent > ALLOWED:
                raise Violation(f"team {team} may spend {spent} s of {ALLOWED}")
        if sum(row.granted is not None and self.now - row.granted < PERIOD for row in self.rows) > COUNT:
            raise Violation("more turns than the rate has")
        for one in self.processes:
            if one.phase in WAITS:
                waited = self.now - one.began
                self.waits.note(one.phase, one.team, bool(self.killed), waited)
                if waited > self.bound(one):
                    raise Violation(f"a submission of team {one.team} waits for its {one.phase} for {waited} s")

    def bound(self, one: Process) -> float:
        """The longest that a living process may wait: for others' turns, and for what the dead leave."""
        others = len(self.processes) - 1
        if one.phase == "turn":
            # What the others get first, by their weights, one turn that was out when it came, and for each process
            # that died its turn and the patience for it; and its own look, which may be late.
            spoilt = self.killed * (PERIOD / COUNT + PATIENCE)
            return (self._before(one) + 1) * PERIOD / COUNT + spoilt + LATE
        if one.phase == "lock":
            return self.killed * (SILENCE + LOOK) + others * self.lag + sum(self.stood)
        return self.lag

    def _before(self, one: Process) -> int:
        """How many turns of others may come before a submission that waits."""
        weights, found = {team: share.weight for team, share in self.shares}, 0
        for team, asked in self.asked:
            fair = math.ceil(weights[team] / weights[one.team]) + 1
            found += asked - 1 if team == one.team else min(asked, fair)
        return found

    def check_end(self) -> None:
        if any(not one.over for one in self.processes):
            raise Violation("a submission waits for ever")
        refused = {one.team for one in self.processes if one.phase == "refused"}
        for team in refused:
            spent = sum(CAP if job.cost is None else job.cost for job in self.jobs if job.team == team)
            if team not in self.budgets or spent == 0:
                raise Violation("a submission was refused that had room")

    # ---- what can happen ---------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[str, World]]:
        if all(one.over for one in self.processes):
            return
        for number, job in enumerate(self.jobs):
            if job.cost is None and job.team in self.budgets:
                for cost in (1, CAP):
                    ended = (*self.jobs[:number], replace(job, cost=cost), *self.jobs[number + 1 :])
                    yield f"job {number} costs {cost} s", replace(self, jobs=ended)
        due = [number for number, one in enumerate(self.processes) if not one.over and one.due <= self.now]
        for number in due:
            one = self.processes[number]
            for label, after in getattr(self, f"_{one.phase}")(number, one):
                yield f"{number} ({one.team}): {label}", after
        for number, one in enumerate(self.processes):
            if self.crashes and one.phase != "new" and not one.over:
                dead = replace(one, phase="dead", claim=None, holding=None, entitled=())
                fewer = {"crashes": self.crashes - 1, "killed": self.killed + 1}
                yield f"{number} ({one.team}) is killed", self._with(number, dead, **fewer)
        if not due:
            yield "later", replace(self, now=min(one.due for one in self.processes if not one.over))

    def _with(self, number: int, one: Process, **changes: Any) -> World:
        processes = (*self.processes[:number], one, *self.processes[number + 1 :])
        return replace(self, processes=processes, **changes)

    # ---- the team's turn ---------------------------------------------------------------------

    def _new(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        row = Row(one.ticket(number), one.team, self.now)
        yield (
            "takes a ticket",
            self._with(number, replace(one, phase="turn", began=int(self.now)), rows=(*self.rows, row)),
        )

    def _turn(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        name = one.ticket(number)
        waiter = Waiter(name, COUNT, PERIOD, dict(one.entitled))
        turn = waiter.look(self.rows, dict(self.shares), server=self.now, now=self.now)
        rows = tuple(row for row in self.rows if row.id not in turn.drop)
        if turn.do == "renew":
            yield "renews its ticket", self._with(number, one, rows=(*rows, Row(name, one.team, one.began)))
        elif turn.do == "go":
            granted = tuple(
                replace(row, granted=self.now, start=turn.start, finish=turn.finish) if row.id == name else row
                for row in rows
            )
            locked = one.team in self.budgets
            phase = "post" if not locked else "claim" if self.guarded else "count"
            began = replace(one, phase=phase, began=int(self.now), entitled=())
            yield "gets its turn", self._with(number, began, rows=granted)
        else:
            entitled = tuple(waiter._entitled.items())
            for late in sorted({max(1, math.ceil(turn.pause * factor)) for factor in (0.8, 1.2)}):
                waiting = replace(one, due=int(self.now) + late, entitled=entitled)
                yield f"looks again in {late} s", self._with(number, waiting, rows=rows)

    # ---- the budget's lock -------------------------------------------------------------------

    def _claim(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        claim = Claim(f"p{number}", 1e6, 1e6)
        claim.start(self.now)
        yield "wants the lock", self._create(number, replace(one, phase="lock", claim=claim))

    def _create(self, number: int, one: Process) -> World:
        """Create the lock's row, or find that it is there."""
        claim, locks = _copied(one.claim), dict(self.locks)
        holder = claim.creating(self.now)
        if one.team in locks:
            claim.not_created()
            return self._with(number, replace(one, claim=claim, due=int(self.now)))
        row = lock_core.Row(f"{one.team}{self.made}", holder)
        action = claim.created(row, self.now)
        held = replace(one, phase="count", claim=None, holding=Holding.begin(row, sent=action.since))
        return self._with(number, held, locks=tuple({**locks, one.team: row}.items()), made=self.made + 1)

    def _lock(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        claim, locks = _copied(one.claim), dict(self.locks)
        action = claim.read(locks.get(one.team), asked=self.now, now=self.now)
        waiting = replace(one, claim=claim)
        if action.do == "remove":
            del locks[one.team]
            claim.removed(self.now)
            yield "removes a silent holder's lock", replace(self, locks=tuple(locks.items()))._create(number, waiting)
        elif action.do == "create":
            yield "finds the lock free", self._create(number, waiting)
        else:
            yield "finds the lock taken", self._with(number, replace(waiting, due=int(self.now) + LOOK))

    def _unlocked(self, one: Process) -> tuple[tuple[str, lock_core.Row], ...]:
        """The locks without the one that a process holds; a row of another one stays."""
        mine = one.holding.row.id if one.holding is not None else None
        return tuple((team, row) for team, row in self.locks if row.id != mine)

    # ---- the budget and the purchase ---------------------------------------------------------

    def _count(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        listed = [
            told(place, job.cost)
            for place, job in enumerate(self.jobs)
            if job.team == one.team and self.now - job.created >= self.lag
        ]
        total = tally(listed, [])
        try:
            allowed_seconds([Remaining("mine", "max_seconds_per_run", ALLOWED, total.used, total.reserved)], CAP)
        except BudgetExhausted:
            rows = tuple(row for row in self.rows if row.id != one.ticket(number))
            refused = replace(one, phase="refused", holding=None)
            yield "is refused", self._with(number, refused, rows=rows, locks=self._unlocked(one))
            return
        yield "has room", self._with(number, replace(one, phase="post"))
        for length in self.stalls:
            rest = tuple(other for other in self.stalls if other != length)
            slow = replace(one, phase="post", due=int(self.now) + length)
            yield (
                f"has room, and stands still for {length} s",
                self._with(number, slow, stalls=rest, stood=(*self.stood, length)),
            )

    def _post(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        if one.holding is not None and not one.holding.holds(self.now):
            lost = replace(one, phase="lost", holding=None)
            rows = tuple(row for row in self.rows if row.id != one.ticket(number))
            yield "has lost its lock and sends nothing", self._with(number, lost, rows=rows, locks=self._unlocked(one))
            return
        jobs = (*self.jobs, Bought(one.team, int(self.now)))
        sent = replace(one, phase="listed", began=int(self.now), due=int(self.now) + self.lag)
        yield "buys its job", self._with(number, sent, jobs=jobs)

    def _listed(self, number: int, one: Process) -> Iterator[tuple[str, World]]:
        phase = "new" if one.wants else "bought"
        done = replace(one, phase=phase, holding=None, wants=max(0, one.wants - 1))
        yield "sees its job listed", self._with(number, done, locks=self._unlocked(one))


def _copied(claim: Claim | None) -> Claim:
    assert claim is not None
    return replace(claim, _sent=dict(claim._sent))


STALLS = (40, 130)  # shorter and longer than a lock is relied on
FAIR = (("a", Share(1.0)), ("b", Share(1.0)))
UNFAIR = (("a", Share(3.0)), ("b", Share(1.0)))
TWICE = (("a", Share(2.0)), ("b", Share(1.0)))


def world(teams: str, shares: Sequence[tuple[str, Share]] = FAIR, **given: Any) -> World:
    """A world with a process for each letter; a letter with a number wants as many jobs, one after the other."""
    budgets = frozenset(given.pop("budgets", "a"))
    wanted = [(word[0], int(word[1:] or 1)) for word in teams.split()]
    asked = {team: sum(number for other, number in wanted if other == team) for team, _ in wanted}
    processes = tuple(Process(team, wants=number - 1) for team, number in wanted)
    return World(tuple(shares), processes, budgets, asked=tuple(asked.items()), **given)


# How many states each world has; a change that makes the explorer see less is seen here.
WORLDS: dict[str, tuple[World, int]] = {
    "two of one budget, one of another team": (world("a a b"), 19_508),
    "one is killed, and the list lags": (world("a a b", crashes=1, lag=15), 106_391),
    "one budget, one is killed and one stands still": (world("a a", crashes=1, stalls=STALLS, lag=15), 11_170),
    "two budgets, two are killed": (world("a b", budgets="ab", crashes=2, lag=15), 3_972),
    "a team that never rests beside a small one": (world("a4 b2", TWICE, budgets=""), 34_394),
    "and one is killed": (world("a3 b", UNFAIR, budgets="", crashes=1), 11_325),
}
LEAST_STATES = 186_760


@pytest.mark.uncounted
def test_every_order_of_submissions_that_share_a_rate_and_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    states, steps, longest = 0, 0, dict[tuple[str, bool], float]()
    for name, (first, least) in WORLDS.items():
        explored = replace(first, waits=Waits())
        found = explore_from(explored)
        assert found.states >= least, f"{name}: the explorer sees less than it did"
        states, steps = states + found.states, steps + found.steps
        for (what, team, killed), seconds in explored.waits.longest.items():
            longest[what, killed] = max(longest.get((what, killed), 0), seconds)
            # A process that is killed delays the others by its turn and the patience for it.
            calm = explored.waits.longest.get((what, team, False), 0)
            assert what == "lock" or seconds <= calm + PERIOD / COUNT + PATIENCE, (name, what, team)
    with capsys.disabled():
        print(
            f"\nadmission explorer: {states:,} states, {steps:,} steps in {len(WORLDS)} worlds. Held in each:\n"
            "- what the jobs of a budget may cost never passes it;\n"
            "- no more turns than the rate has;\n"
            f"- each submission gets its turn, after {longest['turn', False]:g} s at most, or after "
            f"{longest['turn', True]:g} s if a process was killed;\n"
            f"- a killed process's lock of a budget is free after {longest['lock', True]:g} s, and holds up no other "
            "team;\n"
            "- each ends with its job, or is refused because others spent the budget."
        )
    assert states >= LEAST_STATES


def without_what_runs(jobs: Any, reservations: Any) -> Any:
    return budget_core.tally([job for job in jobs if job.usage_final], reservations)


def by_size(rows: Any, shares: Any, now: float, period: float, *, until: str | None = None) -> Any:
    """The larger team first, always."""
    return sorted(in_order(rows, shares, now, period), key=lambda one: -shares[one[0].team].weight)


HERE = "tests.unit.admission.test_guard"
CORES = "prefect_qruntime.admission"


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("name", "wrong", "first", "words"),
    [
        pytest.param("", None, world("a a", lag=15, guarded=False), "team a may spend", id="no lock"),
        pytest.param(f"{CORES}.lock_core.SILENCE", 10.0, world("a a", stalls=STALLS), "team a may spend", id="silence"),
        pytest.param(f"{CORES}.lock_core.LEASE", 1e9, world("a a", stalls=STALLS), "team a may spend", id="lease"),
        pytest.param(f"{HERE}.tally", without_what_runs, world("a a"), "team a may spend", id="reserved"),
        pytest.param(f"{CORES}.share_core.PATIENCE", 1e9, world("a b", crashes=1), "waits for its turn", id="patience"),
        pytest.param(f"{CORES}.share_core.in_order", by_size, WORLDS["a team that never rests beside a small one"][0],
                     "waits for its turn", id="by size"),
    ],
)  # fmt: skip
def test_the_exploration_finds_each_rule_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, first: World, words: str
) -> None:
    if name:
        monkeypatch.setattr(name, wrong)
    with pytest.raises(Violation, match=words):
        explore_from(replace(first, waits=Waits()), most=300_000)
