"""Plain values of a result: read from JSON, and brought into shape."""

from __future__ import annotations

import json
from typing import Any

import orjson

from prefect_qruntime.errors import QuantumRuntimeError

__all__ = ["floats", "frequencies", "list_shape", "loads", "size_of"]


def loads(body: bytes | bytearray | memoryview | str, job_id: str) -> Any:
    """The JSON value of a body.

    Raises:
        QuantumRuntimeError: It is not JSON.
    """
    try:
        return orjson.loads(body)
    except ValueError:
        pass
    if isinstance(body, memoryview):
        body = body.tobytes()
    try:
        # The standard library reads NaN and Infinity, which the service's encoder can write.
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        start = body[:200]
        text = start if isinstance(start, str) else bytes(start).decode(errors="replace")
        raise QuantumRuntimeError(
            f"the result of job {job_id} is not JSON: {text!r}", reason=str(error), job_id=job_id
        ) from None


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
