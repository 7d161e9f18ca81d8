"""Which failed jobs a repeated flow run submits again, whatever the clocks say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.run_context import RunContext, note_job

ENDED = datetime(2026, 5, 1, 12, tzinfo=UTC)
"""When the attempt before ended, in true time."""


def retried(
    tries: int = 1, *, attempt: int = 2, prefect_ahead: float = 0.0, identity: str = "flow-run:1"
) -> RunContext:
    asked = ENDED + timedelta(seconds=prefect_ahead)
    return RunContext("1", identity, True, True, attempt, 0.0, asked=asked, tries=tries)


def dead(seconds_after_end: float, *, service_ahead: float = 0.0, code: int | None = None) -> Job:
    created = ENDED + timedelta(seconds=seconds_after_end + service_ahead)
    return Job(id=f"d{uuid4().hex[:8]}", status=JobStatus.FAILED, created_at=created, reason_code=code)


@pytest.mark.parametrize("service_ahead", [-120.0, 0.0, 120.0])
@pytest.mark.parametrize("prefect_ahead", [-120.0, 0.0, 120.0])
def test_only_what_failed_before_the_retry_is_submitted_again(service_ahead: float, prefect_ahead: float) -> None:
    where = retried(prefect_ahead=prefect_ahead)
    known = {"service_ahead": service_ahead, "prefect_ahead": prefect_ahead}
    assert where.may_resubmit(dead(-3, service_ahead=service_ahead), **known)
    assert not where.may_resubmit(dead(3, service_ahead=service_ahead), **known)


@pytest.mark.parametrize("after_end", [-600.0, 0.0, 600.0])
def test_this_process_knows_its_own_tries_without_a_clock(after_end: float) -> None:
    job, identity = dead(after_end), f"flow-run:{uuid4()}"
    note_job(retried(1, identity=identity), job.ref())
    assert retried(2, identity=identity).may_resubmit(job)
    assert not retried(1, identity=identity).may_resubmit(job)
    # A resume starts the flow run again, but asks for no other try.
    assert not retried(1, attempt=3, identity=identity).may_resubmit(job)


def test_a_job_that_ran_too_long_is_final_and_so_is_all_without_a_retry() -> None:
    assert not retried().may_resubmit(dead(-60, code=1305))
    assert retried().may_resubmit(dead(-60, code=1517))
    resumed = RunContext("1", "flow-run:1", True, False, 2, 0.0)
    assert not resumed.may_resubmit(dead(-60))
