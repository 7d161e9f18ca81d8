"""Wait for a job: the plan of `waiting`, the socket of `stream`, and the GET that decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
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

_SHORTEST_LOOK = 2.0  # seconds that a look may take, however near the deadline is


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
                async with asyncio.timeout(_time_for_a_look(plan, clock())):
                    job = await service.look(job_id)
            except TimeoutError:  # the deadline, in the middle of an outage
                plan.missed()
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
            await asyncio.wait([listener])  # unlike `await listener`, this keeps a cancellation of ours


async def _listen(service: _Service, socket: JobStream, wake: asyncio.Event) -> None:
    try:
        service.stream_ended(await socket.follow())
    except Exception:  # the socket is a convenience: whatever breaks there must not end the wait
        log.debug("the websocket failed", exc_info=True)
    wake.set()


def _time_for_a_look(plan: WaitPlan, now: float) -> float | None:
    left = plan.left(now)
    return None if left == math.inf else max(left, _SHORTEST_LOOK)


def _tolerate(error: QuantumRuntimeError, plan: WaitPlan, now: float) -> None:
    """Let an outage or a job not visible yet pass; raise anything else."""
    if isinstance(error, NotFound):
        if not plan.may_be_unseen(now):
            raise error
    elif not error.advice.may_repeat:
        raise error
    if plan.missed(error.advice.seconds):
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
    cancelled, trouble = False, ""
    if on_timeout == "cancel" and limit != "outage":
        try:
            last = await service.cancel(job_id)
        except QuantumRuntimeError as error:
            trouble = f"cancelling it failed ({error.message}), so "
        else:
            cancelled = last.status is JobStatus.CANCELLED and not last.ran_too_long
            if last.is_terminal and not cancelled:
                return last
            if not cancelled:
                trouble = "its cancellation was accepted but has not happened yet: "
    state = "unknown" if last is None else last.raw_status
    fate = (
        "it was cancelled"
        if cancelled
        else f"{trouble}it lives on (last state {state!r}); attach again with "
        f"wait_for_completion(credentials, {job_id!r}) or end it with cancel_job"
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
