"""OpenQASM text for the executor, compared with what qiskit reads in it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, example, given, settings, strategies as st
from qiskit import QuantumCircuit, qasm2, qasm3

from prefect_qruntime.client.inputs.qasm import scan
from prefect_qruntime.client.programs.openqasm import as_version_3, measured, qubit_operands
from prefect_qruntime.errors import InvalidInput

LITERALS = st.one_of(
    st.integers(0, 40).map(str),
    st.sampled_from(["pi", "0.5", "2.", ".25", "1e1", "1.5e-1", "3E+0", "12345678901234567890"]),
)
SPACES = st.sampled_from(["", " ", "\n"])
EXPRESSIONS = st.recursive(
    LITERALS,
    lambda inner: st.one_of(
        inner.map(lambda text: f"-{text}"),
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, SPACES, st.sampled_from("+-*/"), SPACES, inner).map("".join),
    ),
    max_leaves=8,
)


def _text_2(angles: str, gate: str = "rx") -> str:
    return f'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; {gate}({angles}) q[0]; measure q -> c;'


def _angles(circuit: QuantumCircuit) -> list[float]:
    return [float(value) for value in circuit.data[0].operation.params]


def _read_2(text: str) -> QuantumCircuit:
    return qasm2.loads(text, custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS)
@example("1/2", "-1/2")
@example("5/2", "3/4*pi")
@example("7-3-1", "-(1+2)/4")
def test_angles_of_version_2_keep_their_values(first: str, second: str) -> None:
    text = _text_2(f"{first}, {second}, 1/4", "u3")
    try:
        wanted = _angles(_read_2(text))
    except qasm2.QASM2ParseError:
        assume(False)  # a division by zero
    found = _angles(qasm3.loads(as_version_3(text, field="x")))
    assert found == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.eE+-*/^()pi, sn", max_size=12))
@example("2**3")
@example("2^3")
@example("+1")
@example("1 2")
@example("2pi")
@example("1,")
def test_what_is_rewritten_is_read_by_both_versions_alike(argument: str) -> None:
    text = _text_2(argument)
    try:
        new = as_version_3(text, field="x")
        wanted = _angles(_read_2(text))
    except (InvalidInput, qasm2.QASM2ParseError):
        return
    found = _angles(qasm3.loads(new))
    assert len(found) == len(wanted)
    assert all(math.isclose(one, other, rel_tol=1e-12) for one, other in zip(found, wanted, strict=True))


# Every kind of declaration of version 3, of the name NAME.
DECLARED = [
    "gate NAME a { U(0, 0, 0) a; }",
    "gate NAME(s, t) a, b { U(s, 0, t) a; }",
    "def NAME(qubit a) { U(0, 0, 0) a; }",
    "extern NAME(int[8]) -> int[8];",
    "let NAME = q[0:0];",
    "qubit NAME;",
    "qubit[2] NAME;",
    "qreg NAME[2];",
    "creg NAME[2];",
    "bit NAME;",
    "bit[2] NAME;",
    'bit[2] NAME = "01";',
    "output bit[2] NAME;",
    "const int[8] NAME = 2;",
    "const uint NAME = 2;",
    "int NAME;",
    "bool NAME = true;",
    "float[64] NAME = 0.5;",
    "input float[64] NAME;",
    "input angle NAME;",
    "complex[float[64]] NAME;",
    "array[int[8], 2, 3] NAME;",
    "duration NAME = 10ns;",
    "stretch NAME;",
]
# Names of a scope of their own, which hide nothing.
INNER = [
    "gate mine(NAME) a { U(NAME, 0, 0) a; }",
    "gate mine a, NAME { U(0, 0, 0) NAME; }",
    "def mine(qubit NAME) { U(0, 0, 0) NAME; }",
    "for int NAME in [0:1] { U(0.1, 0, 0) q[0]; }",
    "// qubit NAME;",
    "int number; number = 1; /* let NAME = q; */",
]


def _measured_in_x(text: str) -> str:
    return measured(text, {0: "X"}, operands=["q[0]"], register="out", field="pubs[0].circuit")


@pytest.mark.parametrize("name", ["h", "p", "sx", "rz", "x", "CX", "u2"])
@pytest.mark.parametrize("declaration", DECLARED)
def test_a_name_of_a_standard_gate_for_something_else_is_refused(declaration: str, name: str) -> None:
    text = f"OPENQASM 3.0;\nqubit[1] q;\n{declaration.replace('NAME', name)}\nU(0.3, 0, 0) q[0];"
    with pytest.raises(InvalidInput, match=f"declares '{name}' itself") as caught:
        _measured_in_x(text)
    assert caught.value.field == "pubs[0].circuit"
    # A measurement of Z needs no gate, and another name is no obstacle.
    assert "include" not in measured(text, {0: "Z"}, operands=["q[0]"], register="out", field="x")
    assert "include" in _measured_in_x(text.replace(f" {name}", " mine"))


@pytest.mark.parametrize("declaration", INNER)
def test_a_name_of_an_inner_scope_is_no_obstacle(declaration: str) -> None:
    text = f"OPENQASM 3.0;\nqubit[1] q;\n{declaration.replace('NAME', 'p')}\nU(0.3, 0, 0) q[0];"
    assert _measured_in_x(text).count('include "stdgates.inc";') == 1


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("header", ["OPENQASM 3.0;", "OPENQASM 3;", ""])
def test_the_standard_gates_are_included_once(header: str, quote: str) -> None:
    text = f"{header}include {quote}stdgates.inc{quote}; qubit[1] q; h q[0];"
    assert scan(text, field="x").qubits == 1
    assert _measured_in_x(text).count("include") == 1
    assert qasm3.loads(_measured_in_x(text)).num_clbits == 1


def test_a_circuit_on_native_gates_gets_the_standard_ones() -> None:
    text = "OPENQASM 3.0;\nsx $0;\nrz(0.1) $0;"
    found = measured(text, {0: "Y"}, operands=["$0"], register="out", field="x")
    assert found.count("include") == 1


@pytest.mark.parametrize(
    ("declared", "operands"),
    [
        ("const int n = 1; qubit[n + 1] a; qubit b;", ["a[0]", "a[1]", "b"]),
        ("qubit[0x2] a;", ["a[0]", "a[1]"]),
        ("qreg a[2]; qubit b;", ["a[0]", "a[1]", "b"]),
        ("def f(qubit[3] c) { x c[0]; } qubit a;", ["a"]),
    ],
)
def test_operands_are_those_of_all_registers(declared: str, operands: Any) -> None:
    assert qubit_operands(f"OPENQASM 3.0; {declared}", field="x") == operands
