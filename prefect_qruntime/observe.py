"""What a person or an automation sees: log lines, events, artifacts. Emitted here and nowhere else.

Observing never stops a job: whatever goes wrong here is logged and passed over.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from prefect_qruntime.models import Job, JobRef, JobStatus, SessionRef
from prefect_qruntime.orchestration import current_flow_run_id, in_run
from prefect_qruntime.records import put_record
from prefect_qruntime.redact import redact
from prefect_qruntime.settings import QuantumRuntimeSettings

__all__ = ["emit", "job_cancelled", "job_changed", "job_ended", "job_event", "job_submitted", "say", "session_event"]

_fallback = logging.getLogger("prefect_qruntime.tasks")


def _logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    try:
        return get_run_logger()
    except MissingContextError:
        return _fallback


def say(message: str, *, level: int = logging.INFO) -> None:
    """Write one line to the run's log, or to our own logger outside a run; secrets are masked."""
    _logger().log(level, redact(message))


def emit(
    event: str, resource: MutableMapping[str, str], payload: dict[str, Any], *, flow_run_id: str | None = None
) -> None:
    """Emit an event with the flow run first among the related resources, so that automations find it.

    Args:
        event: Its name.
        resource: What it is about.
        payload: Plain facts.
        flow_run_id: The flow run concerned, where the caller is in none.
    """
    flow_run_id = flow_run_id or current_flow_run_id()
    if not (in_run() or flow_run_id) or not QuantumRuntimeSettings().events:
        return
    related = (
        [{"prefect.resource.id": f"prefect.flow-run.{flow_run_id}", "prefect.resource.role": "flow-run"}]
        if flow_run_id
        else []
    )
    try:
        emit_event(event, resource=dict(resource), related=related, payload=payload)
    except Exception:
        _fallback.warning("event %s could not be emitted", event, exc_info=True)


def _job_resource(job_id: str, backend: str | None) -> dict[str, str]:
    return {
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
        "program_id": job.program_id,
        "session_id": job.session_id,
        "usage_seconds": job.usage_seconds,
        "usage_final": job.usage_final,
        "reason": redact(job.reason) if job.reason else None,
        "reason_code": job.reason_code,
        "tags": list(job.tags),
        "url": job.url,
    }


async def job_submitted(ref: JobRef, *, block: str | None, flow_run_id: str | None) -> None:
    """Tell of a job that was bought or attached to, before anything waits for it.

    Args:
        ref: The job.
        block: Name of the credentials block, where it has one.
        flow_run_id: The flow run that owns the job.
    """
    word = "attached to" if ref.attached else "submitted"
    where = f" on {ref.backend}" if ref.backend else ""
    session = f" in session {ref.session.id}" if ref.session and ref.session.id else ""
    say(f"{word} job {ref.id} ({ref.program_id or 'program unknown'}){where}{session}: {ref.url}")
    emit(
        "qruntime.job.attached" if ref.attached else "qruntime.job.submitted",
        _job_resource(ref.id, ref.backend),
        {
            "job_id": ref.id,
            "backend": ref.backend,
            "program_id": ref.program_id,
            "session_id": ref.session.id if ref.session else None,
            "submission_key": ref.submission_key,
            "tags": list(ref.tags),
            "url": ref.url,
        },
    )
    rows = {
        "state": "attached" if ref.attached else "submitted",
        "backend": ref.backend,
        "program": ref.program_id,
        "session": ref.session.id if ref.session else None,
        "submission key": ref.submission_key,
    }
    meta = {
        "url": ref.url,
        "state": "attached" if ref.attached else "submitted",
        "backend": ref.backend,
        "session": ref.session.id if ref.session else None,
        "key": ref.submission_key,
        "block": block,
        "flow_run": flow_run_id,
    }
    await _record(ref.id, ref.url, rows, meta, new=not ref.attached)


def job_changed(job: Job, waited: float) -> None:
    """Tell of a new state: one line, one event."""
    word = job.status.value if job.status else f"in the unknown state {job.raw_status!r}"
    estimate = (
        f", estimated to run {job.estimated_running_seconds:.0f} s"
        if job.estimated_running_seconds and not job.is_terminal
        else ""
    )
    say(f"job {job.id} is {word} after {waited:.1f} s{estimate}: {job.url}")
    if job.status is not None and job.status.value != "queued":
        job_event(job, waited_seconds=waited)


def job_event(job: Job, *, flow_run_id: str | None = None, **payload: Any) -> None:
    """Emit the event of the job's present state."""
    if job.status is not None:
        emit(
            f"qruntime.job.{job.status.value}",
            _job_resource(job.id, job.backend),
            {**_facts(job), **payload},
            flow_run_id=flow_run_id,
        )


async def job_cancelled(job: Job, *, flow_run_id: str | None = None) -> None:
    """Tell of a job that was cancelled with its flow run, or on demand; of one that ended otherwise nothing.

    Args:
        job: The job as read back.
        flow_run_id: The flow run that owns it, where the caller is in none.
    """
    if job.status is JobStatus.CANCELLED:
        job_event(job, flow_run_id=flow_run_id)
        await job_ended(job, [(job.raw_status.lower(), 0.0)], in_a_run=in_run() or flow_run_id is not None)


async def job_ended(job: Job, history: list[tuple[str, float]], *, in_a_run: bool | None = None) -> None:
    """Complete the job's artifact.

    Args:
        job: The job in its last state.
        history: States with the seconds waited when each was seen.
        in_a_run: Whether the job belongs to a run; None where the caller's context tells.
    """
    timeline = " → ".join(f"{word} ({seconds:.1f} s)" for word, seconds in history)
    rows = {
        "state": job.raw_status,
        "seen": timeline,
        "reason": f"{redact(job.reason)} (code {job.reason_code})" if job.reason else None,
        "backend": job.backend,
        "program": job.program_id,
        "session": job.session_id,
        "QPU seconds": None
        if job.usage_seconds is None
        else f"{job.usage_seconds:g}{'' if job.usage_final else ' (not final yet)'}",
    }
    usage = None if job.usage_seconds is None else f"{job.usage_seconds:g}"
    meta = {"url": job.url, "state": job.raw_status, "usage_seconds": usage}
    await _record(job.id, job.url, rows, meta, in_a_run=in_a_run)


async def _record(
    job_id: str,
    url: str | None,
    rows: dict[str, Any],
    meta: dict[str, str | None],
    *,
    new: bool = False,
    in_a_run: bool | None = None,
) -> None:
    if not (in_run() if in_a_run is None else in_a_run):
        return
    try:
        await put_record("job", job_id, _card(f"Job {job_id}", url, rows), meta, new=new)
    except Exception:
        _fallback.warning("the artifact of job %s could not be written", job_id, exc_info=True)


def _card(title: str, url: str | None, rows: dict[str, Any]) -> str:
    """A small Markdown table for the run page."""
    lines = [f"### [{title}]({url})" if url else f"### {title}", "", "| | |", "|---|---|"]
    for name, value in rows.items():
        if value is not None:
            lines.append(f"| {name} | {redact(str(value)).replace('|', '&#124;')} |")
    return "\n".join([*lines, "", f"<sub>as of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC</sub>"])


def session_event(word: str, session: SessionRef, *, flow_run_id: str | None = None, **payload: Any) -> None:
    """Tell that a session was opened, closed or swept."""
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


async def session_record(
    token: str, session: SessionRef, *, block: str | None, flow_run_id: str | None, new: bool
) -> None:
    """Note a session in Prefect, so that the sweep and the hooks find it.

    Args:
        token: Identifies the record; it exists before the session has an id.
        session: The session as known now.
        block: Name of the credentials block, where it has one.
        flow_run_id: The flow run that owns the session.
        new: Whether this is the first note, written before the session is opened.

    Raises:
        Exception: Prefect's API failed on the first note; then no session may be opened.
    """
    if not in_run():
        return
    state = session.state or ("opening" if session.id is None else "open")
    rows = {
        "session": session.id,
        "mode": session.mode,
        "backend": session.backend,
        "max_ttl": f"{session.max_ttl} s" if session.max_ttl else None,
        "state": state,
    }
    meta = {
        "session": session.id,
        "mode": session.mode,
        "backend": session.backend,
        "max_ttl": str(session.max_ttl) if session.max_ttl else None,
        "state": state,
        "block": block,
        "flow_run": flow_run_id,
    }
    title = f"Session {session.id}" if session.id else "Session, not opened yet"
    try:
        await put_record("session", token, _card(title, None, rows), meta, new=new)
    except Exception:
        if new:
            raise
        _fallback.warning("the record of session %s could not be written", session.id, exc_info=True)
