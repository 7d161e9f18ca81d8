"""Check the estimator's observables: strings, `{pauli: coefficient}`, nested lists, qiskit's own objects.

What is sent is what was written, only qiskit objects become `{label: coefficient}`. Letters other
than I, X, Y, Z are the projectors Qiskit 2 knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prefect_qruntime.client.inputs.parameters import MAX_AXES
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import many

__all__ = ["check_observables", "observable_shape"]

_LETTERS = frozenset("IXYZ01+-lr")
ZERO = 1e-8
"""Coefficients up to this are zero to qiskit, and so to the service: an observable of such terms alone fails there."""


def check_observables(value: Any, qubits: int | None, *, field: str) -> Any:
    """Observables as strings, dicts of floats and (nested) lists of them.

    Args:
        value: A Pauli string, `{pauli: coefficient}`, a `SparsePauliOp`, `Pauli`, `PauliList`
            or `SparseObservable`, or (nested) lists or arrays of those.
        qubits: Number of qubits of the circuit, if known: every string must have that length.
        field: Name of the field in error messages.

    Raises:
        InvalidInput: Missing, empty, not a Pauli, a coefficient that is not a finite real number, an observable
            that is zero, strings of different length.
    """
    if value is None:
        raise InvalidInput("observables are required for the estimator", field=field)
    found = _one(value, field=field)
    lengths: dict[int, str] = {}
    for label in _labels(found):
        lengths.setdefault(len(label), label)
    if len(lengths) > 1:
        raise InvalidInput(
            f"strings of different length: {' and '.join(repr(text) for text in lengths.values())}",
            field=field,
        )
    length = next(iter(lengths))
    if qubits is not None and length != qubits:
        raise InvalidInput(
            f"{lengths[length]!r} has {many(length, 'letter')}, the circuit {many(qubits, 'qubit')}", field=field
        )
    return found


def observable_shape(value: Any) -> tuple[int, ...]:
    """Shape of checked observables; `()` for a single one."""
    return (len(value), *observable_shape(value[0])) if isinstance(value, list) else ()


def _one(value: Any, *, field: str, depth: int = 0) -> Any:
    if depth > MAX_AXES:
        raise InvalidInput(f"nested deeper than {MAX_AXES} levels", field=field)
    if isinstance(value, str):
        return _label(value, field=field)
    if isinstance(value, Mapping):
        if not value:
            raise InvalidInput("an observable needs at least one term", field=field)
        terms: dict[str, float] = {}
        for key, coefficient in value.items():
            label, factor = _key(key, field=field)
            number = _real(coefficient, field=f"{field}.{label}") * factor
            terms[label] = terms.get(label, 0.0) + number
        return _not_zero(terms, field=field)
    if isinstance(value, list | tuple):
        if not value:
            raise InvalidInput("an empty list of observables", field=field)
        items = [_one(item, field=f"{field}[{place}]", depth=depth + 1) for place, item in enumerate(value)]
        if len({observable_shape(item) for item in items}) > 1:
            raise InvalidInput("nested lists of different shape", field=field)
        return items
    return _foreign(value, field=field, depth=depth)


def _foreign(value: Any, *, field: str, depth: int) -> Any:
    """Convert objects of qiskit and numpy, recognised by their attributes, so that neither is imported."""
    if callable(getattr(value, "to_label", None)):  # Pauli
        label, factor = _key(value, field=field)
        return label if factor == 1.0 else {label: factor}
    if callable(getattr(value, "to_sparse_list", None)) and hasattr(value, "num_qubits"):
        # SparsePauliOp and SparseObservable: (letters, qubits, coefficient) for each term.
        width = int(value.num_qubits)
        terms: dict[str, complex] = {}
        for letters, places, coefficient in value.to_sparse_list():
            spread = ["I"] * width
            for letter, place in zip(letters, places, strict=True):
                spread[width - 1 - place] = letter
            text = "".join(spread)
            terms[text] = terms.get(text, 0j) + _complex(coefficient, field=f"{field}.{text}")
        if not terms:
            raise InvalidInput("an observable needs at least one term", field=field)
        return _not_zero({text: _real(number, field=f"{field}.{text}") for text, number in terms.items()}, field=field)
    if callable(getattr(value, "to_labels", None)):  # PauliList
        return _one([value[place] for place in range(len(value))], field=field, depth=depth)
    if callable(getattr(value, "tolist", None)):  # ObservablesArray, numpy array of the above
        items = value.tolist()
        if isinstance(items, list | str | Mapping):
            return _one(items, field=field, depth=depth + 1)
    raise InvalidInput(f"{type(value).__name__} is not an observable", field=field)


def _not_zero(terms: dict[str, float], *, field: str) -> dict[str, float]:
    if all(abs(number) <= ZERO for number in terms.values()):
        raise InvalidInput(
            f"the observable is zero: its terms cancel, or no coefficient is above {ZERO:g}. The service refuses it "
            "when the job runs; its expectation value is 0",
            field=field,
        )
    return terms


def _key(key: Any, *, field: str) -> tuple[str, float]:
    """The label without its sign, and the sign."""
    if isinstance(key, str):
        return _label(key, field=field), 1.0
    if callable(getattr(key, "to_label", None)):
        text = str(key.to_label())
        if "i" in text:
            raise InvalidInput(f"{text!r} is not Hermitian", field=field)
        sign = -1.0 if text.startswith("-") else 1.0
        return _label(text.lstrip("+-"), field=field), sign
    raise InvalidInput(f"key {key!r} is not a Pauli string", field=field)


def _label(text: str, *, field: str) -> str:
    if not text:
        raise InvalidInput("an empty Pauli string", field=field)
    wrong = next((letter for letter in text if letter not in _LETTERS), None)
    if wrong is not None:
        hint = " Paulis are written in capitals." if wrong in "ixyz" else ""
        raise InvalidInput(f"{text[:40]!r} holds {wrong!r}, which is not a Pauli.{hint}", field=field)
    return text


def _complex(value: Any, *, field: str) -> complex:
    if not isinstance(value, bool | str | bytes) and (hasattr(value, "__float__") or hasattr(value, "__complex__")):
        try:
            return complex(value)
        except (TypeError, ValueError, OverflowError):
            pass  # an unbound parameter, an integer beyond all floats
    raise InvalidInput(f"coefficient {value!r:.60} is not a number", field=field)


def _real(value: Any, *, field: str) -> float:
    number = _complex(value, field=field)
    if abs(number.imag) > 1e-12 * max(1.0, abs(number.real)):
        raise InvalidInput(f"coefficient {value!r:.60} is not real", field=field)
    if not math.isfinite(number.real):
        raise InvalidInput(f"coefficient {number.real} cannot be sent", field=field)
    return number.real + 0.0


def _labels(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return list(value)
    return [label for item in value for label in _labels(item)]
