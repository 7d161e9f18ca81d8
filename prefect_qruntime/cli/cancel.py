"""`prefect-qruntime cancel`."""

from __future__ import annotations

from rich.console import Console

from prefect_qruntime.cli.find import credentials_for
from prefect_qruntime.cli.options import AsJson, JobId, OneBlock, needs_prefect
from prefect_qruntime.cli.output import print_json
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.models import Job

__all__ = ["cancel"]


@needs_prefect
def cancel(job_id: JobId, /, *, block: OneBlock = None, json: AsJson = False) -> int:
    """Cancel a job. A job that has already ended is left as it is."""

    async def work() -> Job:
        return await (await credentials_for(job_id, block)).get_client().cancel(job_id)

    job = network_loop().run(work())
    if json:
        print_json(job.model_dump(mode="json"))
    else:
        Console().print(f"Job {job.id} is {job.raw_status or 'in an unknown state'}.", highlight=False)
    return 0
