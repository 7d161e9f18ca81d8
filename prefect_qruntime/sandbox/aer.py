"""Run circuits on qiskit-aer, with or without noise, and return shots or expectation values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from prefect_qruntime.sandbox.catalog import ERROR_1Q, ERROR_2Q, ERROR_READOUT
from prefect_qruntime.sandbox.circuits import GATES_1Q, GATES_2Q, is_clifford
from prefect_qruntime.sandbox.encoding import InputError

# A state vector above this fails the job instead of the machine.
_MEMORY_MB = 2048
_WIDE = 24
_DENSITY_QUBITS = 9
# Unconnected parts of a wide circuit run as one circuit up to this many qubits.
_TOGETHER = 5


@lru_cache(maxsize=4)
def _noise_model() -> Any:
    from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(ERROR_1Q, 1), list(GATES_1Q))
    model.add_all_qubit_quantum_error(depolarizing_error(ERROR_2Q, 2), list(GATES_2Q))
    p = ERROR_READOUT
    model.add_all_qubit_readout_error(ReadoutError([[1 - p, p], [p, 1 - p]]))
    return model


@lru_cache(maxsize=16)
def _simulator(noisy: bool, method: str) -> Any:
    from qiskit_aer import AerSimulator

    options: dict[str, Any] = {"method": method, "max_parallel_threads": 1, "max_memory_mb": _MEMORY_MB}
    if noisy:
        options["noise_model"] = _noise_model()
    return AerSimulator(**options)


def _for(circuit: Any, noisy: bool) -> Any:
    wide = circuit.num_qubits > _WIDE and not is_clifford(circuit)
    return _simulator(noisy, "matrix_product_state" if wide else "automatic")


def _run(simulator: Any, circuits: list[Any], shots: int, seed: int, **options: Any) -> Any:
    from qiskit_aer import AerError

    try:
        result = simulator.run(circuits, shots=shots, seed_simulator=seed, **options).result()
    except AerError as error:
        raise InputError(f"The circuit could not be simulated: {error}") from error
    if not result.success:
        problems = [one.status for one in result.results if not one.success] or [result.status]
        raise InputError(f"The circuit could not be simulated: {problems[0]}")
    return result


def memory(circuits: list[Any], shots: int, seed: int, *, noisy: bool) -> list[list[str]]:
    """Run bound circuits of one shape; return for each the shots in order as hex strings over all its bits."""
    parts = _parts(circuits[0]) if circuits[0].num_qubits > _WIDE and not is_clifford(circuits[0]) else []
    if len(parts) < 2:
        return _memory(circuits, shots, seed, noisy=noisy)
    joined = [[0] * shots for _ in circuits]
    for number, (qubits, clbits) in enumerate(parts):
        if not clbits:
            continue
        cut = [_cut(circuit, qubits, clbits) for circuit in circuits]
        for whole, taken in zip(joined, _memory(cut, shots, seed + number, noisy=noisy), strict=True):
            for shot, shown in enumerate(taken):
                value = int(shown, 16)
                for place, bit in enumerate(clbits):
                    whole[shot] |= (value >> place & 1) << bit
    return [[hex(value) for value in whole] for whole in joined]


def _parts(circuit: Any) -> list[tuple[list[int], list[int]]]:
    """Return the qubits and bits of each part of a circuit that no instruction connects with another part.

    Conditions name bits of the whole circuit, so one that has any is not cut.
    """
    if any(item.is_control_flow() for item in circuit.data):
        return []
    home = list(range(circuit.num_qubits + circuit.num_clbits))

    def root(place: int) -> int:
        while home[place] != place:
            home[place] = home[home[place]]
            place = home[place]
        return place

    for item in circuit.data:
        if item.operation.name != "barrier":
            places = [circuit.find_bit(qubit).index for qubit in item.qubits]
            places += [circuit.num_qubits + circuit.find_bit(bit).index for bit in item.clbits]
            for place in places[1:]:
                home[root(place)] = root(places[0])
    found: dict[int, tuple[list[int], list[int]]] = {}
    for place in range(len(home)):
        qubits, clbits = found.setdefault(root(place), ([], []))
        if place < circuit.num_qubits:
            qubits.append(place)
        else:
            clbits.append(place - circuit.num_qubits)
    parts: list[tuple[list[int], list[int]]] = []
    for qubits, clbits in sorted(found.values(), key=lambda part: -len(part[0])):
        if parts and len(parts[-1][0]) + len(qubits) <= _TOGETHER:
            parts[-1] = parts[-1][0] + qubits, parts[-1][1] + clbits
        else:
            parts.append((qubits, clbits))
    return parts


def _cut(circuit: Any, qubits: list[int], clbits: list[int]) -> Any:
    """Return a part of a circuit as a circuit of its own."""
    from qiskit import QuantumCircuit

    part = QuantumCircuit(len(qubits), len(clbits))
    bits = {circuit.qubits[place]: part.qubits[number] for number, place in enumerate(qubits)}
    bits |= {circuit.clbits[place]: part.clbits[number] for number, place in enumerate(clbits)}
    for item in circuit.data:
        operands = (*item.qubits, *item.clbits)
        if item.operation.name != "barrier" and operands and operands[0] in bits:
            part.append(item.operation, [bits[one] for one in item.qubits], [bits[one] for one in item.clbits])
    return part


def _memory(circuits: list[Any], shots: int, seed: int, *, noisy: bool) -> list[list[str]]:
    result = _run(_for(circuits[0], noisy), circuits, shots, seed, memory=True)
    shown = []
    for index in range(len(circuits)):
        taken = result.data(index).get("memory")
        # Aer keeps no memory of a circuit that measures nothing; its bits are all 0 then.
        shown.append(list(taken) if taken else ["0x0"] * shots)
    return shown


def expectations(circuits: list[Any], terms: list[str], shots: int, seed: int, *, noisy: bool) -> list[list[float]]:
    """Return, for each bound circuit, the expectation value of each Pauli term (label, highest qubit first).

    Exact for circuits without measurement, reset and control flow, unless noise on many qubits has to be sampled.
    """
    from qiskit.quantum_info import Pauli
    from qiskit_aer.library import SaveExpectationValue

    prepared = []
    for circuit in circuits:
        ready = circuit.copy()
        for index, label in enumerate(terms):
            save = SaveExpectationValue(Pauli(label), label=f"t{index}")
            ready.append(save, list(range(ready.num_qubits)))
        prepared.append(ready)
    width = circuits[0].num_qubits
    if noisy and width <= _DENSITY_QUBITS:
        simulator = _simulator(True, "density_matrix")
    elif not noisy and width <= _WIDE:
        simulator = _simulator(False, "statevector")
    else:
        simulator = _for(circuits[0], noisy)
    result = _run(simulator, prepared, shots, seed)
    found = []
    for index in range(len(circuits)):
        data = result.data(index)
        found.append([float(data[f"t{number}"]) for number in range(len(terms))])
    return found
