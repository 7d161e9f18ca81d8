"""A simulated month: twenty deployments, three teams, sessions, crashes, late usage; the totals are the sandbox's."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.models import SessionRef
from prefect_qruntime.operations.usage import InstanceUsage, compile_report
from prefect_qruntime.operations.usage_core import Owner
from prefect_qruntime.operations.usage_tables import UsageReport
from prefect_qruntime.sandbox import Sandbox
from tests.support.scenario import BELL, QUICK

DAY = 86400.0
DAYS = 27  # the usage period has 28
TEAMS = ("team-red", "team-green", "team-blue")
SLOW = 300.0  # service seconds a real second, while jobs are created; the days between pass at once
LAG = 3 * DAY
RATE = 3.0


def run_id(deployment: int, run: int) -> str:
    return str(UUID(int=deployment * 1000 + run))


OWNERS = {
    run_id(number, run): Owner(
        run_id(number, run),
        f"run-{number}-{run}",
        f"flow-{number % 5}",
        f"flow-{number % 5}/deployment-{number}",
        (TEAMS[number % 3],),
    )
    for number in range(20)
    for run in range(3)
}


async def find(wanted: set[str]) -> dict[str, Owner]:
    """Prefect's part: one flow run that it does not know is left out."""
    return {name: owner for name, owner in OWNERS.items() if name in wanted}


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {
        "queue_time": 1.0,
        "run_time": 2.5,
        "clock_scale": SLOW,
        "token_lifetime": 1e9,
        "usage_lag": LAG,
        "physics": False,
        "resource_unit_rate": RATE,
    }


Story = tuple["Month", InstanceUsage, list[UsageReport]]


class Month:
    """What happens on the instance, day by day, by two users of it."""

    def __init__(self, sandbox: Sandbox, seed: int) -> None:
        self.sandbox, self.control, self.random = sandbox, sandbox.control, random.Random(seed)
        self.clients = [
            QuantumRuntimeClient(
                Connection(**{**sandbox.connection("cloud"), "api_key": key, "crn": crn}), patience=QUICK
            )
            for key, crn in sandbox.instances[:2]
        ]
        self.spec = {name: make_spec([BELL], backend=name, shots=1) for name in ("sandbox_ideal", "sandbox_noisy")}
        self.begin = self.control.now()
        self.control.set_times(run_time=31.25, backend="sandbox_noisy")

    def post(
        self, client: QuantumRuntimeClient, *tags: str, session: SessionRef | None = None, backend: str = ""
    ) -> str:
        name = backend or self.random.choice(list(self.spec))
        tags = (f"qr-key:{self.random.getrandbits(128):032x}", *tags)
        return str(client.run(client.post_job(self.spec[name], tags, session)).id)

    def owner(self) -> str:
        kind = self.random.random()
        if kind < 0.05:
            return ""
        known = run_id(self.random.randrange(20), self.random.randrange(3))
        return f"qr-flow:{'00000000-0000-4000-8000-0000000000ff' if kind < 0.1 else known}"

    def day(self) -> None:
        """Single jobs of many owners, some of which fail, run too long or are cancelled, and a session or a batch."""
        for status in self.random.choices(["Completed", "Failed", "Cancelled", "Ran too long"], [12, 2, 1, 1], k=8):
            client = self.random.choice(self.clients)
            if status != "Completed":
                self.control.script_job(status=status)
            job = self.post(client, *filter(None, [self.owner(), self.random.choice(["", "paper", "test"])]))
            if status == "Completed" and self.random.random() < 0.1:
                client.run(client.cancel(job))
        client, mode = self.random.choice(self.clients), self.random.choice(["dedicated", "batch"])
        session = client.run(client.post_session("sandbox_ideal", mode=mode, max_ttl=3600))
        owner = self.owner()
        jobs = [
            self.post(client, *filter(None, [owner]), session=session, backend="sandbox_ideal")
            for _ in range(self.random.randint(1, 4))
        ]
        end = self.random.choice(["drained", "dropped", "crashed"])
        if end == "drained":
            self.control.wait_job(jobs[-1])
        if end != "crashed":  # a process that crashed leaves it to the service to close it
            client.run(client.close_session(session.id, drain=end == "drained"))

    def pass_until(self, moment: float) -> None:
        self.control.advance(max(0.0, moment - self.control.now()))

    def read(self, book: InstanceUsage | None = None, until: datetime | None = None) -> InstanceUsage:
        book = book or InstanceUsage("mine")
        for client in self.clients:
            client.run(book.read(client, "mine", datetime.fromtimestamp(self.begin, UTC), until))
        return book

    def report(self, *by: str, book: InstanceUsage | None = None, **window: Any) -> UsageReport:
        since = window.get("since") or datetime.fromtimestamp(self.begin, UTC)
        book = book or self.read()
        report = QuantumRuntimeClient.run(
            compile_report([book], find, by or ("deployment",), since, window.get("until"))
        )
        assert isinstance(report, UsageReport)
        return report


@pytest.fixture(scope="module")
def month(running_sandbox: Sandbox) -> Story:
    """The month when all of it is over, a book that was kept through all of it, and reports made on the way."""
    month, kept, early = Month(running_sandbox, seed=15), InstanceUsage("mine"), []
    for day in range(DAYS):
        month.pass_until(month.begin + day * DAY)
        month.day()
        if day % 9 == 5:
            month.read(kept)
            early.append(month.report(book=month.read()))
    month.pass_until(month.begin + (DAYS + 7) * DAY)
    return month, kept, early


def ledger(month: Month, key: Any) -> dict[str, Decimal]:
    """The sandbox's own numbers, added up in the plainest way: sessions by the clock, other jobs one by one."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    sessions = {one["id"]: one for one in month.control.sessions()}
    for job in month.control.jobs():
        if (session := sessions.get(job["session_id"])) is None or session["mode"] == "batch":
            sums[key(job, job["created"])] += Decimal(str(job["usage_seconds"]))
    for session in sessions.values():
        if session["mode"] == "dedicated" and session["jobs"]:
            # All jobs of a session are of one owner here.
            first = month.control.job(session["jobs"][0])
            sums[key(first, session["created"])] += Decimal(str(session["usage_seconds"]))
    return dict(sums)


def owner_of(job: dict[str, Any]) -> str | None:
    return next((tag.removeprefix("qr-flow:") for tag in job["tags"] if tag.startswith("qr-flow:")), None)


def deployment(job: dict[str, Any], created: float) -> str:
    owner = owner_of(job)
    if owner is None:
        return "no owner"
    return OWNERS[owner].deployment or "" if owner in OWNERS else "not in this Prefect"


GROUPS = {
    "deployment": deployment,
    "user": lambda job, created: job["user"],
    "month": lambda job, created: datetime.fromtimestamp(created, UTC).strftime("%Y-%m"),
    "day": lambda job, created: datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d"),
}


def shown(report: UsageReport) -> dict[str, float]:
    return {next(iter(row.keys.values())): row.qpu_seconds for row in report.rows}


def test_the_totals_are_the_sandboxs_own(month: Story) -> None:
    world, kept, _ = month
    said = world.control.usage()
    report = world.report()
    assert report.problems == []
    assert report.is_complete
    assert report.total.qpu_seconds == said["usage_consumed_seconds"]
    assert report.total.resource_units == pytest.approx(said["usage_consumed_ru"], abs=1e-3)
    assert report.total.jobs == len(world.control.jobs()) > 230
    assert {"completed", "failed", "cancelled"} <= set(report.total.states)
    whole = next(line for line in report.reconciled if line.what == "instance" and line.unit == "QPU seconds")
    assert (whole.difference, whole.pending, whole.meaning) == (0, 0, "They agree.")
    # A book that was read on the way, pending numbers and all, tells the same as one that is read now.
    assert world.report(book=world.read(kept)) == report


@pytest.mark.parametrize("by", GROUPS)
def test_each_owner_pays_what_is_its_own(month: Story, by: str) -> None:
    world, _, _ = month
    assert shown(world.report(by)) == {name: float(value) for name, value in ledger(world, GROUPS[by]).items()}
    if by == "deployment":
        assert len(shown(world.report(by))) == 22


def test_teams_by_the_tags_of_their_deployments(month: Story) -> None:
    world, _, _ = month
    teams = ledger(world, lambda job, _: OWNERS[owner].tags[0] if (owner := owner_of(job)) in OWNERS else "none")
    rows = shown(world.report("tag"))
    assert {name: rows[name] for name in TEAMS} == {name: float(teams[name]) for name in TEAMS}


def test_numbers_on_the_way_were_marked_as_pending(month: Story) -> None:
    _, _, early = month
    assert len(early) == 3
    for report in early:
        assert report.total.not_final > 0
        assert not report.is_complete
        whole = next(line for line in report.reconciled if line.what == "instance" and line.unit == "QPU seconds")
        # What the service has not added up yet is pending, nothing else.
        assert whole.difference < 0
        assert -whole.difference <= whole.pending + 1e-6
        assert whole.meaning == "The service has not added up everything yet."
    assert [report.total.jobs for report in early] == sorted(report.total.jobs for report in early)


def test_jobs_without_an_owner_are_listed(month: Story) -> None:
    world, _, _ = month
    report = world.report()
    without = {job["id"] for job in world.control.jobs() if owner_of(job) is None}
    assert {job.id for job in report.without_owner} == without
    assert report.jobs_without_owner == len(without) > 0
    assert report.qpu_seconds_without_owner == shown(report)["no owner"]


def test_weeks_add_up_to_the_month(month: Story) -> None:
    world, _, _ = month
    start = datetime.fromtimestamp(world.begin, UTC)
    edges = [start + timedelta(days=days) for days in (0, 7, 14, 21, 28)]
    weeks = []
    for since, until in pairwise(edges):
        book = InstanceUsage("mine")
        for client in world.clients:
            client.run(book.read(client, "mine", since, until))
        weeks.append(world.report(book=book, since=since, until=until).total)
    whole = world.report().total
    assert sum(week.jobs for week in weeks) == whole.jobs
    assert sum(Decimal(str(week.qpu_seconds)) for week in weeks) == Decimal(str(whole.qpu_seconds))


def test_idle_time_of_sessions_is_shown(month: Story) -> None:
    world, _, _ = month
    lines = {line.what: line for line in world.report().reconciled if line.unit == "QPU seconds"}
    sessions = [one for one in world.control.sessions() if one["mode"] == "dedicated"]
    clocked = sum(Decimal(str(one["usage_seconds"])) for one in sessions)
    own = sum(
        Decimal(str(job["usage_seconds"]))
        for job in world.control.jobs()
        if job["session_id"] in {one["id"] for one in sessions}
    )
    assert lines["dedicated sessions"].service_says == float(clocked)
    assert lines["dedicated sessions"].difference == float(clocked - own) > 0
    assert lines["batches"].difference == 0


def test_a_crash_of_the_reader_between_two_pages_loses_nothing(
    month: Story,
) -> None:
    world, _, _ = month
    book = InstanceUsage("mine")
    world.control.add_fault("GET", "/jobs", status=503, skip=1, times=None)
    with pytest.raises(Exception, match="503"):
        world.read(book)
    world.control.clear_faults()
    assert 0 < len(book.book.jobs) < len(world.control.jobs())
    assert book.unfinished == {"mine"}
    assert book.reconcile() == []
    assert world.report(book=world.read(book)) == world.report()
