"""What jobs and sessions cost a budget: decisions only, no clock, no service.

For a job, the most that it may use is reserved; once its usage is final, the service's own number takes its place.

A dedicated session is charged by the clock from its first job to its end, whether a job runs or not. The service
reports the sum late, so a budget treats a session as it treats a job: while it is open, all that it may use is held
back, its *allotment*, and in the end the service's own number takes its place. Four rules bound how much a session can
overspend:

1. The allotment is at most what the budgets have left when the session is opened, and the session is opened with it as
   its longest life. So the service itself ends the session there, even if every process of ours is gone.
2. A session that was opened without the budget has a longest life that cannot be changed. It is used only if that fits;
   or, if the budget may close sessions, with less, and then it is watched and closed at its allotment.
3. A job in the session fits only if its limit and those of the session's live jobs are left of the allotment.
4. What the service does not report is counted by our own clock, from the last moment at which no job had begun.

A job that runs when the session ends may finish. So a session overspends by one job's limit at most, and by one watch
interval more where it has to be closed from outside.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.errors import BudgetExhausted
from prefect_qruntime.models import Job, Session
from prefect_qruntime.redact import number_text

__all__ = [
    "Remaining",
    "Reservation",
    "SessionHold",
    "Tally",
    "allotment",
    "allowed_seconds",
    "counts",
    "exhausted",
    "expected_seconds",
    "held_back",
    "is_due",
    "is_settled",
    "job_limit",
    "job_room",
    "levels",
    "lowest",
    "observed",
    "tally",
    "upper_bound",
    "used_up",
]

UNOPENED = 2400.0
"""Seconds after which a session whose id was never recorded is over: the service closes an unused one after 1800 s."""


UNSEEN = 120.0
"""Seconds for which the service may not know a session that it has opened, or shown before."""


# ---- limits ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remaining:
    """One limit of a budget and how much of it is left.

    Attributes:
        budget: Name of the budget.
        limit: Name of the limit.
        allowed: What it allows: QPU seconds, or jobs for `max_jobs_per_run`.
        used: What is spent.
        reserved: What jobs may still use whose usage is not final.
        settling: Those jobs that are over, each with its part of `reserved`.
    """

    budget: str
    limit: str
    allowed: float
    used: float
    reserved: float = 0.0
    settling: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """What a further job may use."""
        return self.allowed - self.used - self.reserved

    @property
    def counts_jobs(self) -> bool:
        """Whether the limit counts jobs instead of seconds."""
        return self.limit == "max_jobs_per_run"


def lowest(*values: int | None) -> int | None:
    """The lowest of the values that are set."""
    return min((value for value in values if value is not None), default=None)


def allowed_seconds(rooms: Sequence[Remaining], wanted: int | None, ceiling: int | None = None) -> int | None:
    """Compute the QPU seconds that the next job may use.

    Args:
        rooms: All limits in force.
        wanted: The job's own limit, else the budget's default, else None.
        ceiling: The most that a job may use whatever was wanted: the policy's limit. Alone it is no wish, so less will
            do if less is left.

    Returns:
        The limit to send; None if there is none.

    Raises:
        BudgetExhausted: It does not fit.

    Example:
        ```python
        from prefect_qruntime.admission.budget_core import Remaining, allowed_seconds

        assert allowed_seconds([Remaining("mine", "max_seconds_per_run", allowed=100, used=60)], None) == 40
        ```
    """
    for room in rooms:
        if room.counts_jobs and room.left < 1:
            raise exhausted(room, None)
    seconds = [room for room in rooms if not room.counts_jobs]
    wanted = lowest(wanted, ceiling) if wanted is not None else None
    if not seconds:
        return wanted if wanted is not None else ceiling
    tightest = min(seconds, key=lambda room: room.left)
    most = MOST_SECONDS if ceiling is None else min(MOST_SECONDS, ceiling)
    cap = wanted if wanted is not None else min(most, math.floor(tightest.left))
    if cap < 1 or cap > tightest.left:
        raise exhausted(tightest, wanted)
    return cap


_CURES = {
    "max_seconds_per_run": "Raise max_seconds_per_run",
    "max_seconds_per_deployment": "Wait until older runs leave the budget's period, raise max_seconds_per_deployment",
    "min_remaining_seconds": "Wait for the instance's next usage period, lower min_remaining_seconds",
    "max_jobs_per_run": "Raise max_jobs_per_run, or put more PUBs into each job",
    "session": "Open another session",
}


def exhausted(room: Remaining, wanted: int | None, *, session: bool = False) -> BudgetExhausted:
    """Make the error that refuses a job or a session.

    Args:
        room: The limit that has no room.
        wanted: The seconds that were asked for.
        session: Whether a session was to be opened, or used for the first time.
    """
    what = "a session" if session else "another job"
    if room.counts_jobs:
        text = f"{room.limit} of {number_text(room.allowed)} is reached"
        fix = _CURES[room.limit] + "."
    else:
        needs = f"this one may use {wanted} s" if wanted is not None else "that leaves nothing for this one"
        limit = "the session" if room.limit == "session" else room.limit
        text = (
            f"{limit} allows {number_text(room.allowed)} QPU seconds, {number_text(room.used)} are used, "
            f"{number_text(room.reserved)} reserved by jobs and sessions whose usage is not final, and {needs}"
        )
        if session and wanted is not None:
            fix = _CURES[room.limit] + ", open the session under the budget, or set close_sessions_at_limit"
        elif session:
            fix = _CURES[room.limit]
        else:
            fix = _CURES[room.limit] + ", or give a lower max_execution_time"
        fix += "; or run again when the live jobs and sessions are over." if room.reserved else "."
    return BudgetExhausted(
        f"the budget {room.budget!r} has no room for {what}: {text}.",
        solution=f"{fix} This request was not sent.",
        budget=room.budget,
        limit=room.limit,
        allowed=room.allowed,
        used=room.used,
        reserved=room.reserved,
        needed=wanted,
    )


LEVELS = (50, 80, 100)
"""Percent of a limit at which a level is reported."""


def levels(room: Remaining, more: float) -> list[int]:
    """The levels that a limit reaches when `more` is spent of it.

    Example:
        ```python
        from prefect_qruntime.admission.budget_core import Remaining, levels

        assert levels(Remaining("mine", "max_seconds_per_run", allowed=100, used=30, reserved=30), more=25) == [50, 80]
        ```
    """
    reached = room.used + room.reserved + more
    return [level for level in LEVELS if reached >= room.allowed * level / 100]


# ---- jobs ------------------------------------------------------------------------------------------------------


def upper_bound(job: Job) -> float:
    """The most QPU seconds that a job whose usage is not final may have used."""
    return float(max(job.max_execution_time or MOST_SECONDS, job.usage_seconds or 0.0))


def expected_seconds(job: Job) -> float:
    """The QPU seconds to expect of a job of others whose usage is not final: the most it may use, if it has a limit.

    Of one without a limit, the larger of the service's estimate and what is reported so far. If it is over and there is
    neither, what a job may use at the most.
    """
    if job.dry_run:
        return 0.0
    if job.max_execution_time is not None and job.max_execution_time < MOST_SECONDS:
        return upper_bound(job)
    if job.is_terminal and job.estimated_running_seconds is None and job.usage_seconds is None:
        return upper_bound(job)
    return max(job.estimated_running_seconds or 0.0, job.usage_seconds or 0.0)


def is_settled(job: Job) -> bool:
    """Whether the job is over and its usage final."""
    return job.is_terminal and job.usage_final


@dataclass(slots=True, eq=False)
class Reservation:
    """The QPU seconds that one submission may use.

    Attributes:
        key: The submission key's tag.
        flow_run_id: The flow run that pays.
        deployment_id: Its deployment.
        seconds: The most the job may use.
        began: When it was made, on the monotonic clock.
        job_id: The job, once it is accepted.
        job: The job as last seen.
        hold: Token of the hold of its session, if the session pays for it.
        doubtful_until: Until when the job may appear, if it is not known whether it was accepted.
    """

    key: str
    flow_run_id: str | None
    deployment_id: str | None
    seconds: float
    began: float
    job_id: str | None = None
    job: Job | None = None
    hold: str | None = None
    doubtful_until: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether its job is over."""
        return self.job is not None and self.job.is_terminal

    @property
    def is_settled(self) -> bool:
        """Whether the service has reported the job's final usage."""
        return self.job is not None and is_settled(self.job)


@dataclass(slots=True)
class Tally:
    """A sum over jobs; `settling` holds jobs that are over without a final usage, and what they may have used."""

    jobs: int = 0
    used: float = 0.0
    reserved: float = 0.0
    settling: dict[str, float] = field(default_factory=dict)

    def add(self, job: Job | None, most: float, *, of_session: bool = False) -> None:
        """Count one job, or a submission whose job is not known yet; its session may pay for it."""
        self.jobs += 1
        if of_session:
            return
        if job is not None and is_settled(job):
            self.used += job.usage_seconds or 0.0
            return
        self.reserved += most
        if job is not None and job.is_terminal:
            self.settling[job.id] = most


def tally(
    jobs: Iterable[Job],
    reservations: Iterable[Reservation],
    holds: Iterable[SessionHold] = (),
    *,
    held: Collection[str | None] = (),
    now: float = 0.0,
) -> Tally:
    """Add up listed jobs, reservations whose jobs are not listed yet, and sessions. Dry runs cost nothing.

    Args:
        jobs: The jobs that the service lists.
        reservations: Those of this process.
        holds: The holds of sessions in the same scope.
        held: The ids of all sessions that pay for their jobs, of this scope or another.
        now: Seconds, on the clock of the holds.
    """
    total, ids, tags = Tally(), set[str](), set[str]()
    for job in jobs:
        ids.add(job.id)
        tags.update(job.tags)
        if not job.dry_run:
            paid = job.session_id is not None and job.session_id in held
            total.add(job, upper_bound(job), of_session=paid)
    for one in reservations:
        if one.job_id not in ids and one.key not in tags:
            total.add(one.job, one.seconds, of_session=one.hold is not None)
    for hold in holds:
        total.used += used_up(hold, now)
        total.reserved += held_back(hold, now)
    return total


# ---- sessions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionHold:
    """A session's hold on the budgets under which it was opened or first used. Times are seconds of one clock.

    Attributes:
        token: Identifies it before the session has an id.
        allotted: Seconds that it may use.
        crn: Of the instance.
        opened: When it was made.
        session_id: The session, once known.
        flow_run_id: The flow run that pays.
        deployment_id: Its deployment.
        closes: Whether it is closed when the allotment is used up, which the service does not do by itself.
        begun_after: No job had begun before this moment; None if no job was sent yet.
        told: Seconds that the service reported last, of a session that may continue.
        over: When the session was first seen closed, with none of its jobs running.
        final: Seconds that the service reported when the session was over.
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
    """Update a hold from the service's answer about its session.

    Args:
        hold: The hold so far.
        session: The answer; None if the service does not know the session any more.
        now: When the request was sent.
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
    """Update the hold of a session that the service does not know.

    It may be new, or belong to another user of the instance, who alone can see it. So it counts until it must be over
    by the clock, and then with its whole allotment.
    """
    begun = hold.begun_after is not None
    if now - hold.opened < UNSEEN or (used_up(hold, now) < hold.allotted if begun else now - hold.opened < UNOPENED):
        return hold
    return replace(hold, over=now, final=max(hold.told, hold.allotted) if begun else hold.told)


def used_up(hold: SessionHold, now: float) -> float:
    """The most seconds that the session may have used by now."""
    if hold.final is not None:
        return hold.final
    if hold.begun_after is None:
        return hold.told
    until = now if hold.over is None else hold.over
    return max(hold.told, until - hold.begun_after)


def counts(hold: SessionHold, now: float) -> bool:
    """Whether the hold counts: one without a session expires when the service would have closed it."""
    return hold.session_id is not None or now - hold.opened < UNOPENED


def held_back(hold: SessionHold, now: float) -> float:
    """The seconds that the session may still use within its allotment."""
    return 0.0 if hold.over is not None else max(0.0, hold.allotted - used_up(hold, now))


def is_due(hold: SessionHold, now: float) -> bool:
    """Whether the session has used up its allotment and must be closed now."""
    return hold.closes and hold.over is None and hold.session_id is not None and used_up(hold, now) >= hold.allotted


def allotment(rooms: Sequence[Remaining], life: int | None, *, foreign: bool = False, closes: bool = False) -> int:
    """Compute the seconds that a session may use.

    Args:
        rooms: All limits in force.
        life: Its longest life in seconds: as requested, or what is left of a session that is open already.
        foreign: Whether the session is open already, so that its life cannot be changed.
        closes: Whether it may be closed when its allotment is used up.

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
    """Compute what a session has left for one more job.

    Args:
        hold: The session's.
        budget: Name of the budget, for messages.
        live: Its jobs that are not over.
        on_their_way: Seconds reserved for jobs that are not listed yet.
        now: Seconds.
    """
    waiting = sum(upper_bound(job) for job in live) + on_their_way
    return Remaining(budget, "session", hold.allotted, min(hold.allotted, used_up(hold, now)), waiting)


def job_limit(
    rooms: Sequence[Remaining], session: Remaining, wanted: int | None, ceiling: int | None = None
) -> int | None:
    """Compute the limit of a job in a session: job counts apply as usual, seconds come from the session."""
    return allowed_seconds([*(room for room in rooms if room.counts_jobs), session], wanted, ceiling)
