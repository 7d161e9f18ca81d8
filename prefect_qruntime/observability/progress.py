"""Describe the progress of a wait, and decide how often it is written. Pure: times in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from prefect_qruntime.models import Backend, Job, JobStatus
from prefect_qruntime.printable import printable

__all__ = [
    "LINE",
    "ProgressPace",
    "WaitProgress",
    "backend_words",
    "duration",
    "is_held",
    "line_of",
    "waits_line",
]

LINE = 120
"""Most characters of a log line, unless a part of it is longer by itself."""
_REASON = 60


def duration(seconds: float) -> str:
    """Format a duration for people.

    Example:
        ```python
        from prefect_qruntime.observability.progress import duration

        assert [duration(seconds) for seconds in (2.14, 40, 720, 7500)] == ["2.1 s", "40 s", "12 min", "2 h 05 min"]
        ```
    """
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def line_of(start: str, *extras: str, end: str = "", limit: int = LINE) -> str:
    """Join a line from its parts; extras that do not fit are left out, the last ones first.

    Args:
        start: Always there.
        extras: Each with the punctuation before it, the most important one first.
        end: Always there, after the extras.
        limit: Most characters.
    """
    kept = list(extras)
    while kept and len(start) + sum(map(len, kept)) + len(end) > limit:
        kept.pop()
    return "".join((start, *kept, end))


def backend_words(backend: Backend) -> str:
    """Describe whether a backend runs jobs now, with the service's reason if not; empty if that is not known."""
    if backend.status == "unknown":
        return ""
    if backend.is_online:
        return f"{backend.name} online"
    reason = printable(backend.status_reason or "", _REASON).rstrip(".")
    return f"{backend.name} is {printable(backend.status, 20)}" + (f" ({reason})" if reason else "")


@dataclass(slots=True)
class WaitProgress:
    """The state of a wait for a job.

    Attributes:
        job_id: The job.
        started: When the wait began, on a monotonic clock.
        job: The job as last read.
        since: When its present state was first observed, on the same clock.
        backend: The job's backend as last read.
    """

    job_id: str
    started: float
    job: Job | None = None
    since: float = 0.0
    backend: Backend | None = None

    def saw(self, job: Job, now: float) -> None:
        """Note an answer of the service."""
        if self.job is None or job.raw_status != self.job.raw_status:
            self.since = now
        self.job = job

    @property
    def status(self) -> JobStatus | None:
        """The job's state; None if it was not read yet or is unknown."""
        return None if self.job is None else self.job.status

    def spent(self, now: float, today: datetime | None = None) -> float:
        """Seconds in the present state; a queued job counts from its creation, which may be before the wait."""
        seen = now - (self.since if self.job is not None else self.started)
        if self.status is JobStatus.QUEUED and self.job is not None and self.job.created_at is not None and today:
            # From another clock than ours, so it counts only if it is more.
            return max(seen, (today - self.job.created_at).total_seconds())
        return seen

    def words(self, now: float, today: datetime | None = None) -> str:
        """Describe what the job is doing, for instance `queued 12 min, 14 jobs in the queue, ibm_torino online`.

        Args:
            now: The monotonic clock.
            today: The present time, to count time in the queue before the wait.
        """
        return ", ".join(self.parts(now, today))

    def parts(self, now: float, today: datetime | None = None) -> list[str]:
        """The parts of `words`, the most important one first."""
        spent = duration(self.spent(now, today))
        if self.job is None:
            return [f"no answer from the service yet after {spent}"]
        if self.status is JobStatus.QUEUED:
            said = backend_words(self.backend) if self.backend is not None else ""
            # The reason that holds the job comes first.
            notes = (said, self._queue()) if is_held(self) else (self._queue(), said)
            return [note for note in (f"queued {spent}", *notes) if note]
        if self.status is JobStatus.RUNNING:
            estimate = self.job.estimated_running_seconds
            return [f"running {spent}" + (f" of about {duration(estimate)}" if estimate else "")]
        if self.status is None:
            return [f"in the unknown state {printable(self.job.raw_status, 30)!r} for {spent}"]
        return [self.status.value]

    def _queue(self) -> str:
        queue = None if self.backend is None else self.backend.queue_length
        return "" if queue is None else "1 job in the queue" if queue == 1 else f"{queue} jobs in the queue"


@dataclass(frozen=True, slots=True)
class ProgressPace:
    """How often pages show progress: once a minute each, less often if a process waits for many jobs.

    Attributes:
        every: Seconds between two writes of a page.
        pages: Most pages that a process writes in that time.
    """

    every: float = 60.0
    pages: int = 20

    def pause(self, waits: int) -> float:
        """Seconds until a page is written again if nothing changes.

        Args:
            waits: Jobs that this process waits for.
        """
        return self.every * max(1.0, waits / self.pages)


def waits_line(waits: Collection[WaitProgress], now: float, today: datetime | None = None) -> str:
    """Describe all jobs that a process waits for in one line."""
    if len(waits) == 1:
        (wait,) = waits
        first, *others = wait.parts(now, today)
        return line_of(f"job {wait.job_id}: {first}", *(f", {part}" for part in others))
    states = Counter("not seen yet" if one.job is None else _word(one.job) for one in waits)
    oldest = duration(max((now - one.started for one in waits), default=0.0))
    counted = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    offline = sorted({backend_words(one.backend) for one in waits if one.backend is not None and is_held(one)})
    return line_of(f"{len(waits)} jobs: {counted}, for {oldest}", *(f", {said}" for said in offline))


def is_held(wait: WaitProgress) -> bool:
    """Whether a job is queued at a backend that is known to run none now."""
    backend = wait.backend
    return (
        wait.status is JobStatus.QUEUED
        and backend is not None
        and backend.status != "unknown"
        and not backend.is_online
    )


def _word(job: Job) -> str:
    return job.status.value if job.status is not None else "in an unknown state"
