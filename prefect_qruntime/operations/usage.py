"""Report usage by owner: read the service's lists, name the owners in Prefect, reconcile with what the service says.

Reads only. Jobs are read page by page and kept as small facts, so that tens of thousands of them fit into memory.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from sys import intern
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterId,
)
from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.parsing import parse_session_workload
from prefect_qruntime.credentials import load_each
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.models import FLOW_TAG, KEY_TAG, Job, Session, Usage
from prefect_qruntime.observability.artifacts import find_records
from prefect_qruntime.operations.job_listing import parse_since
from prefect_qruntime.operations.usage_core import (
    Amount,
    Amounts,
    Charge,
    JobFacts,
    Owner,
    SessionFacts,
    Unit,
    UsageBook,
    UsageRow,
    difference,
    group,
)
from prefect_qruntime.prefect_api import api, flow_runs_by_id

__all__ = [
    "Reconciled",
    "UnownedJob",
    "UsageLine",
    "UsageReport",
    "areport_usage",
    "report_usage",
    "rolled_up",
    "table_rows",
    "to_csv",
    "write_parquet",
]

_PAGE = 200
_AT_ONCE = 8  # sessions asked for side by side
_SESSION_LIFE = timedelta(hours=24)  # within which the jobs of a session are created
_OVERLAP = timedelta(milliseconds=1)  # a page begins with the last moment of the page before, whose jobs are known
_UNOWNED = 100  # jobs without an owner that are listed one by one

FindOwners = Callable[[set[str]], Awaitable[Mapping[str, Owner]]]


class UsageLine(BaseModel):
    """One row: what it is about, its jobs, what they are charged, and the part of it that may still change.

    `qpu_seconds` and `resource_units` are two accounts of the same work. They are never added up, and the latter is
    None where the service tells none.
    """

    model_config = ConfigDict(frozen=True)

    keys: dict[str, str]
    jobs: int
    states: dict[str, int]
    qpu_seconds: float
    pending_qpu_seconds: float
    resource_units: float | None
    pending_resource_units: float | None
    not_final: int


class UnownedJob(BaseModel):
    """A job, or a session without known jobs, that belongs to no flow run."""

    model_config = ConfigDict(frozen=True)

    id: str
    block: str | None
    user: str | None
    state: str
    created_at: datetime | None
    qpu_seconds: float
    qpu_seconds_final: bool


class Reconciled(BaseModel):
    """What the service says of a whole beside what was counted. `difference` is what the service says more."""

    model_config = ConfigDict(frozen=True)

    block: str
    what: str
    unit: str
    since: datetime | None
    until: datetime | None
    service_says: float
    counted: float
    pending: float
    difference: float
    meaning: str


class UsageReport(BaseModel):
    """Usage by owner. `problems` could not be looked into, so that the numbers are too low; `notes` explain them."""

    model_config = ConfigDict(frozen=True)

    by: list[str]
    since: datetime
    until: datetime | None
    rows: list[UsageLine]
    total: UsageLine
    without_owner: list[UnownedJob]
    jobs_without_owner: int
    qpu_seconds_without_owner: float
    reconciled: list[Reconciled]
    problems: list[str]
    notes: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether everything was read and no number can change any more."""
        return not self.problems and self.total.not_final == 0


def report_usage(
    blocks: Iterable[str] | None = None,
    *,
    by: Sequence[str] = ("deployment",),
    since: str = "28d",
    until: str | None = None,
) -> UsageReport:
    """Report usage by owner; for code without an event loop. Reads only.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        by: What the rows are; one or more of `flow`, `deployment`, `flow-run`, `tag`, `user`, `session`, `month`,
            `day`, `backend` and `block`.
        since: Only what was created since then; see `parse_since`.
        until: Only what was created before then; None for no end.

    Raises:
        InvalidInput: An argument is wrong; nothing was sent.
    """
    return network_loop().run(areport_usage(blocks, by=by, since=since, until=until))


async def areport_usage(
    blocks: Iterable[str] | None = None,
    *,
    by: Sequence[str] = ("deployment",),
    since: str = "28d",
    until: str | None = None,
) -> UsageReport:
    """As `report_usage`, for async code."""
    group((), by)  # refuses a wrong one before anything is sent
    begin = parse_since(since)
    end = parse_since(until, field="until") if until is not None else None
    if end is not None and end <= begin:
        raise InvalidInput(f"must be after the beginning, {begin:%Y-%m-%d %H:%M} UTC", field="until")
    return await network_loop().arun(_report(blocks, tuple(by), begin, end))


async def _report(
    blocks: Iterable[str] | None, by: tuple[str, ...], since: datetime, until: datetime | None
) -> UsageReport:
    loaded, problems = await load_each(blocks)
    instances: dict[str, InstanceUsage] = {}  # two blocks may lead to one instance
    for name, credentials in loaded.items():
        try:
            client = credentials.get_client()
            instance = instances.setdefault(client.connection.crn, InstanceUsage(name))
            await instance.read(client, name, since, until)
        except (QuantumRuntimeError, ValueError) as error:
            problems[name] = f"{name}: {error}"
    if any(one.has_sessions_without_jobs for one in instances.values()):
        openers = {
            record.meta["session"]: record.meta.get("flow_run")
            for record in await find_records("session")
            if record.meta.get("session")
        }
        for instance in instances.values():
            instance.note_openers(openers)
    return await compile_report(
        list(instances.values()), find_owners, by, since, until, [problems[name] for name in sorted(problems)]
    )


@dataclass
class InstanceUsage:
    """What one instance's lists said of its jobs and sessions, and what it says of its usage as a whole."""

    block: str
    book: UsageBook = field(default_factory=UsageBook)
    usage: Usage | None = None
    notes: list[str] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)
    has_period: bool = False

    async def read(
        self, client: QuantumRuntimeClient, block: str, since: datetime, until: datetime | None = None
    ) -> None:
        """Read an instance, in any order and as often as it takes. Runs on the network loop.

        Args:
            client: The instance.
            block: Name of the credentials block.
            since: What was created since then; and all of the usage period, to compare it with what the service says.
            until: What was created before then, and the jobs of sessions opened before.

        Raises:
            QuantumRuntimeError: The service could not be asked; what was read stays.
        """
        self.unfinished.add(block)
        usage = await client.usage()
        start, end = usage.period_start, usage.period_end
        self.has_period = start is not None and (until is None or start < until)
        if start is not None and self.has_period:
            since = min(since, start)
            until = None if until is None or end is None or end > until else until
        lists_sessions = await self._read_sessions(client, block, since)
        await self._read_jobs(client, block, since, None if until is None else until + _SESSION_LIFE)
        if lists_sessions:
            await self._read_unlisted(client, block)
        # Read last: what is final in a list is in the sum, and what became final meanwhile counts as pending.
        self.usage = await client.usage() if self.has_period else usage
        self.unfinished.discard(block)

    async def _read_sessions(self, client: QuantumRuntimeClient, block: str, since: datetime) -> bool:
        try:
            for mode in ("session", "batch"):
                for item in await client.workloads(mode=mode, created_after=since):
                    self.book.see_session(_session_facts(parse_session_workload(item), block))
        except NotFound:
            self.notes.append(
                f"{block}: this service does not list what sessions are charged, so their jobs are counted one by one."
            )
            return False
        return True

    async def _read_jobs(
        self, client: QuantumRuntimeClient, block: str, since: datetime, until: datetime | None
    ) -> None:
        """All jobs, newest first. A list that moves while it is read repeats jobs, and leaves none out."""
        before, size, seen = until, _PAGE, set[str]()
        while True:
            page = await client.jobs(created_after=since, created_before=before, limit=size)
            fresh = [job for job in page if job.id not in seen]
            for job in fresh:
                self.book.see_job(_job_facts(job, block))
            if len(page) < size:
                return
            last = page[-1].created_at
            if last is None:
                raise QuantumRuntimeError(
                    f"The service does not say when job {page[-1].id} was created, so its list cannot be read on."
                )
            moved = before is None or last + _OVERLAP < before
            # More jobs of one moment than fit on a page: ask for more at once.
            before, size = last + _OVERLAP, _PAGE if moved else 2 * size
            seen = {job.id for job in page}

    async def _read_unlisted(self, client: QuantumRuntimeClient, block: str) -> None:
        """Ask for the sessions that jobs name and no list showed: older ones, and such that lag behind."""
        slots = asyncio.Semaphore(_AT_ONCE)

        async def read(session_id: str) -> None:
            async with slots:
                try:
                    session = await client.session(session_id)
                except NotFound:
                    return  # deleted: its jobs are counted one by one
                # How long it has been open is the most that it can be charged.
                seen = session.model_copy(update={"usage_seconds": session.elapsed_time, "usage_final": False})
                self.book.see_session(_session_facts(seen, block))

        await asyncio.gather(*(read(session_id) for session_id in self.book.unknown_sessions()))

    @property
    def has_sessions_without_jobs(self) -> bool:
        """Whether a session that is charged by the clock has no job that was listed."""
        of_jobs = {job.session_id for job in self.book.jobs.values()}
        return any(one.is_charged_by_the_clock and one.id not in of_jobs for one in self.book.sessions.values())

    def note_openers(self, openers: Mapping[str, str | None]) -> None:
        """Note which flow runs opened sessions.

        Args:
            openers: Flow runs by session.
        """
        for session_id in self.book.sessions.keys() & openers.keys():
            known = self.book.sessions[session_id]
            self.book.sessions[session_id] = replace(known, flow_run_id=openers[session_id])

    def reconcile(self) -> list[Reconciled]:
        """Compare what the service says of the usage period, of sessions and of batches with what was counted."""
        found: list[Reconciled] = []
        usage = self.usage
        if usage is None or self.unfinished:  # a part is no match for the whole
            return found
        if self.has_period:
            charges = self.book.charges({}, since=usage.period_start, until=usage.period_end)
            _, total = group(charges, ["block"])
            for unit, said in ((Unit.SECONDS, usage.consumed_seconds), (Unit.RESOURCE_UNITS, usage.consumed_units)):
                amount = Amount.of(said, unit)
                if amount is not None:
                    found.append(self._line("instance", unit, amount, total.amounts, total.pending, _instance_meaning))
        else:
            self.notes.append(
                f"{self.block}: its sum is told for the present usage period only, which the report leaves out."
            )
        for mode, what, meaning in (
            ("dedicated", "dedicated sessions", _session_meaning),
            ("batch", "batches", _batch_meaning),
        ):
            sessions = {one.id: one for one in self.book.sessions.values() if one.mode == mode and one.amounts.known}
            jobs = [job for job in self.book.jobs.values() if job.session_id in sessions]
            told = sum((one.amounts for one in sessions.values()), Amounts())
            own = sum((job.amounts for job in jobs), Amounts())
            pending = sum((one.amounts for one in sessions.values() if not one.is_final), Amounts())
            for unit in Unit:
                value = told.get(unit)
                if value is not None:
                    found.append(self._line(what, unit, Amount(value, unit), own, pending, meaning))
        return found

    def _line(
        self,
        what: str,
        unit: Unit,
        said: Amount,
        counted: Amounts,
        pending: Amounts,
        meaning: Callable[[Decimal, Decimal], str],
    ) -> Reconciled:
        more = difference(said.value, counted, unit) or Decimal(0)
        still = pending.get(unit) or Decimal(0)
        whole = what == "instance" and self.usage is not None
        return Reconciled(
            block=self.block,
            what=what,
            unit=unit.value,
            since=self.usage.period_start if whole and self.usage is not None else None,
            until=self.usage.period_end if whole and self.usage is not None else None,
            service_says=float(said.value),
            counted=float(counted.get(unit) or 0),
            pending=float(still),
            difference=float(more),
            meaning=meaning(more, still),
        )


def _instance_meaning(more: Decimal, pending: Decimal) -> str:
    if more == 0:
        return "They agree."
    if more < 0:
        return (
            "The service has not added up everything yet."
            if -more <= pending
            else "The service counts less than its own jobs say. Ask IBM's support with the job ids."
        )
    return ("Some jobs are not final yet. If it stays: " if pending else "") + (
        "Somebody else used the instance, jobs were deleted, or jobs of the period before ran into this one. "
        "A key lists only its own user's jobs: save a block for each user to see them."
    )


def _session_meaning(more: Decimal, pending: Decimal) -> str:
    if more < 0:
        return "The jobs report more than their sessions are charged." + (" Not final yet." if pending else "")
    return "Time for which sessions held the QPU and no job of theirs ran." if more else "They agree."


def _batch_meaning(more: Decimal, pending: Decimal) -> str:
    if more == 0:
        return "They agree."
    return "Not final yet." if pending else "Jobs of batches were deleted, or created outside the time that was read."


def _amounts(seconds: float | None, units: float | None) -> Amounts:
    return Amounts.of(Amount.of(seconds, Unit.SECONDS), Amount.of(units, Unit.RESOURCE_UNITS))


def _shared(text: str | None) -> str | None:
    """The same text object for equal texts: thousands of jobs have few backends and users."""
    return None if text is None else intern(text)


def _job_facts(job: Job, block: str) -> JobFacts:
    return JobFacts(
        id=job.id,
        created=job.created_at,
        state=intern(job.status.value if job.status is not None else job.raw_status),
        is_over=job.is_terminal,
        is_final=job.usage_final,
        amounts=_amounts(job.usage_seconds, job.usage_units),
        flow_run_id=_shared(job.flow_run_id),
        session_id=_shared(job.session_id),
        tags=tuple(intern(tag) for tag in job.tags if not tag.startswith((FLOW_TAG, KEY_TAG))),
        user=_shared(job.user_id),
        backend=_shared(job.backend),
        block=intern(block),
    )


def _session_facts(session: Session, block: str) -> SessionFacts:
    return SessionFacts(
        id=session.id,
        created=session.started_at,
        mode=session.mode,
        is_final=session.usage_final,
        amounts=_amounts(session.usage_seconds, session.usage_units),
        user=_shared(session.user_id),
        backend=_shared(session.backend),
        block=intern(block),
    )


async def find_owners(flow_run_ids: set[str]) -> dict[str, Owner]:
    """Name flow runs, their flows and their deployments. Runs on the network loop.

    Args:
        flow_run_ids: As jobs' tags say; what is no id, or unknown to this Prefect, is left out.
    """
    client = await api()
    runs = await flow_runs_by_id(flow_run_ids)
    flows: dict[UUID, str] = {}
    deployments: dict[UUID, str] = {}
    for some in _pages([str(run.flow_id) for run in runs.values()]):
        of = FlowFilter(id=FlowFilterId(any_=some))
        flows |= {flow.id: flow.name for flow in await client.read_flows(flow_filter=of, limit=_PAGE)}
    for some in _pages([str(run.deployment_id) for run in runs.values() if run.deployment_id is not None]):
        by_id = DeploymentFilter(id=DeploymentFilterId(any_=some))
        deployments |= {one.id: one.name for one in await client.read_deployments(deployment_filter=by_id, limit=_PAGE)}
    found = {}
    for run_id, run in runs.items():
        flow = flows.get(run.flow_id, "deleted flow")
        deployment = None
        if run.deployment_id is not None:
            deployment = f"{flow}/{deployments.get(run.deployment_id, f'deleted deployment {run.deployment_id}')}"
        found[run_id] = Owner(run_id, run.name, flow, deployment, tuple(sorted(run.tags)))
    return found


def _pages(texts: Iterable[str]) -> list[list[UUID]]:
    ids = [UUID(text) for text in sorted(set(texts))]
    return [ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE)]


async def compile_report(
    instances: Sequence[InstanceUsage],
    owners_of: FindOwners,
    by: tuple[str, ...],
    since: datetime,
    until: datetime | None,
    problems: Sequence[str] = (),
) -> UsageReport:
    """Make the report of what was read.

    Args:
        instances: What was read.
        owners_of: Names flow runs by their ids.
        by: What the rows are.
        since: Only what was created at that moment or later.
        until: Only what was created before that moment; None for no end.
        problems: What could not be read.
    """
    told = [job.flow_run_id for one in instances for job in one.book.jobs.values()]
    told += [session.flow_run_id for one in instances for session in one.book.sessions.values()]
    wanted = {flow_run_id for flow_run_id in told if flow_run_id is not None}
    owners = await owners_of(wanted)
    charges = [charge for one in instances for charge in one.book.charges(owners, since=since, until=until)]
    rows, total = group(charges, by)
    unowned = [charge for charge in charges if charge.owner is None]
    _, orphans = group(unowned, ["block"])
    reconciled = [line for one in instances for line in one.reconcile()]
    notes = [note for one in instances for note in one.notes]
    if "tag" in by:
        notes.append("A job with several tags is in the row of each, so the rows may add up to more than the total.")
    unowned.sort(key=lambda charge: charge.amounts.seconds or Decimal(0), reverse=True)
    return UsageReport(
        by=list(by),
        since=since,
        until=until,
        rows=[_line(row, by) for row in rows],
        total=_line(total, ()),
        without_owner=[_unowned(charge) for charge in unowned[:_UNOWNED]],
        jobs_without_owner=orphans.jobs,
        qpu_seconds_without_owner=float(orphans.amounts.seconds or 0),
        reconciled=reconciled,
        problems=list(problems),
        notes=notes,
    )


def _line(row: UsageRow, by: tuple[str, ...]) -> UsageLine:
    units, pending = row.amounts.resource_units, row.pending.resource_units
    return UsageLine(
        keys=dict(zip(by, row.keys, strict=True)),
        jobs=row.jobs,
        states=dict(sorted(row.states.items())),
        qpu_seconds=float(row.amounts.seconds or 0),
        pending_qpu_seconds=float(row.pending.seconds or 0),
        resource_units=None if units is None else float(units),
        pending_resource_units=None if units is None else float(pending or 0),
        not_final=row.not_final,
    )


def rolled_up(report: UsageReport, by: str) -> UsageReport:
    """The same report with one of its groups only, for instance by deployment what is by deployment and day."""
    sums: dict[str, list[UsageLine]] = {}
    for row in report.rows:
        sums.setdefault(row.keys[by], []).append(row)
    rows = [
        UsageLine(
            keys={by: name},
            jobs=sum(row.jobs for row in rows),
            states={
                word: sum(row.states.get(word, 0) for row in rows)
                for word in sorted({w for r in rows for w in r.states})
            },
            qpu_seconds=_exact(row.qpu_seconds for row in rows) or 0.0,
            pending_qpu_seconds=_exact(row.pending_qpu_seconds for row in rows) or 0.0,
            resource_units=_exact(row.resource_units for row in rows),
            pending_resource_units=_exact(row.pending_resource_units for row in rows),
            not_final=sum(row.not_final for row in rows),
        )
        for name, rows in sums.items()
    ]
    rows.sort(key=lambda row: (-row.qpu_seconds, -(row.resource_units or 0), row.keys[by]))
    return report.model_copy(update={"by": [by], "rows": rows})


def _exact(values: Iterable[float | None]) -> float | None:
    """A sum without the errors of binary fractions; None if there is no number."""
    known = [Decimal(str(value)) for value in values if value is not None]
    return float(sum(known)) if known else None


def table_rows(report: UsageReport) -> list[dict[str, Any]]:
    """The rows as plain columns, all with the same names; resource units only where the service tells some."""
    units = report.total.resource_units is not None
    return [
        {
            **row.keys,
            "jobs": row.jobs,
            "completed": row.states.get("completed", 0),
            "failed": row.states.get("failed", 0),
            "cancelled": row.states.get("cancelled", 0),
            "not_final": row.not_final,
            "qpu_seconds": row.qpu_seconds,
            "pending_qpu_seconds": row.pending_qpu_seconds,
            **(
                {
                    "resource_units": row.resource_units or 0.0,
                    "pending_resource_units": row.pending_resource_units or 0.0,
                }
                if units
                else {}
            ),
        }
        for row in report.rows
    ]


def _columns(report: UsageReport) -> list[str]:
    found = [*report.by, "jobs", "completed", "failed", "cancelled", "not_final", "qpu_seconds", "pending_qpu_seconds"]
    return found + (["resource_units", "pending_resource_units"] if report.total.resource_units is not None else [])


def to_csv(report: UsageReport) -> str:
    """The rows as CSV with a header. Names that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(report), lineterminator="\n")
    writer.writeheader()
    for row in table_rows(report):
        writer.writerow({name: _no_formula(value) for name, value in row.items()})
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_parquet(report: UsageReport, path: Path) -> None:
    """Write the rows as a Parquet file, amounts as decimals of six places.

    Raises:
        InvalidInput: `pyarrow` is not installed, or the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InvalidInput(
            "needs pyarrow, which is not installed. Nothing was written. Install it with "
            "`pip install 'prefect-qruntime[parquet]'`, or use --csv or --json",
            field="parquet",
        ) from None
    rows = table_rows(report)
    arrays = {}
    for name in _columns(report):
        values = [row[name] for row in rows]
        if name.endswith(("seconds", "units")):
            step = Decimal("0.000001")
            arrays[name] = pyarrow.array(
                [Decimal(str(value)).quantize(step) for value in values], type=pyarrow.decimal128(24, 6)
            )
        else:
            kind = pyarrow.string() if name in report.by else pyarrow.int64()
            arrays[name] = pyarrow.array(values, type=kind)
    try:
        parquet.write_table(pyarrow.table(arrays), path)
    except OSError as error:
        raise InvalidInput(
            f"cannot write {str(path)!r} ({error.strerror or type(error).__name__})", field="parquet"
        ) from None


def _unowned(charge: Charge) -> UnownedJob:
    return UnownedJob(
        id=charge.job_id or charge.session_id or "",
        block=charge.block,
        user=charge.user,
        state=charge.state,
        created_at=charge.created.astimezone(UTC) if charge.created is not None else None,
        qpu_seconds=float(charge.amounts.seconds or 0),
        qpu_seconds_final=charge.is_final,
    )
