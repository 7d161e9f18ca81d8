"""Run a job that was saved as a block, for instance from the form in the UI: trigger, wait, fetch.

Deploy it once and run any saved job by its name. A run that is repeated attaches to the job it submitted.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from pydantic import Field

from prefect_qruntime import Budget, QuantumRuntimeJob, hooks
from prefect_qruntime.prefect_api import load_saved

SHOWN = 50  # rows of the artifact


@flow(name="run-saved-job", **hooks.cancel)
async def run_saved_job(
    job_block: str,
    dry_run: bool = False,
    require_approval_above: Annotated[float | None, Field(ge=0)] = None,
    budget_block: str | None = None,
) -> list[dict[str, Any]]:
    """Run the job of a Quantum Runtime Job block and tabulate its result.

    Args:
        job_block: Name of the Quantum Runtime Job block.
        dry_run: Run on the mock backend that stands for the block's: no QPU, no charge, random results.
        require_approval_above: QPU seconds that the whole may cost without a person's approval on the run's page;
            empty for what the block says.
        budget_block: Name of a Quantum Runtime Budget block that must have room for the job; empty for what the block
            says.

    Returns:
        A row for each outcome with its count (sampler), or for each value with its standard error (estimator).

    Raises:
        InvalidInput: No such block, or a field of it is wrong.
        BudgetExhausted: The budget has no room for the job.
        QuantumRuntimeError: The job could not be submitted, or did not complete.
    """
    job = await load_saved(QuantumRuntimeJob, job_block, field="job_block", fix="Create one in the UI under Blocks.")
    if dry_run:
        job.dry_run = True
    if require_approval_above is not None:
        job.require_approval_above = require_approval_above
    if budget_block:
        job.budget = await load_saved(
            Budget, budget_block, field="budget_block", fix="Create one in the UI under Blocks."
        )
    run = await job.trigger()
    await run.wait_for_completion()
    rows: list[dict[str, Any]] = (await run.fetch_result()).to_table()
    await acreate_table_artifact(
        key="qruntime-saved-job",
        table=[{**row, "point": str(row["point"])} for row in rows[:SHOWN]],
        description=f"{job_block}: job {run.job.id} on {run.job.backend}, first {SHOWN} rows at most",
    )
    return rows


if __name__ == "__main__":
    import asyncio

    asyncio.run(run_saved_job(sys.argv[1]))
