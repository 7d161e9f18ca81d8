"""`prefect-qruntime result`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from prefect_qruntime.cli.find import credentials_for
from prefect_qruntime.cli.options import AsJson, JobId, OneBlock, needs_prefect
from prefect_qruntime.cli.output import print_json
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.results import JobResult

__all__ = ["result"]

_ROWS = 20


@needs_prefect
def result(job_id: JobId, /, *, block: OneBlock = None, json: AsJson = False) -> int:
    """Fetch a finished job's result and show it; `--json` prints it as the service returned it.

    A private job's result can be read only once: fetch it in a flow, which stores it.
    """

    async def work() -> JobResult:
        return await (await credentials_for(job_id, block)).get_client().result(job_id)

    found = network_loop().run(work())
    if json:
        print_json(found.raw)
        return 0
    rows, console = found.to_table(), Console()
    if not rows:
        console.print(f"The result of job {job_id} has no counts or values; --json prints it.", highlight=False)
        return 0
    table = Table(expand=True)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows[:_ROWS]:
        table.add_row(*(f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    if len(rows) > _ROWS:
        console.print(f"{len(rows) - _ROWS} more rows; --json prints all.", highlight=False)
    return 0
