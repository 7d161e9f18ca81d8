"""Cancelling all jobs of a flow run, however many there are, and what is said of those that live on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Pending, Running

from prefect_qruntime import cancellation
from prefect_qruntime.cancellation import cancel_jobs_of
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.service import JobFilters, Service
from prefect_qruntime.errors import QuantumRuntimeError
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


class Late:
    """A service that lists a submission's job at a later look, and takes the request to cancel it in vain."""

    def __init__(self, listed_at: int = 1) -> None:
        self.listed_at = listed_at
        self.connection: Any = SimpleNamespace(crn="crn", job_url=lambda _: None)
        self.looks = 0
        self.requests: list[str] = []

    async def jobs(self, *, tags: Any = (), **filters: Any) -> list[Job]:
        if tags != ("qr-key:lost",):
            return []
        self.looks += 1
        return [Job(id="d1", status=JobStatus.RUNNING, raw_status="Running")] if self.looks >= self.listed_at else []

    async def cancel(self, job_id: str) -> Job:
        self.requests.append(job_id)
        return Job(id=job_id, status=JobStatus.RUNNING, raw_status="Running")


@pytest.mark.parametrize("listed_at", [1, 2, 6])
def test_a_lost_job_that_is_found_and_lives_on_is_not_called_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, listed_at: int
) -> None:
    """The list is read until the last pause is over."""
    monkeypatch.setattr(cancellation, "_UNLISTED_PAUSES", (0.0,) * 5)
    service: Any = Late(listed_at)
    network_loop().run(cancellation._cancel_lost(service, str(uuid4()), ["qr-key:lost"]))
    assert service.requests == ["d1"]
    assert "still 'Running'" in caplog.text
    assert "not known" not in caplog.text


def test_the_usage_of_a_job_is_not_followed_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait asks for the cancellation again and again, and each time would begin to follow the job's usage."""
    followed: list[Job] = []
    monkeypatch.setattr(cancellation, "follow_usage", lambda client, job: followed.append(job))
    service: Any = Late()
    with pytest.raises(QuantumRuntimeError, match="still 'Running'"):
        network_loop().run(cancel_jobs_of(service, str(uuid4()), ["d1"]))
    assert followed == []


@pytest.mark.parametrize("cancelled", [0, 1, 2, None])
def test_once_a_flow_run_around_is_cancelled_prefect_is_asked_for_no_subflow_of_it(
    monkeypatch: pytest.MonkeyPatch, cancelled: int | None
) -> None:
    """It may fail meanwhile, and without its answer the jobs would live on."""
    runs, asked = [str(uuid4()) for _ in range(3)], list[str]()

    async def read_flow_run_states(run_id: UUID) -> list[Any]:
        asked.append(str(run_id))
        if cancelled is not None and len(asked) > cancelled + 1:
            raise OSError("Prefect does not answer")
        states = [Pending(), Running()]  # each later than the one before
        return [*states, Cancelling(), Cancelled()] if len(asked) - 1 == cancelled else states

    async def lineage() -> list[str]:
        return runs[::-1]

    async def api() -> Any:
        return SimpleNamespace(read_flow_run_states=read_flow_run_states)

    monkeypatch.setattr(cancellation, "lineage", lineage)
    monkeypatch.setattr(cancellation, "api", api)
    answer = network_loop().run(cancellation._ask(30))
    assert answer.cancelled == (None if cancelled is None else runs[cancelled])
    assert answer.starts == 1
    assert asked == (runs if cancelled is None else runs[: cancelled + 1])


@pytest.mark.parametrize("empty", [0, 1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_a_flow_run_without_states_is_deleted_only_if_prefect_does_not_know_it(
    monkeypatch: pytest.MonkeyPatch, empty: int, known: bool
) -> None:
    """A gateway between may answer a list that it does not pass on with an empty one."""
    runs = [str(uuid4()) for _ in range(3)]

    async def read_flow_run_states(run_id: UUID) -> list[Any]:
        return [] if str(run_id) == runs[empty] else [Pending(), Running()]

    async def read_flow_run(run_id: UUID) -> Any:
        assert str(run_id) == runs[empty], "only of a flow run without states"
        if not known:
            raise ObjectNotFound(OSError("404"))

    async def lineage() -> list[str]:
        return runs[::-1]

    async def api() -> Any:
        return SimpleNamespace(read_flow_run_states=read_flow_run_states, read_flow_run=read_flow_run)

    monkeypatch.setattr(cancellation, "lineage", lineage)
    monkeypatch.setattr(cancellation, "api", api)
    assert network_loop().run(cancellation._ask(30)).gone is not known


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_limit_around_a_task_ends_it_in_time_however_the_clock_jumps(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Before: a clock that was set forward ended each submitted wait of a flow with a limit, and one set back none."""
    limit, set_by = (600.0 if jump > 0 else 0.2), [0.0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=set_by[0])

    flow_run = SimpleNamespace(
        flow_run=SimpleNamespace(id=uuid4()),
        detached=False,
        flow=SimpleNamespace(timeout_seconds=limit),
        start_time=datetime.now(UTC),
    )
    monkeypatch.setattr(cancellation, "datetime", Clock)
    monkeypatch.setattr(cancellation, "runs_around", lambda: ([flow_run], [], []))
    monkeypatch.setattr(cancellation.TaskRunContext, "get", lambda: object())
    monkeypatch.setattr(cancellation, "_AFTER_PREFECT", 0.0)

    @cancellation.ends_with_runs_around
    async def wait() -> str:
        set_by[0] = jump
        await asyncio.sleep(0.3 if jump > 0 else 60.0)
        return "to its end"

    if jump > 0:
        assert asyncio.run(wait()) == "to its end"
    else:
        with pytest.raises(TimeoutError, match="reached its limit"):
            asyncio.run(wait())
