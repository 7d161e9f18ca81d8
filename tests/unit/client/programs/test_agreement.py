"""Two routes are said to differ as often as stated, and not more; circuits that differ are found."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st
from scipy import stats

from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.agreement import (
    RouteComparison,
    chi_squared_tail,
    compare_counts,
    compare_results,
    compare_values,
)
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef
from tests.support.executor import run

TRIALS = 3000
SPREADS = {
    "one outcome": [1.0],
    "a rare second one": [0.999, 0.001],
    "even": [1 / 16] * 16,
    "GHZ with noise": [0.47, 0.47, *[0.06 / 62] * 62],
    "a long tail": [0.5**place for place in range(1, 40)],
    "many rare ones": [1 / 400] * 400,
}


@pytest.mark.uncounted
@pytest.mark.parametrize(("sizes"), [(500, 500), (1000, 150)])
@pytest.mark.parametrize("name", SPREADS)
def test_the_rate_of_false_alarms_is_the_stated_one(name: str, sizes: tuple[int, int]) -> None:
    draw = random.Random(f"{name} {sizes}")
    weights = list(itertools.accumulate(SPREADS[name]))
    values = []
    for _ in range(TRIALS):
        samples = [Counter(draw.choices(range(len(weights)), cum_weights=weights, k=size)) for size in sizes]
        named = [{format(key, "b"): count for key, count in sample.items()} for sample in samples]
        values.append(compare_counts(*named).p_value)
    for rate in (0.05, 0.01, 0.001):
        alarms = sum(value < rate for value in values)
        # Four standard deviations of a binomial above what is stated.
        assert alarms <= TRIALS * rate + 4 * math.sqrt(TRIALS * rate) + 1, (rate, alarms / TRIALS)
    if name in ("even", "GHZ with noise", "a long tail"):
        # And not far below: a test that never raises an alarm has this rate too.
        assert sum(value < 0.05 for value in values) >= TRIALS * 0.05 * 0.6


def test_normal_values_have_the_stated_rate_too() -> None:
    draw = random.Random(5)
    alarms = 0
    for _ in range(TRIALS):
        errors = draw.uniform(0.01, 0.1), draw.uniform(0.01, 0.1)
        alarms += compare_values(draw.gauss(0.3, errors[0]), draw.gauss(0.3, errors[1]), errors).p_value < 0.01
    assert abs(alarms - TRIALS * 0.01) <= 4 * math.sqrt(TRIALS * 0.01)


def _result(counts: list[dict[str, int]], width: int = 2) -> JobResult:
    results = []
    for item in counts:
        samples = [hex(int(key, 2)) for key, count in item.items() for _ in range(count)]
        results.append({"data": {"c": {"samples": samples, "num_bits": width}}, "metadata": {}})
    return JobResult.from_body(json.dumps({"results": results}), job_id="d1")


def _estimates(values: Any, errors: Any) -> JobResult:
    body = {"results": [{"data": {"evs": values, "stds": errors}, "metadata": {}}]}
    return JobResult.from_body(json.dumps(body), job_id="d1")


def test_a_difference_is_found_and_told() -> None:
    one = _result([{"00": 500, "11": 500}, {"00": 900, "01": 100}])
    same = _result([{"00": 520, "11": 480}, {"00": 890, "01": 110}])
    other = _result([{"00": 500, "11": 500}, {"00": 800, "01": 200}])
    found = compare_results(one, same)
    assert found.agrees
    assert len(found.comparisons) == 2
    assert "agree: the smallest p-value of 2 comparisons is" in str(found)
    assert "at most 0.1% of cases" in str(found)
    found = compare_results(one, other)
    assert not found.agrees
    assert found.comparisons[0].what == "pubs[1] point 0"
    assert "differ: the smallest" in str(found)
    # An outcome that only one route has counts as well, be each of its kind ever so rare.
    tail = {format(place, "07b"): 1 for place in range(2, 100)}
    assert compare_counts({"0000000": 1000}, {"0000000": 902, **tail}).p_value < 1e-6


RATES = (0.2, 0.05, 0.01)
PAIRS = 600


def _drawn(draw: random.Random, *, tilt: float = 0.0) -> list[JobResult]:
    """A result of counts and one of values, as a job of two PUBs each would give them."""
    counts = [
        dict(Counter(draw.choices(["00", "01", "10", "11"], weights=[0.5 - tilt, 0.02, 0.01, 0.47 + tilt], k=800)))
        for _ in range(3)
    ]
    values, errors = [], []
    for expected in (-1.0, -0.2, 0.0, 0.6 + tilt, 0.9):
        ones = sum(draw.random() < (1 - expected) / 2 for _ in range(800))
        values.append(1 - 2 * ones / 800)
        errors.append(math.sqrt((1 - values[-1] ** 2) / 800))
    return [_result(counts), _estimates(values, errors)]


@pytest.mark.uncounted
def test_whole_results_are_said_to_differ_no_more_often_than_stated() -> None:
    draw = random.Random(12)
    alarms = {(kind, rate): 0 for kind in range(2) for rate in RATES}
    for _ in range(PAIRS):
        for kind, pair in enumerate(zip(_drawn(draw), _drawn(draw), strict=True)):
            for rate in RATES:
                alarms[kind, rate] += not compare_results(*pair, false_alarm=rate).agrees
    for (kind, rate), found in alarms.items():
        # Four standard deviations of a binomial above what is stated; and not far below it either.
        assert found <= PAIRS * rate + 4 * math.sqrt(PAIRS * rate), (kind, rate, found)
        assert found >= PAIRS * rate * 0.4 - 4 * math.sqrt(PAIRS * rate), (kind, rate, found)


def test_a_difference_that_is_large_enough_is_found_nearly_always() -> None:
    draw = random.Random(13)
    for kind in range(2):
        pairs = [(_drawn(draw)[kind], _drawn(draw, tilt=0.25)[kind]) for _ in range(60)]
        assert sum(not compare_results(*pair, false_alarm=0.001).agrees for pair in pairs) >= 55


def test_estimates() -> None:
    one = _estimates([0.5, 1.0], [0.01, 0.0])
    assert compare_results(one, _estimates([0.51, 1.0], [0.01, 0.0])).agrees
    assert not compare_results(one, _estimates([0.6, 1.0], [0.01, 0.0])).agrees
    assert not compare_results(one, _estimates([0.5, 0.9], [0.01, 0.0])).agrees
    with pytest.raises(InvalidInput, match="shapes"):
        compare_results(one, _estimates([0.5], [0.01]))


UNKNOWN = [math.nan, None, "NaN", math.inf, -math.inf]


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(-1, 1), *[st.one_of(st.floats(0, 0.1), st.sampled_from(UNKNOWN))] * 2),
        min_size=1,
        max_size=6,
    )
)
def test_a_value_without_a_known_error_is_never_a_difference(rows: list[tuple[float, float, Any, Any]]) -> None:
    one, other = (_estimates([row[place] for row in rows], [row[place + 2] for row in rows]) for place in (0, 1))
    found = compare_results(one, other)
    known = [all(isinstance(error, float) and math.isfinite(error) for error in row[2:]) for row in rows]
    assert len(found.compared) == sum(known)
    assert len(found.comparisons) == len(rows)
    assert sum(row["verdict"] == "cannot be compared" for row in found.to_table()) == len(rows) - sum(known)
    # What is left is judged as if the others were not there.
    left = [row for row, there in zip(rows, known, strict=True) if there]
    if left:
        pair = [_estimates([row[place] for row in left], [row[place + 2] for row in left]) for place in (0, 1)]
        assert found.agrees == compare_results(*pair).agrees
        assert found.share == compare_results(*pair).share
        assert ("cannot be compared" in str(found)) == (len(left) < len(rows))
    else:
        assert (found.agrees, found.verdict) == (False, "cannot be compared")
        assert str(found).startswith("The two results cannot be compared")
    job = JobRef(id="a", backend="b", program_id="estimator")
    whole = RouteComparison(service=job, executor=job, agreement=found)
    assert str(RouteComparison.model_validate_json(whole.model_dump_json()).agreement) == str(found)


@pytest.mark.parametrize("missing", ["stds", "evs"])
def test_missing_errors_and_values_are_not_taken_for_exact_ones(missing: str) -> None:
    data = {"evs": [0.5, 0.25], "stds": [0.1, 0.1]} | {missing: None if missing == "stds" else [None, 0.25]}
    body = {"results": [{"data": {name: value for name, value in data.items() if value}, "metadata": {}}]}
    found = compare_results(JobResult.from_body(json.dumps(body), job_id="d1"), _estimates([0.5, 0.25], [0.1, 0.1]))
    assert len(found.compared) == (0 if missing == "stds" else 1)


def test_single_shots_are_no_difference() -> None:
    text = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; h q[0];'
    spec = make_spec([(text, "Z")], backend="b", program_id="estimator", route="executor", shots=1)
    sent = json.loads(json.dumps(spec.prepared))
    results = [JobResult.from_body(json.dumps(run(sent, seed)), job_id="d1") for seed in range(6)]
    assert {compare_results(results[0], other).verdict for other in results} == {"cannot be compared"}


@given(st.permutations(["a", "b", "c"]), st.permutations(["a", "b", "c"]), st.integers(0, 2**32))
def test_the_order_of_registers_is_no_difference(first: list[str], second: list[str], seed: int) -> None:
    draw = random.Random(seed)
    widths = {name: draw.randint(1, 3) for name in "abc"}
    shots = [{name: draw.randrange(2**width) for name, width in widths.items()} for _ in range(50)]

    def result(order: list[str]) -> JobResult:
        data = {name: {"samples": [hex(shot[name]) for shot in shots], "num_bits": widths[name]} for name in order}
        return JobResult.from_body(json.dumps({"results": [{"data": data, "metadata": {}}]}), job_id="d1")

    found = compare_results(result(first), result(second))
    assert found.comparisons[0].statistic == 0
    assert found.agrees


def test_what_cannot_be_compared() -> None:
    one = _result([{"00": 5}])
    for other, word in (
        (_result([{"00": 5}, {"00": 5}]), "1 and 2 PUBs"),
        (_result([{"000": 5}], 3), "registers"),
        (_estimates([0.5], [0.1]), "registers"),
    ):
        with pytest.raises(InvalidInput, match=word):
            compare_results(one, other)
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    flat, wide, tall = values, [values[:3], values[3:]], [values[:2], values[2:4], values[4:]]
    for left, right in itertools.permutations([flat, wide, tall], 2):
        with pytest.raises(InvalidInput, match="shapes"):  # the values of other pairs would stand in one place
            compare_results(*(_estimates(one, one) for one in (left, right)))
    for nested in ([0.1], [[0.1]]):  # the legacy dialect gives a value of one observable without an axis
        assert compare_results(_estimates(0.1, 0.1), _estimates(nested, nested)).agrees
    with pytest.raises(InvalidInput, match="between"):
        compare_results(one, one, false_alarm=0)
    with pytest.raises(ValueError, match="no shots"):
        compare_counts({}, {"0": 1})


@pytest.mark.parametrize("body", [{"noise": [1]}, [], {"results": []}, {"values": []}])
def test_results_without_counts_and_values_do_not_agree(body: Any) -> None:
    """Such as those of two noise learners: nothing of them was looked at."""
    found = compare_results(*(JobResult.from_body(body, job_id=job_id) for job_id in ("a", "b")))
    assert (found.agrees, found.verdict) == (False, "cannot be compared")
    assert str(found).startswith("The two results cannot be compared")


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 30, 200, 4000])
def test_the_tail_of_chi_squared(freedom: int) -> None:
    for factor in (0.01, 0.5, 0.9, 1.0, 1.1, 1.5, 3.0):
        want = stats.chi2.sf(factor * freedom, freedom)
        assert chi_squared_tail(factor * freedom, freedom) == pytest.approx(want, rel=1e-9, abs=1e-300)
    assert chi_squared_tail(0.0, freedom) == 1.0
