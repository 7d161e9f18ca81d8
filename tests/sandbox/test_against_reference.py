"""What the ideal backend answers agrees with qiskit's own reference primitives, within five standard deviations.

Circuits travel as OpenQASM text, so parsing is part of what is compared. Sandbox and references are seeded.
"""

import math
from collections import Counter

import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm2, qasm3, transpile
from qiskit.circuit import Parameter
from qiskit.circuit.library import real_amplitudes
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer import AerSimulator

SHOTS = 20_000
SHOTS_MEASURED = 5_000
"""With measurements in the middle each shot is a run of its own. A conditional left out shows in half of them."""
SIGMAS = 5


def bell():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    return circuit


def ghz(width=5):
    circuit = QuantumCircuit(width)
    circuit.h(0)
    for qubit in range(1, width):
        circuit.cx(qubit - 1, qubit)
    return circuit


def teleportation(theta, phi):
    """Send a state from qubit 0 to qubit 2 by two measured bits and conditional gates, then undo it there."""
    sent, received = ClassicalRegister(2, "sent"), ClassicalRegister(1, "received")
    circuit = QuantumCircuit(QuantumRegister(3, "q"), sent, received)
    circuit.ry(theta, 0)
    circuit.rz(phi, 0)
    circuit.h(1)
    circuit.cx(1, 2)
    circuit.cx(0, 1)
    circuit.h(0)
    circuit.measure([0, 1], sent)
    with circuit.if_test((sent[1], 1)):
        circuit.x(2)
    with circuit.if_test((sent[0], 1)):
        circuit.z(2)
    return circuit


def agree(found, expected):
    """Whether two counts may come from one distribution: no outcome's share differs by more than chance allows."""
    first, second = sum(found.values()), sum(expected.values())
    for key in found.keys() | expected.keys():
        pooled = (found.get(key, 0) + expected.get(key, 0)) / (first + second)
        allowed = SIGMAS * math.sqrt(pooled * (1 - pooled) * (1 / first + 1 / second))
        assert abs(found.get(key, 0) / first - expected.get(key, 0) / second) <= allowed, key


def counts(samples):
    return Counter(int(sample, 16) for sample in samples)


def sampled(cloud, circuit, values=None, *, text=qasm3.dumps, shots=SHOTS):
    """Run on the sandbox; return the samples of each register."""
    data = cloud.run([[text(circuit), values, shots]])["results"][0]["data"]
    return {name: register["samples"] for name, register in data.items()}


def reference(circuit, values=None):
    """Run on qiskit's sampler; return its bits."""
    pub = (circuit,) if values is None else (circuit, values)
    return StatevectorSampler(default_shots=SHOTS, seed=11).run([pub]).result()[0].data.meas


def ansatz():
    """An ansatz of 4 qubits, its parameters named so that OpenQASM keeps their names, and 3 points for them."""
    circuit = real_amplitudes(4, reps=2, entanglement="linear")
    named = circuit.assign_parameters([Parameter(f"t{place:02}") for place in range(circuit.num_parameters)])
    return named, np.random.default_rng(3).uniform(-math.pi, math.pi, (3, named.num_parameters))


@pytest.mark.parametrize("text", [qasm2.dumps, qasm3.dumps])
@pytest.mark.parametrize("circuit", [bell(), ghz()], ids=["bell", "ghz"])
def test_bell_and_ghz(cloud, fast, circuit, text):
    measured = circuit.measure_all(inplace=False)
    found = counts(sampled(cloud, measured, text=text)["meas"])
    assert set(found) == {0, 2**circuit.num_qubits - 1}
    agree(found, reference(measured).get_int_counts())


def test_a_comparison_can_fail():
    with pytest.raises(AssertionError):
        agree({0: 10_000, 3: 10_000}, {0: 10_600, 3: 9_400})


def test_ansatz_samples(cloud, fast):
    circuit, points = ansatz()
    measured = circuit.measure_all(inplace=False)
    found = sampled(cloud, measured, points.tolist())["meas"]
    expected = reference(measured, points)
    for place, samples in enumerate(found):
        assert len(counts(samples)) > 8
        agree(counts(samples), expected.get_int_counts(place))


def test_ansatz_expectation_values(cloud, fast):
    circuit, points = ansatz()
    terms = [{"ZZII": 1.0, "IXXI": -0.5, "IIYY": 0.25}, {"XIIX": 1.0}, {"ZIII": 2.0, "IIII": -1.0}]
    operators = [[SparsePauliOp.from_list(list(one.items()))] for one in terms]
    (expected,) = StatevectorEstimator().run([(circuit, operators, points)]).result()
    assert np.ptp(expected.data.evs) > 0.5
    for precision in (0.05, 0.002):
        pub = [qasm3.dumps(circuit), [[one] for one in terms], points.tolist(), precision]
        data = cloud.run([pub], program="estimator")["results"][0]["data"]
        assert np.shape(data["evs"]) == expected.data.evs.shape == (3, 3)
        np.testing.assert_allclose(data["evs"], expected.data.evs, atol=precision)
        error = np.abs(np.asarray(data["evs"]) - expected.data.evs)
        assert (error <= SIGMAS * np.asarray(data["stds"]) + 1e-9).all()
        assert error.max() > precision / 100  # shot noise, not the exact values


@pytest.mark.parametrize("circuit", [bell(), ghz(3)], ids=["bell", "ghz"])
def test_expectation_values_of_every_pauli(cloud, fast, circuit):
    width = circuit.num_qubits
    letters = np.array(list("IXYZ"))
    labels = ["".join(one) for one in letters[np.indices((4,) * width).reshape(width, -1).T]]
    (expected,) = StatevectorEstimator().run([(circuit, labels)]).result()
    pub = [qasm3.dumps(circuit), labels, None, 0.004]
    data = cloud.run([pub], program="estimator")["results"][0]["data"]
    np.testing.assert_allclose(data["evs"], expected.data.evs, atol=0.004)


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 0.0), (1.2, 0.4), (math.pi / 2, math.pi / 2), (2.5, -1.0)])
def test_teleportation(cloud, fast, theta, phi):
    """Mid-circuit measurement and conditionals, against qiskit-aer itself: the state arrives."""
    circuit = teleportation(theta, phi)
    circuit.measure(2, 2)
    found = sampled(cloud, circuit, shots=SHOTS_MEASURED)
    joint = Counter(
        int(one, 16) + 4 * int(other, 16) for one, other in zip(found["sent"], found["received"], strict=True)
    )
    aer = AerSimulator(seed_simulator=5).run(circuit, shots=SHOTS_MEASURED).result().get_counts()
    agree(joint, {int(key.replace(" ", ""), 2): number for key, number in aer.items()})
    share, right = counts(found["received"])[1] / SHOTS_MEASURED, math.sin(theta / 2) ** 2
    assert abs(share - right) <= SIGMAS * math.sqrt(right * (1 - right) / SHOTS_MEASURED)


def test_teleportation_undone_is_certain(cloud, fast):
    circuit = teleportation(1.2, 0.4)
    circuit.rz(-0.4, 2)
    circuit.ry(-1.2, 2)
    circuit.measure(2, 2)
    assert set(sampled(cloud, circuit, shots=SHOTS_MEASURED)["received"]) == {"0x0"}


def test_expectation_values_after_teleportation(cloud, fast):
    circuit = teleportation(1.2, 0.4)
    labels = ["XII", "YII", "ZII"]
    right = [math.sin(1.2) * math.cos(0.4), math.sin(1.2) * math.sin(0.4), math.cos(1.2)]
    pub = [qasm3.dumps(circuit), labels, None, 0.02]
    data = cloud.run([pub], program="estimator")["results"][0]["data"]
    # Trajectories are sampled here, so the precision bounds the noise added, not the whole error.
    np.testing.assert_allclose(data["evs"], right, atol=0.02 + SIGMAS / math.sqrt(2500))


def test_texts_that_name_the_backends_qubits(cloud, fast):
    """OpenQASM 3 of a translated circuit names `$3` and `$5` only; observables count all qubits of the backend."""
    pairs = [[a, b] for a in range(32) for b in range(32) if a != b]
    circuit = transpile(bell(), basis_gates=["h", "cx"], coupling_map=pairs, initial_layout=[3, 5])
    text = qasm3.dumps(circuit)
    assert "$3" in text
    labels = ["".join(letter if place in (3, 5) else "I" for place in reversed(range(32))) for letter in "XYZ"]
    data = cloud.run([[text, labels]], program="estimator")["results"][0]["data"]
    assert data["evs"] == pytest.approx([1, -1, 1])
