"""The limit of a wait that Prefect retries, and results as the input of other tasks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.context import TaskRunContext
from prefect.utilities.collections import visit_collection

from prefect_qruntime.client.results import JobResult
from prefect_qruntime.tasks import jobs


@pytest.mark.parametrize("jump", [-86_400.0, -60.0, 0.0, 60.0, 86_400.0])
def test_a_retry_has_what_is_left_of_the_limit_however_the_wall_clock_jumps(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    began, now, set_by = datetime.now(UTC), [1_000.0], [0.0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return began + timedelta(seconds=now[0] - 1_000.0 + set_by[0])

    monkeypatch.setattr(jobs, "datetime", Clock)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    first, other = (SimpleNamespace(id=uuid4(), run_count=1, start_time=began) for _ in range(2))
    monkeypatch.setattr(TaskRunContext, "get", lambda: SimpleNamespace(task_run=task_run))
    seen = []
    for task_run, attempt, at in [
        (first, 1, 0.0),
        (first, 2, 40.0),
        (other, 1, 40.0),
        (first, 3, 70.0),
        (first, 4, 200.0),
    ]:
        task_run.run_count, now[0], set_by[0] = attempt, 1_000.0 + at, jump * (attempt > 1)
        seen.append(jobs._time_left(100.0, "d1"))
    assert seen == [100.0, 60.0, 100.0, 30.0, 0.001]
    assert jobs._time_left(None, "d1") is None
    task_run = SimpleNamespace(id=uuid4(), run_count=2, start_time=began - timedelta(seconds=99_999))
    assert jobs._time_left(100.0, "d1") == 100.0, "of attempts in another process only the wall clock is known"
    now[0] += 30.0
    task_run.run_count = 3
    assert jobs._time_left(100.0, "d1") == 70.0


def test_prefect_looks_at_no_shot_of_a_result_that_a_task_is_given() -> None:
    """It looks for futures in all values, which takes 10 s for a million of them, each time."""
    body = {"results": [{"data": {"c": {"samples": ["0x1"] * 100, "num_bits": 1}}, "metadata": {}}]}
    result = JobResult(body=body, job_id="d1", widths=(1,))
    seen: list[object] = []

    def look(value: object) -> object:
        seen.append(value)
        return value

    for given in visit_collection([result], look, return_data=True):
        assert given is result
    assert "d1" in seen
    assert "0x1" not in seen
    assert result.counts() == {"1": 100}
