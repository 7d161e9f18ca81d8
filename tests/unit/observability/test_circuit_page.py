"""A job's circuits on its page: a drawing, and an error estimate that says how it was made."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from prefect_qruntime.client.inputs.spec import Pub
from prefect_qruntime.observability.circuit_page import circuit_section, is_drawable, success_probability

qiskit = pytest.importorskip("qiskit")

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'


def properties(gate: float = 0.01, pair: float = 0.1, readout: float = 0.02, qubits: int = 2) -> dict[str, Any]:
    def error(value: float) -> list[dict[str, Any]]:
        return [{"name": "gate_error", "value": value}]

    return {
        "last_update_date": "2026-01-01T00:00:00Z",
        "gates": [
            *({"gate": "h", "qubits": [n], "parameters": error(gate)} for n in range(qubits)),
            *({"gate": "cx", "qubits": [n, n + 1], "parameters": error(pair)} for n in range(qubits - 1)),
        ],
        "qubits": [[{"name": "readout_error", "value": readout}]] * qubits,
    }


def bell() -> Any:
    circuit = qiskit.QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.barrier()
    circuit.measure([0, 1], [0, 1])
    return circuit


def test_the_estimate_is_the_product_over_gates_and_readouts() -> None:
    assert success_probability(bell(), properties()) == pytest.approx(0.99 * 0.9 * 0.98**2)
    assert success_probability(bell(), properties(pair=1.0)) == 0.0
    assert success_probability(bell(), properties(0, 0, 0)) == 1.0


def test_a_pair_counts_in_either_direction() -> None:
    circuit = qiskit.QuantumCircuit(2)
    circuit.cx(1, 0)
    assert success_probability(circuit, properties()) == pytest.approx(0.9)


@pytest.mark.parametrize("change", ["gate", "place", "readout", "nonsense"])
def test_what_the_calibration_does_not_have_is_not_guessed(change: str) -> None:
    circuit, known = bell(), properties()
    if change == "gate":
        circuit.swap(0, 1)
    if change == "place":
        circuit = qiskit.QuantumCircuit(3)
        circuit.h(2)
    if change == "readout":
        known["qubits"] = []
    if change == "nonsense":
        known = properties(pair=7.0)
    assert success_probability(circuit, known) is None


def test_the_page_shows_circuit_size_and_estimate() -> None:
    text = circuit_section([Pub(circuit=BELL)], "ibm_torino", properties())
    assert text.startswith("**Circuit 0**: 2 of 2 qubits; 2 gates, 1 on two qubits; depth 3.")
    assert re.search(r"Estimated error: \*\*14\.4%\*\* of the shots .* calibration of 2026-01-01 of ibm_torino;", text)
    assert "```text" in text
    assert "┤ H ├" in text
    assert "Estimated" not in circuit_section([Pub(circuit=BELL)], "sandbox_ideal", None)


def test_a_text_that_cannot_be_read_and_a_large_circuit_are_bounded() -> None:
    assert circuit_section([Pub(circuit="OPENQASM 3.0; odd")], "b", None) == ""
    gates = " ".join("h q[0];" for _ in range(1000))
    wide = f'OPENQASM 2.0; include "qelib1.inc"; qreg q[100]; creg c[100]; {gates} measure q -> c;'
    text = circuit_section([Pub(circuit=wide)] * 30, "b", None)
    assert "Too large for a drawing." in text
    assert "30 circuits in all." in text
    assert len(text) < 1000


def test_circuits_are_drawn_where_qiskit_is_loaded_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_drawable("loaded")
    monkeypatch.delitem(sys.modules, "qiskit.circuit")
    assert not is_drawable("loaded")
    assert is_drawable("always")
    assert not is_drawable("never")
