"""The client's newer primitives, which run in the client on top of the program `executor`."""

import math

import numpy as np
import pytest
from qiskit.primitives import PrimitiveResult
from qiskit_ibm_runtime import Executor, QuantumProgram, Session
from qiskit_ibm_runtime.exceptions import IBMRuntimeError
from qiskit_ibm_runtime.executor_estimator import Estimator
from qiskit_ibm_runtime.executor_sampler import Sampler

from .circuits import bell, ghz, isa, observables, rotations, teleportation


def test_executor(ideal):
    program = QuantumProgram(shots=200)
    program.append_circuit_item(isa(ghz(11), ideal))
    values = np.array([[[0, 0], [math.pi, 0]], [[0, math.pi], [math.pi, math.pi]]])
    program.append_circuit_item(isa(rotations(measured=True), ideal), circuit_arguments=values)
    first, second = Executor(mode=ideal).run(program).result()
    assert first["meas"].shape == (200, 11)
    assert set(first["meas"].sum(axis=-1)) == {0, 11}
    assert second["meas"].shape == (2, 2, 200, 2)
    assert (second["meas"] == np.array([[[0, 0], [1, 0]], [[0, 1], [1, 1]]])[:, :, np.newaxis, :]).all()


def test_client_side_sampler(noisy):
    values = np.array([[0, 0], [math.pi, 0], [0, math.pi]])
    with Session(backend=noisy) as session:
        sampler = Sampler(mode=session, options={"default_shots": 2000})
        job = sampler.run([isa(bell(), noisy), (isa(rotations(measured=True), noisy), values)])
        result = job.result()
    assert isinstance(result, PrimitiveResult)
    counts = result[0].data.meas.get_counts()
    assert 0.94 < (counts["00"] + counts["11"]) / 2000 < 0.99
    assert result[1].data.shape == (3,)
    for place, key in enumerate(("00", "01", "10")):
        assert result[1].data.meas.get_counts(place)[key] > 1850


def test_client_side_sampler_with_a_dynamic_circuit(ideal):
    data = Sampler(mode=ideal).run([isa(teleportation(math.pi), ideal)], shots=100).result()[0].data
    assert data.received.get_counts() == {"1": 100}
    assert len(data.sent.get_counts()) == 4


def test_what_needs_randomised_circuits_is_refused_at_once(ideal):
    circuit = isa(bell(measured=False), ideal)
    with pytest.raises(IBMRuntimeError, match="samplex"):
        Estimator(mode=ideal).run([(circuit, observables(circuit, "ZZ"))])
