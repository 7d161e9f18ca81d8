"""Plans measure what is needed and no more; values and standard errors are those of the shots."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from prefect_qruntime.client.programs.expectation import Columns, Plan, estimate, make_plan, shots_for
from prefect_qruntime.errors import InvalidInput
from tests.support.circuits import random_observable

BASIS = {"X": "X+-", "Y": "Yrl", "Z": "Z01"}


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_each_term_is_measured_in_a_basis_of_its_own_letters(seed: int, width: int) -> None:
    draw = random.Random(seed)
    observables = [random_observable(draw, width, "IXYZ01+-rl") for _ in range(5)]
    try:
        plan = make_plan(observables, (), field="x")
    except InvalidInput:
        assert all(set(label) == {"I"} for item in observables for label in item)
        return
    assert len(plan.groups) <= len(plan.terms)
    for label, number in plan.terms:
        for qubit, letter in enumerate(reversed(label)):
            if letter != "I":
                assert letter in BASIS[plan.groups[number].basis[qubit]]
    for group in plan.groups:
        assert list(group.basis) == sorted(group.basis), "bits in the order of their qubits"


def test_terms_that_commute_are_measured_together() -> None:
    ising = {"ZZII": 1.0, "IZZI": 1.0, "IIZZ": 1.0, "XIII": 0.5, "IXII": 0.5, "IIXI": 0.5, "IIIX": 0.5}
    assert len(make_plan(ising, (), field="x").groups) == 2
    bell = ["XX", "YY", "ZZ", "IZ", "0Z"]
    assert [group.basis for group in make_plan(bell, (), field="x").groups] == [
        {0: "X", 1: "X"},
        {0: "Y", 1: "Y"},
        {0: "Z", 1: "Z"},
    ]


def test_each_point_only_in_the_bases_it_needs() -> None:
    plan = make_plan(["XX", "ZZ", "XI", "II"], (4,), field="x")
    assert [(group.basis, group.points) for group in plan.groups] == [
        ({0: "X", 1: "X"}, [0, 2]),
        ({0: "Z", 1: "Z"}, [1]),
    ]
    plan = make_plan([["XX"], ["ZZ"]], (3,), field="x")
    assert plan.shape == (2, 3)
    assert all(group.points == [0, 1, 2] for group in plan.groups)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_values_and_errors_are_those_of_every_single_shot(seed: int) -> None:
    draw = random.Random(seed)
    width, shots = draw.randint(1, 4), draw.randint(2, 30)
    observables = [random_observable(draw, width, "IZ01X+-") for _ in range(3)]
    observables.append({"Z" * width: 1.0})
    plan = make_plan(observables, (), field="x")
    bits = np.array([[draw.random() < 0.4 for _ in range(width)] for _ in range(shots)])
    columns = Columns(
        shots, {qubit: sum(int(bit) << shot for shot, bit in enumerate(bits[:, qubit])) for qubit in range(width)}
    )
    values, errors = estimate(Plan.from_record(plan.record()), lambda group, point: columns)
    factors: dict[str, Any] = {
        "I": lambda bit: 1, "X": lambda bit: 1 - 2 * bit, "Z": lambda bit: 1 - 2 * bit, "0": lambda bit: 1 - bit,
        "1": lambda bit: bit, "+": lambda bit: 1 - bit, "-": lambda bit: bit,
    }  # fmt: skip
    groups = dict(plan.terms)
    for observable, value, error in zip(observables, values, errors, strict=True):
        by_group: dict[int, Any] = {}
        for label, coefficient in observable.items():
            product = np.ones(shots)
            for qubit, letter in enumerate(reversed(label)):
                product = product * factors[letter](bits[:, qubit].astype(int))
            group = groups.get(label, -1)
            by_group[group] = by_group.get(group, 0) + coefficient * product
        assert value == pytest.approx(sum(sample.mean() for sample in by_group.values()))
        variance = sum(sample.var(ddof=1) / shots for sample in by_group.values())
        assert error == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_the_standard_error_is_how_far_values_scatter() -> None:
    draw = np.random.default_rng(3)
    plan = make_plan({"ZZ": 1.0, "ZI": 0.7, "IZ": -0.4, "II": 3.0}, (), field="x")
    shots, found = 200, []
    for _ in range(2000):
        outcomes = draw.choice(4, size=shots, p=[0.4, 0.1, 0.15, 0.35])
        bits = {qubit: int("".join(map(str, outcomes >> qubit & 1)), 2) for qubit in range(2)}
        found.append(estimate(plan, lambda group, point, bits=bits: Columns(shots, bits)))
    scatter = np.std([values[0] for values, _ in found])
    assert np.mean([errors[0] for _, errors in found]) == pytest.approx(scatter, rel=0.06)


def test_one_shot_has_no_error_and_none_no_value() -> None:
    plan = make_plan("Z", (), field="x")
    values, errors = estimate(plan, lambda group, point: Columns(1, {0: 1}))
    assert values == [-1.0]
    assert math.isnan(errors[0])
    with pytest.raises(ValueError, match="no shots"):
        estimate(plan, lambda group, point: Columns(0, {0: 0}))


def test_negligible_terms_are_left_out() -> None:
    plan = make_plan({"ZZ": 1.0, "XX": 1e-9, "II": 0.5}, (), field="x")
    assert [label for label, _ in plan.terms] == ["ZZ"]
    assert plan.observables == [(0.5, [(0, 1.0)])]


@pytest.mark.parametrize(
    ("precision", "shots"), [(1.0, 1), (0.1, 100), (0.015625, 4096), (0.03, 1112), (2.0, 1), (1e300, 1)]
)
def test_shots_from_precision(precision: float, shots: int) -> None:
    assert shots_for(precision, field="x") == shots


@pytest.mark.parametrize("precision", [1e-9, 1e-160, 5e-324])
def test_a_precision_that_would_take_too_many_shots(precision: float) -> None:
    with pytest.raises(InvalidInput, match="shots") as caught:
        shots_for(precision, field="pubs[0].precision")
    assert caught.value.field == "pubs[0].precision"
