"""Schedule circuits as soon as possible, for the timing metadata that the executor returns on request."""

from __future__ import annotations

from typing import Any

# Durations in `dt`; the times of real devices are of this order.
_DURATIONS = {"barrier": 0, "rz": 0, "delay": 0, "measure": 4600, "reset": 4600}
_ONE_QUBIT, _MORE_QUBITS = 144, 360


def schedule(circuit: Any) -> dict[str, Any]:
    """Return the circuit's timing as comma-separated text, one line for each instruction and qubit, and its length."""
    free = [0] * circuit.num_qubits
    lines = []
    for number, item in enumerate(circuit.data):
        qubits = [circuit.find_bit(qubit).index for qubit in item.qubits]
        name = item.operation.name
        duration = _DURATIONS.get(name, _ONE_QUBIT if len(qubits) < 2 else _MORE_QUBITS)
        if name == "delay" and item.operation.unit == "dt" and isinstance(item.operation.duration, int):
            duration = item.operation.duration
        start = max((free[qubit] for qubit in qubits), default=0)
        for qubit in qubits:
            free[qubit] = start + duration
            lines.append(f"main,{name}_{number},Qubit {qubit},{start},{duration},{name}")
    return {"timing": "\n".join(lines), "circuit_duration": max(free, default=0)}


def stretches(circuit: Any) -> list[dict[str, Any]]:
    """Return the values of the circuit's stretches: none takes any time here."""
    found = circuit.iter_stretches()
    return [{"name": stretch.name, "value": 0, "remainder": 0, "expanded_values": []} for stretch in found]
