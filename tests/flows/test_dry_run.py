"""Dry runs in flows: visible, apart from real jobs, and in no budget; and where each result comes from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, unmapped
from prefect.serializers import JSONSerializer, PickleSerializer
from qiskit import QuantumCircuit

import prefect_qruntime as qr
from flows.angles_to_table import angles_to_table
from flows.leave_and_collect import leave
from flows.parameter_sweep import parameter_sweep
from flows.run_circuits import run_circuits
from flows.run_saved_job import run_saved_job
from flows.vqe_session import vqe_session
from prefect_qruntime.admission.budget_core import tally
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, events, ran, records, requests, run

pytestmark = pytest.mark.server
MOCK = "mock_ideal"


@pytest.mark.parametrize("route", ["service", "executor"])
def test_a_dry_run_is_seen_to_be_one(sandbox: Sandbox, credentials: Any, route: Any, caplog: Any) -> None:
    @flow
    def rehearse() -> Any:
        session = qr.SessionRef(id="never-sent")
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=200, route=route, dry_run=True, session=session)
        done = qr.wait_for_completion(credentials, job)
        return job, done, qr.fetch_results(credentials, job)

    flow_run, state = ran(rehearse)
    job, done, result = run(state.aresult())
    (sent,) = sandbox.control.jobs()
    assert (sent["backend"], sent["session_id"]) == (MOCK, None)
    assert (job.backend, job.dry_run, done.dry_run, result.provenance.dry_run) == (MOCK, True, True, True)
    assert set(result.counts()) == {"0", "1"}, "random, where the circuit gives ones only"
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "Dry run: it uses no QPU and is not charged, and its results are random." in said
    assert "does not run in the session" in said
    for event in events(f"qruntime.job.{job.id}", last="qruntime.job.completed"):
        assert event["payload"]["dry_run"] is True
        assert event["resource"]["qruntime.dry-run"] == "true"
    (record,) = records("job", flow_run.id)
    assert "| dry run | yes: no QPU, no charge, random results |" in record.text
    assert record.meta["usage_seconds"] == "0"
    (summary,) = records("summary", flow_run.id)
    assert "**0 QPU seconds** in all; 1 dry run, not charged." in summary.text


def test_rehearsal_and_run_never_share_a_job(sandbox: Sandbox, credentials: Any) -> None:
    """Not by the flow's own identity, not by an explicit key, and each attaches to its own kind when repeated."""
    tries: list[int] = []

    @flow(retries=1)
    def both() -> list[tuple[str, bool]]:
        tries.append(1)
        jobs = [
            qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=5, dry_run=dry, submission_key=key)
            for key in (None, "slot-1")
            for dry in (True, False)
        ]
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return [(job.backend, job.attached) for job in jobs]

    assert both() == [(MOCK, True), (BACKEND, True)] * 2
    assert [job["backend"] for job in sandbox.control.jobs()] == [MOCK, BACKEND] * 2


def test_mapped_dry_runs_are_counted_apart(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def mapped() -> list[str]:
        both = qr.submit_job.map(
            unmapped(credentials),
            [[FLIP], [FLIP]],
            backend=unmapped(BACKEND),
            shots=5,
            dry_run=[True, False],
        )
        return [job.backend for job in both.result()]

    assert mapped() == [MOCK, BACKEND]


def test_no_budget_counts_it(sandbox: Sandbox, credentials: Any) -> None:
    budget = qr.Budget(max_jobs_per_run=1, max_seconds_per_run=10, default_max_execution_time=10)

    @flow
    def spend() -> list[str]:
        given: dict[str, Any] = {"backend": BACKEND, "shots": 5, "budget": budget}
        rehearsed = [qr.run_job(credentials, [FLIP], dry_run=True, **given).job_id for _ in range(3)]
        real = qr.submit_job(credentials, [FLIP], **given)
        with pytest.raises(qr.BudgetExhausted):
            qr.submit_job(credentials, [FLIP], **given)
        again = qr.submit_job(credentials, [FLIP], dry_run=True, **given)
        return [*rehearsed, real.id, again.id]

    assert len(set(spend())) == 5
    assert [job["backend"] for job in sandbox.control.jobs()] == [MOCK] * 3 + [BACKEND, MOCK]


def test_a_dry_run_that_is_listed_counts_for_nothing() -> None:
    def job(number: int, backend: str) -> qr.Job:
        fields: dict[str, Any] = {"status": qr.JobStatus.COMPLETED, "usage_seconds": 3.0, "usage_final": True}
        return qr.Job(id=f"j{number}", backend=backend, **fields)

    total = tally([job(1, MOCK), job(2, BACKEND), job(3, MOCK)], [])
    assert (total.jobs, total.used, total.reserved) == (1, 3.0, 0.0)


def test_numbering_takes_any_backend(sandbox: Sandbox, credentials: Any) -> None:
    """A backend may be a text, a `Backend`, or what another task will return."""

    @flow
    def submitted() -> list[str]:
        found = qr.select_backend.submit(credentials, min_qubits=30)
        name = qr.submit_job.submit(credentials, [FLIP], backend=found, shots=5, dry_run=True).result().backend
        mock = qr.submit_job.submit(credentials, [FLIP], backend=qr.Backend(name=MOCK), shots=5).result()
        return [name, mock.backend]

    assert submitted() == [MOCK, MOCK]
    assert len(sandbox.control.jobs()) == 2


def test_a_backend_without_a_mock_is_named(sandbox: Sandbox, credentials: Any) -> None:
    @flow
    def nowhere() -> None:
        qr.submit_job(credentials, [FLIP], backend="sandbox_unknown", dry_run=True)

    with pytest.raises(qr.NotFound, match=r"A dry run needs backend mock_unknown.*Nothing was submitted"):
        nowhere()
    assert sandbox.control.jobs() == []


def test_the_shipped_flows_and_the_job_block(sandbox: Sandbox, credentials: Any) -> None:
    credentials.save("dry-run-flows", overwrite=True)
    rows = run_circuits([FLIP], credentials_block="dry-run-flows", backend=BACKEND, shots=50, dry_run=True)
    assert [row["backend"] for row in rows] == [MOCK]
    assert sandbox.control.sessions() == [], "a rehearsal opens no session"
    assert "mock_ideal (dry run)" in artifact_description("qruntime-counts")
    block = qr.QuantumRuntimeJob(
        credentials=credentials, backend=BACKEND, pubs=[FLIP], shots=5, route="executor", circuit_form="qpy"
    )
    block.save("dry-run-job", overwrite=True)
    run(run_saved_job("dry-run-job", dry_run=True))  # type: ignore[arg-type]
    run(run_saved_job("dry-run-job"))  # type: ignore[arg-type]
    assert [job["backend"] for job in sandbox.control.jobs()] == [MOCK, MOCK, BACKEND]
    assert all("b64_data" in job["params"]["quantum_program"]["circuits"] for job in sandbox.control.jobs()[1:])


def test_every_shipped_flow_that_submits_can_rehearse_on_either_route(
    sandbox: Sandbox, credentials: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_ALLOWED_FOLDERS", str(tmp_path))
    credentials.save("dry-run-flows", overwrite=True)
    (tmp_path / "angles.csv").write_text("theta,phi\n0.1,0.2\n")
    given: dict[str, Any] = {"credentials_block": "dry-run-flows", "backend": BACKEND, "shots": 10, "dry_run": True}
    given |= {"route": "executor", "circuit_form": "qpy"}
    parameter_sweep(points=1, **given)
    angles_to_table(angles=tmp_path / "angles.csv", table=tmp_path / "table.csv", observables=["Z"], **given)
    vqe_session(max_iterations=1, **given)
    leave(circuit=FLIP, **given)
    jobs = sandbox.control.jobs()
    assert len(jobs) == 2 + 1 + 2 + 1
    assert {(job["backend"], job["program_id"], job["session_id"]) for job in jobs} == {(MOCK, "executor", None)}
    assert all("b64_data" in job["params"]["quantum_program"]["circuits"] for job in jobs)
    assert sandbox.control.sessions() == []


def test_what_may_be_taken_for_new_work_is_not_certain(sandbox: Sandbox, credentials: Any, caplog: Any) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    encoded = make_spec([circuit], backend="b").pubs[0].circuit

    @flow
    def submitted() -> Any:
        return qr.submit_job(credentials, [encoded], backend=BACKEND, shots=5)

    job = submitted()
    assert not job.certain
    (event,) = events(f"qruntime.job.{job.id}")
    assert event["payload"]["certain"] is False
    assert "may count as new work" in caplog.text


def artifact_description(key: str) -> str:
    from prefect.artifacts import Artifact

    found: Any = Artifact.get(key)
    return str(found.description)


def test_provenance_of_a_result_and_on_the_page(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.set_times(queue_time=0.3, run_time=0.4)

    @flow
    def measured() -> Any:
        found = []
        for shots in (100, 101):
            job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=shots, route="executor")
            qr.wait_for_completion(credentials, job)
            found.append((job, qr.fetch_results(credentials, job)))
        return found

    flow_run, state = ran(measured)
    (job, result), (_, second) = run(state.aresult())
    assert requests(sandbox, "GET", "/backends/*/properties") == 1, "once for both jobs"
    assert requests(sandbox, "GET", "/jobs/*/metrics") == 0
    known = result.provenance
    # On a slow machine the wait may miss the moment at which the job begins to run; then that is said.
    unseen = [word for word in known.missing if "not seen running" in word]
    assert list(known.missing) == unseen
    assert (known.queue_seconds is None, known.run_seconds is None) == (bool(unseen), bool(unseen))
    assert known.calibration_id == "calibration-sandbox-ideal-2026-01-01"
    assert known.calibrated_at is not None
    assert known.properties["backend_name"] == BACKEND
    assert known.backend_version == known.properties["backend_version"]
    assert known.payload_digest == job.payload_digest != second.provenance.payload_digest
    assert (known.program_id, known.wire_program) == ("sampler", "executor")
    assert {"prefect", "prefect-qruntime", "qiskit"} <= known.packages.keys()
    for serializer in (JSONSerializer(), PickleSerializer()):
        copy = serializer.loads(serializer.dumps(result))
        assert copy.provenance == known
    page = next(record for record in records("job", flow_run.id) if record.meta["id"] == job.id)
    for label, value in (
        ("calibration", known.calibration_id),
        ("backend version", known.backend_version),
        ("payload digest", known.payload_digest),
        ("executed", "1 chunk, "),
    ):
        assert f"| {label} | {value}" in page.text.replace("\\", ""), label
    assert "qiskit==" in page.meta["packages"]
    assert page.meta["calibrated"].startswith(known.calibrated_at.isoformat()[:10])


def test_an_outage_of_the_properties_costs_only_them(sandbox: Sandbox, credentials: Any) -> None:
    sandbox.control.add_fault("GET", "/backends/*/properties", status=503, times=None)

    @flow(persist_result=True)
    def unlucky() -> Any:
        return qr.run_job(credentials, [FLIP], backend=BACKEND, shots=10)

    result = unlucky()
    assert result.counts() == {"1": 10}
    assert result.provenance.calibration_id is not None
    assert result.provenance.properties is None
    assert any("properties" in word for word in result.provenance.missing)


def test_a_private_result_keeps_its_provenance_and_the_page_no_digest(sandbox: Sandbox, credentials: Any) -> None:
    @flow(persist_result=True)
    def hidden() -> Any:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND, shots=10, private=True)
        qr.wait_for_completion(credentials, job)
        return qr.fetch_results(credentials, job), qr.fetch_results(credentials, job.id)

    flow_run, state = ran(hidden)
    first, stored = run(state.aresult())
    assert stored.provenance == first.provenance
    assert stored.provenance.properties["backend_name"] == BACKEND
    assert pickle.loads(pickle.dumps(stored)).provenance.payload_digest is not None
    (record,) = records("job", flow_run.id)
    assert first.provenance.payload_digest not in str(record.meta) + record.text


def test_whether_the_job_is_certainly_the_one(sandbox: Sandbox, credentials: Any) -> None:
    given: dict[str, Any] = {"backend": BACKEND, "shots": 10, "submission_key": "certain"}

    @flow
    def once(private: bool) -> Any:
        return qr.submit_job(credentials, [FLIP], private=private, **given)

    for private in (False, True):
        first = once(private)
        forget()
        again = once(private)
        assert (first.id, first.certain, again.attached) == (again.id, True, True)
        assert again.certain is not private, "the service hides the input of a private job"
        found = events(f"qruntime.job.{first.id}", number=2)
        told = {event["event"].rpartition(".")[2]: event["payload"]["certain"] for event in found[:2]}
        assert told == {"submitted": True, "attached": not private}


def forget() -> None:
    """As in another process: what this one bought is not remembered."""
    from prefect_qruntime.client.network_loop import network_loop
    from prefect_qruntime.client.submission import submission_memory

    async def drop() -> None:
        submission_memory().forget()

    network_loop().run(drop())
