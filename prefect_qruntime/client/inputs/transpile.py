"""Transpile PUBs for a backend, with qiskit and from its configuration alone: no request is made.

The service takes circuits in the backend's own gates and qubits only. For full control (layouts,
measured errors, dynamical decoupling) use qiskit's own pass managers; this is the short way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_qruntime.client.inputs.circuits import is_quantum_circuit, load_qpy
from prefect_qruntime.client.inputs.pubs import pub_parts
from prefect_qruntime.client.inputs.qasm import scan, text_of
from prefect_qruntime.errors import InvalidInput

__all__ = ["transpile_pubs"]

_CONTROL_FLOW = ("if_else", "for_loop", "while_loop", "switch_case", "break_loop", "continue_loop", "box")


def transpile_pubs(
    pubs: Any,
    configuration: Mapping[str, Any],
    *,
    program_id: str = "sampler",
    optimization_level: int = 1,
    seed: int = 0,
) -> list[tuple[Any, ...]]:
    """PUBs with circuits that fit the backend, and observables laid out with them.

    Needs the extra `[qiskit]`, for OpenQASM 3 text also `qiskit-qasm3-import`. With one seed and one
    version of qiskit the outcome is the same each time on one machine; another version or machine
    may give another circuit, and so another submission key. Keep the outcome if that matters.

    Args:
        pubs: As for `make_spec`.
        configuration: The backend's configuration as the service answers it.
        program_id: `sampler` or `estimator`.
        optimization_level: 0 to 3, as in qiskit.
        seed: Of the transpiler.

    Returns:
        One tuple for each PUB, to be given to `make_spec`.

    Raises:
        InvalidInput: qiskit is missing, a circuit cannot be read, or it does not fit the backend.

    Example:
        ```python
        from prefect_qruntime.client.inputs import make_spec, transpile_pubs

        configuration = {"n_qubits": 2, "basis_gates": ["rz", "sx", "x", "cz"], "coupling_map": [[0, 1]]}
        text = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; h q[0]; measure q -> c;'
        spec = make_spec(transpile_pubs(text, configuration), backend="ibm_torino")
        ```
    """
    try:
        from qiskit.transpiler import CouplingMap, generate_preset_pass_manager
    except ImportError:
        raise InvalidInput("transpiling needs qiskit: pip install 'prefect-qruntime[qiskit]'", field="pubs") from None
    coupling = configuration.get("coupling_map")
    supported = [name for name in configuration.get("supported_instructions") or () if name in _CONTROL_FLOW]
    manager = generate_preset_pass_manager(
        optimization_level=optimization_level,
        basis_gates=[*dict.fromkeys([*(configuration.get("basis_gates") or ()), *supported])] or None,
        coupling_map=CouplingMap(coupling) if coupling else None,
        seed_transpiler=seed,
    )
    found: list[tuple[Any, ...]] = []
    for place, parts in enumerate(pub_parts(pubs, program_id=program_id)):
        field = f"pubs[{place}].circuit"
        circuit = _circuit(parts[0], field)
        size = configuration.get("n_qubits")
        if isinstance(size, int) and circuit.num_qubits > size:
            raise InvalidInput(f"{circuit.num_qubits} qubits, but the backend has {size}", field=field)
        try:
            fitting = manager.run(circuit)
        except Exception as error:
            raise InvalidInput(f"cannot be transpiled: {type(error).__name__}: {error}", field=field) from None
        rest = list(parts[1:])
        if program_id == "estimator" and rest:
            rest[0] = _laid_out(rest[0], fitting, f"pubs[{place}].observables")
        found.append((fitting, *rest))
    return found


def _circuit(value: Any, field: str) -> Any:
    if is_quantum_circuit(value):
        return value
    if isinstance(value, dict):
        return load_qpy(value, field=field)
    text = str(text_of(value, field=field))
    version = scan(text, field=field).version
    from qiskit import qasm2, qasm3

    try:
        if version == 3:
            return qasm3.loads(text)
        return qasm2.loads(text, custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS)
    except Exception as error:
        raise InvalidInput(f"qiskit cannot read it: {type(error).__name__}: {error}", field=field) from None


def _laid_out(observables: Any, circuit: Any, field: str) -> Any:
    from qiskit.primitives.containers.observables_array import ObservablesArray

    try:
        array = ObservablesArray.coerce(observables)
        return array.apply_layout(circuit.layout, num_qubits=circuit.num_qubits).tolist()
    except Exception as error:
        raise InvalidInput(f"do not fit the circuit: {error}", field=field) from None
