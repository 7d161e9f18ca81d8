"""Wait for a job until its end or a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals, PollSchedule
from prefect_qruntime.client.waiting.poller import JobPoller
from prefect_qruntime.client.waiting.subscription import Expired, Stream
from prefect_qruntime.errors import JobTimeout, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus

if TYPE_CHECKING:
    from prefect_qruntime.client.service import Service

__all__ = ["OnTimeout", "Stream", "follow_job"]

OnTimeout = Literal["leave", "cancel"]
OnChange = Callable[[Job, float], Awaitable[None]]


async def follow_job(
    service: Service,
    job_id: str,
    *,
    watcher: JobPoller,
    deadlines: Deadlines,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    in_session: bool = False,
    pace: PollIntervals | None = None,
    on_change: OnChange | None = None,
    once: bool = False,
    known: bool = False,
) -> Job:
    """Wait until the service itself says that the job is over.

    An outage of the service or of IAM does not end the wait, nor does an answer that is not the service's own. A
    websocket only makes the next poll come earlier.

    Args:
        service: The calls of the service.
        job_id: Which job.
        watcher: The poller, the same for all waits on an instance.
        deadlines: When to stop waiting.
        on_timeout: `leave` lets the job live on, `cancel` cancels it first.
        stream: Whether to use a websocket, if one is free.
        in_session: Poll at the faster pace from the start.
        pace: Times between polls.
        on_change: Awaited at the first answer and at each change of state, with the seconds waited.
        once: End with the service's first answer about the job, whatever its state.
        known: The job is known to exist, so that a refusal to show it is not believed at once. Jobs that this process
            submitted or saw are known anyway.

    Returns:
        The job in a terminal state, whichever it is; with `once` in any state.

    Raises:
        JobTimeout: A deadline passed.
        NotFound: There is no such job.
        QuantumRuntimeError: The service refused to show the job, or an outage outlasted its limit.
    """
    plan = PollSchedule(
        deadlines.check(), started=watcher.clock(), pace=pace or PollIntervals(), in_session=in_session, rng=watcher.rng
    )
    plan.known = known
    watch = watcher.enter(job_id, plan, every_change=once or on_change is not None)
    try:
        watcher.listen(watch, stream)
        while True:
            event = await watch.next_event()
            if isinstance(event, Expired):
                end = await _give_up(service, job_id, plan, event.limit, on_timeout, watch.last, event.at)
                if end is not None:
                    return end
                plan.ran = True
                await watcher.leave(watch)
                watch = watcher.enter(job_id, plan, every_change=once or on_change is not None)
                watcher.listen(watch, stream)
                continue
            if on_change is not None:
                await on_change(event.job, event.waited)
            if once or event.job.is_terminal:
                return event.job
    finally:
        await watcher.leave(watch)


async def _give_up(
    service: Service,
    job_id: str,
    plan: PollSchedule,
    limit: str,
    on_timeout: OnTimeout,
    last: Job | None,
    now: float,
) -> Job | None:
    """End the wait: cancel the job if that is wished, and raise; None if the wait goes on, because the job runs."""
    cancelled, fate = False, "it lives on"
    if on_timeout == "cancel" and limit != "outage":
        try:
            # In an outage it may have begun to run: then the limit on the queue was kept.
            if limit == "queue_timeout" and plan.answered < plan.deadline:
                last = await service.fetch_job(job_id)
                if last.status not in (JobStatus.QUEUED, None):
                    return None
            last = await service.cancel(job_id)
        except QuantumRuntimeError as error:
            requested = error.fields.get("requested")
            fate = error.message if requested else f"cancelling it failed ({error.message}), so {fate}"
        else:
            cancelled = last.status is JobStatus.CANCELLED and not last.ran_too_long
            if last.is_terminal and not cancelled:
                return last
            fate = (
                "it was cancelled" if cancelled else f"its cancellation has not happened yet, though accepted: {fate}"
            )
    state = "unknown" if last is None else last.raw_status
    raise JobTimeout(
        f"waited {now - plan.started:.0f} s for job {job_id} and stopped ({limit}): {fate}"
        + ("" if cancelled else f" (last state {state!r})."),
        solution=None
        if cancelled
        else f"Attach again with wait_for_completion(credentials, {job_id!r}), or end it with cancel_job.",
        job_id=job_id,
        job_url=last.url if last else None,
        limit=limit,
        waited_seconds=round(now - plan.started, 3),
        last_status=state,
        cancelled=cancelled,
    )
