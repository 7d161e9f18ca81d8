"""The ledger in any order of reserving, buying, ending, late usage, lost answers and crashes: nothing is overspent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from prefect_qruntime import Budget
from prefect_qruntime.admission import budget_core, ledger as module
from prefect_qruntime.admission.budget import SessionHolds
from prefect_qruntime.admission.budget_core import Reservation, SessionHold
from prefect_qruntime.admission.ledger import DeploymentJobs, Ledger, UnsettledJobs
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.errors import BudgetExhausted, NotFound, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.models import Job, JobStatus, Session, SessionRef, Usage
from prefect_qruntime.run_context import RunContext

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
RUN = RunContext("f1", "flow-run:f1", False, False, 1, 0.0)
ALLOWED = 100
TROUBLES = (ServiceUnavailable, asyncio.CancelledError)
BUDGET = Budget(max_seconds_per_run=ALLOWED, default_max_execution_time=30, max_jobs_per_run=12)


@dataclass
class Real:
    """A job as it truly is; the service tells its usage late."""

    id: str
    key: str
    limit: int
    session: str | None = None
    used: float | None = None
    told: bool = False
    listed: bool = True

    def seen(self) -> Job:
        return Job(
            id=self.id,
            status=JobStatus.QUEUED if self.used is None else JobStatus.COMPLETED,
            tags=(self.key, "qr-flow:f1"),
            max_execution_time=self.limit,
            usage_seconds=self.used if self.told else None,
            usage_final=self.told,
            session_id=self.session,
        )


@dataclass
class RealSession:
    """A dedicated session: its life is its time from the first job on."""

    id: str
    life: int
    elapsed: float = 0.0
    state: str = "open"
    told: bool = False


@dataclass
class Service:
    """What the ledger asks of a client."""

    connection: Connection = field(
        default_factory=lambda: Connection(api_key="unit-test-key", crn=CRN, base_url="http://127.0.0.1:9/api/v1")
    )
    real: list[Real] = field(default_factory=list)
    open: dict[str, RealSession] = field(default_factory=dict)
    trouble: BaseException | None = None

    async def jobs_tagged(self, tag: str) -> list[Job]:
        if self.trouble is not None:
            raise self.trouble
        return [job.seen() for job in self.real if job.listed]

    async def jobs(self, *, session_id: str | None = None, pending: bool = True, **filters: Any) -> list[Job]:
        return [one.seen() for one in self.real if one.session == session_id and one.used is None and one.listed]

    async def job(self, job_id: str) -> Job:
        for job in self.real:
            if job.id == job_id:
                return job.seen()
        raise NotFound("unknown")

    async def session(self, session_id: str) -> Session:
        one = self.open[session_id]
        return Session(id=one.id, state=one.state, max_ttl=one.life, elapsed_time=one.elapsed if one.told else None)

    def known_clock_skew(self) -> float:
        return 0.0


class Spending(RuleBasedStateMachine):
    """One flow run that buys jobs and sessions, and what becomes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.service: Any = Service()
        self.notes: dict[str, SessionHold] = {}
        self.book = Ledger()
        self.number = 0
        self.pending: list[tuple[Reservation, int, str | None]] = []
        self.moment = 0.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_USAGE_GRACE_SECONDS", "0")
        self.patch.setattr(module, "now", lambda: self.moment)
        self.patch.setattr("prefect_qruntime.admission.budget.now", lambda: self.moment)
        keep = SessionHolds.note

        async def note(holds: SessionHolds, hold: SessionHold) -> None:
            await keep(holds, hold)
            self.notes[hold.token] = hold  # as in Prefect

        self.patch.setattr(SessionHolds, "note", note)

    def teardown(self) -> None:
        self.patch.undo()

    def _reserve(self, session: SessionRef | None, wanted: int | None) -> None:
        self.number += 1
        key = f"qr-key:{self.number}"
        try:
            made, cap = asyncio.run(self.book.reserve(self.service, [BUDGET], RUN, key, wanted, session))
        except BudgetExhausted:
            return
        assert cap is not None
        assert wanted is None or cap == wanted
        self.pending.append((made, cap, session.id if session is not None else None))

    @rule(wanted=st.none() | st.integers(1, 60))
    def reserve(self, wanted: int | None) -> None:
        self._reserve(None, wanted)

    @rule(wanted=st.none() | st.integers(1, 60))
    def reserve_in_session(self, wanted: int | None) -> None:
        live = [one for one in self.service.open.values() if one.state != "closed"]
        if live:
            self._reserve(SessionRef(id=live[0].id), wanted)

    @rule(how=st.sampled_from(["answered", "lost", "lost, not listed", "refused"]))
    def send(self, how: str) -> None:
        if not self.pending:
            return
        made, cap, session = self.pending.pop(0)
        if how == "refused":
            self.book.drop(made)
            return
        job = Real(f"d{made.key[7:]}", made.key, cap, session, listed=how != "lost, not listed")
        closed = session is not None and self.service.open[session].state == "closed"
        if closed:  # the service refuses it
            self.book.drop(made)
            return
        self.service.real.append(job)
        if session is not None and self.service.open[session].state == "open":
            self.service.open[session].state = "active"
        if how == "answered":
            made.job_id = job.id

    @rule(trouble=st.sampled_from([None, *TROUBLES]))
    def try_again_in_vain(self, trouble: type[BaseException] | None) -> None:
        """A second POST of a submission whose answer was lost is refused, or the read before it fails."""
        lost = next((job for job in self.service.real if not job.listed), None)
        if lost is None:
            return
        self.service.trouble = None if trouble is None else trouble("no answer")
        with pytest.raises((BudgetExhausted, *TROUBLES)):
            asyncio.run(self.book.reserve(self.service, [BUDGET], RUN, lost.key, ALLOWED + 1))
        self.service.trouble = None
        assert any(one.key == lost.key for one in self.book.reservations), "the first one may still appear"

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        live = [one for one in self.service.real if one.used is None and one.session is None]
        if live:
            job = data.draw(st.sampled_from(live))
            job.used = float(data.draw(st.integers(0, job.limit)))

    @rule()
    def end_in_session(self) -> None:
        for job in self.service.real:
            if job.session is not None and job.used is None:
                job.used = 0.0  # the session pays
                return

    @rule()
    def tell(self) -> None:
        for job in self.service.real:
            job.told = job.told or job.used is not None
            job.listed = True
        for one in self.service.open.values():
            one.told = one.told or one.state == "closed"

    @rule(life=st.integers(1, 200))
    def open_session(self, life: int) -> None:
        self.number += 1
        token = f"t{self.number}"
        try:
            allowed = asyncio.run(self.book.reserve_session(self.service, [BUDGET], RUN, token, life))
        except BudgetExhausted:
            return
        assert allowed <= life
        made = RealSession(f"s{self.number}", allowed)
        self.service.open[made.id] = made
        asyncio.run(self.book.sessions.opened(token, made.id))
        self.notes[token] = self.book.sessions.holds[token]

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.moment += seconds
        for one in self.service.open.values():
            if one.state == "active":
                one.elapsed = min(float(one.life), one.elapsed + seconds)
                if one.elapsed >= one.life:
                    self._close(one)

    @rule()
    def close_session(self) -> None:
        for one in self.service.open.values():
            if one.state != "closed":
                self._close(one)
                return

    def _close(self, one: RealSession) -> None:
        one.state = "closed"
        for job in self.service.real:
            if job.session == one.id and job.used is None:
                job.used = 0.0

    @rule()
    def crash(self) -> None:
        """Another process goes on: with Prefect's notes and the service's list, under the budget's lock."""
        # The lock is held until the job is listed, or until no job can turn up any more.
        for job in self.service.real:
            job.listed = True
        self.pending = []
        self.book = Ledger()
        self.book.sessions.holds = dict(self.notes)

    @invariant()
    def nothing_is_overspent(self) -> None:
        spent = sum(job.limit if job.used is None else job.used for job in self.service.real if job.session is None)
        spent += sum(one.elapsed if one.state == "closed" else one.life for one in self.service.open.values())
        assert spent <= ALLOWED, f"{spent} s are or may be spent"
        assert len(self.service.real) <= 12

    @invariant()
    def what_is_final_is_what_the_service_told(self) -> None:
        for hold in self.book.sessions.holds.values():
            if hold.final is not None and hold.session_id is not None:
                assert hold.final == self.service.open[hold.session_id].elapsed


FINDS: dict[str, Any] = {"database": None, "report_multiple_bugs": False, "phases": [Phase.generate]}
"""For a machine that has to find a wrong rule."""


def try_orders(machine: type[RuleBasedStateMachine], *, examples: int, steps: int, **more: Any) -> None:
    """Run a machine in many orders."""
    checks = list(HealthCheck)
    wanted = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, **more
    )
    run_state_machine_as_test(machine, settings=wanted)


def test_the_ledger_never_overspends_in_any_order() -> None:
    try_orders(Spending, examples=150, steps=30)


# ---- several processes on one instance ---------------------------------------------------------------------------

KEPT = 10
ABOVE = Budget(min_remaining_seconds=KEPT, default_max_execution_time=30)


@dataclass
class Shared(Service):
    """An instance with a limit of `ALLOWED` seconds, which tells each job's usage late."""

    async def jobs(self, *, session_id: str | None = None, pending: bool = True, **filters: Any) -> list[Job]:
        if self.trouble is not None:
            raise self.trouble
        return [one.seen() for one in self.real if (one.used is None) is pending]

    async def usage(self) -> Usage:
        told = sum(one.used or 0.0 for one in self.real if one.told)
        return Usage(limit_seconds=ALLOWED, consumed_seconds=told)


class Sharing(RuleBasedStateMachine):
    """Processes that keep seconds of one instance in reserve, one submission after the other by the budget's lock."""

    def __init__(self) -> None:
        super().__init__()
        self.service: Any = Shared()
        self.books = [Ledger() for _ in range(3)]
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_USAGE_GRACE_SECONDS", "0")

    def teardown(self) -> None:
        self.patch.undo()

    @rule(
        process=st.integers(0, 2),
        wanted=st.none() | st.integers(1, 60),
        trouble=st.sampled_from([None, None, None, *TROUBLES]),
        answered=st.booleans(),
    )
    def submit(self, process: int, wanted: int | None, trouble: type[BaseException] | None, answered: bool) -> None:
        number = len(self.service.real)
        where = RunContext(f"f{process}", f"flow-run:f{process}", False, False, 1, 0.0)
        self.service.trouble = None if trouble is None else trouble("no answer")
        try:
            made, cap = asyncio.run(
                self.books[process].reserve(self.service, [ABOVE], where, f"qr-key:{number}", wanted)
            )
        except (BudgetExhausted, *TROUBLES):
            return
        finally:
            self.service.trouble = None
        assert cap is not None
        job = Real(f"d{number}", made.key, cap)
        self.service.real.append(job)
        if answered:
            made.job_id = job.id

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        live = [one for one in self.service.real if one.used is None]
        if live:
            job = data.draw(st.sampled_from(live))
            job.used = float(data.draw(st.integers(0, job.limit)))

    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        over = [one for one in self.service.real if one.used is not None and not one.told]
        if over:
            data.draw(st.sampled_from(over)).told = True

    @rule(process=st.integers(0, 2))
    def crash(self, process: int) -> None:
        self.books[process] = Ledger()

    @invariant()
    def the_reserve_is_kept(self) -> None:
        spent = sum(job.limit if job.used is None else job.used for job in self.service.real)
        assert spent <= ALLOWED - KEPT, f"{spent} s are or may be spent"


def test_no_order_of_processes_and_late_usage_spends_what_is_to_be_kept() -> None:
    try_orders(Sharing, examples=200, steps=25)


def test_the_machine_finds_a_ledger_that_reads_live_jobs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live_only(self: UnsettledJobs, client: Any) -> list[Job]:
        return await client.jobs(pending=True)  # type: ignore[no-any-return]

    monkeypatch.setattr(UnsettledJobs, "read", live_only)
    with pytest.raises(AssertionError, match="may be spent"):
        try_orders(Sharing, examples=5000, steps=25, **FINDS)


def test_the_machine_finds_a_ledger_that_forgets_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_core, "held_back", lambda hold, now: 0.0)
    with pytest.raises(AssertionError, match="may be spent"):
        try_orders(Spending, examples=5000, steps=30, **FINDS)


# ---- the jobs of a deployment -----------------------------------------------------------------------------------

DEPLOYMENT, OTHER = uuid4(), uuid4()
RUNS = {uuid4(): DEPLOYMENT, uuid4(): DEPLOYMENT, uuid4(): OTHER}
FOREIGN = {uuid4(): None}  # of another installation


def now() -> datetime:
    return datetime.now(UTC)


def job_of(number: int, run: UUID, days: float, seconds: float | None) -> Job:
    """A job that a flow run submitted some days ago; without seconds its usage is not final."""
    return Job(
        id=f"d{number}",
        status=JobStatus.COMPLETED,
        created_at=datetime.now(UTC) - timedelta(days=days),  # the machine may run long after the import
        tags=(f"qr-flow:{run}",),
        usage_seconds=seconds,
        usage_final=seconds is not None,
    )


class Listing:
    """The service's list of jobs, and Prefect's of flow runs and of summaries; either may fail."""

    def __init__(self) -> None:
        self.all: dict[str, Job] = {}
        self.deleted: set[UUID] = set()
        self.trouble: BaseException | None = None
        self.prefect_trouble: BaseException | None = None

    async def jobs(
        self,
        *,
        tags: Sequence[str] = (),
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        pending: bool | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        await asyncio.sleep(0)
        if self.trouble is not None and pending is not True:  # the first of two lists may be read before it fails
            raise self.trouble
        newest = sorted(self.all.values(), key=lambda job: job.created_at or now(), reverse=True)
        return [
            job
            for job in newest
            if (created_after is None or (job.created_at or now()) >= created_after)
            and (created_before is None or (job.created_at or now()) <= created_before)
            and (pending is None or job.is_terminal is not pending)
        ][:limit]

    async def read_flow_runs(self, *, flow_run_filter: Any, limit: int) -> list[Any]:
        await asyncio.sleep(0)
        if self.prefect_trouble is not None:
            raise self.prefect_trouble
        there = RUNS.keys() - self.deleted
        return [SimpleNamespace(id=run, deployment_id=RUNS[run]) for run in flow_run_filter.id.any_ if run in there]

    async def read_artifacts(self, *, artifact_filter: Any, limit: int, offset: int, **_: Any) -> list[Any]:
        await asyncio.sleep(0)
        if self.prefect_trouble is not None:
            raise self.prefect_trouble
        wanted = [run for run in artifact_filter.flow_run_id.any_ if run in RUNS]
        assert set(wanted) <= self.deleted, "the flow runs that Prefect knows need no summary"
        found = [{"id": str(run), "deployment": str(RUNS[run]), "kind": "summary"} for run in wanted]
        odd: list[dict[str, str]] = [{"id": str(run)} for run in wanted]  # as earlier versions wrote it
        return [
            SimpleNamespace(id=None, key="", metadata_=meta, flow_run_id=None, updated=None, data="")
            for meta in [*odd, *found][offset : offset + limit]
        ]


class Remembering(RuleBasedStateMachine):
    """What a process knows of a deployment's jobs, whatever was read before, and whatever failed."""

    def __init__(self) -> None:
        super().__init__()
        self.service: Any = Listing()
        self.known, self.unsettled = DeploymentJobs(), UnsettledJobs()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("prefect_qruntime.prefect_api.api", self._api)
        self.patch.setattr("prefect_qruntime.observability.artifacts.api", self._api)

    async def _api(self) -> Any:
        return self.service

    def teardown(self) -> None:
        self.patch.undo()

    @rule(run=st.sampled_from(list(RUNS)))
    def delete(self, run: UUID) -> None:
        """Delete a flow run in Prefect: what its jobs spent stays spent."""
        self.service.deleted.add(run)

    @rule(
        run=st.sampled_from([*RUNS, *FOREIGN]),
        days=st.floats(0, 40),
        seconds=st.none() | st.integers(0, 50),
    )
    def submit(self, run: UUID, days: float, seconds: float | None) -> None:
        if self.known._read is not None or self.unsettled._read is not None:
            days = 0.0  # what was read is over; new jobs are new
        number = len(self.service.all)
        self.service.all[f"d{number}"] = job_of(number, run, days, seconds)

    @rule(run=st.sampled_from(list(RUNS)), days=st.floats(0, 5))
    def begin(self, run: UUID, days: float) -> None:
        self.submit(run, days, None)
        name = f"d{len(self.service.all) - 1}"
        self.service.all[name] = self.service.all[name].model_copy(update={"status": JobStatus.RUNNING})

    @rule()
    def all_end(self) -> None:
        for name, job in self.service.all.items():
            self.service.all[name] = job.model_copy(update={"status": JobStatus.COMPLETED})

    @initialize(most=st.sampled_from([1, 3, 1000]))
    def reads_at_most(self, most: int) -> None:
        # Of more ended jobs the older ones are never read, so it stays as it is.
        self.most = most
        self.patch.setattr(module, "_MOST_ENDED", most)

    @rule(trouble=st.sampled_from([None, *TROUBLES]))
    def read_unsettled(self, trouble: type[BaseException] | None) -> None:
        self.service.trouble = None if trouble is None else trouble("no answer")
        known, recent = set(self.unsettled._jobs), now() - timedelta(days=7)
        wanted = {
            job.id: job
            for job in self.service.all.values()
            if not job.usage_final and (not job.is_terminal or job.created_at >= recent)
        }
        try:
            found = {job.id: job for job in asyncio.run(self.unsettled.read(self.service))}
        except TROUBLES:
            assert trouble is not None
            return
        if self.most == 1000:
            assert found == wanted
        else:  # too many jobs ended to read them all: none that was known is forgotten
            assert {name for name in known if name in wanted} | {
                job.id for job in wanted.values() if not job.is_terminal
            } <= set(found)

    @rule()
    def usage_is_told(self) -> None:
        for name, job in self.service.all.items():
            if job.is_terminal and not job.usage_final:
                self.service.all[name] = job.model_copy(update={"usage_seconds": 7.0, "usage_final": True})

    @rule(
        days=st.sampled_from([1, 7, 28, 60]),
        trouble=st.sampled_from([None, *TROUBLES]),
        of_prefect=st.booleans(),
    )
    def read(self, days: int, trouble: type[BaseException] | None, of_prefect: bool) -> None:
        error = None if trouble is None else trouble("no answer")
        self.service.prefect_trouble, self.service.trouble = (error, None) if of_prefect else (None, error)
        since = now() - timedelta(days=days)
        wanted = [
            job
            for job in self.service.all.values()
            if (job.created_at >= since or not job.is_terminal) and RUNS.get(UUID(job.flow_run_id)) == DEPLOYMENT
        ]
        try:
            found = asyncio.run(self.known.read(self.service, str(DEPLOYMENT), since))
        except (QuantumRuntimeError, asyncio.CancelledError):
            assert error is not None
        else:
            assert sorted(found, key=lambda job: job.id) == sorted(wanted, key=lambda job: job.id)


def test_a_deployment_s_jobs_are_all_counted_whatever_failed_before() -> None:
    try_orders(Remembering, examples=300, steps=15)


@pytest.mark.parametrize("ahead", [-3600, -60, 0, 60, 3600, 40_000])
def test_a_clock_that_differs_from_the_service_s_hides_no_job(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """A list is read on from the newest job that it showed, by the clock that dated it."""
    service: Any = Listing()

    async def api() -> Any:
        return service

    monkeypatch.setattr("prefect_qruntime.prefect_api.api", api)
    of_service, run = datetime.now(UTC) - timedelta(seconds=ahead), next(r for r in RUNS if RUNS[r] == DEPLOYMENT)
    known, unsettled, since = DeploymentJobs(), UnsettledJobs(), datetime.now(UTC) - timedelta(days=2)
    for number in range(4):  # of other processes
        moment = of_service + timedelta(minutes=number)
        job = job_of(number, run, 0.0, 7.0).model_copy(update={"created_at": moment, "usage_final": number < 2})
        service.all[job.id] = job
        found = asyncio.run(known.read(service, str(DEPLOYMENT), since))
        assert {one.id for one in found} == set(service.all)
        open_jobs = {one.id for one in asyncio.run(unsettled.read(service))}
        assert open_jobs == {one.id for one in service.all.values() if not one.usage_final}


@pytest.mark.parametrize("ahead", [-40, 0, 40])
def test_the_period_is_that_of_prefect_s_clock(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """This machine's clock is some days ahead: the other jobs of the period count nevertheless, and no older ones."""
    service: Any = Listing()
    moment = now() - timedelta(days=ahead)

    async def api() -> Any:
        return service

    monkeypatch.setattr("prefect_qruntime.prefect_api.api", api)
    monkeypatch.setattr("prefect_qruntime.admission.budget.now", moment.timestamp)
    run = next(r for r in RUNS if RUNS[r] == DEPLOYMENT)
    service.all = {job.id: job for job in (job_of(1, run, ahead + 5, 7.0), job_of(2, run, ahead + 35, 11.0))}
    total = asyncio.run(Ledger()._deployment(service, str(DEPLOYMENT), 28.0))
    assert (total.jobs, total.used, total.reserved) == (1, 7.0, 0.0)


@pytest.mark.parametrize(("days", "counted"), [(None, 600.0), (0.9, 9.0), (1.1, 0.0)])
def test_a_session_counts_until_a_period_after_its_end_however_long_ago_it_was_opened(
    days: float | None, counted: float
) -> None:
    service: Any = Listing()
    book = Ledger()
    opened, over = now().timestamp() - 2 * 86400, None if days is None else now().timestamp() - days * 86400
    book.sessions.holds["t"] = SessionHold(
        "t", 600.0, CRN, opened, "s", None, str(DEPLOYMENT), over=over, final=None if over is None else 9.0
    )
    total = asyncio.run(book._deployment(service, str(DEPLOYMENT), 1.0))
    assert total.used + total.reserved == counted


def test_a_clock_that_is_days_ahead_hides_no_ended_job_without_a_final_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    service: Any = Listing()
    job = job_of(1, next(iter(RUNS)), 40.0, None)
    service.all = {job.id: job}
    monkeypatch.setattr("prefect_qruntime.admission.budget.now", (now() - timedelta(days=39)).timestamp)
    assert asyncio.run(UnsettledJobs().read(service)) == [job]
