"""Injected faults, and the journal of all requests."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

_DROPS = (None, "before", "after", "middle")


@dataclass(slots=True)
class Fault:
    """One injected fault; see `Control.add_fault` for the meaning of the fields."""

    id: int
    method: str | None = None
    path: str = "*"
    status: int | None = None
    body: Any = None
    headers: dict[str, str] | None = None
    retry_after: int | float | str | None = None
    delay: float = 0.0
    drop: str | None = None
    after_handler: bool = False
    times: int | None = 1
    skip: int = 0
    ws_close: int | None = None
    ws_silence: bool = False
    fired: int = 0

    def __post_init__(self) -> None:
        if self.drop not in _DROPS:
            raise ValueError(f"drop must be one of {_DROPS}, not {self.drop!r}")
        if self.status is not None and not 200 <= self.status <= 599:
            raise ValueError(f"status must be within 200..599, not {self.status}")
        if self.ws_close is not None and not 1000 <= self.ws_close <= 4999:
            raise ValueError(f"ws_close must be within 1000..4999, not {self.ws_close}")
        if (self.times is not None and self.times < 1) or self.skip < 0 or self.delay < 0:
            raise ValueError("times must be at least 1, skip and delay at least 0")
        answers = self.status is not None
        if (self.body is not None or self.headers or self.retry_after is not None) and not answers:
            raise ValueError("body, headers and retry_after need a status")
        if not answers and self.drop is None and self.ws_close is None and not self.ws_silence and not self.delay:
            raise ValueError("the fault does nothing: give status, delay, drop, ws_close or ws_silence")
        self.method = self.method.upper() if self.method else None


class FaultBook:
    """Keep the faults in the order they were added; the first that matches and is not skipped fires."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._last_id = 0

    def add(self, **fields: Any) -> int:
        """Add a fault and return its id.

        Raises:
            ValueError: If the combination makes no sense.
        """
        fault = Fault(self._last_id + 1, **fields)
        self._last_id = fault.id
        self._faults.append(fault)
        return fault.id

    def match(self, method: str, path: str) -> Fault | None:
        """Return the fault for this request, if any, and count it as fired."""
        if not self._faults:
            return None
        for fault in self._faults:
            if fault.method not in (None, method) or not fnmatchcase(path, fault.path):
                continue
            if (fault.ws_close is not None or fault.ws_silence) and method != "WS":
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.fired += 1
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
            return fault
        return None

    def view(self) -> list[dict[str, Any]]:
        """Return the faults that have not fired yet."""
        return [asdict(fault) for fault in self._faults]

    def clear(self) -> None:
        """Remove all faults."""
        self._faults.clear()


@dataclass(slots=True)
class Entry:
    """One request: number, service time, dialect-free path with its query, and what was answered.

    `status` is `None` while unanswered, 0 when the connection was closed without an answer, and 101 for an
    accepted websocket. `connection` is the client's port.
    """

    n: int
    t: float
    method: str
    path: str
    dialect: str
    connection: int
    status: int | None = None
    fault: int | None = None
    bare: str = field(default="", repr=False)


class Journal:
    """Record requests, newest last. Holds no headers and no bodies, so no secrets; keeps the last 200,000."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=200_000)
        self._count = 0

    def add(self, t: float, method: str, bare: str, query: str, dialect: str, connection: int) -> Entry:
        """Record a request."""
        self._count += 1
        path = f"{bare}?{query}" if query else bare
        entry = Entry(self._count, t, method, path, dialect, connection, bare=bare)
        self._entries.append(entry)
        return entry

    def view(self, method: str | None = None, path: str | None = None) -> list[dict[str, Any]]:
        """Return the entries, optionally those of one method and of paths like the `fnmatch` pattern."""
        found = []
        for entry in self._entries:
            if method is not None and entry.method != method.upper():
                continue
            if path is not None and not (fnmatchcase(entry.bare, path) or fnmatchcase(entry.path, path)):
                continue
            shown = asdict(entry)
            del shown["bare"]
            found.append(shown)
        return found

    def clear(self) -> None:
        """Remove the entries; the numbering continues."""
        self._entries.clear()
