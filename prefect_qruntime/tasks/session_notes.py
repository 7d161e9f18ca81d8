"""Record sessions, so that the hooks and the sweep find and close those whose process is gone.

The session of a flow run is recorded in Prefect. So is one that a script or notebook opens outside a flow, or in a file
under Prefect's home if no API is configured or it does not answer within seconds. Such a note names the session, the
instance and the process that opened it, and holds no secret. When the process ends normally or by SIGTERM or SIGHUP, it
drains the sessions it left open; when it is killed, the sweep does.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from prefect.settings import get_current_settings

from prefect_qruntime.client.network_loop import NetworkLoop, network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_name
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import SessionRef
from prefect_qruntime.observability.artifacts import Record, drop_record, find_records, mark_closed, upsert_session
from prefect_qruntime.observability.markdown import card, session_description, session_title
from prefect_qruntime.observability.run_summary import in_background
from prefect_qruntime.prefect_api import current_flow_run_id, in_run
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import deferred_around, process_facts, process_is_gone

__all__ = [
    "FIRST_JOBS",
    "SessionNote",
    "SessionNotes",
    "drain_on_signals",
    "is_note",
    "note",
    "note_first_job",
    "record_session",
    "session_notes",
    "token_of",
]

log = get_logger(__name__)

_PREFECT_PATIENCE = 5.0  # seconds until the note goes to a file instead
_EXIT_PATIENCE = 20.0  # seconds for closing the sessions that an ending process left open
_OPENING_PAUSE = 0.1  # seconds until a session is looked at again that is being opened when the process ends
_MOST_BYTES = 65_536
Drain = Callable[[QuantumRuntimeCredentials, SessionRef], Coroutine[Any, Any, bool]]
_TOKEN = re.compile(r"[0-9a-f]{8,64}")
FIRST_JOBS = "first_jobs"
"""In a note, the submission keys of the jobs that may have opened the session, in the dialect where a job does."""


# ---- notes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionNote:
    """The record of a session that a process opened outside a flow.

    Attributes:
        record: The facts, as an artifact of Prefect holds them.
        path: The file, where the note is not in Prefect.
    """

    record: Record
    path: Path | None = None

    @property
    def meta(self) -> Mapping[str, str]:
        """The facts."""
        return self.record.meta

    @property
    def opener(self) -> str:
        """The process, in words."""
        return f"process {self.meta.get('pid', '?')} on {self.meta.get('host', '?')}"

    @property
    def opened_at(self) -> datetime | None:
        """When it was opened, on that process's clock."""
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(self.meta.get("opened", ""))
        return None

    @property
    def is_gone(self) -> bool | None:
        """Whether the process that opened it has ended; None if that cannot be found out here."""
        return process_is_gone(self.meta)

    async def mark_closed(self) -> None:
        """Mark the session as closed, so that it is not checked again."""
        if self.path is not None:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("The record of a closed session, %s, could not be removed: %r", self.path, error)
            return
        await mark_closed(self.record)


def is_note(record: Record) -> bool:
    """Whether a session's record in Prefect is that of a process outside any flow."""
    return bool(record.meta.get("pid")) and not record.meta.get("flow_run")


async def session_notes(records: list[Record] | None = None) -> list[SessionNote]:
    """All notes that are in Prefect and in this machine's files, closed sessions left out. Runs on the network loop.

    Args:
        records: The session records of Prefect, where the caller has them already.
    """
    records = await find_records("session") if records is None else records
    noted = [SessionNote(record) for record in records if is_note(record)]
    noted += await asyncio.to_thread(_files)
    return [one for one in noted if not one.record.is_closed]


def _folder() -> Path:
    return get_current_settings().home / "qruntime" / "sessions"


def _files() -> list[SessionNote]:
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            if not path.is_file() or path.stat().st_size > _MOST_BYTES:
                raise ValueError("no note")
            meta = orjson.loads(path.read_bytes())
            if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
                raise ValueError("no note")
            updated = datetime.fromisoformat(meta["opened"])
            if FIRST_JOBS in meta:  # which may be submitted long after the note; a copied file has another date
                updated = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except (OSError, ValueError, KeyError):
            log.warning("%s is not a readable record of a session and was skipped.", path)
            continue
        found.append(SessionNote(Record(UUID(int=0), path.stem, meta, None, updated), path))
    return found


def _write(path: Path, meta: Mapping[str, str]) -> None:
    """Write a note atomically."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(orjson.dumps(dict(meta), option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@dataclass(slots=True)
class _Opened:
    """A session that this process has open."""

    credentials: QuantumRuntimeCredentials
    session: SessionRef
    facts: dict[str, str]
    path: Path | None = None


@dataclass(slots=True)
class SessionNotes:
    """The sessions that this process opened outside a flow, by token, and what drains them when it ends."""

    opened: dict[str, _Opened] = field(default_factory=dict)
    drain_all: Callable[[], Coroutine[Any, Any, None]] | None = None


def _notes() -> SessionNotes:
    return network_loop().state(SessionNotes)


def token_of(session: SessionRef) -> str | None:
    """The token under which this process noted a session outside a flow; None for any other session."""
    opened = _notes().opened
    if session.token in opened:
        return session.token
    known = (token for token, one in opened.items() if session.id is not None and one.session.id == session.id)
    return next(known, None)


async def record_session(
    credentials: QuantumRuntimeCredentials, token: str, session: SessionRef, *, flow_run_id: str | None, new: bool
) -> None:
    """Record a flow run's session in Prefect.

    Args:
        credentials: The credentials block; only its name and the instance are recorded.
        token: Identifies the record; it exists before the session has an id.
        session: The session as known now.
        flow_run_id: The flow run that owns the session.
        new: Whether this is the first record, written before the session is opened.

    Raises:
        Exception: Prefect's API failed on the first record; then no session may be opened.
    """
    if not in_run():
        return
    facts = _of_session(session)
    shown = {**facts, "max_ttl": f"{session.max_ttl} s"} if session.max_ttl else facts
    try:
        meta = {**facts, **_instance(credentials), "flow_run": flow_run_id, **deferred_around()}
        await _upsert(token, session, shown, meta, new=new)
    except Exception as error:
        if new:
            raise
        log.warning("The record of session %s could not be written: %r", session.id, error)


async def _upsert(
    token: str, session: SessionRef, shown: Mapping[str, str], meta: Mapping[str, str | None], *, new: bool
) -> None:
    text = card(session_title(session), None, shown)
    first = await upsert_session(token, session.id, text, meta, new=new, describe=session_description)
    # In the background: Prefect on SQLite often refuses it beside other writes, and the next try is seconds later.
    if first is not None:
        in_background(lambda: drop_record(first))


async def note(
    credentials: QuantumRuntimeCredentials,
    token: str,
    session: SessionRef,
    *,
    drain: Drain,
) -> None:
    """Record a session's state. Runs on the network loop.

    Args:
        credentials: The credentials block; only its name and the instance are noted.
        token: Identifies the note, which exists before the session has an id.
        session: The session as known now.
        drain: Drains a session that the process leaves open; returns False while it is being opened.
    """
    if _TOKEN.fullmatch(token) is None:
        raise ValueError("a session's token consists of hexadecimal digits")
    notes = _notes()
    new = token not in notes.opened
    if new:
        facts = {**_instance(credentials), "opened": datetime.now(UTC).isoformat(), **process_facts()}
        notes.opened[token] = _Opened(credentials, session, facts)
        _drain_at_exit(notes, drain)
    entry = notes.opened[token]
    entry.session = session
    await _keep(notes, token, entry, new=new)


async def note_first_job(token: str | None, key: str) -> None:
    """Record the key of the job that will open a session: if this process dies, its session is found by it.

    A flow run's jobs carry its tag, so only a session outside a flow needs it.
    """
    if token is None or (entry := _notes().opened.get(token)) is None:
        return
    if key not in (known := entry.facts.get(FIRST_JOBS, "").split()):
        entry.facts[FIRST_JOBS] = " ".join([*known, key])
        await _keep(_notes(), token, entry, new=False)


async def _keep(notes: SessionNotes, token: str, entry: _Opened, *, new: bool) -> None:
    session = entry.session
    meta = {**entry.facts, **_of_session(session)}
    if session.is_closed:
        del notes.opened[token]
    if entry.path is None:
        try:
            if get_current_settings().api.url is None:
                raise ConnectionError("no Prefect API is configured")
            async with asyncio.timeout(_PREFECT_PATIENCE):
                await _upsert(token, session, _of_session(session), meta, new=new)
            return
        except Exception as error:
            if not new:
                log.warning("The record of session %s could not be updated in Prefect: %r", session.id, error)
                return
            log.debug("The session is recorded in a file, because Prefect did not accept the record: %r", error)
    entry.path = _folder() / f"{token}.json"
    try:
        if session.is_closed:
            entry.path.unlink(missing_ok=True)
        else:
            await asyncio.to_thread(_write, entry.path, {"id": token, **meta})
    except OSError as error:
        if not new:
            log.warning("The record of session %s in %s could not be updated: %r", session.id, entry.path, error)
            return
        del notes.opened[token]
        raise QuantumRuntimeError(
            f"The session cannot be recorded in {entry.path} ({error.strerror or error}), so it was not opened.",
            solution="Free space there, set PREFECT_HOME to a folder that can be written, or PREFECT_API_URL.",
        ) from None


def _instance(credentials: QuantumRuntimeCredentials) -> dict[str, str]:
    """The block and the instance that it leads to."""
    connection = credentials.get_client().connection
    facts = {
        "block": block_name(credentials) or "",
        "crn": connection.crn,
        "base_url": connection.base_url,
        "dialect": connection.dialect,
    }
    return {name: value for name, value in facts.items() if value}


def _of_session(session: SessionRef) -> dict[str, str]:
    drains = session.accepting_jobs is False and not session.is_closed
    facts = {
        "session": session.id,
        "mode": session.mode,
        "backend": session.backend,
        "max_ttl": str(session.max_ttl) if session.max_ttl else None,
        "state": "draining" if drains else session.state or ("opening" if session.id is None else "open"),
    }
    return {name: value for name, value in facts.items() if value}


# ---- the end of the process ----------------------------------------------------------------------


def _drain_at_exit(notes: SessionNotes, drain: Drain) -> None:
    if notes.drain_all is not None:
        return
    home = network_loop()

    async def drained(one: _Opened) -> None:
        try:
            while not one.session.is_closed:
                if await drain(one.credentials, one.session):
                    return
                await asyncio.sleep(_OPENING_PAUSE)
        except Exception as error:
            log.error(
                "Session %s could not be closed when the process ended: %s. It may still be open and charging. "
                "`prefect-qruntime sweep` closes it.",
                one.session.id,
                error,
            )

    async def drain_all() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_PATIENCE):
                await asyncio.gather(*map(drained, list(notes.opened.values())))

    def at_exit() -> None:
        if not notes.opened or home.pid != os.getpid() or home.loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(drain_all(), home.loop).result(_EXIT_PATIENCE)

    notes.drain_all = drain_all
    # Before the interpreter closes its thread pools, without which no host name is resolved any more; atexit is later.
    register: Callable[[Callable[[], None]], Any] = getattr(threading, "_register_atexit", atexit.register)
    register(at_exit)


_ENDS = [signal.SIGTERM, signal.SIGHUP] if hasattr(signal, "SIGHUP") else [signal.SIGTERM]
_open_here: tuple[SessionNotes, NetworkLoop] | None = None  # not asked for in the handler, which may interrupt a lock


def drain_on_signals() -> None:
    """Drain the sessions that are open outside a flow before SIGTERM or SIGHUP ends the process.

    A notebook's kernel gets SIGTERM if it is restarted while a cell runs. Called in the thread that opens a session;
    only the main thread can do it. A signal that something else handles is left alone.
    """
    global _open_here
    if threading.current_thread() is not threading.main_thread() or current_flow_run_id() is not None:
        return
    _open_here = _notes(), network_loop()
    for number in _ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _drain_and_end)


_fork = threading.local()


def _before_fork() -> None:
    """Hold back signals: Python forgets those that a child gets before it is ready, and the child would live."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS) if _open_here is not None else None


def _after_fork() -> None:
    if getattr(_fork, "mask", None) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _in_fork() -> None:
    """Let the signals end a child at once: its parent has the sessions."""
    global _open_here
    _open_here = None
    for number in _ENDS:
        if signal.getsignal(number) is _drain_and_end:
            signal.signal(number, signal.SIG_DFL)
    _after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_fork)


def _drain_and_end(number: int, _frame: object) -> None:
    drain_all = loop = None
    if _open_here is not None and _open_here[0].opened:
        drain_all, loop = _open_here[0].drain_all, _open_here[1].loop
    if drain_all is None or loop is None or loop.is_closed():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    # A second SIGTERM ends the process at once. A terminal that is closed sends SIGHUP twice: from the shell, and from
    # the kernel when the shell has ended.
    ignores_more = number != signal.SIGTERM
    signal.signal(number, signal.SIG_IGN if ignores_more else signal.SIG_DFL)

    async def end() -> None:
        try:
            await drain_all()
        finally:
            # As a shell has it: only the main thread could let the signal itself do it, and a container's first process
            # is not ended by a signal that it does not handle.
            if ignores_more or os.getpid() == 1:
                os._exit(128 + number)
            os.kill(os.getpid(), number)

    asyncio.run_coroutine_threadsafe(end(), loop)
