"""Parse, check, reduce and translate the circuits of a job for qiskit-aer."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

from prefect_qruntime.sandbox import qasm3
from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.encoding import InputError, decode, decode_circuit, inflate
from prefect_qruntime.sandbox.lowering import lower

_HEADER = re.compile(r"\A(?:\s+|//[^\n]*\n|/\*.*?\*/)*OPENQASM\s+([23])", re.DOTALL)

_GATE = re.compile(r"\bgate\s+([A-Za-z_]\w*)")

# Gates that each of Aer's methods runs as they are, with noise on each; all others are translated to _BASIS first.
GATES_1Q = ("h", "p", "r", "rx", "ry", "sx", "sxdg", "u", "u1", "u2", "u3", "x", "y")
GATES_2Q = ("cp", "cx", "cy", "cz", "ecr", "rxx", "ryy", "rzx", "rzz", "swap")
_FREE = ("id", "rz", "s", "sdg", "t", "tdg", "z")
_FLOW = ("break_loop", "continue_loop", "for_loop", "if_else", "switch_case", "while_loop")
_BASIS = ["cx", "id", "rz", "sx", "x", *_FLOW]
_OTHER = ("barrier", "delay", "initialize", "measure", "reset", "store")
_NATIVE = frozenset((*GATES_1Q, *GATES_2Q, *_FREE, *_FLOW, *_OTHER))
_CLIFFORD_GATES = ("h", "x", "y", "z", "s", "sdg", "sx", "sxdg", "cx", "cy", "cz", "ecr", "swap", "id")
_CLIFFORD = frozenset((*_CLIFFORD_GATES, "measure", "reset", "barrier", "delay"))


def load(source: Any) -> Any:
    """Turn one circuit of a job into a `QuantumCircuit`.

    Args:
        source: OpenQASM 2 or 3, base64 of (zlib of) QPY, or an encoded `QuantumCircuit`.

    Raises:
        InputError: If it cannot be read.
    """
    if isinstance(source, str):
        return _parse(source)
    if isinstance(source, dict) and source.get("__type__") == "QuantumCircuit":
        text = source.get("__value__")
        return _from_qpy(text) if isinstance(text, str) else decode(source)
    raise InputError("A circuit must be OpenQASM text or an encoded QuantumCircuit.")


@lru_cache(maxsize=512)
def _from_qpy(text: str) -> Any:
    return decode_circuit(inflate(text))


@lru_cache(maxsize=512)
def _parse(text: str) -> Any:
    from qiskit import qasm2

    text = text.removeprefix("\ufeff")
    found = _HEADER.match(text)
    if found is None and ";" not in text:
        return _from_base64(text)
    if found is None or found.group(1) == "3":  # OpenQASM 3 may leave its version out.
        return qasm3.load(text)
    # A gate of the program's own goes before one of the same name that qiskit adds to the library.
    own = set(_GATE.findall(text))
    added = [one for one in qasm2.LEGACY_CUSTOM_INSTRUCTIONS if one.name not in own]
    try:
        # No include path: a circuit may not read files of the machine.
        return qasm2.loads(text[found.start(1) - len("OPENQASM ") :], include_path=(), custom_instructions=added)
    except Exception as error:
        raise InputError(f"The OpenQASM 2 program could not be parsed: {error}", 1500) from error


def load_qasm3(text: str) -> Any:
    """Turn OpenQASM 3 into a `QuantumCircuit`.

    Raises:
        InputError: If it is not OpenQASM 3 or cannot be read.
    """
    found = _HEADER.match(text)
    if found is not None and found.group(1) != "3":
        raise InputError("The circuit is not OpenQASM 3.")
    return qasm3.load(text)


def _from_base64(text: str) -> Any:
    import base64
    import binascii

    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("The circuit is neither OpenQASM 2 or 3 nor QPY.") from None
    return decode_circuit(data if data[:6] == b"QISKIT" else inflate(text))


def check_fits(circuit: Any, backend: Backend, strict: bool) -> None:
    """Refuse a circuit that is too wide or, if asked for, not native to the backend.

    Raises:
        InputError: With code 1002 (too wide) or 7001 (not ISA).
    """
    if circuit.num_qubits > backend.qubits:
        raise InputError(f"The circuit has {circuit.num_qubits} qubits, {backend.name} has {backend.qubits}.", 1002)
    if not strict:
        return
    edges = {tuple(edge) for edge in backend.edges()}
    allowed = {*backend.basis_gates, *_FLOW, "measure", "reset", "barrier", "delay", "store"}
    for item in circuit.data:
        name = item.operation.name
        if name not in allowed:
            raise InputError(f"The instruction {name} is not supported on {backend.name}.", 7001)
        if len(item.qubits) == 2 and name not in (*_FLOW, "barrier", "delay"):
            pair = tuple(circuit.find_bit(qubit).index for qubit in item.qubits)
            if pair not in edges:
                raise InputError(f"The instruction {name} on qubits {pair} is not supported.", 7001)


def widen(circuit: Any, width: int) -> Any:
    """Give a circuit that names the backend's own qubits (`$3`) the idle ones beyond the last it names.

    OpenQASM 3 has no place for their number, but observables over the whole backend count them.
    """
    if circuit.layout is None or circuit.num_qubits >= width:
        return circuit
    from qiskit import QuantumCircuit

    wider = QuantumCircuit(width)
    wider.add_bits(circuit.clbits)
    for register in circuit.cregs:
        wider.add_register(register)
    # Without the layout, which the parser makes up.
    return wider.compose(circuit, range(circuit.num_qubits), circuit.clbits, copy=False)


def names_in(circuit: Any) -> set[str]:
    """Return the names of all instructions, also inside control flow."""
    names = set()
    for item in circuit.data:
        names.add(item.operation.name)
        for block in getattr(item.operation, "blocks", ()):
            names |= names_in(block)
    return names


def is_clifford(circuit: Any) -> bool:
    """Whether the stabilizer method can run the circuit."""
    return names_in(circuit) <= _CLIFFORD


@cache
def _known_gates() -> frozenset[str]:
    from qiskit.circuit.library import get_standard_gate_name_mapping

    return frozenset(get_standard_gate_name_mapping()) | _NATIVE


@cache
def _translator() -> Any:
    from qiskit.transpiler import PassManagerConfig
    from qiskit.transpiler.preset_passmanagers import level_0_pass_manager

    # `transpile` itself does not take the statements that leave a loop as a part of the basis.
    return level_0_pass_manager(PassManagerConfig(basis_gates=_BASIS))


def without_last_measurements(circuit: Any) -> Any:
    """The circuit without the measurements after which nothing happens to their qubits and nothing reads their bits.

    Qiskit's own rule also removes measurements that a condition reads.
    """
    from qiskit.converters import circuit_to_dag, dag_to_circuit
    from qiskit.dagcircuit import DAGOpNode
    from qiskit.transpiler.passes.utils.remove_final_measurements import calc_final_ops

    dag = circuit_to_dag(circuit)
    for node in calc_final_ops(dag, {"measure", "barrier"}):
        after = {other.name for other in dag.successors(node) if isinstance(other, DAGOpNode)}
        # A measurement into the same bit does not read it.
        if node.name == "measure" and after <= {"measure", "barrier"}:
            dag.remove_op_node(node)
    return dag_to_circuit(dag)


def compact(circuit: Any, keep: frozenset[int] = frozenset()) -> tuple[Any, dict[int, int]]:
    """Drop idle qubits, barriers and delays, and translate gates that Aer or the noise model does not know.

    The circuit to run may have further classical bits behind those of the given one.

    Returns:
        The circuit to run, and where each kept qubit went.
    """
    from qiskit import QuantumCircuit
    from qiskit.circuit import Qubit

    active = set(keep)
    for item in circuit.data:
        if item.operation.name not in ("barrier", "delay"):
            active.update(circuit.find_bit(qubit).index for qubit in item.qubits)
    order = sorted(active) or [0]
    where = {old: new for new, old in enumerate(order)}
    reduced = QuantumCircuit([Qubit() for _ in order], circuit.clbits, *circuit.cregs)
    for variable in circuit.iter_declared_vars():
        reduced.add_uninitialized_var(variable)
    for stretch in circuit.iter_declared_stretches():
        reduced.add_stretch(stretch)
    for item in circuit.data:
        if item.operation.name not in ("barrier", "delay"):
            qubits = [reduced.qubits[where[circuit.find_bit(qubit).index]] for qubit in item.qubits]
            reduced.append(item.operation, qubits, item.clbits)
    reduced = lower(reduced, _known_gates())
    if not names_in(reduced) <= _NATIVE:
        reduced = _translator().run(reduced)
    return reduced, where


def bind(reduced: Any, parameters: list[Any], rows: Any) -> list[Any]:
    """Bind a reduced circuit once for each row of values; values that it no longer depends on are left out.

    Args:
        reduced: The circuit to bind.
        parameters: The parameters of the circuit that it came from, in the order of the values.
        rows: The values.
    """
    places = [parameters.index(parameter) for parameter in reduced.parameters]
    if not places:
        return [reduced] * len(rows)
    return [reduced.assign_parameters([row[place] for place in places]) for row in rows]


def registers(circuit: Any) -> dict[str, list[int]]:
    """Return the classical registers and the places of their bits in Aer's memory, lowest first."""
    return {register.name: [circuit.find_bit(bit).index for bit in register] for register in circuit.cregs}


def bindings(circuit: Any, values: Any) -> Any:
    """Turn parameter values as sent into what qiskit's pubs take.

    Raises:
        InputError: If the values name parameters that the circuit does not have.
    """
    import numpy as np

    if values is None:
        return None
    if not isinstance(values, dict):
        return np.asarray(values, dtype=float)
    vectors: dict[str, list[str]] = {}
    names = {parameter.name for parameter in circuit.parameters}
    for parameter in circuit.parameters:
        vector = getattr(parameter, "vector", None)
        if vector is not None:
            vectors.setdefault(vector.name, []).append(parameter.name)
    bound: dict[Any, Any] = {}
    for key, value in values.items():
        if key in names:
            bound[key] = np.asarray(value, dtype=float)
        elif key in vectors:
            bound[tuple(vectors[key])] = np.asarray(value, dtype=float)
        else:
            raise InputError(f"The circuit has no parameter {key!r}.")
    return bound
