"""Reading usage: lists that move, many jobs of one moment, bounded memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from prefect_qruntime.client.parsing import parse_job
from prefect_qruntime.errors import NotFound, PermissionDenied, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus, Session, Usage
from prefect_qruntime.operations.job_listing import parse_since
from prefect_qruntime.operations.usage import InstanceUsage, compile_report
from prefect_qruntime.operations.usage_core import Owner
from prefect_qruntime.operations.usage_tables import UsageReport, to_csv
from prefect_qruntime.redact import register_secret

START = datetime(2026, 5, 1, tzinfo=UTC)


def job(number: int, *, at: float = 0.0, **given: Any) -> Job:
    facts: dict[str, Any] = {
        "id": f"job-{number:06}",
        "status": JobStatus.COMPLETED,
        "created_at": START + timedelta(seconds=at),
        "usage_seconds": 0.1,
        "usage_final": True,
        "tags": (f"qr-key:{number}", f"qr-flow:{UUID(int=number % 7)}"),
        "backend": "big",
    }
    return Job(**{**facts, **given})


class Service:
    """A service with jobs; more may appear before each page, as on a busy instance."""

    def __init__(self, jobs: list[Job], *, appear: int = 0, inclusive: bool = True) -> None:
        self.jobs_there, self.appear, self.inclusive, self.pages = jobs, appear, inclusive, 0
        self.sessions: dict[str, Session] = {}
        self.listed: list[dict[str, Any]] = []
        self.legacy = False
        self.refuses_usage: Exception | None = None

    async def usage(self) -> Usage:
        if self.refuses_usage is not None:
            raise self.refuses_usage
        return Usage(consumed_seconds=1.0)

    async def workloads(self, *, mode: str, created_after: datetime) -> list[dict[str, Any]]:
        if self.legacy:
            raise NotFound("no such page")
        return [item for item in self.listed if item["mode"] == mode]

    async def session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            raise NotFound("no such session")
        return self.sessions[session_id]

    async def jobs(
        self,
        *,
        created_after: datetime,
        tags: Sequence[str] = (),
        created_before: datetime | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        self.pages += 1
        newest = max((one.created_at or START for one in self.jobs_there), default=START)
        for _ in range(self.appear):
            number = len(self.jobs_there)
            self.jobs_there.append(job(number, created_at=newest + timedelta(seconds=number)))
        found = [
            one
            for one in self.jobs_there
            if one.created_at is None
            or (
                one.created_at >= created_after
                and (
                    created_before is None
                    or one.created_at < created_before
                    or (self.inclusive and one.created_at == created_before)
                )
            )
        ]
        found.sort(key=lambda one: one.created_at or START, reverse=True)
        return found[:limit]


def read(service: Service, until: datetime | None = None) -> InstanceUsage:
    book = InstanceUsage("mine")
    asyncio.run(book.read(service, "mine", START, until))  # type: ignore[arg-type]
    return book


async def owners(wanted: set[str]) -> Mapping[str, Owner]:
    return {name: Owner(name, name, "=flow()", "=flow()/+night") for name in wanted}


def report(book: InstanceUsage, *by: str) -> UsageReport:
    return asyncio.run(compile_report([book], owners, by or ("deployment",), START, None))


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 1000])
def test_every_job_is_read_once(count: int, inclusive: bool) -> None:
    book = read(Service([job(n, at=n) for n in range(count)], inclusive=inclusive))
    assert len(book.book.jobs) == count
    assert report(book).total.qpu_seconds == pytest.approx(count / 10)


@pytest.mark.parametrize("until", ["9999-12-31", "9999-12-31T23:59:59.999999", "9999-12-30T00:00:00-14:00"])
def test_the_last_days_of_the_calendar_are_no_error(until: str) -> None:
    assert len(read(Service([job(0, at=0)]), parse_since(until)).book.jobs) == 1


@pytest.mark.parametrize("inclusive", [True, False])
def test_more_jobs_of_one_moment_than_fit_on_a_page(inclusive: bool) -> None:
    jobs = [job(n, at=5) for n in range(950)] + [job(1000 + n, at=n) for n in range(300)]
    assert len(read(Service(jobs, inclusive=inclusive)).book.jobs) == 1250


def test_jobs_that_appear_while_the_list_is_read_move_nothing_out_of_it() -> None:
    service = Service([job(n, at=n) for n in range(1000)], appear=30)
    book = read(service)
    assert {f"job-{n:06}" for n in range(1000)} <= book.book.jobs.keys()


def test_jobs_without_a_moment_end_the_reading_with_an_error_instead_of_repeating_it() -> None:
    with pytest.raises(QuantumRuntimeError, match="cannot be continued"):
        read(Service([job(n, created_at=None) for n in range(300)]))


@pytest.mark.uncounted
def test_twenty_thousand_jobs_fit_into_a_little_memory() -> None:
    service = Service([job(n, at=n) for n in range(20_000)])
    tracemalloc.start()
    book = read(service)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(book.book.jobs) == 20_000
    assert kept / 20_000 < 1500, "bytes a job"
    assert peak - kept < 20e6, "what a page needs on top"
    assert service.pages < 120


def test_a_session_that_no_list_shows_is_asked_for() -> None:
    jobs = [
        job(1, session_id="old"),
        job(2, session_id="gone"),
        job(3, session_id="lags", at=10),
        job(4, session_id="group"),
    ]
    service = Service(jobs)
    service.sessions = {
        "old": Session(id="old", started_at=START - timedelta(hours=1), elapsed_time=99.0),
        "lags": Session(id="lags", started_at=START + timedelta(seconds=9), elapsed_time=7.0),
        "group": Session(id="group", mode="batch", started_at=START, elapsed_time=50.0),
    }
    told = report(read(service), "session")
    # The old one belongs to the time before, and with it its jobs; how long another is open is the most it can cost.
    assert {row.keys["session"]: (row.qpu_seconds, row.not_final) for row in told.rows} == {
        "lags": (7.0, 1),
        "gone": (0.1, 0),
        "group": (0.1, 0),
    }


def test_without_a_list_of_workloads_jobs_are_counted_one_by_one() -> None:
    service = Service([job(1, session_id="s")])
    service.legacy = True
    told = report(read(service))
    assert told.total.qpu_seconds == 0.1
    assert any("does not list the usage of sessions" in note for note in told.notes)


@pytest.mark.parametrize(("kind", "said"), [(PermissionDenied, "has no right"), (NotFound, "does not report")])
def test_without_the_instances_total_jobs_and_sessions_are_counted(kind: type[QuantumRuntimeError], said: str) -> None:
    service = Service([job(1, session_id="s")])
    service.refuses_usage = kind("no")
    told = report(read(service))
    assert (told.total.qpu_seconds, told.problems) == (0.1, [])
    (note,) = told.notes
    assert note.startswith("mine: ")
    assert said in note


def test_a_session_of_workloads_is_charged_by_the_clock_and_noted_to_its_opener() -> None:
    service = Service([])
    usage = {"qpu_charge_time_seconds": 12.5, "status": "complete", "resource_units": 3}
    service.listed = [{"id": "s", "mode": "session", "created": START.isoformat(), "usage": usage}]
    book = read(service)
    assert book.has_sessions_without_jobs
    book.note_openers({"s": "run-1", "t": None})
    told = report(book)
    assert [(row.keys["deployment"], row.qpu_seconds, row.resource_units) for row in told.rows] == [
        ("=flow()/+night", 12.5, 3.0)
    ]
    assert [(line.what, line.unit, line.difference) for line in told.reconciled] == [
        ("dedicated sessions", "QPU seconds", 12.5),
        ("dedicated sessions", "resource units", 3.0),
    ]
    assert "without running a job" in told.reconciled[0].meaning


def test_an_idle_session_that_no_flow_run_opened_is_counted_with_what_has_no_owner() -> None:
    usage = {"seconds": 12.5, "status": "complete"}
    service = Service([job(n, tags=()) for n in range(2)])
    service.listed = [
        {"id": f"s-{number}", "mode": "session", "created": START.isoformat(), "usage": usage} for number in range(3)
    ]
    told = report(read(service))
    assert told.jobs_without_owner == len(told.without_owner) == 5
    assert told.qpu_seconds_without_owner == pytest.approx(37.7)


def test_what_a_job_on_a_mock_backend_shows_as_its_usage_is_not_charged() -> None:
    told = report(read(Service([job(1), job(2, backend="mock_torino", usage_seconds=7.0, usage_final=False)])))
    assert (told.total.jobs, told.total.qpu_seconds, told.total.not_final) == (2, 0.1, 0)


def test_a_secret_in_a_text_of_the_service_is_in_no_report() -> None:
    register_secret("a-key-that-nobody-may-see")
    secret = "a-key-that-nobody-may-see"
    body = {"id": "job-1", "status": "Completed", "tags": [secret, "Bearer abcdef123456"], "user_id": secret}
    told = report(read(Service([parse_job({**body, "created": START.isoformat()})])), "tag", "user")
    for shown in (told.model_dump_json(), to_csv(told)):
        assert "nobody" not in shown
        assert "abcdef" not in shown
    assert told.total.jobs == 1
