"""A result as rows of plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefect_qruntime.client.decode import LIST_LIMIT

if TYPE_CHECKING:
    from prefect_qruntime.client.results import JobResult

__all__ = ["points", "rows"]


def rows(result: JobResult) -> Iterator[dict[str, Any]]:
    """One row for each outcome (sampler) or value (estimator), in order of PUB and point.

    Raises:
        ValueError: More values than there should be objects of: a small body can unfold to very many.
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
