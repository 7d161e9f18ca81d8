"""The programs `noise-learner`, first and third version, and `calibrate`."""

import base64
import io
import math

import numpy as np
import pytest
import samplomatic
from qiskit import QuantumCircuit, qpy
from qiskit.circuit.annotation import QPYSerializer
from qiskit.quantum_info import PauliLindbladMap

from tests.support.sandbox_api import code

VERSIONS = ["v0.1", "v0.2", "v0.3"]


def boxes(*, width=3):
    """A circuit of a gate layer and a measured layer."""
    circuit = QuantumCircuit(width, width)
    with circuit.box():
        circuit.cz(0, 1)
        circuit.noop(2)
    with circuit.box():
        circuit.measure(range(width), range(width))
    return circuit


def encoded(circuit):
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer, version=17)
    return {"circuit_b64": base64.b64encode(buffer.getvalue()).decode(), "qpy_version": 17}


def learn(cloud, version="v0.2", circuit=None, backend="sandbox_noisy", **options):
    params = {"schema_version": version, "instructions": encoded(circuit or boxes()), "options": options}
    return cloud.run(program="noise-learner", params=params, backend=backend)


def floats(tensor):
    return np.frombuffer(base64.b64decode(tensor["data"]), "<f8").reshape(tensor["shape"])


def as_map(layer):
    """The learned noise as qiskit's own channel, as the client builds it."""
    rates = floats(layer["rates"])
    terms = [
        (letters, places, rate)
        for generator, rate in zip(layer["generators_sparse"], rates, strict=True)
        for letters, places in generator
    ]
    return PauliLindbladMap.from_sparse_list(terms, layer["num_qubits"])


@pytest.mark.parametrize("version", VERSIONS)
def test_it_learns_the_noise_that_the_simulation_has(cloud, fast, version):
    result = learn(cloud, version)
    assert result["schema_version"] == version
    gates, readout = result["data"]
    assert gates["metadata"]["learning_protocol"] == "lindblad"
    assert readout["metadata"]["learning_protocol"] == "trex"
    learned = as_map(gates)
    assert learned.num_qubits == 3
    # Each Pauli on each of three qubits, and the nine on the pair with the gate.
    assert len(learned) == 9 + 9
    # The fidelity of ZZ under a depolarising gate of 0.7 %, twirled by single-qubit gates.
    fidelity = math.exp(-2 * sum(rate for letters, places, rate in learned.to_sparse_list() if _flips(letters, places)))
    assert fidelity == pytest.approx(1 - 0.007, abs=0.002)
    flips = as_map(readout)
    assert len(flips) == 3
    for _, _, rate in flips.to_sparse_list():
        assert (1 - math.exp(-2 * rate)) / 2 == pytest.approx(0.01, abs=0.002)


def _flips(letters, places):
    """Whether a Pauli anticommutes with ZZ on qubits 0 and 1."""
    return sum(letter in "XY" and place in (0, 1) for letter, place in zip(letters, places, strict=True)) % 2 == 1


def test_there_is_no_noise_to_learn_on_the_ideal_backend(cloud, fast):
    for layer in learn(cloud, backend="sandbox_ideal")["data"]:
        assert not floats(layer["rates"]).any()


def test_the_scatter_shrinks_with_the_shots_and_is_seeded(cloud, fast):
    few, many = (learn(cloud, num_randomizations=count)["data"][0] for count in (2, 2000))
    assert (floats(few["rates_std"]) > 10 * floats(many["rates_std"])).all()
    assert floats(few["rates"]) != pytest.approx(floats(many["rates"]), rel=1e-6)


def test_annotated_boxes_are_read(cloud, fast):
    circuit = QuantumCircuit(2)
    with circuit.box([samplomatic.Twirl(), samplomatic.InjectNoise("ref")]):
        circuit.cz(0, 1)
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer, version=17, annotation_factories={"samplomatic": _Names})
    sent = {"circuit_b64": base64.b64encode(buffer.getvalue()).decode(), "qpy_version": 17}
    params = {"schema_version": "v0.3", "instructions": sent, "options": {}}
    assert len(cloud.run(program="noise-learner", params=params)["data"]) == 1


def test_only_boxes_are_learned(cloud, fast):
    circuit = QuantumCircuit(1)
    circuit.x(0)
    params = {"schema_version": "v0.1", "instructions": encoded(circuit), "options": {}}
    job = cloud.control.wait_job(cloud.job_id(program="noise-learner", params=params))
    assert job["status"] == "Failed"
    assert "must be a box" in job["reason"]


def test_unknown_versions_are_refused(cloud):
    params = {"schema_version": "v1.0", "instructions": encoded(boxes()), "options": {}}
    answer = cloud.submit(program="noise-learner", params=params)
    assert code(answer) == (400, 1208)
    assert "v0.1, v0.2, v0.3" in answer.json()["errors"][0]["message"]


def test_the_first_noise_learner_learns_the_layers_of_circuits(cloud, fast):
    text = (
        'OPENQASM 3.0; include "stdgates.inc"; qubit[4] q; cz q[0], q[1]; cz q[2], q[3]; cz q[1], q[2]; h q[0];'
        " barrier q; cz q[0], q[1]; cz q[2], q[3];"
    )
    result = cloud.run(program="noise-learner", params={"circuits": [text], "options": {"max_layers_to_learn": 1}})
    assert result["metadata"]["backend"] == "sandbox_ideal"
    assert result["metadata"]["input_options"]["max_layers_to_learn"] == 1
    (layer,) = result["data"]
    assert layer["__class__"] == "LayerError"
    assert layer["__value__"]["qubits"] == [0, 1, 2, 3]
    labels = layer["__value__"]["error"]["__value__"]["generators"]["__value__"]["data"]
    assert len(labels) == len(set(labels)) == 12 + 18
    assert "IIZZ" in labels
    assert "IZZI" not in labels


@pytest.mark.parametrize(
    ("strategy", "learned"),
    [
        ("active", [[0, 1], [1, 2]]),
        ("active-accum", [[0, 1], [0, 1, 2], [0, 1, 2]]),
        ("active-circuit", [[0, 1], [0, 1, 2], [0, 1, 2]]),
        ("all", [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_the_twirling_strategy_decides_which_qubits_are_learned(cloud, fast, strategy, learned):
    head = 'OPENQASM 3.0; include "stdgates.inc"; qubit[4] q; '
    texts = [head + "cz q[0], q[1];", head + "cz q[0], q[1]; cz q[1], q[2]; cz q[0], q[1];"]
    options = {"max_layers_to_learn": 9, "twirling_strategy": strategy}
    result = cloud.run(program="noise-learner", params={"circuits": texts, "options": options})
    assert sorted(layer["__value__"]["qubits"] for layer in result["data"]) == learned


def test_calibrate_runs_in_a_session(cloud, fast):
    params = {"schema_version": "v0.1", "options": {}}
    session = cloud("POST", "/sessions", json={"mode": "dedicated", "backend": "sandbox_ideal"}).json()["id"]
    job_id = cloud.job_id(program="calibrate", params=params, session_id=session, loose=True)
    cloud.control.wait_job(job_id)
    result = cloud("GET", f"/jobs/{job_id}/results").json()
    assert result["schema_version"] == "v0.1"
    assert result["start"] <= result["stop"]
    batch = cloud("POST", "/sessions", json={"mode": "batch", "backend": "sandbox_ideal"}).json()["id"]
    for fields in ({}, {"session_id": batch}):
        assert code(cloud.submit(program="calibrate", params=params, **fields)) == (400, 1208)
    assert code(cloud.submit(program="calibrate", params={"schema_version": "v9", "options": {}})) == (400, 1208)


class _Names(QPYSerializer):
    """Serialises samplomatic's annotations in the form of IBM's schema package: the class's name first."""

    def dump_annotation(self, namespace, annotation):
        name = type(annotation).__name__.encode()
        return len(name).to_bytes(2, "big") + name + bytes(24)

    def load_annotation(self, payload):
        raise NotImplementedError
