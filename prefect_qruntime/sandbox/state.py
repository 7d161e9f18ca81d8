"""Jobs and sessions as plain data, changed only on the server's loop."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.clock import Timer

QUEUED, RUNNING, COMPLETED, CANCELLED, FAILED = "Queued", "Running", "Completed", "Cancelled", "Failed"
TERMINAL = frozenset({COMPLETED, CANCELLED, FAILED})
RAN_TOO_LONG = 1305


@dataclass(slots=True)
class Outcome:
    """The outcome of a job: a result, or a failure with its reason and text."""

    body: bytes | None = None
    status: str = COMPLETED
    reason: str = ""
    reason_code: int | None = None
    solution: str = ""
    text: str | None = None
    execution_ns: int = 0


@dataclass(slots=True, frozen=True)
class Run:
    """The facts about its job that a program needs besides the params.

    Attributes:
        backend: The backend.
        seed: Seed of all random numbers.
        strict: Whether circuits must be native to the backend.
        simulated: Whether circuits are simulated at all.
        started: When the job started, in service seconds since the epoch.
        duration: The job's time on the QPU in service seconds.
    """

    backend: Backend
    seed: int
    strict: bool = False
    simulated: bool = True
    started: float = 0.0
    duration: float = 0.0


@dataclass(slots=True)
class Script:
    """The outcome that a test asks for the next created jobs."""

    status: str = FAILED
    reason: str = ""
    reason_code: int | None = None
    results_text: str | None = None
    times: int = 1


@dataclass(slots=True, eq=False)
class Job:
    """One job. Times are service seconds since the epoch."""

    id: str
    ordinal: int
    crn: str
    user_id: str
    dialect: str
    backend: str
    program_id: str
    params: dict[str, Any]
    tags: list[str]
    cost: int
    created: float
    created_iso: str
    session_id: str | None = None
    private: bool = False
    runtime: str | None = None
    calibration_id: str | None = None
    caller: str = ""
    status: str = QUEUED
    reason: str = ""
    reason_code: int | None = None
    solution: str = ""
    started: float | None = None
    ended: float | None = None
    ready: bool = False
    time_up: bool = False
    forced: bool = False
    run_time: float = 0.0
    usage_seconds: float = 0.0
    usage_final: bool = False
    unit_rate: float = 0.0
    outcome: Outcome | None = None
    script: Script | None = None
    result_read: bool = False
    timer: Timer | None = None
    cancel_timer: Timer | None = None
    usage_timer: Timer | None = None
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    stream_waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL

    @property
    def ran_too_long(self) -> bool:
        """Whether the job was stopped at its `cost`."""
        return self.reason_code == RAN_TOO_LONG and self.status == CANCELLED


@dataclass(slots=True, eq=False)
class Session:
    """One session or batch."""

    id: str
    crn: str
    user_id: str
    mode: str
    backend: str | None
    created: float
    max_ttl: int
    interactive_ttl: int
    active_ttl: int | None = None
    state: str = "open"
    state_reason: str = ""
    accepting_jobs: bool = True
    activated: float | None = None
    closed: float | None = None
    last_job_started: float | None = None
    last_job_completed: float | None = None
    timestamps: list[tuple[str, float]] = field(default_factory=list)
    queue: deque[Job] = field(default_factory=deque)
    current: Job | None = None
    job_ids: list[str] = field(default_factory=list)
    usage_seconds: float = 0.0
    usage_final: bool = False
    unit_rate: float = 0.0
    charged_since: float | None = None
    ttl_timer: Timer | None = None
    idle_timer: Timer | None = None
    close_timer: Timer | None = None
    usage_timer: Timer | None = None

    def charge(self, now: float) -> float:
        """Return the QPU seconds used by now: by the clock while a dedicated session has the QPU, else by its jobs."""
        running = 0.0 if self.charged_since is None else now - self.charged_since
        return round(self.usage_seconds + running, 6)
