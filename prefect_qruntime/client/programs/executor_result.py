"""Results of the executor as PUBs: registers, arrays and expectation values, of every schema version.

Who made the quantum program decides what its items mean:

| recipe in `passthrough_data` | PUBs |
|---|---|
| our own, sampler | one item each |
| our own, estimator | several items each, combined into expectation values |
| IBM's client-side Sampler | one item each, randomizations joined, measurement flips undone |
| IBM's client-side Estimator | values computed by IBM's own code (extra `[ibm]`) |
| none | each item by itself, measurement flips undone |
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prefect_qruntime.client.encodings.arrays import Allowance, ExecutionSpan, NpyArray, nested
from prefect_qruntime.client.encodings.registers import PackedRegister, Register
from prefect_qruntime.client.encodings.tensors import Tensor, bit_rows, broadcast_places, decode_tensor
from prefect_qruntime.client.inputs.spec import RECIPE_AUTHOR, RECIPE_VERSION
from prefect_qruntime.client.programs.expectation import Columns, Plan, estimate

__all__ = ["PubView", "count_pubs", "is_executor_result", "recipe_of", "result_metadata", "view_executor_pub"]

_FLIPS = "measurement_flips."
_IQ = ("_avg_iq", "_iq")


@dataclass(frozen=True, slots=True)
class PubView:
    """The contents of one PUB's result.

    Attributes:
        registers: Measured bits by register name, in the service's order.
        fields: Everything else in the data, still encoded.
        metadata: Still encoded.
        quasi: Quasi-distribution by bitstring, legacy sampler only.
        kind: The encoded type, for instance `SamplerPubResult`: a sampler's data need not be registers.
        shape: Shape of the points, if the body has it.
    """

    registers: dict[str, Register] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    metadata: Any = None
    quasi: dict[str, float] | None = None
    kind: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """The rule by which items become PUBs.

    Attributes:
        kind: `sampler`, `estimator`, `ibm-sampler`, `ibm-estimator` or `items`.
        record: The post-processing record; empty for `items`.
    """

    kind: str
    record: Mapping[str, Any]


def is_executor_result(raw: Any) -> bool:
    """Whether a result body is one of the executor, by its form."""
    if not isinstance(raw, dict) or not isinstance(raw.get("schema_version"), str):
        return False
    items, metadata = raw.get("data"), raw.get("metadata")
    if not isinstance(items, list) or not isinstance(metadata, dict | None):
        return False
    if not items:  # other programs have results without data, too
        return "passthrough_data" in raw or (metadata is not None and "chunk_timing" in metadata)
    return all(isinstance(item, dict) and isinstance(item.get("results"), dict) for item in items)


def recipe_of(raw: Mapping[str, Any]) -> Recipe:
    """Find out who made the quantum program.

    Raises:
        ValueError: A recipe of a version that is not known: its items must not be taken for PUBs.
    """
    passed = raw.get("passthrough_data")
    record = passed.get("post_processor") if isinstance(passed, dict) else None
    if not isinstance(passed, dict) or not isinstance(record, dict) or "version" not in record:
        return Recipe("items", {})
    version = record["version"]
    if record.get("by") == RECIPE_AUTHOR:
        if version != RECIPE_VERSION or record.get("program") not in ("sampler", "estimator"):
            raise ValueError(
                f"it was submitted by another version of prefect-qruntime, whose recipe {version!r:.40} is not known "
                "here; `.raw` has the data"
            )
        return Recipe(record["program"], record)
    theirs = "qiskit_mitigation" in passed or "num_pubs" in record
    if not theirs and not {"twirling", "meas_type"} <= record.keys():
        return Recipe("items", {})  # a record of another client, which does not describe the items
    if version != "v0.1":
        raise ValueError(
            f"it was made by IBM's client, whose recipe {version!r:.40} is not known here; `.raw` has the data"
        )
    return Recipe("ibm-estimator" if theirs else "ibm-sampler", record)


def count_pubs(raw: Mapping[str, Any]) -> int:
    """Number of PUBs of an executor result."""
    recipe = recipe_of(raw)
    if recipe.kind in ("sampler", "estimator"):
        return len(recipe.record["pubs"])
    if recipe.kind == "ibm-estimator":
        count = recipe.record["num_pubs"]
        if type(count) is not int or not 0 <= count <= len(raw["data"]):
            raise ValueError(f"its recipe has {count!r:.40} PUBs, but there are {len(raw['data'])} items")
        return count
    return len(raw["data"])


def view_executor_pub(raw: Mapping[str, Any], place: int, *, allowance: Allowance) -> PubView:
    """Read one PUB of an executor result.

    Raises:
        ValueError: Damaged, or a recipe that is not known.
        QuantumRuntimeError: A job of IBM's client-side Estimator, and the extra `[ibm]` is not installed.
    """
    recipe = recipe_of(raw)
    if recipe.kind == "ibm-estimator":
        from prefect_qruntime.client.programs.executor import estimator_pub

        values, metadata = estimator_pub(raw, place)
        return PubView(fields=values, metadata=metadata, kind="EstimatorPubResult")
    if recipe.kind == "estimator":
        return _estimated(raw, recipe.record, place, allowance)
    index = place
    if recipe.kind == "sampler":
        index = recipe.record["pubs"][place]["item"]
    twirled = recipe.kind == "ibm-sampler" and bool(recipe.record["twirling"])
    found = _item(raw, index, allowance, joined=twirled)
    metadata = dict(found.metadata)
    if recipe.kind != "items":
        metadata["shots"] = recipe.record.get("shots")
    if recipe.kind == "ibm-sampler":
        metadata["circuit_metadata"] = _at(recipe.record.get("circuits_metadata"), place) or {}
        if twirled:
            randomizations = _randomizations(raw["data"][index])
            metadata |= {"num_randomizations": randomizations, "shots": recipe.record.get("shots", 0) * randomizations}
    kind = None if recipe.kind == "items" else "SamplerPubResult"
    return PubView(found.registers, found.fields, metadata, shape=found.shape, kind=kind)


def result_metadata(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the whole result, with its chunk timings as execution spans; a chunk without times stays as it is."""
    metadata = raw.get("metadata") or {}
    found = {name: value for name, value in metadata.items() if name != "chunk_timing"}
    chunks = metadata.get("chunk_timing")
    if chunks and isinstance(chunks, list):
        found["execution"] = {"execution_spans": [_span(chunk) for chunk in chunks]}
    try:
        recipe = recipe_of(raw)
    except ValueError:
        return found
    for name in ("options", "shots", "precision"):
        if name in recipe.record:
            found["target_precision" if name == "precision" else name] = recipe.record[name]
    return found


def executed_seconds(raw: Any) -> float | None:
    """QPU seconds that the chunk timings of an executor result add up to; None without timings."""
    metadata = raw.get("metadata") if isinstance(raw, Mapping) else None
    chunks = metadata.get("chunk_timing") if isinstance(metadata, Mapping) else None
    spans = [_span(chunk) for chunk in chunks] if isinstance(chunks, list) else []
    times = [(one.stop - one.start).total_seconds() for one in spans if isinstance(one, ExecutionSpan)]
    return sum(times) if times and len(times) == len(spans) and min(times) >= 0 else None


def _span(chunk: Any) -> ExecutionSpan | Any:
    try:
        start, stop = (datetime.fromisoformat(str(chunk[name])) for name in ("start", "stop"))
        parts = [dict(part) for part in chunk.get("parts") or []]
    except (KeyError, TypeError, ValueError, AttributeError):
        return chunk
    return ExecutionSpan(start, stop, "ChunkSpan", {"parts": parts})


def _item(raw: Mapping[str, Any], index: int, allowance: Allowance, *, joined: bool = False) -> PubView:
    """One item: its registers with flips undone, everything else as arrays.

    Args:
        raw: The result.
        index: The item.
        allowance: What it may unfold to.
        joined: Whether the first axis runs over randomizations and becomes a part of the shots.
    """
    item = _at(raw["data"], index)
    if item is None:
        raise ValueError(f"the recipe names item {index}, but the result has {len(raw['data'])}")
    compressed = _compressed(raw)
    tensors = {
        name: decode_tensor(value, compressed=compressed, allowance=allowance)
        for name, value in item["results"].items()
    }
    flips = {name.removeprefix(_FLIPS): tensor for name, tensor in tensors.items() if name.startswith(_FLIPS)}
    for name in flips:
        # Of IQ data, which have no bits to flip, they are left to the reader, among the arrays of the metadata.
        if name not in tensors and (joined or not any(name + suffix in tensors for suffix in _IQ)):
            raise ValueError(f"it has measurement flips for {name!r}, but no such register")
    registers: dict[str, Register] = {}
    fields: dict[str, Any] = {}
    shape: tuple[int, ...] | None = None
    axes = _axes_of_bits(tensors)
    for name, tensor in tensors.items():
        if name.startswith(_FLIPS):
            continue
        if tensor.dtype == "bool" and len(tensor.shape) == axes:
            registers[name] = _register(tensor, flips.get(name), allowance, joined=joined)
            shape = registers[name].shape if shape is None else shape
            continue
        key, average = _plain_name(name, tensors)
        fields[key] = _joined(tensor, average) if joined else tensor.as_array()
        if shape is None and tensor.dtype == "c128":
            shape = fields[key].shape[: -1 if average else -2]
    compilation = {name: value for name, value in (item.get("metadata") or {}).items() if value is not None}
    metadata: dict[str, Any] = {"compilation": compilation} if compilation else {}
    # Data of a PUB begin with its shape; arrays of another shape are kept separately.
    beside = {name: found for name, found in fields.items() if found.shape[: len(shape or ())] != (shape or ())}
    if not joined:
        beside |= {f"{_FLIPS}{name}": tensor.as_array() for name, tensor in flips.items()}
    if beside:
        metadata["arrays"] = beside
        fields = {name: found for name, found in fields.items() if name not in beside}
    return PubView(registers, fields, metadata, shape=shape)


def _axes_of_bits(tensors: Mapping[str, Tensor]) -> int:
    """How many axes the bits of a register have: those of the points, the shots, the bits.

    The other booleans of a samplex, as the signs of its Paulis, have fewer: they are the same for all shots.
    """
    found = [2]
    for name, tensor in tensors.items():
        if tensor.dtype == "bool" and not name.startswith(_FLIPS):
            found.append(len(tensor.shape))
        elif tensor.dtype == "c128" and name.endswith(_IQ):
            found.append(len(tensor.shape) + name.endswith(_IQ[0]))
    return max(found)


def _compressed(raw: Mapping[str, Any]) -> bool | None:
    major = str(raw.get("schema_version")).removeprefix("v").split(".")[0]
    return int(major) >= 2 if major.isdecimal() else None


def _plain_name(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, bool]:
    """`c` for `c_iq` and `c_avg_iq`, unless the register's bits have that name; and whether it is an average."""
    for suffix in _IQ:
        if name.endswith(suffix) and tensors[name].dtype == "c128":
            short = name.removesuffix(suffix)
            return (name if short in tensors else short), suffix == _IQ[0]
    return name, False


def _register(tensor: Tensor, flips: Tensor | None, allowance: Allowance, *, joined: bool) -> PackedRegister:
    *outer, shots, width = tensor.shape
    count = math.prod(outer) * shots
    row = (width + 7) // 8
    if not width or not count:  # any number of them takes no bytes
        return PackedRegister.read(b"", (*outer, shots, row), width)
    if count * row > allowance.size:
        raise ValueError(f"an encoded array unfolds to more than {allowance.size} bytes")
    allowance.size -= count * row
    rows = bit_rows(tensor.data, width, count)
    if flips is not None:
        rows = _flipped(rows, tensor.shape, flips)
    if joined:
        rows, outer, shots = _first_axis_joined(rows, outer, shots * row, shots)
    return PackedRegister.read(rows, (*outer, shots, row), width)


def _flipped(rows: bytes, shape: tuple[int, ...], flips: Tensor) -> bytes:
    """Exclusive or with the flips, which are broadcast over the axes where they have length 1."""
    *outer, shots, width = shape
    lengths = (1,) * (len(shape) - len(flips.shape)) + flips.shape
    fits = all(length in (1, size) for length, size in zip(lengths, shape, strict=False))
    if flips.dtype != "bool" or len(lengths) != len(shape) or lengths[-1] != width or not fits:
        raise ValueError(f"measurement flips of shape {flips.shape} do not fit bits of shape {shape}")
    row = (width + 7) // 8
    own = bit_rows(flips.data, width, math.prod(lengths[:-1]))
    per_shot = lengths[-2] == shots
    size = (shots if per_shot else 1) * row
    found: list[bytes] = []
    for place in broadcast_places(outer, lengths[:-2]):
        block = own[place * size : (place + 1) * size]
        found.append(block if per_shot else block * shots)
    both = int.from_bytes(rows, "little") ^ int.from_bytes(b"".join(found), "little")
    return both.to_bytes(len(rows), "little")


def _first_axis_joined(data: bytes, outer: list[int], size: int, shots: int) -> tuple[bytes, list[int], int]:
    """Move the axis of randomizations to the shots: data of shape (R, …, shots) as (…, R · shots)."""
    if not outer:
        raise ValueError("a twirled register has no axis of randomizations")
    randomizations, *rest = outer
    points = math.prod(rest)
    blocks = [data[place * size : (place + 1) * size] for place in range(randomizations * points)]
    joined = b"".join(blocks[turn * points + point] for point in range(points) for turn in range(randomizations))
    return joined, rest, randomizations * shots


def _joined(tensor: Tensor, average: bool) -> NpyArray:
    """Kerneled data over all randomizations: shots one after the other, averages averaged."""
    found = tensor.as_array()
    if 0 in tensor.shape:
        return found
    if not average:
        *outer, shots, width = tensor.shape
        data, outer, shots = _first_axis_joined(found.data, outer, shots * width * found.itemsize, shots)
        return NpyArray(found.descr, (*outer, shots, width), data)
    turns, *rest = tensor.shape
    values, size = found.flat(), math.prod(rest)
    means = [sum(values[place::size]) / turns for place in range(size)]
    parts = [part for value in means for part in (complex(value).real, complex(value).imag)]
    return NpyArray(found.descr, tuple(rest), struct.pack(f"<{len(parts)}d", *parts))


def _randomizations(item: Mapping[str, Any]) -> int:
    sizes = {value["shape"][0] for value in item["results"].values() if value.get("shape")}
    if len(sizes) != 1:
        raise ValueError("its registers have different numbers of randomizations")
    return int(sizes.pop())


def _estimated(raw: Mapping[str, Any], record: Mapping[str, Any], place: int, allowance: Allowance) -> PubView:
    pub = record["pubs"][place]
    plan = Plan.from_record(pub)
    groups = pub["groups"]
    read: dict[int, PackedRegister] = {}
    places: dict[int, dict[int, int]] = {}

    def columns(number: int, point: int) -> Columns:
        group = groups[number]
        if number not in read:
            register = _item(raw, group["item"], allowance).registers.get(group["register"])
            if not isinstance(register, PackedRegister) or register.num_bits != len(group["qubits"]):
                raise ValueError(f"item {group['item']} has no register {group['register']!r} of its measured qubits")
            read[number] = register
            places[number] = {found: place for place, found in enumerate(group.get("points") or ())}
        place = places[number][point] if "points" in group else point
        return _columns(read[number], place, group["qubits"])

    values, errors = estimate(plan, columns)
    # Without twirling the error over all shots as one is the same.
    fields = {"evs": nested(values, plan.shape)} | {
        name: nested(errors, plan.shape) for name in ("stds", "ensemble_standard_error")
    }
    metadata: dict[str, Any] = {"shots": record.get("shots"), "resilience_level": 0, "circuit_metadata": {}}
    return PubView(fields=fields, metadata=metadata, shape=plan.shape)


# Byte → the digit of one of its bits.
_DIGITS = [bytes(48 + (value >> bit & 1) for value in range(256)) for bit in range(8)]


def _columns(register: PackedRegister, point: int, qubits: list[int]) -> Columns:
    if not 0 <= point < math.prod(register.shape):
        raise ValueError(f"the recipe names point {point} of a register of shape {register.shape}")
    part = register.part(point)
    bits: dict[int, int] = {}
    for bit, qubit in enumerate(qubits):
        plane = part[register.row - 1 - bit // 8 :: register.row]
        bits[int(qubit)] = int(plane.translate(_DIGITS[bit % 8]) or b"0", 2)
    return Columns(register.num_shots, bits)


def _at(items: Any, place: int) -> Any:
    return items[place] if isinstance(items, list) and 0 <= place < len(items) else None
