"""Submission keys: one tag per intent, the same in every repetition of the flow run that has it.

The derived key holds: key version, CRN, the flow run, how many equal submissions came before it, the
canonical payload's digest, and a generation. What is *not* in it decides whether money is safe:

- Equal submissions are counted per payload, not per position, so a flow that submits in another
  order the second time still finds its jobs.
- The flow run is the topmost one in this process: Prefect gives a repeated subflow a new id.
- Neither backend nor session is in it: "least busy" may differ the second time.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prefect.context import FlowRunContext, TaskRunContext

from prefect_qruntime.client.home import home
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.orchestration import api

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

__all__ = [
    "FLOW_TAG",
    "KEY_TAG",
    "Origin",
    "call_index",
    "explicit_identity",
    "flow_tag",
    "key_tag",
    "made",
    "next_generation",
    "origin",
]

KEY_VERSION = "k1"
KEY_TAG = "qr-key:"
FLOW_TAG = "qr-flow:"
_KEEP = 2048
_MOST_GENERATIONS = 100


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a submission comes from.

    Attributes:
        flow_run_id: The topmost flow run of this process, or None outside any flow.
        identity: What stands for it in the key.
        repeated: Whether an earlier attempt of it may have submitted already.
        retried: Whether somebody asked for another try (a retry, not a resume).
        attempt: Which start of the flow run this is.
        touched: When this process first saw this attempt, on the monotonic clock.
        deployment_id: The deployment of the flow run, if it has one.
        asked: When the try before ended, on Prefect's clock; None where that is not known.
    """

    flow_run_id: str | None
    identity: str
    repeated: bool
    retried: bool
    attempt: int
    touched: float
    deployment_id: str | None = None
    asked: datetime | None = None

    def wants_anew(self, dead: Job) -> bool:
        """Whether a failed or cancelled job is to be bought again: only if another try was asked for since.

        A flow run that was retried and is resumed later was not asked to try again for what failed meanwhile.
        """
        return self.retried and (self.asked is None or dead.created_at is None or dead.created_at < self.asked)


_lock = threading.Lock()
_origins: OrderedDict[tuple[str, int, object], Origin] = OrderedDict()
_touched: OrderedDict[tuple[str, int], float] = OrderedDict()
_counts: OrderedDict[tuple[str, int], Counter[str]] = OrderedDict()
_given: OrderedDict[str, int] = OrderedDict()


def _renew_lock() -> None:
    """In a forked process: a thread that is not there may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def flow_tag(flow_run_id: str) -> str:
    """The tag by which all jobs of a flow run are found.

    Example:
        ```python
        from prefect_qruntime.keys import flow_tag

        assert flow_tag("0b9f").startswith("qr-flow:")
        ```
    """
    return f"{FLOW_TAG}{flow_run_id}"


def key_tag(crn: str, identity: str, digest: str, *, index: int = 0, generation: int = 0) -> str:
    """The submission key's tag: `qr-key:` and 32 hex digits."""
    parts = (KEY_VERSION, crn, identity, "submit_job", str(index), digest, str(generation))
    return KEY_TAG + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def next_generation(replaces: JobRef, crn: str, identity: str, digest: str, *, made: int) -> tuple[int, int]:
    """Which of `made` equal submissions a job was bought for, and the generation after the job's.

    Raises:
        InvalidInput: It was bought for none of them; nothing is to be bought on a guess.
    """
    for generation in range(_MOST_GENERATIONS):
        for index in range(made):
            if key_tag(crn, identity, digest, index=index, generation=generation) == replaces.submission_key:
                return index, generation + 1
    raise InvalidInput(f"job {replaces.id} was not bought for this submission", field="replaces")


def explicit_identity(submission_key: str) -> str:
    """Check a key given by the caller; it replaces flow run and count.

    Raises:
        InvalidInput: Empty, too long, or not printable.
    """
    if not isinstance(submission_key, str) or not submission_key.strip():
        raise InvalidInput("must be a text that is not empty", field="submission_key")
    if len(submission_key) > 1000 or not submission_key.isprintable():
        raise InvalidInput("must be at most 1000 printable characters", field="submission_key")
    return f"explicit:{submission_key}"


async def origin() -> Origin:
    """Where the running task submits from. Asks Prefect once per flow run attempt and process."""
    flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
    task_repeated = task_context is not None and (task_context.task_run.run_count or 0) > 1
    flow_run: FlowRun | None = flow_context.flow_run if flow_context is not None else None
    if flow_run is None:
        if task_context is None:
            return Origin(None, f"call:{uuid.uuid4()}", False, False, 0, time.monotonic())
        identity = f"task-run:{task_context.task_run.id}"
        return Origin(None, identity, task_repeated, task_repeated, 0, time.monotonic())
    # Prefect does not count a resume as another run; when the flow was started tells them apart.
    attempt = (str(flow_run.id), flow_run.run_count or 0, flow_context.start_time if flow_context else None)
    known = _known(attempt)
    if known is None:
        # Mapped submissions start together; one of them asks for all.
        async with home().lock("origin"):
            known = _known(attempt) or await _read_origin(flow_run)
            with _lock:
                _origins[attempt] = known
                _trim(_origins)
    return replace(known, repeated=True) if task_repeated else known


def _known(attempt: tuple[Any, ...]) -> Origin | None:
    with _lock:
        return _origins.get(attempt)


async def _read_origin(flow_run: FlowRun) -> Origin:
    client = await api()
    top = flow_run
    # A subflow of this process has no deployment of its own; one that has, runs in its own process.
    while top.parent_task_run_id is not None and top.deployment_id is None:
        task_run = await client.read_task_run(top.parent_task_run_id)
        if task_run.flow_run_id is None:
            break
        top = await client.read_flow_run(task_run.flow_run_id)
    states = await client.read_flow_run_states(top.id)
    began = sum(state.is_running() for state in states)
    ended = [state.timestamp for state in states if state.is_final() or state.name == "AwaitingRetry"]
    parked = any(state.is_paused() for state in states)
    identity, attempt = f"flow-run:{top.id}", max(began, top.run_count or 0)
    with _lock:
        touched = _touched.setdefault((identity, attempt), time.monotonic())
        _trim(_touched)
    return Origin(
        flow_run_id=str(top.id),
        identity=identity,
        repeated=began > 1 or bool(ended) or parked or (top.run_count or 0) > 1,
        retried=bool(ended) or (top.run_count or 0) > 1,
        attempt=attempt,
        touched=touched,
        deployment_id=str(top.deployment_id) if top.deployment_id is not None else None,
        asked=max(ended, default=None),
    )


def _trim(memory: OrderedDict[Any, Any], keep: int = _KEEP) -> None:
    while len(memory) > keep:
        memory.popitem(last=False)


def count(where: Origin, digest: str) -> int:
    """Count one more submission of this payload in this attempt; returns how many came before it."""
    with _lock:
        counter = _counts.setdefault((where.identity, where.attempt), Counter())
        number = counter[digest]
        counter[digest] += 1
        _trim(_counts)
        return number


def made(where: Origin, digest: str) -> int:
    """How many submissions of this payload this attempt has made so far."""
    with _lock:
        return _counts[where.identity, where.attempt][digest] if (where.identity, where.attempt) in _counts else 0


def call_index(where: Origin, digest: str) -> int:
    """The number of the submission that the running task makes; a task run that runs again keeps its own."""
    context = TaskRunContext.get()
    if context is None:
        return count(where, digest)
    task_run_id = str(context.task_run.id)
    with _lock:
        known = _given.get(task_run_id)
    if known is not None:
        return known
    number = count(where, digest)
    with _lock:
        _given[task_run_id] = number
        _trim(_given, 16 * _KEEP)
    return number
