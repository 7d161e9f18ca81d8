"""What a wait and a submission say of a backend that runs no jobs, and records that keep what was seen before."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, LogFilter, LogFilterFlowRunId

import prefect_qruntime as qr
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import artifact_key, find_record, find_records
from prefect_qruntime.observability.markdown import history
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.tasks import backends, jobs
from tests.support.flow_runs import BACKEND, FLIP, noted, posts, ran, run, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server


def test_an_offline_backend_is_said_or_refused(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "HELD_AFTER", 0.1)
    monkeypatch.setattr(backends, "HELD_AFTER", 0.1)

    @flow
    def on_paused() -> Any:
        with pytest.raises(qr.BackendOffline, match=r"sandbox_paused is paused .*This request was not sent\."):
            qr.submit_job(credentials, [FLIP], backend="sandbox_paused", require_online=True, submission_key="offline")
        assert posts(sandbox) == 0
        first = qr.submit_job(credentials, [FLIP], backend="sandbox_paused", submission_key="offline")
        again = qr.submit_job(
            credentials, [FLIP], backend="sandbox_paused", require_online=True, submission_key="offline"
        )
        assert (again.id, again.attached, posts(sandbox)) == (first.id, True, 1)
        waiting = qr.wait_for_completion.submit(credentials, first)
        assert until(lambda: sandbox.control.journal(method="GET", path="/backends/sandbox_paused/status"))
        sandbox.control.set_backend("sandbox_paused", status="online")
        waiting.result()
        online = qr.submit_job(credentials, [FLIP], backend=BACKEND, require_online=True)
        return first.id, qr.wait_for_completion(credentials, online).raw_status

    flow_run, state = ran(on_paused)
    job_id, ended = run(state.aresult())
    assert ended == "Completed"
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id]))

    def said() -> list[str]:
        return [
            log.message
            for log in asked(lambda client: client.read_logs(wanted, limit=200))
            if log.message.startswith(f"job {job_id} waits: sandbox_paused is paused")
        ]

    assert len(until(said)) == 1, "once, although the submission and the wait both look"


def test_a_session_s_record_is_found_by_its_id_and_called_what_it_is(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def in_a_batch() -> Any:
        with qr.runtime_session(credentials, BACKEND, mode="batch") as session:
            qr.run_job(credentials, [FLIP], backend=BACKEND, session=session)
        return session.id

    flow_run, state = ran(in_a_batch)
    session_id = run(state.aresult())
    records = network_loop().run(find_records("session", flow_run_ids=[flow_run.id]))
    assert [record.key for record in records] == [artifact_key("session", session_id)]
    assert records[0].text.startswith(f"### Batch {session_id}")
    assert records[0].meta["state"].lower() == "closed"
    key = ArtifactFilter(key=ArtifactFilterKey(any_=[records[0].key]))
    (artifact,) = asked(lambda client: client.read_artifacts(artifact_filter=key))
    assert artifact.description == "Closed · batch · sandbox_ideal"


def test_a_flow_run_that_attaches_keeps_the_history_seen_before(sandbox: Sandbox, credentials: Any) -> None:
    key = f"history-{uuid4().hex[:6]}"
    sandbox.control.hold()

    @flow
    def once() -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, submission_key=key)
        waiting = qr.wait_for_completion.submit(credentials, job)
        assert until(lambda: sandbox.control.journal(method="GET", path=f"/jobs/{job.id}"), 60.0)
        sandbox.control.release()
        waiting.result()
        return job.id

    _, state = ran(once)
    job_id = run(state.aresult())
    noted()
    before = network_loop().run(find_record("job", job_id))
    assert before is not None
    assert history(before.meta).startswith("queued")
    ran(once)
    noted()
    after = network_loop().run(find_record("job", job_id))
    assert after is not None
    assert after.meta["began"] != before.meta["began"], "another wait"
    assert history(after.meta) == history(before.meta)
