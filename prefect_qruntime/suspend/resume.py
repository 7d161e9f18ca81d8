"""End a wait that was handed over: report it, resume its flow run, or cancel its job with the flow run.

Each may be done twice, by two watchers or by one that was killed in between: the second time changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_qruntime import hooks
from prefect_qruntime.cancellation import cancel_jobs_of
from prefect_qruntime.credentials import aload_credentials
from prefect_qruntime.errors import NotFound
from prefect_qruntime.models import Job
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import api
from prefect_qruntime.redact import get_logger
from prefect_qruntime.suspend import waits
from prefect_qruntime.suspend.resume_claims import next_claim
from prefect_qruntime.suspend.waits import Wait

__all__ = ["claimed", "describe", "emit_end", "owner", "reconcile", "resume"]

log = get_logger(__name__)


def owner(wait: Wait) -> str | None:
    """The flow run's id as a text."""
    return str(wait.flow_run_id) if wait.flow_run_id is not None else None


def describe(wait: Wait) -> str:
    """Name what the job is followed for: a flow run or an event."""
    return f"flow run {wait.flow_run_id}" if wait.key is not None else "an event"


def emit_end(job: Job, *, flow_run_id: str | None, block: str | None, left: bool = False) -> None:
    """Emit the event of the job's state, with the flow run first.

    Args:
        job: The job.
        flow_run_id: The flow run suspended for it, or the one that left it.
        block: Name of the credentials block.
        left: Whether the job was left to the watcher.
    """
    notifications.job_event(
        job,
        flow_run_id=flow_run_id,
        event_id=notifications.event_id_of(job, flow_run_id, left=left),
        labels={"qruntime.left-to-watcher": "true"} if left else None,
        credentials_block=block,
    )


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


async def reconcile(wait: Wait) -> bool:
    """Complete a wait whose flow run is no longer suspended for it: cancelled, resumed by another process, or deleted.

    A suspended flow run has no process, so Prefect cancels it at once and runs no hook.

    Returns:
        Whether it was cancelled.

    Raises:
        QuantumRuntimeError: The service refused to cancel, or the block cannot be loaded; try again.
    """
    assert wait.flow_run_id is not None  # noqa: S101  # only flow runs are suspended
    try:
        flow_run = await (await api()).read_flow_run(wait.flow_run_id)
    except ObjectNotFound:
        await waits.drop_note(wait)
        return False
    if waits.pause_key_of(flow_run.state) == wait.key:
        return False
    cancelled = flow_run.state is not None and (flow_run.state.is_cancelled() or flow_run.state.is_cancelling())
    if cancelled:
        try:
            if wait.policy == "cancel":
                client = (await aload_credentials(wait.block)).get_client()
                await cancel_jobs_of(client, str(flow_run.id), [wait.job_id])
        except NotFound as error:
            # Deleted from the service: nothing is left to cancel.
            log.warning("Job %s of flow run %s: %s", wait.job_id, flow_run.id, error)
        finally:
            await hooks.clean_up(flow_run, cancel_jobs=wait.policy == "cancel", drain=wait.policy == "detach")
        log.info("Flow run %s was cancelled: policy %s for its jobs.", flow_run.id, wait.policy)
    elif flow_run.state is None or not flow_run.state.is_final():
        # After a crash the flow run may be about to be suspended with this same note, which is dropped at its end.
        return False
    await waits.drop_note(wait)
    return cancelled


_MOST = 200  # claims of one resumption that are read


@asynccontextmanager
async def claimed(flow_run_id: UUID, pause_key: str) -> AsyncIterator[bool]:
    """Claim the resumption of a flow run that is suspended with this key. Runs on the network loop.

    A claim is kept, as a pause key is used once; left by an error, it is given back.

    Args:
        flow_run_id: The flow run.
        pause_key: What it is suspended with.

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
