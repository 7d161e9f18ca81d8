"""The local look at a backend's qubits, gates and couplings."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from qiskit import QuantumCircuit, qasm3, qpy, transpile
from qiskit.circuit import Parameter
from qiskit.circuit.library import real_amplitudes
from qiskit.quantum_info import Clifford

from prefect_qruntime.client.encodings.tensors import encode_tensor
from prefect_qruntime.client.inputs import check_isa, isa, transpile_pubs
from prefect_qruntime.client.inputs.pub_values import point_rows
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

# ecr runs one way only, cz both ways though listed once.
LINE: dict[str, Any] = {
    "n_qubits": 4,
    "basis_gates": ["cz", "ecr", "id", "rz", "sx", "x"],
    "supported_instructions": ["measure", "reset", "delay"],
    "coupling_map": [[0, 1], [1, 2], [2, 3]],
}
HEAD = 'OPENQASM 3.0; include "stdgates.inc"; bit[2] c; '
TAIL = " c[0] = measure $0;"


@pytest.mark.parametrize(
    "body",
    [
        "rz(pi/2) $0; sx $0; x $1; cz $0, $1; cz $1, $0; ecr $2, $3;",
        "barrier $0, $3; delay[100ns] $2; reset $1;",
        "if (c[0]) { x $1; } else { sx $1; }",
        "if (c == 2) x $1;",
        "for int i in [0:3] { x $0; }",
        "while (c[0]) { x $0; c[0] = measure $0; }",
        "// h $0;\n/* cz $0, $3; */ x $0;",
        "qubit[4] q; x q; cz q[1], q[0]; c = measure q[0:1];",
        "inv @ x $0; pow(2) @ sx $0;",
        "ctrl @ z $0, $1; inv @ ctrl(1) @ z $1, $0; if (c[0]) ctrl @ z $0, $1;",
    ],
)
def test_fits(body: str) -> None:
    check_isa(make_spec(HEAD + body + TAIL, backend="b"), LINE)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("h $0;", "no gate 'h'"),
        ("ECR $0, $1;", "Did you mean 'ecr'"),
        ("x $4;", "qubit 4"),
        ("c[1] = measure $9;", "qubit 9"),
        ("cz $0, $2;", "0, 2"),
        ("ecr $1, $0;", "direction"),
        ("if (c[0]) { h $1; }", "no gate 'h'"),
        ("if (c[0]) h $1;", "no gate 'h'"),
        ("if (c[0]) { x $1; } else h $1;", "no gate 'h'"),
        ("qubit[5] q;", "qubit 4"),
        ("qubit[2] a; qubit[2] b; cz a[0], b[0];", "0, 2"),
        ("ctrl @ h $0, $1;", "no gate 'ch'"),
        ("ctrl @ x $0, $1;", "no gate 'cx'"),
        ("if (c[0]) inv @ ctrl @ x $0, $1;", "no gate 'cx'"),
        ("ctrl(2) @ x $0, $1, $2;", "no gate 'ccx'"),
        ("negctrl @ z $0, $1;", "no gate 'negctrl @ z'"),
        ("ctrl(99999999999) @ x $0, $1, $2;", "no gate 'cx'"),
    ],
)
def test_does_not_fit(body: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check_isa(make_spec([HEAD + TAIL, HEAD + body + TAIL], backend="b"), LINE)
    assert caught.value.field == "pubs[1].circuit"


def test_quantum_circuits_are_looked_into() -> None:
    circuit = QuantumCircuit(4, 1)
    circuit.cz(1, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(3)
        circuit.ecr(3, 2)
    circuit.measure(0, 0)
    with pytest.raises(InvalidInput, match="ecr on qubits 3, 2"):
        check_isa(make_spec(circuit, backend="b"), LINE)
    wide = QuantumCircuit(5, 1)
    wide.measure(0, 0)
    with pytest.raises(InvalidInput, match="qubit 4"):
        check_isa(make_spec(wide, backend="b"), LINE)


def test_what_qiskit_transpiles_fits() -> None:
    circuit = real_amplitudes(4, reps=2)
    circuit = circuit.assign_parameters([0.1] * circuit.num_parameters)
    circuit.measure_all()
    configuration = {**LINE, "basis_gates": ["ecr", "id", "rz", "sx", "x"]}
    fitting = transpile(
        circuit, basis_gates=configuration["basis_gates"], coupling_map=LINE["coupling_map"], seed_transpiler=1
    )
    check_isa(make_spec([fitting, qasm3.dumps(fitting)], backend="b"), configuration)
    with pytest.raises(InvalidInput):
        check_isa(make_spec(circuit, backend="b"), configuration)


HERON: dict[str, Any] = {**LINE, "basis_gates": ["cz", "id", "rx", "rz", "rzz", "sx", "x"]}


@pytest.mark.parametrize("angle", [-math.pi / 4, -0.5, -1e-3, 1.6, 2, math.pi, -7e-7])
def test_a_qpu_runs_rzz_with_calibrated_angles_only(angle: float) -> None:
    """Also in a block; a simulator takes any."""

    def turned(by: Any) -> QuantumCircuit:
        circuit = QuantumCircuit(3, 1)
        with circuit.if_test((circuit.clbits[0], 1)):
            circuit.rx(-3, 0)
            circuit.rzz(by, 0, 1)
        circuit.measure(0, 0)
        return circuit

    for circuit in (turned(angle), qasm3.dumps(turned(angle))):
        spec = make_spec(circuit, backend="b")
        with pytest.raises(InvalidInput, match=r"rzz\(.*from 0 to pi/2") as caught:
            check_isa(spec, HERON)
        assert caught.value.field == "pubs[0].circuit"
        check_isa(spec, {**HERON, "simulator": True})
    for fits in (0, 1, 0.3, math.pi / 4, math.pi / 2):
        for circuit in (turned(fits), qasm3.dumps(turned(fits))):
            check_isa(make_spec(circuit, backend="b"), HERON)
    check_isa(make_spec((turned(Parameter("t")), [0.1]), backend="b"), HERON)
    for unknown in ("rzz(sin(2) - 3) $0, $1;", "inv @ rzz(-1) $0, $1;", "pow(0.5) @ rzz(2) $0, $1;"):
        check_isa(make_spec(HEAD + unknown + TAIL, backend="b"), HERON)


a, b = Parameter("a"), Parameter("b")
ANGLES: dict[str, Any] = {
    "a": a,
    "-b": -b,
    "2*a": 2 * a,
    "a + b/2": a + b / 2,
    "pi/2 - (a - 3*b)": math.pi / 2 - (a - 3 * b),
}
VALUES = [(0.1, 0.2), (0.7, -0.3), (0.0, 0.0), (1.5, 0.4), (-0.2, -0.1), (0.9, 1.2)]
FORMS = ("circuit", "encoded", "text", "data", "v1.1", "v2.0")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("angle", ANGLES)
def test_an_angle_that_parameter_values_give_is_checked_at_each_point(angle: str, form: str) -> None:
    circuit = QuantumCircuit(2, 1)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.rzz(ANGLES[angle], 0, 1)
    circuit.rz(a + b, 0)
    circuit.measure(0, 0)
    for chosen in [*([one] for one in VALUES), [VALUES[0], VALUES[2]], VALUES]:
        wrong = [
            x for x, y in chosen for x in [eval(angle, {"a": x, "b": y, "pi": math.pi})] if not 0 <= x <= math.pi / 2
        ]
        for spec, field in specs(circuit, chosen, form):
            check_isa(spec, {**HERON, "simulator": True})
            if not wrong:
                check_isa(spec, HERON)
                continue
            with pytest.raises(
                InvalidInput, match=rf"rzz\({wrong[0]:.6g}\) for the parameter values? .*0 to pi/2"
            ) as caught:
                check_isa(spec, HERON)
            assert caught.value.field == field


def specs(circuit: QuantumCircuit, points: list[tuple[float, float]], form: str) -> Iterator[tuple[JobSpec, str]]:
    """The submissions of a circuit with parameters a and b at some points, and the field of their values."""
    if form in ("circuit", "encoded", "text"):
        sent = {
            "circuit": circuit,
            "text": qasm3.dumps(circuit),
            "encoded": make_spec((circuit, points[:1]), backend="b").pubs[0].circuit,
        }[form]
        columns = {"a": [x for x, _ in points], "b": [y for _, y in points]}
        for values in (points, [points], columns):
            yield make_spec([(sent, values)], backend="b"), "pubs[0].parameters"
        yield make_spec([(sent, "ZZ", points)], backend="b", program_id="estimator"), "pubs[0].parameters"
        return
    params = program([circuit], form=form.replace("data", "text"))
    tensor = encode_tensor(points, (len(points), 2))
    if form == "v1.1":
        tensor["data"] = base64.b64encode(zlib.decompress(base64.b64decode(tensor["data"]))).decode()
    params["quantum_program"]["items"] = [{"item_type": "circuit", "circuit_arguments": tensor}]
    field = "params.quantum_program.items[0].circuit_arguments"
    yield make_spec(None, backend="b", program_id="executor", params=params), field


@pytest.mark.parametrize(("body", "reads"), [("rz(a) $0;", 0), ("rzz(0.5) $0, $1;", 0), ("rzz(a) $0, $1;", 1)])
def test_values_are_read_only_for_an_angle_that_depends_on_them(
    body: str, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions."""
    read: list[Any] = []

    def rows(values: Any, inputs: Any, *, field: str) -> Any:
        read.append(values)
        return point_rows(values, inputs, field=field)

    monkeypatch.setattr(isa, "point_rows", rows)
    text = f'OPENQASM 3.0; include "stdgates.inc"; input float a; bit[2] c; {body * 2}{TAIL}'
    check_isa(make_spec((text, [0.5]), backend="b"), HERON)
    assert len(read) == reads


@pytest.mark.parametrize(
    "body",
    [
        "for float a in {0.1, 0.2} { rzz(a) $0, $1; }",
        "def f(float a, qubit p, qubit q) { rzz(a) p, q; } f(1.0, $0, $1);",
        "float d = a; rzz(d) $0, $1;",
        "inv @ rzz(a) $0, $1;",
        "rzz(sin(a)) $0, $1;",
    ],
)
def test_an_angle_that_is_not_certain_is_left_to_the_service(body: str) -> None:
    text = f'OPENQASM 3.0; include "stdgates.inc"; input float a; bit[2] c; {body}{TAIL}'
    check_isa(make_spec((text, [-1.0]), backend="b"), {**HERON, "basis_gates": [*HERON["basis_gates"], "f"]})


def test_a_variable_of_a_loop_is_left_to_the_service() -> None:
    circuit = QuantumCircuit(2, 1)
    with circuit.for_loop(range(3)) as turn:
        circuit.rzz(turn + a, 0, 1)
    circuit.measure(0, 0)
    check_isa(make_spec((circuit, [-9.0]), backend="b"), HERON)


def test_the_angles_that_a_samplex_computes_are_left_to_the_service() -> None:
    circuit = QuantumCircuit(2, 1)
    circuit.rzz(a, 0, 1)
    params = program([circuit], form="v2.0")
    arguments = {"parameter_values": encode_tensor([[-1.0]], (1, 1))}
    params["quantum_program"]["items"] = [{"item_type": "samplex", "samplex_arguments": arguments, "shape": [1]}]
    check_isa(make_spec(None, backend="b", program_id="executor", params=params), HERON)


def test_an_operation_without_parameters_is_refused_by_its_name() -> None:
    half = QuantumCircuit(2)
    half.cx(0, 1)
    circuit = QuantumCircuit(2, 1)
    circuit.append(Clifford(half), [0, 1])
    circuit.measure(0, 0)
    with pytest.raises(InvalidInput, match="no gate 'clifford'"):
        check_isa(make_spec(circuit, backend="b"), LINE)


def test_what_the_configuration_lacks_is_not_checked() -> None:
    check_isa(make_spec(HEAD + "h $0; cx $0, $9;" + TAIL, backend="b"), {})
    simulator = {"n_qubits": 30, "basis_gates": ["h", "cx"], "coupling_map": None}
    check_isa(make_spec(HEAD + "h $0; cx $0, $9;" + TAIL, backend="b"), simulator)


def program(circuits: list[Any], *, form: str, shots: int = 10) -> dict[str, Any]:
    """A quantum program as raw params."""
    if form == "text":
        sent: dict[str, Any] = {"data": [qasm3.dumps(circuit) for circuit in circuits]}
    else:
        buffer = io.BytesIO()
        qpy.dump(circuits, buffer, version=17)
        data = zlib.compress(buffer.getvalue()) if form == "v2.0" else buffer.getvalue()
        sent = {"b64_data": base64.b64encode(data).decode(), "qpy_version": 17, "num_programs": len(circuits)}
    return {
        "schema_version": "v2.0",
        "quantum_program": {"shots": shots, "circuits": sent, "items": [{}] * len(circuits)},
    }


@pytest.mark.parametrize("form", ["text", "v1.1", "v2.0"])
def test_the_circuits_of_a_quantum_program_are_checked(form: str) -> None:
    fits, wrong, wide = QuantumCircuit(4, 1), QuantumCircuit(4, 1), QuantumCircuit(5, 1)
    fits.cz(0, 1)
    wrong.h(0)
    wide.x(4)

    def checked(*circuits: QuantumCircuit, shots: int = 10) -> None:
        params = program(list(circuits), form=form, shots=shots)
        check_isa(make_spec(None, backend="b", program_id="executor", params=params), {**LINE, "max_shots": 100})

    checked(fits, fits)
    for circuits, words, place in (((fits, wrong), "no gate 'h'", "[1]"), ((wide, fits), "qubit 4", "[0]")):
        with pytest.raises(InvalidInput, match=words) as caught:
            checked(*circuits)
        assert caught.value.field == f"params.quantum_program.circuits{place}"
        assert "transpile=True" not in str(caught.value)
    with pytest.raises(InvalidInput, match="at most 100") as caught:
        checked(fits, shots=101)
    assert caught.value.field == "params.quantum_program.shots"


@pytest.mark.parametrize(
    "params",
    [
        {"x": 1},
        {"quantum_program": None},
        {"quantum_program": {"circuits": {"data": "x"}}},
        {"quantum_program": {"circuits": {"data": [{}]}}},
        {"quantum_program": {"circuits": {"b64_data": "damaged"}}},
        {"quantum_program": {"items": [{"circuit": {"circuit_b64": ""}}]}},
    ],
)
def test_a_payload_whose_circuits_cannot_be_checked_is_refused(params: dict[str, Any]) -> None:
    spec = make_spec(None, backend="b", program_id="p", params=params)
    with pytest.raises(InvalidInput):
        check_isa(spec, LINE)


ODD: list[Any] = [
    None,
    7,
    "cz",
    True,
    {"cz": 1},
    [],
    [7],
    [[0]],
    [[0, 1, 2]],
    [["a", "b"]],
    [[0, 1.5]],
    [[-1, 0]],
    [None, "cz"],
    1e9,
]


@pytest.mark.parametrize("key", [*LINE, "max_shots", "simulator", "dt"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_what_a_configuration_says_in_another_form_is_not_checked(key: str, odd: Any) -> None:
    """Nothing but the circuit itself is refused, whatever the service answers."""
    text = HEAD + "x $0; cz $0, $1;" + TAIL
    configuration = {**LINE, key: odd}
    for use in (
        lambda: check_isa(make_spec(text, backend="b"), configuration),
        lambda: transpile_pubs(text, configuration),
    ):
        with contextlib.suppress(InvalidInput):
            use()
