"""The run and the process that a submission belongs to.

Of the run: its flow run, whether it is repeated, and how often it has submitted. Of the process: the facts that
identify it across hosts, which are recorded with jobs and sessions, and whether another one has ended. A process id
alone is ambiguous: it is reused, and every host and container has its own. So it is recorded with its host, the host's
boot id, its pid namespace and its own start time. What is not known here is never guessed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cachetools import LRUCache
from prefect.context import FlowRunContext, TaskRunContext
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from prefect_qruntime.client.failures import job_error
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.errors import JobRanTooLong
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.prefect_api import api, is_ending, lineage, starts_in
from prefect_qruntime.redact import lock_of_process

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, TaskRun

__all__ = [
    "PROCESS_FACTS",
    "RunContext",
    "call_index",
    "current_run",
    "deferred_around",
    "has_deferred",
    "has_had",
    "may_run_twice",
    "note_job",
    "process_facts",
    "process_is_gone",
    "runs_around",
    "submission_in_flight",
    "submissions_in_flight",
    "submitted_so_far",
    "token_of_task_run",
]


PROCESS_FACTS = ("host", "machine", "boot", "space", "pid", "started")

_FIRST_PID_SPACE = "pid:[4026531836]"  # of a Linux machine itself; a container has another one

_KEEP = 2048
_lock = lock_of_process()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a link to no file
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process started, in ticks since the machine's start; empty if it is gone or that is not known."""
    # The name in the second field may contain spaces and parentheses.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X") else ""


@cache
def _place() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "machine": _read("/etc/machine-id"),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "space": _pid_space(),
    }


def process_facts() -> dict[str, str]:
    """The facts that identify this process among those of all hosts."""
    return dict(_facts_of(os.getpid()))


@lru_cache(maxsize=1)  # a forked process has another id
def _facts_of(pid: int) -> dict[str, str]:
    return {**_place(), "pid": str(pid), "started": _start_of(pid)}


def process_is_gone(facts: Mapping[str, str]) -> bool | None:
    """Whether a process has ended; None if that is not known here, for instance of another host.

    Args:
        facts: The `process_facts` of that process.
    """
    here = _place()
    same = {name: facts.get(name, "") == value for name, value in here.items()}
    pid = facts.get("pid", "")
    if not pid.isdigit() or not same["host"] or not same["space"]:
        return None
    if not same["boot"]:
        # The machine was restarted since. A container may share its name and id with one elsewhere.
        restarted = same["machine"] and here["machine"] and here["boot"] and here["space"] == _FIRST_PID_SPACE
        return True if restarted else None
    if not here["boot"]:  # not Linux: a process with this id need not be the same one
        return None if os.name == "nt" or _exists(int(pid)) else True
    return _start_of(int(pid)) != facts.get("started")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@dataclass(frozen=True, slots=True)
class RunContext:
    """The run that a submission comes from.

    Attributes:
        flow_run_id: The topmost flow run of this process, or None outside any flow.
        identity: The run's part of the submission key.
        repeated: Whether an earlier attempt of it may have submitted.
        retried: Whether it was retried (a resume does not count).
        attempt: Which start of the flow run this is.
        touched: When this process first saw this attempt, on the monotonic clock.
        deployment_id: The deployment of the flow run, if it has one.
        asked: When the previous try ended, on Prefect's clock; None if unknown.
        tries: How often it was retried. A resume does not count, although it starts the flow run again.
        again: How often Prefect started each task run and subflow run around the caller again, the outermost first;
            without zeros at the end.
        starts: In how many processes it had been started when this one first read it; 0 outside a flow.
        ending: Whether it was being cancelled then.
    """

    flow_run_id: str | None
    identity: str
    repeated: bool
    retried: bool
    attempt: int
    touched: float
    deployment_id: str | None = None
    asked: datetime | None = None
    tries: int = 0
    again: tuple[int, ...] = ()
    starts: int = 0
    ending: bool = False

    def may_resubmit(self, dead: Job, *, service_ahead: float = 0.0, prefect_ahead: float = 0.0) -> bool:
        """Whether a failed or cancelled job is to be submitted again: only if the flow run was retried since.

        A flow run that was retried and is resumed later was not asked to try again for what failed meanwhile. A job
        that ran too long is final: the same job would run too long again, and cost its whole limit again.

        Args:
            dead: The job, as the service has it.
            service_ahead: Seconds by which the service's clock is ahead of this machine's.
            prefect_ahead: The same of Prefect's clock.
        """
        if not self.retried or isinstance(job_error(dead), JobRanTooLong):
            return False
        with _lock:
            had_in = _had.get((self.identity, dead.id))
        if had_in is not None:
            # From the outside in: the retry of an outer run begins the count of the inner ones again.
            return had_in < (self.tries, self.again)
        # Another process submitted it. Attempts in two processes are seconds apart; clocks may differ by minutes.
        if self.asked is None or dead.created_at is None:
            return True
        created = dead.created_at.timestamp() - service_ahead
        return created < self.asked.timestamp() - prefect_ahead


_runs: LRUCache[tuple[str, int, object], RunContext] = LRUCache(_KEEP)


_touched: LRUCache[tuple[str, int], float] = LRUCache(_KEEP)


_counts: LRUCache[tuple[str, int], Counter[str]] = LRUCache(_KEEP)


_Place = tuple[str, str, int]
"""A task run or subflow run, a payload, and which of its submissions of that payload."""

_made: LRUCache[tuple[str, int], Counter[str | _Place]] = LRUCache(16 * _KEEP)
"""How many submissions of each payload a start of a task run or subflow run has made, and which of the runs in it."""

_numbers: LRUCache[_Place, int] = LRUCache(64 * _KEEP)
"""The number of the n-th submission of a payload in a task run or subflow run, which makes it again when repeated."""

_had: LRUCache[tuple[str, str], tuple[int, tuple[int, ...]]] = LRUCache(16 * _KEEP)
"""For a run and a job that it got in this process: how often the run and what is in it had been retried then."""


@dataclass(frozen=True, slots=True)
class _Start:
    """A start of a task run or a subflow run that encloses the caller: Prefect may start it again by itself."""

    run_id: str
    number: int


def runs_around() -> tuple[list[FlowRunContext], list[_Start], list[TaskRunContext]]:
    """The contexts of the flow runs around the caller; all starts, the outermost first; the contexts of the task runs.

    Contexts come the innermost first. Prefect itself shows the innermost of each kind only; its contexts hold the one
    that they were entered in.
    """
    flows, entered = dict[UUID, Any](), dict[UUID, Any]()  # Prefect enters some contexts twice
    context: Any = TaskRunContext.get()
    while isinstance(context, TaskRunContext):
        entered.setdefault(context.task_run.id, context)
        context = None if context._token is None else context._token.old_value
    context = FlowRunContext.get()
    while isinstance(context, FlowRunContext) and context.flow_run is not None:
        flows.setdefault(context.flow_run.id, context)
        top = context.flow_run.parent_task_run_id is None
        context = None if top or context._token is None else context._token.old_value
    tasks = [one.task_run for one in reversed(entered.values())]
    runs: list[FlowRun | TaskRun] = [one for one in tasks if one.flow_run_id not in flows]
    for flow_context in reversed(flows.values()):
        inside = [one for one in tasks if one.flow_run_id == flow_context.flow_run.id]
        runs += [flow_context.flow_run, *inside]
    return list(flows.values()), [_Start(str(one.id), one.run_count or 0) for one in runs], list(entered.values())


async def current_run() -> RunContext:
    """The run of the running task. Asks Prefect once per flow run attempt and process."""
    flows, around, _ = runs_around()
    if not flows:
        identity = f"task-run:{around[0].run_id}" if around else f"call:{uuid.uuid4()}"
        known = RunContext(None, identity, False, False, 0, time.monotonic())
    else:
        # One answer for all of an attempt, its subflows too: they count their submissions together. Prefect does not
        # count a resume as another run; when the flow was started distinguishes them.
        top, flow_run = flows[-1], flows[-1].flow_run
        assert flow_run is not None  # noqa: S101 - `runs_around` has looked
        attempt = (str(flow_run.id), flow_run.run_count or 0, top.start_time)
        with _lock:
            found = _runs.get(attempt)
        if found is None:
            # Mapped submissions start together; one of them asks for all.
            elsewhere = flows[-1].detached
            found = await network_loop().state(_Reading).join(lambda: _read_run(flow_run, elsewhere), *attempt)
            with _lock:
                _runs[attempt] = found
        known = found
    # Of a task run or a subflow run that Prefect started again, the submissions in it are repeated too.
    again = [max(0, start.number - 1) for start in around if start.run_id != known.flow_run_id]
    while again and not again[-1]:
        again.pop()
    return replace(known, repeated=True, retried=True, again=tuple(again)) if again else known


def may_run_twice() -> bool:
    """Whether the engine that runs this task may run it once more in another process, without a retry of Prefect's.

    Dask and Ray do so if they lose a worker, also for tasks that were over; Prefect's own threads and processes do not.
    """
    context = FlowRunContext.get()
    return context is not None and context.detached and not isinstance(context.task_runner, ProcessPoolTaskRunner)


def token_of_task_run() -> str | None:
    """Hexadecimal digits that are the same each time an engine runs this task run; None outside a task."""
    context = TaskRunContext.get()
    return None if context is None else context.task_run.id.hex


def has_deferred(flow: FlowRunContext) -> bool:
    """Whether a flow run around the caller deferred the task that the caller is in, and does not wait for it."""
    # A flow run with such a runner runs its other tasks in its own process.
    return flow.detached and isinstance(flow.task_runner, ThreadPoolTaskRunner)


def deferred_around() -> dict[str, str]:
    """What to record of the task runs around the caller's own, if one was deferred; see `is_of_deferred_task`."""
    flows, _, tasks = runs_around()
    ids = [str(one.task_run.id) for one in tasks[1:]] if flows and has_deferred(flows[-1]) else []
    return {"deferred": ",".join(ids), **process_facts()} if ids else {}


class _Reading(SingleFlight[RunContext]):
    """Read an attempt of a flow run from Prefect."""


async def _read_run(flow_run: FlowRun, elsewhere: bool) -> RunContext:
    client, runs = await api(), await lineage()
    # A subflow of this process has no deployment of its own; one that has, runs in its own process.
    top = flow_run if len(runs) == 1 else await client.read_flow_run(UUID(runs[-1]))
    states = await client.read_flow_run_states(top.id)
    began = sum(state.is_running() for state in states)
    # A deferred task may run when its flow run, in another process, is over or paused. That alone repeats nothing.
    before = [] if elsewhere and began == 1 else states
    ended = [state.timestamp for state in before if state.is_final() or state.name == "AwaitingRetry"]
    parked = any(state.is_paused() for state in before)
    identity, attempt = f"flow-run:{top.id}", max(began, top.run_count or 0)
    with _lock:
        touched = _touched.setdefault((identity, attempt), time.monotonic())
    return RunContext(
        flow_run_id=str(top.id),
        identity=identity,
        repeated=began > 1 or bool(ended) or parked or (top.run_count or 0) > 1,
        retried=bool(ended) or (top.run_count or 0) > 1,
        attempt=attempt,
        touched=touched,
        deployment_id=str(top.deployment_id) if top.deployment_id is not None else None,
        asked=max(ended, default=None),
        tries=max(len(ended), (top.run_count or 0) - 1),
        starts=starts_in(states),
        ending=is_ending(states),
    )


def note_job(where: RunContext, job: JobRef) -> None:
    """Remember that this try submitted a job or attached to it, unless an earlier one had it already."""
    with _lock:
        _had.setdefault((where.identity, job.id), (where.tries, where.again))


def has_had(where: RunContext, job_id: str) -> bool:
    """Whether the run got the job in this process."""
    with _lock:
        return (where.identity, job_id) in _had


def submitted_so_far(where: RunContext, digest: str) -> int:
    """How many submissions of this payload this attempt has made so far."""
    with _lock:
        return _counts[where.identity, where.attempt][digest] if (where.identity, where.attempt) in _counts else 0


def call_index(where: RunContext, digest: str) -> int:
    """The number of the caller's next submission of this payload in its flow run.

    Counted by attempt of the flow run. A task run or a subflow run around the caller that Prefect started again makes
    the submissions of its earlier starts once more, so they get the numbers that those had.
    """
    with _lock:
        places, known, inner = list[_Place](), None, None
        for start in reversed(runs_around()[1]):
            if start.run_id == where.flow_run_id:
                continue
            made = _made.setdefault((start.run_id, start.number), Counter())
            if inner is not None:
                if made[inner]:  # this start, and those around it, counted it when the run in it made it before
                    break
                made[inner] = 1
            inner = start.run_id, digest, made[digest]
            made[digest] += 1
            places.append(inner)
            known = _numbers.get(inner) if known is None else known
        counter = _counts.setdefault((where.identity, where.attempt), Counter())
        number = counter[digest] if known is None else known
        counter[digest] = max(counter[digest], number + 1)
        for place in places:
            _numbers[place] = number
        return number


class _InFlight:
    """How many submissions of this process are under way."""

    def __init__(self) -> None:
        self.count = 0


@contextlib.contextmanager
def submission_in_flight() -> Iterator[None]:
    """Count a submission as under way. On the network loop."""
    state = network_loop().state(_InFlight)
    state.count += 1
    try:
        yield
    finally:
        state.count -= 1


def submissions_in_flight() -> int:
    """How many submissions of this process are under way. Call it on the network loop."""
    return network_loop().state(_InFlight).count
