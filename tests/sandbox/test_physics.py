"""What comes out: shots and expectation values, plain and encoded, ideal and noisy."""

import base64
import io
import math
import time
import zlib
from collections import Counter
from datetime import datetime

import numpy as np
import pytest
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import Gate, ParameterVector
from qiskit.circuit.classical import expr
from qiskit.circuit.library import get_standard_gate_name_mapping

from prefect_qruntime.sandbox import Sandbox, aer, circuits
from prefect_qruntime.sandbox.encoding import InputError
from tests.support.sandbox_api import BELL, BELL_STATE, Api

GHZ = (
    'OPENQASM 3.0; include "stdgates.inc"; qubit[5] q; bit[5] c; h q[0];'
    "cx q[0], q[1]; cx q[1], q[2]; cx q[2], q[3]; cx q[3], q[4]; c = measure q;"
)
GHZ_2 = (
    'OPENQASM 2.0; include "qelib1.inc"; qreg q[5]; creg c[5]; h q[0];'
    "cx q[0],q[1]; cx q[1],q[2]; cx q[2],q[3]; cx q[3],q[4]; measure q -> c;"
)
RX = (
    'OPENQASM 3.0; include "stdgates.inc"; input float[64] theta; qubit[1] q; bit[1] c;'
    "rx(theta) q[0]; c[0] = measure q[0];"
)
RX_STATE = 'OPENQASM 3.0; include "stdgates.inc"; input float[64] theta; qubit[1] q; rx(theta) q[0];'
TWO_REGISTERS = (
    'OPENQASM 3.0; include "stdgates.inc"; qubit[3] q; bit[1] first; bit[2] second;'
    "x q[0]; x q[2]; first[0] = measure q[0]; second[0] = measure q[1]; second[1] = measure q[2];"
)
TELEPORT = (
    'OPENQASM 3.0; include "stdgates.inc"; qubit[3] q; bit[2] m; bit[1] out;'
    "x q[0]; h q[1]; cx q[1], q[2]; cx q[0], q[1]; h q[0]; m[0] = measure q[0]; m[1] = measure q[1];"
    "if (m[1] == 1) { x q[2]; } if (m[0]) { z q[2]; } out[0] = measure q[2];"
)
RESET = (
    'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg a[1]; creg b[1];'
    "x q[0]; measure q[0] -> a[0]; reset q[0]; measure q[0] -> b[0]; if (a == 1) x q[0];"
)


def encode_circuit(circuit):
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer, version=min(17, qpy.QPY_VERSION))
    text = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    return {"__type__": "QuantumCircuit", "__value__": text}


def encode_array(values):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, dtype=float), allow_pickle=False)
    return {"__type__": "ndarray", "__value__": base64.b64encode(zlib.compress(buffer.getvalue())).decode()}


def decode_array(value):
    assert value["__type__"] == "ndarray"
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(value["__value__"]))), allow_pickle=False)


def shares(samples):
    counts = Counter(samples)
    return {key: count / len(samples) for key, count in counts.items()}


def pub_data(result, pub=0):
    return result["results"][pub]["data"]


@pytest.mark.parametrize("text", [GHZ, GHZ_2])
def test_ghz_on_ideal_is_only_all_or_nothing(cloud, fast, text):
    data = pub_data(cloud.run([[text, None, 2000]]))["c"]
    found = shares(data["samples"])
    assert data["num_bits"] == 5
    assert set(found) == {"0x0", "0x1f"}
    assert abs(found["0x0"] - 0.5) < 0.06


@pytest.mark.parametrize(("text", "right"), [(BELL, 0.97), (GHZ, 0.92)])
def test_noise_is_a_few_percent(cloud, fast, text, right):
    samples = pub_data(cloud.run([[text, None, 8000]], backend="sandbox_noisy"))["c"]["samples"]
    found = shares(samples)
    ones = "0x3" if text is BELL else "0x1f"
    good = found["0x0"] + found[ones]
    assert right - 0.025 < good < right + 0.02


def test_shots_of_pub_job_options_and_default(cloud, fast):
    params = {"pubs": [[BELL, None, 7], [BELL], BELL], "shots": 9, "options": {"default_shots": 11}}
    result = cloud.run(params=params)
    assert [len(pub_data(result, n)["c"]["samples"]) for n in range(3)] == [7, 9, 9]
    del params["shots"]
    assert len(pub_data(cloud.run(params=params), 2)["c"]["samples"]) == 11
    assert len(pub_data(cloud.run(params={"pubs": [BELL]}))["c"]["samples"]) == 4096


@pytest.mark.parametrize("values", [[math.pi], {"theta": math.pi}, {"theta": [math.pi]}, [[math.pi]]])
def test_parameters_as_list_and_dict(cloud, fast, values):
    samples = pub_data(cloud.run([[RX, values, 10]]))["c"]["samples"]
    while isinstance(samples[0], list):
        (samples,) = samples
    assert samples == ["0x1"] * 10


def test_results_are_nested_by_the_shape_of_the_pub(cloud, fast):
    values = {"theta": [[0.0, math.pi, 0.0], [math.pi, 0.0, math.pi]]}
    samples = pub_data(cloud.run([[RX, values, 4]]))["c"]["samples"]
    assert [[set(shots) for shots in row] for row in samples] == [
        [{"0x0"}, {"0x1"}, {"0x0"}],
        [{"0x1"}, {"0x0"}, {"0x1"}],
    ]
    assert {len(shots) for row in samples for shots in row} == {4}


def test_points_of_a_sweep_have_shots_of_their_own(cloud, fast):
    values = [[math.pi / 2]] * 2
    first, second = pub_data(cloud.run([[RX, values, 64]]))["c"]["samples"]
    assert first != second


def test_several_registers(cloud, fast):
    data = pub_data(cloud.run([[TWO_REGISTERS, None, 5]]))
    assert data == {
        "first": {"samples": ["0x1"] * 5, "num_bits": 1},
        "second": {"samples": ["0x2"] * 5, "num_bits": 2},
    }


def test_measurement_in_the_middle_conditionals_and_reset(cloud, fast):
    result = cloud.run([[TELEPORT, None, 200], [RESET, None, 20]])
    data = pub_data(result)
    assert set(data["out"]["samples"]) == {"0x1"}
    assert len(set(data["m"]["samples"])) == 4
    data = pub_data(result, 1)
    assert (set(data["a"]["samples"]), set(data["b"]["samples"])) == ({"0x1"}, {"0x0"})


def test_wide_circuit_with_physical_qubits_runs_on_its_active_ones(cloud, fast):
    text = (
        'OPENQASM 3.0; include "stdgates.inc"; bit[2] c; x $20; barrier $0, $20, $26;'
        "c[0] = measure $20; c[1] = measure $26;"
    )
    samples = pub_data(cloud.run([[text, None, 5]], backend="sandbox_noisy"))["c"]["samples"]
    assert len(samples) == 5
    circuit = QuantumCircuit(27, 2)
    circuit.x(20)
    circuit.delay(100, range(27))
    circuit.measure([20, 26], [0, 1])
    params = {"pubs": [[encode_circuit(circuit), None, 50]], "support_qiskit": False}
    assert "0x1" in pub_data(cloud.run(params=params, backend="sandbox_noisy"))["c"]["samples"]


@pytest.mark.parametrize("condition", ["", "if (c[29] == 1) { x q[7]; }"])
def test_parts_of_a_wide_circuit_that_nothing_connects_keep_their_bits(cloud, fast, condition):
    """Qubits 0 and 29 are entangled, 7 is turned over, 3 may be either; the bits are in reverse order."""
    gates = "h q[0]; t q[0]; cx q[0], q[29]; x q[7]; h q[3]; t q[3];" + "".join(f" id q[{n}];" for n in range(30))
    measured = "".join(f"c[{29 - n}] = measure q[{n}]; " for n in (0, *range(1, 30)))
    text = f'OPENQASM 3.0; include "stdgates.inc"; qubit[30] q; bit[30] c; {gates} barrier q; {measured} {condition}'
    samples = cloud.run([[text, None, 60]])["results"][0]["data"]["c"]["samples"]
    values = [int(sample, 16) for sample in samples]
    ends, middle = 1 << 29 | 1, 1 << 26
    assert {value & ~middle for value in values} == {1 << 22, 1 << 22 | ends}
    assert {value & middle for value in values} == {0, middle}
    assert len(set(values)) == 4


def test_gates_without_a_name_in_the_simulator_are_translated(cloud, fast):
    text = (
        'OPENQASM 2.0; include "qelib1.inc"; gate twice a { x a; x a; x a; } qreg q[3]; creg c[3];'
        "twice q[0]; twice q[1]; ccx q[0],q[1],q[2]; measure q -> c;"
    )
    assert set(pub_data(cloud.run([[text, None, 5]]))["c"]["samples"]) == {"0x7"}


@pytest.mark.parametrize("noisy", [False, True], ids=["ideal", "noisy"])
@pytest.mark.parametrize("width", [2, 12, 26])
def test_every_standard_gate_of_one_and_two_qubits_runs_by_each_method(width, noisy):
    for name, gate in get_standard_gate_name_mapping().items():
        if not isinstance(gate, Gate) or gate.num_qubits not in (1, 2):
            continue
        circuit = QuantumCircuit(width)
        circuit.t(0)  # else Clifford gates run by another method
        for place in range(width - 1):
            circuit.cx(place, place + 1)
        circuit.append(type(gate)(*[0.3] * len(gate.params)), range(gate.num_qubits))
        reduced, _ = circuits.compact(circuit, frozenset(range(width)))
        try:
            (values,) = aer.expectations([reduced], ["I" * (width - 1) + "Z"], 1, 1, noisy=noisy)
            reduced.measure_all()
            (shots,) = aer.memory([reduced], 1, 1, noisy=noisy)
        except InputError as error:
            pytest.fail(f"{name}: {error}")
        assert len(values) == len(shots) == 1


def _leaving(jump, body, loop):
    """A loop that is left, or whose round ends, at once, between two measurements of a qubit that is 1."""
    circuit = QuantumCircuit(3, 2)
    circuit.x([0, 1, 2])
    circuit.measure(0, 0)
    with circuit.while_loop((circuit.clbits[0], 1)) if loop == "while" else circuit.for_loop(range(2)):
        if body == "gate":
            circuit.ccx(0, 1, 2)  # no gate that the simulator knows
            circuit.measure(1, 0)
        if body == "if":
            with circuit.if_test((circuit.clbits[0], 1)):
                getattr(circuit, jump)()
        else:
            getattr(circuit, jump)()
        circuit.x(1)
    circuit.measure(1, 1)
    return circuit


def test_what_follows_a_loop_that_is_left_is_run(cloud, fast):
    loops = [("for", "break_loop"), ("for", "continue_loop"), ("while", "break_loop")]
    circuits = [_leaving(jump, body, loop) for loop, jump in loops for body in ("", "gate", "if")]
    pubs = [[encode_circuit(circuit), None, 20] for circuit in circuits]
    results = cloud.run(pubs)["results"]
    assert [set(result["data"]["c"]["samples"]) for result in results] == [{"0x3"}] * len(circuits)


def test_estimator_on_a_bell_state(cloud, fast):
    observables = [{"ZZ": 1.0}, "XX", {"YY": 1.0}, {"ZI": 1.0}, {"ZZ": 2.0, "XX": 0.5}]
    result = cloud.run([[BELL_STATE, observables, None, 0.01]], program="estimator")
    data, metadata = pub_data(result), result["results"][0]["metadata"]
    assert data["evs"] == pytest.approx([1, 1, -1, 0, 2.5], abs=0.01)
    assert data["stds"] == pytest.approx([0, 0, 0, 0.01, 0], abs=1e-6)
    assert metadata["target_precision"] == 0.01
    assert metadata["shots"] == 10_000


def test_estimator_scalar_default_and_other_precisions(cloud, fast):
    result = cloud.run([[BELL_STATE, "IZ"]], program="estimator")
    assert isinstance(pub_data(result)["evs"], float)
    assert pub_data(result)["stds"] == pytest.approx(1 / 64)
    pubs = [[BELL_STATE, "IZ"], [BELL_STATE, "IZ", None, 0.5]]
    for extra, expected in (
        ({"precision": 0.1}, [0.1, 0.5]),
        ({"options": {"default_precision": 0.2}}, [0.2, 0.5]),
        ({"options": {"default_shots": 100}}, [0.1, 0.5]),
    ):
        result = cloud.run(program="estimator", params={"pubs": pubs, **extra})
        assert [pub_data(result, n)["stds"] for n in range(2)] == pytest.approx(expected)


def test_estimates_scatter_within_the_precision(cloud, fast):
    result = cloud.run([[BELL_STATE, ["ZI"] * 200, None, 0.05]], program="estimator")
    values = np.array(pub_data(result)["evs"])
    assert np.all(np.abs(values) <= 0.05)
    assert 0.015 < values.std() < 0.04


def test_observables_broadcast_against_parameters(cloud, fast):
    angles = [0.0, math.pi / 2, math.pi]
    pub = [RX_STATE, [["Z"], ["Y"]], {"theta": angles}, 0.001]
    values = pub_data(cloud.run([pub], program="estimator"))["evs"]
    assert np.shape(values) == (2, 3)
    assert values[0] == pytest.approx(np.cos(angles), abs=0.0011)
    assert values[1] == pytest.approx(-np.sin(angles), abs=0.0011)


def test_estimator_noise_and_readout_correction(cloud, fast):
    def value(level):
        params = {"pubs": [[BELL_STATE, "ZZ", None, 0.002]], "resilience_level": level}
        return pub_data(cloud.run(program="estimator", params=params, backend="sandbox_noisy"))["evs"]

    corrected, raw = value(1), value(0)
    assert 0.98 < corrected < 0.998
    assert raw == pytest.approx(corrected * 0.98**2, abs=0.004)


def test_estimator_ignores_final_measurements_and_finds_wide_observables(cloud, fast):
    assert pub_data(cloud.run([[BELL, "ZZ"]], program="estimator"))["evs"] == pytest.approx(1)
    circuit = QuantumCircuit(27)
    circuit.x(26)
    label = "Z" + "I" * 25 + "Z"
    params = {"pubs": [[encode_circuit(circuit), {label: 1.0}]]}
    result = cloud.run(program="estimator", params=params)
    assert pub_data(result)["evs"] == pytest.approx(-1)


def dynamic(kind):
    """A circuit whose qubits are in |+> at its end, without its last measurements."""
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    if kind == "if":
        circuit.measure(0, 0)
        with circuit.if_test((0, 1)):
            circuit.x(0)
        circuit.h(0)
    elif kind == "switch":
        circuit.measure(0, 1)
        with circuit.switch(circuit.cregs[0]) as case, case(2):
            circuit.x(0)
        circuit.h(0)
    elif kind == "for":
        with circuit.for_loop(range(2)):
            circuit.h(1)
    elif kind == "box":
        with circuit.box():
            circuit.x(0)
    elif kind == "variable":
        circuit.add_var("flag", expr.lift(True))
    elif kind == "stretch":
        circuit.delay(circuit.add_stretch("slack"), 1)
    circuit.h(1)
    return circuit


@pytest.mark.parametrize("kind", ["none", "if", "switch", "for", "box", "variable", "stretch"])
def test_estimator_ignores_final_measurements_of_dynamic_circuits(cloud, fast, kind):
    circuit = dynamic(kind)
    circuit.measure([0, 1], [0, 1])
    circuit.barrier()
    circuit.measure([1, 0], [0, 0])
    result = cloud.run(program="estimator", params={"pubs": [[encode_circuit(circuit), ["IX", "XI", "XX"]]]})
    assert pub_data(result)["evs"] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("kind", ["none", "if", "variable"])
def test_estimator_keeps_a_measurement_that_a_condition_reads(cloud, fast, kind):
    circuit = dynamic(kind)
    circuit.measure([0, 1], [0, 1])
    with circuit.if_test((1, 1)):
        circuit.x(0)
    circuit.h(0)
    circuit.measure(0, 0)
    params = {"pubs": [[encode_circuit(circuit), ["IX", "XI"], None, 0.01]]}
    assert pub_data(cloud.run(program="estimator", params=params))["evs"] == pytest.approx([0, 0], abs=0.1)


@pytest.mark.parametrize("kind", ["variable", "stretch"])
def test_estimator_takes_circuits_with_variables_that_no_block_reads(cloud, fast, kind):
    circuit = QuantumCircuit(2, 2)
    if kind == "variable":
        circuit.add_var("flag", expr.lift(True))
    else:
        circuit.delay(circuit.add_stretch("slack"), 1)
    circuit.x(0)
    circuit.measure([0, 1], [0, 1])
    params = {"pubs": [[encode_circuit(circuit), ["IZ", "ZI"]]]}
    assert pub_data(cloud.run(program="estimator", params=params))["evs"] == pytest.approx([-1, 1])


def test_encoded_sampler_result(cloud, fast):
    circuit = QuantumCircuit(10, 10)
    circuit.x([0, 9])
    circuit.measure(range(10), range(10))
    params = {"pubs": [[encode_circuit(circuit), encode_array([]), 3]], "support_qiskit": True, "version": 2}
    result = cloud.run(params=params)
    assert result["__type__"] == "PrimitiveResult"
    pub = result["__value__"]["pub_results"][0]
    assert pub["__type__"] == "SamplerPubResult"
    data = pub["__value__"]["data"]["__value__"]
    assert (data["field_names"], data["shape"]) == (["c"], [])
    bits = data["fields"]["c"]
    assert (bits["__type__"], bits["__value__"]["num_bits"]) == ("BitArray", 10)
    array = decode_array(bits["__value__"]["array"])
    assert (array.dtype, array.tolist()) == (np.uint8, [[2, 1]] * 3)


def test_encoded_sampler_results_say_when_each_pub_ran(cloud, fast):
    fast.control.set_times(queue_time=0, run_time=4)
    fast.control.set_clock_scale(20)
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    params = {
        "pubs": [[encode_circuit(circuit), None, 10], [encode_circuit(circuit), None, 30]],
        "support_qiskit": True,
    }
    result = cloud.run(params=params)
    spans = result["__value__"]["metadata"]["execution"]["execution_spans"]
    assert spans["__type__"] == "ExecutionSpans"
    found = [span["__value__"] for span in spans["__value__"]["spans"]]
    assert [span["data_slices"] for span in found] == [{"0": [[10], 0, 10]}, {"1": [[30], 0, 30]}]
    (job,) = cloud.control.jobs()
    moments = [
        datetime.fromisoformat(span[name]["__value__"]).timestamp() for span in found for name in ("start", "stop")
    ]
    assert moments == pytest.approx([job["started"] + share for share in (0, 1, 1, 4)], abs=0.001)


def test_encoded_parameters_and_estimator_result(cloud, fast):
    vector = ParameterVector("p", 2)
    circuit = QuantumCircuit(2)
    circuit.rx(vector[0], 0)
    circuit.rx(vector[1], 1)
    values = [[0.0, math.pi], [math.pi, 0.0], [math.pi, math.pi]]
    observable = [{"IZ": 1.0}]
    pub = [encode_circuit(circuit), observable, encode_array(values), 0.01]
    result = cloud.run(program="estimator", params={"pubs": [pub], "support_qiskit": True})
    pub = result["__value__"]["pub_results"][0]
    assert pub["__type__"] == "PubResult"
    data = pub["__value__"]["data"]["__value__"]
    assert data["field_names"] == ["evs", "stds", "ensemble_standard_error"]
    assert data["shape"] == [3]
    assert decode_array(data["fields"]["evs"]).tolist() == pytest.approx([1, -1, -1], abs=0.011)
    named = cloud.run([[encode_circuit(circuit), "IZ", {"p": values}]], program="estimator")
    assert pub_data(named)["evs"] == pytest.approx([1, -1, -1], abs=0.02)


@pytest.mark.parametrize(
    ("program", "pubs", "words"),
    [
        ("sampler", [["OPENQASM 3.0; qubit[2] q; nonsense q[0];"]], "could not be parsed"),
        ("sampler", [['OPENQASM 2.0; include "/etc/passwd";']], "could not be parsed"),
        ("sampler", [["hello"]], "neither OpenQASM"),
        ("sampler", [["aGVsbG8gd29ybGQ="]], "could not be decoded"),
        ("sampler", [[{"__type__": "QuantumCircuit", "__value__": "@@"}]], "decoded"),
        ("sampler", [[{"__type__": "Exploit", "__value__": 1}]], "must be OpenQASM"),
        ("sampler", [[5]], "must be OpenQASM"),
        ("sampler", [[RX]], "not valid"),
        ("sampler", [[RX, ["many"]]], "not valid"),
        ("sampler", [[RX, {"phi": 1.0}]], "no parameter"),
        ("sampler", [[BELL, None, 0]], "positive integer"),
        ("sampler", [[BELL, None, "many"]], "positive integer"),
        ("sampler", [[BELL, None, 10**7]], "too many shots"),
        ("sampler", [[BELL_STATE]], "no classical bits"),
        ("sampler", [['OPENQASM 2.0; include "qelib1.inc"; qreg q[33]; creg c[1]; x q[0];']], "33 qubits"),
        ("estimator", [[BELL_STATE, "ZZZ"]], "not valid"),
        ("estimator", [[BELL_STATE, {"QQ": 1}]], "not valid"),
        ("estimator", [[BELL_STATE, "ZZ", None, -1]], "positive number"),
        ("estimator", [[BELL_STATE, {"ZZ": "x"}]], "not valid"),
    ],
)
def test_input_that_cannot_be_run_fails_the_job_with_a_reason(cloud, fast, program, pubs, words):
    job = cloud.control.wait_job(cloud.job_id(pubs, program=program))
    seen = cloud("GET", f"/jobs/{job['id']}").json()
    assert seen["status"] == "Failed"
    assert words in seen["state"]["reason"]
    assert 1000 <= seen["state"]["reason_code"] <= 9999
    answer = cloud("GET", f"/jobs/{job['id']}/results")
    assert answer.headers["content-type"].startswith("text/plain")
    assert words in answer.text


def test_isa_is_enforced_only_when_asked_for(cloud, fast):
    isa = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; sx $0; cz $0, $1; c[0] = measure $0;'
    far = isa.replace("$1", "$9")
    cloud.run([[BELL]], backend="sandbox_noisy")
    cloud.control.set_option("strict_isa", True)
    cloud.run([[isa]], backend="sandbox_noisy")
    for text in (BELL, far):
        job = cloud.control.wait_job(cloud.job_id([[text]], backend="sandbox_noisy"))
        assert (job["status"], job["reason_code"]) == ("Failed", 7001)


def test_seed_makes_results_a_function_of_the_order():
    def results(seed):
        with Sandbox(seed=seed, queue_time=0, run_time=0) as sandbox:
            api = Api(sandbox)
            found = [api.run([[BELL, None, 64]], backend=name) for name in ("sandbox_noisy", "sandbox_ideal")]
            found.append(api.run([[BELL_STATE, "ZI"]], program="estimator"))
            api.http.close()
            return found

    first, again, other = results(5), results(5), results(6)
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_without_physics_results_have_their_form(cloud, fast):
    cloud.control.set_option("physics", False)
    data = pub_data(cloud.run([[GHZ, None, 3]]))
    assert data == {"c": {"samples": ["0x0"] * 3, "num_bits": 5}}
    data = pub_data(cloud.run([[BELL_STATE, ["ZZ", "XX"]]], program="estimator"))
    assert data["evs"] == [0.0, 0.0]


@pytest.mark.parametrize("backend", ["sandbox_ideal", "sandbox_noisy"])
def test_small_circuits_are_quick(cloud, fast, backend):
    cloud.run([[GHZ, None, 1000]], backend=backend)
    # Of this process, the sandbox in it: what else runs on the machine does not count.
    started = time.process_time()
    for _ in range(10):
        cloud.run([[GHZ, None, 1000]], backend=backend)
    assert (time.process_time() - started) / 10 < 0.05
