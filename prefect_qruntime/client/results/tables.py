"""Turn a result into rows of plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from prefect_qruntime.client.answers import check_levels
from prefect_qruntime.client.encodings.arrays import LIST_LIMIT
from prefect_qruntime.errors import QuantumRuntimeError

if TYPE_CHECKING:
    from prefect_qruntime.client.results.job_result import JobResult

__all__ = ["floats", "frequencies", "list_shape", "loads", "points", "rows", "size_of"]


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
            errors = dict(points(result.standard_errors(pub)))
            for point, value in points(result.expectation_values(pub)):
                left -= 1
                if left < 0:
                    raise ValueError("it has too many points for a table; use expectation_values() of each PUB")
                yield {"pub": pub, "point": point, "ev": value, "std": errors.get(point)}


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


_BOM = b"\xef\xbb\xbf"


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
            # The standard library reads NaN and Infinity, which the service's encoder can write.
            value = json.loads(body)
        check_levels(value, body)
        return value
    except (ValueError, RecursionError) as error:
        reason = str(error)
    start = body[:200] if isinstance(body, str) else bytes(body[:200]).decode(errors="replace")
    # Neither the error nor its context may keep the body: a file in memory could not be closed.
    del body
    raise QuantumRuntimeError(f"the result of job {job_id} is not JSON: {start!r}", reason=reason, job_id=job_id)


def floats(value: Any) -> Any:
    """The same numbers as floats, in the same lists."""
    # JSON writes 1 for 1.0; an expectation value is a float nevertheless.
    if isinstance(value, list):
        return [floats(item) for item in value]
    return float(value) if isinstance(value, int) else value


def frequencies(counts: Any) -> Any:
    """Counts as relative frequencies, in the same lists."""
    if isinstance(counts, list):
        return [frequencies(item) for item in counts]
    total = sum(counts.values()) or 1
    return {text: count / total for text, count in counts.items()}


def list_shape(value: Any) -> tuple[int, ...]:
    """Shape of nested lists; `()` for anything else."""
    return (len(value), *(list_shape(value[0]) if value else ())) if isinstance(value, list) else ()


def size_of(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    size = 1
    for length in shape:
        size *= length
    return size
