"""`JobResult` over all wire forms, against qiskit's own objects."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit.result import QuasiDistribution

from prefect_qruntime.client.encodings.arrays import Allowance
from prefect_qruntime.client.failures import MOST_LEVELS
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.results.views import loads
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from tests.support.encoding import bit_array, encoded, ndarray, plain

# IBM's own encoder wrote these three bodies: shots 0,3,3,0,3; evs 0.5 ± 0.01; evs (0.5, -1.0).
SAMPLER = (
    '{"__type__": "PrimitiveResult", "__value__": {"pub_results": [{"__type__": "SamplerPubResult", "__value__": '
    '{"data": {"__type__": "DataBin", "__value__": {"field_names": ["c"], "shape": [], "fields": {"c": {"__type__": '
    '"BitArray", "__value__": {"array": {"__type__": "ndarray", "__value__": "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBeU2qor'
    'qOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RqmOgqGmjoKtQpkAy4GZmYGZgABORvC"}, "num_bits": 2}}}}}, "metadata": '
    '{"circuit_metadata": {}}}}], "metadata": {"version": 2}}}'
)
ESTIMATOR = (
    '{"__type__": "PrimitiveResult", "__value__": {"pub_results": [{"__type__": "PubResult", "__value__": {"data": '
    '{"__type__": "DataBin", "__value__": {"field_names": ["evs", "stds"], "shape": [], "fields": {"evs": {"__type__": '
    '"ndarray", "__value__": "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBuk2ahrqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RqaOgq1Ch'
    'QBLgYweGAPAClVHF4="}, "stds": {"__type__": "ndarray", "__value__": "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBuk2ahrqOgnpZ'
    'fVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RqaOgq1ChQBrmqRde4Pq1rsATdqHuE="}}}}, "metadata": {}}}], "metadata": '
    '{"version": 2}}}'
)
EVS = "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBuk2ahrqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGOpo6CrUKFAAuBjB4YA+hP+wHABe9His="


def _read(body: Any, **given: Any) -> JobResult:
    return JobResult.from_body(body, job_id="d1", **given)


def test_ibms_sampler_body() -> None:
    result = _read(SAMPLER, program_id="sampler")
    assert result.counts() == {"11": 3, "00": 2}
    assert result.memory() == ["00", "11", "11", "00", "11"]
    assert result.quasi_dists == [{"11": 0.6, "00": 0.4}]
    assert (result.num_pubs, result.registers(), result.shots(), result.shape()) == (1, {"c": 2}, 5, ())
    assert (result.metadata(), result.metadata(0)) == ({"version": 2}, {"circuit_metadata": {}})
    official = PrimitiveResult(
        [
            SamplerPubResult(
                DataBin(c=BitArray(np.array([[0], [3], [3], [0], [3]], dtype=np.uint8), 2)),
                metadata={"circuit_metadata": {}},
            )
        ],
        metadata={"version": 2},
    )
    _same(result.to_primitive_result(), official)


def test_ibms_estimator_body() -> None:
    result = _read(ESTIMATOR)
    assert (result.expectation_values(), result.standard_errors()) == (0.5, 0.01)
    assert result.to_table() == [{"pub": 0, "point": None, "ev": 0.5, "std": 0.01}]
    official = PrimitiveResult(
        [PubResult(DataBin(evs=np.array(0.5), stds=np.array(0.01)), metadata={})], metadata={"version": 2}
    )
    _same(result.to_primitive_result(), official)


def test_ibms_array_of_values() -> None:
    body = json.loads(ESTIMATOR)
    data = body["__value__"]["pub_results"][0]["__value__"]["data"]["__value__"]
    data["shape"] = [2]
    data["fields"] = {"evs": {"__type__": "ndarray", "__value__": EVS}}
    result = _read(body)
    assert result.expectation_values() == [0.5, -1.0]
    assert result.standard_errors() is None
    assert result.shape() == (2,)
    assert result.to_table() == [
        {"pub": 0, "point": 0, "ev": 0.5, "std": None},
        {"pub": 0, "point": 1, "ev": -1.0, "std": None},
    ]


def _same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    assert ours.metadata == theirs.metadata
    for mine, other in zip(ours, theirs, strict=True):
        assert type(mine) is type(other)
        assert mine.metadata == other.metadata
        assert (mine.data.shape, list(mine.data)) == (other.data.shape, list(other.data))
        for name in mine.data:
            if isinstance(other.data[name], BitArray):
                assert mine.data[name] == other.data[name]
                assert mine.data[name].array.dtype == np.uint8
            else:
                assert mine.data[name].dtype == other.data[name].dtype
                np.testing.assert_array_equal(mine.data[name], other.data[name])


@st.composite
def _registers(draw: st.DrawFn) -> DataBin:
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    shots = draw(st.integers(1, 6))
    fields = {}
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        bits = draw(st.integers(1, 20) | st.sampled_from([24, 31, 32, 33, 40, 56, 63, 64, 65, 127, 133]))
        numbers = st.integers(0, 2**bits - 1)
        points = math.prod(shape)
        samples = [draw(st.lists(numbers, min_size=shots, max_size=shots)) for _ in range(points)]
        rows = b"".join(value.to_bytes((bits + 7) // 8, "big") for point in samples for value in point)
        array = np.frombuffer(rows, dtype=np.uint8).reshape(*shape, shots, -1)
        fields[name] = BitArray(array, bits)
    return DataBin(shape=shape, **fields)


@settings(max_examples=150)
@given(_registers())
def test_bits_in_both_forms_equal_qiskits(data: DataBin) -> None:
    official = SamplerPubResult(data)
    names = list(data)
    for body in (encoded(data), plain(data)):
        result = _read(body)
        assert result.registers() == {name: data[name].num_bits for name in names}
        assert result.shape() == data.shape
        _same(result.to_primitive_result(), PrimitiveResult([official], metadata={"version": 2}))
        points = list(np.ndindex(data.shape))
        for name in [*names, None]:
            bits = data[name] if name else official.join_data(names)
            if not data.shape:
                assert result.counts(register=name) == bits.get_counts()
                assert result.memory(register=name) == bits.get_bitstrings()
            for index in points if data.shape else ():
                assert result.counts(register=name, index=index) == bits[index].get_counts()
                assert result.memory(register=name, index=index) == bits[index].get_bitstrings()
            array = result.counts_array(register=name)
            for index in points:
                inner = array
                for place in index:
                    inner = inner[place]
                assert inner == (bits[index] if data.shape else bits).get_counts()


@pytest.mark.parametrize("bits", [1, 2, 7, 9, 16, 17, 33, 64, 65])
def test_counting_with_and_without_numpy(bits: int) -> None:
    generator = np.random.default_rng(bits)
    numbers = [int(number) % 2**bits for number in generator.integers(0, 2**62, 500)] + [2**bits - 1] * 3
    rows = b"".join(number.to_bytes((bits + 7) // 8, "big") for number in numbers)
    data = DataBin(c=BitArray(np.frombuffer(rows, dtype=np.uint8).reshape(len(numbers), -1), bits))
    body = encoded(data)
    here = _read(body).counts()
    assert here == data.c.get_counts()
    code = (
        "import json, sys\n"
        "from prefect_qruntime.client.results.job_result import JobResult\n"
        "counts = JobResult.from_body(sys.stdin.read(), job_id='d').counts()\n"
        "assert 'numpy' not in sys.modules\n"
        "print(json.dumps(counts))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], input=body, capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(there.stdout) == here


def test_counts_come_most_frequent_first_and_merge_equal_hex() -> None:
    body = {"results": [{"data": {"c": {"samples": ["0x1", "0X3", "0x3", "0x03"], "num_bits": 2}}}]}
    assert list(_read(body).counts().items()) == [("11", 3), ("01", 1)]


def test_several_pubs_and_registers() -> None:
    body = {
        "results": [
            {
                "data": {
                    "c": {"samples": ["0x3", "0x0"], "num_bits": 2},
                    "d": {"samples": ["0x0", "0x1"], "num_bits": 1},
                }
            },
            {"data": {"evs": [[1, -1], [0.5, 0]], "stds": [[0.1, 0.1], [0.2, 0.2]]}, "metadata": {"shots": 99}},
        ],
        "metadata": {"version": 2},
    }
    result = _read(body)
    assert result.counts(0) == {"011": 1, "100": 1}, "the first register is the right end"
    assert result.counts(0, "d") == {"0": 1, "1": 1}
    assert result.expectation_values(1) == [[1.0, -1.0], [0.5, 0.0]]
    assert isinstance(result.expectation_values(1)[0][0], float)
    assert (result.shots(0), result.shots(1), result.shape(1)) == (2, 99, (2, 2))
    assert result.to_table()[-1] == {"pub": 1, "point": (1, 1), "ev": 0.0, "std": 0.2}
    assert {row["register"] for row in result.to_table()[:4]} == {"c", "d"}


def test_other_fields_of_a_pub() -> None:
    body = {"results": [{"data": {"evs": 0.5, "stds": 0.1, "ensemble_standard_error": ndarray([0.2, 0.3])}}]}
    assert _read(body).field("ensemble_standard_error") == [0.2, 0.3]


def test_a_value_that_is_null_is_not_known() -> None:
    body = {
        "results": [{"data": {"evs": [0.5, None, 1], "stds": ["NaN", 0.1, 0.2]}}, {"data": {"evs": None, "stds": None}}]
    }
    result = _read(body)
    evs, stds = [0.5, math.nan, 1.0], [math.nan, 0.1, 0.2]
    np.testing.assert_equal(result.expectation_values(), evs)
    np.testing.assert_equal(result.standard_errors(), stds)
    assert math.isnan(result.expectation_values(1))
    assert result.standard_errors(1) is None
    primitive = result.to_primitive_result()
    for found, wanted in ((primitive[0].data.evs, evs), (primitive[0].data.stds, stds), (primitive[1].data.evs, None)):
        assert found.dtype == np.float64
        np.testing.assert_equal(found, np.array(wanted, dtype=float))
    np.testing.assert_equal([row["ev"] for row in result.to_table()], [*evs, math.nan])


@pytest.mark.parametrize("beside", [["linear", "exponential"], [{"a": 1}, None], [[None, "x"], ["NaN", 0.5]]])
def test_a_field_without_numbers_is_kept_in_qiskits_objects(beside: list[Any]) -> None:
    data = _read(_pub({"evs": [0.5, None], "beside": beside})).to_primitive_result()[0].data
    np.testing.assert_equal(data.evs, [0.5, math.nan])
    assert data.beside.tolist() == beside


def test_legacy_sampler() -> None:
    body = {
        "quasi_dists": [{"0": 0.119, "1": 0.891, "2": -0.01}, {"5": 1.0}],
        "metadata": [{"shots": 4000}, {"shots": 7}],
    }
    result = _read(body, widths=(3, None))
    assert result.quasi_dists == [{"000": 0.119, "001": 0.891, "010": -0.01}, {"101": 1.0}]
    counts = result.counts(0)
    assert sum(counts.values()) == 4000
    assert counts == {"001": 3529, "000": 471}, "negative quasi-probabilities are no shots"
    assert result.counts(1) == {"101": 7}
    assert (result.shots(0), result.metadata(1)) == (4000, {"shots": 7})
    primitive = result.to_primitive_result()
    assert primitive[0].data.meas.get_counts() == counts
    assert primitive[0].data.meas.num_bits == 3


@given(
    st.dictionaries(st.integers(0, 15), st.floats(-0.05, 1.0), min_size=1).filter(lambda d: max(d.values()) > 0.01),
    st.integers(1, 100_000),
)
def test_legacy_counts_keep_the_shots(distribution: dict[int, float], shots: int) -> None:
    body = {"quasi_dists": [{str(key): value for key, value in distribution.items()}], "metadata": [{"shots": shots}]}
    counts = _read(body, widths=(4,)).counts()
    assert sum(counts.values()) == shots
    total = math.fsum(max(value, 0.0) for value in distribution.values())
    for text, count in counts.items():
        assert len(text) == 4
        assert abs(count - max(distribution[int(text, 2)], 0.0) / total * shots) < 1


@given(
    st.integers(1, 70).flatmap(
        lambda bits: st.tuples(st.just(bits), st.sets(st.integers(0, 2**bits - 1), min_size=1, max_size=6))
    ),
    st.booleans(),
)
def test_legacy_bitstrings_are_those_that_qiskit_reads(drawn: tuple[int, set[int]], known: bool) -> None:
    bits, numbers = drawn
    sent = {f"{number:0{bits}b}": 1 / len(numbers) for number in numbers}
    body = {"quasi_dists": [sent], "metadata": [{"shots": 600}]}
    result = _read(body, widths=(bits,) if known else ())
    assert result.quasi_dists == [sent]
    assert QuasiDistribution(sent) == {int(text, 2): value for text, value in result.quasi_dists[0].items()}


def test_legacy_bitstrings_of_fewer_bits_than_the_circuit_has() -> None:
    body = {"quasi_dists": [{"11": 1.0}, {"01": 0.5, "11": 0.5}]}
    assert _read(body, widths=(3, 4)).quasi_dists == [{"011": 1.0}, {"0001": 0.5, "0011": 0.5}]


@given(st.integers(1, 70).flatmap(lambda bits: st.tuples(st.just(bits), st.sets(st.integers(0, 2**bits - 1)))))
def test_legacy_integers_are_read_for_circuits_of_known_bits(drawn: tuple[int, set[int]]) -> None:
    bits, numbers = drawn
    read = {f"{number:0{bits}b}": 0.5 for number in numbers}
    for written in (str, hex, bin):
        body = {"quasi_dists": [{written(number): 0.5 for number in numbers}]}
        assert _read(body, widths=(bits,)).quasi_dists == [read]


@given(
    st.integers(1, 12).flatmap(lambda bits: st.tuples(st.just(bits), st.sets(st.integers(0, 2**bits - 1), min_size=1)))
)
def test_legacy_binary_numbers_are_read_if_the_circuit_has_no_such_integers(drawn: tuple[int, set[int]]) -> None:
    bits, numbers = drawn
    sent = {f"{number:b}": 0.5 for number in numbers}
    found = _read({"quasi_dists": [sent]}, widths=(bits,)).quasi_dists[0]
    assert all(len(text) == bits for text in found), "no outcome that the circuit cannot have"
    if any(int(text) >> bits for text in sent):
        assert found == {f"{number:0{bits}b}": 0.5 for number in numbers}


def test_legacy_estimator() -> None:
    body = {"values": [0.1, -0.5], "metadata": [{"variance": 0.99, "shots": 100}, {}]}
    result = _read(body)
    assert [result.expectation_values(pub) for pub in (0, 1)] == [0.1, -0.5]
    assert result.standard_errors(0) == pytest.approx(math.sqrt(0.99) / 10)
    assert result.standard_errors(1) is None
    assert float(result.to_primitive_result()[0].data.evs) == 0.1
    assert _read({"values": ndarray([0.25]), "metadata": [{}]}).expectation_values() == 0.25


def test_programs_without_pubs_stay_raw() -> None:
    body = '{"schema_version": "v0.2", "data": [{"generators_sparse": []}]}'
    result = _read(body, program_id="noise-learner")
    assert result.raw == json.loads(body)
    assert (result.num_pubs, result.quasi_dists, result.to_table()) == (0, [], [])
    for call in (result.counts, result.expectation_values, result.to_primitive_result):
        with pytest.raises(QuantumRuntimeError, match=r"\.raw"):
            call()


def test_round_trips() -> None:
    nan = '{"results": [{"data": {"evs": NaN, "stds": Infinity}, "metadata": {}}]}'
    for body in (SAMPLER, ESTIMATOR, nan):
        result = _read(body, program_id="sampler", widths=(2, None), decode_limit=1000)
        for again in (
            JobResult.model_validate_json(result.model_dump_json()),
            JobResult.model_validate(result.model_dump()),
            pickle.loads(pickle.dumps(result)),
        ):
            assert again.model_dump_json() == result.model_dump_json()
            assert (again.widths, again.decode_limit) == ((2, None), 1000)
    assert math.isnan(_read(nan).expectation_values())
    assert math.isinf(JobResult.model_validate_json(_read(nan).model_dump_json()).standard_errors())
    assert _read(SAMPLER.encode()) == _read(SAMPLER) == _read(json.loads(SAMPLER))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (rb'"cut \ud83d"', "cut ?"),
        (rb'"\udc80 cut"', "? cut"),
        (rb'{"\ud800": NaN}', None),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b'"cut x\xc3"', "cut x\ufffd"),
        (b'"a\nb\x01"', "a\nb\x01"),
        (rb'"\\ud800"', "\\ud800"),
    ],
)
def test_one_odd_text_leaves_a_result_readable_and_storable(text: bytes, read: str | None) -> None:
    result = _read(SAMPLER.encode()[:-1] + b', "note": ' + text + b"}")
    assert result.counts() == _read(SAMPLER).counts()
    assert read is None or result.raw["note"] == read
    again = JobResult.model_validate_json(result.model_dump_json())
    assert again.model_dump_json() == result.model_dump_json()


def test_a_result_is_frozen_and_prints_short() -> None:
    result = _read(SAMPLER)
    with pytest.raises(ValidationError):
        result.job_id = "other"  # type: ignore[misc]
    assert len(repr(result)) < 200


ARRAY = BitArray(np.zeros((3, 2, 1), dtype=np.uint8), 2)


@pytest.mark.parametrize(
    ("body", "call", "field"),
    [
        (SAMPLER, lambda r: r.counts(1), "pub"),
        (SAMPLER, lambda r: r.counts(-1), "pub"),
        (SAMPLER, lambda r: r.counts(True), "pub"),
        (SAMPLER, lambda r: r.counts("c"), "pub"),
        (SAMPLER, lambda r: r.counts(register="meas"), "register"),
        (SAMPLER, lambda r: r.counts(index=0), "index"),
        (encoded(DataBin(shape=(3,), c=ARRAY)), lambda r: r.counts(), "index"),
        (encoded(DataBin(shape=(3,), c=ARRAY)), lambda r: r.memory(), "index"),
        (encoded(DataBin(shape=(3,), c=ARRAY)), lambda r: r.counts(index=3), "index"),
        (encoded(DataBin(shape=(3,), c=ARRAY)), lambda r: r.counts(index=(0, 0)), "index"),
        (encoded(DataBin(shape=(3,), c=ARRAY)), lambda r: r.counts(index="0"), "index"),
        ({"quasi_dists": [{"0": 1.0}], "metadata": [{"shots": 1}]}, lambda r: r.counts(register="c"), "register"),
        ({"quasi_dists": [{"0": 1.0}] * 3, "metadata": [{"shots": 1}] * 3}, lambda r: r.counts(index=2), "index"),
    ],
)
def test_what_a_caller_asks_wrongly(body: Any, call: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        call(_read(body))
    assert caught.value.field == field


def _pub(data: Any) -> dict[str, Any]:
    return {"results": [{"data": data}]}


def _bits(array: Any, bits: Any = 2) -> dict[str, Any]:
    return _pub({"c": {"__type__": "BitArray", "__value__": {"array": array, "num_bits": bits}}})


BROKEN: list[Any] = [
    {"results": 3},
    {"results": [3]},
    {"results": [{}]},
    {"results": [{"data": None}]},
    {"results": None},
    {"quasi_dists": {"0": 1.0}},
    {"quasi_dists": [[1]], "metadata": [{"shots": 1}]},
    {"quasi_dists": [{"zero": 1.0}], "metadata": [{"shots": 1}]},
    {"quasi_dists": [{"-1": 1.0}], "metadata": [{"shots": 1}]},
    {"quasi_dists": [{"0": "many"}], "metadata": [{"shots": 1}]},
    {"quasi_dists": [{"0": -1.0}], "metadata": [{"shots": 1}]},
    {"quasi_dists": [{"0": 1.0}], "metadata": [{}]},
    {"quasi_dists": [{"0": 1.0}], "metadata": [{"shots": True}]},
    {"quasi_dists": [{"0": 1.0}]},
    _pub({"evs": [0.5, "x"]}),
    _pub({"evs": 10**400}),
    {"__type__": "PrimitiveResult"},
    {"__type__": "PrimitiveResult", "__value__": {"pub_results": None}},
    {"__type__": "PrimitiveResult", "__value__": {"pub_results": ["x"]}},
    {"__type__": "PrimitiveResult", "__value__": {"pub_results": [{"__value__": {"data": {"__type__": "DataBin"}}}]}},
    _pub({"c": {"samples": "0x1", "num_bits": 1}}),
    _pub({"c": {"samples": ["0x1", "zz"], "num_bits": 1}}),
    _pub({"c": {"samples": ["0x1", None], "num_bits": 1}}),
    _pub({"c": {"samples": ["0x1", ["0x1"]], "num_bits": 1}}),
    _pub({"c": {"samples": ["0x1"], "num_bits": "2"}}),
    _pub({"c": {"samples": ["0x1"], "num_bits": -2}}),
    _pub({"c": {"samples": ["0x1"], "num_bits": 1}, "d": {"samples": [], "num_bits": 1}}),
    _pub({"evs": 0.5}),
    _bits(None),
    _bits(ndarray(np.zeros((3, 1)))),
    _bits(ndarray(np.zeros((3, 2), dtype=np.uint8))),
    _bits(ndarray(np.zeros(3, dtype=np.uint8))),
    _bits(ndarray(np.zeros((3, 1), dtype=np.uint8)), bits=None),
    _bits({"__type__": "ndarray", "__value__": "@@"}),
    _bits({"__type__": "ndarray"}),
    [],
    {},
    7,
    None,
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
def test_broken_bodies_are_one_kind_of_error(body: Any) -> None:
    result = JobResult.from_body(json.dumps(body), job_id="d1")
    for call in (result.counts, result.counts_array):
        with pytest.raises(QuantumRuntimeError) as caught:
            call()
        assert caught.value.job_id == "d1"


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last)", "{", b"\xff\xfe", "[" * 100_000])
def test_what_is_not_json(text: Any) -> None:
    with pytest.raises(QuantumRuntimeError, match="not JSON") as caught:
        _read(text)
    assert caught.value.job_id == "d1"


@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 950, 1010, 1025, 100_000])
@pytest.mark.parametrize(
    "body",
    [
        "%s",
        "[NaN, %s]",
        '{"results": [{"data": {"evs": %s}}]}',
        '{"results": [{"data": {"evs": 1.0}, "metadata": %s}]}',
        '{"results": [{"data": {"c": {"samples": %s, "num_bits": 2}}}]}',
        '{"quasi_dists": %s}',
        '{"values": %s, "metadata": [Infinity]}',
    ],
)
def test_a_body_that_is_nested_deeply_is_refused_before_it_is_stored(body: str, levels: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nest = opening * levels + "1" * (opening != "[") + closing * levels
        with pytest.raises(QuantumRuntimeError, match="not JSON") as caught:
            _read(body % nest)
        assert len(str(caught.value)) < 1000
    allowed = _read(body % ("[" * (MOST_LEVELS - 10) + "]" * (MOST_LEVELS - 10)))
    assert pickle.loads(pickle.dumps(allowed)).job_id == JobResult.model_validate_json(allowed.model_dump_json()).job_id


@pytest.mark.parametrize("text", ["{", "[NaN, ", "[" * 300 + "]" * 300, "[NaN, " + "[" * 300 + "]" * 300 + "]"])
def test_an_error_keeps_no_hold_of_the_body(text: str) -> None:
    kept = bytearray(text.encode())
    with pytest.raises(QuantumRuntimeError) as caught, memoryview(kept) as body:
        loads(body, "d1")
    kept.append(0)  # it could not grow while the error's traceback holds a view of it
    assert caught.value.job_id == "d1"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["results", "data", "c", "samples", "num_bits", "__type__", "__value__", "pub_results", "metadata",
             "quasi_dists", "values", "evs", "stds", "shots"]
        ),
        inner | st.sampled_from(["PrimitiveResult", "DataBin", "BitArray", "ndarray", "0x1"]),
        max_size=4,
    )
), max_leaves=20))  # fmt: skip
def test_no_body_raises_anything_else(body: Any) -> None:
    result = JobResult(body=body, job_id="d1")
    calls = (
        lambda: result.num_pubs, result.counts, result.memory, lambda: result.quasi_dists, result.expectation_values,
        result.standard_errors, result.shots, result.shape, result.registers, result.metadata,
        lambda: result.metadata(0), result.to_table, result.to_primitive_result,
    )  # fmt: skip
    for call in calls:
        with contextlib.suppress(QuantumRuntimeError):
            call()


def test_decode_limit_holds() -> None:
    bits = BitArray(np.zeros((10_000, 1), dtype=np.uint8), 2)
    body = _pub({"c": bit_array(bits)})
    assert _read(body).counts() == {"00": 10_000}
    with pytest.raises(QuantumRuntimeError, match="more than 5000 bytes"):
        _read(body, decode_limit=5000).counts()


def test_type_and_shape_are_those_of_the_body() -> None:
    """Kerneled measurements are no bitstrings, and their points have a shape all the same."""
    data = DataBin(c=np.arange(12, dtype=complex).reshape(3, 4), shape=(3,))
    result = _read(encoded(data))
    assert result.shape() == (3,)
    assert result.registers() == {}
    _same(result.to_primitive_result(), PrimitiveResult([SamplerPubResult(data, metadata={})], metadata={"version": 2}))
    with pytest.raises(QuantumRuntimeError, match="no bitstrings, but c"):
        result.counts()
    other = DataBin(evs=np.zeros((2, 3)), more=np.zeros((2, 3, 5)), shape=(2, 3))
    result = _read(encoded(other, "PubResult"))
    assert result.shape() == (2, 3)
    _same(result.to_primitive_result(), PrimitiveResult([PubResult(other, metadata={})], metadata={"version": 2}))


def test_a_pub_is_decoded_once_for_all_that_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = {f"c{place}": BitArray(np.array([[place % 4]], dtype=np.uint8), 2) for place in range(20)}
    result = _read(encoded(DataBin(**bits)))
    decoded = []
    once = Allowance.inflate
    monkeypatch.setattr(Allowance, "inflate", lambda self, text: decoded.append(text) or once(self, text))
    rows = result.to_table()
    assert [row["bitstring"] for row in rows] == [f"{place % 4:02b}" for place in range(20)]
    assert len(decoded) == 20
    assert result.counts(register="c3") == {"11": 1}
    assert len(decoded) == 20
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert len(pickle.dumps(again)) == len(pickle.dumps(_read(result.raw))), "what was decoded stays here"
    assert again.model_copy(update={"body": json.loads(SAMPLER)}).counts() == {"11": 3, "00": 2}


def test_numpy_integers_are_indices() -> None:
    result = _read(encoded(DataBin(shape=(3,), c=ARRAY)))
    assert result.counts(index=np.int64(1)) == result.counts(index=1)  # type: ignore[arg-type]
    assert result.counts(index=(np.uint8(2),)) == result.counts(index=-1)  # type: ignore[arg-type]
    for pub in np.arange(result.num_pubs):
        assert result.counts(pub, index=0) == result.counts(0, index=0)
        assert result.shape(pub) == (3,)
    for wrong in (
        np.bool_(True),
        type("bool_", (), {"__index__": lambda _self: 1})(),
        True,
        1.0,
    ):  # an older numpy's too
        with pytest.raises(InvalidInput):
            result.counts(index=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            result.counts(wrong, index=0)  # type: ignore[arg-type]


@pytest.mark.uncounted
def test_a_table_of_countless_points_is_refused() -> None:
    result = _read(encoded(DataBin(evs=np.zeros(2_000_000), shape=(2_000_000,)), "PubResult"))
    with pytest.raises(QuantumRuntimeError, match="too many points for a table"):
        result.to_table()
    assert len(result.expectation_values()) == 2_000_000
