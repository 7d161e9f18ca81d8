"""Cancel a flow run's jobs if a user cancels the flow run, and leave them running if only its process is lost.

Both reach the code as the same `CancelledError`. Prefect's own state of the flow run distinguishes them:
`Cancelling` or `Cancelled` means that a user pressed Cancel, anything else that the process is going
away and the flow may run again, to attach to its jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, ParamSpec, TypeVar
from uuid import UUID

from prefect.context import FlowRunContext, TaskRunContext

from prefect_qruntime.client import QuantumRuntimeClient, submission_keys
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.notifications import follow_usage
from prefect_qruntime.prefect_api import api, current_flow_run_id, patience
from prefect_qruntime.redact import get_logger, many
from prefect_qruntime.run_context import current_run
from prefect_qruntime.settings import current_settings

__all__ = [
    "Policy",
    "cancel_jobs_of",
    "cancelled_by_user",
    "cancels_jobs",
    "ends_with_flow_run",
    "policy",
    "polls_for_cancellation",
]

P = ParamSpec("P")
R = TypeVar("R")

Policy = Literal["cancel", "detach"]
log = get_logger(__name__)

_AFTER_PREFECT = 0.5  # seconds by which Prefect's own timeout of a flow run comes before ours
_ANSWER = 5.0  # seconds for which requests to a failing Prefect API are repeated
_UNSEEN_PAUSES = (0.5, 1.5, 4.0)  # seconds between tries for a job that the service does not know yet

POLICY_MARK = "qruntime_policy"
"""Attribute of our hooks that holds the policy of their flow."""


def policy() -> Policy:
    """What happens to the jobs of a cancelled flow run, according to its hooks or else to the settings."""
    context = FlowRunContext.get()
    if context is not None and context.flow is not None:
        for hook in context.flow.on_cancellation_hooks or ():
            mark = getattr(hook, POLICY_MARK, None)
            if mark in ("cancel", "detach"):
                return "cancel" if mark == "cancel" else "detach"
    return current_settings().on_cancel


async def cancelled_by_user(*, level: int = logging.WARNING) -> bool:
    """Whether, according to Prefect, this flow run or its parent in this process is being cancelled.

    Args:
        level: Log level of the message if Prefect does not answer.
    """
    flow_run_id = current_flow_run_id()
    if flow_run_id is None:
        return False
    try:
        with patience(_ANSWER):  # the process may have 30 seconds left
            where = await current_run()
            client = await api()
            for run_id in {flow_run_id, where.flow_run_id or flow_run_id}:
                state = (await client.read_flow_run(UUID(run_id))).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    return True
    except Exception:
        # Without an answer the jobs are left running, because a cancellation cannot be undone.
        log.log(level, "Prefect does not say whether the flow run was cancelled. Its jobs live on.", exc_info=True)
    return False


class _CancelBatch:
    """One cancellation of a flow run's jobs, shared by all callers that request it at the same moment.

    When a flow with hundreds of waits is cancelled, each of them asks for all of its jobs.
    """

    def __init__(self, client: QuantumRuntimeClient, flow_run_id: str) -> None:
        self.askers = 0
        self._client = client
        self._flow_run_id = flow_run_id
        self._listed: asyncio.Task[list[Job]] | None = None
        self._jobs: dict[str, asyncio.Task[Job]] = {}

    async def all_of(self, also: Iterable[str]) -> list[Job]:
        """Cancel these jobs and all live ones that are listed; see `cancel_jobs_of`."""
        for job_id in also:  # at once, without waiting for the list
            self._start(job_id)
        if self._listed is None:
            self._listed = asyncio.create_task(self._list())
        failure: QuantumRuntimeError | None = None
        try:
            for job in await asyncio.shield(self._listed):
                self._start(job.id)
        except QuantumRuntimeError as error:
            failure = error
        done = await asyncio.shield(asyncio.gather(*self._jobs.values(), return_exceptions=True))
        for failed in (failure, *done):
            if isinstance(failed, BaseException):
                raise failed
        return [job for job in done if isinstance(job, Job)]

    async def _list(self) -> list[Job]:
        return await self._client.jobs(tags=(submission_keys.flow_tag(self._flow_run_id),), pending=True)

    def _start(self, job_id: str) -> None:
        if job_id not in self._jobs:
            self._jobs[job_id] = asyncio.create_task(self._cancel(job_id))

    async def _cancel(self, job_id: str) -> Job:
        try:
            job = await self._until_visible(job_id)
        except QuantumRuntimeError as error:
            log.error("Job %s could not be cancelled: %s", job_id, error)
            raise
        await notifications.job_cancelled(job, flow_run_id=self._flow_run_id)
        follow_usage(self._client, job)
        return job

    async def _until_visible(self, job_id: str) -> Job:
        """Cancel a job, and try again while the service does not know it, as a new job may be unknown for a while."""
        for pause in _UNSEEN_PAUSES:
            with contextlib.suppress(NotFound):
                return await self._client.cancel(job_id)
            await asyncio.sleep(pause)
        return await self._client.cancel(job_id)


@dataclass(slots=True)
class CancellationWork:
    """The cancellations and cancellation pollers of this process, by CRN and flow run."""

    batches: dict[tuple[str, str], _CancelBatch] = field(default_factory=dict)
    pollers: dict[tuple[str, str], CancellationPoller] = field(default_factory=dict)


async def cancel_jobs_of(client: QuantumRuntimeClient, flow_run_id: str, also: Iterable[str] = ()) -> list[Job]:
    """Cancel all live jobs of a flow run. Runs on the network loop.

    Args:
        client: The instance they run on.
        flow_run_id: The flow run.
        also: Job ids that the service's list may not show yet.

    Returns:
        The jobs as read back.

    Raises:
        QuantumRuntimeError: Not all of them were cancelled; each was tried.
    """
    batches = network_loop().state(CancellationWork).batches
    which = (client.connection.crn, flow_run_id)
    here = batches.setdefault(which, _CancelBatch(client, flow_run_id))
    here.askers += 1
    try:
        return await here.all_of(also)
    finally:
        here.askers -= 1
        if not here.askers and batches.get(which) is here:
            del batches[which]


@asynccontextmanager
async def cancels_jobs(client: QuantumRuntimeClient, job_ids: list[str]) -> AsyncIterator[None]:
    """Cancel the flow run's jobs if a user's cancellation ends this block. Runs on the network loop.

    Args:
        client: The instance.
        job_ids: Jobs known here; may grow while the block runs.
    """
    try:
        yield
    except asyncio.CancelledError:
        if policy() == "cancel" and await cancelled_by_user():
            where = await current_run()
            with contextlib.suppress(QuantumRuntimeError):
                if where.flow_run_id is not None:
                    done = await cancel_jobs_of(client, where.flow_run_id, job_ids)
                    log.info("The flow run was cancelled, and %s with it.", many(len(done), "job"))
        raise


class CancellationPoller:
    """Poll Prefect for a cancellation on behalf of all waits of a flow run on one instance."""

    def __init__(self, client: QuantumRuntimeClient, every: float) -> None:
        self.jobs: Counter[str] = Counter()  # by how many waits
        self._client = client
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def watch(self, job_id: str) -> None:
        """Poll for one more wait."""
        self.jobs[job_id] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())

    def forget(self, job_id: str) -> bool:
        """Remove a wait that is over; returns whether it was the last one."""
        self.jobs[job_id] -= 1
        self.jobs += Counter()  # drops jobs without waits
        if self.jobs:
            return False
        if self._task is not None:
            self._task.cancel()
        return True

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            # An outage of Prefect's API would otherwise be logged at each poll.
            if await cancelled_by_user(level=logging.DEBUG) and await self._cancel():
                return

    async def _cancel(self) -> bool:
        """Cancel the jobs: their waits end as soon as the service says so."""
        where = await current_run()
        if where.flow_run_id is None:
            return True
        try:
            done = await cancel_jobs_of(self._client, where.flow_run_id, list(self.jobs))
        except QuantumRuntimeError:  # logged already
            return False
        log.info("The flow run was cancelled, and %s with it.", many(len(done), "job"))
        return True


@asynccontextmanager
async def polls_for_cancellation(client: QuantumRuntimeClient, job_id: str) -> AsyncIterator[None]:
    """Cancel the flow run's jobs when it is cancelled while this block runs. Runs on the network loop.

    Args:
        client: The instance.
        job_id: The job waited for.
    """
    flow_run_id, every = current_flow_run_id(), current_settings().cancel_look_seconds
    if flow_run_id is None or not every or policy() != "cancel":
        yield
        return
    pollers = network_loop().state(CancellationWork).pollers
    which = (client.connection.crn, flow_run_id)
    here = pollers.setdefault(which, CancellationPoller(client, every))
    here.watch(job_id)
    try:
        yield
    finally:
        if here.forget(job_id) and pollers.get(which) is here:
            del pollers[which]


def ends_with_flow_run(body: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a task's body end when its flow run reaches `timeout_seconds`.

    Prefect's timeout of a flow interrupts the flow function only. A task that was submitted continues in its thread,
    and the flow run waits for it. Works on the network loop; the body is cancelled as by any other timeout.
    """

    @functools.wraps(body)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
        context = FlowRunContext.get()
        limit = context.flow.timeout_seconds if context is not None and context.flow is not None else None
        if context is None or limit is None or TaskRunContext.get() is None:
            return await body(*args, **kwargs)
        left = limit - (datetime.now(UTC) - context.start_time).total_seconds() + _AFTER_PREFECT
        try:
            async with asyncio.timeout(max(0.0, left)) as scope:
                return await body(*args, **kwargs)
        except TimeoutError:
            if not scope.expired():
                raise
            # A TimeoutError, so that the task run ends in the state TimedOut as Prefect's own timeouts do.
            raise TimeoutError(
                f"The flow run reached its limit of {limit:g} seconds. Its jobs live on: a repeated run attaches to "
                "them."
            ) from None

    return bounded
