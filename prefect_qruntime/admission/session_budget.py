"""What a dedicated session costs a budget: decisions only, no clock, no service.

A dedicated session is charged by the clock from its first job to its end, whether a job runs or not. The service tells
the sum late, so a budget treats a session as it treats a job: while it is open, all that it may use is held back, its
*allotment*, and in the end the service's own number takes its place. Four rules bound what a session can overspend:

1. The allotment is at most what the budgets have left when the session is opened, and the session is opened with it as
   its longest life. So the service itself ends the session there, even if every process of ours is gone.
2. A session that somebody else opened has a longest life that cannot be changed. It is taken on only if that fits; or,
   where the budget may close sessions, with less, and then it is watched and closed at its allotment.
3. A job in the session fits only if its limit and those of the session's live jobs are left of the allotment.
4. What the service does not tell is counted by our own clock, from the last moment at which no job had begun.

A job that runs when the session ends may finish. So a session overspends by one job's limit at most, and by one watch
interval more where it has to be closed from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prefect_qruntime.admission.budget import MOST_SECONDS, Remaining, allowed_seconds, exhausted, upper_bound
from prefect_qruntime.models import Job, Session

__all__ = ["SessionHold", "allotment", "counts", "held_back", "is_due", "job_limit", "job_room", "observed", "used_up"]


UNOPENED = 2400.0
"""Seconds after which a session whose id was never noted is over: the service closes an unused one after 1800 s."""


UNSEEN = 120.0
"""Seconds for which the service may not know a session that it has opened."""


@dataclass(frozen=True, slots=True)
class SessionHold:
    """What a session holds of the budgets that it was opened or first used under. Times are seconds of one clock.

    Attributes:
        token: Names it before the session has an id.
        allotted: Seconds that it may use.
        crn: Of the instance.
        opened: When it was made.
        session_id: The session, once known.
        flow_run_id: The flow run that pays.
        deployment_id: Its deployment.
        closes: Whether it is to be closed when the allotment is used up. The service does not do it by itself.
        begun_after: No job had begun before this moment; None if no job was sent yet.
        told: Seconds that the service told last, of a session that may go on.
        over: When the session was first seen closed, with none of its jobs running.
        final: Seconds that the service told of the session when it was over.
    """

    token: str
    allotted: float
    crn: str
    opened: float = 0.0
    session_id: str | None = None
    flow_run_id: str | None = None
    deployment_id: str | None = None
    closes: bool = False
    begun_after: float | None = None
    told: float = 0.0
    over: float | None = None
    final: float | None = None

    def sent_job(self, now: float) -> SessionHold:
        """A job was sent to the session, or is about to be."""
        return self if self.begun_after is not None else replace(self, begun_after=now)


def observed(
    hold: SessionHold, session: Session | None, now: float, *, live_jobs: bool, ahead: float = 0.0
) -> SessionHold:
    """The hold after the service's answer about its session.

    Args:
        hold: As it was.
        session: The answer; None if the service does not know the session any more.
        now: When it was asked.
        live_jobs: Whether a job of the session is not over. One that runs may outlive the session.
        ahead: Seconds by which the service's clock is ahead of ours.
    """
    if hold.final is not None:
        return hold
    if session is None:
        return hold if live_jobs else _unknown(hold, now)
    hold = replace(hold, session_id=session.id, told=max(hold.told, session.elapsed_time or 0.0))
    if session.activated_at is not None:
        activated = min(now, session.activated_at.timestamp() - ahead)
        hold = replace(hold, begun_after=max(hold.begun_after if hold.begun_after is not None else 0.0, activated))
    elif not session.ref().is_closed and hold.begun_after is not None and session.state == "open":
        hold = replace(hold, begun_after=now)
    if live_jobs or not session.ref().is_closed:
        return hold
    # Without the service's number our clock's counts, which stands still from here on.
    return replace(hold, over=now if hold.over is None else hold.over, final=session.elapsed_time)


def _unknown(hold: SessionHold, now: float) -> SessionHold:
    """The hold of a session that the service does not know.

    It may be new, or another user's of the same instance, who alone can see it: so it counts until it must be over, by
    the clock, and then as all that it was allotted.
    """
    begun = hold.begun_after is not None
    if now - hold.opened < UNSEEN or (used_up(hold, now) < hold.allotted if begun else now - hold.opened < UNOPENED):
        return hold
    return replace(hold, over=now, final=max(hold.told, hold.allotted) if begun else hold.told)


def used_up(hold: SessionHold, now: float) -> float:
    """Seconds that the session has used by now at the most."""
    if hold.final is not None:
        return hold.final
    if hold.begun_after is None:
        return hold.told
    until = now if hold.over is None else hold.over
    return max(hold.told, until - hold.begun_after)


def counts(hold: SessionHold, now: float) -> bool:
    """Whether it is to be counted at all: one that never got a session is forgotten when the service closes those."""
    return hold.session_id is not None or now - hold.opened < UNOPENED


def held_back(hold: SessionHold, now: float) -> float:
    """Seconds that it may still use within its allotment."""
    return 0.0 if hold.over is not None else max(0.0, hold.allotted - used_up(hold, now))


def is_due(hold: SessionHold, now: float) -> bool:
    """Whether the session is to be closed now, because its allotment is used up."""
    return hold.closes and hold.over is None and hold.session_id is not None and used_up(hold, now) >= hold.allotted


def allotment(rooms: Sequence[Remaining], life: int | None, *, foreign: bool = False, closes: bool = False) -> int:
    """The seconds that a session may use.

    Args:
        rooms: All limits in force.
        life: Seconds that it may live: what was asked for, or what is left of a session that is open already.
        foreign: Whether the session is open already, so that its life cannot be changed.
        closes: Whether it may be closed at its allotment.

    Raises:
        BudgetExhausted: There is no room for it.
    """
    seconds = [room for room in rooms if not room.counts_jobs]
    life = MOST_SECONDS if life is None else life
    if not seconds:
        return life
    tightest = min(seconds, key=lambda room: room.left)
    fits = min(life, math.floor(tightest.left))
    if fits < 1 or (foreign and fits < life and not closes):
        raise exhausted(tightest, life if foreign else None, session=True)
    return fits


def job_room(hold: SessionHold, budget: str, live: Iterable[Job], on_their_way: float, now: float) -> Remaining:
    """What a session has left for one more job.

    Args:
        hold: The session's.
        budget: Name of the budget, for messages.
        live: Its jobs that are not over.
        on_their_way: Seconds reserved for jobs that are not listed yet.
        now: Seconds.
    """
    waiting = sum(upper_bound(job) for job in live) + on_their_way
    return Remaining(budget, "session", hold.allotted, min(hold.allotted, used_up(hold, now)), waiting)


def job_limit(rooms: Sequence[Remaining], session: Remaining, wanted: int | None) -> int | None:
    """The limit of a job in a session: counts of jobs hold as ever, seconds are the session's."""
    return allowed_seconds([*(room for room in rooms if room.counts_jobs), session], wanted)
