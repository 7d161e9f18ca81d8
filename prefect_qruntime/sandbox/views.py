"""Build the JSON of jobs, sessions and workloads for each dialect and API version."""

from __future__ import annotations

import math
from functools import cache
from importlib import metadata
from typing import Any

from prefect_qruntime.sandbox.clock import iso
from prefect_qruntime.sandbox.state import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, Job, Session

CLOUD, LEGACY = "cloud", "legacy"
# The versions that `GET /versions` lists as of November 2026; older ones are not listed but accepted until 2027.
VERSIONS: tuple[dict[str, str], ...] = (
    {"version": "2026-02-15", "sunset_date": "2027-02-15", "status": "deprecated"},
    {"version": "2026-03-15", "sunset_date": "2027-03-15", "status": "deprecated"},
    {"version": "2026-04-15", "status": "live"},
)
_UNLISTED = ("2024-01-01", "2025-01-01", "2025-05-01", "2026-02-01")
KNOWN_VERSIONS = frozenset((*_UNLISTED, *(item["version"] for item in VERSIONS)))
# A request without the version header gets this one.
DEFAULT_VERSION = "2025-05-01"
OBJECTS_SINCE = "2025-01-01"
NEW_USAGE_SINCE = "2026-03-15"
TIDY_USAGE_SINCE = "2026-04-15"
MAX_COST = 10_800


def job_view(job: Job, dialect: str, version: str, now: float, *, params: bool) -> dict[str, Any]:
    """Return one job as `GET /jobs/{id}` shows it."""
    state: dict[str, Any] = {"status": job.status}
    if job.reason:
        state["reason"] = job.reason
    if job.reason_code is not None:
        state["reason_code"] = job.reason_code
    if job.solution:
        state["reason_solution"] = job.solution
    status = job.status
    if job.ran_too_long:
        status = "Cancelled - Ran too long"
        if dialect == LEGACY:
            state = {"status": CANCELLED, "reason": "Ran too long", "reasonCode": None}
    view: dict[str, Any] = {
        "id": job.id,
        "backend": job.backend,
        "program": {"id": job.program_id},
        "created": job.created_iso,
        "status": status,
        "state": state,
        "cost": job.cost,
        "tags": job.tags,
        "user_id": job.user_id,
        "usage": usage_view(job, dialect, version, now),
    }
    if dialect == LEGACY or version < NEW_USAGE_SINCE:
        view["bss"] = {"seconds": usage_seconds(job, now)}
    if job.session_id is not None:
        view["session_id"] = job.session_id
    if job.runtime is not None:
        view["runtime"] = job.runtime
    if job.calibration_id is not None and dialect != LEGACY:
        view["calibration_id"] = job.calibration_id
    if job.status == RUNNING:
        view["estimated_running_time_seconds"] = job.run_time
    if job.private:
        view["private"] = True
    elif params:
        view["params"] = job.params
    return view


def usage_seconds(job: Job, now: float) -> float:
    """Return the QPU seconds known by now; whole seconds only until the number is final."""
    if job.usage_final:
        return job.usage_seconds
    if job.ended is not None:
        return float(math.floor(job.usage_seconds))
    return float(math.floor(now - job.started)) if job.started is not None else 0.0


def usage_view(job: Job, dialect: str, version: str, now: float) -> dict[str, Any]:
    """Return the `usage` object of a job."""
    seconds = usage_seconds(job, now)
    if dialect == LEGACY:
        return {"quantum_seconds": seconds, "seconds": seconds}
    view = _charge(seconds, job)
    if version < NEW_USAGE_SINCE:
        view["quantum_seconds"] = view["seconds"] = seconds
    elif version < TIDY_USAGE_SINCE and job.outcome is not None:
        view["circuits_execution_time_ns"] = job.outcome.execution_ns
    return view


def _charge(seconds: float, of: Job | Session) -> dict[str, Any]:
    """Return the QPU seconds of a job or session, whether they are final, and the resource units if it has a rate."""
    view: dict[str, Any] = {
        "qpu_charge_time_seconds": seconds,
        "status": "complete" if of.usage_final else "pending",
    }
    if of.unit_rate:
        view["qpu_charge_ru"] = round(seconds * of.unit_rate, 6)
    return view


def metrics_view(job: Job, dialect: str, version: str, now: float) -> dict[str, Any]:
    """Return the body of `GET /jobs/{id}/metrics`."""
    stamps = {"created": job.created_iso}
    if job.started is not None:
        stamps["running"] = iso(job.started)
    if job.ended is not None:
        stamps["finished"] = iso(job.ended)
    view: dict[str, Any] = {"timestamps": stamps, "usage": usage_view(job, dialect, version, now)}
    if job.caller:
        view["caller"] = job.caller
    if job.started is not None and (version_used := qiskit_version()):
        view["qiskit_version"] = version_used
    if dialect == LEGACY or version < NEW_USAGE_SINCE:
        view["bss"] = {"seconds": usage_seconds(job, now)}
    elif version >= TIDY_USAGE_SINCE and job.outcome is not None:
        view["circuits_execution_time_ns"] = job.outcome.execution_ns
    return view


@cache
def qiskit_version() -> str:
    """Return the version of the qiskit that runs the circuits; empty if there is none."""
    try:
        return metadata.version("qiskit")
    except metadata.PackageNotFoundError:
        return ""


def logs_text(job: Job) -> str | None:
    """Return the log of a job that has begun, or `None`."""
    if job.started is None:
        return None
    lines = [f"{iso(job.started)} INFO: job {job.id} runs on {job.backend}"]
    if job.ended is not None:
        lines.append(f"{iso(job.ended)} INFO: job ended: {job.status} {job.reason}".rstrip())
    return "\n".join(lines) + "\n"


def session_view(session: Session, now: float) -> dict[str, Any]:
    """Return one session as `GET /sessions/{id}` shows it."""
    view: dict[str, Any] = {
        "id": session.id,
        "backend_name": session.backend,
        "mode": session.mode,
        "state": session.state,
        "state_reason": session.state_reason,
        "accepting_jobs": session.accepting_jobs,
        "max_ttl": session.max_ttl,
        "active_ttl": session.active_ttl or session.max_ttl,
        "interactive_ttl": session.interactive_ttl,
        "started_at": iso(session.created),
        "user_id": session.user_id,
        "timestamps": [{"status": state, "timestamp": iso(moment)} for state, moment in session.timestamps],
        "elapsed_time": None,
    }
    if session.activated is not None:
        view["activated_at"] = iso(session.activated)
        end = now if session.closed is None else session.closed
        view["elapsed_time"] = round(max(0.0, end - session.activated), 3)
    if session.closed is not None:
        view["closed_at"] = iso(session.closed)
    if session.last_job_started is not None:
        view["last_job_started"] = iso(session.last_job_started)
    if session.last_job_completed is not None:
        view["last_job_completed"] = iso(session.last_job_completed)
    return view


_WORKLOAD_STATUS = {
    QUEUED: "pending",
    RUNNING: "in_progress",
    COMPLETED: "completed",
    CANCELLED: "canceled",
    FAILED: "failed",
}


def job_workload(job: Job, now: float) -> dict[str, Any]:
    """Return a job outside any session as a workload."""
    view: dict[str, Any] = {
        "id": job.id,
        "created": job.created_iso,
        "backend": job.backend,
        "instance": job.crn,
        "user_id": job.user_id,
        "mode": "job",
        "status": _WORKLOAD_STATUS.get(job.status, "in_progress"),
        "tags": job.tags,
        "usage": _charge(usage_seconds(job, now), job),
    }
    if job.reason:
        view["status_reason"] = job.reason
    if job.ended is not None:
        view["ended"] = iso(job.ended)
    return view


def session_workload(session: Session, now: float) -> dict[str, Any]:
    """Return a session or batch as a workload."""
    if session.state == "closed":
        status = "in_progress" if session.current is not None else "completed"
    else:
        status = "pending" if session.state == "open" else "in_progress"
    view: dict[str, Any] = {
        "id": session.id,
        "created": iso(session.created),
        "backend": session.backend or "",
        "instance": session.crn,
        "user_id": session.user_id,
        "mode": "batch" if session.mode == "batch" else "session",
        "status": status,
        "accepting_jobs": session.accepting_jobs,
        "tags": [],
        "usage": _charge(session.charge(now), session),
    }
    if session.closed is not None:
        view["ended"] = iso(session.closed)
    return view
