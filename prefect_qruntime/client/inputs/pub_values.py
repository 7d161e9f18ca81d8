"""Check what stands beside a circuit in a PUB: parameter values and the estimator's observables.

Parameter values of any form become plain nested lists of finite floats. One form for equal numbers (list, tuple, numpy
array, `1` and `1.0`), so that equal work has an equal digest. Names, counts and shapes are checked if the circuit
declares them, by the rules of qiskit's `BindingsArray`, which the service uses.

Observables are strings, `{pauli: coefficient}`, nested lists or qiskit's own objects. What is sent is what was written,
only qiskit objects become `{label: coefficient}`. Letters other than I, X, Y, Z are the projectors Qiskit 2 knows.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_qruntime.client.encodings.arrays import leaves, list_shape
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import many, nearest, shown

__all__ = [
    "MAX_AXES",
    "bindings_of",
    "check_observables",
    "check_order",
    "check_parameters",
    "is_bindings_array",
    "numbers",
    "point_rows",
    "points_shape",
    "shape_of",
]


MAX_AXES = 32
"""Most axes of an array; numpy allowed no more for decades."""

_LETTERS = frozenset("IXYZ01+-lr")
ZERO = 1e-8
"""Coefficients up to this are zero to qiskit, and so to the service: an observable of such terms alone fails there."""


def check_parameters(value: Any, inputs: Sequence[str] | None, *, field: str) -> Any:
    """Parameter values of an OpenQASM circuit in canonical form.

    Args:
        value: None, a list, nested lists, an array, or `{name: value or list}`.
        inputs: Names the circuit declares; None if the text does not show them exactly.
        field: Name of the field in error messages.

    Returns:
        None, nested lists of floats, or a dict of them.

    Raises:
        InvalidInput: Not numbers, not finite, ragged, a wrong count, an unknown or missing name.
    """
    if isinstance(value, Mapping):
        named = _by_name(value, inputs, field=field)
        if inputs is not None:
            _one_shape(named, field=field)
        return named or None
    values = None if value is None else numbers(value, field=field)
    if isinstance(values, float) and inputs is not None and len(inputs) == 1:
        values = [values]  # the value of the only parameter, as qiskit takes it
    if isinstance(values, float):
        raise InvalidInput("must be a list of values, one for each parameter", field=field)
    if 0 in getattr(value, "shape", ())[:-1]:  # of an array, whose lists do not show the axes after an empty one
        raise InvalidInput("holds no parameter point at all", field=field)
    if not values:
        if inputs:
            raise InvalidInput(f"values are missing for {_listed(inputs)}", field=field)
        return None
    shape = shape_of(values, field=field)
    if inputs is not None and not inputs and shape[-1] == 0 and 0 not in shape[:-1]:
        return values  # so many points of no parameters: the circuit runs as often
    if 0 in shape:
        raise InvalidInput("holds no parameter point at all", field=field)
    if inputs is None or shape[-1] == len(inputs):
        return values
    # Qiskit lets the last axis be omitted if there is one parameter; so does the service.
    if len(inputs) == 1:
        return values
    raise InvalidInput(
        f"{many(shape[-1], 'value')} in the last axis, but the circuit has {many(len(inputs), 'parameter')}"
        + (f" ({_listed(inputs)})" if inputs else ""),
        field=field,
    )


def check_order(value: Any, inputs: Sequence[str] | None, *, field: str) -> None:
    """Refuse a plain list if readers of OpenQASM text disagree on which value belongs to which input.

    OpenQASM does not say in which order inputs take values from outside, and qiskit sorts them by name: a
    list in order of declaration would silently be bound to the wrong names.

    Raises:
        InvalidInput: The values have no names, and the declared order is not that of the names.
    """
    if value is None or isinstance(value, Mapping) or inputs is None or list(inputs) == sorted(inputs):
        return
    raise InvalidInput(
        "give values by name, {name: value}: the order of a list is not fixed by OpenQASM; "
        f"declared {_listed(inputs)}, sorted {_listed(sorted(inputs))}",
        field=field,
    )


def is_bindings_array(value: Any) -> bool:
    """Whether a value is qiskit's `BindingsArray`, without importing qiskit."""
    kind = getattr(sys.modules.get("qiskit.primitives.containers.bindings_array"), "BindingsArray", None)
    return isinstance(kind, type) and isinstance(value, kind)


def bindings_of(value: Any) -> Any:
    """A `BindingsArray` as names with values, or, without parameters, as so many points of none."""
    if value.num_parameters:
        return dict(value.data)
    points: Any = []
    for length in reversed(value.shape):
        points = [copy.deepcopy(points) for _ in range(length)]
    return points or None


def points_shape(values: Any, inputs: Sequence[str] | None) -> tuple[int, ...] | None:
    """Shape of the points that checked values stand for, as qiskit infers it; None if it is not known."""
    if values is None:
        return ()
    if inputs is None:
        return None  # a name may be that of an array, whose last axis is not one of points
    if isinstance(values, dict):
        return _leading(shape_of(next(iter(values.values())), field=""))
    shape = shape_of(values, field="")
    return _leading(shape) if len(inputs) == 1 else shape[:-1]


def point_rows(values: Any, inputs: Sequence[str], *, field: str) -> tuple[tuple[int, ...], list[list[float]]]:
    """Shape of a PUB's points, and the values of each one in the order of the inputs.

    Raises:
        InvalidInput: As `check_parameters`.
    """
    checked = check_parameters(values, inputs, field=field)
    shape = points_shape(checked, inputs) or ()
    if checked is None or not inputs:
        return shape, [[] for _ in range(math.prod(shape))]
    if isinstance(checked, dict):
        columns = [leaves(checked[name]) for name in inputs]
        return shape, [list(row) for row in zip(*columns, strict=True)]
    flat, width = list(leaves(checked)), len(inputs)
    return shape, [flat[start : start + width] for start in range(0, len(flat), width)]


def numbers(value: Any, *, field: str, depth: int = 0) -> Any:
    """Nested lists of finite floats, or one float. Arrays are taken by their `tolist`."""
    if not isinstance(value, list | tuple) and callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if isinstance(value, list | tuple):
        try:
            # The common flat case without a Python call per number; False is no float here.
            if all(type(item) is float or type(item) is int for item in value) and all(map(math.isfinite, value)):
                return [float(item) + 0.0 for item in value]
        except OverflowError:
            pass
        if depth == MAX_AXES:
            raise InvalidInput(f"nested deeper than {MAX_AXES} levels", field=field)
        return [numbers(item, field=f"{field}[{position}]", depth=depth + 1) for position, item in enumerate(value)]
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise InvalidInput(f"{shown(value)} is not a number{_observable_hint(value)}", field=field)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"{shown(value)} is not a real number", field=field) from None
    if not math.isfinite(number):
        raise InvalidInput(f"{number} cannot be sent", field=field)
    return number + 0.0  # -0.0 and 0.0 are the same angle


def shape_of(values: Any, *, field: str) -> tuple[int, ...]:
    """Shape of nested lists; ragged ones are refused."""
    if not isinstance(values, list):
        return ()
    if not values:
        return (0,)
    first = shape_of(values[0], field=field)
    if first or any(isinstance(item, list) for item in values):
        # The first one is read: each level would take twice the time of the one below it.
        for position, item in enumerate(values[1:], start=1):
            if shape_of(item, field=f"{field}[{position}]") != first:
                raise InvalidInput("has another shape than its neighbours", field=f"{field}[{position}]")
    return (len(values), *first)


def _by_name(value: Mapping[Any, Any], inputs: Sequence[str] | None, *, field: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, item in value.items():
        # A tuple of names, or qiskit's ParameterVector: the last axis runs over them.
        several = not isinstance(key, str) and hasattr(key, "__iter__")
        names = tuple(key) if several else (key,)
        if not names:
            raise InvalidInput(f"key {shown(key)} holds no parameter name", field=field)
        several = len(names) > 1  # for one name qiskit lets the last axis be omitted
        texts = [_name(name, field=field) for name in names]
        spot = f"{field}.{','.join(texts)}"
        values = numbers(item, field=spot)
        if several:
            shape = shape_of(values, field=spot)
            if not shape or shape[-1] != len(texts):
                raise InvalidInput(f"the last axis must have {many(len(texts), 'value')}", field=spot)
            # An axis of one point would be taken for the one of the single parameter.
            alone = shape[-2:-1] == (1,)
            columns = [_column(values, place, alone=alone) for place in range(len(texts))]
        else:
            columns = [values]
        for text, column in zip(texts, columns, strict=True):
            if inputs is not None and text not in inputs:
                raise InvalidInput(
                    f"the circuit has no parameter {text!r}. {nearest(text, inputs)}".strip(), field=f"{field}.{text}"
                )
            if text in named:
                raise InvalidInput(f"{text!r} is given twice", field=f"{field}.{text}")
            if 0 in shape_of(column, field=f"{field}.{text}"):
                raise InvalidInput("holds no value", field=f"{field}.{text}")
            named[text] = column
    missing = [name for name in inputs or () if name not in named]
    if missing:
        raise InvalidInput(f"values are missing for {_listed(missing)}", field=field)
    return named


def _column(values: Any, place: int, *, alone: bool) -> Any:
    if isinstance(values[0], list):
        return [_column(item, place, alone=alone) for item in values]
    return [values[place]] if alone else values[place]


def _leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the points in the values of one parameter: a last axis of one is the parameter's own."""
    return shape[:-1] if shape and shape[-1] == 1 else shape


def _one_shape(named: Mapping[str, Any], *, field: str) -> None:
    """The one shape of all parameters' points; others are refused, as qiskit and the service broadcast none."""
    first = ""
    for name, values in named.items():
        first = first or name
        here, there = (_leading(shape_of(found, field=field)) for found in (values, named[first]))
        if here != there:
            raise InvalidInput(
                f"has values for points of shape {here}, {first!r} for points of shape {there}; "
                "each parameter needs a value for every point",
                field=f"{field}.{name}",
            )


def _name(key: Any, *, field: str) -> str:
    name = key if isinstance(key, str) else getattr(key, "name", None)
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"key {shown(key)} is not a parameter name", field=field)
    return name


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _observable_hint(value: Any) -> str:
    """A sentence for what was probably meant as an observable; empty for anything else."""
    text = isinstance(value, str) and bool(value) and set(value) <= set("IXYZ")
    if not text and not type(value).__module__.startswith("qiskit.quantum_info"):
        return ""
    return ". It looks like an observable: only the estimator takes some, as the second part of a PUB"


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
        if len({list_shape(item) for item in items}) > 1:
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
    raise InvalidInput(f"key {shown(key)} is not a Pauli string", field=field)


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
    raise InvalidInput(f"coefficient {shown(value)} is not a number", field=field)


def _real(value: Any, *, field: str) -> float:
    number = _complex(value, field=field)
    if abs(number.imag) > 1e-12 * max(1.0, abs(number.real)):
        raise InvalidInput(f"coefficient {shown(value)} is not real", field=field)
    if not math.isfinite(number.real):
        raise InvalidInput(f"coefficient {number.real} cannot be sent", field=field)
    return number.real + 0.0


def _labels(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return list(value)
    return [label for item in value for label in _labels(item)]
