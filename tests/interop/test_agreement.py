"""The same circuits by the service's programs, our executor route and IBM's client: equal within what shots allow.

Three ways to one result on one seeded sandbox: `route="service"`, `route="executor"`, and IBM's client-side Sampler
and Estimator. Each pair is compared by the stated test of `agreement`; a false alarm comes once in a million pairs.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.random import random_circuit
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime.executor_estimator import Estimator
from qiskit_ibm_runtime.executor_sampler import Sampler

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.agreement import compare_results
from prefect_qruntime.client.results import JobResult
from tests.support.circuits import qaoa

from .circuits import bell, ghz, isa, teleportation

FALSE_ALARM = 1e-6
RANDOM = range(4)


def ansatz(*, measured: bool) -> QuantumCircuit:
    """Three qubits, two layers of rotations with an angle each, entangled in between."""
    angles = iter(ParameterVector("angle", 6))
    circuit = QuantumCircuit(3)
    for _ in range(2):
        for qubit in range(3):
            circuit.ry(next(angles), qubit)
        circuit.cx(0, 1)
        circuit.cx(1, 2)
    if measured:
        circuit.measure_all()
    return circuit


def drawn(seed: int, *, measured: bool) -> QuantumCircuit:
    circuit = random_circuit(3, 5, max_operands=2, seed=seed)
    if measured:
        circuit.measure_all()
    return circuit


POINTS = np.linspace(0.2, 2.6, 12).reshape(2, 6)
SAMPLED: dict[str, tuple[Any, Any]] = {
    "bell": (bell, None),
    "ghz": (lambda: ghz(4), None),
    "teleportation": (lambda: teleportation(1.1), None),
    "ansatz": (lambda: ansatz(measured=True), POINTS),
    "qaoa": (qaoa, np.array([[0.4, 0.9], [1.0, -0.2]])),
    **{f"random {seed}": (lambda seed=seed: drawn(seed, measured=True), None) for seed in RANDOM},
}
ESTIMATED: dict[str, tuple[Any, list[str], Any]] = {
    "bell": (lambda: bell(measured=False), ["ZZ", "XX", "YY", "ZI"], None),
    "ghz": (lambda: _bare(ghz(3)), ["ZZI", "XXX", "IZZ"], None),
    "ansatz": (lambda: ansatz(measured=False), ["ZZI"], POINTS),
    "qaoa": (lambda: _bare(qaoa()), ["ZZII"], np.array([[0.4, 0.9], [1.0, -0.2]])),
    **{
        f"random {seed}": (lambda seed=seed: drawn(seed, measured=False), ["XYZ", "ZZI", "IXX"], None)
        for seed in RANDOM
    },
}


def _bare(circuit: QuantumCircuit) -> QuantumCircuit:
    found = circuit.remove_final_measurements(inplace=False)
    assert isinstance(found, QuantumCircuit)
    return found


@pytest.fixture
def client(qruntime_sandbox: Any) -> QuantumRuntimeClient:
    return QuantumRuntimeClient(Connection(**qruntime_sandbox.connection("cloud")))


def ours(client: QuantumRuntimeClient, pub: Any, **given: Any) -> JobResult:
    """Run a PUB by the package."""
    spec = make_spec([pub], backend="sandbox_ideal", **given)
    ref = client.run(client.post_job(spec, (), None))
    client.run(client.wait(ref.id))
    result: JobResult = client.run(client.result(ref))
    return result


def theirs(client: QuantumRuntimeClient, job: Any) -> JobResult:
    """Fetch the result of a job of IBM's client by its id, and hold it against what that client makes of it."""
    job.wait_for_final_state()
    result: JobResult = client.run(client.result(job.job_id()))
    official = job.result()[0].data
    if result.is_estimator():
        np.testing.assert_allclose(result.expectation_values(), official.evs, atol=1e-12)
    else:
        for name, bits in official.items():
            found = result.counts_array(register=name)
            for place in np.ndindex(bits.shape):
                counts = found
                for index in place:
                    counts = counts[index]
                assert counts == bits.get_counts(place if place else None)
    return result


def agree(results: dict[str, JobResult]) -> None:
    for (one, first), (other, second) in itertools.combinations(results.items(), 2):
        found = compare_results(first, second, false_alarm=FALSE_ALARM)
        assert found.agrees, f"{one} against {other}: {found}"


@pytest.mark.parametrize("name", SAMPLED)
def test_counts(client: QuantumRuntimeClient, ideal: Any, name: str) -> None:
    make, points = SAMPLED[name]
    circuit = isa(make(), ideal)
    pub = (circuit,) if points is None else (circuit, points)
    agree(
        {
            "service": ours(client, pub, shots=1500),
            "executor": ours(client, pub, shots=1500, route="executor"),
            "executor as text": ours(client, pub, shots=1500, route="executor", circuit_form="openqasm3"),
            "IBM's client": theirs(client, Sampler(mode=ideal).run([pub], shots=1500)),
        }
    )


@pytest.mark.parametrize("name", ESTIMATED)
def test_expectation_values(client: QuantumRuntimeClient, ideal: Any, name: str) -> None:
    make, letters, points = ESTIMATED[name]
    circuit = isa(make(), ideal)
    terms = [SparsePauliOp(label).apply_layout(circuit.layout) for label in letters]
    observables: Any = terms[0] if points is not None else terms
    pub = (circuit, observables) if points is None else (circuit, observables, points)
    given: dict[str, Any] = {"program_id": "estimator", "options": {"resilience_level": 0, "default_precision": 0.03}}
    estimator = Estimator(mode=ideal, options={"resilience_level": 0})
    agree(
        {
            "service": ours(client, pub, **given),
            "executor": ours(client, pub, **given, route="executor"),
            "IBM's client": theirs(client, estimator.run([pub], precision=0.03)),
        }
    )
