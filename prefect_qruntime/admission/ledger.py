"""Count what jobs used and may still use, and reserve it, so that concurrent submissions cannot overspend.

One ledger per instance and process, on the network loop. A reservation is made before the POST, for the most
that the job may use; once the service lists the job, the service's own numbers take its place. Outside a flow
there is no run whose jobs the service could list, so this process counts as the run. `budget_core` decides how jobs and
dedicated sessions are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from prefect_qruntime.admission.budget import HOLD_DAYS, Budget, SessionHolds, days_ago, report_level
from prefect_qruntime.admission.budget_core import (
    Remaining,
    Reservation,
    SessionHold,
    Tally,
    allotment,
    allowed_seconds,
    counts,
    expected_seconds,
    job_limit,
    job_room,
    levels,
    lowest,
    tally,
)
from prefect_qruntime.client import QuantumRuntimeClient, submission_keys
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.service import each_job
from prefect_qruntime.errors import BudgetExhausted, NotFound
from prefect_qruntime.models import Job, SessionRef
from prefect_qruntime.observability.artifacts import deployments_of_deleted
from prefect_qruntime.prefect_api import flow_runs_by_id, not_sent, now
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.settings import current_settings

__all__ = ["DeploymentJobs", "Ledger", "UnsettledJobs", "ledger"]

_FORGET = 3600.0  # seconds after which a list surely shows a job
_FORGET_UNSETTLED = 86400.0
_LOOK_AGAIN = 0.5  # seconds between two reads of a usage that is not final yet


class Ledger:
    """The reservations of one instance in this process."""

    def __init__(self) -> None:
        self.reservations: list[Reservation] = []
        self._deployments = DeploymentJobs()
        self._unsettled = UnsettledJobs()
        self._lock = asyncio.Lock()
        self._waited_for: dict[str, float] = {}  # jobs whose usage was not final, and since when
        self.sessions = SessionHolds()

    async def reserve(
        self,
        client: QuantumRuntimeClient,
        budgets: Sequence[Budget],
        where: RunContext,
        key: str,
        wanted: int | None,
        session: SessionRef | None = None,
        *,
        ceiling: int | None = None,
    ) -> tuple[Reservation, int | None]:
        """Reserve QPU seconds for one job, or refuse it.

        Args:
            client: The instance that pays.
            budgets: All that apply.
            where: The flow run that submits.
            key: The submission key's tag.
            wanted: The job's own limit of QPU seconds.
            session: The session that it runs in.
            ceiling: The most QPU seconds that the policy allows a job.

        Returns:
            The reservation, and the limit to send with the job.

        Raises:
            BudgetExhausted: Not enough is left.
            QuantumRuntimeError: The service or Prefect could not be asked.
        """
        wanted = wanted if wanted is not None else lowest(*(one.default_max_execution_time for one in budgets))
        async with self._lock:
            with self._replacing(key):
                while True:
                    self._tidy()
                    rooms = await self._all_rooms(client, budgets, where)
                    hold = await self.sessions.of(client, budgets, where, session, rooms)
                    try:
                        if hold is None:
                            cap = allowed_seconds(rooms, wanted, ceiling)
                        else:
                            cap = job_limit(rooms, await self._session_room(client, budgets, hold), wanted, ceiling)
                    except BudgetExhausted:
                        if not self._may_change(rooms, wanted, ceiling):
                            raise
                        await asyncio.sleep(_LOOK_AGAIN)
                        continue
                    made = Reservation(
                        key,
                        where.flow_run_id,
                        where.deployment_id,
                        float(cap or MOST_SECONDS),
                        time.monotonic(),
                        hold=hold.token if hold is not None else None,
                    )
                    if hold is not None and hold.begun_after is None:
                        await self.sessions.note(hold.sent_job(now()))
                    self.reservations.append(made)
                    self._tell(client, budgets, where, rooms, 0.0 if hold is not None else made.seconds, jobs=1)
                    return made, cap

    @contextlib.contextmanager
    def _replacing(self, key: str) -> Iterator[None]:
        """Let a second POST of a submission replace the first in the block, but only if it may be sent."""
        replaced = [one for one in self.reservations if one.key == key]
        self.reservations = [one for one in self.reservations if one.key != key]
        try:
            yield
        except BaseException:
            self.reservations += replaced
            raise

    async def reserve_session(
        self, client: QuantumRuntimeClient, budgets: Sequence[Budget], where: RunContext, token: str, life: int
    ) -> int:
        """Reserve QPU seconds for a dedicated session before it is opened, or refuse it.

        Args:
            client: The instance that pays.
            budgets: All that apply.
            where: The flow run that submits.
            token: Identifies the session.
            life: Its wanted life in seconds.

        Returns:
            Its longest life in seconds.

        Raises:
            BudgetExhausted: Not enough is left.
            QuantumRuntimeError: The service or Prefect could not be asked.
        """
        async with self._lock:
            self._tidy()
            rooms = await self._all_rooms(client, budgets, where)
            allotted = allotment(rooms, life)
            if any(budget.counts_seconds for budget in budgets):
                await self.sessions.make(client, where, token, allotted)
            self._tell(client, budgets, where, rooms, allotted, jobs=0)
            return allotted

    def _tell(
        self,
        client: QuantumRuntimeClient,
        budgets: Sequence[Budget],
        where: RunContext,
        rooms: Sequence[Remaining],
        seconds: float,
        *,
        jobs: int,
    ) -> None:
        """Report the limits that are half, nearly or wholly spent or reserved, each level once."""
        days = {budget.shown_name: budget.period_days for budget in budgets}
        scope = {
            "max_seconds_per_deployment": where.deployment_id,
            "min_remaining_seconds": client.connection.crn,
        }
        for room in rooms:
            # A limit over a moving period is reported once in each period.
            moving = room.limit in scope
            period = int(now() // (86400 * days[room.budget])) if moving else 0
            about = scope[room.limit] if moving else where.flow_run_id
            for level in levels(room, jobs if room.counts_jobs else seconds):
                report_level(room, level, about=f"{about}:{period}", flow_run_id=where.flow_run_id)

    def drop(self, reservation: Reservation) -> None:
        """Release a reservation: no job was created."""
        self.reservations = [one for one in self.reservations if one is not reservation]

    def _tidy(self) -> None:
        moment = time.monotonic()
        self.reservations = [
            one
            for one in self.reservations
            if not (one.doubtful_until is not None and one.doubtful_until < moment)
            and not (
                one.flow_run_id is not None
                and one.job_id is not None
                and moment - one.began > (_FORGET if one.is_settled else _FORGET_UNSETTLED)
            )
        ]

    def _may_change(self, rooms: Sequence[Remaining], wanted: int | None, ceiling: int | None) -> bool:
        """Whether usage that is not final yet may still leave enough, and is worth waiting for."""
        moment, grace = time.monotonic(), current_settings().usage_grace_seconds
        fresh = set()
        for job_id in {job_id for room in rooms for job_id in room.settling}:
            if moment - self._waited_for.setdefault(job_id, moment) < grace:
                fresh.add(job_id)
        if not fresh:
            return False
        best = [
            replace(
                room,
                reserved=room.reserved - sum(seconds for job_id, seconds in room.settling.items() if job_id in fresh),
            )
            for room in rooms
        ]
        try:
            allowed_seconds(best, wanted, ceiling)
        except BudgetExhausted:
            return False
        return True

    async def _all_rooms(
        self, client: QuantumRuntimeClient, budgets: Sequence[Budget], where: RunContext
    ) -> list[Remaining]:
        if any(budget.counts_seconds for budget in budgets):
            days = [budget.period_days for budget in budgets if budget.max_seconds_per_deployment is not None]
            await self.sessions.read(client, max([HOLD_DAYS, *days]))
        return [room for budget in budgets for room in await self._rooms(client, budget, where)]

    def _tally(self, jobs: Iterable[Job], reservations: Iterable[Reservation], holds: Iterable[SessionHold]) -> Tally:
        moment = now()
        counted = [one for one in holds if counts(one, moment)]
        return tally(jobs, reservations, counted, held=self.sessions.ids(), now=moment)

    async def _session_room(
        self, client: QuantumRuntimeClient, budgets: Sequence[Budget], hold: SessionHold
    ) -> Remaining:
        """Compute what a session has left for one more job."""
        live = await client.jobs(session_id=hold.session_id, pending=True) if hold.session_id is not None else []
        self._see(live)
        await self._look_at_missing(client, {job.id for job in live}, hold.token)
        known = {job.id for job in live} | {tag for job in live for tag in job.tags}
        on_their_way = sum(
            one.seconds
            for one in self.reservations
            if one.hold == hold.token and known.isdisjoint({one.job_id, one.key}) and not one.is_over
        )
        name = next(budget.shown_name for budget in budgets if budget.counts_seconds)
        return job_room(hold, name, live, on_their_way, now())

    async def _rooms(self, client: QuantumRuntimeClient, budget: Budget, where: RunContext) -> list[Remaining]:
        """Compute what each limit of a budget has left."""
        rooms = []
        if budget.max_seconds_per_run is not None or budget.max_jobs_per_run is not None:
            run = await self._run(client, where)
            if budget.max_jobs_per_run is not None:
                rooms.append(Remaining(budget.shown_name, "max_jobs_per_run", budget.max_jobs_per_run, run.jobs))
            if budget.max_seconds_per_run is not None:
                rooms.append(_room(budget, "max_seconds_per_run", budget.max_seconds_per_run, run))
        if budget.max_seconds_per_deployment is not None and where.deployment_id is not None:
            whole = await self._deployment(client, where.deployment_id, budget.period_days)
            rooms.append(_room(budget, "max_seconds_per_deployment", budget.max_seconds_per_deployment, whole))
        if budget.min_remaining_seconds is not None:
            rooms += await self._instance(client, budget)
        return rooms

    async def _run(self, client: QuantumRuntimeClient, where: RunContext) -> Tally:
        if where.flow_run_id is None:
            await self._look_at_missing(client, ())
            mine = [one for one in self.reservations if one.flow_run_id is None]
            sessions = self.sessions  # those of other scripts are noted too
            held = [one for one in sessions.holds.values() if one.flow_run_id is None and one.token in sessions.made]
            return self._tally([], mine, held)
        jobs = await client.jobs_tagged(submission_keys.flow_tag(where.flow_run_id))
        mine = [one for one in self.reservations if one.flow_run_id == where.flow_run_id]
        self._see(jobs)
        return self._tally(
            jobs, mine, [one for one in self.sessions.holds.values() if one.flow_run_id == where.flow_run_id]
        )

    async def _deployment(self, client: QuantumRuntimeClient, deployment_id: str, days: float) -> Tally:
        since = days_ago(days)
        jobs = await self._deployments.read(client, deployment_id, since)
        mine = [one for one in self.reservations if one.deployment_id == deployment_id]
        self._see(jobs)
        held = [
            one
            for one in self.sessions.holds.values()
            if one.deployment_id == deployment_id and (one.over is None or one.over >= since.timestamp())
        ]
        return self._tally(jobs, mine, held)

    async def _instance(self, client: QuantumRuntimeClient, budget: Budget) -> list[Remaining]:
        """Compute what the instance has left above the minimum; empty if it has no limit."""
        open_jobs = {job.id: job for job in await self._unsettled.read(client)}
        self._see(open_jobs.values())
        await self._look_at_missing(client, open_jobs)
        # Read last: what is final by now is in it.
        usage = await client.usage()
        if usage.remaining_seconds is None:
            return []
        live_holds = [one for one in self.sessions.holds.values() if one.final is None]
        held = self.sessions.ids()
        ours = self._tally([], [one for one in self.reservations if not one.is_settled], live_holds)
        known = {one.job_id for one in self.reservations} | {one.key for one in self.reservations}
        others = Tally()
        for job in open_jobs.values():
            if job.id not in known and known.isdisjoint(job.tags) and job.session_id not in held:
                others.add(job, expected_seconds(job))
        return [
            Remaining(
                budget.shown_name,
                "min_remaining_seconds",
                usage.consumed_seconds + usage.remaining_seconds - (budget.min_remaining_seconds or 0.0),
                usage.consumed_seconds,
                # What live sessions have used may not be in the instance's number yet.
                ours.used + ours.reserved + others.reserved,
                ours.settling | others.settling,
            )
        ]

    async def _look_at_missing(
        self, client: QuantumRuntimeClient, live: Collection[str], hold: str | None = None
    ) -> None:
        """Read the jobs submitted here that are not live: they are over, not listed yet, or deleted."""
        grace = current_settings().submission_grace_seconds
        for one in list(self.reservations):
            if hold is not None and (one.hold != hold or one.is_over):
                continue
            if one.job_id is None or one.job_id in live or one.is_settled:
                continue
            try:
                one.job = await client.job(one.job_id)
            except NotFound:
                if time.monotonic() - one.began > grace:
                    self.drop(one)

    def _see(self, jobs: Iterable[Job]) -> None:
        """Keep the service's answers about jobs that were submitted here."""
        seen = {job.id: job for job in jobs}
        for one in self.reservations:
            if one.job_id in seen:
                one.job = seen[one.job_id]


def _room(budget: Budget, limit: str, allowed: float, total: Tally) -> Remaining:
    return Remaining(budget.shown_name, limit, allowed, total.used, total.reserved, total.settling)


def ledger(crn: str) -> Ledger:
    """The ledger of an instance. Call it on the network loop."""
    return network_loop().state(Ledger, crn)


# ---- caches of the job list. What they know changes only when a read has succeeded. ----------------------------------

_OVERLAP = timedelta(minutes=10)  # lists may lag
_LOOK_BACK = 7.0  # days by when the usage of a job is final
_MOST_ENDED = 1000  # finished jobs that are read to find those whose usage is not final: five pages


def _flow_run_of(job: Job) -> UUID | None:
    told = job.flow_run_id
    return UUID(told) if told is not None else None


def _newest(jobs: Iterable[Job], otherwise: datetime) -> datetime:
    """When the newest job was created: how far a list was read, by the service's clock, which may differ from ours."""
    return max((job.created_at for job in jobs if job.created_at is not None), default=otherwise)


def _read_on(since: datetime, read: datetime, known: Iterable[Job]) -> datetime:
    """The time from which on a list is read again: what is new, and known jobs whose usage may still change."""
    moving = [job.created_at for job in known if not job.usage_final and job.created_at is not None]
    return max(since, min([read - _OVERLAP, *moving]))


class DeploymentJobs:
    """A cache of an instance's recent jobs and their deployments. Lives on the network loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._since: datetime | None = None
        self._read: datetime | None = None
        self._owners: dict[UUID, UUID | None] = {}

    async def read(self, client: QuantumRuntimeClient, deployment_id: str, since: datetime) -> list[Job]:
        """List the jobs that runs of the deployment submitted since a moment, and its older ones that are still live.

        A flow run that Prefect does not know belongs to the deployment that its summary names. One without a summary is
        another installation's, and belongs to none.

        Raises:
            QuantumRuntimeError: The service or Prefect could not be asked; then nothing may be submitted.
        """
        older = await self._read_jobs(client, since)
        recent = {job.id: job for job in self._jobs.values() if job.created_at is None or job.created_at >= since}
        found = list((older | recent).values())
        try:
            await self._read_owners({run for job in found if (run := _flow_run_of(job)) is not None})
        except Exception as error:
            text = f"the deployment's budget cannot be checked: Prefect's API failed ({error!r})"
            raise not_sent(text) from error
        wanted = UUID(deployment_id)
        return [job for job in found if (run := _flow_run_of(job)) is not None and self._owners.get(run) == wanted]

    async def _read_jobs(self, client: QuantumRuntimeClient, since: datetime) -> dict[str, Job]:
        """Read the jobs since a moment into the cache, and return the older ones that are still live."""
        begin, reaches_back = since, since
        if self._read is not None and self._since is not None and self._since <= since:
            begin, reaches_back = _read_on(since, self._read, self._jobs.values()), self._since
        # What they use is still to come, however long they wait. In this order, so that a job is in one of the lists.
        older = [job async for job in each_job(client, pending=True, created_before=since + _OVERLAP)]
        listed = [job async for job in each_job(client, created_after=begin)]
        # Only now: a read that fails or is cancelled has shown nothing.
        self._jobs |= {job.id: job for job in listed if _flow_run_of(job) is not None}
        self._since, self._read = reaches_back, _newest([*self._jobs.values(), *listed], begin)
        return {job.id: job for job in older}

    async def _read_owners(self, runs: set[UUID]) -> None:
        new = runs - self._owners.keys()
        known = await flow_runs_by_id(map(str, new))
        deleted = await deployments_of_deleted(run for run in new if str(run) not in known)
        # What a deleted flow run spent stays spent.
        self._owners |= dict.fromkeys(new) | {run.id: run.deployment_id for run in known.values()} | deleted


class UnsettledJobs:
    """A cache of an instance's jobs that are live, or over without a final usage. Lives on the network loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._read: datetime | None = None

    async def read(self, client: QuantumRuntimeClient) -> list[Job]:
        """List them: all that are live, and those that are over among the newest thousand of the last seven days.

        Raises:
            QuantumRuntimeError: The service could not be asked; then nothing may be submitted.
        """
        begin = days_ago(_LOOK_BACK)
        if self._read is not None:
            begin = _read_on(begin, self._read, self._jobs.values())
        # In this order, so that a job that ends in between is in one of the lists at least.
        live = [job async for job in each_job(client, pending=True)]
        ended = await client.jobs(pending=False, created_after=begin, limit=_MOST_ENDED)
        found = {job.id: job for job in live}
        if len(ended) >= _MOST_ENDED:  # what was known may be among the rest
            found = self._jobs | found
        found |= {job.id: job for job in ended}
        self._read = _newest(found.values(), self._read or begin)
        self._jobs = {job.id: job for job in found.values() if not job.usage_final}
        return list(self._jobs.values())
