"""Executor results of every version, level and maker, through `JobResult`."""

from __future__ import annotations

import contextlib
import json
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from prefect_qruntime.client.encodings.arrays import ExecutionSpan
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import QuantumRuntimeError
from tests.support.executor import TIMES, tensor

VERSIONS = ("v0.1", "v0.2", "v1.0", "v1.1", "v2.0")
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
RANDOM = np.random.default_rng(7)


def _body(version: str, items: list[dict[str, Any]], record: Any = None) -> dict[str, Any]:
    packed = version == "v2.0"
    part = {"idx_item": 0, "size": 1} | ({"permutation": [], "element_range": [0, 1, 1]} if packed else {})
    data = [{"results": {name: tensor(value, packed=packed) for name, value in item.items()}} for item in items]
    for item in data:
        item["metadata"] = None if version == "v0.1" else {}
    body: dict[str, Any] = {"schema_version": version, "data": data}
    body["metadata"] = {"chunk_timing": [{**TIMES, "parts": [part]}]}
    if record is not None:
        body["passthrough_data"] = {"post_processor": record}
    return body


def _read(body: Any, **given: Any) -> JobResult:
    return JobResult.from_body(json.dumps(body), job_id="d1", program_id="executor", **given)


def _counts(bits: Any) -> dict[str, int]:
    """Counts of booleans of shape (shots, bits), bit 0 at the right end."""
    found: dict[str, int] = {}
    for shot in np.asarray(bits):
        text = "".join("01"[int(bit)] for bit in reversed(shot))
        found[text] = found.get(text, 0) + 1
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_bits_of_every_version(version: str) -> None:
    one, two = RANDOM.random((2, 3, 50, 5)) < 0.3, RANDOM.random((40, 11)) < 0.5
    result = _read(_body(version, [{"a": one, "b": one[..., :1]}, {"c": two}]))
    assert result.num_pubs == 2
    assert result.registers() == {"a": 5, "b": 1}
    assert (result.shape(), result.shape(1), result.shots(), result.shots(1)) == ((2, 3), (), 50, 40)
    assert result.counts(1) == _counts(two)
    assert result.counts(0, "a", index=(1, 2)) == _counts(one[1, 2])
    joined = np.concatenate([one, one[..., :1]], axis=-1)
    assert result.counts(0, index=(0, 1)) == _counts(joined[0, 1])
    assert result.memory(1) == ["".join("01"[int(bit)] for bit in shot[::-1]) for shot in two]
    assert [row["count"] for row in result.to_table() if row["pub"] == 1] == list(result.counts(1).values())
    assert sum(result.quasi_dists[1].values()) == pytest.approx(1)
    arrays = result.to_primitive_result()[0].data
    assert (arrays.a.to_bool_array(order="little") == one).all()
    assert not result.is_estimator()
    with pytest.raises(QuantumRuntimeError, match="no 'evs'"):
        result.expectation_values()
    spans = result.metadata()["execution"]["execution_spans"]
    assert isinstance(spans[0], ExecutionSpan)
    assert (spans[0].start, spans[0].kind) == (datetime(2026, 11, 25, 10, tzinfo=UTC), "ChunkSpan")
    assert (spans[0].stop - spans[0].start).total_seconds() == 2.5
    assert spans[0].data["parts"][0]["idx_item"] == 0


@given(st.integers(1, 40), st.integers(1, 60), st.randoms(use_true_random=False))
def test_counts_of_any_width(width: int, shots: int, draw: Any) -> None:
    numbers = [draw.getrandbits(width) if draw.random() < 0.5 else 0 for _ in range(shots)]
    bits = np.array([[number >> place & 1 for place in range(width)] for number in numbers], dtype=bool)
    result = _read(_body("v2.0", [{"c": bits}]))
    assert result.counts() == _counts(bits)
    assert result.memory() == [format(number, f"0{width}b") for number in numbers]


@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize("level", ["kerneled", "avg_kerneled", "both"])
def test_levels(version: str, level: str) -> None:
    points = RANDOM.normal(size=(2, 6, 3)) + 1j * RANDOM.normal(size=(2, 6, 3))
    bits = RANDOM.random((2, 6, 3)) < 0.5
    items = {
        "kerneled": {"c_iq": points},
        "avg_kerneled": {"c_avg_iq": points.mean(axis=1)},
        "both": {"c": bits, "c_iq": points},
    }[level]
    record = {"by": "prefect_qruntime", "version": "p1", "program": "sampler", "shots": 6, "meas_level": level}
    result = _read(_body(version, [items], record | {"pubs": [{"item": 0, "shape": [2]}]}))
    assert (result.shape(), result.shots()) == ((2,), 6)
    name = "c_iq" if level == "both" else "c"
    want = points.mean(axis=1) if level == "avg_kerneled" else points
    assert np.array_equal(result.field(name), want)
    assert np.array_equal(result.arrays()[name], want)
    assert np.array_equal(getattr(result.to_primitive_result()[0].data, name), want)
    rows = [row for row in result.to_table() if "array" in row]
    assert len(rows) == want.size
    assert complex(rows[-1]["real"], rows[-1]["imag"]) == want.flat[-1]
    if level == "both":
        assert result.counts(index=1) == _counts(bits[1])
    else:
        with pytest.raises(QuantumRuntimeError, match="no bitstrings, but c"):
            result.counts()


@pytest.mark.parametrize("name", ["sampler plain", "sampler twirled"])
def test_a_job_of_ibms_sampler_is_read_as_its_own_client_reads_it(name: str) -> None:
    # Recorded from the client 0.51 on a simulator, with what it made of the same body.
    recorded = RECORDED[name]
    result = _read(recorded["body"])
    for pub, want in enumerate(recorded["counts"]):
        found = result.counts_array(pub)
        assert (found if isinstance(found, list) else [found]) == want
    assert result.shots() == 64
    assert result.metadata()["options"]["execution"]["meas_type"] == "classified"
    assert result.metadata(0).get("num_randomizations") == (4 if "twirled" in name else None)


@pytest.mark.parametrize("pub_shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("flips_shape", ["each point", "each randomization", "each shot"])
def test_flips_are_undone_and_randomizations_joined(pub_shape: tuple[int, ...], flips_shape: str) -> None:
    bits = RANDOM.random((4, *pub_shape, 10, 9)) < 0.5
    ones = (1,) * len(pub_shape)
    shape = {
        "each point": (4, *pub_shape, 1, 9),
        "each randomization": (4, *ones, 1, 9),
        "each shot": (4, *ones, 10, 9),
    }[flips_shape]
    flips = RANDOM.random(shape) < 0.5
    record = {"version": "v0.1", "twirling": True, "meas_type": "classified", "shots": 10, "options": {}}
    result = _read(_body("v2.0", [{"c": bits, "measurement_flips.c": flips}], record))
    want = np.moveaxis(bits ^ flips, 0, len(pub_shape)).reshape(*pub_shape, 40, 9)
    assert (result.to_primitive_result()[0].data.c.to_bool_array(order="little") == want).all()
    assert (result.shape(), result.shots(), list(result.registers())) == (pub_shape, 40, ["c"])
    # Without a recipe the axis stays, but flipped bits are never shown as if they were outcomes.
    alone = _read(_body("v2.0", [{"c": bits, "measurement_flips.c": flips}]))
    assert (alone.to_primitive_result()[0].data.c.to_bool_array(order="little") == (bits ^ flips)).all()
    assert np.array_equal(alone.metadata(0)["arrays"]["measurement_flips.c"], flips)


def test_twirled_kerneled_points_are_joined() -> None:
    points = RANDOM.normal(size=(4, 2, 5, 3)) + 0j
    record = {"version": "v0.1", "twirling": True, "shots": 5, "options": {}}
    result = _read(_body("v2.0", [{"c_iq": points}], record | {"meas_type": "kerneled"}))
    assert np.array_equal(result.field("c"), np.moveaxis(points, 0, 1).reshape(2, 20, 3))
    averages = points.mean(axis=2)
    result = _read(_body("v2.0", [{"c_avg_iq": averages}], record | {"meas_type": "avg_kerneled"}))
    assert np.allclose(result.field("c"), averages.mean(axis=0))


@pytest.mark.parametrize("level", ["kerneled", "avg_kerneled"])
@pytest.mark.parametrize("pub_shape", [(), (3,)])
def test_twirled_iq_data_without_a_recipe_are_read_beside_their_flips(level: str, pub_shape: tuple[int, ...]) -> None:
    points = RANDOM.normal(size=(4, *pub_shape, 5, 3)) + 0j
    name, points = ("c_iq", points) if level == "kerneled" else ("c_avg_iq", points.mean(axis=-2))
    flips = RANDOM.random((4, *pub_shape, 1, 3)) < 0.5
    body = _body("v2.0", [{name: points, "measurement_flips.c": flips}])
    result = _read(body)
    assert result.shape() == (4, *pub_shape)
    assert np.array_equal(result.field("c"), points)
    assert np.array_equal(result.to_primitive_result()[0].data.c, points)
    assert np.array_equal(result.metadata(0)["arrays"]["measurement_flips.c"], flips)
    # With a recipe the randomizations become one, in which the flips would be lost.
    record = {"version": "v0.1", "twirling": True, "shots": 5, "options": {}, "meas_type": level}
    with pytest.raises(QuantumRuntimeError, match="no such register"):
        _read({**body, "passthrough_data": {"post_processor": record}}).field("c")


@pytest.mark.parametrize("name", ["estimator plain", "estimator trex"])
def test_a_job_of_ibms_estimator_needs_ibms_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "qiskit_ibm_runtime", None)
    result = _read(RECORDED[name]["body"])
    assert result.num_pubs == 1
    for call in (result.expectation_values, result.counts, result.to_table, result.to_primitive_result):
        with pytest.raises(QuantumRuntimeError, match=r"\[ibm\].*\.raw"):
            call()


@pytest.mark.parametrize(
    "record",
    [
        {"by": "prefect_qruntime", "version": "p9", "program": "sampler", "pubs": []},
        {"by": "prefect_qruntime", "version": "p1", "program": "other", "pubs": []},
        {"version": "v0.9", "twirling": False, "meas_type": "classified"},
        {"version": "v0.9", "num_pubs": 1},
    ],
)
def test_a_recipe_that_is_not_known_is_no_guess(record: Any) -> None:
    result = _read(_body("v2.0", [{"c": np.zeros((2, 2), bool)}], record))
    for call in (result.counts, result.to_table, lambda: result.num_pubs):
        with pytest.raises(QuantumRuntimeError, match=r"not known here.*\.raw"):
            call()
    assert result.metadata()["execution"], "what does not depend on the recipe is still read"


def test_arrays_of_another_shape_stand_beside_the_data() -> None:
    bits, other = np.ones((3, 4, 2), bool), np.arange(2.0)
    result = _read(_body("v2.0", [{"c": bits, "angles": other, "each": np.zeros((3, 7))}]))
    assert list(result.arrays()) == ["each"]
    assert result.metadata(0)["arrays"] == {"angles": [0.0, 1.0]}
    assert result.to_primitive_result()[0].data.each.shape == (3, 7)


@pytest.mark.parametrize("level", ["classified", "kerneled", "avg_kerneled"])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5)])
@pytest.mark.parametrize("first", [True, False])
def test_the_signs_of_a_samplex_are_no_register(size: tuple[int, int], level: str, first: bool) -> None:
    turns, shots = size
    points = np.ones((turns, shots, 2), complex)
    bits: dict[str, Any] = {
        "classified": {"c": np.ones((turns, shots, 2), bool)},
        "kerneled": {"c_iq": points},
        "avg_kerneled": {"c_avg_iq": points.mean(axis=1)},
    }[level]
    signs = {"pauli_signs": np.zeros((turns, 2), bool)}
    result = _read(_body("v2.0", [{**signs, **bits} if first else {**bits, **signs}]))
    assert result.shape() == (turns,)
    assert "pauli_signs" in result.arrays()
    assert result.to_primitive_result()[0].data.pauli_signs.shape == (turns, 2)
    if level == "classified":
        assert result.registers() == {"c": 2}
        assert result.counts_array() == [{"11": shots}] * turns
        assert {row["register"] for row in result.to_table()} == {"c"}
    else:
        assert result.registers() == {}
        assert result.to_table()


def test_data_that_somebody_else_passed_through() -> None:
    for passed in ({"post_processor": {"version": 3}}, {"mine": 1}, [1], "text", None):
        body = _body("v2.0", [{"c": np.ones((2, 2), bool)}]) | {"passthrough_data": passed}
        assert _read(body).counts() == {"11": 2}


ESTIMATOR = {
    "by": "prefect_qruntime",
    "version": "p1",
    "program": "estimator",
    "shots": 4,
    "pubs": [
        {
            "observables_shape": [],
            "points": [],
            "terms": [["ZZ", 0]],
            "observables": [[1.0, [[0, 2.0]]]],
            "groups": [{"item": 0, "register": "m", "qubits": [0, 1]}],
        }
    ],
}


def test_expectation_values_of_our_own_recipe() -> None:
    bits = np.array([[0, 0], [1, 1], [1, 0], [0, 0]], bool)
    result = _read(_body("v2.0", [{"m": bits, "c": bits}], ESTIMATOR))
    assert result.expectation_values() == 2.0
    assert result.standard_errors() == pytest.approx(2 * np.std([1, 1, -1, 1], ddof=1) / 2)
    assert result.to_table() == [{"pub": 0, "point": None, "ev": 2.0, "std": result.standard_errors()}]
    assert float(result.to_primitive_result()[0].data.evs) == 2.0
    assert result.field("ensemble_standard_error") == result.standard_errors()
    assert result.shots() == 4
    again = pickle.loads(pickle.dumps(result))
    assert JobResult.model_validate_json(again.model_dump_json()).expectation_values() == 2.0


def _changed(**changes: Any) -> dict[str, Any]:
    return {**ESTIMATOR, "pubs": [{**ESTIMATOR["pubs"][0], **changes}]}  # type: ignore[index]


@pytest.mark.parametrize(
    "record",
    [
        _changed(groups=[{"item": 5, "register": "m", "qubits": [0, 1]}]),
        _changed(groups=[{"item": 0, "register": "x", "qubits": [0, 1]}]),
        _changed(groups=[{"item": 0, "register": "m", "qubits": [0]}]),
        _changed(groups=[{"item": 0, "register": "m", "qubits": [0, 1], "points": [7]}]),
        _changed(groups=[]),
        _changed(terms=[["ZZZ", 0]]),
        _changed(terms="x"),
        _changed(observables_shape=[2]),
        _changed(observables_shape=[1 << 20], points=[1 << 20, 1]),
        {**ESTIMATOR, "pubs": None},
    ],
)
def test_a_damaged_recipe_is_an_error_of_ours(record: Any) -> None:
    result = _read(_body("v2.0", [{"m": np.zeros((4, 2), bool)}], record))
    with pytest.raises(QuantumRuntimeError, match="d1"):
        result.expectation_values()


def test_damaged_tensors_and_bombs_are_errors_of_ours() -> None:
    body = _body("v2.0", [{"c": np.zeros((1 << 14, 8), bool)}])
    with pytest.raises(QuantumRuntimeError, match="unfolds"):
        _read(body, decode_limit=1000).counts()
    narrow = _body("v2.0", [{"c": np.zeros((1 << 14, 1), bool)}])
    with pytest.raises(QuantumRuntimeError, match="unfolds"):
        _read(narrow, decode_limit=4000).counts()  # one bit becomes one byte
    body["data"][0]["results"]["c"]["shape"] = [3, 3]
    with pytest.raises(QuantumRuntimeError, match="shape"):
        _read(body).counts()
    flips = _body("v2.0", [{"c": np.zeros((4, 2), bool), "measurement_flips.c": np.zeros((3, 2), bool)}])
    with pytest.raises(QuantumRuntimeError, match="do not fit"):
        _read(flips).counts()
    lost = _body("v2.0", [{"measurement_flips.c": np.zeros((3, 2), bool)}])
    with pytest.raises(QuantumRuntimeError, match="no such register"):
        _read(lost).counts()


CALLS: list[tuple[str, tuple[int, ...]]] = [
    *((name, ()) for name in ("counts", "memory", "registers", "shape", "shots", "expectation_values", "metadata")),
    *((name, (0,)) for name in ("metadata", "counts_array", "standard_errors")),
    *((name, ()) for name in ("arrays", "to_table", "to_primitive_result")),
]


def _mutated(value: Any, draw: Any) -> Any:
    """The same JSON with one thing in it damaged."""
    odd = [None, True, -1, 10**12, 0.5, "", "x", [], {}, [[]], "AAAA", float("nan")]
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: _mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] + value[place + 1 :] + draw.choice([[], [draw.choice(odd)]])
        return [*value[:place], _mutated(value[place], draw), *value[place + 1 :]]
    return draw.choice(odd)


@pytest.mark.uncounted
@pytest.mark.parametrize("seed", range(10))
def test_no_damage_escapes_as_an_error_that_is_not_ours(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import random
    import sys

    monkeypatch.setitem(sys.modules, "qiskit_ibm_runtime", None)
    draw = random.Random(seed)
    bits = np.array([[0, 0], [1, 1], [1, 0], [0, 0]], bool)
    points = RANDOM.normal(size=(4, 2)) + 0j
    bases = [
        _body("v2.0", [{"m": bits, "c_iq": points}], ESTIMATOR),
        _body("v1.0", [{"c": bits, "measurement_flips.c": bits[:1]}]),
        *(recorded["body"] for recorded in RECORDED.values()),
    ]
    for _ in range(1000):
        body = draw.choice(bases)
        for _ in range(draw.randint(1, 3)):
            body = _mutated(body, draw)
        result = JobResult(body=body, job_id="d1", program_id="executor", decode_limit=1 << 20)
        for name, arguments in CALLS:
            with contextlib.suppress(QuantumRuntimeError):
                getattr(result, name)(*arguments)
        with contextlib.suppress(QuantumRuntimeError):
            assert result.num_pubs >= 0
