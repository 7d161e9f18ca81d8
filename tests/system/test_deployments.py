"""Deployments on a real work pool with a real worker: cancelled, stopped, killed, run again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelling, Scheduled

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.sandbox import Sandbox
from tests.prefect_server import PrefectServer
from tests.system import nightly

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parent.parent.parent
POOL = "system-tests"
BLOCK = "system"


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """Poll until `what` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {why}")


class Site:
    """A work pool, a worker and the sandbox."""

    def __init__(self, server: PrefectServer, sandbox: Sandbox) -> None:
        self.server = server
        self.sandbox = sandbox
        self.deployments: dict[str, UUID] = {}
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self) -> None:
        with (self.server.home / "worker.log").open("ab") as out:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "tests"],
                env={
                    **self.server.env,
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": "1",
                    "PYTHONPATH": str(ROOT),
                },
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def stop_worker(self) -> None:
        if self.worker is None:
            return
        family = psutil.Process(self.worker.pid).children(recursive=True) if self.worker.poll() is None else []
        self.worker.terminate()
        try:
            self.worker.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.worker.kill()
            self.worker.wait()
        for process in family:
            if process.is_running():
                process.kill()

    async def deploy(self, flow: Flow[..., Any]) -> UUID:
        name = flow.fn.__name__
        if name not in self.deployments:
            async with get_client() as client:
                with contextlib.suppress(ObjectAlreadyExists):
                    await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
                self.deployments[name] = await client.create_deployment(
                    flow_id=await client.create_flow(flow),
                    name="tests",
                    entrypoint=f"tests/system/nightly.py:{name}",
                    pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                    work_pool_name=POOL,
                    parameter_openapi_schema={"type": "object", "properties": {}},
                )
        return self.deployments[name]

    def run(self, flow: Flow[..., Any]) -> UUID:
        """Start a run of a flow's deployment."""

        async def create() -> FlowRun:
            deployment = await self.deploy(flow)
            async with get_client() as client:
                return await client.create_flow_run_from_deployment(
                    deployment, parameters={"credentials_block": BLOCK}, state=Scheduled()
                )

        return asyncio.run(create()).id

    def flow_run(self, flow_run_id: UUID) -> FlowRun:
        async def read() -> FlowRun:
            async with get_client() as client:
                return await client.read_flow_run(flow_run_id)

        return asyncio.run(read())

    def set_state(self, flow_run_id: UUID, state: Any, *, force: bool = False) -> None:
        async def write() -> None:
            async with get_client() as client:
                await client.set_flow_run_state(flow_run_id, state, force=force)

        asyncio.run(write())

    def state(self, flow_run_id: UUID) -> str:
        state = self.flow_run(flow_run_id).state
        return state.name if state is not None else "?"

    def reaches(self, flow_run_id: UUID, name: str, seconds: float) -> None:
        """Wait for a state; a failure shows how the run went."""
        try:
            until(lambda: self.state(flow_run_id) == name, seconds, name)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.state(flow_run_id)}:\n{self.log(flow_run_id)}") from None

    def log(self, flow_run_id: UUID) -> str:
        async def read() -> str:
            async with get_client() as client:
                wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
                logs = await client.read_logs(wanted, limit=200)
                return "\n".join(f"{log.timestamp:%H:%M:%S} {log.message}" for log in logs)

        return asyncio.run(read())

    def process(self, flow_run_id: UUID) -> psutil.Process:
        """The process that runs a flow run."""
        assert self.worker is not None
        for child in psutil.Process(self.worker.pid).children(recursive=True):
            try:
                if child.environ().get("PREFECT__FLOW_RUN_ID") == str(flow_run_id) and "worker" not in child.cmdline():
                    return child
            except psutil.Error:
                continue
        raise AssertionError("the flow run has no process")

    def jobs(self, flow_run_id: UUID) -> list[dict[str, Any]]:
        """The jobs of a flow run, as the sandbox has them."""
        return [job for job in self.sandbox.control.jobs() if f"qr-flow:{flow_run_id}" in job["tags"]]

    def statuses(self, flow_run_id: UUID) -> list[str]:
        return [job["status"] for job in self.jobs(flow_run_id)]

    def cancels(self, flow_run_id: UUID) -> int:
        """How many cancel requests the service saw for a flow run's jobs."""
        paths = [entry["path"] for entry in self.sandbox.control.journal("POST")]
        return sum(f"/jobs/{job['id']}/cancel" in paths for job in self.jobs(flow_run_id))

    def settled(self, runs: dict[UUID, int]) -> None:
        """Return once all runs are running and have submitted their number of jobs."""
        for run, number in runs.items():
            until(lambda run=run, number=number: len(self.jobs(run)) == number, 90, f"{number} jobs submitted")
            self.reaches(run, "Running", 10)


@pytest.fixture(scope="module")
def site(prefect_server: PrefectServer) -> Iterator[Site]:
    with Sandbox(queue_time=0.1, run_time=0.2, api_key="system-tests-key-0123456789") as sandbox:
        QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
        place = Site(prefect_server, sandbox)
        place.start_worker()
        try:
            yield place
        finally:
            place.stop_worker()


@pytest.fixture(autouse=True)
def clean(site: Site) -> None:
    site.sandbox.reset()
    site.sandbox.control.hold()


def test_cancel_reaches_jobs_and_sessions_and_detached_ones_live_on(site: Site) -> None:
    in_process = [site.run(nightly.nightly_sync), site.run(nightly.nightly_async)]
    busy, detached = site.run(nightly.nightly_busy), site.run(nightly.nightly_detached)
    site.settled({**dict.fromkeys(in_process, 2), busy: 1, detached: 1})
    assert len(site.sandbox.control.open_sessions()) == 2

    began = time.monotonic()
    for run in (*in_process, busy, detached):
        site.set_state(run, Cancelling())
    for run in in_process:
        until(lambda run=run: site.statuses(run) == ["Cancelled"] * 2, 15, "both jobs cancelled")
    left = 15 - (time.monotonic() - began)
    until(lambda: not site.sandbox.control.open_sessions(), left, "the sessions closed")
    # This process sleeps in foreign code: only the hook, in a process of its own, can cancel its job.
    until(lambda: site.statuses(busy) == ["Cancelled"], 15, "the job cancelled by the hook")
    for run in (*in_process, busy, detached):
        site.reaches(run, "Cancelled", 60)
    assert site.statuses(detached) == ["Queued"]
    assert site.cancels(detached) == 0
    assert len(site.sandbox.control.jobs()) == 6


def test_losing_the_process_cancels_nothing_and_a_rerun_attaches(site: Site) -> None:
    ends = {site.run(nightly.nightly_sync): signal.SIGTERM, site.run(nightly.nightly_async): signal.SIGKILL}
    site.settled(dict.fromkeys(ends, 2))
    for run, number in ends.items():
        os.kill(site.process(run).pid, number)
    for run in ends:
        site.reaches(run, "Crashed", 60)
        assert site.cancels(run) == 0
        assert site.statuses(run) == ["Queued"] * 2
    site.sandbox.control.release()
    for run in ends:
        site.set_state(run, Scheduled(), force=True)
    for run in ends:
        site.reaches(run, "Completed", 90)
        assert site.statuses(run) == ["Completed"] * 2
        assert site.cancels(run) == 0


def test_stopping_the_worker_cancels_nothing(site: Site) -> None:
    run = site.run(nightly.nightly_async)
    site.settled({run: 2})
    assert site.worker is not None
    site.worker.terminate()
    time.sleep(3.0)  # long enough for a cancel to be seen, were there one
    assert site.cancels(run) == 0
    assert site.statuses(run) == ["Queued"] * 2
    site.sandbox.control.release()
    until(lambda: site.statuses(run) == ["Completed"] * 2, 30, "the jobs completed by themselves")
    assert site.cancels(run) == 0
