"""`prefect deploy --all` in a copy of the repository: forms, schedules, limits; runs of every kind to their end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.deployments import arun_deployment
from prefect.states import AwaitingRetry, Cancelling, Scheduled

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import ROOT, Site, until

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
BLOCK = "deploy-all"
REFUSED_BY_LIMIT = "Deployment concurrency limit reached."
COSTS_NOTHING = {"backend-report/report-nightly", "usage-report/usage-nightly", "sweep-sessions/sweep-every-15-minutes"}


def prefect(server: PrefectServer, folder: Path, *words: str) -> str:
    """Run Prefect's command line as a person would, in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        env=server.env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def forget_other_blocks(client: PrefectClient) -> None:
    """The sweep looks after all saved blocks; those of other tests name sandboxes that are gone."""
    for document in await client.read_block_documents_by_type(QuantumRuntimeCredentials.get_block_type_slug()):
        await client.delete_block_document(document.id)


@pytest.fixture(scope="module")
def place(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "flows", clone / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    # As it is, only that the schedule of every fifteen minutes is due sooner.
    text = (ROOT / "prefect.yaml").read_text()
    assert "interval: 900\n" in text
    (clone / "prefect.yaml").write_text(text.replace("interval: 900\n", "interval: 15\n"))
    with Sandbox(queue_time=0.1, run_time=0.2, api_key="deploy-tests-key-0123456789") as sandbox:
        asked(forget_other_blocks)
        QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
        site = Site(prefect_server, sandbox, pool="quantum", block=BLOCK, folder=clone)
        asked(lambda client: client.create_work_pool(WorkPoolCreate(name="quantum", type="process")))
        site.start_worker()
        try:
            prefect(prefect_server, clone, "--no-prompt", "deploy", "--all")
            yield site
        finally:
            site.stop_worker()


@pytest.fixture
def deployed(place: Site) -> dict[str, DeploymentResponse]:
    """The deployments of the file by their full names."""
    names = [
        f"{entry['entrypoint'].split(':')[1].replace('_', '-')}/{entry['name']}"
        for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    ]

    async def read(client: PrefectClient) -> dict[str, DeploymentResponse]:
        return {name: await client.read_deployment_by_name(name) for name in names}

    return asked(read)


def submit_form(deployment: DeploymentResponse, **parameters: Any) -> UUID:
    """What the UI sends when the form of a run is submitted."""
    form = {"state": {"type": "SCHEDULED", "message": "Run from the form"}, "parameters": parameters}

    async def send(client: PrefectClient) -> UUID:
        answer = await client._client.post(f"/deployments/{deployment.id}/create_flow_run", json=form)
        return UUID(answer.json()["id"])

    return asked(send)


def runs_of(deployment: DeploymentResponse) -> list[FlowRun]:
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))
    return asked(lambda client: client.read_flow_runs(flow_run_filter=wanted))


def test_every_deployment_has_a_form_that_explains_itself(deployed: dict[str, DeploymentResponse]) -> None:
    assert len(deployed) == len({deployment.id for deployment in deployed.values()}) >= 8
    for name, deployment in deployed.items():
        assert deployment.description, name
        assert deployment.enforce_parameter_schema, name
        for parameter, field in deployment.parameter_openapi_schema["properties"].items():
            assert field.get("description"), f"{name}: {parameter} has no description"
            assert "block_type_slug" not in str(field), f"{name}: {parameter} is a block, not the name of one"
    form = deployed["run-circuits/circuits-on-demand"].parameter_openapi_schema["properties"]
    assert form["mode"]["enum"] == ["job", "session", "batch"]
    assert form["mode"]["default"] == "session"
    assert (form["shots"]["minimum"], form["shots"]["default"]) == (1, 1000)


def test_one_run_at_a_time_and_no_schedule_that_buys_unasked(deployed: dict[str, DeploymentResponse]) -> None:
    active = set()
    for name, deployment in deployed.items():
        assert deployment.global_concurrency_limit is not None, name
        assert deployment.global_concurrency_limit.limit == 1, name
        options = deployment.concurrency_options
        assert options is not None, f"{name} does not say what becomes of a run that comes meanwhile"
        assert options.collision_strategy.value in ("ENQUEUE", "CANCEL_NEW")
        if any(schedule.active for schedule in deployment.schedules):
            active.add(name)
    assert active == COSTS_NOTHING
    assert {type(s.schedule).__name__ for d in deployed.values() for s in d.schedules} == {
        "CronSchedule",
        "IntervalSchedule",
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"shots": 0}, "shots"), ({"mode": "sesion"}, "mode"), ({"circuits": "no list"}, "circuits")],
)
def test_a_form_with_a_wrong_value_is_refused_and_names_it(
    deployed: dict[str, DeploymentResponse], wrong: dict[str, Any], said: str
) -> None:
    deployment = deployed["run-circuits/circuits-on-demand"]
    before = len(runs_of(deployment))
    with pytest.raises(httpx.HTTPStatusError) as refused:
        submit_form(deployment, credentials_block=BLOCK, **wrong)
    assert refused.value.response.status_code == 409
    assert said in refused.value.response.text
    assert len(runs_of(deployment)) == before


def test_a_scheduled_run_a_run_of_the_form_and_run_deployment_finish(
    place: Site, deployed: dict[str, DeploymentResponse]
) -> None:
    sweeping = deployed["sweep-sessions/sweep-every-15-minutes"]
    form = submit_form(
        deployed["run-circuits/circuits-on-demand"],
        circuits=["flows/circuits/flip.qasm"],
        credentials_block=BLOCK,
        backend="sandbox_ideal",
        shots=50,
        mode="batch",
    )
    code = asyncio.run(
        arun_deployment("backend-report/report-nightly", parameters={"credentials_block": BLOCK}, timeout=0)
    ).id
    # Nothing named: on the embedded sandbox, from the defaults of the file.
    default = asyncio.run(arun_deployment("run-circuits/circuits-nightly", timeout=0)).id

    for flow_run_id in (form, code, default):
        place.reaches(flow_run_id, "Completed", 90)
    (job,) = place.jobs(form)
    assert (job["status"], job["backend"], len(place.sandbox.control.open_sessions())) == (
        "Completed",
        "sandbox_ideal",
        0,
    )
    place.tells(form, job["id"])
    place.tells(default, "embedded sandbox")

    def first() -> FlowRun | None:
        for run in runs_of(sweeping):
            # One that was due while the one before still ran is refused by the deployment's limit.
            if run.auto_scheduled and run.state and run.state.is_final() and run.state.message != REFUSED_BY_LIMIT:
                return run
        return None

    scheduled = until(first, 120, "the scheduled run over")
    (schedule,) = sweeping.schedules
    asked(lambda client: client.update_deployment_schedule(sweeping.id, schedule.id, active=False))
    assert scheduled.state.is_completed(), place.log(scheduled.id)


def test_a_schedule_shorter_than_its_job_has_one_live_job_and_a_scheduled_purchase_finishes(
    place: Site, deployed: dict[str, DeploymentResponse]
) -> None:
    control = place.sandbox.control
    place.sandbox.reset()
    control.hold()
    buying = deployed["run-circuits/circuits-nightly"]
    wanted = {
        "circuits": ["flows/circuits/flip.qasm"],
        "credentials_block": BLOCK,
        "mode": "job",
        "once_per_slot": True,
    }
    asked(lambda client: client.update_deployment(buying.id, DeploymentUpdate(parameters=wanted)))
    every_ten = IntervalSchedule(interval=timedelta(seconds=10))
    (schedule,) = asked(lambda client: client.create_deployment_schedules(buying.id, [(every_ten, True)]))

    def scheduled() -> list[FlowRun]:
        return [run for run in runs_of(buying) if run.auto_scheduled and run.state is not None]

    def dropped() -> list[FlowRun]:
        return [run for run in scheduled() if run.state is not None and run.state.is_cancelled()]

    # On a busy machine two slots can pass before the first run's process has submitted.
    until(lambda: len(dropped()) >= 2 and control.jobs(), 150, "two slots dropped while the first one's job is live")
    asked(lambda client: client.update_deployment_schedule(buying.id, schedule.id, active=False))
    (running,) = [run for run in scheduled() if run.state is not None and run.state.is_running()]
    (job,) = control.jobs()
    assert job["status"] == "Queued"
    assert f"qr-flow:{running.id}" in job["tags"]
    control.release()
    place.reaches(running.id, "Completed", 60)
    assert [job["status"] for job in control.jobs()] == ["Completed"]


def test_a_slot_that_is_run_again_attaches(place: Site, deployed: dict[str, DeploymentResponse]) -> None:
    place.sandbox.reset()
    buying, slot = deployed["run-circuits/circuits-nightly"], datetime.now(UTC) - timedelta(minutes=1)
    wanted = {
        "circuits": ["flows/circuits/flip.qasm"],
        "credentials_block": BLOCK,
        "mode": "job",
        "once_per_slot": True,
    }
    runs = []
    for _ in range(2):
        run = asked(
            lambda client: client.create_flow_run_from_deployment(
                buying.id, parameters=wanted, state=Scheduled(scheduled_time=slot)
            )
        )
        place.reaches(run.id, "Completed", 90)
        runs.append(run.id)
    (job,) = place.sandbox.control.jobs()
    assert f"qr-flow:{runs[0]}" in job["tags"]
    place.tells(runs[1], f"attached to job {job['id']}")


def test_cancel_retry_crash_and_the_sweep_after_it(place: Site, deployed: dict[str, DeploymentResponse]) -> None:
    control = place.sandbox.control
    place.sandbox.reset()
    sweeping = deployed["sweep-sessions/sweep-every-15-minutes"]
    # Every fifteen seconds one runs at nearly any time, and another is dropped then.
    for schedule in sweeping.schedules:
        asked(lambda client, which=schedule: client.update_deployment_schedule(sweeping.id, which.id, active=False))
    swept_before = {run.id for run in runs_of(sweeping)}
    # The result of this one cannot be read at first.
    control.add_fault("GET", "/jobs/*/results", status=403, times=None)
    same = {"credentials_block": BLOCK, "backend": "sandbox_ideal"}
    failed = submit_form(
        deployed["run-circuits/circuits-nightly"], circuits=["flows/circuits/flip.qasm"], mode="job", **same
    )
    place.reaches(failed, "Failed", 90)
    (paid,) = place.jobs(failed)

    control.clear_faults()
    control.hold()
    cancelled = submit_form(deployed["run-circuits/circuits-on-demand"], **same)
    crashed = submit_form(deployed["vqe-session/vqe-on-demand"], **same)
    place.set_state(failed, AwaitingRetry(), force=True)  # what the button Retry does
    place.complete_or_withdraw({cancelled: 1, crashed: 1})
    place.set_state(cancelled, Cancelling())
    os.kill(place.process(crashed).pid, signal.SIGKILL)

    place.reaches(cancelled, "Cancelled", 60)
    assert place.statuses(cancelled) == ["Cancelled"]
    place.reaches(crashed, "Crashed", 60)
    assert place.statuses(crashed) == ["Queued"], "a crash leaves the job to be attached to"
    place.reaches(failed, "Completed", 90)
    assert [job["id"] for job in place.jobs(failed)] == [paid["id"]], "the retry attached"

    def swept() -> FlowRun | None:
        done = [run for run in runs_of(sweeping) if run.id not in swept_before and run.state and run.state.is_final()]
        return next((run for run in done if not run.auto_scheduled), None)

    sweep = until(swept, 120, "the sweep after the crash")
    assert sweep.state.is_completed(), place.log(sweep.id)
    assert sweep.created_by is not None
    assert sweep.created_by.type == "AUTOMATION"
    place.tells(sweep.id, "and 1 job.")
    assert [session["accepting_jobs"] for session in control.open_sessions()] == [False], "it drains"
    control.release()
    until(lambda: not control.open_sessions(), 20, "no session open")
