"""The local look at a backend's qubits, gates and couplings."""

from __future__ import annotations

import base64
import io
import math
import zlib
from typing import Any

import pytest
from qiskit import QuantumCircuit, qasm3, qpy, transpile
from qiskit.circuit import Parameter
from qiskit.circuit.library import real_amplitudes
from qiskit.quantum_info import Clifford

from prefect_qruntime.client.inputs import check_isa
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
    """Also in a block; a simulator takes any. What only values decide is not known here."""

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
