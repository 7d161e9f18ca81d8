"""A work pool, a worker process and the sandbox: what the system tests stand on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Scheduled

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_calls import asked
from tests.support.prefect_server import ROOT, PrefectServer, withdraw_runs

POOL = "system-tests"
BLOCK = "system"


BUSY = 4
"""How much slower than an idle machine one may be; how long things take is measured in benchmarks/."""


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """Poll until `what` is true, on an idle machine within so many seconds."""
    end = time.monotonic() + BUSY * seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {BUSY * seconds} s: {why}")


class Site:
    """A work pool, a worker and the sandbox."""

    def __init__(
        self, server: PrefectServer, sandbox: Sandbox, *, pool: str = POOL, block: str = BLOCK, folder: Path = ROOT
    ) -> None:
        self.server = server
        self.sandbox = sandbox
        self.pool = pool
        self.block = block
        self.folder = folder
        self.deployments: dict[str, UUID] = {}
        self.worker: subprocess.Popen[bytes] | None = None

    def start_worker(self, *, name: str = "tests", limit: int | None = None) -> None:
        options = ["--pool", self.pool, "--name", name, *(["--limit", str(limit)] if limit is not None else [])]
        with (self.server.home / "worker.log").open("ab") as out:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", *options],
                env={
                    **self.server.env,
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    "PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS": "1",
                    "PYTHONPATH": str(ROOT),
                },
                cwd=self.folder,
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

    def ready(self) -> None:
        """Leave nothing of another test: no run that a worker would take, and a worker that lives."""

        withdraw_runs()
        if self.worker is None or self.worker.poll() is not None:
            self.start_worker()

    def deploy(self, flow: Flow[..., Any]) -> UUID:
        async def create(client: PrefectClient) -> UUID:
            with contextlib.suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name=self.pool, type="process"))
            return await client.create_deployment(
                flow_id=await client.create_flow(flow),
                name="tests",
                entrypoint=f"{flow.fn.__module__.replace('.', '/')}.py:{name}",
                pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                work_pool_name=self.pool,
                parameter_openapi_schema={"type": "object", "properties": {}},
            )

        name = flow.fn.__name__
        if name not in self.deployments:
            self.deployments[name] = asked(create)
        return self.deployments[name]

    def run(self, flow: Flow[..., Any], **parameters: Any) -> UUID:
        """Start a run of a flow's deployment."""
        deployment, given = self.deploy(flow), {"credentials_block": self.block, **parameters}
        return asked(
            lambda client: client.create_flow_run_from_deployment(deployment, parameters=given, state=Scheduled())
        ).id

    def flow_run(self, flow_run_id: UUID) -> FlowRun:
        return asked(lambda client: client.read_flow_run(flow_run_id))

    def set_state(self, flow_run_id: UUID, state: Any, *, force: bool = False) -> None:
        asked(lambda client: client.set_flow_run_state(flow_run_id, state, force=force))

    def state(self, flow_run_id: UUID) -> str:
        state = self.flow_run(flow_run_id).state
        return state.name if state is not None else "?"

    def reaches(self, flow_run_id: UUID, name: str, seconds: float) -> None:
        """Wait for a state; a failure shows how the run went."""
        try:
            until(lambda: self.state(flow_run_id) == name, seconds, name)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.state(flow_run_id)}:\n{self.log(flow_run_id)}") from None

    def crashes(self, flow_run_id: UUID, seconds: float, *, killed: bool) -> None:
        """Wait for a crash, and until nobody reports it any more.

        Of a killed process the runner tells first and the worker again, seconds later: a state that was set in
        between is lost. What the worker writes last comes after that.
        """
        self.reaches(flow_run_id, "Crashed", seconds)
        if killed:
            until(lambda: "exceeded its memory" in self.log(flow_run_id), seconds, "the worker told of the kill")

    def log(self, flow_run_id: UUID) -> str:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
        logs = asked(lambda client: client.read_logs(wanted, limit=200))
        return "\n".join(f"{log.timestamp:%H:%M:%S} {log.message}" for log in logs)

    def tells(self, flow_run_id: UUID, text: str) -> None:
        """Wait for a text in a run's log in Prefect, or in a line that the run's process wrote in its name.

        Prefect gives a log line up when its server does not take it, as on a locked SQLite database.
        """
        written, name = self.server.home / "worker.log", f"Flow run '{self.flow_run(flow_run_id).name}'"

        def told() -> bool:
            lines = written.read_text().splitlines()
            return text in self.log(flow_run_id) or any(name in line and text in line for line in lines)

        until(told, 20, f"{text!r} in the log")

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

    def complete_or_withdraw(self, runs: dict[UUID, int]) -> None:
        """Return once all runs are running and have submitted their number of jobs."""
        for run, number in runs.items():
            until(lambda run=run, number=number: len(self.jobs(run)) == number, 90, f"{number} jobs submitted")
            self.reaches(run, "Running", 10)


@contextlib.contextmanager
def worked_on(server: PrefectServer, *, api_key: str) -> Iterator[Site]:
    """A sandbox, a credentials block saved for it, and a worker."""
    with Sandbox(queue_time=0.1, run_time=0.2, api_key=api_key) as sandbox:
        QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
        place = Site(server, sandbox)
        place.start_worker()
        try:
            yield place
        finally:
            place.stop_worker()
