"""Wait for a job: the plan of `waiting`, the socket of `stream`, and the GET that decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from prefect_qruntime.client.stream import Ending, JobStream
from prefect_qruntime.client.waiting import Deadlines, Pace, WaitPlan
from prefect_qruntime.errors import JobTimeout, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus

__all__ = ["OnTimeout", "Stream", "follow_job"]

log = logging.getLogger("prefect_qruntime.waiting")

OnTimeout = Literal["leave", "cancel"]
Stream = Literal["auto", "always", "never"]
OnChange = Callable[[Job, float], Awaitable[None]]

_STREAM_GRACE = 1.0  # seconds the first socket may take before polling goes at its own pace


class _Service(Protocol):
    """What waiting needs of the client."""

    async def look(self, job_id: str) -> Job: ...

    async def cancel(self, job_id: str) -> Job: ...

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None: ...

    def stream_ended(self, ending: Ending) -> None: ...


async def follow_job(
    service: _Service,
    job_id: str,
    *,
    deadlines: Deadlines,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    in_session: bool = False,
    pace: Pace | None = None,
    on_change: OnChange | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Job:
    """Wait until the service itself says that the job is over.

    An outage of the service or of IAM is sat out. Whatever the socket says only leads to an earlier
    look.

    Args:
        service: The client.
        job_id: Which job.
        deadlines: When to stop waiting.
        on_timeout: `leave` lets the job live on, `cancel` cancels it first.
        stream: Whether to use a websocket.
        in_session: Look at the quicker pace from the start.
        pace: Times between looks.
        on_change: Awaited at the first look and at each change of state, with the seconds waited.
        clock: Monotonic seconds.

    Returns:
        The job in a terminal state, whichever it is.

    Raises:
        JobTimeout: A deadline passed.
        QuantumRuntimeError: The service refused to show the job, or an outage outlasted its limit.
    """
    plan = WaitPlan(deadlines.check(), started=clock(), pace=pace or Pace(), in_session=in_session)
    wake = asyncio.Event()
    socket = service.job_stream(job_id, wake.set, stream)
    listener = asyncio.create_task(_listen(service, socket, wake)) if socket is not None else None
    last: Job | None = None
    warned_unknown = False
    try:
        while True:
            wake.clear()
            try:
                job = await service.look(job_id)
            except QuantumRuntimeError as error:
                _tolerate(error, plan, clock())
            else:
                last = job
                if plan.saw(job, clock()) and on_change is not None:
                    await on_change(job, clock() - plan.started)
                if job.is_terminal:
                    return job
                if job.status is None and not warned_unknown:
                    warned_unknown = True
                    log.warning("job %s: unknown state %r, waiting on", job_id, job.raw_status)
            now = clock()
            if (limit := plan.expired(now)) is not None:
                return await _give_up(service, job_id, plan, limit, on_timeout, last, now)
            connected = socket is not None and socket.connected
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), plan.pause(now, streamed=connected))
    finally:
        if listener is not None:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener


async def _listen(service: _Service, socket: JobStream, wake: asyncio.Event) -> None:
    try:
        service.stream_ended(await socket.follow())
    except Exception:  # the socket is a convenience: whatever breaks there must not end the wait
        log.debug("the websocket failed", exc_info=True)
    wake.set()


def _tolerate(error: QuantumRuntimeError, plan: WaitPlan, now: float) -> None:
    """Let an outage or a job not visible yet pass; raise anything else."""
    if isinstance(error, NotFound):
        if not plan.may_be_unseen(now):
            raise error
    elif not error.advice.may_repeat:
        raise error
    if plan.missed():
        log.warning("no answer about the job for now, waiting on: %s", error)


async def _give_up(
    service: _Service,
    job_id: str,
    plan: WaitPlan,
    limit: str,
    on_timeout: OnTimeout,
    last: Job | None,
    now: float,
) -> Job:
    cancelled = False
    if on_timeout == "cancel" and limit != "outage":
        last = await service.cancel(job_id)
        if last.status is JobStatus.COMPLETED:
            return last
        cancelled = last.status is JobStatus.CANCELLED
    state = "unknown" if last is None else last.raw_status
    fate = (
        "it was cancelled"
        if cancelled
        else f"it lives on (last state {state!r}); attach again with wait_for_completion(credentials, {job_id!r}) "
        "or end it with cancel_job"
    )
    raise JobTimeout(
        f"waited {now - plan.started:.0f} s for job {job_id} and stopped ({limit}): {fate}",
        job_id=job_id,
        job_url=last.url if last else None,
        limit=limit,
        waited_seconds=round(now - plan.started, 3),
        last_status=state,
        cancelled=cancelled,
    )
