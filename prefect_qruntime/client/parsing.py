"""Parse the service's JSON into models: tolerant, for both dialects.

Unknown fields are ignored, absent ones become None, and an unknown status keeps its text. Texts are masked and made
plain here, so that no model holds a secret or a terminal sequence. Tags are only masked: they are compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from prefect_qruntime.client.connection import is_id
from prefect_qruntime.errors import QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.models import Backend, Job, JobStatus, Session, Usage
from prefect_qruntime.redact import many, plain_text, redact_start

__all__ = [
    "listed_moments",
    "listed_whole",
    "parse_backend_status",
    "parse_backends",
    "parse_job",
    "parse_job_page",
    "parse_session",
    "parse_session_workload",
    "parse_usage",
    "parse_versions",
    "read_code",
    "read_id",
    "read_moment",
    "read_string",
    "read_units",
]

_LONGEST_TEXT = 10_000  # characters of a reason, a name or a state that are kept
_LEAP_SECOND = re.compile(r"(T\d\d:\d\d:)60")
_LONGEST_CODE = 100
_TOO_MUCH = 1e15  # seconds or units
_SECONDS = ("qpu_charge_time_seconds", "quantum_seconds", "seconds")
# The service takes 8 tags of 86 characters, and an instance has a few dozen backends. Far more of them would keep the
# network loop busy for seconds.
_MOST_TAGS = 100
_LONGEST_TAG = 1000
_MOST_BACKENDS = 1000
_MOST_VERSIONS = 100


def read_string(value: Any, limit: int = _LONGEST_TEXT) -> str | None:
    """A text of the service, masked, plain and of limited length; None if it is no text or an empty one."""
    if not isinstance(value, str | int | float):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return None
    text = str(value)
    # Masked before it is cut: half a secret is not recognised.
    return plain_text(text if len(text) <= limit else redact_start(text, limit)) or None


def _id(value: Any) -> str | None:
    # As it is: what is no id must not become one.
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and is_id(str(value)) else None


def read_id(value: Any, what: str) -> str:
    """The id of a job or session as the service gives it.

    Raises:
        ServiceUnavailable: There is none, or it cannot be one: such an answer says nothing about the job.
    """
    found = _id(value)
    if found is not None:
        return found
    text = read_string(value)
    said = "no id" if text is None else f"an id that cannot be one: {text[:80]!r}"
    raise ServiceUnavailable(f"The service's {what} has {said}.")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not math.isfinite(number) else int(number)


def _amount(value: Any) -> float | None:
    """An amount that is charged; None if it cannot be one, for instance if it is negative."""
    number = _number(value)
    return number if number is not None and 0 <= number < _TOO_MUCH else None  # the comparison is false for NaN


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def read_code(value: Any) -> int | str | None:
    """A code of the service, of a failed job or of an error; None if it cannot be one."""
    if isinstance(value, str):
        digits = value.isascii() and value.isdigit() and len(value) < 20
        return int(value) if digits else read_string(value, _LONGEST_CODE)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_moment(value: Any) -> datetime | None:
    """Parse a time as the service writes it; None if it is not a time, or has none in UTC."""
    if not isinstance(value, str) or not value:
        return None
    try:
        # Python has no leap seconds: one belongs to the second before it, and so to the same month.
        moment = datetime.fromisoformat(_LEAP_SECOND.sub(r"\g<1>59", value))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        moment.astimezone(UTC)  # which reports do later
    except (ValueError, OverflowError):
        return None
    return moment


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_amount(body: dict[str, Any], *names: str) -> float | None:
    return next((number for name in names if (number := _amount(body.get(name))) is not None), None)


def _is_told(usage: dict[str, Any], *, ran: bool) -> bool:
    """Whether a usage holds an amount. What did not run may be charged nothing, without a number that says so."""
    if _first_amount(usage, *_SECONDS) is not None or read_units(usage) is not None:
        return True
    return not ran and usage.keys().isdisjoint(_SECONDS)


def read_units(usage: dict[str, Any]) -> float | None:
    """Resource units in the `usage` of a job or a workload; IBM's names for them are not final."""
    return _first_amount(usage, "qpu_charge_ru", "resource_units", "charge_ru", "ru")


def parse_job(body: dict[str, Any], *, url: str | None = None) -> Job:
    """Read a job. `state.status` is preferred, the top-level `status` is the fallback.

    Raises:
        ServiceUnavailable: The object has no id, or one that cannot be one.
    """
    job_id = read_id(body.get("id"), "job")
    state = _dict(body.get("state"))
    top = read_string(body.get("status")) or ""
    raw = read_string(state.get("status")) or top
    status = JobStatus.of(raw)
    if status is None and JobStatus.of(top) is not None:
        raw, status = top, JobStatus.of(top)
    reason = read_string(state.get("reason")) or read_string(body.get("reason"))
    code = read_code(state.get("reason_code"))
    code = read_code(state.get("reasonCode")) if code is None else code
    too_long = "ran too long" in f"{top} {raw} {reason or ''}".lower()
    if status is JobStatus.CANCELLED and (too_long or code == 1305):
        too_long = True
    else:
        too_long = too_long and status is JobStatus.FAILED
    usage = _dict(body.get("usage"))
    seconds = _first_amount(usage, *_SECONDS)
    seconds = _amount(_dict(body.get("bss")).get("seconds")) if seconds is None else seconds
    # Old versions have no usage status: there the number is final once the job is.
    word = read_string(usage.get("status"))
    terminal = status is not None and status.is_terminal
    told = seconds is not None or _is_told(usage, ran=status is JobStatus.COMPLETED)
    final = word == "complete" and told if word is not None else terminal and seconds is not None
    return Job(
        id=job_id,
        status=status,
        raw_status=top if "ran too long" in top.lower() else raw,
        reason=reason,
        reason_code=code,
        reason_solution=read_string(state.get("reason_solution")),
        ran_too_long=too_long,
        backend=read_string(body.get("backend")),
        program_id=read_string(_dict(body.get("program")).get("id")),
        session_id=_id(body.get("session_id")),
        created_at=read_moment(body.get("created")),
        tags=tuple(
            redact_start(tag, _LONGEST_TAG) for tag in _list(body.get("tags"))[:_MOST_TAGS] if isinstance(tag, str)
        ),
        usage_seconds=seconds,
        usage_final=final,
        usage_units=read_units(usage),
        user_id=read_string(body.get("user_id")),
        estimated_running_seconds=_number(body.get("estimated_running_time_seconds")),
        max_execution_time=_count(body.get("cost")),
        private=body.get("private") is True,
        url=url,
        calibration_id=read_string(body.get("calibration_id")),
    )


def parse_job_page(body: dict[str, Any], *, tags: Collection[str] = ()) -> tuple[list[dict[str, Any]], int | None]:
    """The raw jobs of one page, and the total count if the service gives it.

    Args:
        body: The answer.
        tags: Jobs with these tags were asked for. Then each must be shown with readable tags: one that hides them
            may be the job that is searched for, and taking it for another would buy it again.

    Raises:
        ServiceUnavailable: A job of a search by tags cannot be read.
    """
    jobs = body.get("jobs")
    if not isinstance(jobs, list):
        raise QuantumRuntimeError("the service's job list has no 'jobs'")
    if tags and not all(_shows_tags(job, tags) for job in jobs):
        raise ServiceUnavailable("The service found a job by its tags, but does not show them.")
    return [job for job in jobs if isinstance(job, dict)], _count(body.get("count"))


def _shows_tags(job: Any, wanted: Collection[str]) -> bool:
    tags = job.get("tags") if isinstance(job, dict) else None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return False
    # A tag with a letter that could not be read may be one of those that are missing.
    return set(wanted) <= set(tags) or not any("\N{REPLACEMENT CHARACTER}" in tag for tag in tags)


def listed_moments(entries: list[dict[str, Any]]) -> tuple[datetime | None, datetime | None]:
    """The creation times of the first and the last job of a page."""
    return (
        (read_moment(entries[0].get("created")), read_moment(entries[-1].get("created"))) if entries else (None, None)
    )


def listed_whole(entry: dict[str, Any], job: Job) -> bool:
    """Whether a finished job's entry in a list says all that `GET /jobs/{id}` would."""
    if not {"state", "program", "created"} <= entry.keys() or not ("usage" in entry or "bss" in entry):
        return False
    return job.status is JobStatus.COMPLETED or job.reason is not None or job.reason_code is not None


def _backend(item: dict[str, Any]) -> Backend | None:
    name = read_string(item.get("name")) or read_string(item.get("backend_name"))
    if name is None:
        return None
    status = item.get("status")
    status_name = read_string(_dict(status).get("name")) or read_string(status) or "unknown"
    metrics = _dict(item.get("performance_metrics"))
    processor = _dict(item.get("processor_type"))
    clops = item.get("clops")
    return Backend(
        name=name,
        status=status_name,
        status_reason=read_string(_dict(status).get("reason")),
        num_qubits=_count(item.get("qubits", item.get("n_qubits"))),
        simulator=bool(item.get("is_simulator", item.get("simulator", False))),
        queue_length=_count(item.get("queue_length")),
        wait_time_seconds=_number(_dict(item.get("wait_time_seconds")).get("average")),
        processor=" ".join(p for key in ("family", "revision") if (p := read_string(processor.get(key)))) or None,
        clops=_number(_dict(clops).get("value")) if isinstance(clops, dict) else _number(clops),
        two_qubit_error=_number(_dict(metrics.get("two_q_error_median")).get("value")),
        readout_error=_number(_dict(metrics.get("readout_error_median")).get("value")),
    )


def parse_backends(body: dict[str, Any]) -> list[Backend]:
    """Read a list of backends, given as objects or as names only.

    A backend of which only the name is known has the status `unknown`.

    Raises:
        QuantumRuntimeError: There is no such list, or it cannot be one.
    """
    devices = body.get("devices", body.get("backends"))
    if not isinstance(devices, list):
        raise QuantumRuntimeError("the service's backend list has no 'devices'")
    if len(devices) > _MOST_BACKENDS:
        raise ServiceUnavailable(f"The service lists {many(len(devices), 'backend')}, which cannot be.")
    found = []
    for item in devices:
        if isinstance(item, str) and (name := read_string(item)) is not None:
            found.append(Backend(name=name, status="unknown"))
        elif isinstance(item, dict) and (backend := _backend(item)) is not None:
            found.append(backend)
    return found


def parse_backend_status(name: str, status: dict[str, Any]) -> Backend:
    """Read a backend's state, reason and queue. Only the queue is always there."""
    return complete_backend(Backend(name=name), status, {})


def complete_backend(backend: Backend, status: dict[str, Any], configuration: dict[str, Any]) -> Backend:
    """Fill in what a names-only list leaves out, from the backend's status and configuration."""
    said = read_string(status.get("status"))
    healthy = status.get("state", True) is True and said in (None, "active")
    return backend.model_copy(
        update={
            "status": "online" if healthy else (said if said and said != "active" else "offline"),
            "status_reason": read_string(status.get("message")),
            "queue_length": _count(status.get("length_queue")),
            "num_qubits": _count(configuration.get("n_qubits")),
            "simulator": bool(configuration.get("simulator", False)),
        }
    )


def parse_session(body: dict[str, Any]) -> Session:
    """Read a session or batch.

    Raises:
        ServiceUnavailable: The object has no id, or one that cannot be one.
    """
    session_id = read_id(body.get("id"), "session")
    accepting = body.get("accepting_jobs")
    return Session(
        id=session_id,
        backend=read_string(body.get("backend_name")) or read_string(body.get("backend")),
        mode=read_string(body.get("mode")) or "dedicated",
        state=read_string(body.get("state")),
        state_reason=read_string(body.get("state_reason")),
        accepting_jobs=accepting if isinstance(accepting, bool) else None,
        max_ttl=_count(body.get("max_ttl", body.get("max_session_ttl"))),
        active_ttl=_count(body.get("active_ttl")),
        interactive_ttl=_count(body.get("interactive_ttl")),
        started_at=read_moment(body.get("started_at")),
        activated_at=read_moment(body.get("activated_at")),
        closed_at=read_moment(body.get("closed_at")),
        elapsed_time=_amount(body.get("elapsed_time")),
        user_id=read_string(body.get("user_id")),
    )


def parse_session_workload(item: dict[str, Any]) -> Session:
    """Read a session or batch from the list of workloads, which alone says what it is charged.

    Raises:
        ServiceUnavailable: The object has no id, or one that cannot be one.
    """
    usage, mode = _dict(item.get("usage")), read_string(item.get("mode"))
    return Session(
        id=read_id(item.get("id"), "workload"),
        backend=read_string(item.get("backend")),
        mode="dedicated" if mode == "session" else mode or "dedicated",
        started_at=read_moment(item.get("created")),
        closed_at=read_moment(item.get("ended")),
        user_id=read_string(item.get("user_id")),
        usage_seconds=_first_amount(usage, *_SECONDS),
        usage_units=read_units(usage),
        usage_final=read_string(usage.get("status")) == "complete" and _is_told(usage, ran=False),
    )


def parse_usage(body: dict[str, Any]) -> Usage:
    """Read the instance's usage: QPU seconds, and resource units if it has some.

    Raises:
        ServiceUnavailable: A number of seconds cannot be read. No budget may take that for no use or no limit.
    """
    period = _dict(body.get("usage_period"))
    names = ("usage_consumed_seconds", "usage_limit_seconds", "usage_allocation_seconds")
    consumed, limit, allocation = (_amount(body.get(name)) for name in names)
    wrong = [name for name in names if body.get(name) is not None and _amount(body[name]) is None]
    if consumed is None and not {limit, allocation} <= {None}:
        wrong.append("usage_consumed_seconds")
    if wrong:
        raise ServiceUnavailable(f"The service's usage has no readable {wrong[0]}.")
    return Usage(
        instance_id=read_string(body.get("instance_id")),
        plan_id=read_string(body.get("plan_id")),
        consumed_seconds=consumed or 0.0,
        limit_seconds=limit,
        allocation_seconds=allocation,
        limit_reached=body.get("usage_limit_reached") is True,
        consumed_units=_amount(body.get("usage_consumed_ru")),
        limit_units=_first_amount(body, "usage_limit_ru", "instance_limit_ru"),
        allocation_units=_amount(body.get("usage_allocation_ru")),
        period_start=read_moment(period.get("start_time")),
        period_end=read_moment(period.get("end_time")),
    )


def parse_versions(body: dict[str, Any]) -> tuple[str, ...]:
    """API versions, given as texts or as objects."""
    items = _list(body.get("versions"))[:_MOST_VERSIONS]
    found = (item.get("version") if isinstance(item, dict) else item for item in items)
    return tuple(
        text for version in found if isinstance(version, str) and (text := read_string(version, _LONGEST_CODE))
    )
