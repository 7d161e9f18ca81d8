"""The program `executor` with circuit items, in the versions the OpenAPI document has."""

import base64
import io
import math

import numpy as np
import pytest
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import ParameterVector

from .conftest import code


def tensor(values):
    array = np.asarray(values, dtype="<f8")
    return {"data": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape), "dtype": "f64"}


def bits(tensor):
    raw = np.frombuffer(base64.b64decode(tensor["data"]), np.uint8)
    assert tensor["dtype"] == "bool"
    count = math.prod(tensor["shape"])
    assert len(raw) == -(-count // 8)
    return np.unpackbits(raw, bitorder="little")[:count].reshape(tensor["shape"])


def item(circuit, values=(), **fields):
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer, version=17)
    encoded = {"circuit_b64": base64.b64encode(buffer.getvalue()).decode(), "qpy_version": 17}
    return {"item_type": "circuit", "circuit": encoded, "circuit_arguments": tensor(values), **fields}


def program(*items, shots=50, version="v0.2", **fields):
    return {
        "schema_version": version,
        "quantum_program": {"shots": shots, "items": list(items), **fields},
        "options": {"init_qubits": True, "rep_delay": None},
    }


def turned():
    angle = ParameterVector("angle", 2)
    circuit = QuantumCircuit(2, 2)
    circuit.rx(angle[0], 0)
    circuit.rx(angle[1], 1)
    circuit.measure([0, 1], [0, 1])
    return circuit


@pytest.mark.parametrize("version", ["v0.1", "v0.2"])
def test_bits_of_every_register(cloud, fast, version):
    circuit = QuantumCircuit(11, 10)
    circuit.x([0, 9])
    circuit.measure(range(10), range(10))
    circuit.measure_all()
    result = cloud.run(program="executor", params=program(item(circuit), version=version))
    assert result["schema_version"] == version
    found = {name: bits(one) for name, one in result["data"][0]["results"].items()}
    assert found["c"].shape == (50, 10)
    assert found["meas"].shape == (50, 11)
    assert (found["c"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]).all()
    assert (found["meas"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]).all()
    (chunk,) = result["metadata"]["chunk_timing"]
    assert chunk["parts"] == [{"idx_item": 0, "size": 1}]


def test_items_have_shapes_of_their_own_and_data_passes_through(cloud, fast):
    pi = math.pi
    params = program(
        item(turned(), [[[0, 0], [pi, 0], [0, pi]], [[pi, pi], [0, 0], [pi, 0]]]),
        item(turned(), [pi, 0], chunk_size="auto"),
        passthrough_data={"mine": [1, "two", None]},
    )
    result = cloud.run(program="executor", params=params)
    first, second = (bits(one["results"]["c"]) for one in result["data"])
    assert first.shape == (2, 3, 50, 2)
    expected = np.array([[[0, 0], [1, 0], [0, 1]], [[1, 1], [0, 0], [1, 0]]])
    assert (first == expected[:, :, np.newaxis, :]).all()
    assert (second == [1, 0]).all()
    assert [part["size"] for part in result["metadata"]["chunk_timing"][0]["parts"]] == [6, 1]
    assert result["passthrough_data"] == {"mine": [1, "two", None]}


def test_shots_are_random(cloud, fast):
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.measure_all()
    data = cloud.run(program="executor", params=program(item(circuit), item(circuit), shots=4000))["data"]
    first, second = (bits(one["results"]["meas"]) for one in data)
    assert abs(first.mean() - 0.5) < 0.04
    assert (first != second).any()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"quantum_program": {}, "options": {}},
        {"quantum_program": {"shots": 1, "items": []}, "options": {}},
        program({"circuit_arguments": tensor([])}),
        program(item(turned()), shots=0),
        program(item(turned()), version="v9"),
        program(item(turned(), item_type="samplex")),
        program(item(turned()), version="v2.0"),
        program(item(turned()), meas_level="loud"),
    ],
)
def test_params_are_checked(cloud, params):
    assert code(cloud.submit(program="executor", params=params)) == (400, 1208)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (program(item(turned(), [1.0])), "must have 2 values"),
        (program(item(turned(), np.zeros((0, 2)))), "no point"),
        (program(item(turned(), [1.0, 2.0], circuit_arguments={"data": "AAAA", "shape": [2]})), "does not fit"),
        (program(item(turned(), [1.0, 2.0], circuit_arguments={"data": "@", "shape": [2]})), "could not be decoded"),
        (program({**item(turned()), "circuit": {"circuit_b64": "AAAA", "qpy_version": 13}}), "QPY"),
        (program(item(turned(), [1.0, 2.0]), meas_level="kerneled"), "classified"),
        (program(item(turned(), [1.0, 2.0]), shots=10**8), "too many shots"),
        (program(item(QuantumCircuit(1))), "no classical bits"),
        (program(item(QuantumCircuit(40, 1))), "40 qubits"),
    ],
)
def test_input_that_cannot_be_run_fails_the_job(cloud, fast, params, words):
    job = cloud.control.wait_job(cloud.job_id(program="executor", params=params))
    assert job["status"] == "Failed"
    assert words in cloud("GET", f"/jobs/{job['id']}").json()["state"]["reason"]
