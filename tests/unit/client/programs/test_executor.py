"""PUBs as quantum programs: run by a small executor of its own, the results are those of the circuits."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import qiskit
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm2, qasm3
from qiskit.circuit import Gate, Parameter, ParameterVector
from qiskit.circuit.classical import types
from qiskit.circuit.library import GlobalPhaseGate, PauliEvolutionGate, PauliGate, UnitaryGate
from qiskit.quantum_info import Operator, SparsePauliOp, Statevector

from prefect_qruntime.client.dialects import v1_params
from prefect_qruntime.client.programs import executor, make, make_spec
from prefect_qruntime.client.programs.executor import executor_params
from prefect_qruntime.client.programs.openqasm import as_version_3, qubit_operands
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import InvalidInput
from tests.support import circuits as families
from tests.support.executor import circuits_of, run, values

SHOTS = 4000


def _spec(pubs: Any, **given: Any) -> Any:
    return make_spec(pubs, **{"backend": "b", "route": "executor", **given})


def _result(pubs: Any, seed: int = 1, **given: Any) -> JobResult:
    spec = _spec(pubs, **given)
    body = json.dumps(run(json.loads(json.dumps(spec.prepared)), seed))
    return JobResult.from_body(body, job_id="d1", program_id="executor")


def _close(counts: dict[str, int], circuit: QuantumCircuit) -> None:
    """Counts agree with the exact probabilities of a circuit that measures all its qubits, within 5 sigma."""
    exact = Statevector(circuit.remove_final_measurements(inplace=False)).probabilities_dict()
    shots = sum(counts.values())
    for key in counts.keys() | exact.keys():
        probability = float(exact.get(key, 0.0))
        bound = 5 * math.sqrt(probability * (1 - probability) / shots) + 1e-9
        assert abs(counts.get(key, 0) / shots - probability) <= bound, key


def test_families_of_circuits() -> None:
    qaoa = families.qaoa()
    result = _result(
        [families.BELL, families.GHZ, (families.ANSATZ, {"theta": [0.3, -1.2], "alpha": [2.0, 0.1]})], shots=SHOTS
    )
    _close(result.counts(0), qasm3.loads(families.BELL))
    _close(result.counts(1), qasm3.loads(families.GHZ))
    ansatz = qasm3.loads(families.ANSATZ)
    assert result.shape(2) == (2,)
    for point, (theta, alpha) in enumerate(((0.3, 2.0), (-1.2, 0.1))):
        _close(result.counts(2, index=point), ansatz.assign_parameters({"theta": theta, "alpha": alpha}))
    points = [[[0.4, 0.9], [1.0, -0.2]], [[0.1, 0.1], [-0.5, 2.0]]]
    result = _result([(qaoa, points)], shots=SHOTS)
    assert result.shape() == (2, 2)
    for row in range(2):
        for column in range(2):
            _close(result.counts(index=(row, column)), qaoa.assign_parameters(points[row][column]))


def test_teleportation_and_its_registers() -> None:
    result = _result([families.TELEPORTATION], shots=SHOTS)
    assert result.registers() == {"a": 1, "b": 1, "out": 1}
    ones = result.counts(register="out").get("1", 0) / SHOTS
    assert ones == pytest.approx(math.sin(0.55) ** 2, abs=0.04)
    assert len(result.memory()) == SHOTS
    assert sum(row["count"] for row in result.to_table() if row["register"] == "out") == SHOTS


@pytest.mark.parametrize("seed", range(12))
def test_expectation_values_of_random_circuits(seed: int) -> None:
    draw = random.Random(seed)
    text = families.random_text(seed)
    circuit = qasm3.loads(text)
    letters = "IXYZ" if seed % 2 else "IXYZ01+-rl"
    observables = [families.random_observable(draw, 3, letters) for _ in range(4)]
    given = text if seed % 3 else circuit
    result = _result([(given, observables, None, 0.02)], seed, program_id="estimator")
    assert result.shots() == 2500
    assert result.is_estimator()
    for value, error, observable in zip(
        result.expectation_values(), result.standard_errors(), observables, strict=True
    ):
        want = families.exact(circuit, observable)
        assert abs(value - want) <= 5 * error + 1e-9, (observable, value, error, want)


@pytest.mark.parametrize("form", ["qpy", "openqasm3"])
def test_the_last_measurements_may_be_inside_a_composite_instruction(form: str) -> None:
    inner = QuantumCircuit(2, 2)
    inner.measure([0, 1], [0, 1])
    outer = QuantumCircuit(2, 2)
    outer.cx(0, 1)
    outer.append(inner.to_instruction(), [1, 0], [0, 1])
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.append(outer.to_instruction(), [0, 1], [1, 0])
    result = _result([(circuit, ["XX", "ZZ"])], program_id="estimator", circuit_form=form, shots=50)
    assert result.expectation_values() == [1, 1]


def test_expectation_values_of_a_sweep_broadcast_as_in_qiskit() -> None:
    points = [[0.3, -0.7], [1.1, 0.2], [2.0, -2.0]]
    circuit = qasm3.loads(families.ANSATZ).remove_final_measurements(inplace=False)
    rows = ["ZZ", {"XI": 0.5, "IY": 2.0, "II": 1.0}]
    named = {"alpha": [row[0] for row in points], "theta": [row[1] for row in points]}
    outer = _result([(families.ANSATZ, [[row] for row in rows], named)], program_id="estimator", shots=SHOTS)
    assert outer.shape() == (2, 3)
    inner = _result([(families.ANSATZ, ["ZZ", "XI", "IY"], named)], program_id="estimator", shots=SHOTS)
    assert inner.shape() == (3,)
    bound = [circuit.assign_parameters(row) for row in points]
    for row, observable in enumerate(rows):
        terms = {observable: 1.0} if isinstance(observable, str) else observable
        for place, one in enumerate(bound):
            want, error = families.exact(one, terms), outer.standard_errors()[row][place]
            assert abs(outer.expectation_values()[row][place] - want) <= 5 * error + 1e-9
    for place, label in enumerate(("ZZ", "XI", "IY")):
        want, error = families.exact(bound[place], {label: 1.0}), inner.standard_errors()[place]
        assert abs(inner.expectation_values()[place] - want) <= 5 * error + 1e-9
    # Each point is measured in the bases that it needs, and in no other.
    spec = _spec([(families.ANSATZ, ["ZZ", "XI", "IY"], named)], program_id="estimator", shots=SHOTS)
    sizes = [item["circuit_arguments"]["shape"] for item in spec.prepared["quantum_program"]["items"]]
    assert sum(shape[0] for shape in sizes) == 3


def test_teleported_expectation_values_keep_the_measurements_in_the_middle() -> None:
    result = _result([(families.TELEPORTATION, ["ZII", "XII", "YII"])], program_id="estimator", shots=SHOTS)
    for value, error, want in zip(
        result.expectation_values(), result.standard_errors(), (math.cos(1.1), math.sin(1.1), 0.0), strict=True
    ):
        assert abs(value - want) <= 5 * error + 1e-9


@pytest.mark.parametrize("form", ["openqasm3", "qpy"])
def test_both_forms_of_circuits_and_many_parameters_in_order(form: str) -> None:
    vector = ParameterVector("t", 12)
    circuit = QuantumCircuit(1)
    for angle in vector:
        circuit.rx(angle, 0)
        circuit.rz(0.1 * angle, 0)
    circuit.measure_all()
    numbers = [0.05 * place for place in range(12)]
    spec = _spec([(circuit, numbers), (circuit, {vector: [numbers, numbers[::-1]]})], shots=10, circuit_form=form)
    program = spec.prepared["quantum_program"]
    assert ("data" in program["circuits"]) == (form == "openqasm3")
    first, second = circuits_of(program)
    assert values(program["items"][1]["circuit_arguments"]).shape == (2, 12)
    for sent, wanted, arguments in (
        (first, numbers, values(program["items"][0]["circuit_arguments"])),
        (second, numbers[::-1], values(program["items"][1]["circuit_arguments"])[1]),
    ):
        one = Statevector(sent.assign_parameters(arguments).remove_final_measurements(inplace=False))
        other = Statevector(circuit.assign_parameters(wanted).remove_final_measurements(inplace=False))
        assert one.equiv(other)


def test_text_beside_a_circuit_goes_as_qpy() -> None:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("a"), 0)
    circuit.measure_all()
    program = _spec([families.BELL, (circuit, [0.5])], shots=10).prepared["quantum_program"]
    assert program["circuits"]["num_programs"] == 2
    assert [found.num_qubits for found in circuits_of(program)] == [2, 1]


def test_points_without_parameters_run_as_often() -> None:
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.measure_all()
    spec = _spec([(circuit, [[], [], []])], shots=10)
    assert spec.prepared["quantum_program"]["items"][0]["circuit_arguments"]["shape"] == [3, 0]


def test_the_program_on_the_wire() -> None:
    spec = _spec([families.BELL], shots=7, options={"execution": {"init_qubits": False, "rep_delay": 0.0001}})
    assert (spec.wire_program, spec.route, spec.program_id) == ("executor", "executor", "sampler")
    assert spec.prepared == {
        "schema_version": "v2.0",
        "quantum_program": {
            "shots": 7,
            "circuits": {"data": [families.BELL]},
            "items": [
                {
                    "item_type": "circuit",
                    "circuit_arguments": {"data": "eJwDAAAAAAE=", "shape": [0], "dtype": "f64"},
                    "shape": [],
                    "chunk_size": "auto",
                }
            ],
            "meas_level": "classified",
            "passthrough_data": {
                "post_processor": {
                    "by": "prefect_qruntime",
                    "version": "p1",
                    "program": "sampler",
                    "shots": 7,
                    "pubs": [{"item": 0, "shape": []}],
                    "meas_level": "classified",
                }
            },
        },
        "options": {"init_qubits": False, "rep_delay": 0.0001},
    }
    same = make_spec([families.BELL], backend="b", shots=7, options=spec.options)
    assert same.digest() == spec.digest(), "the route is no part of the submission key"
    assert make_spec([families.BELL], backend="b", shots=7, program_id="executor").prepared is not None


@pytest.mark.parametrize(
    ("given", "shots"),
    [
        ({"shots": 5}, 5),
        ({}, 4096),
        ({"options": {"default_shots": 6}}, 6),
        ({"shots": 5, "options": {"default_shots": 6}}, 5),
        ({"program_id": "estimator"}, 4096),
        ({"program_id": "estimator", "options": {"default_precision": 0.1}}, 100),
        ({"program_id": "estimator", "options": {"precision": 0.1, "default_shots": 3}}, 100),
        ({"program_id": "estimator", "shots": 5, "options": {"default_shots": 6}}, 6),
        ({"program_id": "estimator", "shots": 5}, 5),
        ({"program_id": "estimator", "precision": 0.03}, 1112),
    ],
)
def test_shots(given: dict[str, Any], shots: int) -> None:
    precision = given.pop("precision", None)
    pub = (families.BELL, "ZZ", None, precision) if given.get("program_id") else families.BELL
    assert _spec([pub], **given).prepared["quantum_program"]["shots"] == shots


TWIRLED = {"twirling": {"enable_gates": True}}
DD = {"dynamical_decoupling": {"enable": True}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"pubs": [families.BELL, (families.BELL, None, 5)], "shots": 7}, "pubs[1].shots", "separate jobs"),
    ({"pubs": [(families.BELL, "ZZ", None, 0.1), (families.BELL, "ZZ", None, 0.2)]}, "pubs[1].precision", "100"),
    ({"pubs": [(families.BELL, "ZZ", None, 1e-9)]}, "pubs[0].precision", "shots"),
    ({"options": DD}, "options.dynamical_decoupling.enable", "without the extra [ibm]"),
    ({"options": {"twirling": {"enable_gates": True}}}, "options.twirling.enable_gates", "[ibm]"),
    ({"options": {"twirling": {"enable_measure": True}}}, "options.twirling.enable_measure", "[ibm]"),
    ({"options": {"simulator": {"seed_simulator": 1}}}, "options.simulator.seed_simulator", "no equivalent"),
    ({"options": {"default_shots": 0}}, "options.default_shots", "at least 1"),
    *(
        ({"pubs": [(families.BELL, "ZZ")], "options": options}, field, word)
        for options, field, word in (
            ({"resilience_level": 1}, "options.resilience_level", "[ibm]"),
            ({"resilience": {"zne_mitigation": True}}, "options.resilience.zne_mitigation", "[ibm]"),
            ({"resilience": {"pec_mitigation": True}}, "options.resilience.pec_mitigation", "without the extra [ibm]"),
            ({"resilience": {"measure_mitigation": True}}, "options.resilience.measure_mitigation", "[ibm]"),
            ({"seed_estimator": 1}, "options.seed_estimator", "no equivalent"),
        )
    ),
    ({"pubs": [(families.BELL, {"ZZ": 1e-9})]}, "pubs[0].observables", "zero"),
    ({"pubs": [(families.BELL, ["ZZ", {"ZZ": 0.0}])]}, "pubs[0].observables[1]", "zero"),
    ({"pubs": [(families.BELL, {"II": 2.0})]}, "pubs[0].observables", "nothing to measure"),
    ({"pubs": [(families.GHZ, "ZZ")]}, "pubs[0].circuit", "4 qubits"),
    (
        {"pubs": [(families.HEAD + "input int[8] n; qubit[1] q; bit[1] c; c = measure q;", [1])]},
        "pubs[0].circuit",
        "inputs",
    ),
    (
        {"pubs": [("OPENQASM 3.0; gate h a { U(pi / 2, 0, pi) a; } qubit[1] q; h q[0];", "X")]},
        "pubs[0].circuit",
        "declares 'h' itself",
    ),
    ({"circuit_form": "text"}, "circuit_form", "'qpy'"),
]


def _is_observable(part: Any) -> bool:
    return _is_observable(part[0]) if isinstance(part, list) else isinstance(part, str | dict)


@pytest.mark.parametrize("given", REFUSED, ids=lambda given: f"{given[1]} {given[2]}")
def test_refused_by_name(given: tuple[dict[str, Any], str, str]) -> None:
    arguments, field, word = given
    pubs = arguments.get("pubs", [families.BELL])
    rest = {name: value for name, value in arguments.items() if name != "pubs"}
    if isinstance(pubs[0], tuple) and _is_observable(pubs[0][1]):
        rest["program_id"] = "estimator"
    with pytest.raises(InvalidInput, match=re.escape(word)) as caught:
        _spec(pubs, **rest)
    assert caught.value.field == field


IBM = {"resilience_level": 1}
UNPREPARED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"options": {**IBM, **options}}, field)
        for options, field in (
            ({"seed_estimator": 0}, "options.seed_estimator"),
            ({"simulator": {"seed_simulator": 3}}, "options.simulator.seed_simulator"),
            ({"simulator": {"noise_model": {"a": 1}}}, "options.simulator.noise_model"),
            ({"simulator": {"coupling_map": [[0, 1]]}}, "options.simulator.coupling_map"),
            ({"simulator": {"basis_gates": ["x"]}}, "options.simulator.basis_gates"),
            (DD, "options.dynamical_decoupling.enable"),
            ({"resilience": {"pec_mitigation": True}}, "options.resilience.pec_mitigation"),
            ({"resilience": {"layer_noise_model": [1]}}, "options.resilience.layer_noise_model"),
            ({"resilience_level": 2, "resilience": {"zne": {"amplifier": "pea"}}}, "options.resilience.zne.amplifier"),
            ({"default_shots": 0}, "options.default_shots"),
        )
    ),
    ({"pubs": [(families.BELL, "ZZ", None, 0.1), (families.BELL, "ZZ", None, 0.2)]}, "pubs[1].precision"),
    ({"pubs": [(families.BELL, None, 5), families.BELL], "options": TWIRLED}, "pubs[1].shots"),
    ({"circuit_form": "openqasm3"}, "circuit_form"),
    ({"pubs": [(families.BELL, [[], []])], "options": TWIRLED}, "pubs[0].parameters"),
]


@pytest.mark.parametrize(("given", "field"), UNPREPARED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_ibms_preparation_would_ignore_is_refused_by_name(
    given: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "has_ibm", lambda: True)
    monkeypatch.setattr(
        executor,
        "ibm_module",
        lambda *_: SimpleNamespace(prepare=None, SamplerOptions=lambda **_: None, EstimatorOptions=lambda **_: None),
    )
    given = {"pubs": [(families.BELL, "ZZ")], "options": IBM, **given}
    program = "sampler" if given["options"] is TWIRLED else "estimator"
    with pytest.raises(InvalidInput) as caught:
        _spec(given.pop("pubs"), program_id=program, **given)
    assert caught.value.field == field


@pytest.mark.parametrize("numbers", [{"num_randomizations": 4}, {}, {"num_randomizations": "auto"}])
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"pubs": [families.BELL]}, False),
        ({"pubs": [families.BELL], "options": {"default_shots": 900}}, False),
        ({"pubs": [families.BELL], "shots": 900}, True),
        ({"pubs": [(families.BELL, None, 900)]}, True),
        ({"pubs": [(families.BELL, "ZZ")], "shots": 900}, False),  # a default, as the service gets it
        ({"pubs": [(families.BELL, "ZZ")], "options": {"precision": 0.1}}, True),
        ({"pubs": [(families.BELL, "ZZ", None, 0.1)]}, True),
    ],
)
def test_ibms_preparation_obeys_the_shots_that_are_asked_for(
    given: dict[str, Any], asked: bool, numbers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the service does; twirling's numbers come before defaults only."""
    seen: list[dict[str, Any]] = []

    def options_of(**options: Any) -> SimpleNamespace:
        seen.append(options)
        return SimpleNamespace(default_shots=None)

    ibm = SimpleNamespace(prepare=None, SamplerOptions=options_of, EstimatorOptions=options_of)
    monkeypatch.setattr(make, "has_ibm", lambda: True)
    monkeypatch.setattr(executor, "ibm_module", lambda *_: ibm)
    twirling = {"enable_gates": True, "shots_per_randomization": 16, **numbers}
    options = {**given.get("options", {}), "twirling": twirling}
    program = "estimator" if "ZZ" in given["pubs"][0] else "sampler"
    with pytest.raises(InvalidInput, match="cannot prepare"):  # the preparation itself is not there
        _spec(given["pubs"], program_id=program, options=options, shots=given.get("shots"))
    both = numbers.get("num_randomizations") == 4
    assert seen[0]["twirling"] == {**twirling, "shots_per_randomization": "auto" if asked and both else 16}


def test_options_without_effect_are_no_obstacle() -> None:
    options = {
        "dynamical_decoupling": {"enable": False, "sequence_type": "XY4"},
        "twirling": {"enable_gates": False, "num_randomizations": 4},
        "experimental": {"execution": {"scheduler_timing": True, "stretch_values": True}, "x": 1},
        "simulator": {"noise_model": None},
    }
    found = _spec([families.BELL], options=options).prepared["options"]
    assert found == {"scheduler_timing": True, "stretch_values": True, "experimental": options["experimental"]}
    assert _spec([(families.BELL, "ZZ")], program_id="estimator", options={"resilience_level": 0}).prepared


QASM_2 = """OPENQASM 2.0;
include "qelib1.inc"; // a comment; with a stop
qreg q[2]; creg c[2];
u3(pi/2, 0, -pi/4) q[0]; cx q[0],q[1]; barrier q; rz(-0.5e-1*2) q[1]; reset q[0]; measure q[1] -> c[0]; measure q -> c;
"""


def test_openqasm_2_is_rewritten_if_it_means_the_same() -> None:
    from qiskit import qasm2

    new = as_version_3(QASM_2, field="x")
    assert new.startswith("OPENQASM 3.0;")
    assert qasm3.loads(new) == qasm2.loads(QASM_2)
    assert as_version_3(families.BELL, field="x") == families.BELL


@pytest.mark.parametrize(
    "statement",
    [
        "gate g a { h a; } g q[0]",
        "opaque g a",
        "if (c == 1) x q[0]",
        "rx(2^3) q[0]",
        "rx(ln(2)) q[0]",
        "cu3(1, 2, 3) q[0], q[1]",
        "rzz(0.1) q[0], q[1]",
        "qreg input[1]",
        'include "mine.inc"',
    ],
)
def test_openqasm_2_that_may_mean_something_else(statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; {statement}; measure q -> c;'
    with pytest.raises(InvalidInput, match="OpenQASM 2 statement"):
        _spec([text], circuit_form="openqasm3")
    monkeypatch.setitem(sys.modules, "qiskit", None)
    with pytest.raises(InvalidInput, match=r"\[qiskit\]"):
        _spec([text])


def test_openqasm_2_that_is_not_rewritten_goes_as_qpy_with_qiskit() -> None:
    text = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; gate g a { x a; } g q[1]; measure q -> c;'
    assert _result([text], shots=10).counts() == {"10": 10}


@pytest.mark.parametrize(
    ("tail", "value"),
    [
        ("bit[2] c; h q[0]; c = measure q;", 1.0),
        ("bit[2] c; h q[0]; c[0] = measure q[0]; barrier q[0], q[1]; c[1] = measure q[1];", 1.0),
        ("h q[0]; bit[2] c = measure q;", 1.0),
        ("bit[2] c; h q[0]; c[0] = measure q[0]; // end", 1.0),
        ("bit[2] c; h q[0]; c[0] = measure q[0]; x q[1];", 1.0),
        ("bit[2] c; h q[0]; c[0] = measure q[0]; barrier; ", 1.0),
        # The measurement is not the last thing that happens, so it stays, and the state is no superposition.
        ("bit[2] c; h q[0]; c[0] = measure q[0]; rz(0.1) q[0]; rz(-0.1) q[0];", 0.0),
        ("bit[2] c; h q[0]; c[0] = measure q[0]; if (c[0]) { x q[1]; }", 0.0),
    ],
)
def test_last_measurements_do_not_spoil_the_state(tail: str, value: float) -> None:
    text = families.HEAD + "qubit[2] q; " + tail
    result = _result([(text, "IX")], program_id="estimator", shots=SHOTS)
    assert result.expectation_values() == pytest.approx(value, abs=0.1)


def test_the_new_register_has_a_name_of_its_own() -> None:
    text = families.HEAD + "qubit[1] q; bit[1] qr_meas; h q[0]; qr_meas[0] = measure q[0]; h q[0];"
    spec = _spec([(text, "Z")], program_id="estimator")
    assert "qr_meas1[0] = measure q[0]" in spec.prepared["quantum_program"]["circuits"]["data"][0]


def test_operands() -> None:
    assert qubit_operands("const int[8] N = 2; qubit[N] a; qubit b; qreg c[1]; // qubit[9] d;", field="x") == [
        "a[0]",
        "a[1]",
        "b",
        "c[0]",
    ]
    assert qubit_operands("x $2;", field="x") == ["$0", "$1", "$2"]
    with pytest.raises(InvalidInput, match="size"):
        qubit_operands("qubit[M] a;", field="x")


def test_the_plain_path_needs_neither_qiskit_nor_numpy() -> None:
    code = f"""
import sys
sys.modules["qiskit"] = sys.modules["numpy"] = None
import json
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.results.job_result import JobResult
bell = {families.BELL!r}
make_spec([bell], backend="b", route="executor")
pub = (bell, ["ZZ", {{"XX": 0.5, "II": 1}}])
spec = make_spec([pub], backend="b", program_id="estimator", route="executor", shots=2)
import base64, zlib
data = base64.b64encode(zlib.compress(bytes([0b1100]))).decode()
item = {{"results": {{"qr_meas": {{"data": data, "shape": [2, 2], "dtype": "bool"}}}}}}
body = {{"schema_version": "v2.0", "data": [item, item],
        "passthrough_data": spec.prepared["quantum_program"]["passthrough_data"]}}
result = JobResult.from_body(json.dumps(body), job_id="d1")
print(result.expectation_values(), len(result.to_table()))
"""
    run_ = subprocess.run([sys.executable, "-c", code], timeout=300, capture_output=True, text=True)
    assert run_.stdout.split() == ["[1.0,", "1.5]", "2"], run_.stderr


def test_the_same_submission_gives_the_same_bytes() -> None:
    pubs = [(families.ANSATZ, [["ZZ"], [{"XX": 1.0, "YI": 2.0}]], {"theta": [1, 2], "alpha": [3, 4]})]
    one, other = (executor_params(make_spec(pubs, backend="b", program_id="estimator")) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("form", ["qpy", "openqasm3"])
def test_a_transpiled_circuit_with_its_layout(form: str) -> None:
    from qiskit import transpile
    from qiskit.quantum_info import SparsePauliOp
    from qiskit.transpiler import CouplingMap

    circuit = QuantumCircuit(3)
    circuit.h(0)
    circuit.cx(0, 2)
    circuit.ry(0.7, 1)
    placed = transpile(
        circuit,
        coupling_map=CouplingMap.from_line(5),
        basis_gates=["rz", "sx", "x", "cz"],
        initial_layout=[4, 1, 2],
        seed_transpiler=1,
        optimization_level=1,
    )
    labels = {"ZIZ": 1.0, "XIX": 1.0, "IZI": math.cos(0.7), "YIY": -1.0}
    observables = [SparsePauliOp(label).apply_layout(placed.layout) for label in labels]
    result = _result([(placed, observables)], program_id="estimator", shots=SHOTS, circuit_form=form)
    for value, error, want in zip(result.expectation_values(), result.standard_errors(), labels.values(), strict=True):
        assert abs(value - want) <= 5 * error + 1e-9


@pytest.mark.parametrize("name", ["in", "measure", "a-b", "2c", "pi", "τ", "h"])
def test_a_register_whose_name_the_text_would_change_is_refused(name: str) -> None:
    """The exporter renames what is no name in OpenQASM 3, and the result would have no register of that name."""
    circuit = QuantumCircuit(QuantumRegister(2, "q"), ClassicalRegister(2, name))
    circuit.measure([0, 1], [0, 1])
    with pytest.raises(InvalidInput, match=re.escape(repr(name))) as caught:
        _spec([circuit], circuit_form="openqasm3")
    assert caught.value.field == "pubs[0].circuit"
    assert _result([circuit]).registers() == {name: 2}


@pytest.mark.parametrize("name", ["pi", "π", "euler"])
def test_a_quantum_register_named_as_a_constant_is_refused_too(name: str) -> None:
    circuit = QuantumCircuit(QuantumRegister(1, name), ClassicalRegister(1, "c"))
    circuit.rx(math.pi / 2, 0)
    circuit.measure(0, 0)
    with pytest.raises(InvalidInput, match=re.escape(repr(name))) as caught:
        _spec([circuit], circuit_form="openqasm3")
    assert caught.value.field == "pubs[0].circuit"
    assert _result([circuit]).registers() == {"c": 1}


@pytest.mark.parametrize("kind", [types.Uint(8), types.Bool(), types.Float()])
@pytest.mark.parametrize("program", ["sampler", "estimator"])
def test_input_variables_get_no_values_from_the_executor(kind: Any, program: str) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.add_input("a", kind)
    circuit.rx(Parameter("b"), 0)
    circuit.measure(0, 0)
    pub = (circuit, "Z", [1.0]) if program == "estimator" else (circuit, [1.0])
    with pytest.raises(InvalidInput, match="input variables") as caught:
        _spec([pub], program_id=program, circuit_form="openqasm3")
    assert caught.value.field == "pubs[0].circuit"


def _own_gate(kind: str, angle: Any) -> Gate:
    """A gate that no text knows, on two qubits."""
    inner = QuantumCircuit(2, name={"named as one": "rx", "of a name": "my gate"}.get(kind, "own"))
    inner.rx(2 * angle, 0)
    inner.crz(angle, 0, 1)
    if kind == "evolution":
        return PauliEvolutionGate(SparsePauliOp(["XZ", "YY"], [0.3, 0.5]), time=2 * angle)
    if kind == "unitary":
        return UnitaryGate(Operator(inner.assign_parameters([0.7] * inner.num_parameters)))
    if kind == "nested":
        outer = QuantumCircuit(2, name="own")
        outer.append(inner.to_gate(), [1, 0])
        outer.cx(0, 1, ctrl_state=0)
        return outer.to_gate()
    if kind == "Pauli":
        return PauliGate("XY")
    return inner.to_gate()


@pytest.mark.parametrize("kind", ["plain", "named as one", "of a name", "evolution", "unitary", "nested", "Pauli"])
def test_gates_that_a_text_does_not_know(kind: str) -> None:
    """Twice with different arguments, as qiskit writes one definition for both."""
    circuit = QuantumCircuit(3)
    circuit.ry(0.4, range(3))
    first, second = Parameter("a"), Parameter("b")
    circuit.append(_own_gate(kind, first), [0, 1])
    circuit.append(_own_gate(kind, 3 * second - first), [2, 0])
    numbers = [0.7, -1.1][: circuit.num_parameters]
    bound = Operator(circuit.assign_parameters(numbers).decompose("PauliEvolution"))
    legacy = v1_params(make_spec([(circuit, "ZII", numbers or None)], backend="b", program_id="estimator"))
    read = qasm2.loads(legacy["circuits"][0], custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS)
    assert Operator(read).equiv(bound)
    for pub, program in (
        ((circuit, "ZII", numbers or None), "estimator"),
        ((circuit.measure_all(inplace=False), numbers or None), "sampler"),
    ):
        spec = _spec([pub], program_id=program, circuit_form="openqasm3")
        [read] = circuits_of(spec.prepared["quantum_program"])
        assert Operator(read.remove_final_measurements(inplace=False).assign_parameters(numbers)).equiv(bound)


def test_gates_that_a_text_does_not_know_in_a_branch() -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.x(0)
    circuit.measure(0, 0)
    flip = QuantumCircuit(1, name="rx")
    flip.x(0)
    with circuit.if_test((0, 1)) as other:
        circuit.append(flip.to_gate(), [1])
    with other:
        circuit.append(UnitaryGate([[1, 0], [0, 1j]]), [1])
    circuit.measure(1, 1)
    assert _result([circuit], circuit_form="openqasm3", shots=9).counts() == {"11": 9}


def test_a_text_that_nobody_can_read_is_not_sent() -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.append(GlobalPhaseGate(0.5), [])  # the exporter defines a gate without qubits
    circuit.measure(0, 0)
    with pytest.raises(InvalidInput, match="syntax error at line") as caught:
        _spec([circuit], circuit_form="openqasm3")
    assert caught.value.field == "pubs[0].circuit"
    assert _result([circuit], shots=3).counts() == {"0": 3}


SAME_NAME = pytest.mark.skipif(
    tuple(map(int, qiskit.__version__.split(".")[:2])) < (2, 6), reason="Qiskit before 2.6 refuses such a circuit"
)


@pytest.mark.parametrize("name", ["meas", "c0", pytest.param("q", marks=SAME_NAME), "qr_meas"])
def test_a_register_has_its_name_in_every_form(name: str) -> None:
    circuit = QuantumCircuit(QuantumRegister(2, "q"), ClassicalRegister(2, name))
    circuit.measure([0, 1], [0, 1])
    for form in ("qpy", "openqasm3"):
        assert _result([circuit], circuit_form=form).registers() == {name: 2}


@pytest.mark.parametrize("name", ["Alice", "θ", "_x", "ok"])
def test_a_register_of_a_text_is_found_by_its_name(name: str) -> None:
    """Qiskit's reader of OpenQASM 3 calls some of them otherwise."""
    text = f"{families.HEAD}qubit[2] q; bit[2] {name}; x q[0]; {name} = measure q;"
    for form in ("qpy", "openqasm3"):
        found = _result([text], circuit_form=form, shots=3)
        assert found.counts(register=name) == {"01": 3}
        assert found.memory(register=name) == ["01"] * 3
        with pytest.raises(InvalidInput, match="no register 'other'"):
            found.counts(register="other")
