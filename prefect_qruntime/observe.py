"""What a person or an automation sees: log lines, events, artifacts. Emitted here and nowhere else.

Observing never stops a job: whatever goes wrong here is logged and passed over.
"""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import TaskRunContext
from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from prefect_qruntime.models import Job, JobRef, SessionRef
from prefect_qruntime.orchestration import api, current_flow_run_id, in_run
from prefect_qruntime.redact import redact
from prefect_qruntime.settings import QuantumRuntimeSettings

__all__ = ["artifact_key", "emit", "job_changed", "job_ended", "job_submitted", "say", "session_event"]

_fallback = logging.getLogger("prefect_qruntime.tasks")


def _logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    try:
        return get_run_logger()
    except MissingContextError:
        return _fallback


def say(message: str, *, level: int = logging.INFO) -> None:
    """Write one line to the run's log, or to our own logger outside a run; secrets are masked."""
    _logger().log(level, redact(message))


def artifact_key(kind: str, identifier: str) -> str:
    """An artifact key: Prefect takes lower-case letters, digits and dashes only.

    Example:
        ```python
        from prefect_qruntime.observe import artifact_key

        assert artifact_key("job", "D1_x") == "qruntime-job-d1-x"
        ```
    """
    return f"qruntime-{kind}-" + re.sub(r"[^a-z0-9-]", "-", identifier.lower())


def emit(event: str, resource: MutableMapping[str, str], payload: dict[str, Any]) -> None:
    """Emit an event with the flow run first among the related resources, so that automations find it."""
    if not in_run() or not QuantumRuntimeSettings().events:
        return
    flow_run_id = current_flow_run_id()
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


async def job_submitted(ref: JobRef) -> None:
    """Tell of a job that was bought or attached to, before anything waits for it."""
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
    await _write_artifact(ref.id, ref.url, rows)


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
        emit(
            f"qruntime.job.{job.status.value}",
            _job_resource(job.id, job.backend),
            {**_facts(job), "waited_seconds": waited},
        )


async def job_ended(job: Job, history: list[tuple[str, float]]) -> None:
    """Complete the job's artifact.

    Args:
        job: The job in its last state.
        history: States with the seconds waited when each was seen.
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
    await _write_artifact(job.id, job.url, rows)


async def _write_artifact(job_id: str, url: str | None, rows: dict[str, Any]) -> None:
    if not in_run() or not QuantumRuntimeSettings().artifacts:
        return
    lines = [f"### Job [{job_id}]({url})" if url else f"### Job {job_id}", "", "| | |", "|---|---|"]
    lines += [
        f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items() if value is not None
    ]
    lines += ["", f"<sub>as of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC</sub>"]
    key, text = artifact_key("job", job_id), "\n".join(lines)
    try:
        client = await api()
        known = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            limit=1,
            sort=ArtifactSort.ID_DESC,
        )
        if known:
            await client.update_artifact(known[0].id, ArtifactUpdate(data=text, description=f"Job {job_id}"))
            return
        task_context, flow_run_id = TaskRunContext.get(), current_flow_run_id()
        await client.create_artifact(
            ArtifactCreate(
                key=key,
                type="markdown",
                description=f"Job {job_id}",
                data=text,
                flow_run_id=UUID(flow_run_id) if flow_run_id else None,
                task_run_id=task_context.task_run.id if task_context is not None else None,
            )
        )
    except Exception:
        _fallback.warning("artifact %s could not be written", key, exc_info=True)


def session_event(word: str, session: SessionRef, **payload: Any) -> None:
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
    )
