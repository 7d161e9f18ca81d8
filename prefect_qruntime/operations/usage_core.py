"""Account for usage: facts of jobs and sessions in, charges and tables out. No clock, no network, no Prefect.

A dedicated session is charged by the clock, so its own usage counts once and is split over its jobs; their own usage is
not added to it. Facts may arrive in any order, late and more than once: of two facts about one job the more advanced
one counts, so that the same facts give the same table in whichever order they were read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Literal, get_args

from prefect_qruntime.errors import InvalidInput

__all__ = [
    "ALL_GROUPS",
    "NO_OWNER",
    "Amount",
    "Amounts",
    "Charge",
    "Group",
    "JobFacts",
    "Owner",
    "SessionFacts",
    "Unit",
    "UsageBook",
    "UsageRow",
    "difference",
    "group",
]

Group = Literal["flow", "deployment", "flow-run", "tag", "user", "session", "month", "day", "backend", "block"]
ALL_GROUPS: tuple[Group, ...] = get_args(Group)

NO_OWNER = "no owner"
_ELSEWHERE = "not in this Prefect"
_DELETED = "deleted flow run"
_NO_DEPLOYMENT = "no deployment"
_NO_TAG = "no tag"
_NO_SESSION = "no session"
_UNKNOWN = "unknown"
_STEP = Decimal("0.000001")
_TOO_MUCH = 1e15  # beyond it a float has no millionths
_NEVER = datetime.min.replace(tzinfo=UTC)


class Unit(StrEnum):
    """What an amount counts. Amounts of different units are never added."""

    SECONDS = "QPU seconds"
    RESOURCE_UNITS = "resource units"


@dataclass(frozen=True, slots=True)
class Amount:
    """A number with its unit, exact to a millionth."""

    value: Decimal
    unit: Unit

    @classmethod
    def of(cls, number: float | Decimal | None, unit: Unit) -> Amount | None:
        """Read a number of the service; None if there is none, or if it cannot be an amount."""
        if number is None or not 0 <= number < _TOO_MUCH:  # the comparison is false for NaN
            return None
        return cls(Decimal(str(number)).quantize(_STEP, ROUND_HALF_EVEN), unit)

    def __add__(self, other: Amount) -> Amount:
        """Add two amounts of one unit.

        Raises:
            TypeError: Their units differ.
        """
        if not isinstance(other, Amount) or other.unit is not self.unit:
            raise TypeError(f"{self.unit} and {getattr(other, 'unit', type(other).__name__)} cannot be added")
        return Amount(self.value + other.value, self.unit)


@dataclass(frozen=True, slots=True)
class Amounts:
    """At most one amount for each unit. Seconds and resource units are kept apart and never added up.

    Example:
        ```python
        from decimal import Decimal
        from prefect_qruntime.operations.usage_core import Amount, Amounts, Unit

        both = Amounts.of(Amount(Decimal(2), Unit.SECONDS)) + Amounts.of(Amount(Decimal(9), Unit.RESOURCE_UNITS))
        assert both.get(Unit.SECONDS) == 2 and both.get(Unit.RESOURCE_UNITS) == 9
        ```
    """

    seconds: Decimal | None = None
    resource_units: Decimal | None = None

    @classmethod
    def of(cls, *amounts: Amount | None) -> Amounts:
        """Collect amounts; those of one unit are added."""
        found: dict[Unit, Amount] = {}
        for one in amounts:
            if one is not None:
                found[one.unit] = found[one.unit] + one if one.unit in found else one
        return cls(*(found[unit].value if unit in found else None for unit in Unit))

    def get(self, unit: Unit) -> Decimal | None:
        """The amount of a unit; None if there is none."""
        return self.seconds if unit is Unit.SECONDS else self.resource_units

    @property
    def known(self) -> bool:
        """Whether there is any amount."""
        return self.seconds is not None or self.resource_units is not None

    def __add__(self, other: Amounts) -> Amounts:
        """Add unit by unit."""
        return Amounts(*(_plus(self.get(unit), other.get(unit)) for unit in Unit))

    def rank(self) -> tuple[Decimal, Decimal]:
        """A sort key for amounts of one job, of which a later one is never lower."""
        return tuple(Decimal(-1) if (value := self.get(unit)) is None else value for unit in Unit)  # type: ignore[return-value]

    def split(self, weights: Sequence[Decimal]) -> list[Amounts]:
        """Split into parts by weight, which add up to the whole exactly; equal parts if all weights are 0."""
        parts = [_split(value, weights) if (value := self.get(unit)) is not None else None for unit in Unit]
        return [Amounts(*(None if part is None else part[place] for part in parts)) for place in range(len(weights))]


def _plus(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return other if one is None else one if other is None else one + other


def _split(value: Decimal, weights: Sequence[Decimal]) -> list[Decimal]:
    """Split a value into whole millionths: differences of rounded running sums, so that nothing is lost."""
    total = sum(weights)
    equal = [Fraction(1, len(weights))] * len(weights)
    shares = [Fraction(weight) / Fraction(total) for weight in weights] if total else equal
    steps = int(value / _STEP)
    parts, running, given = [], Fraction(0), 0
    for share in shares:
        running += share
        upto = round(steps * running)
        parts.append((upto - given) * _STEP)
        given = upto
    return parts


@dataclass(frozen=True, slots=True)
class JobFacts:
    """The service's facts about one job, as far as accounting needs them."""

    id: str
    created: datetime | None = None
    state: str = ""
    is_over: bool = False
    is_final: bool = False
    amounts: Amounts = Amounts()
    flow_run_id: str | None = None
    session_id: str | None = None
    tags: tuple[str, ...] = ()
    user: str | None = None
    backend: str | None = None
    block: str | None = None

    def rank(self) -> tuple[object, ...]:
        """A sort key for facts about one job, by how far it has come; the last fields only make the order total."""
        return (
            self.is_final and self.is_over,
            self.is_over,
            self.is_final,
            self.amounts.rank(),
            self.state,
            self.tags,
            *((value or "") for value in (self.flow_run_id, self.session_id, self.user, self.backend, self.block)),
            self.created or _NEVER,
        )


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """The service's facts about one session or batch; a dedicated one is charged by its own usage if it has one."""

    id: str
    created: datetime | None = None
    mode: str = "dedicated"
    is_final: bool = False
    amounts: Amounts = Amounts()
    flow_run_id: str | None = None
    user: str | None = None
    backend: str | None = None
    block: str | None = None

    def rank(self) -> tuple[object, ...]:
        """As `JobFacts.rank`."""
        return (
            self.is_final,
            self.amounts.rank(),
            self.mode == "dedicated",
            *((value or "") for value in (self.flow_run_id, self.user, self.backend, self.block, self.mode)),
            self.created or _NEVER,
        )

    @property
    def is_charged_by_the_clock(self) -> bool:
        """Whether its own usage counts instead of that of its jobs."""
        return self.mode == "dedicated" and self.amounts.known


@dataclass(frozen=True, slots=True)
class Owner:
    """A flow run as Prefect knows it. `flow` is None if it does not, and `flow_run` also if the run was deleted."""

    flow_run_id: str
    flow_run: str | None = None
    flow: str | None = None
    deployment: str | None = None
    tags: tuple[str, ...] = ()
    state: str | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """The charge for one job, or for a session without known jobs.

    `amounts` of a job in a dedicated session are its part of the session's charge. `created` is the time to which the
    charge belongs: that of the session, if the session is charged by the clock.
    """

    job_id: str | None
    session_id: str | None
    created: datetime | None
    state: str
    is_final: bool
    amounts: Amounts
    owner: Owner | None
    tags: tuple[str, ...]
    user: str | None
    backend: str | None
    block: str | None


class UsageBook:
    """The facts about one instance's jobs and sessions; each may arrive again, late and in any order."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobFacts] = {}
        self.sessions: dict[str, SessionFacts] = {}

    def see_job(self, facts: JobFacts) -> None:
        """Add facts about a job."""
        known = self.jobs.get(facts.id)
        self.jobs[facts.id] = facts if known is None else max(known, facts, key=JobFacts.rank)

    def see_session(self, facts: SessionFacts) -> None:
        """Add facts about a session."""
        known = self.sessions.get(facts.id)
        self.sessions[facts.id] = facts if known is None else max(known, facts, key=SessionFacts.rank)

    def unknown_sessions(self) -> list[str]:
        """Sessions that jobs name but no fact describes: they may be charged by the clock."""
        return sorted({job.session_id for job in self.jobs.values() if job.session_id} - self.sessions.keys())

    def charges(
        self, owners: Mapping[str, Owner], *, since: datetime | None = None, until: datetime | None = None
    ) -> list[Charge]:
        """List all charges, each job once.

        Args:
            owners: Flow runs by their id.
            since: Only what was created then or later.
            until: Only what was created before then.
        """

        def inside(moment: datetime | None) -> bool:
            # A charge without a time is shown rather than lost.
            return moment is None or ((since is None or moment >= since) and (until is None or moment < until))

        found: list[Charge] = []
        within: dict[str, list[JobFacts]] = {
            session.id: [] for session in self.sessions.values() if session.is_charged_by_the_clock
        }
        for job in self.jobs.values():
            if job.session_id in within:
                within[job.session_id].append(job)
            elif inside(job.created):
                found.append(_of_job(job, owners))
        for session_id, jobs in within.items():
            session = self.sessions[session_id]
            if inside(session.created):
                found += _of_session(session, sorted(jobs, key=lambda job: job.id), owners)
        return sorted(found, key=lambda one: (one.created or _NEVER, one.job_id or "", one.session_id or ""))


def _owner(flow_run_id: str | None, owners: Mapping[str, Owner]) -> Owner | None:
    return None if flow_run_id is None else owners.get(flow_run_id, Owner(flow_run_id))


def _of_job(job: JobFacts, owners: Mapping[str, Owner]) -> Charge:
    owner = _owner(job.flow_run_id, owners)
    return Charge(
        job_id=job.id,
        session_id=job.session_id,
        created=job.created,
        state=job.state,
        is_final=job.is_final and job.is_over,
        amounts=job.amounts,
        owner=owner,
        tags=tuple(dict.fromkeys((*job.tags, *(owner.tags if owner is not None else ())))),
        user=job.user,
        backend=job.backend,
        block=job.block,
    )


def _of_session(session: SessionFacts, jobs: Sequence[JobFacts], owners: Mapping[str, Owner]) -> list[Charge]:
    """Split the charge of a session over its jobs by their own usage; idle time is split with it."""
    if not jobs:
        owner = _owner(session.flow_run_id, owners)
        return [
            Charge(
                job_id=None,
                session_id=session.id,
                created=session.created,
                state=_UNKNOWN,
                is_final=session.is_final,
                amounts=session.amounts,
                owner=owner,
                tags=owner.tags if owner is not None else (),
                user=session.user,
                backend=session.backend,
                block=session.block,
            )
        ]
    unit = Unit.SECONDS if session.amounts.seconds is not None else Unit.RESOURCE_UNITS
    parts = session.amounts.split([job.amounts.get(unit) or Decimal(0) for job in jobs])
    # While one of them is not final, the parts may change even if the whole does not.
    final = session.is_final and all(job.is_final and job.is_over for job in jobs)
    return [
        replace(
            _of_job(job, owners),
            created=session.created,
            amounts=part,
            is_final=final,
            user=job.user or session.user,
            block=job.block or session.block,
        )
        for job, part in zip(jobs, parts, strict=True)
    ]


@dataclass(slots=True)
class UsageRow:
    """A row of the table. `pending` is the part of `amounts` that may still change; `not_final` counts its jobs."""

    keys: tuple[str, ...]
    jobs: int = 0
    states: dict[str, int] = field(default_factory=dict)
    amounts: Amounts = Amounts()
    pending: Amounts = Amounts()
    not_final: int = 0

    def add(self, charge: Charge) -> None:
        """Add a charge."""
        if charge.job_id is not None:
            self.jobs += 1
            self.states[charge.state] = self.states.get(charge.state, 0) + 1
        self.amounts += charge.amounts
        if not charge.is_final:
            self.not_final += 1
            self.pending += charge.amounts

    @property
    def is_complete(self) -> bool:
        """Whether its numbers are final."""
        return self.not_final == 0


def _moment(charge: Charge, pattern: str) -> str:
    return charge.created.astimezone(UTC).strftime(pattern) if charge.created is not None else _UNKNOWN


def _flow(charge: Charge) -> str:
    return NO_OWNER if charge.owner is None else charge.owner.flow or _ELSEWHERE


def _deployment(charge: Charge) -> str:
    if charge.owner is None:
        return NO_OWNER
    return charge.owner.deployment or (_NO_DEPLOYMENT if charge.owner.flow is not None else _ELSEWHERE)


def _flow_run(charge: Charge) -> str:
    owner = charge.owner
    if owner is None:
        return NO_OWNER
    return f"{owner.flow_run or (_DELETED if owner.flow is not None else _ELSEWHERE)} ({owner.flow_run_id})"


_KEYS: dict[str, Callable[[Charge], str]] = {
    "flow": _flow,
    "deployment": _deployment,
    "flow-run": _flow_run,
    "user": lambda charge: charge.user or _UNKNOWN,
    "session": lambda charge: charge.session_id or _NO_SESSION,
    "month": lambda charge: _moment(charge, "%Y-%m"),
    "day": lambda charge: _moment(charge, "%Y-%m-%d"),
    "backend": lambda charge: charge.backend or _UNKNOWN,
    "block": lambda charge: charge.block or _UNKNOWN,
}


def group(charges: Iterable[Charge], by: Sequence[str]) -> tuple[list[UsageRow], UsageRow]:
    """Sum charges up in groups.

    Args:
        charges: The charges.
        by: How rows are grouped: one or more of `ALL_GROUPS`.

    Returns:
        The rows, most seconds first, and the total, in which each charge counts once. A job with several tags is in
        the row of each tag, so that rows by tag may add up to more than the total.

    Raises:
        InvalidInput: `by` is empty, or names an unknown group.
    """
    unknown = [name for name in by if name not in ALL_GROUPS]
    if unknown or not by or len(set(by)) < len(by):
        told = f"not {', '.join(map(repr, by))}" if by else "at least one of them"
        raise InvalidInput(f"must be among {', '.join(ALL_GROUPS)}, each once, {told}", field="by")
    rows: dict[tuple[str, ...], UsageRow] = {}
    total = UsageRow(keys=())
    for charge in charges:
        total.add(charge)
        keys: list[tuple[str, ...]] = [()]
        for name in by:
            values = (charge.tags or (_NO_TAG,)) if name == "tag" else (_KEYS[name](charge),)
            keys = [(*key, value) for key in keys for value in values]
        for key in keys:
            rows.setdefault(key, UsageRow(keys=key)).add(charge)
    return sorted(rows.values(), key=_order), total


def _order(row: UsageRow) -> tuple[object, ...]:
    zero = Decimal(0)
    return -(row.amounts.seconds or zero), -(row.amounts.resource_units or zero), row.keys


def difference(said: Decimal | None, counted: Amounts, unit: Unit) -> Decimal | None:
    """The service's number less the counted one, in one unit; None if the service gives none."""
    return None if said is None else said - (counted.get(unit) or Decimal(0))
