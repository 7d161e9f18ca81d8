"""Decide when a process holds a lock, has lost it, or may take over another's: no clock, no API.

A lock is a row in Prefect with a unique name. Its holder changes the row every few seconds (a heartbeat, or beat).
Three rules prevent two holders at once, whatever is slow, dies or is restarted:

1. A holder relies on its lock for `LEASE` seconds after it *sent* the last beat that was answered within `ANSWER`
   seconds. After that it never beats again, so a lock that was lost stays lost.
2. Another process removes the row, by its id, only after it saw the same beat for `SILENCE` seconds of its own clock.
3. `SILENCE` is longer than `LEASE` and `ANSWER` together. So a beat that its holder counts is visible before
   another process removes the row, and a late removal hits a row that no process relies on any more.

No two clocks are compared, and nothing depends on what a Prefect server keeps in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ANSWER", "BEAT", "LEASE", "SILENCE", "Action", "Claim", "Holding", "Row"]

LEASE = 90.0
"""Seconds for which a holder relies on a beat: a Prefect server on SQLite may stand still for a minute of it."""
ANSWER = 10.0
"""Seconds within which a beat must be answered to count."""
BEAT = 10.0
"""Seconds between beats."""
SILENCE = 105.0
"""Seconds without a beat after which another process takes over."""


@dataclass(frozen=True, slots=True)
class Row:
    """A lock as it stands in Prefect.

    Attributes:
        id: Of this row; a lock that is released and taken again has another one.
        holder: The name of the claim that holds it, unique for each claim.
        beat: How many times the holder changed it.
        who: The holder in words.
    """

    id: str
    holder: str
    beat: int = 0
    who: str = "unknown"


@dataclass(frozen=True, slots=True)
class Action:
    """The next action of a claiming process.

    Attributes:
        do: One of five things.
        row: The row that it is about.
        since: For `hold`: when the request was sent that may have created the row.
    """

    do: Literal["create", "read", "remove", "hold", "give up"]
    row: Row | None = None
    since: float = 0.0


@dataclass(slots=True)
class Claim:
    """One process's attempt to get a lock: events in, the next action out.

    Attributes:
        holder: The name of this claim.
        held_limit: Most seconds to wait for one living holder.
        limit: Most seconds of the whole wait.
    """

    holder: str
    held_limit: float
    limit: float
    contended: bool = False
    _began: float | None = None
    _sent: dict[str, float] = field(default_factory=dict)
    _seen: tuple[str, int] | None = None
    _seen_since: float = 0.0
    _held_since: float = 0.0

    def start(self, now: float) -> Action:
        """Begin."""
        self._began = now
        return Action("create")

    def creating(self, now: float) -> str:
        """Note that a request to create the row is sent now, and return the holder to write into it.

        Each request has its own, because one whose answer was lost may create the row at any later time.
        """
        name = f"{self.holder}-{len(self._sent)}"
        self._sent[name] = now
        return name

    def created(self, row: Row, now: float) -> Action:
        """The row was created by this claim."""
        return self._hold(row, now)

    def not_created(self) -> Action:
        """The name is taken, or the answer was lost: read the row to see whose it is."""
        return Action("read")

    def read(self, row: Row | None, *, asked: float, now: float) -> Action:
        """The row was read.

        Args:
            row: The row; None if there is none.
            asked: When the request was sent.
            now: When the answer arrived.
        """
        if row is None:
            return self._unless_late(Action("create"), None, now)
        if row.holder in self._sent:
            return self._hold(row, now)
        self.contended = True
        if self._seen is None or self._seen[0] != row.id:
            self._held_since = now
        if self._seen != (row.id, row.beat):
            self._seen, self._seen_since = (row.id, row.beat), now
        if asked - self._seen_since >= SILENCE:
            return Action("remove", row)
        late = now - self._held_since >= self.held_limit
        return Action("give up", row) if late else self._unless_late(Action("read", row), row, now)

    def removed(self, now: float) -> Action:
        """The row of a silent holder was removed, by this process or another one."""
        return self._unless_late(Action("create"), None, now)

    def _hold(self, row: Row, now: float) -> Action:
        """Take the row, unless it is so old that other processes may remove it soon."""
        since = self._sent[row.holder]
        return Action("hold", row, since) if now - since < LEASE / 2 else Action("remove", row)

    def _unless_late(self, action: Action, row: Row | None, now: float) -> Action:
        began = now if self._began is None else self._began
        return Action("give up", row) if now - began >= self.limit else action


@dataclass(slots=True)
class Holding:
    """A lock that this process holds. Times are of its own monotonic clock.

    Attributes:
        row: The row, with the beat that was sent last.
        until: Until when the process relies on it.
    """

    row: Row
    until: float

    @classmethod
    def begin(cls, row: Row, *, sent: float) -> Holding:
        """Begin to hold the lock, from the time at which the request that got it was sent."""
        return cls(row, sent + LEASE)

    def holds(self, now: float) -> bool:
        """Whether the process may act on the lock."""
        return now < self.until

    def beat(self, now: float) -> Row | None:
        """The row to write for the next beat; None if the lock is lost, for good."""
        if not self.holds(now):
            self.until = float("-inf")
            return None
        self.row = Row(self.row.id, self.row.holder, self.row.beat + 1, self.row.who)
        return self.row

    def answered(self, *, sent: float, now: float) -> None:
        """Note that a beat was written; one that took too long does not count."""
        if self.holds(now) and now - sent <= ANSWER:
            self.until = max(self.until, sent + LEASE)

    def gone(self) -> None:
        """Note that another process removed the row."""
        self.until = float("-inf")
