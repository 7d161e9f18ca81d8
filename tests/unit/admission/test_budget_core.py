"""What a session may spend: every order of events of a small world is tried, and the rules one by one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest

from prefect_qruntime.admission import budget_core as core
from prefect_qruntime.admission.budget_core import Remaining, SessionHold, allowed_seconds, tally
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.errors import BudgetExhausted
from prefect_qruntime.models import Job, JobStatus, Session
from tests.support.explorer import Violation, explore_from

ALLOWED, CAP, WATCH, LIFE = 4, 2, 2, 8
HORIZON = {False: 7, True: 9}  # seconds, where the session is opened under the budget, or was open already


@dataclass(frozen=True)
class Made:
    """A job of the model. `began` and `ended` are what the service knows, `told` whether it tells the usage."""

    in_session: bool
    created: int
    began: int | None = None
    ended: int | None = None
    told: bool = False

    def seen(self, number: int) -> Job:
        """As the service lists it."""
        return job_told(self, number)


@cache
def job_told(job: Made, number: int) -> Job:
    """The service's answer about a job."""
    status = JobStatus.QUEUED if job.began is None else JobStatus.RUNNING
    used = None
    if job.ended is not None:
        status = JobStatus.COMPLETED
        used = float(job.ended - job.began) if job.began is not None else 0.0
    return Job(
        id=f"d{number}",
        status=status,
        session_id="s" if job.in_session else None,
        max_execution_time=CAP,
        usage_seconds=used if job.told else None,
        usage_final=job.told,
    )


@cache
def session_told(state: str, elapsed: float | None) -> Session:
    """The service's answer about the session."""
    return Session(id="s", state=state, elapsed_time=elapsed)


@dataclass(frozen=True)
class World:
    """A service with one session, a ledger that may be forgotten, and a watcher that may be late.

    Attributes:
        now: Seconds.
        foreign: Whether the session was opened without the budget, so that it lives longer.
        late: Whether the service tells nothing of a session before it was told so, however long it is over.
        opened: Whether the session exists.
        life: Seconds that it lives from its first job on.
        closed: When it was closed.
        hold: As noted in Prefect.
        jobs: All.
        looked: When the watcher looked last.
        crashes: How often the process may still die.
        told: Whether the service tells the session's time.
    """

    foreign: bool
    late: bool
    outside: int
    crashes: int
    now: float = 0
    opened: bool = False
    life: int = 0
    closed: int | None = None
    hold: SessionHold | None = None
    jobs: tuple[Made, ...] = ()
    looked: int = 0
    alive: bool = True
    told: bool = False

    def state(self) -> Hashable:
        hold = self.hold
        held = hold and (hold.allotted, hold.session_id, hold.begun_after, hold.told, hold.over, hold.final)
        jobs = tuple((job.in_session, job.began, job.ended, job.told) for job in self.jobs)
        return (self.now, self.opened, self.closed, held, jobs, self.looked, self.alive, self.told, self.crashes)

    # ---- what is true ------------------------------------------------------------------------

    def began(self) -> int | None:
        """When the session's clock began."""
        return min((job.began for job in self.jobs if job.in_session and job.began is not None), default=None)

    def charged(self) -> float:
        """What the service charges in the end for what happened so far."""
        total = sum((job.ended if job.ended is not None else self.now) - job.began
                    for job in self.jobs if not job.in_session and job.began is not None)  # fmt: skip
        begun = self.began()
        if begun is not None:
            until = self.now if self.closed is None else self.closed
            running = [job for job in self.jobs if job.in_session and job.began is not None]
            ends = [self.now if job.ended is None else job.ended for job in running]
            total += max([until, *ends]) - begun
        return total

    def check(self) -> None:
        bound = ALLOWED + CAP + (WATCH if self.foreign else 0)
        if self.charged() > bound:
            raise Violation(f"{self.charged():g} s were spent of {ALLOWED}")

    def check_end(self) -> None:
        if self.hold is not None and self.hold.final is not None and self.hold.final > self.charged():
            raise Violation("a final number is too high")

    # ---- what the ledger sees ----------------------------------------------------------------

    def session(self) -> Session:
        begun = self.began()
        tells = self.told or not self.late
        elapsed = None
        if tells and begun is not None:
            elapsed = self.charged_by_session()
        state = "closed" if self.closed is not None else "open" if begun is None else "active"
        return session_told(state, elapsed)

    def charged_by_session(self) -> float:
        return replace(self, jobs=tuple(job for job in self.jobs if job.in_session)).charged()

    def looked_at(self) -> SessionHold | None:
        if self.hold is None or self.hold.session_id is None:
            return self.hold
        live = any(job.in_session and job.ended is None for job in self.jobs)
        return core.observed(self.hold, self.session(), self.now, live_jobs=live)

    def room(self, hold: SessionHold | None) -> Remaining:
        seen = [job.seen(number) for number, job in enumerate(self.jobs)]
        total = tally(seen, [], [hold] if hold else [], held={"s"} if hold else (), now=self.now)
        return Remaining("mine", "max_seconds_per_run", ALLOWED, total.used, total.reserved)

    # ---- what can happen ---------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[str, World]]:
        yield from self._service()
        if self.alive:
            yield from self._process()
            if self.crashes:
                yield "crash", replace(self, alive=False, crashes=self.crashes - 1)
        else:
            yield "another process starts", replace(self, alive=True)

    def _service(self) -> Iterator[tuple[str, World]]:
        busy = any(job.in_session and job.began is not None and job.ended is None for job in self.jobs)
        for number, job in enumerate(self.jobs):
            if job.began is None and job.ended is None and not (job.in_session and (busy or self.closed is not None)):
                yield f"job {number} begins", self._with(number, replace(job, began=int(self.now)))
            if job.ended is not None and not job.told and not job.in_session:
                yield f"job {number}'s usage is told", self._with(number, replace(job, told=True))
        if self.late and self.closed is not None and not self.told:
            yield "the session's time is told", replace(self, told=True)
        # The watcher has to look first, once its interval is over.
        watched = self.foreign and self.hold is not None and self.closed is None
        if self.now < HORIZON[self.foreign] and not (watched and self.now - self.looked >= WATCH):
            yield from self._time()

    def _time(self) -> Iterator[tuple[str, World]]:
        """A second passes; each running job goes on or, at its limit at the latest, ends."""
        later = replace(self, now=self.now + 1)
        choices = [later]
        for number, job in enumerate(self.jobs):
            if job.began is None or job.ended is not None:
                continue
            ended = [world._with(number, replace(job, ended=int(later.now))) for world in choices]
            choices = ended if later.now - job.began >= CAP else [*choices, *ended]
        for world in choices:
            begun = world.began()
            if world.closed is None and begun is not None and world.now - begun >= world.life:
                world = world._closed()
            yield "a second", world

    def _closed(self) -> World:
        """Queued jobs are dropped; one that runs may finish."""
        jobs = tuple(
            replace(job, ended=int(self.now)) if job.in_session and job.began is None and job.ended is None else job
            for job in self.jobs
        )
        return replace(self, closed=int(self.now), jobs=jobs)

    def _with(self, number: int, job: Made) -> World:
        return replace(self, jobs=(*self.jobs[:number], job, *self.jobs[number + 1 :]))

    def _process(self) -> Iterator[tuple[str, World]]:
        hold = self.looked_at()
        seen = replace(self, hold=hold)
        room = self.room(hold)
        if not self.opened:
            yield from self._open(room)
        if self.opened and self.closed is None and sum(job.in_session for job in self.jobs) < 2:
            yield from seen._submit_in_session(room)
        if sum(not job.in_session for job in self.jobs) < self.outside:
            try:
                allowed_seconds([room], CAP)
            except BudgetExhausted:
                pass
            else:
                yield "buy outside", replace(seen, jobs=(*self.jobs, Made(False, int(self.now))))
        if self.foreign and self.hold is not None and self.closed is None and self.looked < self.now:
            watched = replace(seen, looked=int(self.now))
            yield "watch", watched._closed() if hold is not None and core.is_due(hold, self.now) else watched
        if self.opened and self.closed is None and not self.foreign:
            yield "close", seen._closed()

    def _open(self, room: Remaining) -> Iterator[tuple[str, World]]:
        if self.foreign:
            yield "somebody opens a session", replace(self, opened=True, life=LIFE)
            return
        try:
            allotted = core.allotment([room], LIFE)
        except BudgetExhausted:
            return
        hold = SessionHold("t", allotted, "crn", self.now)
        opened = replace(self, opened=True, life=allotted, hold=replace(hold, session_id="s"))
        yield "open", opened
        yield "open, process dies before the id is noted", replace(opened, hold=hold, alive=False)

    def _submit_in_session(self, room: Remaining) -> Iterator[tuple[str, World]]:
        hold = self.hold
        if hold is not None and hold.session_id is None:
            return  # nobody knows its id
        looked = self.looked
        if hold is None:
            try:
                allotted = core.allotment([room], self.life, foreign=True, closes=True)
            except BudgetExhausted:
                return
            hold, looked = SessionHold("t", allotted, "crn", self.now, session_id="s", closes=True), int(self.now)
        live = [job.seen(number) for number, job in enumerate(self.jobs) if job.in_session and job.ended is None]
        try:
            core.job_limit([room], core.job_room(hold, "mine", live, 0.0, self.now), CAP)
        except BudgetExhausted:
            return
        jobs = (*self.jobs, Made(True, int(self.now)))
        sent = replace(self, hold=hold.sent_job(self.now), jobs=jobs, looked=looked)
        yield "buy in the session", sent
        if self.crashes:
            yield "buy in the session, die before the answer", replace(sent, alive=False, crashes=self.crashes - 1)


WORLDS = [
    World(foreign=foreign, late=late, outside=outside, crashes=crashes)
    for foreign in (False, True)
    for late in (False, True)
    for outside, crashes in ((1, 0), (0, 1))
]


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("world", "least"),
    [
        pytest.param(world, least, id=str(number))
        for number, (world, least) in enumerate(
            zip(WORLDS, (45_000, 15_800, 60_000, 26_000, 26_000, 19_000, 39_000, 27_500), strict=True)
        )
    ],
)
def test_no_order_of_events_overspends_by_more_than_the_bound(
    capsys: pytest.CaptureFixture[str], world: World, least: int
) -> None:
    found = explore_from(world)
    with capsys.disabled():
        print(f"\nsessions under a budget: {found.states} states explored")
    assert found.states >= least
    assert found.ends


def without_sessions(jobs: Iterable[Job], *others: Any, **options: Any) -> Any:
    return core.tally(jobs, [])


def life_as_asked(rooms: Any, life: int, **options: Any) -> int:
    return life


def never_due(hold: SessionHold, now: float) -> bool:
    return False


def not_begun(self: SessionHold, now: float) -> SessionHold:
    return self


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("name", "wrong", "world"),
    [
        ("tests.unit.admission.test_budget_core.tally", without_sessions, 0),
        ("prefect_qruntime.admission.budget_core.allotment", life_as_asked, 1),
        ("prefect_qruntime.admission.budget_core.is_due", never_due, 5),
        ("prefect_qruntime.admission.budget_core.SessionHold.sent_job", not_begun, 7),
    ],
)
def test_the_exploration_finds_each_rule_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, world: int
) -> None:
    monkeypatch.setattr(name, wrong)
    with pytest.raises(Violation):
        explore_from(WORLDS[world])


# ---- the rules -------------------------------------------------------------------------------------

HOLD = SessionHold("t", 100.0, "crn", 1000.0, session_id="s", begun_after=1010.0)


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def look(hold: SessionHold, now: float, *, live: bool = False, ahead: float = 0.0, **fields: Any) -> SessionHold:
    session = Session(id="s", **{"state": "active", **fields})
    return core.observed(hold, session, now, live_jobs=live, ahead=ahead)


def test_while_no_job_has_begun_the_clock_stands_still() -> None:
    waiting = look(HOLD, 1050.0, state="open", live=True)
    assert core.used_up(waiting, 1060.0) == 10.0  # it may have begun right after the answer
    assert core.used_up(replace(HOLD, begun_after=None), 1060.0) == 0.0
    assert look(replace(HOLD, begun_after=None), 1050.0, state="open").begun_after is None


def test_the_service_s_clock_corrects_ours_but_never_backwards() -> None:
    begun = look(HOLD, 1060.0, activated_at=at(1045.0 + 300), ahead=300.0)
    assert core.used_up(begun, 1065.0) == 20.0
    assert look(begun, 1070.0, activated_at=at(900)).begun_after == 1045.0
    assert look(HOLD, 1060.0, activated_at=at(5000)).begun_after == 1060.0
    told = look(HOLD, 1060.0, elapsed_time=70.0)
    assert core.used_up(told, 1061.0) == 70.0
    assert look(told, 1062.0, elapsed_time=3.0).told == 70.0


def test_the_service_s_last_word_is_final() -> None:
    over = look(HOLD, 1090.0, state="closed", elapsed_time=12.5)
    assert (over.final, core.used_up(over, 5000.0), core.held_back(over, 5000.0)) == (12.5, 12.5, 0.0)
    assert look(over, 1099.0, state="active", elapsed_time=99.0) is over
    # A job that is still running may cost more.
    assert look(HOLD, 1090.0, state="closed", elapsed_time=12.5, live=True).final is None


def test_what_is_never_told_is_what_our_clock_says() -> None:
    over = look(HOLD, 1090.0, state="closed")
    over = look(over, 2000.0, state="closed")
    assert (over.final, core.used_up(over, 5000.0), core.held_back(over, 5000.0)) == (None, 80.0, 0.0)
    assert look(over, 2001.0, state="closed", elapsed_time=30.0).final == 30.0


def test_a_session_that_the_service_does_not_know_counts_until_it_must_be_over() -> None:
    assert core.observed(HOLD, None, 1050.0, live_jobs=False) is HOLD
    assert core.observed(HOLD, None, 1200.0, live_jobs=True) is HOLD
    # Another user's session of the same instance looks so too, and goes on.
    long = replace(HOLD, allotted=3600.0)
    assert core.observed(long, None, 1200.0, live_jobs=False) is long
    assert core.observed(HOLD, None, 1200.0, live_jobs=False).final == 100.0
    assert core.observed(replace(HOLD, told=120.0), None, 9000.0, live_jobs=False).final == 120.0
    unused = replace(HOLD, begun_after=None)
    assert core.observed(unused, None, 1000.0 + core.UNOPENED - 1, live_jobs=False) is unused
    assert core.observed(unused, None, 1000.0 + core.UNOPENED, live_jobs=False).final == 0.0


def test_a_session_without_an_id_is_forgotten_when_the_service_has_closed_it() -> None:
    unknown = replace(HOLD, session_id=None)
    assert core.counts(unknown, 1000.0 + core.UNOPENED - 1)
    assert not core.counts(unknown, 1000.0 + core.UNOPENED)
    assert core.counts(HOLD, 1e9)


def room(left: float, limit: str = "max_seconds_per_run") -> Remaining:
    return Remaining("mine", limit, 600.0, 600.0 - left)


def test_how_long_a_session_may_live() -> None:
    assert core.allotment([], 7200) == 7200
    assert core.allotment([room(1, "max_jobs_per_run")], None) == MOST_SECONDS
    assert core.allotment([room(400.7), room(90.5)], 7200) == 90
    assert core.allotment([room(400.7)], 60) == 60
    with pytest.raises(BudgetExhausted, match="no room for a session"):
        core.allotment([room(0.5)], 7200)


def test_a_session_of_somebody_else_must_fit_whole_or_be_one_that_may_be_closed() -> None:
    assert core.allotment([room(400)], 400, foreign=True) == 400
    assert core.allotment([room(400)], 7200, foreign=True, closes=True) == 400
    with pytest.raises(BudgetExhausted) as caught:
        core.allotment([room(400)], 7200, foreign=True)
    assert "close_sessions_at_limit" in str(caught.value)
    assert caught.value.needed == 7200


def test_a_job_has_what_the_session_has_left_beside_its_live_jobs() -> None:
    live = [Job(id="d1", status=JobStatus.QUEUED, max_execution_time=20)]
    left = core.job_room(HOLD, "mine", live, 15.0, 1040.0)
    assert left.left == 100 - 30 - 20 - 15
    assert core.job_limit([room(0)], left, None) == 35
    with pytest.raises(BudgetExhausted, match="the session allows 100 QPU seconds"):
        core.job_limit([], left, 36)
    with pytest.raises(BudgetExhausted, match="max_jobs_per_run"):
        core.job_limit([Remaining("mine", "max_jobs_per_run", 2, 2)], left, 1)


def test_only_a_session_that_the_service_does_not_end_is_closed() -> None:
    assert not core.is_due(HOLD, 1e6)
    mine = replace(HOLD, closes=True)
    assert not core.is_due(mine, 1109.0)
    assert core.is_due(mine, 1110.0)
    assert not core.is_due(replace(mine, over=1109.0), 1e6)
    assert not core.is_due(replace(mine, session_id=None), 1e6)
    assert HOLD.sent_job(5.0) is HOLD
    assert replace(HOLD, begun_after=None).sent_job(5.0).begun_after == 5.0


def test_what_a_job_of_others_is_expected_to_use() -> None:
    def expected(**facts: Any) -> float:
        return core.expected_seconds(Job(**{"id": "d1", "status": JobStatus.QUEUED, **facts}))

    assert expected() == 0.0
    assert expected(estimated_running_seconds=20) == 20.0
    assert expected(max_execution_time=100, estimated_running_seconds=20) == 100.0
    assert expected(max_execution_time=MOST_SECONDS, estimated_running_seconds=20) == 20.0
    assert expected(backend="mock_sandbox_ideal", max_execution_time=100) == 0.0, "a dry run is not charged"

    def over(**facts: Any) -> float:
        return expected(status=JobStatus.COMPLETED, **facts)

    assert over(max_execution_time=100, usage_seconds=3) == 100.0, "until the usage is final, the most it may be"
    assert over(max_execution_time=100, usage_seconds=103) == 103.0
    assert over(max_execution_time=MOST_SECONDS, estimated_running_seconds=20, usage_seconds=3) == 20.0
    assert over(usage_seconds=30) == 30.0
    assert over() == MOST_SECONDS, "nothing is known"
    assert over(backend="mock_sandbox_ideal") == 0.0
