"""The poll schedule, hour by hour on a clock of its own; the timer queue and the token bucket."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals, PollSchedule, TimerQueue, TokenBucket
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job, JobStatus

HOUR = 3600.0


def seen(status: JobStatus | None, **fields: Any) -> Job:
    return Job(id="d1", status=status, **fields)


def looks(seconds: float, *, status: JobStatus = JobStatus.QUEUED, seed: int = 0, **fields: Any) -> list[float]:
    """The moments of all looks at a job that stays in one state for `seconds`."""
    plan = PollSchedule(Deadlines(), started=0.0, rng=random.Random(seed), **fields)
    now, moments = 0.0, []
    while now < seconds:
        moments.append(now)
        plan.saw(seen(status), now)
        now += plan.pause(now)
    return [*moments, now]


@pytest.mark.parametrize("name", [one.name for one in fields(PollIntervals)])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None], ids=str)
def test_a_pace_that_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        PollIntervals(**{name: value})
    assert caught.value.field == name
    assert PollIntervals(**{name: 0})


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("in_session", [True, False])
def test_an_hour_in_the_queue_costs_at_most_200_polls(seed: int, in_session: bool) -> None:
    assert len(looks(HOUR, seed=seed, in_session=in_session)) <= 200


def test_the_end_after_an_hour_in_the_queue_is_noticed_within_15_seconds_in_the_median() -> None:
    lags = []
    for seed in range(400):
        end = HOUR + random.Random(seed).uniform(0, 60)
        lags.append(next(moment for moment in looks(HOUR + 120, seed=seed) if moment >= end) - end)
    assert sorted(lags)[200] <= 15
    assert max(lags) <= 30


def test_the_end_of_a_job_that_runs_is_noticed_within_0_3_seconds_in_the_median() -> None:
    lags = []
    for seed in range(400):
        end = random.Random(seed).uniform(0.5, 15)
        lags.append(next(moment for moment in looks(20, status=JobStatus.RUNNING, seed=seed) if moment >= end) - end)
    assert sorted(lags)[200] <= 0.3


def test_a_day_in_the_queue() -> None:
    assert len(looks(24 * HOUR)) <= 200 + 23 * 132


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("status", "share", "longest"), [(JobStatus.QUEUED, 0.08, 30.0), (JobStatus.RUNNING, 0.02, 60.0)]
)
@pytest.mark.parametrize("in_session", [True, False])
def test_the_end_is_noticed_in_time(
    seed: int, status: JobStatus, share: float, longest: float, in_session: bool
) -> None:
    moments = looks(2 * HOUR, status=status, seed=seed, in_session=in_session)
    for before, after in itertools.pairwise(moments):
        # Whenever it ends between two polls, the later one is at most this far off.
        assert after - before <= max(0.5, share * before) + 1e-9
        assert after - before <= longest


def test_running_jobs_and_sessions_are_looked_at_more_often() -> None:
    queued = looks(20)
    assert len(looks(20, status=JobStatus.RUNNING)) > len(queued)
    assert len(looks(20, in_session=True)) > len(queued)
    session_of_the_job = PollSchedule(Deadlines(), started=0.0)
    session_of_the_job.saw(seen(JobStatus.QUEUED, session_id="s"), 0.0)
    assert session_of_the_job.pause(0.0) <= PollIntervals().lively


def test_a_change_of_state_makes_it_lively_again() -> None:
    plan = PollSchedule(Deadlines(), started=0.0)
    assert plan.saw(seen(JobStatus.QUEUED), 1000.0) is True
    assert plan.saw(seen(JobStatus.QUEUED), 2000.0) is False
    assert plan.pause(2000.0) > 25
    assert plan.saw(seen(JobStatus.RUNNING), 2000.0) is True
    assert plan.pause(2000.0) <= 0.4
    assert plan.pause(2050.0) <= 1.0


def test_jitter_only_shortens_and_differs() -> None:
    pauses = {PollSchedule(Deadlines(), started=0.0, rng=random.Random(seed)).pause(0.0) for seed in range(50)}
    assert len(pauses) == 50
    assert all(0.85 * 0.5 <= pause <= 0.5 for pause in pauses)


def test_a_connected_socket_makes_it_slow_but_not_blind() -> None:
    plan = PollSchedule(Deadlines(), started=0.0)
    plan.saw(seen(JobStatus.RUNNING), 0.0)
    assert 4.2 <= plan.pause(0.0, streamed=True) <= 5.0
    assert plan.pause(100_000.0, streamed=True) <= 60.0


def test_an_outage_backs_off_to_a_minute_and_one_answer_ends_it() -> None:
    plan = PollSchedule(Deadlines(), started=0.0)
    assert plan.missed() is True
    assert 0.85 <= plan.pause(0.0) <= 1.0
    pauses = []
    for _ in range(10):
        assert plan.missed() is False
        pauses.append(plan.pause(0.0))
    assert all(51 <= pause <= 60 for pause in pauses[-3:])
    plan.saw(seen(JobStatus.QUEUED), 0.0)
    assert plan.pause(0.0) <= 0.5
    assert plan.missed() is True


def test_retry_after_is_honoured_between_looks() -> None:
    plan = PollSchedule(Deadlines(), started=0.0)
    plan.missed(90.0)
    assert plan.pause(0.0) == 90.0
    plan.missed(None)
    assert plan.pause(0.0) <= 2.0
    plan.missed(10**9)
    assert plan.pause(0.0) == 3600.0
    plan.saw(seen(JobStatus.QUEUED), 0.0)
    assert plan.pause(0.0) <= 0.5
    short = PollSchedule(Deadlines(total=30.0), started=0.0)
    short.missed(90.0)
    assert short.pause(0.0) == 30.0


@pytest.mark.parametrize(
    ("deadlines", "status", "now", "expected"),
    [
        (Deadlines(total=10), JobStatus.QUEUED, 9.9, None),
        (Deadlines(total=10), JobStatus.QUEUED, 10.0, "timeout"),
        (Deadlines(total=10), JobStatus.RUNNING, 10.0, "timeout"),
        (Deadlines(queue=5), JobStatus.QUEUED, 4.9, None),
        (Deadlines(queue=5), JobStatus.QUEUED, 5.0, "queue_timeout"),
        (Deadlines(queue=5), JobStatus.RUNNING, 500.0, None),
        (Deadlines(queue=5), None, 5.0, "queue_timeout"),  # an unknown state is no proof that it runs
        (Deadlines(total=10, queue=5), JobStatus.QUEUED, 6.0, "queue_timeout"),
        (Deadlines(total=10, queue=5), JobStatus.RUNNING, 6.0, None),
        (Deadlines(total=10, queue=5), JobStatus.RUNNING, 11.0, "timeout"),
        (Deadlines(total=5, queue=10), JobStatus.QUEUED, 6.0, "timeout"),
        (Deadlines(outage=1), JobStatus.QUEUED, 1e9, None),
        (Deadlines(), None, 1e9, None),
    ],
)
def test_deadlines(deadlines: Deadlines, status: Any, now: float, expected: str | None) -> None:
    plan = PollSchedule(deadlines, started=0.0)
    plan.saw(seen(status), 0.0)
    assert plan.expired(now) == expected


def test_the_limit_of_an_outage_counts_from_the_last_answer() -> None:
    plan = PollSchedule(Deadlines(outage=100.0), started=0.0)
    plan.saw(seen(JobStatus.RUNNING), 50.0)
    plan.missed()
    assert plan.expired(149.0) is None
    assert plan.expired(150.0) == "outage"
    plan.saw(seen(JobStatus.RUNNING), 200.0)
    assert plan.expired(1e6) is None
    never = PollSchedule(Deadlines(outage=None), started=0.0)
    never.missed()
    assert never.expired(1e9) is None


def test_a_job_that_ran_and_queues_again_is_past_its_queue_timeout() -> None:
    plan = PollSchedule(Deadlines(queue=5), started=0.0)
    plan.saw(seen(JobStatus.RUNNING), 1.0)
    plan.saw(seen(JobStatus.QUEUED), 2.0)
    assert plan.expired(100.0) is None


def test_pauses_end_at_the_nearest_deadline() -> None:
    plan = PollSchedule(Deadlines(total=100.0, queue=50.0), started=0.0)
    plan.saw(seen(JobStatus.QUEUED), 0.0)
    assert plan.pause(49.9) == pytest.approx(0.1)
    assert plan.left(49.9) == pytest.approx(0.1)
    assert plan.pause(51.0) == 0.0
    plan.saw(seen(JobStatus.RUNNING), 60.0)
    assert plan.left(60.0) == 40.0
    assert PollSchedule(Deadlines(), started=0.0).left(1e9) == math.inf


@pytest.mark.parametrize("missing", [True, False])
def test_a_refusal_about_a_known_job_must_repeat_for_a_minute(missing: bool) -> None:
    for known in (True, False):
        plan = PollSchedule(Deadlines(), started=0.0, known=known)
        if not known:
            plan.saw(seen(JobStatus.QUEUED), 50.0)
        assert not plan.refused(100.0, missing=missing)
        plan.missed()
        assert not plan.is_doubtful(100.0)
        assert plan.pause(159.5) <= 0.5  # the poll that decides comes when the minute is over
        assert not plan.refused(159.9, missing=missing)
        assert plan.refused(160.0, missing=missing)
        plan.same(161.0)
        assert not plan.refused(162.0, missing=missing)
        plan.saw(seen(JobStatus.RUNNING), 163.0)
        assert not plan.refused(223.0, missing=missing)


def test_a_refusal_about_a_job_that_nobody_has_seen() -> None:
    plan = PollSchedule(Deadlines(unseen=60.0, unknown=4.0), started=0.0)
    assert plan.refused(0.0, missing=False)
    assert not plan.refused(3.0, missing=True)
    plan.missed()
    assert (plan.is_doubtful(3.9), plan.is_doubtful(4.0)) == (False, True)
    assert plan.pause(3.5) <= 0.5
    assert plan.pause(59.5) <= 0.5
    assert not plan.refused(59.9, missing=True)
    assert plan.refused(60.0, missing=True)
    plan.unlisted = True
    assert plan.refused(5.0, missing=True)
    assert not plan.is_doubtful(5.0)


@pytest.mark.parametrize("value", [0, -1, True, "5", math.nan, [], 10**400, -(10**400), Decimal(5)])
@pytest.mark.parametrize(("name", "field"), [("total", "timeout"), ("queue", "queue_timeout")])
def test_limits_that_make_no_sense(name: str, field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Deadlines(**{name: value}).check()
    assert caught.value.field == field


@pytest.mark.parametrize("value", [5e-324, 1e308, 10**308, math.inf])
def test_a_wait_may_be_as_long_or_short_as_a_float(value: Any) -> None:
    plan = PollSchedule(Deadlines(total=value, queue=value).check(), started=5.0)
    assert plan.deadline >= 5.0
    assert plan.left(5.0) >= 0.0


STEPS = st.lists(st.sampled_from([*JobStatus, None, "missed", "streamed"]), max_size=60)


@given(steps=STEPS, total=st.floats(0.1, 1e4), queue=st.none() | st.floats(0.1, 1e4), start=st.floats(-1e6, 1e6))
def test_whatever_is_seen_the_deadline_is_kept_and_time_moves_on(
    steps: list[Any], total: float, queue: float | None, start: float
) -> None:
    plan = PollSchedule(Deadlines(total=total, queue=queue), started=start, rng=random.Random(1))
    now = start
    for step in steps:
        if step == "missed":
            plan.missed(now % 7)
        elif step != "streamed":
            plan.saw(seen(step), now)
        if plan.expired(now) is not None:
            assert now - start >= min(total, queue or total) - 1e-6
            return
        pause = plan.pause(now, streamed=step == "streamed")
        assert pause > 0
        now += pause
        assert now <= start + total + 1e-6


def test_one_date_each_and_earliest_first() -> None:
    calendar = TimerQueue[str]()
    assert calendar.pause(0.0) == float("inf")
    assert calendar.put("b", 5.0) is True
    assert calendar.put("a", 3.0) is True
    assert calendar.put("b", 9.0) is False
    assert calendar.due(4.0) == ["a"]
    assert calendar.due(8.0) == []
    assert calendar.put("c", float("inf")) is False
    calendar.put("d", 9.0)
    calendar.remove("d")
    assert calendar.due(1e9) == ["b"]
    assert calendar.due(1e9) == []


@given(moves=st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1e9)), max_size=2000))
def test_a_calendar_stays_small_and_forgets_nothing(moves: list[tuple[int, float]]) -> None:
    calendar = TimerQueue[int]()
    last: dict[int, float] = {}
    for item, when in moves:
        calendar.put(item, when)
        last[item] = when
        assert len(calendar) <= 2 * 21 + 64
    assert sorted(calendar.due(1e9)) == sorted(last)


def test_a_throttle_lets_a_burst_pass_and_then_a_rate() -> None:
    throttle = TokenBucket(rate=10.0, burst=5.0)
    assert [throttle.take(0.0) for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2])
    assert throttle.wait(0.1) == pytest.approx(0.2)
    assert throttle.wait(10.0) == 0.0
    assert [throttle.take(10.0) for _ in range(6)] == pytest.approx([0, 0, 0, 0, 0, 0.1])
