"""Cancelling all jobs of a flow run, however many there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from prefect_qruntime.cancellation import cancel_jobs_of
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.service import JobFilters, Service
from prefect_qruntime.models import Job, JobStatus

START = datetime(2026, 5, 1, tzinfo=UTC)


class Busy(Service):
    """A service whose list of live jobs gets shorter with each page that is read of it."""

    def __init__(self, run: str, jobs: int, leave: int) -> None:
        self.connection: Any = SimpleNamespace(crn="crn", job_url=lambda _: None)
        self.live = {
            f"d{number}": {
                "id": f"d{number}",
                "state": {"status": "Queued"},
                "created": (START + timedelta(seconds=number)).isoformat(),
                "tags": [f"qr-flow:{run}"],
            }
            for number in range(jobs)
        }
        self.ended: set[str] = set()
        self._leave = leave

    async def job_page(self, *, limit: int = 200, offset: int = 0, **filters: Any) -> Any:
        wanted: JobFilters = {"created_before": filters.get("created_before")}
        before = wanted["created_before"]
        listed = [
            entry
            for entry in reversed(self.live.values())
            if before is None or datetime.fromisoformat(str(entry["created"])) < before
        ]
        for entry in listed[offset : offset + self._leave]:  # the newest of the page end by themselves
            del self.live[str(entry["id"])]
        return listed[offset : offset + limit], len(listed)

    async def cancel(self, job_id: str) -> Job:
        self.live.pop(job_id, None)
        return Job(id=job_id, status=JobStatus.COMPLETED)


@pytest.mark.parametrize("leave", [0, 30, 150])
@pytest.mark.parametrize("jobs", [3, 200, 450])
def test_no_job_escapes_that_moves_up_in_the_list(jobs: int, leave: int) -> None:
    run = str(uuid4())
    client: Any = Busy(run, jobs, leave)
    network_loop().run(cancel_jobs_of(client, run))
    assert client.live == {}
