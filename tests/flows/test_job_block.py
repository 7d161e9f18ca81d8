"""The job as a block: saved, loaded, triggered, repeated, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.blocks.abstract import JobBlock
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate

from prefect_qruntime import Budget, InvalidInput, JobResult, QuantumRuntimeCredentials, QuantumRuntimeJob
from prefect_qruntime.operations.doctor import run_doctor
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import posts
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server
CIRCUIT = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q[0]; c = measure q;'


@flow
async def run_any_job_block(name: str) -> Any:
    """A generic flow: knows nothing of quantum jobs."""
    block: JobBlock[Any] = await QuantumRuntimeJob.aload(name)
    run = await block.trigger()
    await run.wait_for_completion()
    return await run.fetch_result()


def test_saved_loaded_and_run_by_a_generic_flow(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    credentials.save("job-block-credentials", overwrite=True)
    job = QuantumRuntimeJob(credentials=credentials, backend="sandbox_ideal", pubs=[CIRCUIT], shots=7)
    job.save("job-block", overwrite=True)
    result = asyncio.run(run_any_job_block("job-block"))  # type: ignore[arg-type]
    assert isinstance(result, JobResult)
    assert result.counts() == {"1": 7}
    assert posts(sandbox) == 1


def test_triggered_again_by_a_retried_flow_it_attaches(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    block = QuantumRuntimeJob(credentials=credentials, backend="sandbox_ideal", pubs=[CIRCUIT])
    tries: list[int] = []

    @flow(retries=1)
    async def unlucky() -> bool:
        run = await block.trigger()
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return run.job.attached

    assert asyncio.run(unlucky()) is True  # type: ignore[arg-type]
    assert posts(sandbox) == 1


def test_cancel_and_bad_input(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.hold()

    @flow
    async def cancelled() -> str:
        run = await QuantumRuntimeJob(credentials=credentials, backend="sandbox_ideal", pubs=[CIRCUIT]).trigger()
        return (await run.cancel()).raw_status

    @flow
    async def wrong() -> None:
        await QuantumRuntimeJob(credentials=credentials, backend="sandbox_ideal", pubs=[CIRCUIT], shots=0).trigger()

    assert asyncio.run(cancelled()) == "Cancelled"  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="shots"):
        asyncio.run(wrong())  # type: ignore[arg-type]
    assert posts(sandbox) == 1


def test_the_form_keeps_to_what_the_service_takes() -> None:
    fields = QuantumRuntimeJob.model_json_schema()["properties"]
    bounds = {
        name: (kind.get("minimum"), kind.get("maximum"))
        for name, (kind, _) in ((name, fields[name]["anyOf"]) for name in ("shots", "max_execution_time", "timeout"))
    }
    assert bounds == {"shots": (1, None), "max_execution_time": (1, 10800), "timeout": (0, None)}
    # Prefect stores documents by the order of their fields.
    assert list(fields)[:6] == ["credentials", "backend", "program_id", "pubs", "shots", "options"]


def copied_into(job_block: str) -> None:
    """Save the job block again as a form does that holds the budget's fields instead of naming the saved budget."""

    async def edit(client: PrefectClient) -> None:
        document = await client.read_block_document_by_name(job_block, QuantumRuntimeJob.get_block_type_slug())
        credentials = document.block_document_references["credentials"]["block_document"]["id"]
        data = {**document.data, "credentials": {"$ref": {"block_document_id": credentials}}}
        await client.update_block_document(
            document.id, BlockDocumentUpdate(data=data, block_schema_id=document.block_schema_id)
        )

    asked(edit)


@pytest.mark.parametrize("copied", [False, True])
def test_a_copy_of_a_budget_in_a_job_block_is_reported_when_the_job_is_submitted_and_by_doctor(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, caplog: pytest.LogCaptureFixture, copied: bool
) -> None:
    name = f"copy-{uuid4().hex[:6]}"
    credentials.save(name)
    Budget(max_jobs_per_run=5).save(name)
    QuantumRuntimeJob(
        credentials=QuantumRuntimeCredentials.load(name),
        backend="sandbox_ideal",
        pubs=[CIRCUIT],
        budget=Budget.load(name),
    ).save(name)
    if copied:
        copied_into(name)
    asyncio.run(run_any_job_block(name))  # type: ignore[arg-type]
    assert (f"The budget of job block '{name}' is a copy inside the block" in caplog.text) == copied
    found = next(one for one in run_doctor([name]).findings if one.check == "job blocks")
    assert (name in found.finding) == copied
    assert not copied or found.level == "hint"
