"""Run the program `executor`: bound circuits in, the values of every register out, as plain tensors.

Versions `v0.1` and `v0.2` are those of IBM's OpenAPI document, `v1.0` to `v2.0` those of its schema package. Up to
v0.2 each item brings its circuit; since then the circuits of all items are in one place. v2.0 compresses circuits
and tensors and takes OpenQASM 3 as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect_qruntime.sandbox import circuits as qc, encoding, samplex, tensors
from prefect_qruntime.sandbox.clock import iso
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.primitives import bits_of, check_shots, readout_points, take_shots
from prefect_qruntime.sandbox.state import Run

DEFAULT_VERSION = "v0.2"
# Durations in `dt`; the times of real devices are of this order.
_DURATIONS = {"barrier": 0, "rz": 0, "delay": 0, "measure": 4600, "reset": 4600}
_ONE_QUBIT, _MORE_QUBITS = 144, 360


@dataclass(slots=True, frozen=True)
class _Version:
    """The differences between the versions of the schema."""

    packed: bool = False
    placed: bool = True
    metadata: bool = True


_VERSIONS = {
    "v0.1": _Version(placed=False, metadata=False),
    "v0.2": _Version(placed=False),
    "v1.0": _Version(),
    "v1.1": _Version(),
    "v2.0": _Version(packed=True),
}


@dataclass(slots=True)
class _Points:
    """One item as it is executed: parameter values for each point, and what else belongs to the points."""

    circuit: Any
    values: Any
    shape: tuple[int, ...]
    extras: dict[str, Any]


def executor(params: dict[str, Any], run: Run) -> tuple[dict[str, Any], int]:
    """Run an executor job; return its result and the shots taken.

    Raises:
        InputError: If an item cannot be run.
    """
    program, name = params["quantum_program"], params.get("schema_version", DEFAULT_VERSION)
    version, shots, items = _VERSIONS[name], int(program["shots"]), program["items"]
    circuits = _circuits(program, version)
    if len(circuits) != len(items):
        raise InputError(f"There are {len(items)} items and {len(circuits)} circuits.")
    data, sizes, total = [], [], 0
    for number, (circuit, item) in enumerate(zip(circuits, items, strict=True)):
        qc.check_fits(circuit, run.backend, run.strict)
        if not circuit.num_clbits:
            raise InputError("The circuit has no classical bits: add measurements.")
        points = _points(circuit, item, run.seed + number, version)
        sizes.append(math.prod(points.shape))
        total += sizes[-1] * shots
        check_shots(shots, total)
        results = _results(points, shots, program.get("meas_level", "classified"), run, run.seed + number)
        written = {key: tensors.write(values, version.packed) for key, values in results.items()}
        asked = params["options"] if version.metadata else {}
        metadata = {name: make(points.circuit) for name, make in _METADATA.items() if asked.get(name)}
        data.append({"results": written, "metadata": metadata if version.metadata else None})
    timing = _chunks(items, sizes, run, version)
    answer: dict[str, Any] = {"schema_version": name, "data": data, "metadata": {"chunk_timing": timing}}
    for passed in ("passthrough_data", "semantic_role"):
        if program.get(passed) is not None:
            answer[passed] = program[passed]
    return answer, total


def _circuits(program: dict[str, Any], version: _Version) -> list[Any]:
    items = program["items"]
    if not version.placed:
        return [_from_qpy(item["circuit"], encoding.unbase64(item["circuit"]["circuit_b64"]), 1)[0] for item in items]
    sent = program["circuits"]
    if "data" in sent:
        return [qc.load_qasm3(text) for text in sent["data"]]
    decode: Callable[[Any], bytes] = encoding.inflate if version.packed else encoding.unbase64
    return _from_qpy(sent, decode(sent["b64_data"]), sent["num_programs"])


def _from_qpy(sent: dict[str, Any], data: bytes, count: int) -> list[Any]:
    """Decode QPY that must be of the version, and hold the number of circuits, that come with it."""
    circuits = encoding.decode_circuits(data)
    # The version is the byte after the mark "QISKIT".
    if data[6] != sent["qpy_version"]:
        raise InputError(f"The qpy_version is {sent['qpy_version']}, the data is QPY {data[6]}.")
    if len(circuits) != count:
        raise InputError(f"The QPY data holds {len(circuits)} circuits, not {count}.")
    return circuits


def _points(circuit: Any, item: dict[str, Any], seed: int, version: _Version) -> _Points:
    import numpy as np

    width = len(circuit.parameters)
    if item.get("item_type") == "samplex":
        values, extras, shape = samplex.draw(item, seed, version.packed)
        if values.shape[-1] != width:
            raise InputError(f"The samplex gives {values.shape[-1]} parameters, the circuit has {width}.")
        return _Points(circuit, values.reshape(math.prod(shape), width), shape, extras)
    values = tensors.read(item["circuit_arguments"], "circuit_arguments", version.packed)
    if values.dtype != np.float64:
        raise InputError("circuit_arguments must be of dtype f64.")
    if values.shape[-1:] != (width,):
        raise InputError(f"The last axis of circuit_arguments must have {width} values, not {list(values.shape)}.")
    try:
        # Axes of the item's shape beyond that of the arguments are repetitions.
        shape = np.broadcast_shapes(tuple(item.get("shape", ())), values.shape[:-1])
    except ValueError:
        raise InputError(
            f"The shape {item['shape']} does not extend that of circuit_arguments, {list(values.shape[:-1])}."
        ) from None
    if not math.prod(shape):
        raise InputError("circuit_arguments holds no point.")
    points = math.prod(shape)
    rows = np.broadcast_to(values, (*shape, width)).reshape(points, width)
    return _Points(circuit, rows, shape, {})


def _results(points: _Points, shots: int, level: str, run: Run, seed: int) -> dict[str, Any]:
    """Take the shots; return the values of each register by its name, and the outputs of a samplex."""
    taken = take_shots(points.circuit, points.values, shots, run, seed)
    results: dict[str, Any] = {}
    for name, places in qc.registers(points.circuit).items():
        if not places:
            continue
        whole = places == list(range(points.circuit.num_clbits))
        bits = bits_of(taken, places, whole).reshape(*points.shape, shots, len(places))
        if level in ("classified", "both"):
            results[name] = bits
        if level in ("kerneled", "both"):
            results[f"{name}_iq"] = readout_points(bits, seed)
        if level == "avg_kerneled":
            results[f"{name}_avg_iq"] = readout_points(bits, seed).mean(axis=-2)
    return results | points.extras


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


_METADATA: dict[str, Callable[[Any], Any]] = {"scheduler_timing": schedule, "stretch_values": stretches}


def _chunks(items: list[Any], sizes: list[int], run: Run, version: _Version) -> list[dict[str, Any]]:
    """Lay the chunks of all items end to end over the job's time on the QPU; `auto` is one chunk for an item."""
    chunks: list[tuple[int, int, int]] = []
    for number, (item, size) in enumerate(zip(items, sizes, strict=True)):
        length = item.get("chunk_size", "auto")
        length = size if length == "auto" else int(length)
        chunks.extend((number, start, min(start + length, size)) for start in range(0, size, length))
    done, total, timing = 0, sum(sizes), []
    for number, start, stop in chunks:
        part: dict[str, Any] = {"idx_item": number, "size": stop - start}
        if version.placed:
            arguments = items[number].get("circuit_arguments", {})
            dimensions = len(items[number].get("shape", ())) or max(0, len(arguments.get("shape", ())) - 1)
            part |= {"permutation": list(range(dimensions)), "element_range": [start, stop, 1]}
        begin, done = done, done + stop - start
        moments = (iso(run.started + run.duration * share / total) for share in (begin, done))
        timing.append({**dict(zip(("start", "stop"), moments, strict=True)), "parts": [part]})
    return timing
