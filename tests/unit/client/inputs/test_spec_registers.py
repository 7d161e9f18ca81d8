"""Bits outside registers are refused where results are registers; risky names of registers are noticed."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_qruntime.client.dialects import v1_params, v2_params
from prefect_qruntime.client.inputs.spec import RESTRICTED_NAMES, input_notices
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

H = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; '


@pytest.mark.parametrize("route", ["service", "executor"])
@pytest.mark.parametrize(
    ("circuit", "said"),
    [
        ("bit c0; c0 = measure q[0];", "'c0' is a scalar bit"),
        ("creg c0; c0 = measure q[0];", "'c0' is a scalar bit"),
        ("bit a; bit[1] b; a = measure q[0]; b[0] = measure q[1];", "Declare a register instead: bit[1] a;"),
        ("bit a; bit b; a = measure q[0]; b = measure q[1];", "'a', 'b' are scalar bits"),
        ("".join(f"bit c{n};" for n in range(9)) + "c0 = measure q[0];", "'c4' and 4 more are scalar bits"),
    ],
)
def test_scalar_bits_are_refused_in_the_cloud_dialect_only(circuit: str, said: str, route: str) -> None:
    spec = make_spec([H + circuit], backend="b", route=route)
    with pytest.raises(InvalidInput) as caught:
        v2_params(spec)
    assert caught.value.field == "pubs[0].circuit"
    assert said in str(caught.value)
    if route == "service":
        assert v1_params(spec)["circuits"] == [H + circuit]


def test_an_estimator_returns_no_registers() -> None:
    v2_params(make_spec((H + "bit c; c = measure q[0];", "ZZ"), backend="b", program_id="estimator"))


def test_loose_bits_of_a_quantum_circuit_are_refused_alike() -> None:
    from qiskit import ClassicalRegister, QuantumCircuit
    from qiskit.circuit import Clbit, Qubit

    loose = QuantumCircuit([Qubit(), Clbit()])
    mixed = QuantumCircuit([Qubit()], ClassicalRegister(1, "c"), [Clbit()])
    for circuit, bit in ((loose, 0), (mixed, 1)):
        circuit.measure(0, bit)
        with pytest.raises(InvalidInput, match=f"classical bit {bit} belongs to no register"):
            v2_params(make_spec([circuit], backend="b"))
    assert v1_params(make_spec([loose], backend="b"))["circuits"]


def test_registers_qiskit_cannot_name_are_noticed() -> None:
    from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
    from qiskit.primitives import DataBin

    public = {name for name in DataBin._RESTRICTED_NAMES if not name.startswith("_")}
    assert public == RESTRICTED_NAMES
    for name in sorted(RESTRICTED_NAMES):
        circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1, name), ClassicalRegister(1, "ok"))
        circuit.measure(0, 0)
        text = H + f"bit[1] {name}; bit[1] ok; {name}[0] = measure q[0];"
        forms: list[Any] = [text, circuit]
        for form in forms:
            (notice,) = input_notices(make_spec([form], backend="b"))
            assert f"pubs[0].circuit has a register named '{name}'" in notice
    assert input_notices(make_spec([H + "bit[1] c; c[0] = measure q[0];"], backend="b")) == ()
