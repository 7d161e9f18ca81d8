"""Cancel a flow run's jobs if a user cancels the flow run, and leave them running if only its process is lost.

Both reach the code as the same `CancelledError`. Prefect's own state of the flow run distinguishes them:
`Cancelling` or `Cancelled` means that a user pressed Cancel, anything else that the process is going
away and the flow may run again, to attach to its jobs.

Where no signal reaches the code (a wait or a submission in a thread, a run without a deployment), it asks Prefect from
time to time, once for all tasks of a flow run.

All jobs of a flow run and its subflows carry the tag of the topmost one. So the jobs of a subflow are known by what
this process submitted in it, and by the records of its tasks in Prefect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, NoReturn, ParamSpec, TypeVar
from uuid import UUID

from cachetools import LRUCache
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound

from prefect_qruntime.client import QuantumRuntimeClient, submission_keys
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.service import each_job
from prefect_qruntime.errors import JobCancelled, NotFound, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import find_records
from prefect_qruntime.observability.notifications import follow_usage
from prefect_qruntime.prefect_api import (
    Lineage,
    api,
    current_flow_run_id,
    family,
    is_ending,
    lineage,
    patience,
    reason,
    starts_in,
)
from prefect_qruntime.redact import get_logger, lock_of_process, many
from prefect_qruntime.run_context import RunContext, has_deferred, runs_around
from prefect_qruntime.settings import current_settings

__all__ = [
    "Policy",
    "after_cancel",
    "belongs",
    "cancel_jobs_of",
    "cancelled_run",
    "cancels_jobs",
    "ends_if_cancelled",
    "ends_with_runs_around",
    "known_policy",
    "note_owner",
    "policy",
    "polls_for_cancellation",
]

P = ParamSpec("P")
R = TypeVar("R")

Policy = Literal["cancel", "detach"]
log = get_logger(__name__)

_AFTER_PREFECT = 0.5  # seconds by which Prefect's own timeout of a flow run comes before ours
_ANSWER = 5.0  # seconds for which requests to a failing Prefect API are repeated
_FRESH = 2.0  # seconds for which an answer to one submission will do for the others of its flow run
_KEEP = 1024
_UNLISTED_PAUSES = (0.5, 1.5, 3.0, 5.0, 5.0)
"""Seconds between looks for a job whose submission was not answered; a process that is cancelled may have 30 left."""
_UNSEEN_PAUSES = (0.5, 1.5, 4.0)  # seconds between tries for a job that the service does not know yet

_lock = lock_of_process()
_policies: LRUCache[UUID, Policy] = LRUCache(_KEEP)  # of flow runs, as Prefect showed the flows around them

POLICY_MARK = "qruntime_policy"
"""Attribute of our hooks that holds the policy of their flow."""


def policy() -> Policy:
    """What happens to the jobs of a cancelled flow run, by its hooks, those of the flows around it, or the settings."""
    return known_policy() or current_settings().on_cancel


def known_policy() -> Policy | None:
    """As `policy`; None if Prefect shows no longer which flows are around, as one of them may have a hook of ours.

    It takes a subflow's context apart when its function has returned, and waits for its tasks only then. What it showed
    in this flow run before still holds.
    """
    flows = runs_around()[0]
    found, own = _shown_policy(flows), flows[0].flow_run if flows else None
    if own is None:
        return found
    with _lock:
        if found is None:
            return _policies.get(own.id)
        _policies[own.id] = found
    return found


def _shown_policy(flows: Sequence[FlowRunContext]) -> Policy | None:
    for context in flows:
        for hook in (context.flow.on_cancellation_hooks or ()) if context.flow is not None else ():
            mark = getattr(hook, POLICY_MARK, None)
            if mark in ("cancel", "detach"):
                return "cancel" if mark == "cancel" else "detach"
    top = flows[-1].flow_run if flows else None
    shown = top is None or top.parent_task_run_id is None or top.deployment_id is not None
    return current_settings().on_cancel if shown else None


class _Answer(NamedTuple):
    """What Prefect said: when it was asked, which run is being cancelled, the topmost one's starts, if one is gone."""

    asked: float
    cancelled: str | None = None
    starts: int = 0
    gone: bool = False


@dataclass(slots=True)
class _FlowRuns:
    """What this process knows of its flow runs' cancellations and jobs. Lives on the network loop."""

    answers: LRUCache[str, _Answer] = field(default_factory=lambda: LRUCache(_KEEP))
    asking: SingleFlight[_Answer] = field(default_factory=SingleFlight)
    owners: LRUCache[tuple[str, str], frozenset[Lineage]] = field(default_factory=lambda: LRUCache(16 * _KEEP))


async def cancelled_run(*, max_age: float = 0.0, level: int = logging.WARNING) -> str | None:
    """The topmost flow run that contains the caller and is being cancelled, according to Prefect; None if none is.

    Args:
        max_age: Seconds for which an earlier answer will do, also that to another task of the flow run.
        level: Log level of the message if Prefect does not answer.
    """
    return (await _answer(max_age, level)).cancelled


async def _answer(max_age: float, level: int) -> _Answer:
    own = current_flow_run_id()
    if own is None:
        return _Answer(time.monotonic())
    runs = network_loop().state(_FlowRuns)
    found = runs.answers.get(own, _Answer(-math.inf))
    if time.monotonic() - found.asked >= max_age:
        # A request that is under way may have been sent before the cancellation.
        asking = runs.asking.join(lambda: _ask(level), own) if max_age else _ask(level)
        found = runs.answers[own] = await asking
    return found


async def _ask(level: int) -> _Answer:
    asked = time.monotonic()
    try:
        with patience(_ANSWER):  # the process may have 30 seconds left
            *subflows, top = await lineage()
            client = await api()
            states = await client.read_flow_run_states(UUID(top))
            starts = starts_in(states)
            if is_ending(states):
                return _Answer(asked, top, starts)
            gone = not states and await _is_deleted(client, top)
            for run_id in reversed(subflows):
                states = await client.read_flow_run_states(UUID(run_id))
                if is_ending(states):
                    return _Answer(asked, run_id, starts)
                gone = gone or (not states and await _is_deleted(client, run_id))
        return _Answer(asked, None, starts, gone)
    except Exception as error:
        # Without an answer the jobs are left running, because a cancellation cannot be undone.
        said = "Prefect does not say whether the flow run was cancelled. Its jobs live on: %s"
        log.log(level, said, reason(error))
    return _Answer(asked)


async def _is_deleted(client: PrefectClient, flow_run_id: str) -> bool:
    """Whether Prefect does not know a flow run without states: an empty list alone may be no answer of Prefect's."""
    try:
        await client.read_flow_run(UUID(flow_run_id))
    except ObjectNotFound:
        return True
    return False


# ---- the jobs of a flow run --------------------------------------------------------------------------------------


def note_owner(client: QuantumRuntimeClient, job_id: str, runs: Lineage) -> None:
    """Remember in which flow run this process submitted a job or attached to it. On the network loop."""
    if runs:
        owners, which = network_loop().state(_FlowRuns).owners, (client.connection.crn, job_id)
        owners[which] = owners.get(which, frozenset()) | {runs}


def _owners(client: QuantumRuntimeClient, job_id: str) -> Collection[Lineage]:
    return network_loop().state(_FlowRuns).owners.get((client.connection.crn, job_id), frozenset())


def belongs(owners: Collection[Lineage], flow_run_id: str, top: str) -> bool | None:
    """Whether a job is cancelled with a flow run; None if the owners do not say.

    A subflow's cancellation leaves alone what another subflow or the parent submitted or attached to.

    Args:
        owners: The flow runs of this process that submitted the job or attached to it.
        flow_run_id: The flow run that is being cancelled.
        top: The topmost one, whose tag the job carries.

    Example:
        ```python
        from prefect_qruntime.cancellation import belongs

        assert belongs([("subflow", "parent")], "subflow", "parent")
        assert belongs([("another subflow", "parent")], "subflow", "parent") is False
        ```
    """
    if any(flow_run_id not in runs and runs[-1] == top for runs in owners):
        return False
    return True if any(flow_run_id in runs for runs in owners) else None


class _CancelBatch:
    """One cancellation of a flow run's jobs, shared by all callers that request it at the same moment.

    When a flow with hundreds of waits is cancelled, each of them asks for all of its jobs.
    """

    def __init__(self, client: QuantumRuntimeClient, flow_run_id: str, top: str) -> None:
        self.askers = 0
        self._client = client
        self._flow_run_id = flow_run_id
        self._top = top
        self._listed: asyncio.Task[list[Job]] | None = None
        self._jobs: dict[str, asyncio.Task[Job]] = {}

    async def all_of(self, also: Iterable[str]) -> list[Job]:
        """Cancel these jobs and all live ones that are listed; see `cancel_jobs_of`."""
        for job_id in also:  # at once, without waiting for the list
            if self._belongs(job_id) is not False:
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

    def _belongs(self, job_id: str) -> bool | None:
        return belongs(_owners(self._client, job_id), self._flow_run_id, self._top)

    async def _list(self) -> list[Job]:
        # Jobs leave this list while it is read, not least those that are being cancelled.
        tag = submission_keys.flow_tag(self._top)
        listed = [job async for job in each_job(self._client, tags=(tag,), pending=True)]
        if self._top == self._flow_run_id:
            return listed
        unknown = [job for job in listed if self._belongs(job.id) is None]  # of an earlier process, or another one
        recorded = await self._recorded() if unknown else set[str]()
        return [job for job in listed if self._belongs(job.id) or (job in unknown and job.id in recorded)]

    async def _recorded(self) -> set[str]:
        """The jobs that the tasks of the flow run and its subflows recorded in Prefect."""
        try:
            records = await find_records("job", flow_run_ids=await family(UUID(self._flow_run_id)))
        except Exception as error:
            log.warning(
                "The jobs that another process submitted in flow run %s are not known: Prefect's API failed (%r). Jobs "
                "of this process are cancelled.",
                self._flow_run_id,
                error,
            )
            return set()
        return {record.meta["id"] for record in records if record.meta.get("id")}

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
        if not job.is_terminal:  # the service answers the same whether it will cancel a job or never does
            log.error("Job %s %s.", job_id, after_cancel(job))
            raise QuantumRuntimeError(f"Job {job_id} {after_cancel(job)}.", job_id=job_id)
        follow_usage(self._client, job)
        return job

    async def _until_visible(self, job_id: str) -> Job:
        """Cancel a job, and try again while the service does not know it, as a new job may be unknown for a while."""
        for pause in _UNSEEN_PAUSES:
            with contextlib.suppress(NotFound):
                return await self._client.cancel(job_id)
            await asyncio.sleep(pause)
        return await self._client.cancel(job_id)


def after_cancel(job: Job) -> str:
    """What became of a job that was asked to be cancelled, by the state that the service showed afterwards."""
    if job.status is JobStatus.CANCELLED:
        return "is cancelled"
    return "was over already" if job.is_terminal else f"was asked to be cancelled and is still {job.raw_status!r}"


@dataclass(slots=True)
class CancellationWork:
    """The cancellations and cancellation pollers of this process, by CRN and flow run."""

    batches: dict[tuple[str, str], _CancelBatch] = field(default_factory=dict)
    pollers: dict[tuple[str, str], CancellationPoller] = field(default_factory=dict)


async def cancel_jobs_of(
    client: QuantumRuntimeClient, flow_run_id: str, also: Iterable[str] = (), *, top: str | None = None
) -> list[Job]:
    """Cancel all live jobs of a flow run and of its subflows. Runs on the network loop.

    Args:
        client: The instance they run on.
        flow_run_id: The flow run.
        also: Job ids that the service's list may not show yet. Those of other flow runs of this process are left out.
        top: The topmost flow run that contains it in its process, if that is another one.

    Returns:
        The jobs as read back.

    Raises:
        QuantumRuntimeError: Not all of them are over; each was tried.
    """
    batches = network_loop().state(CancellationWork).batches
    which = (client.connection.crn, flow_run_id)
    here = batches.setdefault(which, _CancelBatch(client, flow_run_id, top or flow_run_id))
    here.askers += 1
    try:
        return await here.all_of(also)
    finally:
        here.askers -= 1
        if not here.askers and batches.get(which) is here:
            del batches[which]


async def _cancel_with(client: QuantumRuntimeClient, flow_run_id: str, also: Iterable[str] = ()) -> list[Job]:
    """Cancel the jobs of a flow run that contains the caller and was cancelled.

    Raises:
        QuantumRuntimeError: Not all of them were cancelled; that is logged.
    """
    runs = await lineage()
    done = await cancel_jobs_of(client, flow_run_id, also, top=runs[-1] if runs else None)
    ended = sum(job.status is JobStatus.CANCELLED for job in done)
    log.info("The flow run was cancelled, and %s with it.", many(ended, "job"))
    return done


@asynccontextmanager
async def cancels_jobs(
    client: QuantumRuntimeClient, job_ids: list[str], *, lost: Collection[str] | None = None
) -> AsyncIterator[None]:
    """Cancel the flow run's jobs if a user's cancellation ends this block. Runs on the network loop.

    Args:
        client: The instance.
        job_ids: Jobs known here; may grow while the block runs.
        lost: Around a submission: keys of requests whose answers were lost; may change while the block runs. If
            something else ends it, the log says what lives on, as its caller gets no handle.
    """
    try:
        yield
    except asyncio.CancelledError:
        if policy() == "cancel" and (run := await cancelled_run()) is not None:
            with contextlib.suppress(Exception):
                await _cancel_with(client, run, job_ids)
            if lost:
                await _cancel_lost(client, run, list(lost))
        elif lost is not None:
            _say_what_lives_on(job_ids, lost)
        raise
    except Exception as error:
        if lost and not isinstance(error, SubmissionUncertain | JobCancelled):  # which say so themselves
            _say_what_lives_on((), lost)
        raise


def _say_what_lives_on(job_ids: Collection[str], lost: Collection[str]) -> None:
    again = "A repeated flow run attaches to it. " if current_flow_run_id() is not None else ""
    for job_id in job_ids:
        notifications.log_to_run(
            f"The call was interrupted, but job {job_id} was submitted and lives on. {again}`wait_for_completion` and "
            "`cancel_job` take its id.",
            level=logging.WARNING,
        )
    if lost:
        notifications.log_to_run(
            "The call ended before the service answered. If it accepted a job, the job lives on. "
            f"{again}Look for the tag {' or '.join(lost)} in the instance's workloads.",
            level=logging.WARNING,
        )


async def _cancel_lost(client: QuantumRuntimeClient, flow_run_id: str, keys: list[str]) -> None:
    """Cancel the job of a submission whose answer was lost, when the service's list shows it."""
    for pause in (0.0, *_UNLISTED_PAUSES):
        await asyncio.sleep(pause)
        listed: list[Job] = []
        with contextlib.suppress(Exception):
            listed = [job for key in keys for job in await client.jobs(tags=(key,))]
        if listed:
            with contextlib.suppress(Exception):  # what could not be cancelled is logged
                await cancel_jobs_of(client, flow_run_id, [job.id for job in listed if not job.is_terminal])
            return
    log.error(
        "The flow run was cancelled while a job was submitted, and it is not known whether the job was accepted. If it "
        "was, it lives on. Look for the tag %s in the instance's workloads.",
        " or ".join(keys),
    )


# ---- cancellations without a signal ------------------------------------------------------------------------------


class CancellationWatch:
    """Ends the block of a task with `JobCancelled` if its flow run is being cancelled; see `ends_if_cancelled`."""

    def __init__(
        self, client: QuantumRuntimeClient, job_id: str | None, where: RunContext | None, lost: Collection[str]
    ) -> None:
        self.job_id = job_id
        self._where = where
        self._lost = lost
        self.fired_by: str | None = None
        self.noticed: str | None = None
        self._armed = True
        self._client = client
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0

    def arm(self, armed: bool = True) -> None:
        """Allow the block to be ended from now on, or not while a request is sent that must not be lost."""
        self._armed = armed

    def fire(self, flow_run_id: str) -> None:
        """End the block, if it may be ended: this flow run is being cancelled."""
        if self._armed and self.fired_by is None and self._task is not None:
            self.fired_by = flow_run_id
            self._task.cancel()

    def ended_by(self) -> str | None:
        """The flow run whose cancellation alone ends the block with a `CancelledError`; None if something else does."""
        if self.fired_by is None or self._task is None or self._task.uncancel() > self._cancelling:
            return None
        return self.fired_by

    async def check(self) -> None:
        """Ask Prefect, unless it was asked a moment ago. Call it right before a job or a session is created.

        Raises:
            JobCancelled: The flow run is being cancelled.
            QuantumRuntimeError: The flow run was deleted, or started again: this process is no longer the one that buys
                for it.
        """
        max_age, where = min(current_settings().cancel_look_seconds, _FRESH), self._where
        just_read = where is not None and time.monotonic() - where.touched < max_age and not where.ending
        if just_read and len(await lineage()) == 1:
            return
        answer = await _answer(max_age, logging.DEBUG)
        if answer.cancelled is not None:
            # The caller has locks that others wait for: the jobs are cancelled and searched for when it has left them.
            self.arm(False)
            self.noticed = answer.cancelled
            raise self._cancelled()
        if answer.gone:
            raise QuantumRuntimeError(
                "The flow run was deleted in Prefect while this process went on with it.",
                solution=f"{self._sent()} Jobs that it submitted before live on. End the process.",
            )
        if where is not None and 0 < where.starts < answer.starts:
            raise QuantumRuntimeError(
                "The flow run was started again elsewhere while this process went on with it.",
                solution=f"{self._sent()} The newer process submits what is missing. End this one.",
            )

    async def end(self, flow_run_id: str) -> NoReturn:
        """End the block with the error that says why; a submission first cancels the jobs of its flow run.

        Raises:
            JobCancelled: Always.
        """
        if self.job_id is None:
            if policy() == "cancel":
                with contextlib.suppress(Exception):  # logged already
                    await _cancel_with(self._client, flow_run_id)
                if self._lost:
                    await _cancel_lost(self._client, flow_run_id, list(self._lost))
            raise self._cancelled() from None
        raise JobCancelled(
            f"The flow run is being cancelled. Job {self.job_id}, which another flow run submitted, lives on.",
            job_id=self.job_id,
        ) from None

    def _cancelled(self) -> JobCancelled:
        return JobCancelled("The flow run is being cancelled.", solution=self._sent())

    def _sent(self) -> str:
        if not self._lost:
            return "Nothing was sent."
        return f"Nothing more was sent. An answer was lost before: the tag is {' or '.join(self._lost)}."


class CancellationPoller:
    """Poll Prefect for a cancellation on behalf of all tasks of a flow run on one instance."""

    def __init__(self, client: QuantumRuntimeClient, every: float) -> None:
        self.watches: set[CancellationWatch] = set()
        self._client = client
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def add(self, watch: CancellationWatch) -> None:
        """Poll for one more task."""
        self.watches.add(watch)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())

    def remove(self, watch: CancellationWatch) -> bool:
        """Remove a task; returns whether it was the last one."""
        self.watches.discard(watch)
        if self.watches:
            return False
        if self._task is not None:
            self._task.cancel()
        return True

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            # An outage of Prefect's API would otherwise be logged at each poll.
            run = await cancelled_run(max_age=self._every / 2, level=logging.DEBUG)
            if run is not None and await self._end(run):
                return

    async def _end(self, run: str) -> bool:
        """Stop the submissions and cancel the jobs: their waits end as soon as the service says so."""
        for watch in list(self.watches):
            if watch.job_id is None:
                watch.fire(run)
        waited_for = [watch.job_id for watch in self.watches if watch.job_id is not None]
        if not waited_for:
            return True
        over = False
        with contextlib.suppress(Exception):  # logged already
            await _cancel_with(self._client, run, waited_for)
            over = True
        top = (await lineage())[-1]
        for watch in list(self.watches):
            if watch.job_id is not None and belongs(_owners(self._client, watch.job_id), run, top) is False:
                watch.fire(run)
        return over


@asynccontextmanager
async def ends_if_cancelled(
    client: QuantumRuntimeClient,
    job_id: str | None = None,
    *,
    where: RunContext | None = None,
    lost: Collection[str] = (),
) -> AsyncIterator[CancellationWatch | None]:
    """End the block of the running task with `JobCancelled` if its flow run is being cancelled. On the network loop.

    For a submission nothing else: the block is what happens before a request is sent. A wait ends because its job is
    cancelled; only if the job belongs to another flow run, and lives on, its block is ended too.

    Args:
        client: The instance.
        job_id: The job waited for; None for a submission.
        where: The flow run of a submission, as this process first read it.
        lost: Of a submission, keys of requests whose answers were lost; may change while the block runs.

    Yields:
        The watch, to ask Prefect right before something is created, and to disarm it while a request is under way; None
        outside a flow, and if the settings say that Prefect is not to be asked.

    Raises:
        JobCancelled: The flow run is being cancelled; nothing was sent, or the error names the keys in `lost`.
    """
    flow_run_id, every = current_flow_run_id(), current_settings().cancel_look_seconds
    if flow_run_id is None or not every:
        yield None
        return
    watch = CancellationWatch(client, job_id, where, lost)
    pollers = network_loop().state(CancellationWork).pollers
    which = (client.connection.crn, flow_run_id)
    here = pollers.setdefault(which, CancellationPoller(client, every))
    here.add(watch)
    try:
        yield watch
    except asyncio.CancelledError:
        if (run := watch.ended_by()) is not None:
            await watch.end(run)
        raise
    except JobCancelled:
        if watch.noticed is not None:
            await watch.end(watch.noticed)
        raise
    finally:
        if here.remove(watch) and pollers.get(which) is here:
            del pollers[which]


@asynccontextmanager
async def polls_for_cancellation(client: QuantumRuntimeClient, job_id: str) -> AsyncIterator[None]:
    """Cancel the flow run's jobs when it is cancelled while this block runs. Runs on the network loop.

    Raises:
        JobCancelled: The flow run is being cancelled, and the job lives on because it belongs to another one.
    """
    if current_flow_run_id() is None or policy() != "cancel":
        yield
        return
    async with ends_if_cancelled(client, job_id):
        yield


class _Limit(NamedTuple):
    """A time limit of a flow or task run: when it ends by the loop's clock, its seconds, whose, and the task run."""

    end: float
    seconds: float
    kind: str
    task_run: TaskRun | None

    @property
    def is_void(self) -> bool:
        """Whether its task run is over, and not because of it: what was submitted there is left behind."""
        state = self.task_run.state if self.task_run is not None else None
        return state is not None and state.is_final() and state.name != "TimedOut"


def _time_limits() -> list[_Limit]:
    """The time limits of the flow and task runs around the caller's task, the next one first."""
    flows, _, tasks = runs_around()
    flows = [one for one in flows if not has_deferred(one)]
    here = {one.flow_run.id for one in flows if one.flow_run is not None and not one.detached}
    around: list[tuple[Any, Any, str, TaskRun | None]] = [(one, one.flow, "flow", None) for one in flows]
    # The first is the caller's own task, whose limit Prefect sees to.
    around += [(one, one.task, "task", one.task_run) for one in tasks[1:] if one.task_run.flow_run_id in here]
    now, moment = datetime.now(UTC), asyncio.get_running_loop().time()  # read once: the wall clock may jump later
    found = [
        _Limit(moment + (context.start_time - now).total_seconds() + limit, limit, kind, task_run)
        for context, what, kind, task_run in around
        if what is not None and (limit := what.timeout_seconds) is not None
    ]
    return sorted(found, key=lambda one: one.end)


def ends_with_runs_around(body: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make a task's body end when its flow run, or a flow or task run around that, reaches `timeout_seconds`.

    Prefect's timeout interrupts the function of that flow or task only. A task that was submitted in it continues in
    its thread, and its flow run waits for it, with all flow runs around. Works on the network loop; the body is
    cancelled as by any other timeout.
    """

    @functools.wraps(body)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
        # Read once: Prefect takes the contexts apart while a flow run waits for what was submitted in it.
        limits = _time_limits() if TaskRunContext.get() is not None else []
        if not limits:
            return await body(*args, **kwargs)
        loop = asyncio.get_running_loop()
        pending: asyncio.Handle

        def look() -> None:
            nonlocal pending
            while limits and limits[0].is_void:
                del limits[0]
            if not limits:
                return
            due = limits[0].end + _AFTER_PREFECT
            if due > loop.time():
                pending = loop.call_at(due, look)
            else:
                scope.reschedule(loop.time())

        pending = loop.call_soon(look)
        try:
            async with asyncio.timeout(None) as scope:
                return await body(*args, **kwargs)
        except TimeoutError:
            if not scope.expired():
                raise
            # A TimeoutError, so that the task run ends in the state TimedOut as Prefect's own timeouts do.
            raise TimeoutError(
                f"The {limits[0].kind} run around this task reached its limit of {limits[0].seconds:g} seconds. Its "
                "jobs live on: a repeated run attaches to them."
            ) from None
        finally:
            pending.cancel()

    return bounded
