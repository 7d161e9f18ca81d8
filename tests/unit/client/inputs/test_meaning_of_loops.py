"""Digests of circuits with loops: qiskit counts loop variables up, which is no part of the work."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

from prefect_qruntime.client.inputs.meaning import identity_of

# A body is a list of rotations and loops. A rotation has a factor for each variable around it, from the outermost.
FACTORS = st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=4).map(tuple)
BODIES = st.recursive(
    st.lists(st.tuples(st.just("rx"), FACTORS), min_size=1, max_size=2),
    lambda inner: st.lists(
        st.one_of(st.tuples(st.just("rx"), FACTORS), st.tuples(st.just("loop"), st.integers(2, 3), inner.map(tuple))),
        min_size=1,
        max_size=3,
    ),
    max_leaves=6,
).map(tuple)


def _built(body: Any, count: list[int], around: tuple[Parameter, ...] = ()) -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    for kind, what, *inner in body:
        if kind == "rx":
            circuit.rx(0.5 + sum(factor * name for factor, name in zip(what, around, strict=False) if factor), 0)
            continue
        count[0] += 1
        variable = Parameter(f"_loop_i_{count[0]}")
        circuit.for_loop(range(what), variable, _built(inner[0], count, (*around, variable)), [0], [0])
    return circuit


def _identity(body: Any, first: int = 0) -> Any:
    found = identity_of(_built(body, [first]), b"")
    assert set(found) == {"circuit"}
    return found


def _visible(body: Any, depth: int = 0) -> Any:
    """The body without the factors of variables that do not exist."""
    return [
        (kind, what[:depth]) if kind == "rx" else (kind, what, _visible(inner[0], depth + 1))
        for kind, what, *inner in body
    ]


def _exchanged(body: Any) -> Any:
    """The same body with the two outermost variables exchanged in each rotation."""
    return tuple(
        (kind, (what[1], what[0], *what[2:])) if kind == "rx" else (kind, what, _exchanged(inner[0]))
        for kind, what, *inner in body
    )


NESTED = (("loop", 3, (("loop", 2, (("rx", (1, 2, 0, 0)),)),)),)


@settings(max_examples=100, deadline=None)
@given(BODIES, st.sampled_from([1, 7, 8, 9, 97, 98]))
@example(NESTED, 8)
def test_the_count_of_loop_variables_is_no_part_of_the_work(body: Any, first: int) -> None:
    assert _identity(body, first) == _identity(body)


@settings(max_examples=200, deadline=None)
@given(BODIES, BODIES)
@example(NESTED, _exchanged(NESTED))
def test_the_place_of_a_loop_variable_is(one: Any, other: Any) -> None:
    for right in (other, _exchanged(one)):
        assert (_identity(one) == _identity(right)) == (_visible(one) == _visible(right))


@pytest.mark.parametrize("outer", [9, 11])
def test_a_loop_may_use_any_name_for_its_variable(outer: int) -> None:
    def built(first: str, second: str) -> QuantumCircuit:
        one, two = Parameter(first), Parameter(second)
        inner, outside, circuit = QuantumCircuit(1), QuantumCircuit(1), QuantumCircuit(1)
        inner.rx(one + 2 * two, 0)
        outside.for_loop(range(2), two, inner, [0], [])
        circuit.for_loop(range(3), one, outside, [0], [])
        return circuit

    nested = identity_of(built(f"_loop_i_{outer}", "_loop_i_10"), b"")
    assert nested == identity_of(built("_loop_i_0", "_loop_i_1"), b"")
    assert identity_of(built("k", f"_loop_i_{outer}"), b"") == identity_of(built("k", "_loop_i_1"), b"")
    assert identity_of(built("k", "n"), b"") != identity_of(built("n", "k"), b"")


def test_a_variable_used_after_its_loop_is_another_than_that_of_the_next() -> None:
    def built(leaked: bool, first: int) -> QuantumCircuit:
        circuit = QuantumCircuit(1)
        variables = [Parameter(f"_loop_i_{first + place}") for place in range(2)]
        for place, variable in enumerate(variables):
            body = QuantumCircuit(1)
            body.rx(variables[0] if leaked else variable, 0)
            circuit.for_loop(range(2 + place), variable, body, [0], [])
        if not leaked:
            circuit.rx(variables[0], 0)
        return circuit

    found = [identity_of(built(leaked, first), b"") for leaked in (True, False) for first in (0, 9)]
    assert found[0] == found[1] != found[2] == found[3]


# As of the first release: a job of an earlier process is found by them.
RECORDED: dict[str, tuple[Any, str]] = {
    "no loop": ((("rx", ()),), "4409ea72ee17f7462893dc4f28e74a17f71c9ed49d8c7e75453bc22f6dc8f24a"),
    "one loop": (
        (("loop", 3, (("rx", (1,)), ("rx", (0,)))),),
        "f79d9e7aa4b7ffd6402258c23993b2ca99fca8179bc6b5120c8f2b310d6f0fc6",
    ),
    "loops one after the other": (
        (("loop", 3, (("rx", (1,)),)), ("rx", ()), ("loop", 2, (("rx", (2,)),))),
        "3cd7eedc84cffde32c4b18dc055d5e8b4fd5cdbce5002ac26f473cba5a738e68",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_digests_without_nested_loops_are_those_of_earlier_submissions(name: str) -> None:
    body, recorded = RECORDED[name]
    assert _identity(body) == {"circuit": recorded}
