"""Quasi-distributions of the legacy sampler, and counts made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["counts_of", "read_quasi"]


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
    """Whole shots for each outcome, `shots` in all; negative quasi-probabilities count as none.

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
