"""What a wait saw of a job, and how long the job was queued and ran by that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from prefect_qruntime.models import Job, JobStatus

__all__ = ["Sighting", "times"]


class Sighting(NamedTuple):
    """A state of a job as a wait saw it: when on our clock, and after how many seconds of waiting."""

    status: JobStatus | None
    word: str
    waited: float
    at: datetime


def times(job: Job, seen: Sequence[Sighting]) -> tuple[float | None, float | None]:
    """Seconds queued and run, as far as they were seen; the jobs API tells neither.

    Args:
        job: The job in its last state.
        seen: Its states in order; the wait may have begun late.

    Returns:
        Both, or None for what was not seen from its beginning.
    """
    running = next((sighting for sighting in seen if sighting.status is JobStatus.RUNNING), None)
    if running is None or running is seen[0]:
        return None, None
    queued = running.waited
    if job.created_at is not None:
        # It was queued before the wait began. That is told by another clock, so only believed if it is more.
        queued = max(queued, (running.at - job.created_at).total_seconds())
    return queued, seen[-1].waited - running.waited
