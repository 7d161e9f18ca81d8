"""The automations of the folder on a real server, created as their files say, each seen to do what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Completed, Running, Suspended

import prefect_qruntime as qr
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import notifications
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, events, ran, run
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import ROOT, until

pytestmark = [pytest.mark.server]
FILES = sorted((ROOT / "automations").glob("*.yaml"))
NOBODY = "00000000-0000-0000-0000-000000000000"
FOR_NOTIFICATIONS = ("notify_on_failed_job.yaml", "alert_on_long_wait.yaml")
BLOCK = "automations"


class Mailbox(ThreadingHTTPServer):
    """A webhook that keeps what it is sent."""

    def __init__(self) -> None:
        self.letters: list[str] = []
        super().__init__(("127.0.0.1", 0), _Slot)


class _Slot(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        letter = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.letters.append(letter["text"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as box:
        threading.Thread(target=box.serve_forever, daemon=True).start()
        yield box
        box.shutdown()


@pytest.fixture(scope="module")
def automations(
    prefect_server: PrefectServer, mailbox: Mailbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[UUID]]:
    """Created by Prefect's command line from the files, with a block put in and four hours shortened."""
    target = CustomWebhookNotificationBlock(
        name="tests",
        url=f"http://127.0.0.1:{mailbox.server_address[1]}/",
        json_data={"text": "{{subject}}\n{{body}}"},
    )
    block_id = str(target.save("automations-test", overwrite=True))
    wanted: list[Any] = []
    for name in (*FOR_NOTIFICATIONS, "resume_on_finished_job.yaml"):
        text = (ROOT / "automations" / name).read_text().replace(NOBODY, block_id)
        wanted += yaml.safe_load(text.replace("within: 14400", "within: 10"))["automations"]
    whole = tmp_path_factory.mktemp("automations") / "all.yaml"
    whole.write_text(yaml.safe_dump({"automations": wanted}))
    made = subprocess.run(
        [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(whole)],
        env=prefect_server.env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr

    async def ids(client: PrefectClient) -> list[UUID]:
        names = {automation["name"] for automation in wanted}
        return [found.id for found in await client.read_automations() if found.name in names]

    found = asked(ids)
    assert len(found) == 3
    yield found

    async def remove(client: PrefectClient) -> None:
        for automation_id in found:
            await client.delete_automation(automation_id)

    asked(remove)


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.1, "run_time": 0.2, "api_key": "automation-tests-key-0123456789"}


@flow
def one_job(wait: bool) -> Any:
    credentials = qr.load_credentials(BLOCK)
    job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
    if wait:
        qr.wait_for_completion(credentials, job, return_state=True)
    return job.id


def test_failure_and_a_long_wait_are_told_of_and_nothing_else_is(
    automations: list[UUID], mailbox: Mailbox, sandbox: Sandbox
) -> None:
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    sandbox.control.script_job(status="Failed", reason="the fridge is warm", reason_code=1517)
    failed = run(ran(one_job, wait=True)[1].aresult())
    good = run(ran(one_job, wait=True)[1].aresult())
    sandbox.control.hold()
    endless = run(ran(one_job, wait=False)[1].aresult())

    def letters(word: str) -> list[str]:
        return [letter for letter in mailbox.letters if word in letter]

    def failures(job: str) -> list[str]:
        # On a slow machine the waits that ended may have been alerted of before.
        return [letter for letter in letters(job) if letter.startswith("Quantum job ")]

    told = until(lambda: failures(failed), 90, "the failure told of")[0]
    assert told.startswith(f"Quantum job {failed} failed\n")
    assert "the fridge is warm (code 1517)" in told
    assert f"/jobs/{failed}" in told
    alert = until(lambda: letters(endless), 60, "the alert")[0]
    assert f"qruntime.job.{endless}" in alert
    assert failures(good) == []
    # We tell once. Prefect delivers at least once: it acts anew when its database was locked.
    assert [event["event"] for event in events(f"qruntime.job.{failed}")].count("qruntime.job.failed") == 1
    assert set(failures(failed)) == {told}


def test_a_suspended_flow_run_is_resumed_and_no_other_is_touched(automations: list[UUID]) -> None:
    async def flow_run(client: PrefectClient, state: Any) -> UUID:
        # Prefect suspends runs of deployments only; nobody works on this one.
        deployment = await client.create_deployment(flow_id=await client.create_flow(one_job), name="automations")
        created = await client.create_flow_run_from_deployment(deployment, parameters={"wait": True})
        await client.set_flow_run_state(created.id, Running(), force=True)
        await client.set_flow_run_state(created.id, state, force=True)
        return created.id

    def made(kind: Any) -> UUID:
        return asked(lambda client: flow_run(client, kind))

    def state(flow_run_id: UUID) -> str:
        found = asked(lambda client: client.read_flow_run(flow_run_id)).state
        return "" if found is None else str(found.name)

    others = {kind.name: made(kind) for kind in (Running(), Completed())}
    waiting = made(Suspended(timeout_seconds=600, pause_key="job-d1"))
    for number, flow_run_id in enumerate([*others.values(), waiting], start=1):
        job = Job(id=f"automated{number}", status=JobStatus.COMPLETED, raw_status="Completed")
        notifications.job_event(job, flow_run_id=str(flow_run_id))
        assert events(f"qruntime.job.{job.id}")
    until(lambda: state(waiting) == "Resuming", 90, "the flow run resumed")
    assert {name: state(flow_run_id) for name, flow_run_id in others.items()} == {name: name for name in others}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_is_complete_and_expects_events_that_we_emit(path: Path) -> None:
    text = path.read_text()
    emitted = {f"qruntime.job.{word}" for word in ("submitted", "attached", *(status.value for status in JobStatus))}
    emitted |= {"qruntime.budget.level", "qruntime.allowance.low", "qruntime.session.idle", "qruntime.job.unowned"}
    emitted |= {"qruntime.spending.unusual", "qruntime.lock.stuck"}
    for automation in yaml.safe_load(text)["automations"]:
        checked = AutomationCore.model_validate(automation)
        assert set(checked.trigger.expect) <= emitted  # type: ignore[union-attr]
    assert f"prefect automation create --from-file automations/{path.name}" in text
