"""Every form of PUB a user may write, and what becomes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Instruction, Parameter, ParameterVector
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import Pauli, SparseObservable, SparsePauliOp

from prefect_qruntime.client.inputs import EstimatorOptions, SamplerOptions
from prefect_qruntime.client.inputs.qasm import scan
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Backend

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'
BELL2 = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; h q[0]; cx q[0],q[1]; measure q -> c;'
TWO = "OPENQASM 3.0; input float[64] a; input angle b; qubit[2] q; bit[2] c; rx(a) q[0]; c = measure q;"


def _spec(pubs: Any, **given: Any) -> Any:
    return make_spec(pubs, backend="ibm_torino", **given)


@pytest.mark.parametrize(
    ("pubs", "shots"),
    [
        (BELL, [None]),
        (BELL2, [None]),
        ([BELL], [None]),
        ((BELL, None, 5), [5]),
        ([BELL, None, 5], [5]),
        ([BELL, BELL2], [None, None]),
        ((BELL, BELL2), [None, None]),
        ([BELL, (BELL2, None, 7)], [None, 7]),
        ([(BELL,), (BELL, []), (BELL, None), (BELL, {}, 3)], [None, None, None, 3]),
        ([[BELL, None, 9]], [9]),
        ([BELL, BELL, BELL, BELL], [None] * 4),
        ([(BELL, None, np.int64(4))], [4]),
    ],
)
def test_forms_of_sampler_pubs(pubs: Any, shots: list[int | None]) -> None:
    spec = _spec(pubs)
    assert [pub.shots for pub in spec.pubs] == shots
    assert all(pub.parameters is None and pub.width == 2 for pub in spec.pubs)
    assert not spec.support_qiskit


def test_forms_of_estimator_pubs() -> None:
    single = _spec((BELL, "ZZ"), program_id="estimator")
    listed = _spec([(BELL, ["ZZ", {"XX": 1, "YY": -0.5}], None, 0.1)], program_id="estimator")
    assert single.pubs[0].observables == "ZZ"
    assert listed.pubs[0].observables == ["ZZ", {"XX": 1.0, "YY": -0.5}]
    assert listed.pubs[0].precision == 0.1


def test_a_file_is_read_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bell.qasm"
    file.write_bytes(b"\xef\xbb\xbf" + BELL.replace("; ", ";\r\n").encode())
    spec = _spec(file)
    file.unlink()
    assert spec.pubs[0].circuit == BELL.replace("; ", ";\n")
    assert spec.digest() == _spec(BELL.replace("; ", ";\r\n")).digest()


def test_a_reference_in_text_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my bell.qasm"
    file.write_text(BELL)
    monkeypatch.chdir(tmp_path)
    for reference in (
        f"file:{file}",
        file.as_uri(),
        f"file://localhost{file}",
        "file:my bell.qasm",
        "file:my%20bell.qasm",
    ):
        assert _spec([(reference, None, 10)]).pubs[0].circuit == BELL, reference


@pytest.mark.parametrize(
    ("text", "width", "inputs", "qubits"),
    [
        ("OPENQASM 3; bit c; c = measure $0;", 1, (), None),
        ("/* a { b */ // OPENQASM 2.0;\nOPENQASM 3.1; bit[3] c; bit d; measure $1;", 4, (), None),
        ("OPENQASM 3.0; const int[32] n = 5; bit[n] c; qubit[n] q; c = measure q;", 5, (), 5),
        ("OPENQASM 3.0; const int n = 2 * 3; bit[n] c; qubit[n] q; c = measure q;", 6, (), 6),
        ("OPENQASM 3.0; bit[2] c = measure q; input float[64] t; qubit q;", 2, ("t",), 1),
        ("OPENQASM 3.0; output bit[2] c; input angle t; input float u; measure $0;", 2, ("t", "u"), None),
        ("OPENQASM 3.0; input int[8] n; bit c; measure $0;", 1, None, None),
        ("OPENQASM 3.0; input array[float, 2] x; bit c; measure $0;", 1, None, None),
        ("OPENQASM 3.0; bit[2] c; def f(qubit q) -> bit { bit d; d = measure q; return d; } measure $0;", 2, (), None),
        ("OPENQASM 3.0; creg c[2]; qreg q[4]; bitfoo = measure q;", 2, (), 4),
        ('OPENQASM 3.0; include "x//y.inc"; bit[2] c; qubit q; measure q;', 2, (), 1),
        ("OPENQASM 3.0;\npragma bit[9] z;\n@note bit[9] y\nbit[2] c; measure $0;", 2, (), None),
        ("OPENQASM 3.0; bit[1_0] c; qubit[2] a; qubit b; measure a;", 10, (), 3),
        (BELL2, 2, (), 2),
    ],
)
def test_what_the_text_tells(text: str, width: int | None, inputs: Any, qubits: int | None) -> None:
    program = scan(text, field="x")
    assert (program.width, program.inputs, program.qubits) == (width, inputs, qubits)
    assert program.measures


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, 2], [1.0, 2.0]),
        ((1.0, 2), [1.0, 2.0]),
        (np.array([1, 2]), [1.0, 2.0]),
        (np.array([[1, 2], [3, 4]], dtype=np.float32), [[1.0, 2.0], [3.0, 4.0]]),
        ([np.array([1.0, 2.0]), (3, np.float64(4))], [[1.0, 2.0], [3.0, 4.0]]),
        ({"a": 1, "b": [2]}, {"a": 1.0, "b": [2.0]}),
        ({"a": [[3], [4]], "b": [1, 2]}, {"a": [[3.0], [4.0]], "b": [1.0, 2.0]}),
        ({("a",): [1, 2], "b": [3, 4]}, {"a": [1.0, 2.0], "b": [3.0, 4.0]}),
        # The points' axis of one is kept: qiskit would take it for the parameter's own.
        ({("a", "b"): [[1, 2]]}, {"a": [[1.0]], "b": [[2.0]]}),
        ({("a", "b"): [[1, 2], [3, 4]]}, {"a": [1.0, 3.0], "b": [2.0, 4.0]}),
        ({Parameter("b"): 2, "a": np.float32(0.5)}, {"b": 2.0, "a": 0.5}),
    ],
)
def test_parameters_become_plain_floats(given: Any, expected: Any) -> None:
    found = _spec([(TWO, given)]).pubs[0].parameters
    assert found == expected
    assert "int" not in str([type(value) for value in np.ravel(list(found))])


POINTS = [
    {"a": 1, "b": 2},
    {"a": [1], "b": 2},
    {"a": 1, "b": [1, 2]},
    {"a": [1, 2, 3], "b": [1, 2]},
    {"a": [1, 2, 3], "b": [1]},
    {"a": [[1], [2]], "b": [1, 2]},
    {"a": [[1, 2]], "b": [1, 2]},
    {"a": [[1, 2], [3, 4]], "b": [[[1], [2]], [[3], [4]]]},
    {("a", "b"): [[1, 2]]},
    {("a", "b"): [1, 2]},
    {("a", "b"): [[[1, 2]], [[3, 4]]]},
    {("a",): [1, 2], "b": [3, 4]},
    {("a",): [[1], [2]], "b": 2},
    [1, 2],
    [[1, 2]],
    [[1, 2], [3, 4], [5, 6]],
    [[[1, 2]], [[3, 4]]],
]


@pytest.mark.parametrize("observables", ["ZZ", ["ZZ"], ["ZZ", "XX"], [["ZZ"], ["XX"]], [["ZZ", "XX", "YY"]] * 2])
@pytest.mark.parametrize("values", POINTS, ids=str)
@pytest.mark.parametrize("as_text", [True, False])
def test_shapes_are_accepted_as_qiskit_accepts_them(values: Any, observables: Any, as_text: bool) -> None:
    circuit = QuantumCircuit(2)
    circuit.rx(Parameter("a"), 0)
    circuit.ry(Parameter("b"), 1)
    try:
        expected = EstimatorPub.coerce((circuit, observables, values))
    except ValueError:
        with pytest.raises(InvalidInput) as caught:
            _spec([(TWO if as_text else circuit, observables, values)], program_id="estimator")
        assert (caught.value.field or "").startswith(("pubs[0].parameters", "pubs[0].observables"))
        return
    sent = _spec([(TWO if as_text else circuit, observables, values)], program_id="estimator").pubs[0].parameters
    # What is sent stands for the same points as what was given.
    arrived = EstimatorPub.coerce((circuit, observables, sent))
    assert arrived.parameter_values.shape == expected.parameter_values.shape
    np.testing.assert_array_equal(
        arrived.parameter_values.as_array(circuit.parameters), expected.parameter_values.as_array(circuit.parameters)
    )


def test_points_of_no_parameters_are_points_all_the_same() -> None:
    assert _spec([(BELL, np.empty((3, 0)))]).pubs[0].parameters == [[], [], []]
    assert _spec([(_measured(), np.empty((3, 0)))]).pubs[0].parameters == [[], [], []]
    assert SamplerPub.coerce((_measured(), np.empty((3, 0)))).shape == (3,)


def test_a_list_follows_the_names_only_where_text_declares_them_sorted() -> None:
    swapped = TWO.replace("float[64] a", "float[64] z")
    with pytest.raises(InvalidInput, match=r"by name.*declared z, b, sorted b, z") as caught:
        _spec([(swapped, [1, 2])])
    assert caught.value.field == "pubs[0].parameters"
    assert _spec([(swapped, {"z": 1, "b": 2})]).pubs[0].parameters == {"z": 1.0, "b": 2.0}
    assert _spec([(TWO, [1, 2])]).pubs[0].parameters == [1.0, 2.0]


def test_one_parameter_may_leave_the_last_axis_away() -> None:
    one = "OPENQASM 3.0; input angle t; bit c; rx(t) $0; c = measure $0;"
    assert _spec([(one, [0.1, 0.2, 0.3])]).pubs[0].parameters == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SparsePauliOp(["ZZ", "XI"], [1.0, -0.5]), {"ZZ": 1.0, "XI": -0.5}),
        (SparsePauliOp(["ZZ", "ZZ"], [1.0, 2.0]), {"ZZ": 3.0}),
        (SparseObservable("Z+"), {"Z+": 1.0}),
        (Pauli("XY"), "XY"),
        (Pauli("-XY"), {"XY": -1.0}),
        ([Pauli("II"), SparsePauliOp("ZX")], ["II", {"ZX": 1.0}]),
        ({Pauli("ZZ"): 2, "XX": 1}, {"ZZ": 2.0, "XX": 1.0}),
        (ObservablesArray(["ZZ", "XX"]), [{"ZZ": 1.0}, {"XX": 1.0}]),
        (ObservablesArray("ZZ"), {"ZZ": 1.0}),
        (np.array(["ZZ", "XX"]), ["ZZ", "XX"]),
        ("0r", "0r"),
    ],
)
def test_observables(given: Any, expected: Any) -> None:
    assert _spec([(BELL, given)], program_id="estimator").pubs[0].observables == expected


@pytest.mark.parametrize("given", [Pauli("iXY"), SparsePauliOp(["ZZ"], [1j]), SparsePauliOp(["ZZ"], [Parameter("a")])])
def test_observables_that_are_not_hermitian(given: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        _spec([(BELL, given)], program_id="estimator")
    assert (caught.value.field or "").startswith("pubs[0].observables")


def _parameterised() -> QuantumCircuit:
    circuit = QuantumCircuit(2, name="mine")
    vector = ParameterVector("t", 11)
    for element in vector:
        circuit.rx(element, 0)
    circuit.measure_all()
    return circuit


def test_quantum_circuits() -> None:
    circuit = _parameterised()
    names = [parameter.name for parameter in circuit.parameters]
    row = [float(number) for number in range(11)]
    vector = circuit.parameters[0].vector
    spec = _spec(
        [
            (circuit, [row, row], 7),
            (circuit, {vector: row}),
            (circuit, {name: [number, number] for name, number in zip(names, row, strict=True)}),
            SamplerPub.coerce((circuit, row, 3)),
        ]
    )
    assert spec.support_qiskit
    assert [pub.parameters for pub in spec.pubs] == [[row, row], row, [row, row], row]
    assert [pub.shots for pub in spec.pubs] == [7, None, None, 3]
    assert spec.widths == (2, 2, 2, 2)
    assert circuit.name == "mine"
    assert spec.pubs[0].circuit is spec.pubs[1].circuit, "one circuit is encoded once"


def test_qiskit_estimator_pub() -> None:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    spec = _spec(EstimatorPub.coerce((circuit, ["ZZ", "XX"], None, 0.1)), program_id="estimator")
    assert spec.pubs[0].observables == [{"ZZ": 1.0}, {"XX": 1.0}]
    assert (spec.pubs[0].parameters, spec.pubs[0].precision) == (None, 0.1)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: (_parameterised(), None), "pubs[0].parameters"),
        (lambda: (_parameterised(), [1.0]), "pubs[0].parameters"),
        (lambda: (_parameterised(), {"nope": 1.0}), "pubs[0].parameters.nope"),
        (lambda: (_parameterised(), [float("nan")] * 11), "pubs[0].parameters[0]"),
        (lambda: QuantumCircuit(2), "pubs[0].circuit"),
        (lambda: QuantumCircuit(2, 2), "pubs[0].circuit"),
    ],
)
def test_wrong_quantum_circuits(build: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _spec([build()])
    assert caught.value.field == field


def test_measurements_inside_blocks_count() -> None:
    circuit = QuantumCircuit(1, 1)
    with circuit.for_loop(range(2)):
        circuit.measure(0, 0)
    assert _spec(circuit).widths == (1,)


def test_measurements_inside_composite_instructions_count() -> None:
    inner = QuantumCircuit(1, 1)
    inner.measure(0, 0)
    middle = QuantumCircuit(1, 1)
    middle.append(inner.to_instruction(), [0], [0])
    outer = QuantumCircuit(1, 1)
    with outer.for_loop(range(2)):
        outer.append(middle.to_instruction(), [0], [0])
    assert _spec(outer).widths == (1,)
    mid_circuit = QuantumCircuit(1, 1)
    mid_circuit.append(Instruction("measure_2", 1, 1, []), [0], [0])  # a backend's own, without a definition
    assert _spec(mid_circuit).widths == (1,)
    nothing = QuantumCircuit(1, 1)
    idle = QuantumCircuit(1, 1)
    idle.x(0)
    nothing.append(idle.to_instruction(), [0], [0])
    with pytest.raises(InvalidInput, match="nothing is measured"):
        _spec(nothing)


def test_encoded_circuits_pass_through() -> None:
    encoded = _spec(_measured()).pubs[0].circuit
    again = _spec([(encoded, None, 3)])
    assert again.support_qiskit
    assert again.pubs[0].circuit == encoded


def _measured() -> QuantumCircuit:
    circuit = QuantumCircuit(1)
    circuit.measure_all()
    return circuit


def test_the_small_fields() -> None:
    spec = _spec(
        BELL,
        tags=["b", "a", "b", "ü–x"],
        max_execution_time=10_800,
        private=True,
        shots=1,
        options={"twirling": {"strategy": "all"}, "default_shots": 5},
    )
    assert spec.tags == ("b", "a", "ü–x")
    assert (spec.max_execution_time, spec.private, spec.shots) == (10_800, True, 1)
    assert spec.options == {"twirling": {"strategy": "all"}, "default_shots": 5}
    assert make_spec(BELL, backend=Backend(name="ibm_x")).backend == "ibm_x"


def test_typed_options_send_only_what_is_set() -> None:
    typed = SamplerOptions(twirling={"enable_gates": True}, default_shots=10)  # type: ignore[arg-type]
    assert _spec(BELL, options=typed).options == {"twirling": {"enable_gates": True}, "default_shots": 10}
    with pytest.raises(InvalidInput, match="EstimatorOptions"):
        _spec(BELL, options=EstimatorOptions(resilience_level=1))


def test_raw_params_pass_through() -> None:
    given = {"schema_version": "v0.2", "x": (1, 2.5, None), "array": np.array([1, 2])}
    spec = make_spec(None, backend="b", program_id="executor", params=given)
    assert spec.params == {"schema_version": "v0.2", "x": [1, 2.5, None], "array": [1, 2]}
    assert spec.pubs == ()


def test_text_needs_neither_qiskit_nor_numpy() -> None:
    code = f"""
import sys
from prefect_qruntime.client.dialects import v1_params, v2_params
from prefect_qruntime.client.inputs import check_isa
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.results.job_result import JobResult
spec = make_spec([({TWO!r}, [1, 2], 3)], backend="b")
v1_params(spec), v2_params(spec), spec.digest()
check_isa(spec, {{"n_qubits": 2, "basis_gates": ["rx"], "coupling_map": [[0, 1]]}})
body = '{{"results": [{{"data": {{"c": {{"samples": ["0x3"], "num_bits": 2}}}}}}]}}'
JobResult.from_body(body, job_id="d").to_table()
found = {{"qiskit", "numpy"}} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
