"""The program `executor` in all versions of its schema: circuit items and samplex items, QPY and OpenQASM 3."""

import base64
import io
import math
import zlib
from datetime import datetime

import numpy as np
import pytest
import samplomatic
from qiskit import QuantumCircuit, qasm3, qpy
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import PauliLindbladMap
from samplomatic.serialization import samplex_to_json

from prefect_qruntime.sandbox.executor import schedule
from tests.support.sandbox_api import code

VERSIONS = ["v0.1", "v0.2", "v1.0", "v1.1", "v2.0"]
TYPES = {"f64": "<f8", "u8": "|u1", "c128": "<c16"}


def encoded(data, version):
    return base64.b64encode(zlib.compress(data) if version == "v2.0" else data).decode()


def tensor(values, version="v0.2"):
    array = np.asarray(values)
    if array.dtype == bool:
        return {
            "data": encoded(np.packbits(array, bitorder="little").tobytes(), version),
            "shape": list(array.shape),
            "dtype": "bool",
        }
    array = array.astype("<f8")
    return {"data": encoded(array.tobytes(), version), "shape": list(array.shape), "dtype": "f64"}


def values(tensor, version="v0.2"):
    raw = base64.b64decode(tensor["data"])
    if version == "v2.0":
        raw = zlib.decompress(raw)
    if tensor["dtype"] != "bool":
        return np.frombuffer(raw, TYPES[tensor["dtype"]]).reshape(tensor["shape"])
    count = math.prod(tensor["shape"])
    assert len(raw) == -(-count // 8)
    return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:count].reshape(tensor["shape"])


def bits(tensor):
    assert tensor["dtype"] == "bool"
    return values(tensor)


def qpy_bytes(circuits):
    buffer = io.BytesIO()
    qpy.dump(circuits, buffer, version=17)
    return buffer.getvalue()


def item(circuit, values=(), **fields):
    data = base64.b64encode(qpy_bytes(circuit)).decode()
    found = {"circuit_b64": data, "qpy_version": 17}
    return {"item_type": "circuit", "circuit": found, "circuit_arguments": tensor(values), **fields}


def program(*items, shots=50, version="v0.2", options=None, **fields):
    return {
        "schema_version": version,
        "quantum_program": {"shots": shots, "items": list(items), **fields},
        "options": {"init_qubits": True, "rep_delay": None, **(options or {})},
    }


def build(version, *parts, form="qpy", **fields):
    """A program of (circuit, item) pairs in any version; the items' tensors must be of that version."""
    circuits = [circuit for circuit, _ in parts]
    items = [one for _, one in parts]
    if version in ("v0.1", "v0.2"):
        for circuit, one in parts:
            one["circuit"] = {"circuit_b64": base64.b64encode(qpy_bytes(circuit)).decode(), "qpy_version": 17}
    elif form == "qasm":
        fields.setdefault("circuits", {"data": [qasm3.dumps(circuit) for circuit in circuits]})
    else:
        data = encoded(qpy_bytes(circuits), version)
        fields.setdefault("circuits", {"b64_data": data, "qpy_version": 17, "num_programs": len(circuits)})
    return program(*items, version=version, **fields)


def simple(version, values=(), shape=(), **fields):
    found = {"item_type": "circuit", "circuit_arguments": tensor(values, version), **fields}
    return found if version in ("v0.1", "v0.2") else {**found, "shape": list(shape)}


def _samplex():
    circuit = QuantumCircuit(1, 1)
    with circuit.box([samplomatic.Twirl()]):
        circuit.measure(0, 0)
    return samplex_to_json(samplomatic.build(circuit)[1], ssv=1)


SAMPLEX = _samplex()


def twirled(version, *, shape, arguments=None, noise=False):
    """A pair of circuit and samplex item: measured and gate-twirled, with a parameter."""
    angle = Parameter("angle")
    circuit = QuantumCircuit(2, 2)
    annotations = [samplomatic.Twirl()]
    if noise:
        annotations.append(samplomatic.InjectNoise("noise"))
    with circuit.box(annotations):
        circuit.rx(angle, 0)
        circuit.cz(0, 1)
    with circuit.box([samplomatic.Twirl()]):
        circuit.measure([0, 1], [0, 1])
    template, samplex = samplomatic.build(circuit)
    text = samplex_to_json(samplex, ssv=1)
    found = {
        "item_type": "samplex",
        "samplex": {"ssv": 1, "samplex_json": text},
        "samplex_arguments": {"parameter_values": tensor([math.pi], version), **(arguments or {})},
        "shape": list(shape),
    }
    return template, found


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
    assert result["data"][0]["metadata"] == (None if version == "v0.1" else {})


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
    assert [part["size"] for chunk in result["metadata"]["chunk_timing"] for part in chunk["parts"]] == [6, 1]
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
        program(item(turned()), meas_level="both"),
        build("v1.1", (turned(), simple("v0.2", [1, 2]))),
        build("v1.1", (turned(), simple("v1.1", [1, 2])), meas_level="loud"),
        build("v2.0", (turned(), simple("v2.0", [1, 2], chunk_size=0))),
        build("v2.0", (turned(), simple("v2.0", [1, 2], chunk_size=1)), (turned(), simple("v2.0", [1, 2]))),
        {**build("v2.0", (turned(), simple("v2.0", [1, 2]))), "schema_version": "v3.0"},
        build("v2.0", (turned(), simple("v2.0", [1, 2])), circuits={"data": []}),
        build("v2.0", (turned(), simple("v2.0", [1, 2])), form="qasm", semantic_role=7),
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
        (program(item(turned(), [1.0, 2.0]), shots=10**8), "too many shots"),
        (program(item(QuantumCircuit(1))), "no classical bits"),
        (program(item(QuantumCircuit(40, 1))), "40 qubits"),
    ],
)
def test_input_that_cannot_be_run_fails_the_job(cloud, fast, params, words):
    job = cloud.control.wait_job(cloud.job_id(program="executor", params=params))
    assert job["status"] == "Failed"
    assert words in cloud("GET", f"/jobs/{job['id']}").json()["state"]["reason"]


@pytest.mark.parametrize("version", [None, "v0.0", "v0.3", "v1.2", "v2.1", 2, "2.0", ""])
def test_unknown_versions_are_refused_by_name(cloud, version):
    params = {**build("v2.0", (turned(), simple("v2.0", [1, 2]))), "schema_version": version}
    answer = cloud.submit(program="executor", params=params)
    assert code(answer) == (400, 1208)
    assert "schema_version must be one of v0.1, v0.2, v1.0, v1.1, v2.0" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            program({**item(turned(), [1.0, 2.0]), "circuit": {**item(turned())["circuit"], "qpy_version": 16}}),
            "QPY 17",
        ),
        (
            build(
                "v1.1",
                (turned(), simple("v1.1", [1, 2])),
                circuits={"b64_data": encoded(qpy_bytes(turned()), "v1.1"), "qpy_version": 16, "num_programs": 1},
            ),
            "QPY 17",
        ),
        (
            build(
                "v2.0",
                (turned(), simple("v2.0", [1, 2])),
                circuits={"b64_data": encoded(qpy_bytes([turned()] * 2), "v2.0"), "qpy_version": 17, "num_programs": 1},
            ),
            "2 circuits, not 1",
        ),
    ],
)
def test_what_is_declared_of_the_data_must_be_so(cloud, fast, params, words):
    job = cloud.control.wait_job(cloud.job_id(program="executor", params=params, loose=True))
    assert job["status"] == "Failed"
    assert words in job["reason"]


def run(cloud, params):
    """Run params that the document need not know."""
    job = cloud.control.wait_job(cloud.job_id(program="executor", params=params, loose=True))
    answer = cloud("GET", f"/jobs/{job['id']}/results")
    assert job["status"] == "Completed", answer.text
    return answer.json()


@pytest.mark.parametrize(("version", "form"), [*((version, "qpy") for version in VERSIONS), ("v2.0", "qasm")])
def test_circuit_items_in_every_version(cloud, fast, version, form):
    pi = math.pi
    first, second = (turned(), simple(version, [[0, 0], [pi, 0], [0, pi]])), (turned(), simple(version, [pi, pi]))
    result = run(cloud, build(version, first, second, form=form, shots=7))
    assert result["schema_version"] == version
    one, two = (values(found["results"]["c"], version) for found in result["data"])
    assert one.shape == (3, 7, 2)
    assert (one == np.array([[0, 0], [1, 0], [0, 1]])[:, np.newaxis]).all()
    assert two.shape == (7, 2)
    assert two.all()


def test_a_shape_beyond_that_of_the_arguments_repeats(cloud, fast):
    halves = [[[math.pi / 2, 0], [math.pi, 0]]]
    result = run(cloud, build("v2.0", (turned(), simple("v2.0", halves, shape=(5, 2))), shots=400))
    found = values(result["data"][0]["results"]["c"], "v2.0")
    assert found.shape == (5, 2, 400, 2)
    assert found[:, 1, :, 0].all()
    assert (abs(found[:, 0, :, 0].mean(axis=1) - 0.5) < 0.15).all()
    assert len({row.tobytes() for row in found[:, 0]}) == 5
    job = cloud.job_id(
        program="executor", loose=True, params=build("v2.0", (turned(), simple("v2.0", halves, shape=(5, 3))))
    )
    assert "does not extend" in cloud.control.wait_job(job)["reason"]


@pytest.mark.parametrize("version", ["v0.2", "v1.0", "v2.0"])
def test_measurement_levels(cloud, fast, version):
    arguments = [[math.pi, 0], [0, math.pi]]
    expected = np.array([[1, -1], [-1, 1]])
    part = (turned(), simple(version, arguments))
    found = run(cloud, build(version, part, meas_level="kerneled", shots=300))["data"][0]["results"]
    assert list(found) == ["c_iq"]
    points = values(found["c_iq"], version)
    assert points.shape == (2, 300, 2)
    assert (np.sign(points.real) == expected[:, np.newaxis]).mean() > 0.99
    found = run(cloud, build(version, part, meas_level="avg_kerneled", shots=300))["data"][0]["results"]
    assert list(found) == ["c_avg_iq"]
    assert values(found["c_avg_iq"], version) == pytest.approx(expected, abs=0.1)
    if version == "v0.2":
        return
    found = run(cloud, build(version, part, meas_level="both", shots=300))["data"][0]["results"]
    assert sorted(found) == ["c", "c_iq"]
    assert ((values(found["c_iq"], version).real > 0) == values(found["c"], version)).mean() > 0.99


@pytest.mark.parametrize("version", VERSIONS)
def test_samplex_items_in_every_version(cloud, fast, version):
    result = run(cloud, build(version, twirled(version, shape=(6,)), shots=9))
    found = {name: values(one, version) for name, one in result["data"][0]["results"].items()}
    assert sorted(found) == ["c", "measurement_flips.c"]
    assert found["c"].shape == (6, 9, 2)
    flips = found["measurement_flips.c"]
    assert flips.shape == (6, 1, 2)
    # Undone, the flips leave what the circuit does; and they differ between the randomizations.
    assert ((found["c"] ^ flips) == [1, 0]).all()
    assert len({row.tobytes() for row in flips}) > 1


@pytest.mark.parametrize("version", VERSIONS)
def test_a_samplex_without_parameters(cloud, fast, version):
    circuit = QuantumCircuit(1, 1)
    circuit.x(0)
    circuit.measure(0, 0)
    template, samplex = samplomatic.build(circuit)
    part = {
        "item_type": "samplex",
        "samplex": {"ssv": 1, "samplex_json": samplex_to_json(samplex, ssv=1)},
        "samplex_arguments": {},
        "shape": [3],
    }
    found = run(cloud, build(version, (template, part), shots=5))["data"][0]["results"]
    assert values(found["c"], version).tolist() == [[[True]] * 5] * 3


def test_samplex_arguments_and_randomizations_have_axes_of_their_own(cloud, fast):
    pi, version = math.pi, "v2.0"
    arguments = {"parameter_values": tensor([[[0.0]], [[pi]], [[0.0]]], version)}
    part = twirled(version, shape=(4, 3, 5), arguments=arguments)
    found = run(cloud, build(version, part, shots=8))["data"][0]["results"]
    undone = values(found["c"], version) ^ values(found["measurement_flips.c"], version)
    assert undone.shape == (4, 3, 5, 8, 2)
    assert (undone[..., 0] == np.array([0, 1, 0])[:, np.newaxis, np.newaxis]).all()


def test_noise_that_a_samplex_injects(cloud, fast):
    noise = {"sparse_terms": [["X", [0], 100.0]], "num_qubits": 2}
    assert PauliLindbladMap.from_sparse_list([("X", [0], 100.0)], 2)
    arguments = {"pauli_lindblad_maps.noise": noise}
    part = twirled("v1.1", shape=(200,), arguments=arguments, noise=True)
    found = run(cloud, build("v1.1", part, shots=1))["data"][0]["results"]
    undone = values(found["c"]) ^ values(found["measurement_flips.c"])
    # Half of the time the bit is flipped at this rate.
    assert abs(undone[:, 0, 0].mean() - 0.5) < 0.18
    assert not undone[:, 0, 1].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samplex": {"ssv": 1, "samplex_json": "{}"}}, "samplex or its arguments"),
        ({"samplex": {"ssv": 2, "samplex_json": SAMPLEX}}, "the samplex is of version 1"),
        ({"samplex_arguments": {}}, "lacks arguments"),
        ({"samplex_arguments": {"parameter_values": tensor([1.0, 2.0], "v1.0")}}, "samplex or its arguments"),
        ({"shape": [0]}, "no point"),
    ],
)
def test_a_samplex_that_cannot_be_used_fails_the_job(cloud, fast, change, words):
    template, part = twirled("v1.0", shape=(2,))
    job_id = cloud.job_id(program="executor", loose=True, params=build("v1.0", (template, {**part, **change})))
    job = cloud.control.wait_job(job_id)
    assert job["status"] == "Failed"
    assert words in job["reason"]


def test_chunks_cover_every_point_within_the_run_of_the_job(cloud, fast):
    fast.control.set_times(queue_time=0, run_time=2)
    fast.control.set_clock_scale(20)
    parts = [(turned(), simple("v2.0", np.zeros((size, 2)), chunk_size=chunk)) for size, chunk in ((10, 4), (3, 7))]
    job_id = cloud.job_id(program="executor", params=build("v2.0", *parts, shots=2), loose=True)
    job = cloud.control.wait_job(job_id)
    timing = cloud("GET", f"/jobs/{job_id}/results").json()["metadata"]["chunk_timing"]
    assert [one["parts"][0]["element_range"] for one in timing] == [[0, 4, 1], [4, 8, 1], [8, 10, 1], [0, 3, 1]]
    assert [one["parts"][0]["size"] for one in timing] == [4, 4, 2, 3]
    assert {tuple(one["parts"][0]["permutation"]) for one in timing} == {(0,)}
    moments = [datetime.fromisoformat(one[name]).timestamp() for one in timing for name in ("start", "stop")]
    assert moments == sorted(moments)
    assert moments[0] == pytest.approx(job["started"], abs=0.002)
    assert moments[-1] == pytest.approx(job["started"] + 2, abs=0.002)


def test_timing_and_stretches_are_returned_on_request(cloud, fast):
    options = {"scheduler_timing": True, "stretch_values": True}
    circuit = turned()
    circuit.delay(circuit.add_stretch("wait"), 0)
    part = (circuit, simple("v2.0", [1, 2]))
    metadata = run(cloud, build("v2.0", part, options=options))["data"][0]["metadata"]
    assert metadata["scheduler_timing"] == schedule(circuit)
    assert metadata["scheduler_timing"]["circuit_duration"] > 4000
    assert [one["name"] for one in metadata["stretch_values"]] == ["wait"]
