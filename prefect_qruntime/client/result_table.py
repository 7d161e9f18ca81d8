"""A result as rows of plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_qruntime.client.results import JobResult

__all__ = ["rows"]


def rows(result: JobResult) -> Iterator[dict[str, Any]]:
    """One row for each outcome (sampler) or value (estimator), in order of PUB and point."""
    for pub in range(result.num_pubs):
        registers: list[str | None] = list(result.registers(pub))
        if not registers and not result.is_estimator(pub):
            registers = [None]
        for register in registers:
            for point, counts in _points(result.counts_array(pub, register)):
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
            errors = dict(_points(result.standard_errors(pub)))
            for point, value in _points(result.expectation_values(pub)):
                yield {"pub": pub, "point": point, "ev": value, "std": errors.get(point)}


def _points(value: Any, place: tuple[int, ...] = ()) -> Iterator[tuple[int | tuple[int, ...] | None, Any]]:
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _points(item, (*place, number))
    else:
        yield (place if len(place) > 1 else place[0] if place else None), value
