"""Wait until a job is over, fetch its result, and cancel it: the tasks and their bodies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import UUID

from cachetools import LRUCache
from prefect.context import TaskRunContext

from prefect_qruntime import result_storage
from prefect_qruntime.cancellation import after_cancel, cancels_jobs, ends_with_runs_around, polls_for_cancellation
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import parse_crn
from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.client.waiting.plan import Deadlines
from prefect_qruntime.client.waiting.poller import OnTimeout, Stream
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput, JobTimeout, QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef, JobStatus
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.progress import ProgressPace, WaitProgress, is_held, shown_while_waiting, waits_now
from prefect_qruntime.observability.telemetry import (
    Observation,
    materialize_result,
    queue_and_run_seconds,
    trace_chunks,
    trace_job,
    trace_states,
)
from prefect_qruntime.redact import shown
from prefect_qruntime.settings import current_settings
from prefect_qruntime.tasks.backends import HELD_AFTER, STATE_AGE, backend_now
from prefect_qruntime.tasks.definitions import JobLike, as_job, blocking, in_flow, repeats

__all__ = [
    "acancel_job",
    "afetch_results",
    "await_for_completion",
    "cancel_job",
    "check_wait",
    "fetch_results",
    "wait_for_completion",
]


@in_flow
@repeats("wait for completion", "wait for {job}")
@ends_with_runs_around
async def await_for_completion(
    credentials: QuantumRuntimeCredentials,
    job: JobLike,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> Job:
    """Wait until the service says that the job completed. Never submits; survives outages.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.
        timeout: Seconds for the whole wait, retries included; None for no limit.
        queue_timeout: Seconds until the job runs; None for no limit.
        on_timeout: `leave` lets the job live on, `cancel` cancels it.
        stream: `auto` uses a websocket if the dialect has one, `always` tries one anywhere,
            `never` polls only. In every case the job's state comes from the service's own answer about the job.

    Returns:
        The completed job.

    Raises:
        JobFailed: The job failed; `retryable` says whether a new one may succeed.
        JobRanTooLong: It reached its QPU time limit.
        JobCancelled: It was cancelled.
        JobTimeout: A limit of this wait passed; the error says how to attach again.
        NotFound: No such job in this instance.
    """
    ref = as_job(job)
    check_wait(timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream)
    settings = current_settings()
    deadlines = Deadlines(
        total=_time_left(timeout, ref.id), queue=queue_timeout, outage=settings.outage_patience_seconds
    ).check()
    client = credentials.get_client()
    history: list[Observation] = []
    progress = WaitProgress(ref.id, time.monotonic())

    async def on_change(seen: Job, waited: float) -> None:
        if seen.status is not JobStatus.QUEUED:
            client.look_at_calibration(seen)
        history.append(Observation(seen.status, seen.raw_status.lower(), waited, datetime.now(UTC)))
        progress.saw(seen, time.monotonic())
        notifications.job_changed(progress, history)

    reporter = asyncio.create_task(_report(client, progress, history, log_every=settings.progress_seconds))
    try:
        with shown_while_waiting(progress):
            async with cancels_jobs(client, [ref.id]), polls_for_cancellation(client, ref.id):
                done = await client.wait(
                    ref.id,
                    deadlines=deadlines,
                    on_timeout=on_timeout,
                    stream=stream,
                    in_session=ref.session is not None,
                    on_change=on_change,
                )
    except JobTimeout as late:
        if late.fields.get("cancelled"):
            await _report_cancelled(client, ref.id)
        raise
    finally:
        reporter.cancel()
    client.note_times(done.id, *queue_and_run_seconds(done, history))
    notifications.job_over(done, history, calibration=client.look_at_calibration(done))
    trace_job(done)
    trace_states(done, history)
    notifications.follow_usage(client, done)
    error = job_error(done)
    if error is not None:
        raise error
    return done


wait_for_completion = blocking(await_for_completion)
"""As `await_for_completion`, for sync flows."""


def check_wait(*, timeout: Any, queue_timeout: Any, on_timeout: Any, stream: Any) -> None:
    """Check the arguments of a wait. What submits a job and then waits for it calls this before anything is sent.

    Raises:
        InvalidInput: One is wrong; it is named.
    """
    for field, value, allowed in (
        ("on_timeout", on_timeout, get_args(OnTimeout)),
        ("stream", stream, get_args(Stream)),
    ):
        if not (isinstance(value, str) and value in allowed):
            raise InvalidInput(f"must be {' or '.join(map(repr, allowed))}, not {shown(value)}", field=field)
    Deadlines(total=timeout, queue=queue_timeout).check()


_began: LRUCache[tuple[UUID, str], float] = LRUCache(10_000)
"""When each task run with a limit began to wait for which job, by the monotonic clock."""


def _time_left(timeout: float | None, job_id: str) -> float | None:
    """The remaining time of a retried wait: a retry does not start the clock again.

    Prefect retries a task in its process. The wall clock may jump, and a limit that ends too early may cancel the job.
    """
    context = TaskRunContext.get()
    if timeout is None or context is None:
        return timeout
    now, wait = time.monotonic(), (context.task_run.id, job_id)
    if (context.task_run.run_count or 0) <= 1:
        _began[wait] = now
    return max(0.001, timeout - (now - _began.setdefault(wait, now)))


async def _report_cancelled(client: QuantumRuntimeClient, job_id: str) -> None:
    with contextlib.suppress(QuantumRuntimeError):  # it is cancelled nevertheless; the sweep completes its page
        cancelled = await client.job(job_id)
        await notifications.job_cancelled(cancelled)
        notifications.follow_usage(client, cancelled)


async def _report(
    client: QuantumRuntimeClient, progress: WaitProgress, history: list[Observation], *, log_every: float
) -> None:
    """Keep the job's page and the log up to date while a wait goes on."""
    pace = ProgressPace(every=min(60.0, log_every))
    page_due, log_due = progress.started + pace.pause(waits_now()), progress.started + log_every
    first = progress.started + HELD_AFTER
    while True:
        await asyncio.sleep(max(0.0, min(first, page_due, log_due) - time.monotonic()))
        job = progress.job
        if job is not None and job.status is JobStatus.QUEUED and job.backend:
            progress.backend = await backend_now(client, job.backend, max_age=min(STATE_AGE, 0.9 * log_every))
            if first < math.inf and progress.backend is not None and is_held(progress):
                notifications.job_held(job.id, progress.backend)
        first, now = math.inf, time.monotonic()
        if now >= log_due:
            log_due = now + log_every
            notifications.job_still(progress)
        if now >= page_due:
            page_due = now + pace.pause(waits_now())
            notifications.show_progress(progress, history)


@in_flow
@repeats("fetch results", "fetch {job}")
@ends_with_runs_around
async def afetch_results(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobResult:
    """Fetch a finished job's result; reads only. A private job's result is stored before it is returned.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The result: `counts`, `expectation_values`, `quasi_dists` and more.

    Raises:
        JobFailed: The job failed; carries the service's text.
        ResultNotReady: The job is not over.
        NotFound: No such job, or a private result that was read before.
    """
    ref = as_job(job)
    client = credentials.get_client()
    grace = current_settings().result_grace_seconds
    if ref.private is None:
        seen = await client.job(ref.id)
        if seen.is_terminal:
            client.look_at_calibration(seen)
        private = seen.private
    else:
        private = ref.private
    if private:
        result, fetched = await result_storage.private_result(client, ref, grace=grace)
        if not fetched:
            notifications.log_to_run(f"job {ref.id} is private and was read before: returning the copy that was kept")
            return result
        await notifications.log_fetched(result)
        _record(client, ref, result)
        return result
    result = await client.result(ref, grace=grace, shelf=result_storage.shelf())
    await notifications.log_fetched(result)
    if result.file is None:  # a large one is not decoded for a picture
        notifications.job_fetched(ref.id, result)
        trace_chunks(result)
    _record(client, ref, result)
    return await result_storage.share_if_persisted(result)


def _record(client: QuantumRuntimeClient, ref: JobRef, result: JobResult) -> None:
    facts = {"job_id": ref.id, "program_id": result.program_id, "backend": ref.backend, "key": ref.submission_key}
    ref = ref.model_copy(update={"url": ref.url or client.connection.job_url(ref.id)})
    materialize_result(ref, parse_crn(client.connection.crn).instance, facts)


fetch_results = blocking(afetch_results)
"""As `afetch_results`, for sync flows."""


@in_flow
@repeats("cancel job", "cancel {job}")
async def acancel_job(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """Cancel a job. If it is over already it is left as it is, without an error.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The job as the service shows it afterwards.
    """
    client = credentials.get_client()
    done = await client.cancel(as_job(job).id)
    notifications.log_to_run(
        f"job {done.id} {after_cancel(done)} (state {done.raw_status!r})",
        level=logging.INFO if done.is_terminal else logging.WARNING,
    )
    await notifications.job_cancelled(done)
    notifications.follow_usage(client, done)
    return done


cancel_job = blocking(acancel_job)
"""As `acancel_job`, for sync flows."""
