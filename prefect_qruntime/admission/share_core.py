"""Decide whose turn it is when several teams share a create rate: no clock, no API.

Each submission that waits has a ticket, a row in Prefect; a ticket that got its turn stays as a grant for a while.
There is no dispatcher: each waiting process reads all rows and computes the same order.

The order is start-time fair queueing. A grant has a start tag and a finish tag, a weight's reciprocal apart. The next
tag of a team is the larger of its last finish tag and the largest start tag of all; the team with the smallest goes
first, within a team the oldest ticket. So waiting teams get turns by their weights, an idle team saves up nothing,
and no team starves: the turns that others get before it are bounded by their weights.

A killed process leaves a ticket. If a ticket does not take its turn within `PATIENCE` seconds, by the clock of the
process that reads it, it is skipped and its row removed. A living process that finds its row gone renews it. Only the
order depends on that: the rate limit itself is kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["PATIENCE", "Row", "Share", "Turn", "Waiter", "in_order", "is_spent"]

PATIENCE = 6.0
"""Seconds after which a turn that is not taken goes to the next ticket."""
QUICKEST, SLOWEST = 0.5, 60.0
"""Seconds between two reads, of the next in turn and of tickets that wait for long."""


@dataclass(frozen=True, slots=True)
class Share:
    """A team's share.

    Attributes:
        weight: Relative to the weights of the other waiting teams.
        ceiling: Most turns in a period.
    """

    weight: float = 1.0
    ceiling: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A ticket, or a grant if it has tags.

    Attributes:
        id: Chosen by its owner.
        team: The team's name.
        since: When its owner began to wait, by Prefect's clock.
        granted: When it got its turn, by Prefect's clock.
        start: Its start tag.
        finish: Its finish tag.
    """

    id: str
    team: str
    since: float
    granted: float | None = None
    start: float = 0.0
    finish: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The next action of a waiting process.

    Attributes:
        do: Take the turn, wait, or renew its own row.
        pause: Seconds until the next read.
        start: The start tag of the turn.
        finish: Its finish tag.
        drop: Rows to remove: of dead processes, and grants that no longer matter.
    """

    do: Literal["go", "wait", "renew"]
    pause: float = 0.0
    start: float = 0.0
    finish: float = 0.0
    drop: tuple[str, ...] = ()


_PLAIN = Share()


def in_order(
    rows: Iterable[Row], shares: Mapping[str, Share], now: float, period: float, *, until: str | None = None
) -> list[tuple[Row, float, float]]:
    """Order all tickets by their turns, with the tags they get; leave out teams that are at their ceilings.

    Args:
        rows: Tickets and grants.
        shares: By team.
        now: Seconds of Prefect's clock.
        period: Seconds.
        until: Stop after this ticket.
    """
    rows = list(rows)
    virtual, finished, recent = 0.0, dict[str, float](), dict[str, int]()
    for one in rows:
        if one.granted is not None:
            virtual = max(virtual, one.start)
            finished[one.team] = max(finished.get(one.team, 0.0), one.finish)
            recent[one.team] = recent.get(one.team, 0) + (now - one.granted < period)
    waiting = dict[str, list[Row]]()
    for row in sorted((row for row in rows if row.granted is None), key=lambda row: (row.since, row.id)):
        waiting.setdefault(row.team, []).append(row)
    for tickets in waiting.values():
        tickets.reverse()
    found: list[tuple[Row, float, float]] = []
    while True:
        best: tuple[float, float, str] | None = None
        for team, tickets in waiting.items():
            ceiling = shares.get(team, _PLAIN).ceiling
            if tickets and (ceiling is None or recent.get(team, 0) < ceiling):
                start = max(virtual, finished.get(team, 0.0))
                if best is None or start <= best[0]:
                    candidate = (start, tickets[-1].since, team)
                    best = candidate if best is None else min(best, candidate)
        if best is None or (found and found[-1][0].id == until):
            return found
        start, _, team = best
        finish = start + 1.0 / shares.get(team, _PLAIN).weight
        found.append((waiting[team].pop(), start, finish))
        virtual, finished[team] = start, finish
        recent[team] = recent.get(team, 0) + 1


def is_spent(row: Row, rows: Sequence[Row], now: float, period: float) -> bool:
    """Whether a grant no longer matters: its period is over, and its team's next tag does not depend on it."""
    if row.granted is None or now - row.granted < 2 * period:
        return False
    return row.finish <= max(one.start for one in rows)


@dataclass(slots=True)
class Waiter:
    """One waiting submission: all rows in, the next action out.

    Attributes:
        id: Of its own row.
        count: Turns in a period.
        period: Seconds.
    """

    id: str
    count: int
    period: float
    _entitled: dict[str, float] = field(default_factory=dict)

    def look(self, rows: Sequence[Row], shares: Mapping[str, Share], *, server: float, now: float) -> Turn:
        """Decide what to do after all rows were read.

        Args:
            rows: Tickets and grants.
            shares: By team.
            server: Seconds of Prefect's clock, for grants.
            now: Seconds of this process's clock, for `PATIENCE`.
        """
        if all(row.id != self.id for row in rows):
            return Turn("renew")
        out = sum(row.granted is not None and server - row.granted < self.period for row in rows)
        free = max(0, self.count - out)
        gone = tuple(row.id for row in rows if is_spent(row, rows, server, self.period))
        order = in_order(rows, shares, server, self.period, until=self.id)
        dead = self._dead([row.id for row, _, _ in order[:free]], now)
        if dead:
            order = in_order([row for row in rows if row.id not in dead], shares, server, self.period, until=self.id)
        drop = (*gone, *dead)
        place = next((place for place, (row, _, _) in enumerate(order) if row.id == self.id), None)
        if place is None:  # at its team's ceiling
            return Turn("wait", self.period / 8, drop=drop)
        if place < free:
            _, start, finish = order[place]
            return Turn("go", start=start, finish=finish, drop=drop)
        wait = (place - free + 1) * self.period / self.count
        return Turn("wait", min(max(wait / 4, QUICKEST), SLOWEST), drop=drop)

    def _dead(self, entitled: Sequence[str], now: float) -> frozenset[str]:
        """The tickets that have had a turn for too long without taking it."""
        self._entitled = {one: self._entitled.get(one, now) for one in entitled if one != self.id}
        return frozenset(one for one, since in self._entitled.items() if now - since >= PATIENCE)
