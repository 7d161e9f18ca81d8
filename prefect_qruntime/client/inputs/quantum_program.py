"""IBM's `QuantumProgram` objects as the `params` of program `executor` (extra `[ibm]`), by IBM's own converter."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from prefect_qruntime.errors import InvalidInput

__all__ = [
    "IBM_EXTRA",
    "first_line",
    "has_ibm",
    "ibm_module",
    "is_quantum_program",
    "params_of_program",
    "write_program",
]

_CLIENT = "qiskit_ibm_runtime"
IBM_EXTRA = "pip install 'prefect-qruntime[ibm]'"


def has_ibm() -> bool:
    """Whether IBM's client with its client-side primitives is installed."""
    try:
        import_module(f"{_CLIENT}.executor_sampler")
    except ImportError:
        return False
    return True


def is_quantum_program(value: Any) -> bool:
    """Whether a value is IBM's `QuantumProgram`, without importing IBM's client."""
    kinds = [
        getattr(sys.modules.get(module), "QuantumProgram", None)
        for module in (f"{_CLIENT}.quantum_program", "samplomatic.quantum_program")
    ]
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def params_of_program(program: Any, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `params` of program `executor` for IBM's `QuantumProgram`.

    Args:
        program: The quantum program.
        options: `init_qubits`, `rep_delay`, `scheduler_timing`, `stretch_values` and `experimental`.

    Raises:
        InvalidInput: IBM's client is not installed, or refuses the program or the options.
    """
    models = ibm_module("options_models.executor", "QuantumProgram objects")
    given = dict(options or {})
    experimental = given.pop("experimental", None) or {}
    try:
        chosen = models.ExecutorOptions(execution=given, experimental=experimental)
    except ValueError as error:
        raise InvalidInput(f"IBM's client refuses them: {first_line(error)}", field="options") from None
    return write_program(program, chosen)


def write_program(program: Any, options: Any) -> dict[str, Any]:
    """The `params` of an IBM quantum program with its options.

    Raises:
        InvalidInput: IBM's client is not installed, or cannot write the program.
    """
    converters = ibm_module("quantum_program.converters.converters_2_0", "QuantumProgram objects")
    try:
        found: dict[str, Any] = converters.quantum_program_to_2_0(program, options).model_dump(mode="json")
    except ValueError as error:
        raise InvalidInput(f"IBM's client cannot write the program: {first_line(error)}", field="pubs") from None
    # The role is reserved for IBM's own clients; the recipe in `passthrough_data` says all that is needed.
    found["quantum_program"].pop("semantic_role", None)
    return found


def ibm_module(name: str, what: str) -> Any:
    """A module of IBM's client.

    Raises:
        InvalidInput: IBM's client is not installed; the extra that brings it is named.
    """
    try:
        return import_module(f"{_CLIENT}.{name}")
    except ImportError:
        raise InvalidInput(f"{what} need IBM's own client: {IBM_EXTRA}", field="options") from None


def first_line(error: Exception) -> str:
    """The first line of an error of IBM's client, cut to 300 characters."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
