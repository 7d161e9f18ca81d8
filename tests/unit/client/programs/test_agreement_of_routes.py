"""On the seeded sandbox both routes give the same counts and values, within what shots allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.agreement import compare_results
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.sandbox import Sandbox
from tests.support import circuits as families

ANSATZ = (families.ANSATZ, {"theta": [0.3, -1.2, 2.0], "alpha": [2.0, 0.1, 0.5]})
QAOA = (families.qaoa(), [[0.4, 0.9], [1.0, -0.2]])
SAMPLED = {
    "bell": families.BELL,
    "ghz": families.GHZ,
    "teleportation": families.TELEPORTATION,
    "ansatz": ANSATZ,
    "qaoa": QAOA,
    "random": families.random_text(4, measured=True),
}
ESTIMATED = {
    "bell": (families.BELL, [["ZZ"], ["XX"], [{"YY": 1.5, "XI": 0.2, "II": 1.0}]]),
    "ansatz": (families.ANSATZ, [["ZZ"], [{"XI": 0.5, "IY": 2.0}]], ANSATZ[1]),
    "qaoa": (*QAOA[:1], {"ZZII": 1.0, "IZZI": 1.0, "IIZZ": 1.0, "ZIIZ": 1.0}, QAOA[1]),
    "random": (families.random_text(6, width=3), ["XYZ", "ZZI", {"IXX": 0.3, "YIY": -1.0}]),
}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with Sandbox(queue_time=0, run_time=0, seed=11) as sandbox:
        yield QuantumRuntimeClient(Connection(**sandbox.connection("cloud")))


def _run(client: Any, pub: Any, **given: Any) -> JobResult:
    spec = make_spec([pub], backend="sandbox_ideal", **given)
    ref = client.run(client.post_job(spec, (), None))
    client.run(client.wait(ref.id))
    found: JobResult = client.run(client.result(ref))
    return found


@pytest.mark.parametrize("form", ["openqasm3", "qpy"])
@pytest.mark.parametrize("name", SAMPLED)
def test_counts(client: Any, name: str, form: str) -> None:
    service = _run(client, SAMPLED[name], shots=2000)
    executor = _run(client, SAMPLED[name], shots=2000, route="executor", circuit_form=form)
    found = compare_results(service, executor, false_alarm=1e-6)
    assert found.agrees, str(found)
    assert executor.registers() == service.registers()
    assert executor.shape() == service.shape()


@pytest.mark.parametrize("form", ["openqasm3", "qpy"])
@pytest.mark.parametrize("name", ESTIMATED)
def test_expectation_values(client: Any, name: str, form: str) -> None:
    options = {"resilience_level": 0, "default_precision": 0.02}
    given = {"program_id": "estimator", "options": options}
    service = _run(client, ESTIMATED[name], **given)
    executor = _run(client, ESTIMATED[name], **given, route="executor", circuit_form=form)
    found = compare_results(service, executor, false_alarm=1e-6)
    assert found.agrees, str(found)
    assert executor.shape() == service.shape()


def test_circuits_that_differ_are_told_apart(client: Any) -> None:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    circuit.measure_all()
    service = _run(client, (circuit, [1.0]), shots=2000)
    executor = _run(client, (circuit, [1.3]), shots=2000, route="executor")
    assert not compare_results(service, executor).agrees


def test_a_job_fetched_by_its_id_alone_needs_nothing_else(client: Any) -> None:
    spec = make_spec([ESTIMATED["bell"]], backend="sandbox_ideal", program_id="estimator", route="executor")
    ref = client.run(client.post_job(spec, (), None))
    client.run(client.wait(ref.id))
    raw = client.run(client.result(ref)).raw
    found = JobResult.from_body(raw, job_id=ref.id).expectation_values()
    assert found[0][0] == pytest.approx(1.0, abs=0.1)
