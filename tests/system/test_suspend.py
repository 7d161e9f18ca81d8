"""Suspended flow runs on a real work pool, the watcher as a process of its own, and an automation that collects."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Cancelling

from flows.leave_and_collect import collect, leave
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import BLOCK, ROOT, Site, until, worked_on
from tests.system import parked
from tests.system.nightly import BACKEND, CIRCUIT

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site(prefect_server: PrefectServer) -> Iterator[Site]:
    with worked_on(prefect_server, api_key="suspend-tests-key-0123456789") as place:
        yield place


class Subscription:
    """`prefect-qruntime watch` as people start it."""

    def __init__(self, server: PrefectServer, *options: str) -> None:
        self.log = server.home / f"watch-{time.monotonic_ns()}.log"
        command = [str(Path(sys.executable).parent / "prefect-qruntime"), "watch", "--interval", "1", *options]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, env=server.env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def automate(site: Site) -> UUID:
    """Create the automation of the example, for the deployment here."""
    text = (ROOT / "automations" / "collect_on_finished.yaml").read_text()
    (example,) = yaml.safe_load(text)["automations"]
    example["actions"][0]["deployment_id"] = str(site.deploy(collect))
    return asked(lambda client: client.create_automation(AutomationCore.model_validate(example)))


def forget(automation: UUID) -> None:
    asked(lambda client: client.delete_automation(automation))


def collected(site: Site) -> list[Any]:
    """Runs of the deployment that collects."""
    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[site.deployments["collect"]]))
    return asked(lambda client: client.read_flow_runs(deployment_filter=wanted))


def no_process(site: Site, run: UUID) -> bool:
    try:
        return not site.process(run).is_running()
    except (AssertionError, psutil.Error):
        return True


def test_flow_runs_give_their_workers_back_and_the_watcher_ends_their_waits(site: Site) -> None:
    site.sandbox.control.hold()
    automation = automate(site)
    waits, unwanted = site.run(parked.parked_session), site.run(parked.parked_sync)
    leaves = site.run(leave, circuit=CIRCUIT, backend=BACKEND, shots=40)
    for run in (waits, unwanted):
        site.reaches(run, "Suspended", 120)
        until(lambda run=run: no_process(site, run), 30, "the worker given back")
        assert site.statuses(run) == ["Queued"]
    # No process is there to be told: Prefect calls it cancelled at once and runs no hook.
    site.set_state(unwanted, Cancelling())
    site.reaches(unwanted, "Cancelled", 10)
    site.reaches(leaves, "Completed", 60)
    assert site.statuses(unwanted) == ["Queued"]
    assert [session["accepting_jobs"] for session in site.sandbox.control.open_sessions()] == [False]

    watch = Subscription(site.server)
    try:
        until(lambda: site.statuses(unwanted) == ["Cancelled"], 60, "the job cancelled")
        assert site.statuses(waits) == ["Queued"]

        site.sandbox.control.release()
        site.reaches(waits, "Completed", 120)
        assert site.statuses(waits) == ["Completed"]
        assert site.sandbox.control.open_sessions() == []
        until(lambda: [run.state.name for run in collected(site)] == ["Completed"], 90, "the result collected")
        (left,) = site.jobs(leaves)
        assert collected(site)[0].parameters == {"job_id": left["id"], "credentials_block": BLOCK}
        site.tells(collected(site)[0].id, f"job {left['id']}: {{'1': 40}}")
        assert watch.stop() == 0
    finally:
        watch.stop()
        forget(automation)
    assert len(site.sandbox.control.jobs()) == 3
