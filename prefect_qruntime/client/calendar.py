"""What is due when, one date for each: pure, and never larger than a small multiple of what is in it."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

__all__ = ["Calendar"]

T = TypeVar("T")

_SLACK = 64


class Calendar(Generic[T]):
    """Dates of hashable things; a new date replaces the old one.

    Example:
        ```python
        from prefect_qruntime.client.calendar import Calendar

        calendar = Calendar[str]()
        calendar.put("d1", 5.0)
        calendar.put("d1", 3.0)
        assert calendar.pause(now=1.0) == 2.0
        assert calendar.due(now=9.0) == ["d1"]
        assert calendar.due(now=9.0) == []
        ```
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._valid: dict[T, int] = {}  # which entry counts
        self._last = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: T, when: float) -> bool:
        """Set a date; infinity means none. Returns whether it is the next one of all."""
        self._last += 1
        if when == math.inf:
            self._valid.pop(item, None)
        else:
            self._valid[item] = self._last
            heapq.heappush(self._heap, (when, self._last, item))
        self._shrink()
        return bool(self._heap) and self._heap[0][1] == self._last

    def remove(self, item: T) -> None:
        """Forget a thing and its date."""
        self._valid.pop(item, None)
        self._shrink()

    def due(self, now: float) -> list[T]:
        """Take out everything whose date has come, earliest first."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            _, number, item = heapq.heappop(self._heap)
            if self._valid.get(item) == number:
                del self._valid[item]
                found.append(item)
        return found

    def pause(self, now: float) -> float:
        """Seconds until something may be due; infinity when nothing is."""
        return max(0.0, self._heap[0][0] - now) if self._heap else math.inf

    def _shrink(self) -> None:
        # Entries that were replaced would else stay until their time, which may be days away.
        if len(self._heap) > 2 * len(self._valid) + _SLACK:
            self._heap = [entry for entry in self._heap if self._valid.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
