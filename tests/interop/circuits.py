"""Circuits of the tests, in the instructions of a backend."""

from __future__ import annotations

from typing import Any

from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager


def isa(circuit: QuantumCircuit, backend: Any) -> QuantumCircuit:
    """Translate for a backend; the same each time."""
    return generate_preset_pass_manager(optimization_level=1, backend=backend, seed_transpiler=1).run(circuit)


def bell(*, measured: bool = True) -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    if measured:
        circuit.measure_all()
    return circuit


def ghz(width: int) -> QuantumCircuit:
    circuit = QuantumCircuit(width)
    circuit.h(0)
    for qubit in range(1, width):
        circuit.cx(qubit - 1, qubit)
    circuit.measure_all()
    return circuit


def rotations(*, measured: bool) -> QuantumCircuit:
    """Two qubits turned about x, each by a parameter of its own."""
    angle = ParameterVector("angle", 2)
    circuit = QuantumCircuit(2)
    circuit.rx(angle[0], 0)
    circuit.rx(angle[1], 1)
    if measured:
        circuit.measure_all()
    return circuit


def teleportation(angle: float) -> QuantumCircuit:
    """Send a qubit turned by `angle` about x from qubit 0 to qubit 2, correcting by what was measured."""
    qubits = QuantumRegister(3)
    sent, received = ClassicalRegister(2, "sent"), ClassicalRegister(1, "received")
    circuit = QuantumCircuit(qubits, sent, received)
    circuit.rx(angle, 0)
    circuit.h(1)
    circuit.cx(1, 2)
    circuit.cx(0, 1)
    circuit.h(0)
    circuit.measure([0, 1], sent)
    with circuit.if_test((sent[1], 1)):
        circuit.x(2)
    with circuit.if_test((sent[0], 1)):
        circuit.z(2)
    circuit.measure(2, received)
    return circuit


def observables(circuit: QuantumCircuit, *labels: str) -> list[Any]:
    """Return Pauli terms laid out as the circuit is."""
    return [SparsePauliOp(label).apply_layout(circuit.layout) for label in labels]
