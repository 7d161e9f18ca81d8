"""Models of the service's answers, the same for both dialects.

All models are frozen, small, free of secrets and round-trip through JSON. Readers are tolerant:
unknown fields are ignored and an unknown status is kept as text. Parsing one dialect's JSON into
these models happens in `client.dialects`; no model knows a dialect.
"""

from __future__ import annotations

import base64
import html
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "FLOW_TAG",
    "KEY_TAG",
    "MOST_TTL",
    "Backend",
    "InstanceReport",
    "Job",
    "JobRef",
    "JobStatus",
    "Provenance",
    "Session",
    "SessionRef",
    "Usage",
    "is_mock",
    "mock_backend",
    "twirled_shots",
]


KEY_TAG = "qr-key:"
"""Prefix of a submission key's tag; 32 hex digits follow."""
FLOW_TAG = "qr-flow:"
"""Prefix of the tag of the owning flow run; its id follows."""
MOST_TTL = 2**31 - 1
"""Longest life of a session in seconds that the service takes."""
_MOCK = "mock_"


def is_mock(backend: str | None) -> bool:
    """Whether a backend runs jobs without a QPU: they return random results and are not charged."""
    return backend is not None and backend.startswith(_MOCK)


def mock_backend(backend: str) -> str:
    """The name of the mock backend that stands for a backend: `mock_torino` for `ibm_torino`."""
    return backend if is_mock(backend) else _MOCK + (backend.partition("_")[2] or backend)


def twirled_shots(options: Mapping[str, Any], asked: int | None, default: int, *, level: int = 0) -> tuple[int, int]:
    """The shots of a point that a result has, and those that are run and charged.

    Twirling runs whole randomizations, so it rounds up. Its two numbers come before a default, but after what is asked.

    Args:
        options: The job's options.
        asked: The shots that the PUB or the job asks for, also by a precision; None if neither does.
        default: The shots of the options, or the service's.
        level: The estimator's resilience level, which says what is twirled where the options do not; 0 for the sampler.
    """
    twirling, resilience = (
        part if isinstance(part := options.get(name), Mapping) else {} for name in ("twirling", "resilience")
    )
    flags = {"enable_gates": level > 1, "enable_measure": level > 0}
    shots = default if asked is None else asked
    if not any(on if (said := twirling.get(name)) is None else said for name, on in flags.items()):
        return shots, shots
    randomizations, each = (
        number if type(number := twirling.get(name)) is int and number > 0 else None
        for name in ("num_randomizations", "shots_per_randomization")
    )
    if randomizations and each and asked is None:
        shots = randomizations * each
    if randomizations:
        return shots, randomizations * math.ceil(shots / randomizations)
    each = each or (64 if resilience.get("pec_mitigation") else max(64, math.ceil(shots / 32)))
    return shots, each * math.ceil(shots / each)


def _html(value: Any) -> str:
    # Like `redact.html_text`, which this lowest module does not import.
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S %Z}"
    if isinstance(value, tuple):
        return "<br>".join(map(_html, value))
    if isinstance(value, _Model):
        return value._repr_html_()
    return _text(value)


def _link(url: str) -> str:
    # Made by this package from the block's address; any other text stays a text.
    shown = _text(url)
    return f'<a href="{shown}" rel="noopener noreferrer">{shown}</a>' if url.startswith(("https:", "http:")) else shown


def _text(value: Any) -> str:
    return html.escape("".join(letter if letter.isprintable() else " " for letter in str(value)[:500]))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Only what differs from the default: most fields are empty most of the time."""
        fields = type(self).model_fields
        for name, value in super().__repr_args__():
            if name is None or name not in fields or value != fields[name].default:
                yield name, value

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows: the fields that have a value, escaped."""
        rows = "".join(
            f'<tr><th style="text-align:left">{name.replace("_", " ")}</th>'
            f'<td style="text-align:left">{_link(value) if name == "url" else _html(value)}</td></tr>'
            for name, value in self
            if value not in (None, "", ()) and type(self).model_fields[name].repr
        )
        return f"<table><caption>{type(self).__name__}</caption><tbody>{rows}</tbody></table>"


class JobStatus(StrEnum):
    """State of a job. Only the service's own answer sets it."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the job can never change again."""
        return self in (JobStatus.COMPLETED, JobStatus.CANCELLED, JobStatus.FAILED)

    @classmethod
    def of(cls, word: str) -> JobStatus | None:
        """The status for a word of the service, of any API version; None for an unknown word."""
        return _STATUSES.get(word.strip().lower())


# Statuses of /jobs, of /workloads and of the oldest jobs API, lower case.
_STATUSES = {
    "queued": JobStatus.QUEUED,
    "pending": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "in_progress": JobStatus.RUNNING,
    "completed": JobStatus.COMPLETED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
    "canceled": JobStatus.CANCELLED,
    "cancelled - ran too long": JobStatus.CANCELLED,
    "canceled - ran too long": JobStatus.CANCELLED,
    "failed - ran too long": JobStatus.FAILED,
}


class Backend(_Model):
    """A QPU or simulator of the instance.

    `status` is `online`, `paused`, `offline` or any other word of the service; `queue_length` counts
    pending jobs; `wait_time_seconds` is the service's average estimate, if any.
    """

    name: str
    status: str = "online"
    status_reason: str | None = None
    num_qubits: int | None = None
    simulator: bool = False
    queue_length: int | None = None
    wait_time_seconds: float | None = None
    processor: str | None = None
    clops: float | None = None
    two_qubit_error: float | None = None
    readout_error: float | None = None

    @property
    def is_online(self) -> bool:
        """Whether it takes and runs jobs now."""
        return self.status.lower() in ("online", "active")


class SessionRef(_Model):
    """A session or batch; `id` is None while a legacy session waits for the first job that makes it.

    `token` names the session's record in Prefect and its binding in this process; it is random and no
    secret.
    """

    id: str | None = None
    mode: Literal["dedicated", "batch"] = "dedicated"
    backend: str | None = None
    max_ttl: int | None = Field(default=None, description="Longest life in seconds.")
    state: str | None = None
    accepting_jobs: bool | None = None
    token: str | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the service said it is closed. An unknown state counts as open."""
        return (self.state or "").lower() in ("closed", "canceled", "cancelled")

    @property
    def kind(self) -> Literal["session", "batch"]:
        """Whether it is a session or a batch, in words."""
        return "batch" if self.mode == "batch" else "session"


class Session(_Model):
    """The full answer about one session: states, times (aware datetimes) and limits in seconds."""

    id: str
    backend: str | None = None
    mode: str = "dedicated"
    state: str | None = None
    state_reason: str | None = None
    accepting_jobs: bool | None = None
    max_ttl: int | None = None
    active_ttl: int | None = None
    interactive_ttl: int | None = None
    started_at: datetime | None = None
    activated_at: datetime | None = None
    closed_at: datetime | None = None
    elapsed_time: float | None = None
    user_id: str | None = None
    usage_seconds: float | None = Field(default=None, description="QPU seconds charged; only workloads say so.")
    usage_units: float | None = Field(default=None, description="Resource units charged, if the service says so.")
    usage_final: bool = False

    def ref(self) -> SessionRef:
        """The small handle that flows pass around."""
        return SessionRef(
            id=self.id,
            mode="batch" if self.mode == "batch" else "dedicated",
            backend=self.backend,
            max_ttl=self.max_ttl,
            state=self.state,
            accepting_jobs=self.accepting_jobs,
        )


class JobRef(_Model):
    """The handle of a submitted job: enough to find it again from anywhere.

    `widths` holds the number of classical bits of each PUB where the circuit text tells, because
    a legacy result does not say how long its bitstrings are. `attached` is True when the job
    existed already and nothing was submitted. `private` is None if it is not known, and is then asked for.
    `payload_digest` identifies what was submitted (hex SHA-256), if known. `certain` is False if it could
    not be known for certain that the job is the one of this call: the same work written again may get another
    key, or not all of the input of the job attached to could be compared: the service does not show it, or its
    circuits were transpiled.
    """

    id: str
    backend: str | None = None
    program_id: str | None = None
    session: SessionRef | None = None
    submission_key: str | None = None
    tags: tuple[str, ...] = ()
    url: str | None = None
    private: bool | None = None
    attached: bool = False
    widths: tuple[int | None, ...] = ()
    payload_digest: str | None = None
    certain: bool = True

    @property
    def dry_run(self) -> bool:
        """Whether it runs on a mock backend, without a QPU."""
        return is_mock(self.backend)


class Job(_Model):
    """One job as the service sees it.

    `status` is None when the service used a word this version does not know; `raw_status` always
    holds that word. `usage_seconds` are QPU seconds charged, final once `usage_final` is True.
    """

    id: str
    status: JobStatus | None
    raw_status: str = ""
    reason: str | None = None
    reason_code: int | str | None = None
    reason_solution: str | None = None
    ran_too_long: bool = False
    backend: str | None = None
    program_id: str | None = None
    session_id: str | None = None
    created_at: datetime | None = None
    tags: tuple[str, ...] = ()
    usage_seconds: float | None = None
    usage_final: bool = False
    usage_units: float | None = Field(default=None, description="Resource units charged, if the service says so.")
    user_id: str | None = None
    estimated_running_seconds: float | None = None
    max_execution_time: int | None = None
    private: bool = False
    url: str | None = None
    calibration_id: str | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the job can never change again."""
        return self.status is not None and self.status.is_terminal

    @property
    def dry_run(self) -> bool:
        """Whether it runs on a mock backend, without a QPU; what it shows as its usage is not charged."""
        return is_mock(self.backend)

    @property
    def charged_seconds(self) -> float | None:
        """QPU seconds that are charged; None if they are not known."""
        return 0.0 if self.dry_run else self.usage_seconds

    def ref(self) -> JobRef:
        """The handle of this job."""
        return JobRef(
            id=self.id,
            backend=self.backend,
            program_id=self.program_id,
            session=SessionRef(id=self.session_id, backend=self.backend) if self.session_id else None,
            tags=self.tags,
            url=self.url,
            private=self.private,
            submission_key=next((tag for tag in self.tags if tag.startswith(KEY_TAG)), None),
        )

    @property
    def flow_run_id(self) -> str | None:
        """The id of the flow run that submitted the job, as its tag says; None without one, or if it is no such id."""
        told = next((tag.removeprefix(FLOW_TAG) for tag in self.tags if tag.startswith(FLOW_TAG)), "")
        try:
            return str(UUID(told))
        except ValueError:
            return None


class Provenance(_Model):
    """Origin of a result: the run's calibration and times, what was submitted, and by which packages.

    Attributes:
        job_id: The job.
        backend: The backend.
        program_id: The program that was asked for.
        wire_program: The program that the service ran: `executor` for PUBs on that route.
        calibration_id: The backend's calibration that the job ran with, as the service says.
        calibrated_at: When the backend's properties were last updated.
        backend_version: The backend's version.
        properties_data: The backend's properties, compressed; read `properties`.
        payload_digest: Hex SHA-256 of the payload as its submission key sees it.
        submission_key: The tag of the submission key.
        created_at: When the service accepted the job.
        queue_seconds: Seconds queued, as a wait of this process saw it.
        run_seconds: Seconds run, as a wait of this process saw it.
        usage_seconds: QPU seconds charged; not final unless `usage_final`.
        usage_final: Whether they are final.
        packages: Versions of Python and packages where the result was fetched.
        missing: What is unknown and why, in sentences.
    """

    job_id: str
    backend: str | None = None
    program_id: str | None = None
    wire_program: str | None = None
    calibration_id: str | None = None
    calibrated_at: datetime | None = None
    backend_version: str | None = None
    properties_data: str | None = Field(default=None, repr=False)
    payload_digest: str | None = None
    submission_key: str | None = None
    created_at: datetime | None = None
    queue_seconds: float | None = None
    run_seconds: float | None = None
    usage_seconds: float | None = None
    usage_final: bool = False
    packages: dict[str, str] = Field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def dry_run(self) -> bool:
        """Whether the job ran on a mock backend: its results are random."""
        return is_mock(self.backend)

    @property
    def properties(self) -> dict[str, Any] | None:
        """The properties of the backend as of the run, as the service gave them; None if they are not known."""
        if self.properties_data is None:
            return None
        found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(self.properties_data)))
        return found


class Usage(_Model):
    """QPU seconds of the instance in its current usage period."""

    instance_id: str | None = None
    plan_id: str | None = None
    consumed_seconds: float = 0.0
    limit_seconds: float | None = None
    allocation_seconds: float | None = None
    limit_reached: bool = False
    consumed_units: float | None = Field(default=None, description="In resource units; never added to seconds.")
    limit_units: float | None = None
    allocation_units: float | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds left, or None if the instance has no limit."""
        limit = self.limit_seconds if self.limit_seconds is not None else self.allocation_seconds
        if self.limit_reached:
            return 0.0
        return None if limit is None else max(0.0, limit - self.consumed_seconds)


class InstanceReport(_Model):
    """The rights of an API key on an instance; never holds the key or a token.

    `problems` names each problem with its fix.
    """

    ok: bool
    dialect: str
    host: str
    crn: str
    region: str
    plan: str | None = None
    backends: tuple[str, ...] = ()
    usage: Usage | None = None
    api_versions: tuple[str, ...] = ()
    missing_rights: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    token_seconds_left: float | None = None
