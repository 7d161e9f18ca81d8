"""OpenQASM text for the executor, compared with what qiskit reads in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given, settings, strategies as st
from qiskit import QuantumCircuit, qasm2, qasm3

from prefect_qruntime.client.programs.openqasm import as_version_3
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
