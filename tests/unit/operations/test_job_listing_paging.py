"""All that read an instance's jobs read each of them once: many, many of one moment, and while more appear."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus, Usage
from prefect_qruntime.operations.instance_sweep import Found, InstanceSweeper
from prefect_qruntime.operations.job_listing import _jobs
from prefect_qruntime.operations.session_listing import _live
from prefect_qruntime.operations.usage import InstanceUsage
from prefect_qruntime.suspend import alarms
from prefect_qruntime.suspend.alarms import InstanceWatch

NOW = datetime.now(UTC)
MOST = 10_000
"""Jobs that one unlimited list gives at most; see `Service.jobs`."""


class Service:
    """A service with jobs, of which each page shows the newest first; before each page another appears."""

    connection = Connection(
        api_key="unit-test-key", crn="crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
    )

    def __init__(self, ages: list[float], inclusive: bool) -> None:
        self.there = [self._job(number, age) for number, age in enumerate(sorted(ages))]
        self.expected = {job.id for job in self.there}
        self.inclusive = inclusive
        self.pages = 0

    @staticmethod
    def _job(number: int, age: float) -> Job:
        return Job(id=f"job-{number:06}", status=JobStatus.COMPLETED, created_at=NOW - timedelta(seconds=age))

    async def usage(self) -> Usage:
        return Usage(consumed_seconds=1.0)

    async def workloads(self, **_: Any) -> list[dict[str, Any]]:
        return []

    async def jobs(self, *, limit: int | None = None, created_before: datetime | None = None, **_: Any) -> list[Job]:
        self.pages += 1
        self.there.insert(0, self._job(-self.pages, -self.pages))
        found = [
            job
            for job in self.there
            if created_before is None
            or (job.created_at or NOW) < created_before
            or (self.inclusive and job.created_at == created_before)
        ]
        if min(len(found), limit or len(found)) > MOST:
            raise QuantumRuntimeError(f"The service lists more than {MOST} jobs.")
        return found[:limit]


async def usage(client: Any) -> list[str]:
    book = InstanceUsage("b")
    await book.read(client, "b", NOW - timedelta(days=20))
    return [*book.book.jobs]


async def listing(client: Any) -> list[str]:
    return [job.id for job in await _jobs(client, None, 100_000, None)]


async def listing_of_a_state(client: Any) -> list[str]:
    return [job.id for job in await _jobs(client, frozenset({JobStatus.COMPLETED}), 100_000, None)]


async def sweep(client: Any) -> list[str]:
    found = Found()
    sweeper = InstanceSweeper("b", client, None, [], [], {}, True, found, [])  # type: ignore[arg-type]
    jobs = await sweeper._jobs()
    assert found.problems == []
    return [job.id for job in jobs]


async def sessions(client: Any) -> list[str]:
    return [job.id for job in await _live(client)]


async def watch(client: Any) -> list[str]:
    view = await InstanceWatch("b")._view(client)
    assert len(view.live) >= len(client.expected)
    return [job.id for job in view.past]


@pytest.mark.parametrize("reader", [usage, listing, listing_of_a_state, sweep, sessions, watch])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize(
    "ages",
    [
        [],
        [float(n) for n in range(199)],
        [float(n) for n in range(200)],
        [float(60 * (n // 30)) for n in range(600)],  # fan-outs, each within one moment
        [5.0] * 450,
        [float(n) for n in range(150)] + [500.0] * 950 + [600.0 + n for n in range(150)],
        [float(n) for n in range(MOST + 500)],
    ],
    ids=["none", "fewer", "page", "fan-outs", "moment", "moment-between", "busy"],
)
def test_each_job_is_read_once(
    monkeypatch: pytest.MonkeyPatch, reader: Callable[[Any], Awaitable[list[str]]], inclusive: bool, ages: list[float]
) -> None:
    async def none(*_: Any) -> list[Any]:
        return []

    async def no_names(*_: Any) -> dict[str, str]:
        return {}

    monkeypatch.setattr(alarms, "read_locks", none)
    monkeypatch.setattr(alarms, "read_queue", none)
    monkeypatch.setattr(InstanceWatch, "_name_runs", no_names)
    service = Service(ages, inclusive)
    found = asyncio.run(reader(service))  # type: ignore[arg-type]
    assert len(set(found)) == len(found)
    assert service.expected <= set(found)
    assert service.pages <= 4 + len(ages) / 60
