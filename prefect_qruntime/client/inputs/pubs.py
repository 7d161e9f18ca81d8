"""Turn PUBs of every form that users write into checked `Pub` objects, and circuits into their wire form.

Sampler: a circuit, or `(circuit, parameters, shots)`; estimator: `(circuit, observables,
parameters, precision)`; trailing parts may be missing. One PUB may stand for a list of one where
that is unambiguous.

A circuit of any form becomes its wire form, with what is known about it. qiskit is only looked up in `sys.modules`: a
user who holds a `QuantumCircuit` has imported it already, and other users do not pay for the import.
"""

from __future__ import annotations

import base64
import io
import math
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_qruntime.client.encodings.arrays import leaves, list_shape
from prefect_qruntime.client.inputs.meaning import identity_of
from prefect_qruntime.client.inputs.pub_values import (
    bindings_of,
    check_observables,
    check_order,
    check_parameters,
    is_bindings_array,
    numbers,
    points_shape,
    shape_of,
)
from prefect_qruntime.client.inputs.qasm import scan, syntax_error, text_of, with_version
from prefect_qruntime.client.inputs.spec import Pub, check_precision, check_shots
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import many

__all__ = [
    "TOO_DEEP",
    "Circuit",
    "dump_qpy",
    "encode_array",
    "encode_qpy",
    "is_circuit_like",
    "is_elementary",
    "is_encoded_circuit",
    "is_quantum_circuit",
    "load_circuits",
    "load_qasm",
    "load_qpy",
    "measures",
    "parameter_values",
    "pub_parts",
    "qpy_bytes",
    "read_circuit",
    "read_pubs",
    "with_measurements_shown",
    "write_qpy",
    "written_out",
]


# The newest QPY that the service reads, as IBM's own client caps it; newer qiskit writes newer by default.
_MAX_QPY_VERSION = 17
_MAX_QPY_BYTES = 1 << 30
_QPY_COUNT = slice(10, 18)  # of a header in QPY, where the number of circuits stands
TOO_DEEP = "its blocks or definitions are nested too deeply to be read"
_ELEMENTARY = frozenset({"measure", "reset", "barrier", "store", "break_loop", "continue_loop"})

_MOST = {"sampler": 3, "estimator": 4}
_FORM = {
    "sampler": "a circuit or (circuit, parameters, shots)",
    "estimator": "(circuit, observables, parameters, precision)",
}


@dataclass(frozen=True, slots=True)
class Circuit:
    """One circuit as it will be sent.

    Attributes:
        wire: OpenQASM text or an encoded circuit.
        inputs: Parameter names if exactly known, in declared order (text) or qiskit's order.
        qubits: Number of qubits, if exactly known.
        width: Number of classical bits, if exactly known.
        registers: Names of the classical registers, if known.
        scalars: Classical bits that belong to no register: the scalar bits of a text by name, the loose bits of a
            `QuantumCircuit` by number.
        identity: What stands for the circuit in the digest, if `wire` is not reproducible. For an
            encoded circuit that is the text itself: whether qiskit is there to look into it must not
            decide whether a job is found again.
        source: The user's `QuantumCircuit`, if it was one.
    """

    wire: str | dict[str, Any]
    inputs: tuple[str, ...] | None = None
    qubits: int | None = None
    width: int | None = None
    registers: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    identity: Any = None
    source: Any = None


def is_quantum_circuit(value: Any) -> bool:
    """Whether it is a qiskit circuit, without importing qiskit."""
    module = sys.modules.get("qiskit.circuit")
    kind = getattr(module, "QuantumCircuit", None)
    return kind is not None and isinstance(value, kind)


def is_circuit_like(value: Any) -> bool:
    """Whether a value has a circuit's form: text, a path, a circuit, an encoded circuit."""
    return isinstance(value, str | Path) or is_quantum_circuit(value) or is_encoded_circuit(value)


def read_circuit(value: Any, *, sampler: bool, field: str) -> Circuit:
    """Check a circuit and turn it into its wire form.

    Raises:
        InvalidInput: Not a circuit, not OpenQASM 2 or 3, an unreadable file, or, for the
            sampler, a circuit that measures nothing.
    """
    value = text_of(value, field=field)
    if isinstance(value, str):
        # One text, one digest: files may come with other line ends than the same text in Python.
        text = value.removeprefix("\ufeff").replace("\r\n", "\n")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("text holds a lone surrogate, which is not valid UTF-8", field=field) from None
        program = scan(text, field=field)
        wrong = syntax_error(text, program.version)
        if wrong is not None:
            raise InvalidInput(
                f"not valid OpenQASM {program.version}: syntax error at {wrong}.",
                field=field,
                solution="Correct it there or just before; each statement ends with a semicolon.",
            )
        if sampler:
            _check_measured(bool(program.registers), program.measures, field=field)
        return Circuit(
            with_version(text),
            program.inputs,
            program.qubits,
            program.width,
            registers=tuple(name for name, _ in program.registers if name not in program.scalars),
            scalars=program.scalars,
        )
    if is_quantum_circuit(value):
        try:
            return _from_qiskit(value, sampler=sampler, field=field)
        except RecursionError:
            raise InvalidInput(TOO_DEEP, field=field) from None
    if is_encoded_circuit(value):
        _check_qpy(value, field=field)
        return Circuit({"__type__": "QuantumCircuit", "__value__": value["__value__"]})
    raise InvalidInput(
        f"{type(value).__name__} is not a circuit; use OpenQASM 2/3 text, a pathlib.Path, 'file:<path>' "
        "or a QuantumCircuit",
        field=field,
    )


def _check_measured(registers: bool, measures: bool, *, field: str) -> None:
    if not registers:
        raise InvalidInput("no classical register: the sampler returns what is measured into one", field=field)
    if not measures:
        raise InvalidInput(
            "nothing is measured, so the sampler would return nothing",
            field=field,
            solution="Measure into a classical register, in OpenQASM 3 by `c = measure q;`.",
        )


def _check_qpy(encoded: dict[str, Any], *, field: str) -> None:
    """Refuse what is no QPY, and QPY of several circuits, of which readers take the first only."""
    try:
        plain = qpy_bytes(encoded, limit=_MAX_QPY_BYTES)
    except ValueError as error:
        raise InvalidInput(f"not readable QPY: {error}", field=field) from None
    if len(plain) < _QPY_COUNT.stop or not plain.startswith(b"QISKIT"):
        raise InvalidInput("not readable QPY: it does not begin as QPY does", field=field)
    if (count := int.from_bytes(plain[_QPY_COUNT], "big")) != 1:
        raise InvalidInput(f"holds {many(count, 'circuit')}, and a PUB has one. Make a PUB of each", field=field)


def load_qpy(encoded: dict[str, Any], *, field: str) -> Any:
    """The `QuantumCircuit` of an encoded one. Needs qiskit.

    Raises:
        InvalidInput: qiskit is not installed, or the text is not QPY.
    """
    return load_circuits(lambda: qpy_bytes(encoded, limit=_MAX_QPY_BYTES), field=field)[0]


def load_circuits(read: Callable[[], bytes], *, field: str) -> list[Any]:
    """The `QuantumCircuit`s in QPY bytes that a function gives. Needs qiskit.

    Raises:
        InvalidInput: qiskit is not installed, or this is not QPY.
    """
    try:
        from qiskit import qpy
    except ImportError:
        raise InvalidInput(
            "an encoded circuit can only be read with qiskit: pip install 'prefect-qruntime[qiskit]'",
            field=field,
        ) from None
    try:
        return list(qpy.load(io.BytesIO(read())))
    except Exception as error:
        raise InvalidInput(f"not readable QPY: {type(error).__name__}: {error}", field=field) from None


def load_qasm(text: str, *, field: str) -> Any:
    """The `QuantumCircuit` that qiskit reads from OpenQASM text. Needs qiskit, which the caller has looked for.

    Raises:
        InvalidInput: qiskit refuses the text, or lacks its reader of OpenQASM 3.
    """
    version = scan(text, field=field).version
    from qiskit import qasm2, qasm3

    try:
        if version == 2:
            return qasm2.loads(text, custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS)
        return qasm3.loads(text)
    except ImportError:
        raise InvalidInput(
            "qiskit reads OpenQASM 3 with the package qiskit-qasm3-import, which is not installed: "
            "pip install 'prefect-qruntime[qiskit]'",
            field=field,
        ) from None
    except Exception as error:
        raise InvalidInput(f"qiskit cannot read it: {type(error).__name__}: {error}", field=field) from None


def _from_qiskit(circuit: Any, *, sampler: bool, field: str) -> Circuit:
    loose = tuple(str(place) for place, bit in enumerate(circuit.clbits) if not circuit.find_bit(bit).registers)
    if sampler:
        _check_measured(bool(circuit.cregs or loose), measures(circuit), field=field)
    plain, identity = write_qpy(circuit, field=field)
    if len(plain) > _MAX_QPY_BYTES:
        raise InvalidInput("larger than the service's input limit", field=field)
    return Circuit(
        wire=encode_qpy(plain),
        inputs=tuple(parameter.name for parameter in circuit.parameters),
        qubits=circuit.num_qubits,
        width=circuit.num_clbits or None,
        registers=tuple(register.name for register in circuit.cregs),
        scalars=loose,
        identity=identity or identity_of(circuit, plain),
        source=circuit,
    )


def write_qpy(circuit: Any, *, field: str) -> tuple[bytes, dict[str, str] | None]:
    """A `QuantumCircuit` as QPY that is read as the same circuit, and its identity if that was needed to see it.

    QPY does not keep everything: a delay of 10 us is read as one of 10 dt, and some operations are read as others or
    not at all. The job would compute something else, or fail.

    Raises:
        InvalidInput: It cannot be written, or is read as something else.
    """
    from qiskit import qpy

    plain, _ = dump_qpy(circuit, field=field)
    doubtful = list(dict.fromkeys(_doubtful_in_qpy(circuit)))
    written = identity_of(circuit, plain) if doubtful else None
    if written is not None:
        try:
            kept = "qpy" in written or identity_of(qpy.load(io.BytesIO(plain))[0], plain) == written
        except Exception:  # qiskit raises all kinds of errors for what it cannot read
            kept = False
        if not kept:
            raise InvalidInput(
                "cannot be sent as it is: circuits travel as QPY, from which qiskit reads "
                f"{', '.join(doubtful[:5])} as something else, or not at all",
                field=field,
                solution="Transpile it for the backend first (`transpile=True` does it here), give delays in dt, or "
                "send OpenQASM 3 text.",
            )
    return plain, written


def dump_qpy(circuits: Any, *, field: str) -> tuple[bytes, int]:
    """One or several `QuantumCircuit` as QPY, and its version: the newest that qiskit writes and the service reads.

    Raises:
        InvalidInput: One cannot be written, or this Qiskit is too old.
    """
    from qiskit import __version__, qpy

    # Before it, equal circuits of two processes could have different keys: a repeated run would submit a second job.
    if tuple(map(int, __version__.split(".")[:2])) < (2, 4):
        raise InvalidInput(
            f"is a circuit of Qiskit {__version__}, with which a repeated run could not find its job",
            field=field,
            solution="Install Qiskit 2.4 or newer (pip install 'prefect-qruntime[qiskit]'), or send OpenQASM text.",
        )
    target, version = io.BytesIO(), min(_MAX_QPY_VERSION, qpy.QPY_VERSION)
    try:
        qpy.dump(circuits, target, version=version)
    except Exception as error:
        raise InvalidInput(f"cannot be written as QPY: {type(error).__name__}: {error}", field=field) from None
    return target.getvalue(), version


def _doubtful_in_qpy(circuit: Any) -> Iterator[str]:
    """The operations that QPY may not keep; none of those that transpiled circuits consist of."""
    for item in circuit.data:
        if is_elementary(item):
            continue
        operation = item.operation
        if item.name == "delay":
            if operation.unit not in ("dt", "expr"):
                yield f"a delay in {operation.unit}"
        elif blocks := getattr(operation, "blocks", ()):
            for block in blocks:
                yield from _doubtful_in_qpy(block)
        else:
            yield repr(item.name)


def is_elementary(item: Any) -> bool:
    """Whether an item of a `QuantumCircuit` is one of qiskit's own that needs no definition, delays aside."""
    return item.name in _ELEMENTARY or bool(item.is_standard_gate())


def written_out(circuit: Any, stays: Callable[[Any], bool]) -> Any:
    """A `QuantumCircuit` with definitions in the place of its operations, in blocks too.

    Args:
        circuit: The circuit, which stays as it is.
        stays: Whether an item is left as it is. One without a definition always is.
    """
    if all(map(stays, circuit.data)):
        return circuit
    target = circuit.copy_empty_like()
    for item in circuit.data:
        operation = item.operation
        if stays(item):
            target.append(item)
        elif blocks := getattr(operation, "blocks", ()):
            inner = [written_out(block, stays) for block in blocks]
            target.append(operation.replace_blocks(inner), item.qubits, item.clbits)
        elif (definition := getattr(operation, "definition", None)) is None:
            target.append(item)
        else:
            target.compose(written_out(definition, stays), item.qubits, item.clbits, inplace=True, copy=False)
    return target


def with_measurements_shown(circuit: Any) -> Any:
    """A `QuantumCircuit` with the definitions of composite instructions that may measure, but not of gates."""
    return written_out(
        circuit, lambda item: not item.clbits or is_elementary(item) or bool(getattr(item.operation, "blocks", ()))
    )


def measures(circuit: Any) -> bool:
    """Whether a `QuantumCircuit` measures anything: at the top, in blocks, or inside a composite instruction."""
    return any(_operation_measures(item.operation) for item in circuit.data)


def _operation_measures(operation: Any) -> bool:
    if operation.name == "measure":
        return True
    if blocks := getattr(operation, "blocks", ()):
        return any(map(measures, blocks))
    if not operation.num_clbits:
        return False
    definition = getattr(operation, "definition", None)
    # An instruction with bits and no definition is the backend's own: only the backend knows.
    return definition is None or measures(definition)


def is_encoded_circuit(value: Any) -> bool:
    """Whether this is a RuntimeEncoder circuit."""
    return (
        isinstance(value, dict)
        and value.get("__type__") == "QuantumCircuit"
        and isinstance(value.get("__value__"), str)
    )


def encode_qpy(qpy: bytes) -> dict[str, str]:
    """A circuit in the service's envelope."""
    return {"__type__": "QuantumCircuit", "__value__": base64.b64encode(zlib.compress(qpy)).decode()}


def qpy_bytes(encoded: dict[str, Any], *, limit: int) -> bytes:
    """QPY out of the envelope.

    Raises:
        ValueError: Not base64, not zlib, or more than `limit` bytes.
    """
    try:
        worker = zlib.decompressobj()
        data = worker.decompress(base64.b64decode(encoded["__value__"], validate=True), limit)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not worker.eof:
        raise ValueError(f"truncated, or larger than {limit} bytes")
    return data


def encode_array(values: Any) -> dict[str, str]:
    """Nested lists of floats as an encoded float64 array."""
    shape = shape_of(values, field="parameters")
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape!r}, }}"
    # Format 1.0: magic, version, header length, and a header padded so that the data starts at a
    # multiple of 64 bytes, ending in a newline.
    pad = -(10 + len(header) + 1) % 64
    head = (header + " " * pad + "\n").encode("latin-1")
    data = array("d", leaves(values))
    if len(data) != math.prod(shape):
        raise ValueError("ragged parameter values")
    if sys.byteorder == "big":
        data.byteswap()
    npy = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data.tobytes()
    return {"__type__": "ndarray", "__value__": base64.b64encode(zlib.compress(npy)).decode()}


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
    _check_broadcast(list_shape(checked), points_shape(values, read.inputs), field=f"{field}.observables")
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
    return parameter_values(value, circuit.source, field=field)


def parameter_values(value: Any, circuit: Any, *, field: str) -> Any:
    """The values of a `QuantumCircuit`'s parameters as nested lists, the last axis in the circuit's own order.

    Names are a matter of the caller's circuit, and qiskit knows its own rules of shapes best.

    Returns:
        The lists; None without parameters and points.

    Raises:
        InvalidInput: As `check_parameters`.
    """
    parameters = circuit.parameters
    inputs = tuple(parameter.name for parameter in parameters)
    if value is None:
        return check_parameters(None, inputs, field=field)
    from qiskit.primitives.containers.bindings_array import BindingsArray

    if not isinstance(value, BindingsArray):
        checked = check_parameters(value, inputs, field=field)
        if not isinstance(value, dict):
            value = checked
            if value is None:
                return None
            value = {tuple(parameters): value}
    try:
        found = BindingsArray.coerce(value).as_array(parameters).tolist()
    except Exception as error:
        raise InvalidInput(str(error), field=field) from None
    return check_parameters(found, inputs, field=field)


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
    number = numbers(value, field=field)
    if not isinstance(number, float):
        raise InvalidInput("must be one number, not several", field=field)
    if number <= 0:
        raise InvalidInput(f"must be greater than 0, not {number:g}", field=field)
    check_precision(number, field=field)
    return number
