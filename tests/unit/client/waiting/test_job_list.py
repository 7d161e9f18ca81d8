"""The pages of the job list that are asked for, and the circuit breaker of the job list."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings, strategies as st

from prefect_qruntime.client.waiting.job_list import LARGEST_PAGE, JobListBreaker, JobListPager, Page
from prefect_qruntime.errors import PermissionDenied, RateLimited, ServiceUnavailable, after

START = datetime(2026, 5, 1, 10, tzinfo=UTC)


class Listed:
    """A job list: ids with the moment of creation, newest first."""

    def __init__(self, moments: dict[str, float]) -> None:
        self.created = {name: START + timedelta(seconds=moment) for name, moment in moments.items()}
        self.order = sorted(self.created, key=lambda name: self.created[name], reverse=True)
        self.pages: list[Page] = []

    def walk(self, wanted: list[str], unknown: set[str] = frozenset()) -> set[str]:  # type: ignore[assignment]
        """Walk for `wanted`; returns what the walk found of it."""
        known = {name: self.created.get(name, START) for name in wanted if name not in unknown}
        walk = JobListPager((name, known.get(name)) for name in wanted)
        found: set[str] = set()
        while (page := walk.next()) is not None:
            self.pages.append(page)
            assert 1 <= page.limit <= LARGEST_PAGE
            fitting = [n for n in self.order if page.created_before is None or self.created[n] <= page.created_before]
            shown = fitting[page.offset : page.offset + page.limit]
            found |= set(shown) & set(wanted)
            newest, oldest = (self.created[shown[0]], self.created[shown[-1]]) if shown else (None, None)
            walk.took(shown, newest=newest, oldest=oldest)
        assert walk.left == set(wanted) - found
        return found


def spread(size: int, step: float = 1.0) -> dict[str, float]:
    return {f"d{number}": number * step for number in range(size)}


def test_nothing_wanted_needs_no_page() -> None:
    assert JobListPager([]).next() is None


@pytest.mark.parametrize("known", [True, False])
def test_the_newest_jobs_fit_on_one_page(known: bool) -> None:
    listed = Listed(spread(1000))
    wanted = [f"d{number}" for number in range(900, 1000)]
    assert listed.walk(wanted, set() if known else set(wanted)) == set(wanted)
    assert len(listed.pages) == 1


def test_a_small_page_for_a_few_jobs() -> None:
    listed = Listed(spread(1000))
    listed.walk(["d999", "d998", "d997"])
    assert [page.limit for page in listed.pages] == [20]


def test_five_thousand_jobs_of_one_process() -> None:
    listed = Listed(spread(5000))
    assert listed.walk(list(listed.created)) == set(listed.created)
    assert len(listed.pages) == 25


@pytest.mark.parametrize("step", [0.0, 1e-6, 0.001])
def test_many_jobs_of_one_moment(step: float) -> None:
    listed = Listed(spread(1000, step))
    assert listed.walk(list(listed.created)) == set(listed.created)
    assert len(listed.pages) <= 6


def test_it_jumps_over_the_jobs_of_others() -> None:
    listed = Listed(spread(100_000))
    old, young = [f"d{n}" for n in range(1000, 1100)], [f"d{n}" for n in range(99_900, 100_000)]
    assert listed.walk(old + young) == {*old, *young}
    assert len(listed.pages) == 2
    assert listed.pages[1].created_before is not None


def test_thinly_spread_jobs_are_left_for_looks_of_their_own() -> None:
    listed = Listed(spread(100_000))
    wanted = [f"d{number}" for number in range(0, 100_000, 2000)]
    assert listed.walk(wanted) == {"d98000"}
    assert len(listed.pages) == 1


def test_lonely_jobs_do_not_hide_the_many_behind_them() -> None:
    listed = Listed(spread(100_000))
    lonely = [f"d{number}" for number in range(50_000, 90_000, 2000)]
    many = [*(f"d{n}" for n in range(99_900, 100_000)), *(f"d{n}" for n in range(1000, 1100))]
    assert listed.walk(many + lonely) >= set(many)
    assert len(listed.pages) == 2


def test_jobs_the_list_does_not_show_yet_hold_nobody_up() -> None:
    listed = Listed(spread(300))
    wanted = [*(f"new{number}" for number in range(50)), *(f"d{number}" for number in range(200))]
    assert listed.walk(wanted, {f"new{number}" for number in range(50)}) == {f"d{number}" for number in range(200)}
    assert len(listed.pages) <= 3


def test_a_service_that_ignores_the_filter_is_not_asked_forever() -> None:
    walk = JobListPager((f"d{number}", START + timedelta(seconds=number)) for number in range(300))
    pages = 0
    while (page := walk.next()) is not None:
        pages += 1
        walk.took([f"other{number}" for number in range(page.limit)], oldest=START + timedelta(days=1))
    assert pages <= 3
    assert len(walk.left) == 300


@settings(max_examples=60)
@example(seed=1, size=601, step=5.0)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 700), step=st.sampled_from([0.0, 1e-4, 0.01, 1.0, 5.0]))
def test_every_walk_ends_and_thick_stretches_are_found_whole(seed: int, size: int, step: float) -> None:
    rng = random.Random(seed)
    listed = Listed(spread(size, step))
    share = rng.choice([1.0, 0.5, 0.1])
    wanted = [name for name in listed.created if rng.random() < share]
    unknown = {name for name in wanted[-50:] if rng.random() < 0.3}
    found = listed.walk(wanted, unknown)
    assert len(listed.pages) <= 4 + 4 * len(wanted) / 20
    if share == 1.0:
        missed = set(wanted) - unknown - found
        # A job that would be alone on the last page is left for a look of its own, which costs no more.
        assert missed <= {min(set(wanted) - unknown, key=lambda name: listed.created[name], default="")}


def test_a_refused_list_is_left_alone_for_a_while() -> None:
    trust = JobListBreaker(relist=600.0)
    trust.list_failed(PermissionDenied("x"), 10.0)
    assert (trust.may_list(609.0), trust.may_list(610.0), trust.is_down) == (False, True, False)


def test_an_outage_of_the_list_is_met_with_growing_pauses_and_what_was_asked_for() -> None:
    trust = JobListBreaker()
    pauses = []
    for _ in range(8):
        trust.list_failed(ServiceUnavailable("x"), 0.0)
        pauses.append(trust.again)
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    trust.list_failed(RateLimited("x", advice=after(90.0)), 0.0)
    assert trust.again == 90.0
    trust.list_failed(TimeoutError(), 0.0)
    assert trust.again == 60.0
    trust.list_worked(0.0)
    trust.list_failed(TimeoutError(), 100.0)
    assert trust.again == 102.0


def test_after_an_outage_of_everything_the_list_is_asked_at_once() -> None:
    trust = JobListBreaker()
    for _ in range(3):
        trust.list_failed(ServiceUnavailable("x"), 0.0)
    assert trust.is_down
    assert not trust.may_list(5.0)
    trust.answered(5.0)
    assert trust.may_list(5.0)
    assert not trust.is_down
    trust.list_failed(ServiceUnavailable("x"), 5.0)  # only the list is out of order: its pauses go on growing
    trust.answered(5.0)
    assert trust.again == 5.0 + 16.0


def test_a_list_that_is_far_behind_is_found_out() -> None:
    trust = JobListBreaker(relist=600.0, behind=5.0)
    trust.job_ended("d1", 100.0)
    trust.listed_alive("d1", 104.0, 104.0)
    trust.listed_alive("d2", 200.0, 200.0)
    assert trust.may_list(200.0)
    trust.listed_alive("d1", 106.0, 107.0)
    assert (trust.may_list(700.0), trust.may_list(707.0)) == (False, True)
    for number in range(1000):
        trust.job_ended(f"d{number}", 0.0)
    assert len(trust.ended) <= 32


def test_a_page_that_was_not_asked_for_is_of_no_account() -> None:
    pager = JobListPager([("d1", START)])
    pager.took(["d1"], newest=START, oldest=START)
    assert pager.next() is None
    pager.took(["d1", "d2"], newest=START, oldest=START)
    assert pager.next() is None
    assert pager.left == set()


def test_a_job_that_a_page_went_past_is_not_looked_for_again() -> None:
    pager = JobListPager([("d1", START), ("d2", START - timedelta(days=30))])
    page = pager.next()
    assert page is not None
    others = [f"other{number}" for number in range(page.limit)]
    pager.took(others, newest=START + timedelta(seconds=2), oldest=START - timedelta(minutes=5))
    assert pager.left == {"d1", "d2"}
    # One job that is left far down the list costs no less on a page than on its own.
    assert pager.next() is None


def test_a_page_without_a_date_ends_the_list() -> None:
    pager = JobListPager([("d1", START)])
    pager.took([], newest=None, oldest=None)
    assert pager.next() is None
    assert pager.left == {"d1"}
