"""Sweep one instance: close the sessions that finished flow runs and dead processes left open, find their live jobs.

A session is ours if a record in Prefect, the note of a process or the `qr-flow:` tags of all its jobs say so. Sessions
of others, and those that a flow run or a living process still uses, are never touched.

Each list, job and session fails alone: what could not be read or closed is a problem of the report, the rest goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, ConfigDict

from prefect_qruntime.cancellation import after_cancel
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.service import each_job
from prefect_qruntime.errors import AuthenticationError, InvalidInput, NotFound, PermissionDenied, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus, Session, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import Record, find_records, job_owners, mark_closed
from prefect_qruntime.prefect_api import api, is_dropped
from prefect_qruntime.redact import get_logger
from prefect_qruntime.tasks.session_notes import FIRST_JOBS, SessionNote, is_note

__all__ = ["LOOK_BACK", "NOTED_BACK", "Found", "InstanceSweeper", "Owners", "Swept", "is_old"]

log = get_logger(__name__)

LOOK_BACK = timedelta(hours=48)  # within which all jobs are listed; jobs that are or were noted as live always are
NOTED_BACK = timedelta(days=30)  # within which records in Prefect are completed
_MOST_LOOKS = 200  # single jobs read in one sweep of a block
_MOST_SILENT = 2  # steps in a row that find no answer, after which an instance is given up until the next sweep
_LIFE = timedelta(hours=24)  # after which no session is open any more; the service itself ends one after eight hours
_CANCELLING = timedelta(minutes=10)  # in which a flow run that a user cancelled, or its hook, cleans up by itself
_WRITING = timedelta(minutes=1)  # after its flow run's end, in which a process may still write its records
_OPENING = timedelta(minutes=10)
"""How far apart the clocks of Prefect and of the service may be for a session whose id was never recorded."""


_CLOSED, _DRAINS, _CANCELLED = "closed", "drains, takes no more jobs", "cancelled"
_ENDED = "ended before it was cancelled"
_LEFT, _WITH_SESSION = "left alone", "ends with its session"
_CRASHED, _DELETED, _DROPPED, _DEAD, _EXPIRED = "Crashed", "Deleted", "Dropped", "Ended", "Expired"
_DRAINED_AFTER = (_CRASHED, _DELETED, _DROPPED, _DEAD, _EXPIRED)
"""States of an owner after which queued jobs still run: the run may be resumed, or the jobs fetched by their ids."""


class Swept(BaseModel):
    """One session or job that was found, and the flow run or process that left it."""

    model_config = ConfigDict(frozen=True)

    id: str
    block: str
    flow_run: str | None
    flow_state: str
    action: str
    url: str | None = None
    process: str | None = None

    @property
    def is_dealt_with(self) -> bool:
        """Whether nothing is left to do about it."""
        return self.action in (_CLOSED, _DRAINS, _CANCELLED, _ENDED, _WITH_SESSION)


class Owners:
    """The final states of flow runs, each read once.

    Args:
        noted: Flow runs that records of this Prefect server name.
        gone: Finds the proof that the process of a running flow run is gone; such a run is treated as crashed.
        used: Keys of the records of jobs and sessions that a deferred task may use, whatever became of their flow runs.
    """

    def __init__(
        self, noted: set[str], gone: Callable[[FlowRun], Awaitable[str | None]], used: Collection[str] = ()
    ) -> None:
        self._noted = noted
        self._used = used
        self._gone = gone
        self._known: dict[str, str | None] = {}
        self._cancelled: set[str] = set()
        self._since: dict[str, datetime] = {}

    def is_just_over(self, flow_run_id: str | None) -> bool:
        """Whether a flow run ended so recently that its process may still be writing its records."""
        since = self._since.get(flow_run_id or "")
        return since is not None and datetime.now(UTC) - since < _WRITING

    def is_cancelled(self, flow_run_id: str | None) -> bool:
        """Whether a flow run that is over ended by a cancellation."""
        return flow_run_id in self._cancelled

    def may_use(self, record: Record) -> bool:
        """Whether a deferred task may use a job or session, also if its flow run is over."""
        return record.key in self._used

    async def left(self, record: Record) -> bool:
        """Whether the flow run that opened a session is over, and no task that it deferred uses the session."""
        return not self.may_use(record) and await self.over(record.owner) is not None

    async def over(self, flow_run_id: str | None) -> str | None:
        """The name of the final state; None if the flow run may still continue."""
        if flow_run_id is None:
            return None
        if flow_run_id not in self._known:
            self._known[flow_run_id] = await self._ask(flow_run_id)
        return self._known[flow_run_id]

    async def _ask(self, flow_run_id: str) -> str | None:
        try:
            flow_run = await (await api()).read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            # Deleted, if this server has a record of it; else it belongs to another server and may still run.
            return _DELETED if flow_run_id in self._noted else None
        except ValueError:
            return None
        state = flow_run.state
        if state is None:
            return None
        if state.is_running():
            return _CRASHED if await self._gone(flow_run) is not None else None
        self._since[flow_run_id] = state.timestamp
        if is_dropped(state):
            return _DROPPED
        # If a worker dies while it cancels a run, the run never leaves `Cancelling`.
        stuck = state.is_cancelling() and datetime.now(UTC) - state.timestamp > _CANCELLING
        if stuck or state.is_cancelled():
            self._cancelled.add(flow_run_id)
        return state.name if stuck or state.is_final() else None


@dataclass(slots=True)
class Found:
    """The findings of one block. `is_complete` says whether the instance answered to the end."""

    sessions: list[Swept] = field(default_factory=list)
    jobs: list[Swept] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_complete: bool = False


class _NoAnswer(Exception):
    """An instance does not answer at all."""


class InstanceSweeper:
    """The sweep of one instance."""

    def __init__(
        self,
        block: str,
        client: QuantumRuntimeClient,
        owners: Owners,
        records: list[Record],
        notes: list[SessionNote],
        unfinished: Mapping[str, Record],
        dry_run: bool,
        found: Found,
        same: Sequence[InstanceSweeper],
    ) -> None:
        self._found = found
        self._same = same  # all that sweep this instance
        self._block = block
        self._client = client
        self._owners = owners
        self._records = [record for record in records if not is_note(record) and self.reaches(record)]
        self._notes = [note for note in notes if self.reaches(note.record)]
        self._dry_run = dry_run
        self._told: set[str] = set()  # jobs in the report
        self._tried: set[str] = set()  # sessions that were to be closed
        self._seen: set[str] = set()  # those of them that are handled
        self._over: set[str] = set()  # those of them that are known to be closed
        self._unfinished = unfinished
        self._silent = 0
        # Flow runs by session; None stands for a job of others.
        self._users: dict[str, set[str | None]] = {}
        self._listed = False  # whether all jobs were listed, so that all users of each session are known
        self._noted: set[str] = set()
        self._in_jobs: dict[str, None] = {}
        self._session_of: dict[str, str] = {}
        self._known: set[str | None] | None = None  # jobs that Prefect has records of, once read
        for record in records:
            if (session_id := record.meta.get("session")) and not is_note(record):
                self._noted.add(session_id)
                self._users.setdefault(session_id, set()).add(None if owners.may_use(record) else record.owner)
        # Of all, as two blocks may lead to one instance by different addresses.
        self._gone = {note.record.key: note.is_gone for note in notes}
        for note in self._notes:
            if session_id := note.meta.get("session"):
                self._noted.add(session_id)
                if not self._gone[note.record.key]:  # it may be in use
                    self._users.setdefault(session_id, set()).add(None)

    def reaches(self, record: Record) -> bool:
        """Whether a recorded job or session is in this instance."""
        return record.leads_to(self._client.connection, self._block)

    def _is_ours(self, record: Record) -> bool:
        """Whether this sweeper sweeps a record: that of its block, or each of its instance if that is gone."""
        return self.reaches(record) and (
            self._is_owner(record) or not any(one._is_owner(record) and one.reaches(record) for one in self._same)
        )

    def _may_sweep(self, record: Record) -> bool:
        """Whether this sweeper tries to close a recorded session, as the key of its block may have been revoked."""
        return bool(record.meta.get("session")) or self._is_ours(record)

    def _is_owner(self, record: Record) -> bool:
        """Whether a job or session was made with this block, so that its key sees it."""
        return record.place.block == self._block

    @contextlib.contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """Report an error of a step as a problem, so that the next step is done.

        Raises:
            _NoAnswer: Several steps in a row found no answer; the next ones would find none either.
        """
        try:
            yield
        except (QuantumRuntimeError, ValueError) as error:
            outage = isinstance(error, QuantumRuntimeError) and error.is_outage
            self._silent = self._silent + 1 if outage or isinstance(error, AuthenticationError) else 0
            if self._silent < _MOST_SILENT:
                self._found.problems.append(f"{self._block}: {what}: {error}")
            else:
                raise _NoAnswer from None
        else:
            self._silent = 0

    async def sweep(self, cancel_jobs: bool) -> None:
        """Sweep everything, and keep what was found even if the instance stops answering."""
        with contextlib.suppress(_NoAnswer):
            await self._sweep_jobs(cancel_jobs)  # first: they show who uses which session
            await self._sweep_sessions()
            await self._sweep_sessions_of_processes()
            await self._sweep_sessions_of_jobs()
            self._found.is_complete = not self._found.problems
        closed = {entry.id for one in self._same for entry in one._found.sessions if entry.action == _CLOSED}
        for one in self._same:  # a block may have closed the session of a job that another one reports
            one._found.jobs[:] = [one._after_sessions(entry, closed) for entry in one._found.jobs]

    def _after_sessions(self, job: Swept, closed: set[str]) -> Swept:
        """Update a job's entry after sessions were closed: a session that was not drained dropped its queued jobs."""
        if job.action == _LEFT and self._session_of.get(job.id) in closed:
            return job.model_copy(update={"action": _WITH_SESSION})
        return job

    async def _sweep_jobs(self, cancel_jobs: bool) -> None:
        """Report live jobs whose flow run is over, and collect who uses which session."""
        for job in await self._jobs():
            with self._apart(f"job {job.id}"):
                await self._sweep_job(job, cancel_jobs)

    async def _sweep_job(self, job: Job, cancel_jobs: bool) -> None:
        owner = job.flow_run_id
        users = {owner}
        state = None
        if job.session_id:
            self._in_jobs[job.session_id] = None
            self._session_of[job.id] = job.session_id
            self._users.setdefault(job.session_id, set()).add(owner)
        if owner is not None and job.is_terminal:
            await self._complete_record(job, owner)
        if owner is not None and not job.is_terminal:
            state = await self._owners.over(owner)
            if state is not None:
                # A later flow run may have attached to it by an explicit key; the tag names the first.
                users |= await job_owners(job.id, since=datetime.now(UTC) - NOTED_BACK)
                state = await self._all_over(users)
        if job.session_id:
            self._users[job.session_id] |= users
        if owner is None or state is None or any(job.id in one._told for one in self._same):
            return
        action = _LEFT
        noted = self._unfinished.get(job.id)
        # As its hook would have done: Prefect runs none for a run that has no process, or whose worker died.
        cancels = noted is not None and (noted.meta.get("on_cancel") == "cancel" or "cancelled_with" in noted.meta)
        missed = cancels and all(map(self._owners.is_cancelled, users))
        if not missed and noted is not None and self._owners.may_use(noted):
            return
        self._told.add(job.id)
        if missed or (cancel_jobs and state not in (_CRASHED, _DROPPED)):
            action = "would be cancelled" if self._dry_run else await self._cancel(job.id)
        self._found.jobs.append(
            Swept(id=job.id, block=self._block, flow_run=owner, flow_state=state, action=action, url=job.url)
        )

    async def _jobs(self) -> list[Job]:
        """List the jobs of the last days, all live jobs, and those whose end was never recorded."""
        found: dict[str, Job] = {}
        lists = 0
        with self._apart("the jobs of the last days could not be listed"):
            since = datetime.now(UTC) - LOOK_BACK
            found |= {job.id: job async for job in each_job(self._client, created_after=since)}
            lists += 1
        with self._apart("the live jobs could not be listed"):
            found |= {job.id: job async for job in each_job(self._client, pending=True)}
            lists += 1
        self._listed = lists == 2
        missing = [
            job_id for job_id, record in self._unfinished.items() if job_id not in found and self._is_ours(record)
        ]
        for job_id in missing[:_MOST_LOOKS]:
            record = self._unfinished[job_id]
            if session_id := record.meta.get("session"):
                self._users.setdefault(session_id, set()).add(record.owner)
            with self._apart(f"job {job_id}"), contextlib.suppress(NotFound, InvalidInput):  # deleted
                found[job_id] = await self._client.job(job_id)
        return list(found.values())

    async def _users_of(self, session_id: str) -> set[str | None]:
        """The flow runs that use a session. Without the lists of jobs, the service is asked for the session's jobs."""
        if not self._listed:
            users = {job.flow_run_id async for job in each_job(self._client, session_id=session_id)}
            self._users.setdefault(session_id, set()).update(users)
        return self._users.get(session_id, set())

    async def _complete_record(self, job: Job, owner: str) -> None:
        """Record the end and the final usage of a job whose process had ended before."""
        if self._dry_run:
            return
        noted = self._unfinished.get(job.id)
        if noted is None:
            incomplete = await self._was_never_noted(job, owner)
        else:
            incomplete = job.usage_final or not noted.is_over
        if incomplete:
            await notifications.job_ended(job, [], flow_run_id=owner)

    async def _was_never_noted(self, job: Job, owner: str) -> bool:
        """Whether a finished flow run of this Prefect server left a job unrecorded, because Prefect's API failed."""
        if self._known is None:
            found = await find_records("job", since=datetime.now(UTC) - NOTED_BACK)
            self._known = {record.meta.get("id") for record in found}
        return job.id not in self._known and await self._owners.over(owner) is not None

    async def _cancel(self, job_id: str) -> str:
        try:
            job = await self._client.cancel(job_id)
        except QuantumRuntimeError as error:
            return f"could not be cancelled: {error.message}"
        if job.status is JobStatus.CANCELLED:
            return _CANCELLED
        return _ENDED if job.is_terminal else after_cancel(job)

    async def _all_over(self, users: Iterable[str | None]) -> str | None:
        """A final state if all these flow runs are over, preferably one after which jobs still run; else None."""
        states = [await self._owners.over(user) for user in users]
        if not states or None in states:
            return None
        return next((state for state in states if state in _DRAINED_AFTER), states[0])

    async def _sweep_sessions(self) -> None:
        """Close the recorded sessions whose flow runs are over."""
        for record in filter(self._may_sweep, self._records):
            owner, known = record.owner, record.meta.get("session")
            if record.is_closed or owner is None or not await self._owners.left(record):
                continue
            with self._apart(f"session {known or 'without an id'} of flow run {owner}"):
                found = [known] if known else await self._left_unnoted(record, f"flow run {owner}")
                for session_id in found or ():
                    # If it was passed to another flow run, it is still in use.
                    state = await self._all_over({owner, *(await self._users_of(session_id) - {None})})
                    if state is None:
                        break
                    await self._close(session_id, state, record, flow_run=owner)
                else:
                    if self._is_done(record, found):
                        with contextlib.suppress(Exception):
                            await mark_closed(record)

    async def _sweep_sessions_of_processes(self) -> None:
        """Close the sessions of scripts and notebooks whose process is gone, or that outlived their limit.

        Whether a process on another host lives is not known, so its session is left alone while it may be in use.
        """
        for note in self._notes:
            if not self._may_sweep(note.record):
                continue
            known, gone = note.meta.get("session"), self._gone[note.record.key]
            with self._apart(f"session {known or 'without an id'} of {note.opener}"):
                found = [known] if known else await self._opened_by(note) if gone else None
                for session_id in found or ():
                    await self._sweep_session_of_process(note, session_id, gone)
                if self._is_done(note.record, found):
                    with contextlib.suppress(Exception):
                        await note.mark_closed()

    def _is_done(self, record: Record, found: list[str] | None) -> bool:
        """Whether a record may be marked as closed; the others are swept again.

        Args:
            record: The record.
            found: Its sessions; None if it is not known which. The service may list one late whose id is not recorded.
        """
        if found is None or self._dry_run:
            return False
        if not found:
            return _is_older(record, _OPENING if self._is_owner(record) else _LIFE)
        return self._over.issuperset(found)

    async def _opened_by(self, note: SessionNote) -> list[str] | None:
        """Find the session that a process opened before it died, without recording its id; see `_left_unnoted`."""
        keys = note.meta.get(FIRST_JOBS, "").split()
        if not keys:
            return await self._left_unnoted(note.record, note.opener)
        opened = {job.session_id: None for key in keys async for job in each_job(self._client, tags=(key,))}
        # One that another process has noted is in its use, and is swept with its note.
        return [session_id for session_id in opened if session_id is not None and session_id not in self._noted]

    async def _sweep_session_of_process(self, note: SessionNote, session_id: str, gone: bool | None) -> None:
        session = await self._read(session_id, note.record)
        if session is not None and session.ref().is_closed:
            self._over.add(session_id)
        elif gone or (is_old(note.record) if session is None else self._has_outlived_its_limit(session)):
            users = await self._users_of(session_id) - {None}
            if users and await self._all_over(users) is None:
                return
            await self._close(session_id, _DEAD if gone else _EXPIRED, note.record, process=note.opener)

    def _has_outlived_its_limit(self, session: Session) -> bool:
        """Whether the service should have closed the session long ago, by its own clock."""
        now = datetime.now(UTC) + timedelta(seconds=self._client.known_clock_skew() or 0.0)
        begun = session.activated_at or session.started_at
        limit = timedelta(seconds=session.max_ttl) if session.max_ttl else None
        return begun is not None and limit is not None and now - begun > limit + _OPENING

    async def _left_unnoted(self, record: Record, opener: str) -> list[str] | None:
        """Find the sessions of processes that died before they recorded an id, including this record's.

        Which session belongs to which of several equal records is not known and need not be: if there are no more
        sessions than records, and each record's process is gone, all of them were abandoned.

        Returns:
            The sessions; None, with a problem reported, if one may belong to another process.
        """
        found = await self._never_noted(record)
        rivals = [one for one in self._unnamed() if _may_be_the_same(one, record)] if found else []
        gone = [one for one in rivals if await self._has_no_opener(one)]
        # Jobs without a flow run may be of the process that died or of a user elsewhere.
        unclear = any([None in await self._users_of(session_id) for session_id in found])
        if len(found) <= len(gone) == len(rivals) and not unclear:
            return found
        self._found.problems.append(
            f"{self._block}: it is not known whether {opener} opened {' or '.join(found)}, so none was closed. Close "
            "those that no flow uses with `prefect-qruntime sessions --close ID`."
        )
        return None

    def _unnamed(self) -> list[Record]:
        """The records of sessions on this instance whose id was never recorded."""
        of_all = [one for sweeper in self._same for one in (*sweeper._records, *(n.record for n in sweeper._notes))]
        unnamed = {one.key: one for one in of_all if not one.meta.get("session") and not one.is_closed}
        return list(unnamed.values())

    async def _has_no_opener(self, record: Record) -> bool:
        """Whether the flow run or the process that wrote a record is over."""
        if record.key in self._gone:
            return bool(self._gone[record.key])
        return await self._owners.left(record)

    async def _never_noted(self, record: Record) -> list[str]:
        """Find sessions that a process opened before it died, without recording the id.

        Only a session that no other record names and in which no other flow run has jobs, that matches the record in
        everything and was opened at that time, can be one.
        """
        if record.updated is None:
            return []
        kind = "batch" if record.meta.get("mode") == "batch" else "session"
        try:
            items = await self._client.workloads(
                mode=kind,
                backend=record.meta.get("backend"),
                created_after=record.updated - _OPENING,
                created_before=record.updated + _OPENING,
            )
        except NotFound:
            return []  # such a host opens sessions by their first jobs, whose records name them
        found = []
        for item in items:
            session = await self._client.session(str(item.get("id")))  # it is listed, so it exists
            if session.state != "open" or str(session.max_ttl) != record.meta.get("max_ttl"):
                continue
            begun = session.started_at
            fits = begun is None or abs(begun - record.updated) <= _OPENING
            if not fits or session.id in self._noted or session.id in self._seen:
                continue
            if is_note(record) or await self._users_of(session.id) <= {record.owner}:
                found.append(session.id)
        return found

    async def _sweep_sessions_of_jobs(self) -> None:
        """Close sessions that are known by the tags of their jobs, if all jobs are ours."""
        for session_id in self._in_jobs:
            with self._apart(f"session {session_id}"):
                users = await self._users_of(session_id)
                owner = next(iter(users))
                state = await self._all_over(users)
                if owner is not None and state is not None:
                    await self._close(session_id, state, flow_run=owner)

    async def _read(self, session_id: str, record: Record | None) -> Session | None:
        try:
            return await self._client.session(session_id)
        except NotFound:
            return None
        except PermissionDenied:
            if record is None or self._is_owner(record):
                raise
            return None  # it may be another user's

    async def _close(
        self,
        session_id: str,
        state: str,
        record: Record | None = None,
        *,
        flow_run: str | None = None,
        process: str | None = None,
    ) -> None:
        """Close a session unless that was done. `_over` has it if it is known to be closed."""
        if session_id in self._tried or any(session_id in sweeper._seen for sweeper in self._same):
            return
        self._tried.add(session_id)
        session = await self._read(session_id, record)
        if session is None and record is not None and not (self._is_owner(record) or is_old(record)):
            if self._is_ours(record) and all(session_id in sweeper._tried for sweeper in self._same):
                block = record.place.block
                lost = (
                    f"block {block!r}, with which it was opened, leads there no more"
                    if block
                    else "its block was not saved"
                )
                self._found.problems.append(
                    f"{self._block}: session {session_id} may be open. A key sees the sessions of its own user only, "
                    f"and {lost}."
                )
            return
        if session.ref().is_closed if session is not None else record is not None and is_old(record):
            self._seen.add(session_id)
            self._over.add(session_id)
            return
        drain = state in _DRAINED_AFTER
        if self._dry_run and session is None:
            return
        if self._dry_run:
            self._seen.add(session_id)
            action = "would be drained" if drain else "would be closed"
        else:
            # A service that restarts may answer once that it knows no such session: closing it asks again.
            try:
                read = await self._client.close_session(session_id, drain=drain)
            except QuantumRuntimeError as error:  # the others are still swept
                action = f"could not be closed: {error.message}"
            else:
                self._seen.add(session_id)
                if read is None or read.ref().is_closed:
                    self._over.add(session_id)
                if read is None and session is None:  # it was gone before
                    return
                ref = SessionRef(
                    id=session_id,
                    backend=(session or read or SessionRef()).backend,
                    state=read.state if read else "closed",
                )
                notifications.session_event("swept", ref, flow_run_id=flow_run, flow_state=state, drain=drain)
                action = _CLOSED if session_id in self._over else _DRAINS
        self._found.sessions.append(
            Swept(
                id=session_id,
                block=self._block,
                flow_run=flow_run,
                flow_state=state,
                action=action,
                process=process,
            )
        )


def _is_older(record: Record, than: timedelta) -> bool:
    return record.updated is not None and datetime.now(UTC) - record.updated > than


def is_old(record: Record) -> bool:
    """Whether a recorded session cannot be open any more."""
    return _is_older(record, _LIFE)


def _may_be_the_same(one: Record, other: Record) -> bool:
    """Whether a session may have been opened for either of two records that name none."""
    if one.updated is None or other.updated is None:
        return False
    equal = all(one.meta.get(name) == other.meta.get(name) for name in ("mode", "backend", "max_ttl"))
    return equal and abs(one.updated - other.updated) <= 2 * _OPENING
