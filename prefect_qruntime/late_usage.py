"""Re-read the QPU seconds of ended jobs until the service calls them final.

A process that ends earlier leaves that to `prefect-qruntime sweep`.
"""

from __future__ import annotations

import asyncio
import itertools

from prefect_qruntime import keys, observe, summary
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job
from prefect_qruntime.orchestration import in_run

__all__ = ["follow_usage"]

_PAUSES = (1, 2, 5, 10, 30)  # seconds between looks; the last one is repeated
_LOOKS = 120


def follow_usage(client: QuantumRuntimeClient, job: Job) -> None:
    """Look after a job whose usage is not final yet, without anybody waiting. Call it on the home loop.

    Args:
        client: The instance it ran on.
        job: The job, over.
    """
    if job.usage_final or not in_run():
        return

    async def follow() -> None:
        owner = (await keys.origin()).flow_run_id
        for pause in itertools.islice(itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])), _LOOKS):
            await asyncio.sleep(pause)
            try:
                seen = await client.job(job.id)
            except QuantumRuntimeError:
                continue
            if seen.usage_final:
                await observe.usage_settled(seen, flow_run_id=owner)
                return

    summary.behind(follow, again=False)
