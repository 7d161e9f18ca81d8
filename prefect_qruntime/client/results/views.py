"""Read one PUB of a result body of any form, and turn a result into rows of plain values.

| form | how it is recognised |
|---|---|
| encoded V2 | `{"__type__": "PrimitiveResult", …}` |
| plain V2 | `{"results": […]}` |
| legacy V1 | `{"quasi_dists": […]}`, `{"values": […]}` |
| executor | `{"schema_version": …, "data": [{"results": …}]}` |

Anything else (noise learner, new programs) has no PUBs here and stays raw.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from prefect_qruntime.client.encodings.arrays import LIST_LIMIT, Allowance, NpyArray, decode_array, decode_value
from prefect_qruntime.client.encodings.registers import HexRegister, PackedRegister, Register
from prefect_qruntime.client.failures import check_levels
from prefect_qruntime.client.programs.executor_result import (
    PubView,
    count_pubs,
    is_executor_result,
    result_metadata,
    view_executor_pub,
)
from prefect_qruntime.errors import QuantumRuntimeError

if TYPE_CHECKING:
    from prefect_qruntime.client.results.job_result import JobResult

__all__ = [
    "PubView",
    "counts_of",
    "expectations",
    "floats",
    "form_of",
    "frequencies",
    "loads",
    "points",
    "pub_list",
    "read_quasi",
    "rows",
    "top_metadata",
    "view_pub",
]

_BOM = b"\xef\xbb\xbf"
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})
_HALF_LETTER = re.compile(r"\\u[dD][89a-fA-F]")


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
        return view_executor_pub(raw, place, allowance=allowance)
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
        if isinstance(value, dict) and "samples" in value:
            registers[name] = HexRegister.read(value)
        elif isinstance(value, dict) and value.get("__type__") == "BitArray":
            registers[name] = _packed(value, allowance)
        else:
            fields[name] = value
    return PubView(registers, fields, item.get("metadata"), kind=kind, shape=shape)


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

    The service wrote bitstrings of one length, which IBM's client reads. Other senders write decimal integers, or hex
    or binary ones with their prefix.

    Args:
        value: `{"00": 0.1, "11": 0.9}`, or `{"0": 0.1, "3": 0.9}`.
        width: Classical bits of the circuit; None takes those of a bitstring, or of the largest number.

    Raises:
        ValueError: Not such an object.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"a quasi-distribution is {type(value).__name__}")
    digits = _bitstring_length(value, width)
    numbers: dict[int, float] = {}
    for key, probability in value.items():
        try:
            text = str(key)
            number = int(text, 2 if digits else 0 if text[:2].lower() in ("0x", "0b") else 10)
            numbers[number] = numbers.get(number, 0.0) + float(probability)
        except (TypeError, ValueError):
            raise ValueError(f"a quasi-distribution has the entry {key!r:.40}: {probability!r:.40}") from None
    bits = max(width or 0, digits, max((number.bit_length() for number in numbers), default=1), 1)
    if any(number < 0 for number in numbers):
        raise ValueError("a quasi-distribution has a negative outcome")
    return {f"{number:0{bits}b}": probability for number, probability in numbers.items()}


def _bitstring_length(keys: Mapping[Any, Any], width: int | None) -> int:
    """The digits of each key if all are bitstrings, else 0.

    Only what may be decimal integers too is taken for these: none begins with 0, and all fit into the circuit's bits.
    """
    texts = [key for key in keys if isinstance(key, str) and not set(key) - {"0", "1"}]
    lengths = {len(text) for text in texts}
    if not lengths or len(texts) != len(keys):
        return 0
    length = max(lengths)
    if len(lengths) > 1:  # none that the service wrote; binary numbers only if the circuit has no such outcomes
        return length if width is not None and any(int(text) >> width for text in texts) else 0
    padded = length > 1 and any(text[0] == "0" for text in texts)
    if padded or width is None or length >= width:
        return length
    return length if any(int(text) >> width for text in texts) else 0


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


def rows(result: JobResult) -> Iterator[dict[str, Any]]:
    """One row for each outcome (sampler) or value (estimator), in order of PUB and point.

    Raises:
        ValueError: Too many values to make objects of: a small body can unfold to very many.
    """
    left = LIST_LIMIT // 4
    for pub in range(result.num_pubs):
        registers: list[str | None] = list(result.registers(pub))
        kerneled = [] if result.is_estimator(pub) else list(_kerneled(result, pub))
        left -= len(kerneled)
        if left < 0:
            raise ValueError("it has too many points for a table; use arrays() of each PUB")
        yield from kerneled
        if not registers and not kerneled and not result.is_estimator(pub):
            registers = [None]
        for register in registers:
            for point, counts in points(result.counts_array(pub, register)):
                shots = sum(counts.values())
                for bitstring, count in counts.items():
                    yield {
                        "pub": pub,
                        "point": point,
                        "register": register,
                        "bitstring": bitstring,
                        "count": count,
                        "probability": count / shots,
                    }
        if result.is_estimator(pub):
            for point, value, error in expectations(result, pub):
                left -= 1
                if left < 0:
                    raise ValueError("it has too many points for a table; use expectation_values() of each PUB")
                yield {"pub": pub, "point": point, "ev": value, "std": error}


def expectations(result: JobResult, pub: int) -> Iterator[tuple[int | tuple[int, ...] | None, Any, Any]]:
    """Each point of an estimator's PUB with its value and standard error, which is None if it is not known."""
    errors = dict(points(result.standard_errors(pub)))
    for point, value in points(result.expectation_values(pub)):
        yield point, value, errors.get(point)


def _kerneled(result: JobResult, pub: int) -> Iterator[dict[str, Any]]:
    for name, values in result.arrays(pub).items():
        for place, value in points(values):
            if not isinstance(value, complex):
                break
            yield {"pub": pub, "array": name, "place": place, "real": value.real, "imag": value.imag}


def points(value: Any, place: tuple[int, ...] = ()) -> Iterator[tuple[int | tuple[int, ...] | None, Any]]:
    """Each point of nested lists with its place: None for a single value, an int, or a tuple."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from points(item, (*place, number))
    else:
        yield (place if len(place) > 1 else place[0] if place else None), value


def loads(body: bytes | bytearray | memoryview | str, job_id: str) -> Any:
    """The JSON value of a body.

    Raises:
        QuantumRuntimeError: It is not JSON, or nested too deeply.
    """
    if not isinstance(body, str) and body[:3] == _BOM:
        body = body[3:]
    try:
        try:
            value = orjson.loads(body)
        except ValueError:
            if isinstance(body, memoryview):
                body = body.tobytes()
            # The standard library reads NaN and Infinity, which the service's encoder can write; and, as in every
            # other answer, control characters and halves of letters. The halves become question marks, as nothing
            # can store them.
            text = body if isinstance(body, str) else body.decode(json.detect_encoding(body), "replace")
            value = json.loads(text, strict=False)
            if _HALF_LETTER.search(text):
                value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
        check_levels(value, body)
        return value
    except (ValueError, RecursionError) as error:
        reason = str(error)
    start = body[:200] if isinstance(body, str) else bytes(body[:200]).decode(errors="replace")
    # Neither the error nor its context may keep the body: a file in memory could not be closed.
    del body
    raise QuantumRuntimeError(f"the result of job {job_id} is not JSON: {start!r}", reason=reason, job_id=job_id)


def floats(value: Any) -> Any:
    """The same numbers as floats, in the same lists; null and "NaN", which encoders write for NaN, as NaN.

    Raises:
        ValueError: Something in them is no number.
    """
    # JSON writes 1 for 1.0; an expectation value is a float nevertheless.
    if isinstance(value, list):
        return [floats(item) for item in value]
    if value is None or (isinstance(value, str) and value in _NOT_FINITE):
        return float(value or "nan")
    if not isinstance(value, int | float | complex):
        raise ValueError(f"{value!r:.60} is not a number")
    return float(value) if isinstance(value, int) else value


def frequencies(counts: Any) -> Any:
    """Counts as relative frequencies, in the same lists."""
    if isinstance(counts, list):
        return [frequencies(item) for item in counts]
    total = sum(counts.values()) or 1
    return {text: count / total for text, count in counts.items()}
