"""Read one PUB of a result body of any form.

| form | how it is recognised |
|---|---|
| encoded V2 | `{"__type__": "PrimitiveResult", …}` |
| plain V2 | `{"results": […]}` |
| legacy V1 | `{"quasi_dists": […]}`, `{"values": […]}` |
| executor | `{"schema_version": …, "data": [{"results": …}]}` |

Anything else (noise learner, new programs) has no PUBs here and stays raw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefect_qruntime.client.encodings.arrays import Allowance, NpyArray, decode_array, decode_value
from prefect_qruntime.client.encodings.registers import HexRegister, PackedRegister, Register
from prefect_qruntime.client.programs.executor_result import (
    count_pubs,
    is_executor_result,
    result_metadata,
    view_executor_pub,
)

__all__ = ["PubView", "counts_of", "form_of", "pub_list", "read_quasi", "top_metadata", "view_pub"]


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


def form_of(raw: Any) -> str:
    """`encoded`, `plain`, `quasi`, `values`, `executor` or `other`."""
    if isinstance(raw, dict):
        if raw.get("__type__") == "PrimitiveResult":
            return "encoded"
        for form, key in (("plain", "results"), ("quasi", "quasi_dists"), ("values", "values")):
            if key in raw:
                return form
        if is_executor_result(raw):
            return "executor"
    return "other"


def pub_list(raw: Any) -> list[Any]:
    """The PUB results, one element each; empty if the body has none.

    Raises:
        ValueError: The body has a known form, but not its list.
    """
    form = form_of(raw)
    if form == "other":
        return []
    if form == "executor":
        return list(range(count_pubs(raw)))
    if form == "encoded":
        inner = raw.get("__value__")
        found = inner.get("pub_results") if isinstance(inner, dict) else None
    elif form == "values":
        found = decode_value(raw["values"])
    else:
        found = raw["results" if form == "plain" else "quasi_dists"]
    if not isinstance(found, list):
        raise ValueError(f"the result has no list of PUB results but {type(found).__name__}")
    return found


def top_metadata(raw: Any) -> Any:
    """The metadata of the whole result, still encoded; a list per PUB in the legacy form."""
    form = form_of(raw)
    if form == "executor":
        return result_metadata(raw)
    if form == "encoded":
        inner = raw.get("__value__")
        return inner.get("metadata") if isinstance(inner, dict) else None
    return raw.get("metadata") if isinstance(raw, dict) else None


def view_pub(raw: Any, item: Any, place: int, *, width: int | None, allowance: Allowance) -> PubView:
    """Read one PUB result.

    Args:
        raw: The whole body.
        item: The PUB's element of `pub_list(raw)`.
        place: Its place there.
        width: Classical bits of the PUB's circuit, if known.
        allowance: What the registers may unfold to.

    Raises:
        ValueError: The element is not what its form says.
    """
    form = form_of(raw)
    if form in ("quasi", "values"):
        metadata = top_metadata(raw)
        own = metadata[place] if isinstance(metadata, list) and place < len(metadata) else None
        if form == "quasi":
            return PubView(metadata=own, quasi=read_quasi(item, width))
        return PubView(fields=_v1_fields(item, own), metadata=own)
    if form == "executor":
        found = view_executor_pub(raw, place, allowance=allowance)
        return PubView({**found.registers}, found.fields, found.metadata, kind=found.kind, shape=found.shape)
    kind: str | None = None
    shape: tuple[int, ...] | None = None
    if form == "encoded" and isinstance(item, dict):
        kind, item = str(item.get("__type__")), item.get("__value__")
    if not isinstance(item, dict) or not isinstance(item.get("data"), dict):
        raise ValueError("a PUB result has no data")
    data = item["data"]
    if data.get("__type__") == "DataBin":
        inner = data.get("__value__")
        data = inner.get("fields") if isinstance(inner, dict) else None
        if not isinstance(data, dict):
            raise ValueError("a DataBin has no fields")
        names, sizes = inner.get("field_names"), inner.get("shape")
        if isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes):
            shape = tuple(sizes)
        if isinstance(names, list) and set(names) == set(data):
            data = {name: data[name] for name in names}
    registers: dict[str, Register] = {}
    fields: dict[str, Any] = {}
    for name, value in data.items():
        reader = _register_reader(value)
        if reader is None:
            fields[name] = value
        else:
            registers[name] = reader(value, allowance)
    return PubView(registers, fields, item.get("metadata"), kind=kind, shape=shape)


def _register_reader(value: Any) -> Callable[[dict[str, Any], Allowance], Register] | None:
    if not isinstance(value, dict):
        return None
    if "samples" in value:
        return lambda found, allowance: HexRegister.read(found)
    return _packed if value.get("__type__") == "BitArray" else None


def _packed(value: dict[str, Any], allowance: Allowance) -> PackedRegister:
    inner = value.get("__value__")
    encoded = inner.get("array") if isinstance(inner, dict) else None
    if not isinstance(encoded, dict) or encoded.get("__type__") != "ndarray":
        raise ValueError("a BitArray has no array")
    found = decode_array(encoded.get("__value__"), allowance=allowance)
    if not isinstance(found, NpyArray) or found.descr[1:] not in ("u1", "b1"):
        raise ValueError("a BitArray's array does not hold bytes")
    return PackedRegister.read(found.data, found.shape, inner.get("num_bits") if isinstance(inner, dict) else None)


def _v1_fields(value: Any, metadata: Any) -> dict[str, Any]:
    fields = {"evs": value}
    if isinstance(metadata, dict):
        variance, shots = metadata.get("variance"), metadata.get("shots")
        if isinstance(variance, int | float) and isinstance(shots, int) and shots > 0 and variance >= 0:
            fields["stds"] = (variance / shots) ** 0.5
    return fields


def read_quasi(value: Any, width: int | None) -> dict[str, float]:
    """Bitstrings and their quasi-probabilities, which may be slightly negative.

    Args:
        value: `{"0": 0.1, "3": 0.9}`; keys are decimal integers, or hex with `0x`.
        width: Classical bits of the circuit; None takes those of the largest key.

    Raises:
        ValueError: Not such an object.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a quasi-distribution is {type(value).__name__}")
    numbers: dict[int, float] = {}
    for key, probability in value.items():
        try:
            number = int(key, 16) if str(key).lower().startswith("0x") else int(key)
            numbers[number] = numbers.get(number, 0.0) + float(probability)
        except (TypeError, ValueError):
            raise ValueError(f"a quasi-distribution has the entry {key!r:.40}: {probability!r:.40}") from None
    bits = max(width or 0, max((number.bit_length() for number in numbers), default=1), 1)
    if any(number < 0 for number in numbers):
        raise ValueError("a quasi-distribution has a negative outcome")
    return {f"{number:0{bits}b}": probability for number, probability in numbers.items()}


def counts_of(distribution: Mapping[str, float], shots: int) -> dict[str, int]:
    """Whole shots for each outcome, `shots` in all; negative quasi-probabilities count as zero.

    What rounding down leaves over goes to the largest remainders, so that nothing is lost.
    """
    positive = {text: max(value, 0.0) for text, value in distribution.items()}
    total = math.fsum(positive.values())
    if total <= 0 or not math.isfinite(total):
        raise ValueError("a quasi-distribution sums to nothing")
    shares = {text: value / total * shots for text, value in positive.items()}
    counts = {text: math.floor(share) for text, share in shares.items()}
    left = shots - sum(counts.values())
    by_remainder = sorted(shares, key=lambda text: counts[text] - shares[text])
    for text in by_remainder[:left]:
        counts[text] += 1
    found = ((text, count) for text, count in counts.items() if count > 0)
    return dict(sorted(found, key=lambda item: -item[1]))
