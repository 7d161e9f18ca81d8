"""Cancel means cancel; losing a process does not.

Both reach the code as the same `CancelledError`. Prefect's own state of the flow run tells them apart:
`Cancelling` or `Cancelled` means that somebody pressed Cancel, anything else that the process is going
away and the flow may run again, to attach to its jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Literal
from uuid import UUID

from prefect.context import FlowRunContext

from prefect_qruntime import keys, observe
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job
from prefect_qruntime.orchestration import api, current_flow_run_id
from prefect_qruntime.settings import current_settings

__all__ = ["Policy", "cancel_jobs_of", "cancelled_by_user", "cancels_jobs", "policy"]

Policy = Literal["cancel", "detach"]
log = logging.getLogger("prefect_qruntime.hooks")

POLICY_MARK = "qruntime_policy"
"""Attribute by which our hooks tell the policy of the flow that carries them."""


def policy() -> Policy:
    """What a cancelled flow run does to its jobs: its hooks say, else the settings."""
    context = FlowRunContext.get()
    if context is not None and context.flow is not None:
        for hook in context.flow.on_cancellation_hooks or ():
            mark = getattr(hook, POLICY_MARK, None)
            if mark in ("cancel", "detach"):
                return "cancel" if mark == "cancel" else "detach"
    return current_settings().on_cancel


async def cancelled_by_user() -> bool:
    """Whether Prefect says that this flow run, or the one above it in this process, is being cancelled."""
    flow_run_id = current_flow_run_id()
    if flow_run_id is None:
        return False
    try:
        where = await keys.origin()
        client = await api()
        for run_id in {flow_run_id, where.flow_run_id or flow_run_id}:
            state = (await client.read_flow_run(UUID(run_id))).state
            if state is not None and (state.is_cancelling() or state.is_cancelled()):
                return True
    except Exception:
        # Without an answer, leaving the job alone is what can be undone.
        log.warning("whether the flow run was cancelled cannot be told; its jobs are left alone", exc_info=True)
    return False


async def cancel_jobs_of(client: QuantumRuntimeClient, flow_run_id: str, also: Iterable[str] = ()) -> list[Job]:
    """Cancel all live jobs of a flow run.

    Args:
        client: The instance they run on.
        flow_run_id: The flow run.
        also: Job ids that the service's list may not show yet.

    Returns:
        The jobs as read back.
    """
    listed = await client.jobs(tags=(keys.flow_tag(flow_run_id),), pending=True)
    ids = list(dict.fromkeys([*also, *(job.id for job in listed)]))

    async def one(job_id: str) -> Job | None:
        try:
            return await client.cancel(job_id)
        except QuantumRuntimeError as error:
            log.error("job %s could not be cancelled: %s", job_id, error)
            return None

    done = [job for job in await asyncio.gather(*(one(job_id) for job_id in ids)) if job is not None]
    await asyncio.gather(*(observe.job_cancelled(job, flow_run_id=flow_run_id) for job in done))
    return done


@asynccontextmanager
async def cancels_jobs(client: QuantumRuntimeClient, job_ids: list[str]) -> AsyncIterator[None]:
    """Cancel the flow run's jobs if a user's cancellation ends this block. Runs on the home loop.

    Args:
        client: The instance.
        job_ids: Jobs known here; may grow while the block runs.
    """
    try:
        yield
    except asyncio.CancelledError:
        if policy() == "cancel" and await cancelled_by_user():
            where = await keys.origin()
            with contextlib.suppress(QuantumRuntimeError):
                if where.flow_run_id is not None:
                    done = await cancel_jobs_of(client, where.flow_run_id, job_ids)
                    log.info("flow run cancelled: %d jobs cancelled with it", len(done))
        raise
