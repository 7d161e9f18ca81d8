"""Report jobs to people and automations: log lines, events, artifacts.

Reporting never stops a job: an error here is logged and ignored.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

import orjson
from cachetools import LRUCache

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.encodings.arrays import weight
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs.executor_result import executed_seconds
from prefect_qruntime.client.provenance import Calibration, package_versions
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Backend, Job, JobRef, JobStatus, SessionRef, is_mock
from prefect_qruntime.observability.artifacts import upsert
from prefect_qruntime.observability.markdown import (
    comparison_card,
    execution_line,
    fetched_line,
    result_section,
    section,
)
from prefect_qruntime.observability.progress import (
    WaitProgress,
    backend_words,
    duration,
    is_held,
    line_of,
    waits_line,
)
from prefect_qruntime.observability.run_page import amend, note_submitted, write, write_debounced, write_progress
from prefect_qruntime.observability.run_summary import in_background
from prefect_qruntime.observability.telemetry import Observation, deliver, emit, log_to_run, queue_and_run_seconds
from prefect_qruntime.prefect_api import current_flow_run_id, in_run
from prefect_qruntime.redact import get_logger, printable
from prefect_qruntime.run_context import current_run, deferred_around, process_facts

if TYPE_CHECKING:
    from prefect_qruntime.client.programs.agreement import RouteComparison

__all__ = [
    "emit",
    "event_id_of",
    "follow_usage",
    "job_cancelled",
    "job_changed",
    "job_ended",
    "job_event",
    "job_fetched",
    "job_held",
    "job_over",
    "job_still",
    "job_submitted",
    "left_job_ended",
    "log_fetched",
    "log_to_run",
    "routes_compared",
    "session_event",
    "show_followed",
    "show_progress",
    "usage_settled",
]

T = TypeVar("T")

_fallback = get_logger(__name__)
_SMALL = 4000  # characters and values of a result that takes a millisecond to read
_LONG = 10.0  # seconds of waiting after which a change of state is logged and written to the run page


_REHEARSAL = "Dry run: it uses no QPU and is not charged, and its results are random."


def _job_resource(job_id: str, backend: str | None) -> dict[str, str]:
    mark = {"qruntime.dry-run": "true"} if is_mock(backend) else {}
    return {
        **mark,
        "prefect.resource.id": f"qruntime.job.{job_id}",
        "prefect.resource.name": job_id,
        "qruntime.job-id": job_id,
        "qruntime.backend": backend or "",
    }


def _facts(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": job.status.value if job.status else job.raw_status,
        "backend": job.backend,
        "dry_run": job.dry_run,
        "program_id": job.program_id,
        "session_id": job.session_id,
        "usage_seconds": job.charged_seconds,
        "usage_final": job.usage_final or job.dry_run,
        "reason": job.reason,
        "reason_code": job.reason_code,
        "tags": list(job.tags),
        "url": job.url,
    }


async def job_submitted(
    ref: JobRef,
    *,
    block: str | None,
    instance: str,
    flow_run_id: str | None,
    deployment_id: str | None = None,
    session: SessionRef | None = None,
    busy_seconds: float | None = None,
    on_cancel: str | None = None,
) -> None:
    """Report a submitted job, or one that was attached to, before anything waits for it.

    Args:
        ref: The job.
        block: Name of the credentials block, if it has one.
        instance: Names the instance, by which the job is found whatever the block is called or leads to by then.
        flow_run_id: The flow run that owns the job.
        deployment_id: Its deployment.
        session: The session as the caller knows it; the service does not always repeat its kind.
        busy_seconds: The cost model's prediction, for later estimates.
        on_cancel: What happens to it when its flow run is cancelled, for the sweep.
    """
    kind = (session or ref.session or SessionRef()).kind
    log_to_run(
        line_of(
            f"{'attached to' if ref.attached else 'submitted'} job {ref.id}",
            f" on {ref.backend}" if ref.backend else "",
            f" ({ref.program_id})" if ref.program_id else "",
            f" in {kind} {ref.session.id}" if ref.session and ref.session.id else "",
            end=f": {ref.url}" if ref.url else "",
        )
    )
    if ref.dry_run:
        log_to_run(f"Job {ref.id}: {_REHEARSAL}", level=logging.WARNING)
    emit(
        "qruntime.job.attached" if ref.attached else "qruntime.job.submitted",
        _job_resource(ref.id, ref.backend),
        {
            "job_id": ref.id,
            "backend": ref.backend,
            "dry_run": ref.dry_run,
            "certain": ref.certain,
            "program_id": ref.program_id,
            "session_id": ref.session.id if ref.session else None,
            "submission_key": ref.submission_key,
            "tags": list(ref.tags),
            "url": ref.url,
        },
    )
    meta = {
        "url": ref.url,
        "state": None if ref.attached else "submitted",
        "backend": ref.backend,
        "program": ref.program_id,
        "session": ref.session.id if ref.session else None,
        "key": ref.submission_key,
        "block": block,
        "instance": instance,
        "flow_run": flow_run_id,
        "on_cancel": on_cancel,
        "busy_seconds": None if busy_seconds is None else f"{busy_seconds:.9g}",
        "dry_run": "yes: no QPU, no charge, random results" if ref.dry_run else None,
        "payload": None if ref.private else ref.payload_digest,
        "packages": " ".join(f"{name}=={version}" for name, version in package_versions().items()),
        "noted": None if ref.attached else datetime.now(UTC).isoformat(),
        **(process_facts() if flow_run_id is not None else {}),
        **deferred_around(),
    }
    # A job attached to keeps its recorded state: it may be over.
    defaults = {"state": "attached"} if ref.attached else {}
    await note_submitted(
        ref.id,
        meta,
        defaults=defaults,
        new=not ref.attached,
        flow_run_id=flow_run_id,
        deployment_id=deployment_id,
    )


def job_changed(progress: WaitProgress, history: Sequence[Observation]) -> None:
    """Report a new state by an event; the last one and those after a long wait also by a log line and on the page.

    Args:
        progress: The state of the wait.
        history: The observed states, the new one last.
    """
    job, waited = progress.job, history[-1].waited
    if job is None:
        return
    if job.is_terminal:
        log_to_run(_ended(job, waited))
    elif waited > _LONG:
        log_to_run(_line(progress))
    if job.status is not None and job.status.value != "queued":
        job_event(job, waited_seconds=round(waited, 3))
    if waited > _LONG and not job.is_terminal:
        show_progress(progress, history)
    else:
        amend(job.id, _seen(job, history))


def _ended(job: Job, waited: float) -> str:
    """A log line about a job that is over: how it ended, and its usage if that is known."""
    word = job.status.value if job.status else printable(job.raw_status, 30)
    code = f", code {job.reason_code}" if job.reason_code is not None else ""
    used = f", {job.usage_seconds:g} QPU s" if job.usage_seconds is not None else ""
    return line_of(f"job {job.id} is {word} after {duration(waited)}", code, used)


def job_still(progress: WaitProgress) -> None:
    """Log that a wait continues."""
    log_to_run(_line(progress), level=logging.WARNING if is_held(progress) else logging.INFO)


def job_held(job_id: str, backend: Backend) -> None:
    """Log that a job waits for a backend that runs none now, once for each flow run and state of the backend."""
    told = network_loop().state(_Told).states
    if (what := (current_flow_run_id() or job_id, backend.name, backend.status)) not in told:
        told[what] = True
        log_to_run(line_of(f"job {job_id} waits", f": {backend_words(backend)}"), level=logging.WARNING)


class _Told:
    """The warnings that were logged about backends that run no jobs."""

    def __init__(self) -> None:
        self.states: LRUCache[tuple[str, str, str], bool] = LRUCache(1024)


def show_progress(progress: WaitProgress, history: Sequence[Observation]) -> None:
    """Show the progress of a wait on the job's page."""
    if progress.job is not None:
        write_debounced(progress.job_id, _progress(progress.job, progress, history))


async def show_followed(progress: WaitProgress, history: Sequence[Observation], *, flow_run_id: str) -> None:
    """Show the same for a flow run that has no process: it is suspended, or left its job to the watcher.

    Args:
        progress: What the watcher knows of the job.
        history: Its states as they were seen.
        flow_run_id: The flow run that owns the job.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    if progress.job is not None:
        facts = _progress(progress.job, progress, history)
        await write_progress(progress.job_id, facts, flow_run_id=flow_run_id)


def _progress(job: Job, progress: WaitProgress, history: Sequence[Observation]) -> dict[str, str | None]:
    return {**_seen(job, history), "now": progress.words(time.monotonic(), datetime.now(UTC))}


def _line(progress: WaitProgress) -> str:
    return waits_line([progress], time.monotonic(), datetime.now(UTC))


def _seen(job: Job, history: Sequence[Observation]) -> dict[str, str | None]:
    """The facts of a job's record about its states; `began` distinguishes this wait from earlier ones."""
    return {
        "state": job.raw_status,
        "seen": " → ".join(f"{seen.word} ({seen.waited:.1f} s)" for seen in history),
        "began": history[0].at.isoformat() if history else None,
    }


def event_id_of(job: Job, flow_run_id: str | None, *, left: bool = False) -> UUID:
    """The id of the event of a job's state, equal in all processes that report it to a flow run.

    Args:
        job: The job.
        flow_run_id: The flow run concerned.
        left: Whether the event is for a flow that collects a job left to the watcher.
    """
    return uuid5(NAMESPACE_URL, f"qruntime:{flow_run_id}:{job.id}:{job.raw_status}:{left}")


def job_event(
    job: Job,
    *,
    flow_run_id: str | None = None,
    event_id: UUID | None = None,
    **payload: Any,
) -> None:
    """Emit the event of the job's present state.

    Each state is reported once to each flow run, even if several processes wait for the job: Prefect keeps and acts
    on the first event of an id.
    """
    if job.status is not None:
        owner = flow_run_id or current_flow_run_id()
        if event_id is None and owner is not None:
            event_id = event_id_of(job, owner)
        name, resource, facts = _state_event(job, **payload)
        emit(name, resource, facts, flow_run_id=flow_run_id, event_id=event_id)


def _state_event(job: Job, **payload: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
    word = job.status.value if job.status is not None else job.raw_status
    return f"qruntime.job.{word}", _job_resource(job.id, job.backend), {**_facts(job), **payload}


async def left_job_ended(job: Job, *, flow_run_id: str | None, block: str) -> None:
    """Report the end of a job that was left to the watcher; only its event can start what collects the result.

    Raises:
        Exception: Prefect did not take the event.
    """
    name, resource, facts = _state_event(job, credentials_block=block)
    mark = {"qruntime.left-to-watcher": "true"}
    event_id = event_id_of(job, flow_run_id, left=True)
    await deliver(name, {**resource, **mark}, facts, flow_run_id=flow_run_id, event_id=event_id)


async def job_cancelled(job: Job, *, flow_run_id: str | None = None) -> None:
    """Report a job that was cancelled with its flow run or on demand; do nothing if it ended otherwise.

    Args:
        job: The job as read back.
        flow_run_id: The flow run that owns it, if the caller is in none.
    """
    if job.status is JobStatus.CANCELLED:
        job_event(job, flow_run_id=flow_run_id)
        await job_ended(job, [], flow_run_id=flow_run_id)


def job_over(job: Job, history: list[Observation], *, calibration: asyncio.Task[Calibration] | None = None) -> None:
    """Complete the artifact of a job that was waited for, soon and in the background."""
    write_debounced(job.id, _end(job, history))
    if calibration is None or not in_run():
        return

    async def show() -> None:
        found = await calibration
        if found.trouble is None:
            write_debounced(job.id, _calibrated(found.calibrated_at, found.backend_version))

    in_background(show, optional=True)


def _calibrated(at: datetime | None, version: str | None) -> dict[str, str | None]:
    return {"calibrated": None if at is None else at.isoformat(), "backend_version": version}


async def job_ended(job: Job, history: list[Observation], *, flow_run_id: str | None = None) -> None:
    """Complete the artifact of a job now.

    Args:
        job: The job in its last state.
        history: The observed states.
        flow_run_id: The flow run that owns it, if the caller is in none.
    """
    await write(job.id, _end(job, history), flow_run_id=flow_run_id)


def _end(job: Job, history: list[Observation]) -> dict[str, str | None]:
    queued, ran = queue_and_run_seconds(job, history)
    return {
        "url": job.url,
        **_seen(job, history),
        "queue_seconds": None if queued is None else f"{queued:.1f}",
        "run_seconds": None if ran is None else f"{ran:.1f}",
        "reason": f"{job.reason} (code {job.reason_code})" if job.reason else None,
        "backend": job.backend,
        "program": job.program_id,
        "session": job.session_id,
        "calibration": job.calibration_id,
        **_usage(job),
    }


def _usage(job: Job) -> dict[str, str | None]:
    if job.dry_run:  # it is not charged
        return {"usage_seconds": "0", "usage_final": "true"}
    seconds = None if job.usage_seconds is None else f"{job.usage_seconds:g}"
    return {"usage_seconds": seconds, "usage_final": "true" if job.usage_final else "false"}


async def usage_settled(job: Job, *, flow_run_id: str | None) -> None:
    """Record the final QPU seconds of a job that ended before they were known."""
    log_to_run(f"job {job.id} used {job.usage_seconds or 0:g} QPU seconds", level=logging.INFO)
    await write(job.id, _usage(job), flow_run_id=flow_run_id)


async def _read(result: JobResult, read: Callable[[JobResult], T]) -> T:
    """Read a result for a text about it: in another thread, unless it is so small that this would take longer."""
    if result.file is None and weight(result.raw, _SMALL) <= _SMALL and not _has_arrays(result.raw):
        return read(result)
    try:
        return await asyncio.to_thread(read, result)
    except RuntimeError:  # the process is ending and starts no more threads
        return read(result)


def _has_arrays(small: Any) -> bool:
    """Whether a small result may hold encoded arrays, which may unfold to a thousand times their size."""
    try:
        text = orjson.dumps(small)
    except TypeError:  # integers of more than 64 bits
        return True
    return b'"__type__"' in text or b'"dtype"' in text


async def log_fetched(result: JobResult) -> None:
    """Log that a result was fetched, with its PUBs, shots and size."""
    log_to_run(await _read(result, fetched_line))


def job_fetched(job_id: str, result: JobResult) -> None:
    """Show a result on the run page. Never call it for a private job."""
    if not in_run():
        return

    async def show() -> None:
        shown, executed = await _read(result, lambda one: (result_section(one), execution_line(one)))
        # A result in a file is large, so it is not read for this.
        seconds = executed_seconds(result.body) if result.file is None else None
        facts: dict[str, str | None] = {
            "executed": executed,
            "executed_seconds": None if seconds is None else f"{seconds:.9g}",
        }
        if (known := result.provenance) is not None:
            facts |= _calibrated(known.calibrated_at, known.backend_version)
        if shown or any(facts.values()):
            write_debounced(job_id, facts, section("Result", shown) if shown else None)

    in_background(show)


def session_event(word: str, session: SessionRef, *, flow_run_id: str | None = None, **payload: Any) -> None:
    """Report that a session was opened, closed or swept."""
    if session.id is None:
        return
    emit(
        f"qruntime.session.{word}",
        {
            "prefect.resource.id": f"qruntime.session.{session.id}",
            "prefect.resource.name": session.id,
            "qruntime.backend": session.backend or "",
        },
        {
            "session_id": session.id,
            "mode": session.mode,
            "backend": session.backend,
            "state": session.state,
            **payload,
        },
        flow_run_id=flow_run_id,
    )


_PAUSES = (1, 2, 5, 10, 30)  # seconds between reads; the last one is repeated
_LOOKS = 120


def follow_usage(client: QuantumRuntimeClient, job: Job) -> None:
    """Read a job in the background until its usage is final. Call it on the network loop."""
    if job.usage_final or job.dry_run or not in_run():
        return

    async def follow() -> None:
        owner = (await current_run()).flow_run_id
        for pause in itertools.islice(itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])), _LOOKS):
            await asyncio.sleep(pause)
            try:
                seen = await client.job(job.id)
            except QuantumRuntimeError:
                continue
            if seen.usage_final:
                await usage_settled(seen, flow_run_id=owner)
                return

    in_background(follow, optional=True)


async def routes_compared(comparison: RouteComparison) -> None:
    """Report a comparison of the two routes: a log line, and an artifact with all that was compared."""
    log_to_run(str(comparison), level=logging.INFO if comparison.agrees else logging.WARNING)
    if not in_run():
        return
    service, executor = comparison.service, comparison.executor
    meta = {"service": service.id, "executor": executor.id, "agrees": str(comparison.agrees).lower()}
    try:
        await upsert("comparison", service.id, comparison_card(comparison), meta)
    except Exception as error:
        _fallback.warning("The comparison of jobs %s and %s could not be written: %r", service.id, executor.id, error)
