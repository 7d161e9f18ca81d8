"""Report usage by owner: read the service's lists, name the owners in Prefect, reconcile with the service's totals.

Reads only. Jobs are read page by page and kept as small facts, so that tens of thousands of them fit into memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from sys import intern

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.spec import check_texts
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.parsing import parse_session_workload
from prefect_qruntime.client.service import each_job
from prefect_qruntime.credentials import Attended, load_each, read_each
from prefect_qruntime.errors import InvalidInput, NotFound, PermissionDenied
from prefect_qruntime.models import FLOW_TAG, KEY_TAG, Job, Session, Usage
from prefect_qruntime.observability.artifacts import find_records
from prefect_qruntime.operations.job_listing import find_owners, parse_since
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
from prefect_qruntime.operations.usage_tables import Reconciled, UnownedJob, UsageLine, UsageReport

__all__ = ["InstanceUsage", "compile_report", "report_usage"]

_AT_ONCE = 8  # sessions read concurrently
_SESSION_LIFE = timedelta(hours=24)  # within which the jobs of a session are created
_LATEST = datetime.max.replace(tzinfo=UTC)
_UNOWNED = 100  # jobs without an owner that are listed one by one

FindOwners = Callable[[set[str]], Awaitable[Mapping[str, Owner]]]


def report_usage(
    blocks: Iterable[str] | None = None,
    *,
    by: Sequence[str] = ("deployment",),
    since: str = "28d",
    until: str | None = None,
    attended: Attended | None = None,
) -> UsageReport:
    """Report usage by owner; for code without an event loop. Reads only.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        by: How rows are grouped: one or more of `flow`, `deployment`, `flow-run`, `tag`, `user`, `session`, `month`,
            `day`, `backend` and `block`.
        since: Only what was created since then; see `parse_since`.
        until: Only what was created before then; None for no end.
        attended: Give up on an instance that does not answer after some seconds; None to be patient.

    Raises:
        InvalidInput: An argument is wrong; nothing was sent.
    """
    by = check_texts(by, field="by")
    group((), by)  # refuses wrong names before anything is sent
    begin = parse_since(since)
    end = parse_since(until, field="until") if until is not None else None
    if end is not None and end <= begin:
        raise InvalidInput(f"must be after the beginning, {begin:%Y-%m-%d %H:%M} UTC", field="until")
    return network_loop().run(_report(blocks, tuple(by), begin, end, attended))


async def _report(
    blocks: Iterable[str] | None,
    by: tuple[str, ...],
    since: datetime,
    until: datetime | None,
    attended: Attended | None,
) -> UsageReport:
    loaded, problems = await load_each(blocks)
    instances: dict[str, InstanceUsage] = {}  # two blocks may lead to one instance

    async def read(name: str, client: QuantumRuntimeClient) -> None:
        instance = instances.setdefault(client.connection.crn, InstanceUsage(name))
        await instance.read(client, name, since, until)

    await read_each(loaded, problems, read, attended)
    if any(one.has_sessions_without_jobs for one in instances.values()):
        openers = {
            record.meta["session"]: record.meta.get("flow_run")
            for record in await find_records("session")
            if record.meta.get("session")
        }
        for instance in instances.values():
            instance.note_openers(openers)
    ordered = sorted(instances.values(), key=lambda one: one.block)
    return await compile_report(ordered, find_owners, by, since, until, dict(sorted(problems.items())))


@dataclass
class InstanceUsage:
    """The jobs and sessions that one instance lists, and the total usage that it reports."""

    block: str
    book: UsageBook = field(default_factory=UsageBook)
    usage: Usage | None = None
    notes: list[str] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)
    has_period: bool = False

    async def read(
        self, client: QuantumRuntimeClient, block: str, since: datetime, until: datetime | None = None
    ) -> None:
        """Read the jobs, sessions and usage of an instance. Runs on the network loop.

        Args:
            client: The instance.
            block: Name of the credentials block.
            since: Read what was created since then, and the whole usage period, to compare it with the service's total.
            until: Read what was created before then, and the jobs of sessions opened before then.

        Raises:
            QuantumRuntimeError: The service could not be asked; what was read stays.
        """
        self.unfinished.add(block)
        usage = await self._read_usage(client, block)
        start, over = (None, None) if usage is None else (usage.period_start, usage.period_end)
        has_period = start is not None and (until is None or start < until)
        if start is not None and has_period:
            since = min(since, start)
            until = None if until is None or over is None or over > until else until
        lists_sessions = await self._read_sessions(client, block, since)
        end = None if until is None else min(until, _LATEST - _SESSION_LIFE) + _SESSION_LIFE
        await self._read_jobs(client, block, since, end)
        if lists_sessions:
            await self._read_unlisted(client, block)
        # Read last: usage that is final in a list is in this total; what became final meanwhile counts as pending.
        if usage is not None:  # another block may have read it
            self.usage, self.has_period = await client.usage() if has_period else usage, has_period
        self.unfinished.discard(block)

    async def _read_usage(self, client: QuantumRuntimeClient, block: str) -> Usage | None:
        """The instance's total; None, with a note, if it cannot be read: jobs and sessions are counted without it."""
        try:
            return await client.usage()
        except (PermissionDenied, NotFound) as error:
            why = "the key has no right to read" if isinstance(error, PermissionDenied) else "this host does not report"
            self.notes.append(f"{block}: {why} the instance's usage, so no total of the service is compared.")
            return None

    async def _read_sessions(self, client: QuantumRuntimeClient, block: str, since: datetime) -> bool:
        try:
            for mode in ("session", "batch"):
                for item in await client.workloads(mode=mode, created_after=since):
                    self.book.see_session(_session_facts(parse_session_workload(item), block))
        except NotFound:
            self.notes.append(
                f"{block}: this service does not list the usage of sessions, so their jobs are counted one by one."
            )
            return False
        return True

    async def _read_jobs(
        self, client: QuantumRuntimeClient, block: str, since: datetime, until: datetime | None
    ) -> None:
        async for job in each_job(client, created_after=since, created_before=until):
            self.book.see_job(_job_facts(job, block))

    async def _read_unlisted(self, client: QuantumRuntimeClient, block: str) -> None:
        """Read the sessions that jobs name and no list showed: older ones, and those listed late."""
        slots = asyncio.Semaphore(_AT_ONCE)

        async def read(session_id: str) -> None:
            async with slots:
                try:
                    session = await client.session(session_id)
                except NotFound:
                    return  # deleted: its jobs are counted one by one
                # It cannot be charged for more than the time for which it has been open.
                seen = session.model_copy(update={"usage_seconds": session.elapsed_time, "usage_final": False})
                self.book.see_session(_session_facts(seen, block))

        await asyncio.gather(*(read(session_id) for session_id in self.book.unknown_sessions()))

    @property
    def has_sessions_without_jobs(self) -> bool:
        """Whether a session that is charged by the clock has no listed job."""
        of_jobs = {job.session_id for job in self.book.jobs.values()}
        return any(one.is_charged_by_the_clock and one.id not in of_jobs for one in self.book.sessions.values())

    def note_openers(self, openers: Mapping[str, str | None]) -> None:
        """Note the flow runs that opened sessions."""
        for session_id in self.book.sessions.keys() & openers.keys():
            known = self.book.sessions[session_id]
            self.book.sessions[session_id] = replace(known, flow_run_id=openers[session_id])

    def reconcile(self) -> list[Reconciled]:
        """Compare the service's totals of the usage period, of sessions and of batches with the counted usage."""
        found: list[Reconciled] = []
        usage = self.usage
        if self.unfinished:  # a part cannot be compared with the whole
            return found
        if usage is not None and self.has_period:
            charges = self.book.charges({}, since=usage.period_start, until=usage.period_end)
            _, total = group(charges, ["block"])
            for unit, said in ((Unit.SECONDS, usage.consumed_seconds), (Unit.RESOURCE_UNITS, usage.consumed_units)):
                amount = Amount.of(said, unit)
                if amount is not None:
                    found.append(self._line("instance", unit, amount, total.amounts, total.pending, _instance_meaning))
        elif usage is not None:
            self.notes.append(
                f"{self.block}: the service reports a total for the current usage period only, which this report omits."
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
        "Another user used the instance, jobs were deleted, or jobs of the previous period ran into this one. "
        "A key lists only its own user's jobs: save a block for each user to see them all."
    )


def _session_meaning(more: Decimal, pending: Decimal) -> str:
    if more < 0:
        return "The jobs report more than their sessions are charged." + (" It is not final yet." if pending else "")
    return "Time for which sessions held the QPU without running a job." if more else "They agree."


def _batch_meaning(more: Decimal, pending: Decimal) -> str:
    if more == 0:
        return "They agree."
    return "Not final yet." if pending else "Jobs of batches were deleted, or created outside the time that was read."


def _amounts(seconds: float | None, units: float | None) -> Amounts:
    return Amounts.of(Amount.of(seconds, Unit.SECONDS), Amount.of(units, Unit.RESOURCE_UNITS))


def _shared(text: str | None) -> str | None:
    """Intern a text: thousands of jobs share few backends and users."""
    return None if text is None else intern(text)


def _job_facts(job: Job, block: str) -> JobFacts:
    return JobFacts(
        id=job.id,
        created=job.created_at,
        state=intern(job.status.value if job.status is not None else job.raw_status),
        is_over=job.is_terminal,
        is_final=job.usage_final or job.dry_run,
        amounts=_amounts(job.charged_seconds, None if job.dry_run else job.usage_units),
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


async def compile_report(
    instances: Sequence[InstanceUsage],
    owners_of: FindOwners,
    by: tuple[str, ...],
    since: datetime,
    until: datetime | None,
    problems: Mapping[str, str] | None = None,
) -> UsageReport:
    """Make the report of the instances that were read.

    Args:
        instances: The instances.
        owners_of: Names flow runs by their ids.
        by: How rows are grouped.
        since: Only what was created then or later.
        until: Only what was created before then; None for no end.
        problems: What could not be read, by block.
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
        jobs_without_owner=len(unowned),
        qpu_seconds_without_owner=float(orphans.amounts.seconds or 0),
        reconciled=reconciled,
        problems=[*(problems or {}).values()],
        notes=notes,
        unread=[*(problems or {})],
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
