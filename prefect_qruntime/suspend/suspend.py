"""Hand a wait over to a watcher, which releases the worker, and end a wait that was handed over.

A wait is handed over until the job is over, or the job is left to the watcher. `prefect-qruntime watch` (or the flow
`watch_jobs`) follows what is handed over here.

The watcher ends a wait by reporting it, by resuming its flow run, or by cancelling its job with the flow run. Each may
be done twice, by two watchers or by one that was killed in between: the second time changes nothing.

Which claim on a resumption is the next one is decided by `next_claim`, without clock and network. A claim is a row that
only one of several watchers can create, because its name is unique. A watcher that dies leaves its claim behind. No
watcher deletes the claim of another, which may be new: a watcher that finds only claims that are too old makes the next
one, `…-2`, `…-3`, and again only one of several can.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_runs import asuspend_flow_run, suspend_flow_run

from prefect_qruntime import hooks
from prefect_qruntime.cancellation import cancel_jobs_of, policy
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials, aload_credentials, block_name, leading_to, that_sees
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import Place
from prefect_qruntime.prefect_api import api, current_flow_run_id, dropping_limit, is_dropped, is_ending, reason
from prefect_qruntime.redact import get_logger
from prefect_qruntime.suspend import waits
from prefect_qruntime.suspend.waits import Wait
from prefect_qruntime.tasks.definitions import JobLike, as_job, check_credentials
from prefect_qruntime.tasks.jobs import await_for_completion, wait_for_completion

__all__ = [
    "STALE",
    "aleave_to_watcher",
    "asuspend_until_done",
    "claimed",
    "client_for",
    "describe",
    "emit_state",
    "leave_to_watcher",
    "next_claim",
    "owner",
    "reconcile",
    "resume",
    "suspend_until_done",
]


STALE = timedelta(seconds=60)
"""Age from which a claim counts as that of a dead watcher. Resuming a flow run must never take as long."""

log = get_logger(__name__)


def next_claim(first: str, row: Mapping[str, datetime | None], now: datetime) -> str | None:
    """The name of the claim to create after `first` could not be created.

    Args:
        first: The name of the first claim.
        row: The claims there are, and when each was created.
        now: The time by the clock that dated them.

    Returns:
        The name; None if a claim may still be in use, or if there is no claim any more: it was just released, and the
        next check may create the first one again.

    Example:
        ```python
        from datetime import UTC, datetime, timedelta
        from prefect_qruntime.suspend.suspend import next_claim

        made = datetime(2026, 1, 1, tzinfo=UTC)
        assert next_claim("resume", {"resume": made}, made + timedelta(minutes=2)) == "resume-2"
        ```
    """
    if not row or any(now - (created or now) <= STALE for created in row.values()):
        return None
    turns = [int(name.removeprefix(f"{first}-") or 1) for name in row if name != first]
    return f"{first}-{max(turns, default=1) + 1}"


def owner(wait: Wait) -> str | None:
    """The flow run's id as a text."""
    return str(wait.flow_run_id) if wait.flow_run_id is not None else None


def describe(wait: Wait) -> str:
    """Name what the job is followed for: a flow run or an event."""
    return f"flow run {wait.flow_run_id}" if wait.key is not None else "an event"


def emit_state(job: Job, *, flow_run_id: str | None, block: str | None) -> None:
    """Emit the event of the job's state, with the flow run first."""
    event_id = notifications.event_id_of(job, flow_run_id)
    notifications.job_event(job, flow_run_id=flow_run_id, event_id=event_id, credentials_block=block)


async def resume(wait: Wait) -> bool:
    """Resume the flow run; False if another process did, or if it cannot be resumed."""
    assert wait.flow_run_id is not None  # noqa: S101  # only flow runs are suspended
    answer = await (await api()).resume_flow_run(wait.flow_run_id)
    if answer.status is SetStateStatus.ACCEPT:
        log.info("Resumed flow run %s: job %s is over.", wait.flow_run_id, wait.job_id)
        return True
    reason = getattr(answer.details, "reason", None)
    log.warning("Flow run %s was not resumed: %s", wait.flow_run_id, reason or "no reason given")
    return False


async def client_for(wait: Wait) -> tuple[str, QuantumRuntimeClient]:
    """Find the saved block that leads to a wait's job; return its name and a client. Runs on the network loop.

    Raises:
        QuantumRuntimeError: None does.
        Exception: Prefect's API failed.
    """
    found = await leading_to([wait.place])
    if wait.place not in found:
        await aload_credentials(wait.block)  # which may say what is wrong with it
    block = await that_sees(wait.place, found, lambda client: client.job(wait.job_id))
    return block, found[wait.place][block].get_client()


async def reconcile(wait: Wait) -> bool:
    """Complete a wait whose flow run is no longer suspended for it: cancelled, resumed by another process, or deleted.

    A flow run that is suspended, or was resumed and waits for a worker, has no process, so Prefect cancels it at once
    and runs no hook.

    Returns:
        Whether it was cancelled.

    Raises:
        QuantumRuntimeError: The service refused to cancel, or the block cannot be loaded; try again.
    """
    assert wait.flow_run_id is not None  # noqa: S101  # only flow runs are suspended
    try:
        flow_run = await (await api()).read_flow_run(wait.flow_run_id)
    except ObjectNotFound:
        log.warning(
            "Flow run %s was deleted while it waited for job %s, which is not cancelled.",
            wait.flow_run_id,
            wait.job_id,
        )
        await waits.drop_note(wait)
        return False
    if waits.pause_key_of(flow_run.state) == wait.key:
        return False
    state = flow_run.state
    cancelled = state is not None and is_ending([state])
    if cancelled:
        try:
            if wait.policy == "cancel":
                _, client = await client_for(wait)
                await cancel_jobs_of(client, str(flow_run.id), [wait.job_id])
        except NotFound as error:
            # Deleted from the service: nothing is left to cancel.
            log.warning("Job %s of flow run %s: %s", wait.job_id, flow_run.id, error)
        finally:
            await hooks.clean_up(flow_run, cancel_jobs=wait.policy == "cancel", drain=wait.policy == "detach")
        log.info("Flow run %s was cancelled: policy %s for its jobs.", flow_run.id, wait.policy)
    elif state is not None and is_dropped(state):
        log.warning(
            "Prefect cancelled flow run %s because others of its deployment ran when it was resumed (CANCEL_NEW). Its "
            "jobs are not cancelled. Retry it, and it attaches to them.",
            flow_run.id,
        )
    elif state is None or not state.is_final():
        # After a crash the flow run may be about to be suspended with this same note, which is dropped at its end.
        return False
    await waits.drop_note(wait)
    return cancelled


_MOST = 200  # claims of one resumption that are read


@asynccontextmanager
async def claimed(flow_run_id: UUID, pause_key: str) -> AsyncIterator[bool]:
    """Claim the resumption of a flow run that is suspended with this key. Runs on the network loop.

    A claim is kept, as a pause key is used once; left by an error, it is given back.

    Yields:
        Whether the claim is ours; otherwise another watcher is resuming the flow run.

    Raises:
        Exception: Prefect's API failed.
    """
    name = await _claim(flow_run_id, f"qruntime-resume-{uuid5(NAMESPACE_URL, pause_key).hex}")
    try:
        yield name is not None
    except BaseException:
        if name is not None:
            with suppress(Exception):
                await (await api()).delete_flow_run_input(flow_run_id, name)
        raise


async def _claim(flow_run_id: UUID, first: str) -> str | None:
    """The name of our claim, or None: the last claim is another watcher's and may still be in use."""
    if (now := await _create(flow_run_id, first)) is None:
        return first
    # Claims of dead watchers: only the creator of the next one holds the claim.
    row = await (await api()).filter_flow_run_input(flow_run_id, first, limit=_MOST, exclude_keys=set())
    name = next_claim(first, {claim.key: claim.created for claim in row}, now)
    return name if name is not None and await _create(flow_run_id, name) is None else None


async def _create(flow_run_id: UUID, name: str) -> datetime | None:
    """Create a claim; returns None, or Prefect's time if a claim of this name exists."""
    try:
        await (await api()).create_flow_run_input(flow_run_id, name, "claimed")
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 409:
            raise
        # The clocks of two hosts may differ, so the age of a claim is measured by Prefect's clock.
        with suppress(KeyError, ValueError):
            return parsedate_to_datetime(error.response.headers["date"])
        return datetime.now(UTC)
    return None


def suspend_until_done(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """Release the worker until the job is over; for waits of hours and days. Costs nothing.

    Call it in the flow, not in a task. A job that is over is returned at once. Else the flow run is suspended
    and its process ends; `prefect-qruntime watch` resumes it when the job is over. Then Prefect runs the flow
    **from the top**: `submit_job` attaches to its job, other code runs again. A session that the flow has open
    takes no more jobs and closes after those in it.

    A flow run that cannot be suspended (without a deployment, a subflow, a credentials block that is not
    saved), or that its deployment would cancel when it is resumed while another run is active (`CANCEL_NEW`),
    waits in its process, with a warning.

    Args:
        credentials: A credentials block, saved under a name, by which the watcher loads it.
        job: The job, or its id.

    Returns:
        The completed job, as the service shows it.

    Raises:
        InvalidInput: Called inside a task.
        JobFailed: The job failed; `JobCancelled`: it was cancelled; `JobRanTooLong`: it hit its time limit.
        NotFound: The service does not know the job.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import fetch_results, hooks, load_credentials, submit_job, suspend_until_done

        @flow(**hooks.cancel)
        def overnight(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = load_credentials(credentials_block)
            job = submit_job(credentials, [circuit], backend=backend)
            suspend_until_done(credentials, job)
            return fetch_results(credentials, job).counts()
        ```
    """
    ref = _checked(credentials, job)
    while not (obstacle := network_loop().run(_obstacle(credentials))):
        done = network_loop().run(_end(credentials, ref))
        if done is not None:
            return done
        key = network_loop().run(_note(credentials, ref))
        suspend_flow_run(key=key, _sync=True)  # type: ignore[call-overload]
    _warn(obstacle)
    return wait_for_completion.fn(credentials, ref)


async def asuspend_until_done(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """As `suspend_until_done`, for async flows."""
    ref = _checked(credentials, job)
    while not (obstacle := await network_loop().arun(_obstacle(credentials))):
        done = await network_loop().arun(_end(credentials, ref))
        if done is not None:
            return done
        key = await network_loop().arun(_note(credentials, ref))
        await asuspend_flow_run(key=key)
    _warn(obstacle)
    return await await_for_completion.fn(credentials, ref)


def leave_to_watcher(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobRef:
    """Let the watcher report the job's end by an event, and continue without waiting. Costs nothing.

    The watcher emits `qruntime.job.completed`, `.failed` or `.cancelled` with the label
    `qruntime.left-to-watcher: true` and, in the payload, `job_id` and `credentials_block`: enough for an
    automation to start a deployment that collects the result.

    Args:
        credentials: A credentials block, saved under a name, by which the watcher loads it.
        job: The job, or its id.

    Returns:
        The job's handle.

    Raises:
        InvalidInput: The block is not saved.
    """
    return network_loop().run(_leave(credentials, as_job(job)))


async def aleave_to_watcher(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobRef:
    """As `leave_to_watcher`, for async flows."""
    return await network_loop().arun(_leave(credentials, as_job(job)))


def _checked(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobRef:
    check_credentials(credentials)
    if TaskRunContext.get() is not None:
        raise InvalidInput("suspend_until_done belongs in the flow: Prefect cannot suspend a task run", field="job")
    return as_job(job)


async def _obstacle(credentials: QuantumRuntimeCredentials) -> str:
    """Why the flow run cannot be suspended; empty if it can."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return "there is no flow run to suspend"
    if context.flow_run.deployment_id is None:
        return "a flow run without a deployment cannot be resumed"
    if context.flow_run.parent_task_run_id is not None:
        return "Prefect cannot suspend a subflow"
    if block_name(credentials) is None:
        return "the credentials block is not saved, so the watcher could not load it"
    try:
        if await dropping_limit(context.flow_run.deployment_id) is not None:
            return "its deployment cancels a run that starts or resumes while others run (CANCEL_NEW)"
    except ObjectNotFound:
        return "its deployment was deleted, so no worker would resume it"
    except Exception as error:
        return f"Prefect's API gave no answer ({reason(error)})"
    return ""


def _warn(obstacle: str) -> None:
    text = f"The flow run is not suspended: {obstacle}. It waits for the job in this process."
    notifications.log_to_run(text, level=logging.WARNING)


def _flow_run_id() -> UUID:
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101  # _obstacle has checked it
    assert context.flow_run is not None  # noqa: S101
    return context.flow_run.id


async def _end(credentials: QuantumRuntimeCredentials, ref: JobRef) -> Job | None:
    """The job's present state if it is over; None if the flow run may be suspended (again)."""
    try:
        job = await credentials.get_client().look(ref.id)
    except QuantumRuntimeError as error:
        if not error.is_outage:
            raise
        notifications.log_to_run(f"No answer about job {ref.id} for now: {error}", level=logging.WARNING)
        return None
    if not job.is_terminal:
        return None
    notifications.log_to_run(f"job {job.id} is over (state {job.raw_status!r})")
    emit_state(job, flow_run_id=str(_flow_run_id()), block=block_name(credentials))  # only once, even with a watcher
    await notifications.job_ended(job, [])
    failure = job_error(job)
    if failure is not None:
        raise failure
    return job


async def _note(credentials: QuantumRuntimeCredentials, ref: JobRef) -> str:
    """Record the wait and return the key to suspend with."""
    flow_run_id, block = _flow_run_id(), block_name(credentials)
    key = waits.pause_key(ref.id, await waits.used_keys(flow_run_id))
    place = Place(block or "", credentials.get_client().connection.instance)
    await waits.note_suspended(ref.id, place, flow_run_id=flow_run_id, key=key, policy=policy())
    notifications.log_to_run(
        f"releasing the worker until job {ref.id} is over; `prefect-qruntime watch` resumes this flow run"
    )
    return key


async def _leave(credentials: QuantumRuntimeCredentials, ref: JobRef) -> JobRef:
    check_credentials(credentials)
    block = block_name(credentials)
    if block is None:
        raise InvalidInput("must be a saved block: the watcher loads it by name", field="credentials")
    place = Place(block, credentials.get_client().connection.instance)
    await waits.note_left(ref.id, place, flow_run_id=current_flow_run_id())
    notifications.log_to_run(f"job {ref.id} is left to the watcher, which reports its end by an event")
    return ref
