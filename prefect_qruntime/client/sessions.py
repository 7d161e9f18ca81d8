"""Open a session exactly once and close it verifiably.

`session_core` decides; this module acts. "Close" is two calls of the service: `PATCH accepting_jobs=false`
lets queued jobs run, `DELETE …/close` drops them. Both are called drain and drop here, and which one happens is never
a side effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prefect_qruntime.client import session_core as core
from prefect_qruntime.client.parsing import read_id
from prefect_qruntime.client.transport.retrying import complete_or_withdraw
from prefect_qruntime.errors import NotFound, QuantumRuntimeError
from prefect_qruntime.models import Session, SessionRef
from prefect_qruntime.redact import get_logger

if TYPE_CHECKING:
    from prefect_qruntime.client.service import Service

__all__ = ["close_session", "open_session", "session_memory"]

log = get_logger(__name__)

_CLOCKS_APART = timedelta(minutes=10)
_DROP_PATIENCE = 4.0  # seconds for dropping a session whose caller is gone


_memories: WeakKeyDictionary[asyncio.AbstractEventLoop, core.SessionMemory] = WeakKeyDictionary()


def session_memory() -> core.SessionMemory:
    """The running loop's memory of the sessions it opened. A process opens sessions on one loop only."""
    return _memories.setdefault(asyncio.get_running_loop(), core.SessionMemory())


async def open_session(
    service: Service,
    backend: str,
    *,
    mode: str,
    max_ttl: int | None,
    scope: Hashable = "",
    grace: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> SessionRef:
    """Open a session or batch; after a lost answer search for it before opening another.

    When the caller is cancelled while the request is out, its answer is awaited and the session dropped.

    Args:
        service: The client.
        backend: The backend's name.
        mode: `dedicated` or `batch`.
        max_ttl: Longest life in seconds.
        scope: The instance; openings of one process with equal parameters are distinguished within it.
        grace: Seconds after a lost answer within which the session must show up in the workloads.
        clock: Monotonic seconds.
        sleep: For the pauses between polls.

    Raises:
        SubmissionUncertain: The answer was lost and the search did not decide it. An unused session costs
            nothing and closes by itself.
    """
    wanted = core.Wanted(backend, mode, max_ttl, scope)
    machine = core.Opening(wanted, session_memory(), object(), grace=grace)
    began = clock()
    action = machine.start()
    try:
        while True:
            match action:
                case core.Opened(ref):
                    return ref
                case core.Fail(error):
                    raise error
                case core.Open():
                    action = await _open(service, machine, clock)
                case core.FindSessions():
                    action = await _find(service, machine, began, clock)
                case core.Pause(seconds):
                    await sleep(seconds)
                    action = machine.waited(clock())
    except BaseException:
        machine.abandoned()
        raise


async def _open(service: Service, machine: core.Opening, clock: Callable[[], float]) -> core.OpeningAction:
    """Send the request; drop what it opened if the caller is cancelled meanwhile."""
    opened: list[str] = []
    wanted = machine.wanted

    async def post() -> core.OpeningAction:
        try:
            ref = await service.post_session(wanted.backend, mode=wanted.mode, max_ttl=wanted.max_ttl)
        except QuantumRuntimeError as error:
            if error.advice.kind != "search-first":
                return machine.refused(error)
            if error.status is not None and 200 <= error.status < 300:
                log.warning("A session was opened, but the answer is unreadable: %s It is searched for.", error)
                return machine.unreadable(clock())
            log.warning("The answer to opening a session was lost: %s The session is searched for.", error)
            return machine.lost(clock())
        if ref.id is not None:
            opened.append(ref.id)
        return machine.opened(ref)

    try:
        return await complete_or_withdraw(post())
    except asyncio.CancelledError:
        for session_id in opened:  # no caller will use it
            with contextlib.suppress(QuantumRuntimeError, TimeoutError):
                async with asyncio.timeout(_DROP_PATIENCE):
                    await service.drop_session(session_id)
        raise


async def _find(
    service: Service, machine: core.Opening, began: float, clock: Callable[[], float]
) -> core.OpeningAction:
    wanted = machine.wanted
    kind = "batch" if wanted.mode == "batch" else "session"
    # By the slower clock: by one that is ahead the session would be too old to be listed, and another one be opened.
    now = max(0.0, min(time.time(), service.tokens.wall_clock))
    since = datetime.fromtimestamp(now, UTC) - timedelta(seconds=clock() - began) - _CLOCKS_APART
    try:
        items = await service.workloads(mode=kind, backend=wanted.backend, created_after=since, limit=50)
        listed = [read_id(item.get("id"), kind) for item in items]
        sessions = [await service.session(one) for one in listed if one not in machine.memory.ours]
    except QuantumRuntimeError as error:
        return machine.find_failed(error)
    return machine.found(clock(), sessions)


async def _has_work(service: Service, session_id: str) -> bool:
    """Whether a job of the session may still be waiting; the jobs are read too, because the list may lag."""
    if await service.jobs(session_id=session_id, pending=True, limit=1):
        return True
    for job_id in service.unfinished_jobs(session_id):
        try:
            if not (await service.fetch_job(job_id)).is_terminal:
                return True
        except NotFound:  # submitted a moment ago and not visible yet
            return True
    return False


async def close_session(
    service: Service,
    session_id: str,
    *,
    drain: bool,
    patience: float = 20.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Session | None:
    """Close a session and read back that it is.

    Args:
        service: The client.
        session_id: Which one.
        drain: True lets queued jobs run first; False drops them. A running job finishes in both cases.
        patience: Seconds to wait for the service to say `closed`, or that it does not know the session.
        clock: Monotonic seconds.
        sleep: For the pauses between polls.

    Returns:
        The session as read back: closed, or, while drained jobs still run, not accepting jobs. None if
        the service says for `patience` that it does not know it.
    """
    machine = core.Closing(drain=drain, patience=patience)
    action = machine.start()
    while not isinstance(action, core.Closed | core.Fail):
        try:
            action = await _close_step(service, session_id, machine, action, clock, sleep)
        except QuantumRuntimeError as error:
            # That there is no list of jobs says nothing about the session.
            unknown = isinstance(error, NotFound) and not isinstance(action, core.HasWork)
            action = machine.missing(clock()) if unknown else machine.failed(error)
    if isinstance(action, core.Fail):
        raise action.error
    return action.session


async def _close_step(
    service: Service,
    session_id: str,
    machine: core.Closing,
    action: core.Close,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> core.Close:
    match action:
        case core.StopAccepting():
            await service.stop_accepting(session_id)
            return machine.stopped()
        case core.HasWork():
            return machine.work(await _has_work(service, session_id))
        case core.Drop():
            await service.drop_session(session_id)
            return machine.dropped(clock())
        case core.Pause(seconds):
            await sleep(seconds)
            return machine.waited()
        case _:
            return machine.read(clock(), await service.session(session_id))
