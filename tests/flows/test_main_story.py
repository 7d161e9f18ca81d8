"""The main flow in a real Prefect server, by itself and as a part of another flow."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client

from flows.run_circuits import BELL, CIRCUITS, run_circuits
from flows.sweep_sessions import sweep_sessions
from prefect_qruntime import JobRef, QuantumRuntimeCredentials, arun_job, load_credentials, run_job, submit_job
from prefect_qruntime.observability.artifacts import find_records
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import noted

pytestmark = pytest.mark.server
SUBMITTED, DONE = "qruntime.job.submitted", "qruntime.job.completed"
FLIP = (CIRCUITS / "flip.qasm").read_text()


def test_the_story_in_both_dialects(sandbox: Sandbox, dialect: str, block: str, capsys: Any) -> None:
    sandbox.control.set_times(queue_time=0.2, run_time=0.3)
    circuits = [str(CIRCUITS / "flip.qasm")] * 6 + [BELL, str(CIRCUITS / "ghz5.qasm")]
    rows = run_circuits(circuits, credentials_block=block, backend="sandbox_ideal", shots=200)

    assert [row["frequencies"] for row in rows[:6]] == [{"1": 200}] * 6
    assert set(rows[6]["frequencies"]) == {"00", "11"}
    assert set(rows[7]["frequencies"]) == {"00000", "11111"}
    assert len({row["job"] for row in rows}) == 8
    assert len({row["session"] for row in rows}) == 1
    assert rows[0]["session"] is not None
    jobs = sandbox.control.jobs()
    assert len(jobs) == 8
    assert {job["session_id"] for job in jobs} == {rows[0]["session"]}
    assert sandbox.control.open_sessions() == []
    sockets = sandbox.control.journal("WS")
    assert bool(sockets) is (dialect == "legacy")
    artifact: Any = Artifact.get("qruntime-counts")
    assert rows[0]["job"] in str(artifact.data)
    assert rows[0]["job"] in capsys.readouterr().out


def test_single_jobs_and_batch(sandbox: Sandbox) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("story-modes", overwrite=True)
    for mode in ("job", "batch"):
        rows = run_circuits([FLIP], credentials_block="story-modes", backend="sandbox_ideal", shots=10, mode=mode)  # type: ignore[arg-type]
        assert rows[0]["frequencies"] == {"1": 10}
        assert (rows[0]["session"] is None) is (mode == "job")
    assert {session["mode"] for session in sandbox.control.sessions()} == {"batch"}


def test_both_routes(sandbox: Sandbox, capsys: Any) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("story-routes", overwrite=True)
    (row,) = run_circuits(
        [FLIP], credentials_block="story-routes", backend="sandbox_ideal", shots=10, mode="batch", compare_routes=True
    )
    assert [job["program_id"] for job in sandbox.control.jobs()] == ["sampler", "executor"]
    assert [job["id"] for job in sandbox.control.jobs()] == [row["job"], row["executor job"]]
    assert (row["frequencies"], row["routes"]) == ({"1": 10}, "agree")
    assert "The two results agree" in capsys.readouterr().out


def test_without_a_block_it_uses_the_embedded_sandbox_and_says_so(sandbox: Sandbox, caplog: Any) -> None:
    rows = run_circuits([FLIP], backend="sandbox_ideal", shots=10, dialect="legacy", mode="job")
    assert rows[0]["frequencies"] == {"1": 10}
    assert sandbox.control.jobs() == [], "it ran on another sandbox than its own"
    said = [record.getMessage() for record in caplog.records if "embedded sandbox" in record.getMessage()]
    assert len(said) == 1


def test_as_a_subflow_of_somebody_elses_flow(sandbox: Sandbox, block: str) -> None:
    @flow
    def pipeline() -> int:
        rows = run_circuits([FLIP, BELL], credentials_block=block, backend="sandbox_ideal", shots=50)
        return sum(row["shots"] for row in rows)

    assert pipeline() == 100
    assert len(sandbox.control.jobs()) == 2


def test_run_job_is_three_task_runs_and_the_job_is_in_prefect(sandbox: Sandbox) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("story-runs", overwrite=True)
    seen: dict[str, Any] = {}

    @flow
    def one() -> dict[str, int]:
        from prefect.runtime import flow_run

        seen["id"] = UUID(str(flow_run.id))
        return run_job(load_credentials("story-runs"), [FLIP], backend="sandbox_ideal", shots=10).counts()

    assert one() == {"1": 10}
    noted()
    job = sandbox.control.jobs()[0]
    assert f"qr-flow:{seen['id']}" in job["tags"]

    @flow
    async def look() -> tuple[list[Any], list[Any], list[str]]:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        records = await find_here("job", seen["id"])
        deadline = time.monotonic() + 600  # in the background, of a server that may stand still for a minute at a time
        names: list[str] = []
        found: list[Any] = []
        async with get_client() as client:
            while time.monotonic() < deadline:
                runs = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[seen["id"]])))
                names = sorted(run.name for run in runs)
                answer = await client._client.post(
                    "/events/filter",
                    json={"filter": {"resource": {"id": [f"qruntime.job.{job['id']}"]}}, "limit": 50},
                )
                found = answer.json()["events"]
                if len(names) == 3 and {event["event"] for event in found} >= {DONE, SUBMITTED}:
                    break
                await asyncio.sleep(0.3)
        return records, found, names

    records, events, names = asyncio_run(look())
    assert names == [f"fetch {job['id']}", "submit sampler → sandbox_ideal", f"wait for {job['id']}"]
    assert len(records) == 1
    meta = records[0].meta
    assert (meta["id"], meta["block"], meta["flow_run"]) == (job["id"], "story-runs", str(seen["id"]))
    assert meta["state"] == "Completed"
    kinds = {event["event"] for event in events}
    assert {SUBMITTED, DONE} <= kinds
    for event in events:
        assert event["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{seen['id']}"


def asyncio_run(work: Any) -> Any:
    return asyncio.run(work)


async def find_here(kind: Any, flow_run_id: UUID) -> list[Any]:
    """Read records on the network loop, where their client lives."""
    from prefect_qruntime.client.network_loop import network_loop

    return await network_loop().arun(find_records(kind, flow_run_ids=[flow_run_id]))


def test_async_twin(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    @flow
    async def one() -> dict[str, int]:
        return (await arun_job(credentials, [FLIP], backend="sandbox_ideal", shots=10)).counts()

    assert asyncio_run(one()) == {"1": 10}


def test_tasks_work_outside_any_flow(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    job = submit_job(credentials, [FLIP], backend="sandbox_ideal", shots=10)
    assert isinstance(job, JobRef)
    assert job.submission_key is not None


def test_sweep_flow_finds_nothing_to_do(sandbox: Sandbox) -> None:
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save("story-sweep", overwrite=True)
    report = sweep_sessions(["story-sweep"])
    assert (report.sessions, report.jobs, report.problems) == ([], [], [])
