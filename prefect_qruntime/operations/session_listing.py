"""List the open sessions of instances with the flow run or process that opened each, and close one by its id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import check_id
from prefect_qruntime.client.inputs.spec import check_flag
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.service import each_job
from prefect_qruntime.credentials import Attended, load_each, read_each
from prefect_qruntime.errors import NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, Session, SessionRef
from prefect_qruntime.observability.artifacts import Record, find_records
from prefect_qruntime.prefect_api import flow_runs_by_id
from prefect_qruntime.tasks.session_notes import SessionNote, is_note, session_notes
from prefect_qruntime.tasks.sessions import close

__all__ = ["OpenSession", "SessionList", "close_by_id", "list_sessions"]

T = TypeVar("T")

_AT_ONCE = 8  # sessions read concurrently
_PAGE = 200


class OpenSession(BaseModel):
    """One session that is not closed, and who opened it as far as notes and its jobs' tags say.

    `flow_run` is the run's name, None if Prefect does not know it. `process` opened it outside a flow, and
    `process_state` is `running`, `ended` or `unknown` (another host's). Without either, another program opened it.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    block: str
    mode: str
    backend: str | None
    state: str | None
    accepting_jobs: bool | None
    opened_at: datetime | None
    age_seconds: float | None
    max_ttl: int | None
    unfinished_jobs: int
    flow_run_id: str | None = None
    flow_run: str | None = None
    flow_run_state: str | None = None
    process: str | None = None
    process_state: str | None = None


class SessionList(BaseModel):
    """Open sessions, oldest first, and the problems that made the list incomplete.

    `unread` are the blocks whose instances could not be read: which sessions are open there is not known.
    """

    model_config = ConfigDict(frozen=True)

    sessions: list[OpenSession]
    problems: list[str]
    unread: list[str] = []


def list_sessions(blocks: Iterable[str] | None = None, *, attended: Attended | None = None) -> SessionList:
    """List open sessions; for code without an event loop. Reads only.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        attended: Give up on an instance that does not answer after some seconds; None to be patient.

    Raises:
        InvalidInput: `blocks` is no list of names.
    """
    return network_loop().run(_list(blocks, attended))


def close_by_id(
    session_id: str,
    blocks: Iterable[str] | None = None,
    *,
    drain: bool = True,
    attended: Attended | None = None,
) -> tuple[str, SessionRef]:
    """Close a session on the instance that has it; for code without an event loop.

    Args:
        session_id: The session.
        blocks: Names of credentials blocks to try; None for all saved ones.
        drain: True lets queued jobs run first, False drops them; a running one finishes either way.
        attended: Give up on an instance that does not answer after some seconds; None to be patient.

    Returns:
        The block that led to it, and the session as read back.

    Raises:
        InvalidInput: An argument is wrong; nothing was sent.
        NotFound: No instance of these blocks has the session.
        QuantumRuntimeError: It could not be closed, or an instance could not be asked for it.
    """
    return network_loop().run(_close(check_id(session_id, field="session"), blocks, drain, attended))


async def _close(
    session_id: str, blocks: Iterable[str] | None, drain: bool, attended: Attended | None
) -> tuple[str, SessionRef]:
    failures: list[QuantumRuntimeError] = []
    check_flag(drain, field="drain")
    loaded, problems = await load_each(blocks)

    async def has_it(_: str, client: QuantumRuntimeClient) -> bool:
        try:
            await client.session(session_id)
        except NotFound:
            return False
        except QuantumRuntimeError as error:
            failures.append(error)
            return False
        return True

    found = await read_each(loaded, problems, has_it, attended)
    for name in (name for name, has in found.items() if has):
        closed = await close(loaded[name], SessionRef(id=session_id), drain)
        if closed.is_closed:
            for note in await session_notes():
                if note.meta.get("session") == session_id:
                    await note.mark_closed()
        return name, closed
    raise (
        failures[0]
        if failures
        else NotFound(
            f"No credentials block leads to an instance with session {session_id!r}.",
            reason=" ".join(problems.values()) or None,
            solution="`prefect-qruntime sessions` lists the open ones.",
            session_id=session_id,
        )
    )


async def _list(blocks: Iterable[str] | None, attended: Attended | None) -> SessionList:
    loaded, problems = await load_each(blocks)
    records = await find_records("session")
    notes = await session_notes(records)
    found: dict[str, OpenSession] = {}  # by id: two blocks may lead to one instance

    async def read(name: str, client: QuantumRuntimeClient) -> tuple[list[OpenSession], dict[str, QuantumRuntimeError]]:
        return await _of_instance(name, client, records, notes)

    wrong, unread = [], set[str]()
    for name, (sessions, failed) in (await read_each(loaded, problems, read, attended)).items():
        for one in sessions:
            found.setdefault(one.id, one)
        wrong += [f"{name}: {what}: {error}" for what, error in failed.items()]
        unread |= {name} if failed else set()
    never = datetime.min.replace(tzinfo=UTC)
    ordered = sorted(found.values(), key=lambda one: one.opened_at or never)
    return SessionList(
        sessions=await _with_flow_runs(ordered),
        problems=sorted([*problems.values(), *wrong]),
        unread=sorted({*problems, *unread}),
    )


async def _of_instance(
    block: str, client: QuantumRuntimeClient, records: list[Record], notes: list[SessionNote]
) -> tuple[list[OpenSession], dict[str, QuantumRuntimeError]]:
    """Read the open sessions of an instance; each list and session that is refused is returned with its error.

    Raises:
        QuantumRuntimeError: The instance does not answer.
    """
    failed: dict[str, QuantumRuntimeError] = {}

    async def apart(what: str, call: Awaitable[T], otherwise: T) -> T:
        try:
            return await call
        except NotFound:
            return otherwise
        except QuantumRuntimeError as error:
            if error.is_outage:  # the next request would meet it, too
                raise
            failed[what] = error
            return otherwise

    jobs: dict[str, list[Job]] = {}
    for job in await apart("the live jobs could not be listed", _live(client), []):
        if job.session_id:
            jobs.setdefault(job.session_id, []).append(job)
    flow_runs = {
        record.meta["session"]: record.meta.get("flow_run")
        for record in records
        if record.meta.get("session") and record.leads_to(client.connection, block)
        if not is_note(record) and not record.is_closed
    }
    processes = {
        note.meta["session"]: note
        for note in notes
        if note.meta.get("session") and note.record.leads_to(client.connection, block)
    }
    listed = await apart("the sessions could not be listed", _listed(client), [])
    wanted = dict.fromkeys([*listed, *jobs, *flow_runs, *processes])
    slots = asyncio.Semaphore(_AT_ONCE)

    async def read(session_id: str) -> Session | None:
        async with slots:
            return await apart(f"session {session_id}", client.session(session_id), None)

    found = []
    for session in await asyncio.gather(*(read(session_id) for session_id in wanted)):
        if session is None or session.ref().is_closed:
            continue
        of_jobs = jobs.get(session.id, [])
        note = processes.get(session.id)
        opened = session.started_at or (note.opened_at if note is not None else None)
        tagged = next((job.flow_run_id for job in of_jobs if job.flow_run_id), None)
        found.append(
            OpenSession(
                id=session.id,
                block=block,
                mode=session.mode,
                backend=session.backend,
                state=session.state,
                accepting_jobs=session.accepting_jobs,
                opened_at=opened,
                age_seconds=_age(opened),
                max_ttl=session.max_ttl,
                unfinished_jobs=len(of_jobs),
                flow_run_id=flow_runs.get(session.id) or (None if note is not None else tagged),
                process=note.opener if note is not None else None,
                process_state=_word(note.is_gone) if note is not None else None,
            )
        )
    return found, failed


async def _live(client: QuantumRuntimeClient) -> list[Job]:
    return [job async for job in each_job(client, pending=True)]


def _age(since: datetime | None) -> float | None:
    return None if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds())


def _word(gone: bool | None) -> str:
    return "unknown" if gone is None else "ended" if gone else "running"


async def _listed(client: QuantumRuntimeClient) -> list[str]:
    """The sessions and batches that the service lists as not over; a legacy host has no such list."""
    found: list[str] = []
    for mode in ("session", "batch"):
        for status in ("pending", "in_progress"):
            try:
                items: list[dict[str, Any]] = await client.workloads(mode=mode, status=status)
            except NotFound:
                return []
            found += [str(item["id"]) for item in items if item.get("id")]
    return found


async def _with_flow_runs(sessions: list[OpenSession]) -> list[OpenSession]:
    """Add the names and states of the flow runs, in few requests."""
    runs = await flow_runs_by_id(one.flow_run_id for one in sessions)
    return [
        one.model_copy(update={"flow_run": run.name, "flow_run_state": run.state.name if run.state else None})
        if (run := runs.get(one.flow_run_id or "")) is not None
        else one
        for one in sessions
    ]
