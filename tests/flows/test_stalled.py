"""Flow runs shown as running although their process is gone: what counts as evidence, and what `resume` refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import prefect.runtime
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled, State, Suspended

import prefect_qruntime as qr
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import find_records, open_note, upsert
from prefect_qruntime.operations import sweep
from prefect_qruntime.operations.sweep import StalledRun, find_stalled, resume_flow_run, silence
from prefect_qruntime.run_context import process_facts
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, until
from tests.support.prefect_calls import asked
from tests.support.prefect_server import PrefectServer

pytestmark = pytest.mark.server


@flow
def nothing() -> None:
    """A flow whose runs are set to states by hand."""


def deployed(state: State[Any], *, pid: str | None = None) -> FlowRun:
    """A run of a deployment in a state, as a worker and its process would have left it."""

    async def create(client: PrefectClient) -> FlowRun:
        deployment = await client.create_deployment(
            await client.create_flow(nothing), "stalled", parameter_openapi_schema={"type": "object", "properties": {}}
        )
        flow_run = await client.create_flow_run_from_deployment(deployment, state=Scheduled())
        if pid is not None:
            await client.update_flow_run(flow_run.id, infrastructure_pid=pid)
        await client.set_flow_run_state(flow_run.id, state, force=True)
        return await client.read_flow_run(flow_run.id)

    return asked(create)


def stalled(flow_run_id: UUID) -> list[StalledRun]:
    return network_loop().run(find_stalled([str(flow_run_id), "no-id"]))


def beat(flow_run_id: UUID, *minutes_ago: float) -> None:
    """Heartbeats as Prefect's engine emits them."""
    moments = [datetime.now(UTC) - timedelta(minutes=minutes) for minutes in minutes_ago]
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run_id}"}
    events = [
        {
            "id": str(uuid4()),
            "occurred": moment.isoformat(),
            "event": "prefect.flow-run.heartbeat",
            "resource": resource,
            "related": [],
            "payload": {},
        }
        for moment in moments
    ]
    wanted = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [resource["prefect.resource.id"]]},
        }
    }

    async def send(client: PrefectClient) -> int:
        return (await client.request("POST", "/events", json=events)).status_code

    async def there(client: PrefectClient) -> bool:
        return len((await client.request("POST", "/events/filter", json=wanted)).json()["events"]) >= len(events)

    assert asked(send) == 204
    assert until(lambda: asked(there))


@pytest.mark.parametrize(
    ("beats", "gone"),
    [
        ((20.0, 23.0, 26.0), True),
        ((20.0,), True),
        ((2.0, 5.0), False),
        ((8.0, 11.0), False),
        ((20.0, 30.0), False),  # beats that come every ten minutes
        ((), False),
    ],
)
def test_heartbeats_that_stopped_are_evidence(beats: tuple[float, ...], gone: bool) -> None:
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    moments = [now - timedelta(minutes=minutes) for minutes in beats]
    began = now - timedelta(hours=1)
    assert (silence(moments, began=began, now=now, setting=180) is not None) is gone
    assert silence(moments, began=now, now=now, setting=180) is None, "of an earlier start"
    assert silence(moments, began=None, now=now, setting=180) is None


@pytest.mark.parametrize("own", [30, 60, 180])
@pytest.mark.parametrize("setting", [30, 180])
@pytest.mark.parametrize("sent", [1, 2, 3])
def test_a_living_process_is_not_silent_whatever_the_setting_here(own: int, setting: int, sent: int) -> None:
    began = datetime(2026, 5, 1, 12, tzinfo=UTC)
    beats = [began + timedelta(seconds=own * number) for number in range(sent)]
    for late in range(own + 1):  # the last moments before its next one
        assert silence(beats[::-1], began=began, now=beats[-1] + timedelta(seconds=late), setting=setting) is None


def test_a_run_without_heartbeats_for_an_hour_is_resumed(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = deployed(Running())
    beat(flow_run.id, 0.0)
    assert stalled(flow_run.id) == []
    later = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr("prefect_qruntime.operations.sweep.parsedate_to_datetime", lambda _date: later)
    (found,) = stalled(flow_run.id)
    assert "heartbeat" in found.evidence
    assert f"prefect-qruntime resume {flow_run.id}" in found.next_step
    assert resume_flow_run(str(flow_run.id)).id == str(flow_run.id)
    assert stalled(flow_run.id) == []


def test_a_silent_run_that_no_worker_can_resume_names_the_session_that_may_burn(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = asked(lambda client: client.create_flow_run(nothing, state=Running()))
    for session_id, state in (("s-open", "open"), ("s-closed", "closed")):
        facts = {"session": session_id, "state": state, "flow_run": str(flow_run.id)}
        network_loop().run(upsert("session", uuid4().hex, "", facts, new=True, flow_run_id=str(flow_run.id)))
    beat(flow_run.id, 0.0)
    later = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr("prefect_qruntime.operations.sweep.parsedate_to_datetime", lambda _date: later)
    (found,) = stalled(flow_run.id)
    assert "`prefect-qruntime sessions --close s-open`" in found.next_step
    assert "s-closed" not in found.next_step
    assert not found.is_certain


def test_heartbeats_of_an_earlier_attempt_are_none(prefect_server: PrefectServer) -> None:
    flow_run = deployed(Running())
    beat(flow_run.id, 20.0, 23.0)
    assert stalled(flow_run.id) == []


@pytest.mark.parametrize("kind", ["job", "session", "summary"])
@pytest.mark.parametrize("case", ["gone", "alive", "another process", "elsewhere"])
def test_the_noted_process_is_evidence_only_if_it_is_that_of_the_run(
    prefect_server: PrefectServer, case: str, kind: Any
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    facts = {**process_facts(), "pid": str(child.pid), "started": "1"}
    if case == "alive":
        facts = process_facts()
    if case == "elsewhere":
        facts["host"] = "elsewhere"
    flow_run = deployed(Running(), pid="1234567" if case == "another process" else facts["pid"])
    meta = {"state": "Queued", "flow_run": str(flow_run.id), **facts}
    job = f"d{uuid4().hex[:19]}"
    if kind == "summary":  # all there is in the first seconds after a submission
        meta[f"open {job}"] = open_note({"state": "submitted"})
    network_loop().run(upsert(kind, job, "", meta, new=True, flow_run_id=str(flow_run.id)))
    assert bool(stalled(flow_run.id)) is (case == "gone")


def test_a_sweep_looks_once_at_the_process_of_a_flow_run(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = deployed(Running(), pid=str(os.getpid()))
    meta = {"session": f"s{uuid4().hex[:8]}", "state": "open", "flow_run": str(flow_run.id), **process_facts()}
    network_loop().run(upsert("session", uuid4().hex, "", meta, new=True, flow_run_id=str(flow_run.id)))
    seen, look = [], sweep._gone_process

    async def counted(of: FlowRun) -> str | None:
        seen.append(of.id)
        return await look(of)

    monkeypatch.setattr(sweep, "_gone_process", counted)
    sweep.run_sweep()
    assert seen.count(flow_run.id) == 1


def test_a_later_process_with_the_same_id_is_not_taken_for_the_one_that_is_gone(prefect_server: PrefectServer) -> None:
    """In a container that was restarted ids come again, and a job's record is completed after its process has gone."""
    flow_run = deployed(Running(), pid=str(os.getpid()))
    for facts in (process_facts(), {**process_facts(), "started": "1"}):
        meta = {"state": "Queued", "flow_run": str(flow_run.id), **facts}
        network_loop().run(upsert("job", f"d{uuid4().hex[:19]}", "", meta, new=True, flow_run_id=str(flow_run.id)))
    assert stalled(flow_run.id) == []


def test_a_process_killed_right_after_its_submission_is_found(prefect_server: PrefectServer, sandbox: Sandbox) -> None:
    credentials = qr.QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    credentials.save("stalled", overwrite=True)
    sandbox.control.hold()
    seen = []

    @flow
    def submits() -> None:
        qr.submit_job(qr.load_credentials("stalled"), [FLIP], backend=BACKEND)
        flow_run_id = UUID(prefect.runtime.flow_run.id)
        seen.extend(network_loop().run(find_records("job", flow_run_ids=[flow_run_id])))

    submits()
    assert [record.meta["pid"] for record in seen] == [str(os.getpid())]
    assert seen[0].key.startswith("qruntime-job-")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (Running(), "may be alive"),
        (Completed(), "Completed, not Running or Crashed"),
        (Failed(), "`Retry`"),
        (Scheduled(), "already"),
        (Suspended(timeout_seconds=600), "prefect-qruntime watch"),
    ],
    ids=lambda value: value.name if isinstance(value, State) else "",
)
def test_what_need_not_or_must_not_be_resumed_is_refused(prefect_server: PrefectServer, state: Any, says: str) -> None:
    flow_run = deployed(state)
    with pytest.raises(qr.InvalidInput, match=says):
        resume_flow_run(str(flow_run.id))
    assert asked(lambda client: client.read_flow_run(flow_run.id)).state.name == state.name  # type: ignore[union-attr]


@pytest.mark.parametrize(("state", "force"), [(Crashed(), False), (Running(), True)], ids=["crashed", "forced"])
def test_a_crashed_run_and_on_demand_any_running_one_is_resumed(
    prefect_server: PrefectServer, state: Any, force: bool
) -> None:
    flow_run = deployed(state)
    given: Any = flow_run.id  # a UUID, as Prefect's client has it
    resume_flow_run(given, force=force)
    read = asked(lambda client: client.read_flow_run(flow_run.id))
    assert read.state is not None
    assert (read.state.name, read.empirical_policy.resuming) == ("Resuming", True)


@pytest.mark.parametrize("collision", ConcurrencyLimitStrategy)
def test_a_run_that_its_deployment_would_drop_is_resumed_later(prefect_server: PrefectServer, collision: Any) -> None:
    """With `CANCEL_NEW` Prefect cancels a run that starts beside others. Before: `resume` said that it was resumed."""
    flow_run = deployed(Crashed())
    options = ConcurrencyOptions(collision_strategy=collision)
    limited = DeploymentUpdate(concurrency_limit=1, concurrency_options=options)
    asked(lambda client: client.update_deployment(flow_run.deployment_id, limited))
    other = asked(lambda client: client.create_flow_run_from_deployment(flow_run.deployment_id, state=Scheduled()))
    asked(lambda client: client.set_flow_run_state(other.id, Pending()))
    drops = collision is ConcurrencyLimitStrategy.CANCEL_NEW
    if drops:
        for name in ("Crashed", "Cancelled"):  # and then somebody retries it in the UI
            with pytest.raises(qr.InvalidInput, match="CANCEL_NEW"):
                resume_flow_run(str(flow_run.id))
            state = asked(lambda client: client.read_flow_run(flow_run.id)).state
            assert state is not None
            assert state.name == name
            asked(lambda client: client.set_flow_run_state(flow_run.id, Scheduled(), force=True))
            asked(lambda client: client.set_flow_run_state(flow_run.id, Pending()))
        asked(lambda client: client.set_flow_run_state(other.id, Crashed()))
    resume_flow_run(str(flow_run.id))
    asked(lambda client: client.set_flow_run_state(flow_run.id, Pending()))
    state = asked(lambda client: client.read_flow_run(flow_run.id)).state
    assert state is not None
    assert state.name == ("Pending" if drops else "AwaitingConcurrencySlot")
    for one in (flow_run, other):
        asked(partial(PrefectClient.delete_flow_run, flow_run_id=one.id))


def test_without_a_deployment_it_says_how_to_fetch(prefect_server: PrefectServer) -> None:
    async def create(client: PrefectClient) -> FlowRun:
        return await client.create_flow_run(nothing, state=Running())

    flow_run = asked(create)
    with pytest.raises(qr.InvalidInput, match=r"no deployment.*fetch_results.*submission_key"):
        resume_flow_run(str(flow_run.id))


@pytest.mark.parametrize("wrong", ["nope", "../etc", "", None, 7])
def test_an_id_that_is_none_is_refused(prefect_server: PrefectServer, wrong: Any) -> None:
    with pytest.raises(qr.InvalidInput, match="not the id of a flow run"):
        resume_flow_run(wrong)


def test_an_unknown_flow_run(prefect_server: PrefectServer) -> None:
    with pytest.raises(qr.NotFound, match="knows no flow run"):
        resume_flow_run(str(uuid4()))
