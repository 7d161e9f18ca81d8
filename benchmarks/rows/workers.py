"""Flow runs of a deployment, all started at once, on two workers of one work pool."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect import flow

from benchmarks.hurry import real_monotonic
from benchmarks.lab import BACKEND, BELL, Lab
from benchmarks.peers import Peer

ROOT = Path(__file__).resolve().parent.parent.parent
_POOL, _BLOCK = "benchmark-workers", "benchmark-workers"
_WORKERS = 2
_LONGEST = 800.0  # seconds for all runs together


@flow(name="benchmark of workers")
def one_job() -> int:
    """Run one job as a flow on a worker does."""
    import prefect_qruntime as qr

    result = qr.run_job(qr.load_credentials(_BLOCK), [BELL], backend=BACKEND, shots=10)
    return sum(result.counts().values())


def at_once(lab: Lab, peer: Peer) -> dict[str, float]:
    """Start so many runs at once, and count those that do not complete and the jobs that were bought."""
    import prefect_qruntime as qr

    block: Any = qr.QuantumRuntimeCredentials(api_key=lab.api_key, crn=lab.crn, base_url=lab.base_url, iam_url=lab.url)
    block.save(_BLOCK, overwrite=True)
    runs = asyncio.run(_create(lab.args["jobs"]))
    began = real_monotonic()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", _POOL, "--name", f"benchmark-{number}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(_WORKERS)
    ]
    try:
        ended = asyncio.run(_ended(runs, began))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
    return {
        "wall": real_monotonic() - began,
        "failed": sum(name != "Completed" for name in ended),
        "jobs": len(lab.control("jobs")),
    }


async def _create(count: int) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.states import Scheduled

    async with get_client() as client:
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=_POOL, type="process"))
        deployment = await client.create_deployment(
            flow_id=await client.create_flow(one_job),
            name="benchmark",
            entrypoint="benchmarks/rows/workers.py:one_job",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            work_pool_name=_POOL,
            parameter_openapi_schema={"type": "object", "properties": {}},
        )
        made = [client.create_flow_run_from_deployment(deployment, state=Scheduled()) for _ in range(count)]
        return [run.id for run in await asyncio.gather(*made)]


async def _ended(runs: list[Any], began: float) -> list[str]:
    """The names of the runs' last states; of one that is not over in time the present one."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=runs))
    async with get_client() as client:
        while True:
            found = [run.state for run in await client.read_flow_runs(flow_run_filter=wanted, limit=200)]
            over = sum(state is not None and state.is_final() for state in found)
            if over == len(runs) or real_monotonic() - began > _LONGEST:
                return [state.name or "" if state is not None else "" for state in found]
            await asyncio.sleep(1)
