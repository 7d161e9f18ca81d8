"""`prefect-qruntime compare`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from prefect_qruntime.cli.find import credentials_for
from prefect_qruntime.cli.options import AsJson, JobId, OneBlock, needs_prefect
from prefect_qruntime.cli.output import print_json, print_rows
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs.agreement import checked_rate, compare_results
from prefect_qruntime.client.results import JobResult

__all__ = ["compare"]

_ROWS = 20


@needs_prefect
def compare(
    job_id: JobId,
    other_id: Annotated[str, Parameter(help="Id of the other job.")],
    /,
    *,
    false_alarm: Annotated[float, Parameter(help="How often two runs of the same PUBs may be said to differ.")] = 0.001,
    block: OneBlock = None,
    json: AsJson = False,
) -> int:
    """Test statistically whether the results of two finished jobs of the same PUBs agree; submits nothing.

    For instance the two jobs of `compare_routes`, or one before and one after a change. Ends with 1 if they differ.
    """
    rate = checked_rate(false_alarm)

    async def work() -> list[JobResult]:
        return [await (await credentials_for(one, block)).get_client().result(one) for one in (job_id, other_id)]

    found = compare_results(*network_loop().run(work()), false_alarm=rate)
    if json:
        print_json({"jobs": [job_id, other_id], **dataclasses.asdict(found)})
        return 0 if found.agrees else 1
    rows = [
        {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in found.to_table()
    ]
    print_rows(rows[:_ROWS], f"Jobs {job_id} and {other_id}", "nothing to compare")
    console = Console()
    if len(rows) > _ROWS:
        console.print(f"{len(rows) - _ROWS} more rows, each at least as likely; --json prints all.", highlight=False)
    console.print(str(found), highlight=False)
    return 0 if found.agrees else 1
