"""The accounting: whatever order facts arrive in, every second is counted once, by somebody, in its own unit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations

import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.operations.usage_core import (
    ALL_GROUPS,
    NO_OWNER,
    Amount,
    Amounts,
    Charge,
    JobFacts,
    Owner,
    SessionFacts,
    Unit,
    UsageBook,
    difference,
    group,
)

START = datetime(2026, 5, 1, tzinfo=UTC)
RUNS = ("run-a", "run-b", "run-c")
OWNERS = {
    "run-a": Owner("run-a", "nice-name", "vqe", "vqe/nightly", ("team-x",)),
    "run-b": Owner("run-b", "other-name", "vqe", None, ("team-y",)),
}


def amounts(seconds: float | None = None, units: float | None = None) -> Amounts:
    return Amounts.of(Amount.of(seconds, Unit.SECONDS), Amount.of(units, Unit.RESOURCE_UNITS))


def job(number: int, seconds: float | None = 1.0, **given: object) -> JobFacts:
    facts = {"created": START + timedelta(hours=number), "state": "completed", "is_over": True, "is_final": True}
    return JobFacts(id=f"job-{number}", amounts=amounts(seconds), **{**facts, **given})  # type: ignore[arg-type]


def booked(*facts: JobFacts | SessionFacts) -> UsageBook:
    book = UsageBook()
    for one in facts:
        if isinstance(one, JobFacts):
            book.see_job(one)
        else:
            book.see_session(one)
    return book


MONEY = st.one_of(st.none(), st.integers(0, 10**10).map(lambda millionths: millionths / 10**6))
MOMENTS = st.integers(0, 60 * 24).map(lambda hours: START + timedelta(hours=hours))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[JobFacts], list[SessionFacts]]:
    """The last facts about some jobs and sessions."""
    sessions = [
        SessionFacts(
            id=f"session-{number}",
            created=draw(MOMENTS),
            mode=draw(st.sampled_from(["dedicated", "batch"])),
            is_final=draw(st.booleans()),
            amounts=amounts(draw(MONEY), draw(MONEY)),
            flow_run_id=draw(st.sampled_from([None, *RUNS])),
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    jobs = [
        JobFacts(
            id=f"job-{number}",
            created=draw(st.one_of(st.none(), MOMENTS)),
            state=draw(st.sampled_from(["queued", "running", "completed", "failed", "cancelled"])),
            is_over=draw(st.booleans()),
            is_final=draw(st.booleans()),
            amounts=amounts(draw(MONEY), draw(MONEY)),
            flow_run_id=draw(st.sampled_from([None, *RUNS])),
            session_id=draw(st.sampled_from([None, "unlisted", *(one.id for one in sessions)])),
            tags=tuple(draw(st.sets(st.sampled_from(["red", "blue"])))),
            user=draw(st.sampled_from([None, "ann", "bob"])),
        )
        for number in range(draw(st.integers(0, 8)))
    ]
    return jobs, sessions


def earlier(fact: JobFacts | SessionFacts, seconds: float) -> JobFacts | SessionFacts:
    """The same thing as it was seen before its usage was told."""
    known = fact.amounts.seconds
    low = amounts(seconds) if known is not None and Decimal(str(seconds)) <= known else Amounts()
    if isinstance(fact, JobFacts):
        return replace(fact, is_over=False, is_final=False, state="running", amounts=low)
    return replace(fact, is_final=False, amounts=low)


def expected(jobs: list[JobFacts], sessions: list[SessionFacts], unit: Unit) -> Decimal:
    """What is to be paid: sessions by the clock, and all jobs that are in none of them."""
    clocked = {one.id for one in sessions if one.mode == "dedicated" and one.amounts.known}
    of_sessions = sum((one.amounts.get(unit) or Decimal(0) for one in sessions if one.id in clocked), Decimal(0))
    return of_sessions + sum(
        (one.amounts.get(unit) or Decimal(0) for one in jobs if one.session_id not in clocked), Decimal(0)
    )


@given(worlds(), st.data())
def test_any_order_late_usage_and_repeated_pages_give_one_table(
    world: tuple[list[JobFacts], list[SessionFacts]], data: st.DataObject
) -> None:
    jobs, sessions = world
    last = [*jobs, *sessions]
    before = [earlier(fact, data.draw(st.sampled_from([0.0, 0.5]))) for fact in last]
    seen = data.draw(
        st.permutations([*last, *before, *data.draw(st.lists(st.sampled_from(last)) if last else st.just([]))])
    )
    assert booked(*seen).charges(OWNERS) == booked(*sorted(seen, key=repr)).charges(OWNERS)
    assert booked(*seen, *seen).charges(OWNERS) == booked(*seen).charges(OWNERS)
    # A crash between two pages, and another start from the first one.
    cut = data.draw(st.integers(0, len(seen)))
    assert booked(*seen[:cut], *seen).charges(OWNERS) == booked(*seen).charges(OWNERS)


@given(worlds(), st.lists(st.sampled_from(ALL_GROUPS), min_size=1, max_size=2, unique=True))
def test_every_second_is_counted_once_and_never_added_to_a_resource_unit(
    world: tuple[list[JobFacts], list[SessionFacts]], by: list[str]
) -> None:
    jobs, sessions = world
    charges = booked(*jobs, *sessions).charges(OWNERS)
    rows, total = group(charges, by)
    for unit in Unit:
        assert (total.amounts.get(unit) or Decimal(0)) == expected(jobs, sessions, unit)
        if "tag" not in by:
            assert sum((row.amounts.get(unit) or Decimal(0) for row in rows), Decimal(0)) == expected(
                jobs, sessions, unit
            )
        # With the other unit taken away nothing of this one changes.
        alone = [replace(one, amounts=_only(one.amounts, unit)) for one in charges]
        assert group(alone, by)[1].amounts.get(unit) == total.amounts.get(unit)
    assert total.jobs == len(jobs)
    assert total.is_complete == all(one.is_final for one in charges)
    assert sorted(one.job_id for one in charges if one.job_id) == sorted(one.id for one in jobs)


def _only(both: Amounts, unit: Unit) -> Amounts:
    return Amounts.of(Amount.of(both.get(unit), unit))


@given(worlds(), MOMENTS, MOMENTS)
def test_two_windows_side_by_side_hold_what_one_around_both_holds(
    world: tuple[list[JobFacts], list[SessionFacts]], one: datetime, other: datetime
) -> None:
    jobs, sessions = world
    jobs = [fact for fact in jobs if fact.created is not None]
    middle, end = sorted([one, other])
    book = booked(*jobs, *sessions)
    parts = [*book.charges(OWNERS, until=middle), *book.charges(OWNERS, since=middle, until=end)]
    assert parts == book.charges(OWNERS, until=end)


@given(MONEY, MONEY, st.sampled_from(Unit), st.sampled_from(Unit))
def test_amounts_of_two_units_cannot_be_added(a: float | None, b: float | None, one: Unit, other: Unit) -> None:
    left, right = Amount.of(a or 0.0, one), Amount.of(b or 0.0, other)
    assert left is not None
    assert right is not None
    if one is other:
        assert (left + right).value == left.value + right.value
        return
    with pytest.raises(TypeError, match="cannot be added"):
        _ = left + right
    both = Amounts.of(left, right)
    assert (both.get(one), both.get(other)) == (left.value, right.value)


def test_an_amount_is_never_added_to_a_bare_number() -> None:
    amount = Amount.of(1.0, Unit.SECONDS)
    assert amount is not None
    with pytest.raises(TypeError):
        _ = amount + 1  # type: ignore[operator]


@pytest.mark.parametrize("number", [None, float("nan"), float("inf"), -1.0, 1e300, 1e15])
def test_what_cannot_be_an_amount_is_none(number: float | None) -> None:
    assert Amount.of(number, Unit.SECONDS) is None


@given(
    st.integers(0, 10**12), st.lists(st.integers(0, 10**9).map(lambda n: Decimal(n) / 10**6), min_size=1, max_size=20)
)
def test_the_parts_of_a_session_add_up_to_it_exactly(millionths: int, weights: list[Decimal]) -> None:
    whole = Amounts(seconds=Decimal(millionths) / 10**6)
    parts = whole.split(weights)
    assert sum((part.seconds or Decimal(0) for part in parts), Decimal(0)) == whole.seconds
    assert all(part.seconds is not None and part.seconds >= 0 for part in parts)
    assert all(part.resource_units is None for part in parts)


def test_a_session_is_charged_once_and_split_by_what_its_jobs_used() -> None:
    session = SessionFacts("s", created=START, is_final=True, amounts=amounts(100), user="ann")
    inside = [job(1, 1.0, session_id="s", flow_run_id="run-a"), job(2, 3.0, session_id="s", flow_run_id="run-b")]
    book = booked(session, *inside, job(3, 7.0))
    charges = book.charges(OWNERS)
    assert {one.job_id: one.amounts.seconds for one in charges} == {"job-1": 25, "job-2": 75, "job-3": 7}
    assert [one.created for one in charges if one.session_id == "s"] == [START, START]
    rows, total = group(charges, ["session"])
    assert {row.keys: row.amounts.seconds for row in rows} == {("s",): 100, ("no session",): 7}
    assert total.amounts.seconds == 107
    assert all(one.is_final for one in charges)


def test_jobs_that_used_nothing_share_their_session_alike_and_a_session_without_jobs_is_its_openers() -> None:
    session = SessionFacts("s", created=START, is_final=True, amounts=amounts(1), flow_run_id="run-a")
    charges = booked(session, *(job(n, 0.0, session_id="s", flow_run_id="run-b") for n in range(3))).charges(OWNERS)
    assert [one.amounts.seconds for one in charges] == [Decimal("0.333333"), Decimal("0.333334"), Decimal("0.333333")]
    (alone,) = booked(session).charges(OWNERS)
    assert (alone.owner, alone.job_id, alone.tags) == (OWNERS["run-a"], None, ("team-x",))
    rows, total = group([alone], ["deployment"])
    assert [(row.keys, row.jobs, row.amounts.seconds) for row in rows] == [(("vqe/nightly",), 0, 1)]
    assert total.jobs == 0
    (nobodys,) = booked(replace(session, flow_run_id=None)).charges(OWNERS)
    assert (nobodys.owner, nobodys.tags) == (None, ())


def test_a_batch_and_a_session_without_usage_of_its_own_are_charged_by_their_jobs() -> None:
    batch = SessionFacts("s", created=START, mode="batch", is_final=True, amounts=amounts(99))
    untold = SessionFacts("u", created=START)
    book = booked(batch, untold, job(1, 2.0, session_id="s"), job(2, 3.0, session_id="u"), job(3, 4.0, session_id="x"))
    assert sum(one.amounts.seconds or 0 for one in book.charges(OWNERS)) == 9
    assert book.unknown_sessions() == ["x"]


def test_the_whole_of_a_session_is_pending_while_one_of_its_jobs_is() -> None:
    session = SessionFacts("s", created=START, is_final=True, amounts=amounts(10))
    late = job(2, 1.0, session_id="s", is_final=False)
    _, total = group(booked(session, job(1, 1.0, session_id="s"), late).charges(OWNERS), ["flow"])
    assert (total.not_final, total.pending.seconds, total.amounts.seconds) == (2, 10, 10)
    _, total = group(
        booked(session, job(1, 1.0, session_id="s"), late, job(2, 1.0, session_id="s")).charges({}), ["flow"]
    )
    assert total.is_complete


def test_the_rows_of_each_group() -> None:
    facts = [
        job(1, 1.0, flow_run_id="run-a", tags=("red",), user="ann", backend="big", block="mine"),
        job(2, 2.0, flow_run_id="run-b", state="failed"),
        job(24 * 31, 4.0, flow_run_id="run-c", state="cancelled"),
        job(4, 8.0, created=None, state="running", is_over=False),
    ]
    charges = booked(*facts).charges(OWNERS)

    def shown(by: str) -> dict[str, Decimal | None]:
        return {row.keys[0]: row.amounts.seconds for row in group(charges, [by])[0]}

    assert shown("flow") == {"vqe": 3, "not in this Prefect": 4, NO_OWNER: 8}
    assert shown("deployment") == {"vqe/nightly": 1, "no deployment": 2, "not in this Prefect": 4, NO_OWNER: 8}
    assert shown("flow-run") == {
        "nice-name (run-a)": 1,
        "other-name (run-b)": 2,
        "not in this Prefect (run-c)": 4,
        NO_OWNER: 8,
    }
    assert shown("tag") == {"red": 1, "team-x": 1, "team-y": 2, "no tag": 12}
    assert shown("user") == {"ann": 1, "unknown": 14}
    assert shown("session") == {"no session": 15}
    assert shown("month") == {"2026-05": 3, "2026-06": 4, "unknown": 8}
    assert shown("day") == {"2026-05-01": 3, "2026-06-01": 4, "unknown": 8}
    assert shown("backend") == {"big": 1, "unknown": 14}
    assert shown("block") == {"mine": 1, "unknown": 14}
    rows, total = group(charges, ["flow", "month"])
    assert [row.keys for row in rows] == [
        (NO_OWNER, "unknown"),
        ("not in this Prefect", "2026-06"),
        ("vqe", "2026-05"),
    ]
    assert total.states == {"completed": 1, "failed": 1, "cancelled": 1, "running": 1}
    assert (total.not_final, total.pending.seconds) == (1, 8)


@pytest.mark.parametrize("by", [[], ["colour"], ["flow", "flow"]])
def test_an_unknown_group_is_refused(by: list[str]) -> None:
    with pytest.raises(InvalidInput, match="must be among flow, deployment"):
        group([], by)


def test_every_order_of_three_views_of_one_job() -> None:
    views = [
        job(1, None, state="running", is_over=False, is_final=False),
        job(1, 3.0, is_final=False),
        job(1, 2.5),
    ]
    for order in permutations(views):
        (charge,) = booked(*order).charges({})
        assert (charge.amounts.seconds, charge.is_final) == (Decimal("2.5"), True)


def test_the_difference_is_shown_in_one_unit() -> None:
    counted = amounts(3, 50)
    assert difference(Decimal(5), counted, Unit.SECONDS) == 2
    assert difference(Decimal(45), counted, Unit.RESOURCE_UNITS) == -5
    assert difference(None, counted, Unit.SECONDS) is None
    assert difference(Decimal(5), Amounts(), Unit.SECONDS) == 5


def test_charges_are_plain_facts() -> None:
    (charge,) = booked(job(1)).charges({})
    assert isinstance(charge, Charge)
    assert hash(charge) == hash(replace(charge))
