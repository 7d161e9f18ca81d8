"""Turn PUBs of every form that users write into checked `Pub` objects.

Sampler: a circuit, or `(circuit, parameters, shots)`; estimator: `(circuit, observables,
parameters, precision)`; trailing parts may be missing. One PUB may stand for a list of one where
that is unambiguous.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from prefect_qruntime.client.inputs.circuits import Circuit, is_circuit_like, read_circuit
from prefect_qruntime.client.inputs.fields import check_precision, check_shots
from prefect_qruntime.client.inputs.observables import check_observables, observable_shape
from prefect_qruntime.client.inputs.parameters import (
    bindings_of,
    check_order,
    check_parameters,
    is_bindings_array,
    points_shape,
)
from prefect_qruntime.client.inputs.spec import Pub
from prefect_qruntime.errors import InvalidInput

__all__ = ["pub_parts", "read_pubs"]

_MOST = {"sampler": 3, "estimator": 4}
_FORM = {
    "sampler": "a circuit or (circuit, parameters, shots)",
    "estimator": "(circuit, observables, parameters, precision)",
}


def read_pubs(pubs: Any, *, program_id: str) -> tuple[Pub, ...]:
    """Check all PUBs of a submission.

    Raises:
        InvalidInput: There is no PUB, or one is wrong; the field says which part of which PUB.
    """
    read = _sampler_pub if program_id == "sampler" else _estimator_pub
    # The same circuit with many parameter points is common: read and encode it once.
    seen: dict[int, tuple[Any, Circuit]] = {}
    parts = pub_parts(pubs, program_id=program_id)
    return tuple(read(item, f"pubs[{place}]", seen) for place, item in enumerate(parts))


def pub_parts(pubs: Any, *, program_id: str) -> list[list[Any]]:
    """Each PUB as the list of its parts, unchecked; trailing ones may be missing.

    Raises:
        InvalidInput: There is no PUB, or an item is not a PUB.
    """
    items = _as_list(pubs, sampler=program_id == "sampler")
    if not items:
        raise InvalidInput("at least one PUB is needed", field="pubs")
    return [_parts(item, f"pubs[{place}]", _MOST[program_id], _FORM[program_id]) for place, item in enumerate(items)]


def _as_list(pubs: Any, *, sampler: bool) -> list[Any]:
    if pubs is None:
        return []
    if is_circuit_like(pubs) or _is_qiskit_pub(pubs):
        return [pubs]
    if not isinstance(pubs, list | tuple):
        raise InvalidInput(f"must be a list of PUBs, not {type(pubs).__name__}", field="pubs")
    items = list(pubs)
    # What starts with a bare circuit is either one PUB, or a list of PUBs.
    if not items or not is_circuit_like(items[0]):
        return items
    if not sampler or (1 < len(items) <= 3 and not any(map(_starts_a_pub, items[1:]))):
        return [tuple(items)]
    return items


def _starts_a_pub(item: Any) -> bool:
    if isinstance(item, list | tuple):
        return bool(item) and is_circuit_like(item[0])
    return is_circuit_like(item) or _is_qiskit_pub(item)


def _is_qiskit_pub(value: Any) -> bool:
    module = sys.modules.get("qiskit.primitives.containers")
    kinds = tuple(kind for name in ("SamplerPub", "EstimatorPub") if (kind := getattr(module, name, None)) is not None)
    return isinstance(value, kinds)


def _parts(item: Any, field: str, most: int, form: str) -> list[Any]:
    if is_circuit_like(item):
        return [item]
    if _is_qiskit_pub(item):
        # Without parameters too it may have a shape: so often does the circuit run.
        given = item.parameter_values
        values = given if given.num_parameters or given.shape else None
        if hasattr(item, "observables"):
            return [item.circuit, item.observables, values, item.precision][:most]
        return [item.circuit, values, item.shots]
    if not isinstance(item, list | tuple):
        raise InvalidInput(f"{type(item).__name__} is not a PUB; use {form}", field=field)
    if not 1 <= len(item) <= most:
        raise InvalidInput(f"has {len(item)} parts; use {form}", field=field)
    return list(item)


def _circuit(value: Any, *, sampler: bool, field: str, seen: dict[int, tuple[Any, Circuit]]) -> Circuit:
    known = seen.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    circuit = read_circuit(value, sampler=sampler, field=field)
    seen[id(value)] = (value, circuit)  # holding the value keeps its id in use
    return circuit


def _sampler_pub(parts: list[Any], field: str, seen: dict[int, tuple[Any, Circuit]]) -> Pub:
    circuit, parameters, shots = [*parts, None, None][:3]
    read = _circuit(circuit, sampler=True, field=f"{field}.circuit", seen=seen)
    return Pub(
        circuit=read.wire,
        parameters=_parameters(parameters, read, field=f"{field}.parameters"),
        shots=check_shots(shots, field=f"{field}.shots"),
        width=read.width,
        identity=read.identity,
        registers=read.registers,
        scalars=read.scalars,
    )


def _estimator_pub(parts: list[Any], field: str, seen: dict[int, tuple[Any, Circuit]]) -> Pub:
    circuit, observables, parameters, precision = [*parts, None, None, None][:4]
    read = _circuit(circuit, sampler=False, field=f"{field}.circuit", seen=seen)
    checked = check_observables(observables, read.qubits, field=f"{field}.observables")
    values = _parameters(parameters, read, field=f"{field}.parameters")
    _check_broadcast(observable_shape(checked), points_shape(values, read.inputs), field=f"{field}.observables")
    return Pub(
        circuit=read.wire,
        observables=checked,
        parameters=values,
        precision=_precision(precision, field=f"{field}.precision"),
        width=read.width,
        identity=read.identity,
        registers=read.registers,
        scalars=read.scalars,
    )


def _parameters(value: Any, circuit: Circuit, *, field: str) -> Any:
    if circuit.source is None:
        if is_bindings_array(value):
            value = bindings_of(value)
        checked = check_parameters(value, circuit.inputs, field=field)
        check_order(value, circuit.inputs, field=field)
        return checked
    # Names are a matter of the caller's circuit; on the wire an array in the circuit's own order
    # is all that is needed, and qiskit knows its own rules of shapes best.
    if value is None:
        return check_parameters(None, circuit.inputs, field=field)
    from qiskit.primitives.containers.bindings_array import BindingsArray

    parameters = circuit.source.parameters
    if not isinstance(value, BindingsArray):
        if not isinstance(value, dict):
            value = check_parameters(value, circuit.inputs, field=field)
            if value is None:
                return None
            value = {tuple(parameters): value}
        else:
            check_parameters(value, circuit.inputs, field=field)
    try:
        found = BindingsArray.coerce(value).as_array(parameters).tolist()
    except Exception as error:
        raise InvalidInput(str(error), field=field) from None
    return check_parameters(found, circuit.inputs, field=field)


def _check_broadcast(observables: tuple[int, ...], points: tuple[int, ...] | None, *, field: str) -> None:
    """Check that observables and parameter points broadcast by numpy's rules, as in qiskit's `EstimatorPub`."""
    if points is None or all(
        one == other or 1 in (one, other) for one, other in zip(observables[::-1], points[::-1], strict=False)
    ):
        return
    raise InvalidInput(
        f"of shape {observables} do not go together with parameter points of shape {points}: from the right, "
        "each axis must be equal or 1. For all pairs give the observables an axis more, [[a], [b]]",
        field=field,
    )


def _precision(value: Any, *, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise InvalidInput(f"must be a number, not {value!r}", field=field)
    number = float(value)
    if not math.isfinite(number) or number <= 0:
        raise InvalidInput(f"must be greater than 0, not {number:g}", field=field)
    check_precision(number, field=field)
    return number
