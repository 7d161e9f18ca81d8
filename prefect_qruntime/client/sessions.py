"""Open a session without losing one, and close it so that it is really closed.

"Close" is two calls of the service: `PATCH accepting_jobs=false` lets queued jobs run, `DELETE …/close`
drops them. Both are called drain and drop here, and which one happens is never a side effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from prefect_qruntime.client.transport.in_flight import complete_or_withdraw
from prefect_qruntime.errors import NotFound, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import Job, Session, SessionRef
from prefect_qruntime.redact import get_logger

__all__ = ["close_session", "open_session"]

log = get_logger(__name__)

_CLOCKS_APART = timedelta(minutes=10)
_DROP_PATIENCE = 4.0  # seconds for dropping a session whose caller is gone

# Sessions this process has handed out: the answer of another opening must not be mistaken for them.
_ours: OrderedDict[str, None] = OrderedDict()
_KEEP = 1000


class _Service(Protocol):
    """What sessions need of the client."""

    async def post_session(self, backend: str, *, mode: str, max_ttl: int | None) -> SessionRef: ...

    async def session(self, session_id: str) -> Session: ...

    async def workloads(self, *, limit: int | None = None, **filters: Any) -> list[dict[str, Any]]: ...

    async def jobs(
        self, *, session_id: str | None = None, pending: bool | None = None, limit: int | None = None
    ) -> list[Job]: ...

    async def fetch_job(self, job_id: str) -> Job: ...

    def unfinished_jobs(self, session_id: str) -> list[str]: ...

    async def stop_accepting(self, session_id: str) -> None: ...

    async def drop_session(self, session_id: str) -> None: ...


async def open_session(
    service: _Service,
    backend: str,
    *,
    mode: str,
    max_ttl: int | None,
    grace: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> SessionRef:
    """Open a session or batch; after a lost answer look for it before opening another.

    When the caller is cancelled while the request is out, its answer is awaited and the session dropped.

    Args:
        service: The client.
        backend: Where.
        mode: `dedicated` or `batch`.
        max_ttl: Longest life in seconds.
        grace: Seconds after a lost answer within which the session must show up in the workloads.
        clock: Monotonic seconds.
        sleep: For the pauses between looks.

    Raises:
        SubmissionUncertain: The answer was lost and looking did not settle it. An unused session costs
            nothing and closes by itself.
    """
    began = datetime.now(UTC)
    for attempt in (1, 2):
        try:
            return await _post(service, backend, mode, max_ttl)
        except QuantumRuntimeError as error:
            if error.advice.kind != "search-first":
                raise
            log.warning("opening a session: the answer was lost (%s); looking for it", error)
            until = clock() + grace
            pause = min(0.25, grace / 4)
            while True:
                found = await _unused_since(service, began - _CLOCKS_APART, backend, mode, max_ttl, error)
                left = until - clock()
                if found or left <= 0:
                    break
                await sleep(min(pause, left))  # lists may lag
                pause = min(pause * 1.5, 3.0)
            if len(found) == 1:
                _remember(found[0].id)
                return found[0].ref()
            if found or attempt == 2:
                raise SubmissionUncertain(
                    f"it cannot be told whether a session was opened on {backend}",
                    solution="Look at the instance's workloads; an unused session costs nothing and closes by itself.",
                    candidates=[session.id for session in found],
                ) from error
    raise AssertionError("unreachable: the second attempt returns or raises")


async def _post(service: _Service, backend: str, mode: str, max_ttl: int | None) -> SessionRef:
    opened: list[SessionRef] = []

    async def post() -> SessionRef:
        ref = await service.post_session(backend, mode=mode, max_ttl=max_ttl)
        opened.append(ref)
        return ref

    try:
        ref = await complete_or_withdraw(post())
    except asyncio.CancelledError:
        for ref in opened:
            if ref.id is not None:  # nobody will ever learn of it
                with contextlib.suppress(QuantumRuntimeError, TimeoutError):
                    async with asyncio.timeout(_DROP_PATIENCE):
                        await service.drop_session(ref.id)
        raise
    if ref.id is not None:
        _remember(ref.id)
    return ref


def _remember(session_id: str) -> None:
    _ours[session_id] = None
    while len(_ours) > _KEEP:
        _ours.popitem(last=False)


async def _has_work(service: _Service, session_id: str) -> bool:
    """Whether a job of the session may still be waiting; asked of the jobs too, as the list may lag."""
    if await service.jobs(session_id=session_id, pending=True, limit=1):
        return True
    for job_id in service.unfinished_jobs(session_id):
        try:
            if not (await service.fetch_job(job_id)).is_terminal:
                return True
        except NotFound:  # bought a moment ago and not visible yet
            return True
    return False


async def _unused_since(
    service: _Service,
    since: datetime,
    backend: str,
    mode: str,
    max_ttl: int | None,
    lost: QuantumRuntimeError,
) -> list[Session]:
    wanted = "batch" if mode == "batch" else "session"
    try:
        items = await service.workloads(mode=wanted, backend=backend, created_after=since, limit=50)
        sessions = [await service.session(str(item["id"])) for item in items if item.get("id")]
    except QuantumRuntimeError as error:
        raise SubmissionUncertain(
            f"it cannot be told whether a session was opened on {backend}: looking for it failed: {error.message}",
            solution="Look at the instance's workloads; an unused session costs nothing and closes by itself.",
            candidates=[],
        ) from lost
    return [
        session
        for session in sessions
        if session.state == "open"
        and session.id not in _ours
        and session.mode == mode
        and session.backend == backend
        and (max_ttl is None or session.max_ttl == max_ttl)
    ]


async def close_session(
    service: _Service,
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
        patience: Seconds to wait for the service to say `closed`.
        clock: Monotonic seconds.
        sleep: For the pauses between looks.

    Returns:
        The session as read back: closed, or, while drained jobs still run, not accepting jobs. None if
        the service does not know it any more.
    """
    try:
        if drain:
            await service.stop_accepting(session_id)
            if await _has_work(service, session_id):
                return await service.session(session_id)
        # Nothing is left that could be dropped, and an idle session would go on charging until its TTL.
        await service.drop_session(session_id)
        until = clock() + patience
        while True:
            session = await service.session(session_id)
            if session.ref().is_closed or clock() >= until:
                return session
            await sleep(0.3)
    except NotFound:
        return None
