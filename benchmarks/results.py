"""Read what a run wrote: medians and spreads of every number."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Results:
    """The numbers of one run.

    Attributes:
        about: Machine, versions and kind of the run.
        numbers: (row, peer, metric) to the values of all repeats.
        errors: (row, peer) to what went wrong in a measurement.
        args: Row to the sizes it was measured with.
        busy: Cores that others used just before each measurement.
    """

    about: dict[str, Any] = field(default_factory=dict)
    numbers: dict[tuple[str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[tuple[str, str], str] = field(default_factory=dict)
    args: dict[str, dict[str, Any]] = field(default_factory=dict)
    busy: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, lines: Iterable[str]) -> Results:
        """Read JSON lines; where a file holds several runs of a row, all count as repeats."""
        found = cls()
        for line in lines:
            record = json.loads(line)
            if "key" not in record:
                found.about = record
                continue
            key, peer = record["key"], record["peer"]
            found.args.setdefault(key, record["args"])
            found.busy.append(record["busy"])
            if "error" in record:
                found.errors[key, peer] = record["error"]
                continue
            for metric, value in record["numbers"].items():
                found.numbers[key, peer, metric].append(float(value))
        return found

    def median(self, key: str, peer: str, metric: str) -> float | None:
        """The median of all repeats, or None where nothing was measured."""
        values = self.numbers.get((key, peer, metric))
        return statistics.median(values) if values else None

    def worst(self, key: str, peer: str, metric: str) -> float | None:
        """The largest of all repeats, or None where nothing was measured."""
        values = self.numbers.get((key, peer, metric))
        return max(values) if values else None
