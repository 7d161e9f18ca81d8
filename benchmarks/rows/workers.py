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
_STILL = 200.0  # seconds without a change after which no more is expected: Prefect's workers leave runs pending


@flow(name="benchmark of workers")
def one_job() -> int:
    """Run one job as a flow on a worker does."""
    import prefect_qruntime as qr

    result = qr.run_job(qr.load_credentials(_BLOCK), [BELL], backend=BACKEND, shots=10)
    return sum(result.counts().values())


def at_once(lab: Lab, peer: Peer) -> dict[str, float]:
    """Start so many runs at once; count the jobs that were bought, and the runs that do not complete.

    Apart are those of which no flow code ran, as Prefect's worker could not start them.
    """
    import prefect_qruntime as qr

    block: Any = qr.QuantumRuntimeCredentials(api_key=lab.api_key, crn=lab.crn, base_url=lab.base_url, iam_url=lab.url)
    block.save(_BLOCK, overwrite=True)
    runs = asyncio.run(_create(lab.args["jobs"]))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", _POOL]
    if limit := lab.args.get("limit"):
        command += ["--limit", str(limit)]
    began = real_monotonic()
    workers = [
        subprocess.Popen(
            [*command, "--name", f"benchmark-{number}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(_WORKERS)
    ]
    try:
        ended, took = asyncio.run(_ended(runs, began))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
    jobs = lab.control("jobs")
    tags = {tag for job in jobs for tag in job["tags"]}
    left = {run: name for run, name in ended.items() if name != "Completed"}
    begun = sum(f"qr-flow:{run}" in tags or name == "Failed" for run, name in left.items())
    return {"wall": took, "failed": begun, "unbegun": len(left) - begun, "jobs": len(jobs)}


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


async def _ended(runs: list[Any], began: float) -> tuple[dict[Any, str], float]:
    """The runs with their last states, and when the last of these came; of one that is not over the present state."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=runs))
    last: dict[Any, str] = {}
    changed = 0.0
    async with get_client() as client:
        while True:
            found = {run.id: run.state for run in await client.read_flow_runs(flow_run_filter=wanted, limit=200)}
            names = {run: state.name or "" if state is not None else "" for run, state in found.items()}
            now = real_monotonic() - began
            if names != last:
                last, changed = names, now
            over = all(state is not None and state.is_final() for state in found.values())
            if over or now > _LONGEST or now - changed > _STILL:
                return last, changed
            await asyncio.sleep(1)
