"""Open and close sessions and batches: the tasks and their bodies.

In the legacy dialect a session's id is its first job's id. Until that job is accepted the `SessionRef` has
no id but a token; all callers of this process that hold the token share the binding.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from cachetools import LRUCache

from prefect_qruntime.admission import policy
from prefect_qruntime.admission.budget import BudgetLike, as_budget
from prefect_qruntime.admission.guard import session_guard
from prefect_qruntime.admission.locks import submission_lock
from prefect_qruntime.cancellation import ends_if_cancelled
from prefect_qruntime.client.connection import check_name, check_session
from prefect_qruntime.client.network_loop import network_loop, on_network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_name, with_new_key
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    QuantumRuntimeError,
    SessionClosed,
    SubmissionUncertain,
)
from prefect_qruntime.models import Backend, JobRef, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import find_records
from prefect_qruntime.prefect_api import current_flow_run_id
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import RunContext, current_run, may_run_twice, token_of_task_run
from prefect_qruntime.settings import current_settings
from prefect_qruntime.tasks import session_notes
from prefect_qruntime.tasks.definitions import (
    SessionLike,
    TaskT,
    as_session,
    backend_name,
    blocking,
    creates,
    in_flow,
    may_retry,
    repeats,
)

__all__ = [
    "aclose_session",
    "aopen_session",
    "bind",
    "check_not_left",
    "close",
    "close_session",
    "first_through",
    "note_lost",
    "note_refused",
    "note_session",
    "notes_opened",
    "open_session",
]

log = get_logger(__name__)


@dataclass(slots=True)
class _Unbound:
    """What this process knows of a session that is being opened, or that its first job opens.

    Attributes:
        ref: The session, once its first job is accepted.
        submitting: Whether it is being opened, or its first job submitted.
        doubtful: The keys of first jobs of which it is not known whether they were accepted.
        left: How it was closed before it had an id: whether queued jobs still run.
    """

    ref: SessionRef | None = None
    submitting: bool = False
    doubtful: list[str] = field(default_factory=list)
    left: bool | None = None


class _UnboundSessions(LRUCache[str, _Unbound]):
    """Sessions of this process that their first job opens, by token. Lives on the network loop: a fork has its own."""

    def __init__(self) -> None:
        super().__init__(1024)


_opening: ContextVar[list[SessionRef] | None] = ContextVar("qruntime_opening", default=None)


@contextmanager
def notes_opened(opened: list[SessionRef]) -> Iterator[None]:
    """Add to a list what is opened in this block, also if the caller is interrupted before it gets the session."""
    token = _opening.set(opened)
    try:
        yield
    finally:
        _opening.reset(token)


@in_flow
# If the caller gives it retries: a second try opens another session, so not where the first may have opened one.
@creates("open session", "open {mode} session on {backend}", retry_condition_fn=may_retry)
async def aopen_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
    budget: BudgetLike | None = None,
) -> SessionRef:
    """Open a session or a batch. Costs money from its first job on; prefer `runtime_session`, which closes it.

    Opened outside a flow, by a script or notebook, it takes no more jobs when that process ends.

    Args:
        credentials: The credentials block.
        backend: The backend or its name.
        mode: `dedicated` keeps the QPU between jobs and is charged by the clock; `batch` is not. The legacy dialect
            has no batches and opens a session in either mode.
        max_ttl: Longest life in seconds; default from the settings (two hours).
        budget: A `Budget` or the name of a saved one. A dedicated session lives no longer than it lasts, and reserves
            that time of it until the session is over.

    Returns:
        The session. In the legacy dialect it has no id until its first job is accepted.

    Raises:
        BudgetExhausted: The budget has no room for a session; nothing was opened.
        JobCancelled: The flow run is being cancelled; nothing was opened.
        PermissionDenied: The plan has no dedicated sessions (code 1352): use `batch`.
        SubmissionUncertain: The answer was lost and the search did not decide it.
    """
    name = check_name(backend_name(backend), field="backend")
    check_session(mode, max_ttl)
    opening = functools.partial(_open, credentials, name, mode, max_ttl, budget, await current_run())
    flow_run_id, again = current_flow_run_id(), token_of_task_run()
    if flow_run_id is None or again is None or not may_run_twice():
        return await _handed_on(credentials, opening, secrets.token_hex(8))
    async with submission_lock(f"session {again}", "this session"):
        noted = [record.meta for record in await find_records("session", flow_run_ids=[UUID(flow_run_id)])]
        for facts in noted:
            if facts.get("token") == again and facts.get("session"):
                return _opened_before(facts, again)
        # Of one that was on its way the record is kept: the sweep searches for it.
        unknown = any(facts.get("id") == again for facts in noted)
        return await _handed_on(credentials, opening, secrets.token_hex(8) if unknown else again)


def _opened_before(facts: Mapping[str, str], token: str) -> SessionRef:
    """The session that this task run opened on a worker that was lost since then."""
    known = {name: facts.get(name) for name in ("mode", "backend", "max_ttl", "state")}
    session = SessionRef.model_validate({"id": facts["session"], **known, "token": token})
    notifications.log_to_run(f"{session.kind} {session.id} was opened by this task run before")
    return session


async def _handed_on(
    credentials: QuantumRuntimeCredentials,
    opening: Callable[[str, list[SessionRef]], Awaitable[SessionRef]],
    token: str,
) -> SessionRef:
    """Open a session. If this fails or is cancelled when it is open, it is closed again: no caller gets it.

    Args:
        credentials: The credentials block.
        opening: Opens it, and adds it to the list as soon as it is open.
        token: The session's token.
    """
    opened: list[SessionRef] = []
    _unbound()[token] = _Unbound(submitting=True)
    try:
        session = await opening(token, opened)
    except BaseException:
        _unbound().pop(token, None)
        for left in opened:
            await _close_left(credentials, left, drain=False)
        raise
    if session.id is not None:
        _unbound().pop(token, None)
    if (noted := _opening.get()) is not None:
        noted.append(session)
    return session


async def _open(
    credentials: QuantumRuntimeCredentials,
    name: str,
    mode: str,
    max_ttl: int | None,
    budget: BudgetLike | None,
    where: RunContext,
    token: str,
    opened: list[SessionRef],
) -> SessionRef:
    client = credentials.get_client()
    opens = client.session_mode(mode)
    if opens != mode:
        notifications.log_to_run("the legacy dialect has no batches: this opens a session, charged by the clock")
    asked = policy.Asked(name, session_seconds=(max_ttl or 0) if opens == "dedicated" else None)
    _, longest = await policy.admit(client.connection, where, block_name(credentials), [asked])
    ttl = max_ttl if max_ttl is not None else current_settings().session_max_ttl_seconds
    ttl = min(ttl, longest) if longest is not None and opens == "dedicated" else ttl
    async with (
        ends_if_cancelled(client, where=where) as watch,
        session_guard(client, where, as_budget(budget), token, mode=opens, life=ttl) as admitted,
    ):
        if watch is not None:
            watch.arm(False)
            await watch.check()
        # Again: the wait for the budget's lock may have been long.
        life = admitted.life if opens == "dedicated" else None
        await policy.admit(client.connection, where, block_name(credentials), [replace(asked, session_seconds=life)])
        wanted = SessionRef(mode=opens, backend=name, max_ttl=admitted.life, token=token)
        # Recorded before it is opened: if this process dies in between, the sweep knows what to search for.
        await note_session(credentials, token, wanted, where, new=True)
        try:
            found = await client.open_session(name, mode=opens, max_ttl=admitted.life)
        except QuantumRuntimeError as error:
            if not isinstance(error, SubmissionUncertain):  # else the sweep would search for it
                await note_session(credentials, token, wanted.model_copy(update={"state": "closed"}), where)
            raise
        session = found.model_copy(update={"token": token, "max_ttl": found.max_ttl or admitted.life})
        if session.id is not None:
            opened.append(session)
        await admitted.opened(session)
    if admitted.life < ttl:
        notifications.log_to_run(f"the budget leaves the session {admitted.life} s")
    kind = session.kind
    if session.id is None:
        if session.token is not None:
            _unbound()[session.token] = _Unbound()
        notifications.log_to_run(f"{kind} on {name}: opens with its first job, at most {session.max_ttl} s")
        return session
    await note_session(credentials, session.token, session, where)
    notifications.log_to_run(f"opened {kind} {session.id} on {session.backend or name}, at most {session.max_ttl} s")
    notifications.session_event("opened", session, max_ttl=session.max_ttl)
    return session


def _drains_on_signals(opens: TaskT) -> TaskT:
    """Make a task that opens a session prepare its caller's thread for the signals that end the process.

    It changes the task that it is given, and returns it.
    """
    made: Any = opens
    fn = made.fn

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        session_notes.drain_on_signals()
        return fn(*args, **kwargs)

    @functools.wraps(fn)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        return await call(*args, **kwargs)

    made.fn = acall if made.isasync else call
    return opens


open_session = _drains_on_signals(blocking(aopen_session))
"""As `aopen_session`, for sync flows."""
_drains_on_signals(aopen_session)


@in_flow
@repeats("close session", "close {session}")
async def aclose_session(
    credentials: QuantumRuntimeCredentials, session: SessionLike, *, drain: bool = True
) -> SessionRef:
    """Close a session or batch and read back that it is closed.

    Args:
        credentials: The credentials block.
        session: The session or its id.
        drain: True lets queued jobs run first, False drops them; a running one finishes either way.

    Returns:
        The session as read back.

    Raises:
        NotFound: The instance does not know the session, and no record shows that it was opened there: the id is
            wrong, or the session is another instance's. It may still be open.
    """
    ref = as_session(session)
    if ref is None:
        raise InvalidInput("must be a SessionRef or a session id", field="session")
    return await close(credentials, ref, drain)


close_session = blocking(aclose_session)
"""As `aclose_session`, for sync flows."""


@on_network_loop
async def close(credentials: QuantumRuntimeCredentials, session: SessionRef, drain: bool) -> SessionRef:
    """Close a session without a task run, read it back, and report. A record that fails does not stop the closing.

    A key that was deleted since the block was loaded leaves no session open, if the saved block has a new one.
    """
    try:
        return await _close(credentials, session, drain)
    except AuthenticationError:
        saved = await with_new_key(credentials)
        if saved is None:
            raise
        return await _close(saved, session, drain)


async def _close(credentials: QuantumRuntimeCredentials, session: SessionRef, drain: bool) -> SessionRef:
    token, unbound = session.token, _of(session) if session.id is None else None
    session = unbound.ref or session if unbound is not None else session
    if unbound is not None:
        unbound.left = drain
        if unbound.submitting:
            notifications.log_to_run(
                f"the first job of the {session.kind} is being submitted: it closes when that job is accepted"
            )
            return session
        for opened in await _opened_in_doubt(credentials, unbound):
            if session.id is None:
                session = session.model_copy(update={"id": opened})
            elif session.id != opened:
                await credentials.get_client().close_session(opened, drain=drain)
    if session.id is None and unbound is not None and unbound.doubtful:
        notifications.log_to_run(
            f"It is not known whether the first job of the {session.kind} was accepted. If it was, the {session.kind} "
            f"may be open and charging. Look for the tag {' or '.join(unbound.doubtful)} in the instance's workloads.",
            level=logging.WARNING,
        )
        return session
    if session.id is None:
        notifications.log_to_run(f"the {session.kind} was never opened: no job was submitted in it")
        closed = session.model_copy(update={"state": "closed", "accepting_jobs": False})
        await _note_closed(credentials, token, closed)
        return closed
    read = await credentials.get_client().close_session(session.id, drain=drain)
    if read is None:
        if not await _was_opened_on(credentials, session.id):
            raise NotFound(
                f"The instance knows no {session.kind} {session.id}, and no record says that it was opened there.",
                solution=(
                    "It may still be open and charging: check the id, and use the credentials of the instance that "
                    "has it. `prefect-qruntime sessions` lists what is open on all instances."
                ),
            )
        notifications.log_to_run(f"{session.kind} {session.id} is no longer known to the service")
        closed = session.model_copy(update={"state": "closed", "accepting_jobs": False})
    else:
        # The service does not always repeat the mode, and a bare id says nothing of it.
        closed = read.ref()
        closed = closed if session.mode == "dedicated" else closed.model_copy(update={"mode": session.mode})
        if closed.is_closed:
            notifications.log_to_run(f"{closed.kind} {session.id} is closed")
        elif drain and closed.accepting_jobs is False:
            notifications.log_to_run(
                f"{closed.kind} {session.id} takes no more jobs and closes when its queued ones are done"
            )
        else:
            notifications.log_to_run(
                f"{closed.kind} {session.id} was asked to close but is still {closed.state!r}; "
                "`prefect-qruntime sweep` will try again.",
                level=logging.WARNING,
            )
    await _note_closed(credentials, token, closed)
    notifications.session_event("closed", closed, drain=drain)
    return closed


async def _was_opened_on(credentials: QuantumRuntimeCredentials, session_id: str) -> bool:
    """Whether a record shows that a session was opened on this instance. What cannot be read shows nothing.

    Each instance says of the sessions of all others that it does not know them.
    """
    records = [note.record for note in await session_notes.session_notes([])]
    try:
        records += await find_records("session", identifiers=[session_id])
    except Exception as error:
        log.warning("The record of session %s could not be read: %r", session_id, error)
    connection, block = credentials.get_client().connection, block_name(credentials) or ""
    return any(record.meta.get("session") == session_id and record.leads_to(connection, block) for record in records)


async def _note_closed(credentials: QuantumRuntimeCredentials, token: str | None, closed: SessionRef) -> None:
    """Record the end in Prefect; the session is closed even if that fails."""
    try:
        await note_session(credentials, token, closed, await current_run())
    except Exception as error:
        log.warning("The record of session %s could not be written: %r", closed.id, error)


async def note_session(
    credentials: QuantumRuntimeCredentials,
    token: str | None,
    session: SessionRef,
    where: RunContext,
    *,
    new: bool = False,
) -> None:
    """Update the record of a session that a process opened outside a flow."""
    outside = session_notes.token_of(session.model_copy(update={"token": token}))
    if outside is None and new and current_flow_run_id() is None:
        outside = token
    if outside is not None:
        await session_notes.note(credentials, outside, session, drain=_drain)
    elif token is not None:
        await session_notes.record_session(credentials, token, session, flow_run_id=where.flow_run_id, new=new)


async def _drain(credentials: QuantumRuntimeCredentials, session: SessionRef) -> bool:
    """Drain a session, unless it is being opened and has no id yet. Returns whether nothing is left to be done."""
    if session.id is None:
        unbound = _unbound().get(session.token or "")
        if unbound is None:  # opening it failed or was interrupted, and no job is in it: the sweep searches for it
            return True
        if unbound.submitting:
            return False
    await close(credentials, session, drain=True)
    return True


async def _opened_in_doubt(credentials: QuantumRuntimeCredentials, unbound: _Unbound) -> list[str]:
    """The sessions that first jobs have opened of which it was not known whether they were accepted."""
    client = credentials.get_client()
    jobs = [job for key in unbound.doubtful for job in await client.jobs(tags=(key,))]
    return [job.session_id for job in jobs if job.session_id is not None]


def _unbound() -> _UnboundSessions:
    return network_loop().state(_UnboundSessions)


def _of(session: SessionRef) -> _Unbound:
    """What is known of a session without an id.

    Raises:
        InvalidInput: It comes from another process, where its binding cannot be shared.
    """
    unbound = _unbound().get(session.token or "")
    if unbound is None:
        raise InvalidInput(
            "this session has no id yet and was opened in another process; submit its first job there and pass "
            "that job's .session on",
            field="session",
        )
    return unbound


def check_not_left(session: SessionRef) -> None:
    """Refuse the first job of a session that was closed before: it would open it again.

    Raises:
        SessionClosed: It was; nothing was sent.
    """
    unbound = _unbound().get(session.token or "") if session.id is None else None
    if unbound is not None and unbound.left is not None and unbound.ref is None:
        raise SessionClosed("The session was closed before its first job.", solution="Nothing was sent. Open another.")


def note_lost(session: SessionRef | None, key: str) -> None:
    """Note that it is not known whether the first job with this key was accepted, and opened the session."""
    if session is not None and session.id is None:
        _of(session).doubtful.append(key)


def note_refused(session: SessionRef | None, keys: Collection[str]) -> None:
    """Note that no first job with these keys was accepted, also of those whose answer was taken for lost."""
    if session is not None and session.id is None:
        unbound = _of(session)
        unbound.doubtful = [key for key in unbound.doubtful if key not in keys]


def bind(session: SessionRef, ref: JobRef) -> None:
    """Record the id that the first job brought."""
    unbound = _unbound().get(session.token or "")
    if unbound is not None and ref.session is not None and ref.session.id is not None:
        unbound.ref = ref.session
        unbound.doubtful = [key for key in unbound.doubtful if key != ref.submission_key]


@asynccontextmanager
async def first_through(
    credentials: QuantumRuntimeCredentials, session: SessionRef | None
) -> AsyncIterator[SessionRef | None]:
    """Let one submission through while a session has no id, and hold the others back. Runs on the network loop.

    If the session is closed meanwhile, it is closed for good when that submission is over.

    Raises:
        InvalidInput: The unbound session comes from another process, where its binding cannot be shared.
        SessionClosed: It was closed before its first job.
    """
    if session is None or session.id is not None:
        yield session
        return
    unbound = _of(session)
    free = network_loop().lock(f"session:{session.token}") if unbound.ref is None else contextlib.nullcontext()
    async with free:
        if unbound.ref is not None:
            yield unbound.ref
            return
        check_not_left(session)
        unbound.submitting = True
        try:
            yield session
        finally:
            unbound.submitting = False
            if unbound.left is not None:
                await _close_left(credentials, session, drain=unbound.left)


async def _close_left(credentials: QuantumRuntimeCredentials, session: SessionRef, *, drain: bool) -> None:
    """Close a session that its caller left, or did not get. What its caller was doing is what counts."""
    try:
        await close(credentials, session, drain)
    except QuantumRuntimeError as error:
        notifications.log_to_run(
            f"The {session.kind} could not be closed: {error}. It may still be open and charging. `prefect-qruntime "
            "sweep` closes it once its flow run is over.",
            level=logging.ERROR,
        )
