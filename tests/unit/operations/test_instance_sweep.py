"""Whatever one step of a sweep meets, the other sessions are closed, and what was not done is a problem."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Paused, Pending, Running

from prefect_qruntime import errors
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus, Session
from prefect_qruntime.observability.artifacts import Record
from prefect_qruntime.operations import instance_sweep as module
from prefect_qruntime.operations.instance_sweep import Found, InstanceSweeper
from prefect_qruntime.operations.sweep import SweepReport
from prefect_qruntime.tasks.session_notes import FIRST_JOBS, SessionNote

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, QuantumRuntimeError)]
RUN = "0d1f2d3c-0000-4000-8000-000000000001"


def moment() -> datetime:
    return datetime.now(UTC)  # not once for all tests: the last may run half an hour after the import


def session(session_id: str, state: str = "open") -> Session:
    return Session(id=session_id, mode="dedicated", backend="aer", state=state, max_ttl=600, started_at=moment())


class Service:
    """Six open sessions; one step fails."""

    connection = Connection(api_key="unit-test-key", crn=CRN)
    skew: float | None = None

    def __init__(self, step: str = "", about: str = "", error: QuantumRuntimeError | None = None) -> None:
        self.open = {f"session-{name}" for name in ("a", "b", "c", "note", "tagged", "unnoted")}
        self._fails, self._error = (step, about), error
        self.after_cancel = JobStatus.CANCELLED

    def known_clock_skew(self) -> float | None:
        return self.skew

    def _step(self, step: str, about: str) -> None:
        if self._error is not None and (step, about) == self._fails:
            raise self._error

    async def session(self, session_id: str) -> Session:
        self._step("session", session_id)
        return session(session_id, "open" if session_id in self.open else "closed")

    async def close_session(self, session_id: str, *, drain: bool) -> Session:
        self._step("close_session", session_id)
        self.open.discard(session_id)
        return session(session_id, "closed")

    async def jobs(self, *, pending: bool = False, session_id: str = "", **_: Any) -> list[Job]:
        self._step("jobs", session_id or ("pending" if pending else "recent"))
        found = [
            Job(id="job-1", status=JobStatus.QUEUED, session_id="session-tagged", tags=(f"qr-flow:{RUN}",)),
            Job(id="job-2", status=JobStatus.QUEUED, session_id="session-a", tags=(f"qr-flow:{RUN}",)),
        ]
        return [job for job in found if not session_id or job.session_id == session_id]

    async def job(self, job_id: str) -> Job:
        self._step("job", job_id)
        return Job(id=job_id, status=JobStatus.QUEUED, tags=(f"qr-flow:{RUN}",))

    async def cancel(self, job_id: str) -> Job:
        self._step("cancel", job_id)
        return Job(id=job_id, status=self.after_cancel, raw_status=self.after_cancel.value)

    async def workloads(self, **_: Any) -> list[dict[str, Any]]:
        self._step("workloads", "")
        return [{"id": "session-unnoted"}]


class Owners(module.Owners):
    """All flow runs are over."""

    def __init__(self) -> None:
        async def gone(_: Any) -> str | None:
            return None

        super().__init__(set(), gone)

    async def over(self, flow_run_id: str | None) -> str | None:
        return "Completed" if flow_run_id else None


def record(name: str, **meta: str) -> Record:
    facts = {"crn": CRN, "base_url": Service.connection.base_url, "block": "b", "flow_run": RUN, "state": "open"}
    return Record(uuid4(), f"qruntime-session-{name}", {**facts, **meta}, UUID(RUN), moment())


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The sessions whose records were marked as closed."""
    found = set[str]()

    async def update_artifact(_: UUID, change: Any) -> None:
        found.add(change.metadata_.get("session", "unnoted"))

    async def api() -> Any:
        return SimpleNamespace(update_artifact=update_artifact)

    async def none(*_: Any, **__: Any) -> set[str]:
        return set()

    monkeypatch.setattr(module, "api", api)
    monkeypatch.setattr("prefect_qruntime.observability.artifacts.api", api)
    monkeypatch.setattr(module, "job_owners", none)
    monkeypatch.setattr(module.notifications, "session_event", lambda *_, **__: None)
    monkeypatch.setattr(SessionNote, "is_gone", True)
    return found


def swept(service: Service, *, dry_run: bool = False, records: list[Record] | None = None) -> SweepReport:
    found, owners = Found(), Owners()
    unnoted = {"mode": "dedicated", "backend": "aer", "max_ttl": "600"}
    noted = [record(name, session=f"session-{name}") for name in "abc"] if records is None else records
    of_process = record("note", session="session-note", pid="1", host="h", flow_run="")
    late = Record(
        uuid4(), "qruntime-job-late", {"id": "job-late", "block": "b", "session": "session-c"}, UUID(RUN), moment()
    )
    same: list[InstanceSweeper] = []
    for name in ("b", "b2"):  # two blocks of one instance
        client: Any = service
        known: Any = owners
        every = [*noted, record("unnoted", **unnoted)] if records is None else noted
        notes = [SessionNote(of_process)] if records is None else []
        same.append(InstanceSweeper(name, client, known, every, notes, {"job-late": late}, dry_run, found, same))
    network_loop().run(same[0].sweep(True))
    return SweepReport(dry_run=dry_run, blocks=["b"], sessions=found.sessions, jobs=found.jobs, problems=found.problems)


ABOUT = {
    "session": ["session-a", "session-b", "session-note", "session-tagged", "session-unnoted"],
    "close_session": ["session-a", "session-b", "session-note", "session-tagged", "session-unnoted"],
    "jobs": ["recent", "pending"],
    "job": ["job-late"],
    "cancel": ["job-1"],
    "workloads": [""],
}
HARMLESS = {("job", "NotFound"), ("job", "InvalidInput"), ("workloads", "NotFound")}
"""Answers that are no fault: what is gone, and what is asked again before it is believed."""


def test_all_is_closed(marked: set[str]) -> None:
    service = Service()
    report = swept(service)
    assert service.open == set()
    assert report.is_clean
    assert len({entry.id for entry in report.sessions}) == len(report.sessions) == 6
    assert marked == {"session-a", "session-b", "session-c", "session-note", "unnoted"}


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_counts_as_cancelled_when_it_is_over(marked: set[str], status: JobStatus) -> None:
    service = Service()
    service.after_cancel = status
    report = swept(service)
    assert report.is_clean is status.is_terminal
    (action,) = (entry.action for entry in report.jobs if entry.id == "job-1")
    assert (action == "cancelled") is (status is JobStatus.CANCELLED)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("step", "about"), [(step, one) for step, some in ABOUT.items() for one in some])
def test_one_failing_step_stops_no_other(marked: set[str], step: str, about: str, kind: Any) -> None:
    service = Service(step, about, kind("the service says no"))
    report = swept(service)
    hit = about if "session" in about else "session-unnoted" if step == "workloads" else ""
    assert service.open <= {hit}
    if hit in service.open and (step, kind.__name__) not in HARMLESS:
        assert hit not in marked
        assert hit.removeprefix("session-") not in marked
    if (step, kind.__name__) in HARMLESS or (kind is NotFound and step == "session" and hit not in service.open):
        assert report.is_clean
        return
    assert not report.is_clean
    told = [*report.problems, *(f"{one.id} {one.action}" for one in (*report.sessions, *report.jobs))]
    assert any("the service says no" in one and (not hit or hit in one or "without an id" in one) for one in told)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_without_any_list_of_jobs_no_session_is_closed_that_may_be_in_use(marked: set[str], kind: Any) -> None:
    class Blind(Service):
        async def jobs(self, **_: Any) -> list[Job]:
            raise kind("the service says no")

    service = Blind()
    report = swept(service)
    assert not report.is_clean
    assert len(service.open) == 6 - len(report.sessions)
    assert {"session-a", "session-b", "session-c"} <= service.open


def test_a_service_that_does_not_answer_is_given_up() -> None:
    class Down(Service):
        asked = 0

        async def jobs(self, **_: Any) -> list[Job]:
            self.asked += 1
            raise errors.ServiceUnavailable("down")

    service = Down()
    assert len(swept(service).problems) == 1
    assert service.asked == 2


def test_one_answer_that_there_is_no_such_session_is_not_believed(marked: set[str]) -> None:
    """A service that restarts gives it for a moment; what closing the session says counts."""

    class Restarting(Service):
        async def session(self, session_id: str) -> Session:
            raise NotFound("no such session")

    service = Restarting()
    report = swept(service, records=[record("a", session="session-a")])
    assert "session-a" not in service.open
    assert [entry.id for entry in report.sessions] == ["session-a", "session-tagged"]
    assert marked == {"session-a"}

    class Busy(Restarting):
        async def close_session(self, session_id: str, *, drain: bool) -> Session:
            raise errors.ServiceUnavailable("restarting")

    marked.clear()
    report = swept(Busy(), records=[record("a", session="session-a")])
    assert marked == set(), "the next sweep decides"
    assert not report.is_clean
    assert swept(Restarting(), records=[record("a", session="session-a")], dry_run=True).sessions == []


def test_a_session_that_cannot_be_open_any_more_is_gone_if_the_service_says_so(marked: set[str]) -> None:
    class Gone(Service):
        async def session(self, session_id: str) -> Session:
            raise NotFound("no such session")

        async def close_session(self, session_id: str, *, drain: bool) -> Session:
            assert session_id == "session-tagged"
            return session(session_id, "closed")

    old = record("a", session="session-a")
    past = Record(old.artifact_id, old.key, old.meta, old.flow_run_id, moment() - timedelta(hours=30))
    swept(Gone(), records=[past])
    assert marked == {"session-a"}


@pytest.mark.parametrize("block", ["b", "renamed", ""])
def test_a_record_is_found_by_its_instance_whatever_the_block_is_called(marked: set[str], block: str) -> None:
    service = Service()
    swept(service, records=[record("a", session="session-a", block=block)])
    assert "session-a" not in service.open
    other = record("b", session="session-b", block="b", crn=CRN.replace("11aa", "33cc"))
    swept(service, records=[other, record("c", session="session-c", block="b", crn="")])
    assert "session-b" in service.open
    assert "session-c" not in service.open, "an old record names its block only"


@pytest.mark.parametrize("minutes", [0, 9, 11, 2000])
@pytest.mark.parametrize("state", [Cancelling, Running, Pending, Paused, AwaitingRetry, Cancelled, Crashed, Completed])
def test_which_flow_runs_are_over(monkeypatch: pytest.MonkeyPatch, state: Any, minutes: int) -> None:
    """A run whose worker died while it cancelled it never leaves `Cancelling`."""
    now = state(scheduled_time=moment()) if state is AwaitingRetry else state()
    now.timestamp = datetime.now(UTC) - timedelta(minutes=minutes)

    async def api() -> Any:
        async def read_flow_run(_: UUID) -> Any:
            return SimpleNamespace(state=now)

        return SimpleNamespace(read_flow_run=read_flow_run)

    async def gone(_: Any) -> str | None:
        return None

    monkeypatch.setattr(module, "api", api)
    over = now.is_final() or (state is Cancelling and minutes > 10)
    assert asyncio.run(module.Owners(set(), gone).over(RUN)) == (now.name if over else None)


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_is_dealt_with_if_the_service_shows_that_it_is_over(marked: set[str], status: JobStatus) -> None:
    class Service2(Service):
        async def cancel(self, job_id: str) -> Job:
            return Job(id=job_id, status=status, raw_status=status.value)

    report = swept(Service2())
    assert report.is_clean is status.is_terminal
    actions = {job.action for job in report.jobs}
    assert ("cancelled" in actions) is (status is JobStatus.CANCELLED)


@pytest.mark.parametrize("blocks", [("b", "b2"), ("b2", "b")], ids=str)
def test_what_two_blocks_of_one_user_lead_to_is_reported_once(marked: set[str], blocks: tuple[str, ...]) -> None:
    service, owners = Service(), Owners()
    noted = [record("a", session="session-a", block="b")]
    found, same = {name: Found() for name in blocks}, list[InstanceSweeper]()
    for name in blocks:
        same.append(InstanceSweeper(name, service, owners, noted, [], {}, False, found[name], same))  # type: ignore[arg-type]
    for sweeper in same:
        network_loop().run(sweeper.sweep(False))
    jobs = [job for one in found.values() for job in one.jobs]
    assert sorted((job.id, job.is_dealt_with) for job in jobs) == [("job-1", True), ("job-2", True)], "with sessions"
    assert sorted(entry.id for one in found.values() for entry in one.sessions) == ["session-a", "session-tagged"]


UNNOTED = {"mode": "dedicated", "backend": "aer", "max_ttl": "600"}


@pytest.mark.parametrize("later", [0, 49, 50, 500])
def test_a_session_without_a_recorded_id_is_found_however_many_were_opened_later(marked: set[str], later: int) -> None:
    class Busy(Service):
        async def workloads(self, *, created_before: datetime | None = None, limit: int | None = None, **_: Any) -> Any:
            newer = [{"id": f"newer-{number}"} for number in range(later if created_before is None else 0)]
            return [*newer, {"id": "session-unnoted"}][:limit]

        async def session(self, session_id: str) -> Session:
            return session(session_id, "open" if session_id in self.open else "closed")

    service = Busy()
    swept(service, records=[record("unnoted", **UNNOTED)])
    assert "session-unnoted" not in service.open
    assert marked == {"unnoted"}


@pytest.mark.parametrize(
    ("age", "owner", "settled"), [(0, True, False), (11, True, True), (11, False, False), (1500, False, True)]
)
def test_a_record_without_a_session_is_settled_when_the_list_must_show_one(
    marked: set[str], age: int, owner: bool, settled: bool
) -> None:
    """The service may list a new session late, and another user's key never lists it."""

    class Late(Service):
        async def workloads(self, **_: Any) -> list[dict[str, Any]]:
            return []

    one = record("unnoted", **UNNOTED, block="b" if owner else "renamed")
    aged = Record(one.artifact_id, one.key, one.meta, one.flow_run_id, moment() - timedelta(minutes=age))
    swept(Late(), records=[aged])
    assert (marked == {"unnoted"}) is settled
    if not settled and owner:
        service = Service()
        swept(service, records=[aged])
        assert "session-unnoted" not in service.open


@pytest.mark.parametrize("first_job", [True, False])
@pytest.mark.parametrize(
    ("age", "owner", "settled"), [(0, True, False), (11, True, True), (11, False, False), (1500, False, True)]
)
def test_a_process_s_note_without_a_session_is_settled_likewise(
    marked: set[str], age: int, owner: bool, settled: bool, first_job: bool
) -> None:
    class Late(Service):
        async def workloads(self, **_: Any) -> list[dict[str, Any]]:
            return []

        async def jobs(self, *, tags: tuple[str, ...] = (), **_: Any) -> list[Job]:
            assert tags in ((), ("qr-key:one",), ("qr-key:two",))
            return []

    facts = {"pid": "1", "host": "h", "flow_run": "", "block": "b" if owner else "renamed"}
    one = record("note", **UNNOTED, **facts, **({FIRST_JOBS: "qr-key:one qr-key:two"} if first_job else {}))
    note = SessionNote(Record(one.artifact_id, one.key, one.meta, None, moment() - timedelta(minutes=age)))
    same, found = list[InstanceSweeper](), Found()
    same.append(InstanceSweeper("b", Late(), Owners(), [], [note], {}, False, found, same))  # type: ignore[arg-type]
    network_loop().run(same[0].sweep(False))
    assert (marked == {"unnoted"}) is settled
    assert found.problems == []


@pytest.mark.parametrize("owner", [None, RUN])
def test_a_session_with_jobs_that_may_be_a_process_s_is_reported(marked: set[str], owner: str | None) -> None:
    """Outside a flow nothing tells whose jobs they are: those of a process that could not record its session's id."""

    class Used(Service):
        async def jobs(self, **_: Any) -> list[Job]:
            tags = (f"qr-flow:{owner}",) if owner else ()
            return [Job(id="job-1", status=JobStatus.QUEUED, session_id="session-unnoted", tags=tags)]

    service, same, found = Used(), list[InstanceSweeper](), Found()
    one = record("note", **UNNOTED, pid="1", host="h", flow_run="")
    notes = [SessionNote(Record(one.artifact_id, one.key, one.meta, None, moment()))]
    same.append(InstanceSweeper("b", service, Owners(), [], notes, {}, False, found, same))  # type: ignore[arg-type]
    network_loop().run(same[0].sweep(False))
    assert ("session-unnoted" in service.open) is (owner is None)
    assert ["session-unnoted" in problem for problem in found.problems] == ([True] if owner is None else [])
    assert ("unnoted" in marked) is (owner is not None)


class OpensByJobs(Service):
    """Two first jobs opened sessions."""

    async def jobs(self, *, tags: tuple[str, ...] = (), **_: Any) -> list[Job]:
        opened = {"qr-key:one": "session-a", "qr-key:two": "session-b"}
        return [Job(id=tag, status=JobStatus.QUEUED, session_id=opened[tag], tags=tags) for tag in tags]


def sweep_of_first_jobs(service: Service, *others: Record) -> Found:
    of_process = {**UNNOTED, "host": "h", "flow_run": ""}
    note = record("note", **of_process, pid="1", **{FIRST_JOBS: "qr-key:one qr-key:two"})
    notes, found, same = [SessionNote(one) for one in (note, *others)], Found(), list[InstanceSweeper]()
    same.append(InstanceSweeper("b", service, Owners(), [], notes, {}, False, found, same))  # type: ignore[arg-type]
    network_loop().run(same[0].sweep(False))
    return found


@pytest.mark.parametrize("lives", [True, False])
def test_a_session_that_a_first_job_with_a_shared_key_opened_is_its_user_s(
    marked: set[str], monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """Before: the sweep closed it for the dead process while the living one was using it."""
    other = record("other", session="session-a", pid="2", host="h", flow_run="")
    monkeypatch.setattr(SessionNote, "is_gone", property(lambda note: not (lives and note.record is other)))
    service = OpensByJobs()
    assert sweep_of_first_jobs(service, other).problems == []
    assert ("session-a" in service.open, "session-b" in service.open) == (lives, False)
    assert ("unnoted" in marked, "session-a" in marked) == (True, not lives)


@pytest.mark.parametrize("fails", ["session-a", "session-b"])
def test_a_process_s_note_is_settled_when_all_its_sessions_are_closed(marked: set[str], fails: str) -> None:
    """Before: it was settled with the first one, and the other was not looked for again."""
    service = OpensByJobs("close_session", fails, errors.ServiceUnavailable("down"))
    sweep_of_first_jobs(service)
    assert fails in service.open
    assert marked == set()


@pytest.mark.parametrize("gone", [True, False])
def test_a_process_that_came_by_another_address_of_the_instance_counts_as_every_other(
    marked: set[str], monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """Two processes ended before they recorded their sessions; one of them had opened one."""

    class Private(Service):
        connection = Connection(api_key="unit-test-key", crn=CRN, base_url="https://private.quantum.example.com/api/v1")

    of_process = {**UNNOTED, "host": "h", "flow_run": ""}
    there = record("there", **{**of_process, "base_url": Private.connection.base_url}, pid="2", block="b2")
    here, service = record("here", **of_process, pid="1"), Service()
    here, there = (Record(one.artifact_id, one.key, one.meta, None, one.updated) for one in (here, there))
    monkeypatch.setattr(SessionNote, "is_gone", property(lambda note: gone or note.record is here))
    notes, same, found = [SessionNote(here), SessionNote(there)], list[InstanceSweeper](), Found()
    for name, client in (("b", service), ("b2", Private())):
        same.append(InstanceSweeper(name, client, Owners(), [], notes, {}, False, found, same))  # type: ignore[arg-type]
    network_loop().run(same[0].sweep(False))
    assert ("session-unnoted" not in service.open, found.problems == []) == (gone, gone)


@pytest.mark.parametrize("ahead", [-7200, -60, 60, 7200])
@pytest.mark.parametrize(("minutes", "closed"), [(1, False), (19, False), (21, True)])
def test_a_session_outlives_its_limit_by_the_service_s_clock(
    marked: set[str], monkeypatch: pytest.MonkeyPatch, ahead: int, minutes: int, closed: bool
) -> None:
    """Whether the process that opened it lives is not known here. Our clock is ahead of the service's."""
    monkeypatch.setattr(SessionNote, "is_gone", None)

    class Skewed(Service):
        skew = -float(ahead)

        async def session(self, session_id: str) -> Session:
            begun = datetime.now(UTC) - timedelta(seconds=ahead, minutes=minutes)
            return (await super().session(session_id)).model_copy(update={"started_at": begun})

        async def jobs(self, **_: Any) -> list[Job]:
            return []

    service, same, found = Skewed(), list[InstanceSweeper](), Found()
    note = SessionNote(record("note", session="session-note", pid="1", host="h", flow_run=""))
    same.append(InstanceSweeper("b", service, Owners(), [], [note], {}, False, found, same))  # type: ignore[arg-type]
    network_loop().run(same[0].sweep(False))
    assert ("session-note" not in service.open) is closed


def sweep_each(services: dict[str, Any], found: dict[str, Found], *, block: str) -> None:
    """Sweep a session of a flow run and one of a process, both of one block, with each block in order of `found`."""
    noted = [record("b", session="session-b", block=block)]
    of_process = SessionNote(record("note", session="session-note", pid="1", host="h", flow_run="", block=block))
    owners, same = Owners(), list[InstanceSweeper]()
    for name in found:
        same.append(InstanceSweeper(name, services[name], owners, noted, [of_process], {}, False, found[name], same))  # type: ignore[arg-type]
    for sweeper in same:
        network_loop().run(sweeper.sweep(False))


@pytest.mark.parametrize("blocks", [("old", "new"), ("new", "old")], ids=str)
def test_a_session_whose_block_has_a_revoked_key_is_closed_by_another_block_of_the_instance(
    marked: set[str], blocks: tuple[str, ...]
) -> None:
    class Revoked(Service):
        def _step(self, step: str, about: str) -> None:
            raise errors.AuthenticationError("API key not found.")

    services, found = {"old": Revoked(), "new": Service()}, {name: Found() for name in blocks}
    sweep_each(services, found, block="old")
    assert services["new"].open.isdisjoint({"session-b", "session-note"})
    assert marked == {"session-b", "session-note"}
    assert (found["new"].problems, len(found["old"].problems)) == ([], 1)


@pytest.mark.parametrize("blocks", [("own", "other"), ("other", "own")], ids=str)
@pytest.mark.parametrize("kind", [NotFound, errors.PermissionDenied])
def test_that_another_user_may_not_read_a_session_is_no_problem(
    marked: set[str], blocks: tuple[str, ...], kind: type[QuantumRuntimeError]
) -> None:
    class Other(Service):
        def _step(self, step: str, about: str) -> None:
            if step in ("session", "close_session"):
                raise kind("Another user's.")

        async def jobs(self, **_: Any) -> list[Job]:
            return []

    services, found = {"own": Service(), "other": Other()}, {name: Found() for name in blocks}
    sweep_each(services, found, block="own")
    assert services["own"].open.isdisjoint({"session-b", "session-note"})
    assert marked == {"session-b", "session-note"}
    assert [one.problems for one in found.values()] == [[], []]
