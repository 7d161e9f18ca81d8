"""A local look whether circuits fit a backend: qubits, gate names, coupled pairs.

The service refuses other circuits only when the job runs (code 7001 and the like). This reads the
backend's configuration (`GET /backends/{id}/configuration`) and the circuit, and sends nothing.
Circuits that arrange their qubits at run time are checked as far as their text tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_qruntime.client.inputs.circuits import load_qpy
from prefect_qruntime.client.inputs.fields import nearest
from prefect_qruntime.client.inputs.qasm import statements
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.spec import JobSpec

__all__ = ["check_isa"]

_WORDS = frozenset(
    {
        "OPENQASM", "include", "defcalgrammar", "const", "bit", "qubit", "creg", "qreg", "input",
        "output", "int", "uint", "float", "angle", "bool", "complex", "duration", "stretch",
        "array", "let", "gate", "opaque", "def", "extern", "cal", "defcal", "if", "else", "for",
        "while", "switch", "case", "default", "break", "continue", "end", "return", "measure",
        "reset", "barrier", "delay", "box", "nop", "in", "gphase",
    }
)  # fmt: skip
# Same effect in both directions, so either direction of a coupling will do.
_SYMMETRIC = frozenset({"cz", "rzz", "swap", "iswap", "rxx", "ryy", "cp", "cphase"})
_ALWAYS = frozenset(
    {
        "measure", "reset", "barrier", "delay", "id", "if_else", "for_loop", "while_loop",
        "switch_case", "break_loop", "continue_loop", "store", "box", "global_phase", "gphase",
    }
)  # fmt: skip
_MODIFIER = re.compile(r"(?:inv|ctrl|negctrl|pow)\s*(?:\([^()]*\))?\s*@\s*")
_CALL = re.compile(r"([^\W\d]\w*)(?!\w)\s*(\(.*\))?\s*(?:\[[^\]]*\]\s*)?((?:\$|[^\W\d]).*)?", re.DOTALL)
_BLOCK_HEAD = re.compile(r"(?:if|else|while|for|switch|case|default|box)\b")
_OPERAND = re.compile(r"\$([0-9]{1,9})|([^\W\d]\w*)\s*\[\s*([0-9]{1,9})\s*\]")
_PHYSICAL = re.compile(r"\$([0-9]{1,9})")
_DECLARED = re.compile(r"(?:qubit(?:\s*\[\s*(\d+)\s*\])?\s*([^\W\d]\w*)|qreg\s+([^\W\d]\w*)\s*\[\s*(\d+)\s*\])")


@dataclass(frozen=True, slots=True)
class _Use:
    """One operation: its name and, where known, the qubits it acts on."""

    name: str
    qubits: tuple[int, ...] | None


def check_isa(spec: JobSpec, configuration: Mapping[str, Any]) -> None:
    """Check all PUBs against a backend. Needs qiskit only for circuits given as QPY.

    Args:
        spec: A checked submission.
        configuration: The backend's configuration as the service answers it; parts it lacks
            (`n_qubits`, `basis_gates`, `supported_instructions`, `coupling_map`) are not checked.

    Raises:
        InvalidInput: A qubit, gate or pair of qubits the backend does not have.

    Example:
        ```python
        from prefect_qruntime.client.inputs import check_isa, make_spec

        text = "OPENQASM 3.0; bit[1] c; x $0; c[0] = measure $0;"
        check_isa(make_spec(text, backend="b"), {"n_qubits": 5, "basis_gates": ["x", "sx", "rz", "cz"]})
        ```
    """
    size = configuration.get("n_qubits")
    names = {
        str(name)
        for key in ("basis_gates", "supported_instructions")
        for name in configuration.get(key) or ()
        if isinstance(name, str)
    }
    coupling = configuration.get("coupling_map")
    edges = {(int(a), int(b)) for a, b in coupling} if coupling else None
    for place, pub in enumerate(spec.pubs):
        field = f"pubs[{place}].circuit"
        circuit = pub.circuit
        found = _text_uses(circuit) if isinstance(circuit, str) else _qpy_uses(circuit, field)
        for use in found:
            _check(use, size if isinstance(size, int) else None, names, edges, field)


def _check(use: _Use, size: int | None, names: set[str], edges: set[tuple[int, int]] | None, field: str) -> None:
    if size is not None and use.qubits and max(use.qubits) >= size:
        raise InvalidInput(f"qubit {max(use.qubits)}, but the backend has {size}", field=field)
    if not use.name:
        return
    if names and use.name not in names and use.name not in _ALWAYS:
        raise InvalidInput(
            f"the backend has no gate {use.name!r}; transpile for it first.{nearest(use.name, names)}",
            field=field,
        )
    if edges is None or use.qubits is None or len(use.qubits) != 2 or use.name in _ALWAYS:
        return
    pair = (use.qubits[0], use.qubits[1])
    if pair in edges or (use.name in _SYMMETRIC and pair[::-1] in edges):
        return
    reverse = " in this direction" if pair[::-1] in edges else ""
    raise InvalidInput(f"{use.name} on qubits {pair[0]}, {pair[1]}, which are not coupled{reverse}", field=field)


def _text_uses(text: str) -> Iterator[_Use]:
    starts: dict[str, int] = {}
    total = 0
    for statement in statements(text):
        for physical in _PHYSICAL.finditer(statement):
            yield _Use("", (int(physical[1]),))
        if declared := _DECLARED.match(statement):
            starts[declared[2] or declared[3]] = total
            total += int(declared[1] or declared[4] or 1)
            yield _Use("", (total - 1,))
            continue
        while modifier := _MODIFIER.match(statement):
            statement = statement[modifier.end() :]
        if _BLOCK_HEAD.match(statement):
            # A branch without braces ("if (c) x $0") ends in a statement of its own.
            statement = _after_condition(statement)
        call = _CALL.fullmatch(statement)
        if call is None or call[1] in _WORDS or not call[3] or "=" in statement:
            continue
        spots = [_place(operand, starts) for operand in call[3].split(",")]
        known = [spot for spot in spots if spot is not None]
        yield _Use(call[1], tuple(known) if len(known) == len(spots) else None)


def _place(operand: str, starts: Mapping[str, int]) -> int | None:
    """The qubit an operand names; None for a whole register or a computed index."""
    spot = _OPERAND.fullmatch(operand.strip())
    if spot is None:
        return None
    if spot[1] is not None:
        return int(spot[1])
    return starts[spot[2]] + int(spot[3]) if spot[2] in starts else None


def _after_condition(statement: str) -> str:
    depth = 0
    for place, letter in enumerate(statement):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return statement[place + 1 :].strip()
    return statement.removeprefix("else").strip() if statement.startswith("else") else ""


def _qpy_uses(encoded: dict[str, Any], field: str) -> Iterator[_Use]:
    circuit = load_qpy(encoded, field=field)
    yield _Use("", (circuit.num_qubits - 1,) if circuit.num_qubits else ())
    yield from _circuit_uses(circuit, {bit: place for place, bit in enumerate(circuit.qubits)})


def _circuit_uses(circuit: Any, places: dict[Any, int]) -> Iterator[_Use]:
    for item in circuit.data:
        qubits = tuple(places[bit] for bit in item.qubits)
        yield _Use(item.operation.name, qubits)
        for block in getattr(item.operation, "blocks", ()):
            yield from _circuit_uses(block, dict(zip(block.qubits, qubits, strict=True)))
