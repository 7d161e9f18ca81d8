"""What a wait says of its job: the words, their length, and how often they are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.models import Backend, Job, JobStatus
from prefect_qruntime.observability.progress import (
    LINE,
    ProgressPace,
    WaitProgress,
    backend_words,
    duration,
    is_held,
    line_of,
    waits_line,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ONLINE = Backend(name="ibm_torino", queue_length=14)
PAUSED = Backend(name="ibm_torino", status="paused", status_reason="calibration", queue_length=3)


def job(status: JobStatus | None = JobStatus.QUEUED, **fields: object) -> Job:
    raw = status.value.capitalize() if status else "Odd"
    return Job(**{"id": "d1", "status": status, "raw_status": raw, "backend": "ibm_torino", **fields})


def wait(seen: Job | None, *, at: float = 0.0, backend: Backend | None = None) -> WaitProgress:
    progress = WaitProgress("d1", 0.0, backend=backend)
    if seen is not None:
        progress.saw(seen, at)
    return progress


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *((-1, "0.0 s"), (0, "0.0 s"), (2.14, "2.1 s"), (40.4, "40 s"), (119.4, "119 s"), (120, "2 min")),
        *((3540, "59 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min"), (86_400, "1 d 0 h"), (200_000, "2 d 8 h")),
    ],
)
def test_a_length_of_time_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_words_of_each_state() -> None:
    assert wait(None).words(3) == "no answer from the service yet after 3.0 s"
    assert wait(job()).words(720) == "queued 12 min"
    assert wait(job(), backend=ONLINE).words(720) == "queued 12 min, 14 jobs in the queue, ibm_torino online"
    assert (
        wait(job(), backend=Backend(name="b", queue_length=1)).words(60) == "queued 60 s, 1 job in the queue, b online"
    )
    running = job(JobStatus.RUNNING, estimated_running_seconds=60)
    assert wait(running, at=100).words(140) == "running 40 s of about 60 s"
    assert wait(job(JobStatus.RUNNING), at=100, backend=ONLINE).words(140) == "running 40 s"
    assert wait(job(None)).words(30) == "in the unknown state 'Odd' for 30 s"
    assert wait(job(JobStatus.COMPLETED)).words(30) == "completed"


def test_what_holds_a_job_comes_first_with_the_service_s_reason() -> None:
    held = wait(job(), backend=PAUSED)
    assert held.words(720) == "queued 12 min, ibm_torino is paused (calibration), 3 jobs in the queue"
    assert is_held(held)
    assert not is_held(wait(job(JobStatus.RUNNING), backend=PAUSED)), "it runs all the same"
    assert not is_held(wait(job(), backend=ONLINE))
    assert backend_words(PAUSED.model_copy(update={"status_reason": None})) == "ibm_torino is paused"


def test_time_in_the_queue_before_the_wait_counts() -> None:
    attached = wait(job(created_at=NOW - timedelta(hours=2)))
    assert attached.words(5, NOW).startswith("queued 2 h 00 min")
    ahead = wait(job(created_at=NOW + timedelta(hours=2)))  # the service's clock
    assert ahead.words(5, NOW).startswith("queued 5.0 s")


def test_a_new_state_starts_its_own_clock_and_the_same_one_does_not() -> None:
    progress = wait(job())
    progress.saw(job(), 50)
    assert progress.spent(60) == 60
    progress.saw(job(JobStatus.RUNNING), 70)
    assert progress.spent(75) == 5


def test_many_waits_are_one_line() -> None:
    waits = [wait(job(), backend=PAUSED), wait(job(JobStatus.RUNNING)), wait(job(JobStatus.RUNNING)), wait(None)]
    line = "4 jobs: 1 not seen yet, 1 queued, 2 running, for 60 s, ibm_torino is paused (calibration)"
    assert waits_line(waits, 60) == line
    assert waits_line(waits[1:2], 60) == "job d1: running 60 s"


@given(st.lists(st.text(max_size=60)), st.text(max_size=100), st.text(max_size=60))
def test_extras_are_left_out_from_the_end_until_the_line_fits(extras: list[str], start: str, end: str) -> None:
    line = line_of(start, *extras, end=end)
    assert line.startswith(start)
    assert line.endswith(end)
    assert len(line) <= LINE or line == start + end


@given(st.text(max_size=500), st.text(max_size=500), st.integers(0, 10**6), st.floats(0, 10**7))
def test_a_wait_s_line_is_short_whatever_the_service_says(status: str, reason: str, queue: int, spent: float) -> None:
    backend = Backend(name="ibm_torino", status=status, status_reason=reason, queue_length=queue)
    progress = WaitProgress("d2k7s4h1a0bs739x0pag", 0.0, backend=backend)
    progress.saw(job(), 0)
    line = waits_line([progress], spent)
    assert len(line) <= LINE
    assert "\n" not in line


def test_pages_are_written_more_seldom_if_there_are_many() -> None:
    pace = ProgressPace()
    assert pace.pause(1) == pace.pause(20) == 60
    assert pace.pause(1000) == 3000
    for waits in (1, 20, 100, 5000):
        assert waits / pace.pause(waits) <= 20 / 60, "writes a second, all pages together"
