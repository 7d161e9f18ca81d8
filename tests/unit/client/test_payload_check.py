"""Whether a job computes what was asked for: everything that decides is compared, and nothing else."""

from __future__ import annotations

import copy
import zlib
from base64 import b64encode
from typing import Any

import pytest

from prefect_qruntime.client.dialects import v1_params, v2_params
from prefect_qruntime.client.inputs.spec import JobSpec, Pub
from prefect_qruntime.client.payload_check import (
    differs_at_sight,
    input_difference,
    is_comparable,
    is_small,
    on_service,
    shape,
)
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.models import Job, JobStatus
from tests.support.random_circuits import build, executor_params

BELL = 'OPENQASM 3.0; include "stdgates.inc"; input float a; bit[2] c; qubit[2] q; rx(a) q[0]; c = measure q;'
SAMPLER = make_spec([(BELL, [[0.1], [0.2]], 50), (BELL, {"a": 0.3})], backend="b", shots=100)
ESTIMATOR = make_spec(
    [(BELL, ["ZZ", {"XX": 0.5}], [0.1], 0.01)], backend="b", program_id="estimator", options={"resilience_level": 1}
)
RAW = make_spec(None, program_id="executor", backend="b", params={"options": {"x": [1, 2]}, "shots": 5})
SPECS = {"sampler": SAMPLER, "estimator": ESTIMATOR, "raw": RAW}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything that can be changed in a payload."""
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in leaves(item, (*path, name))]
    if isinstance(value, list):
        return [leaf for place, item in enumerate(value) for leaf in leaves(item, (*path, place))]
    return [path]


def changed(params: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    other = copy.deepcopy(params)
    place: Any = other
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return other


@pytest.mark.parametrize("name", SPECS)
def test_the_same_is_the_same(name: str) -> None:
    spec = SPECS[name]
    params = v2_params(spec)
    assert input_difference(spec, params, copy.deepcopy(params)) is None
    assert input_difference(spec, params, {}) is None, "what the service hides is not compared"


@pytest.mark.parametrize("name", SPECS)
def test_what_is_not_compared_is_named(name: str) -> None:
    spec = SPECS[name]
    params = v2_params(spec)
    for exact in (True, False):
        for kept in (copy.deepcopy(params), {}, *(changed(params, path, "another") for path in leaves(params))):
            unseen: list[str] = []
            found = input_difference(spec, params, kept, exact=exact, unseen=unseen)
            assert found is not None or bool(unseen) is (kept != params or not (exact or spec.params))


ALL = [(name, path) for name, spec in SPECS.items() for path in leaves(v2_params(spec))]


@pytest.mark.parametrize(("name", "path"), ALL, ids=str)
@pytest.mark.parametrize("value", ["another", 12345, None, [1], {"x": 1}], ids=str)
def test_every_change_is_seen(name: str, path: tuple[Any, ...], value: Any) -> None:
    spec = SPECS[name]
    params = v2_params(spec)
    other = changed(params, path, value)
    if value is None and changed(params, path, None) == params:
        return  # it said nothing before, and says nothing now
    assert input_difference(spec, params, other) is not None


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("sampler", {"shots": 1}, "shots is 1, not 100"),
        ("estimator", {"shots": 7}, "shots was not asked for"),
        ("sampler", {"pubs": "none"}, "0 PUBs, not 2"),
        ("sampler", {"pubs": [[BELL]]}, "1 PUB, not 2"),
        ("raw", {"more": 1}, "its params differ"),
        ("raw", {"options": {"x": [1, 2, 3]}}, "params.options.x has 3 parts, not 2"),
    ],
    ids=str,
)
def test_what_was_not_asked_for(name: str, extra: dict[str, Any], words: str) -> None:
    params = v2_params(SPECS[name])
    assert words in str(input_difference(SPECS[name], params, {**params, **extra}))


def test_what_the_service_fills_in_is_no_difference() -> None:
    spec = make_spec([BELL.replace("input float a;", "").replace("(a)", "(1)")], backend="b")
    params = v2_params(spec)
    filled = {**params, "shots": None, "options": {"default_shots": 4096}}
    filled["pubs"] = [[*pub, None, None] for pub in params["pubs"]]
    assert input_difference(spec, params, filled) is None
    bare = {**params, "pubs": [pub[0] for pub in params["pubs"]]}
    assert input_difference(spec, params, bare) is None


@pytest.mark.parametrize("name", ["sampler", "estimator"])
def test_of_a_transpiled_one_only_the_shape_is_compared(name: str) -> None:
    spec = SPECS[name]
    params = v2_params(spec)
    other = copy.deepcopy(params)
    for pub in other["pubs"]:
        pub[0] = "another circuit"
        if name == "estimator":
            pub[1] = "ZZIII"
    assert input_difference(spec, params, other, exact=False) is None
    other["pubs"][0][-1] = 51
    assert input_difference(spec, params, other, exact=False) is not None


def test_the_legacy_form() -> None:
    spec = make_spec([(BELL, [0.1]), (BELL, [0.2])], backend="b", shots=10)
    params = v1_params(spec)
    assert input_difference(spec, params, copy.deepcopy(params)) is None
    for path in leaves(params):
        assert input_difference(spec, params, changed(params, path, "another")) is not None
    assert input_difference(spec, params, {**params, "circuits": ["x", "y"]}, exact=False) is None


def test_encoded_arrays_are_compared_by_what_they_hold() -> None:
    def packed(data: bytes, level: int) -> dict[str, str]:
        return {"__type__": "ndarray", "__value__": b64encode(zlib.compress(data, level)).decode()}

    spec = JobSpec("sampler", "b", pubs=(Pub(BELL),))
    params = {"pubs": [[BELL, packed(b"1234" * 50, 1)]]}
    assert input_difference(spec, params, {"pubs": [[BELL, packed(b"1234" * 50, 9)]]}) is None
    assert input_difference(spec, params, {"pubs": [[BELL, packed(b"5678" * 50, 9)]]}) is not None
    broken = {"__type__": "ndarray", "__value__": "no base64"}
    assert input_difference(spec, params, {"pubs": [[BELL, broken]]}) is not None


def test_a_circuit_built_again_is_the_same() -> None:
    qiskit = pytest.importorskip("qiskit")

    def built(angle: float) -> JobSpec:
        circuit = qiskit.QuantumCircuit(1, 1)
        circuit.rx(qiskit.circuit.Parameter("a"), 0)
        circuit.measure(0, 0)
        return make_spec([(circuit, [angle])], backend="b")

    first, second = built(0.1), built(0.1)
    assert v2_params(first) != v2_params(second), "QPY holds random parameter ids"
    assert input_difference(first, v2_params(first), v2_params(second)) is None
    assert input_difference(first, v2_params(first), v2_params(built(0.2))) is not None
    other = qiskit.QuantumCircuit(1, 1)
    other.measure(0, 0)
    found = v2_params(make_spec([other], backend="b"))
    assert "circuit" in str(input_difference(first, v2_params(first), found))
    unreadable = changed(v2_params(second), ("pubs", 0, 0, "__value__"), "no base64")
    unseen: list[str] = []
    assert input_difference(first, v2_params(first), unreadable, unseen=unseen) is None
    assert "cannot be read" in unseen[0], "what cannot be read is not compared"


def test_at_sight() -> None:
    job = Job(id="d1", status=JobStatus.QUEUED)
    assert differs_at_sight(SAMPLER, job) is None
    assert differs_at_sight(SAMPLER, job.model_copy(update={"program_id": "sampler"})) is None
    assert "'calibrate'" in str(differs_at_sight(SAMPLER, job.model_copy(update={"program_id": "calibrate"})))
    private = job.model_copy(update={"private": True})
    assert differs_at_sight(SAMPLER, private) is not None
    assert differs_at_sight(make_spec([(BELL, [0.1])], backend="b", private=True), private) is None


def test_shapes_and_sizes() -> None:
    assert shape(SAMPLER) != shape(ESTIMATOR)
    assert shape(SAMPLER) == shape(make_spec([(BELL, [[0.1], [0.2]], 50), (BELL, {"a": 0.3})], backend="c", shots=100))
    assert is_small(SAMPLER)
    assert is_small(RAW)
    assert not is_small(JobSpec("sampler", "b", pubs=(Pub("x", parameters=[[0.1] * 70_000]),)))
    assert not is_small(JobSpec("sampler", "b", params={str(n): 1 for n in range(70_000)}))
    terms = {f"{number:0100b}".translate({48: "I", 49: "Z"}): 0.5 for number in range(40_000)}
    hamiltonian = JobSpec("estimator", "b", pubs=(Pub(BELL, observables=terms),))
    assert (is_small(hamiltonian), is_comparable(hamiltonian)) == (False, True)
    assert not is_comparable(JobSpec("sampler", "b", pubs=(Pub("x" * 4_000_000),)))


def test_raw_params_are_compared_by_what_they_mean() -> None:
    one, again, other = (executor_params(build(seed)) for seed in (1, 1, 2))
    spec = make_spec(None, program_id="executor", backend="b", params=one)
    assert one != again, "QPY differs each time it is written"
    assert input_difference(spec, one, again) is None
    assert "is another" in str(input_difference(spec, one, other))


def test_a_job_found_on_the_other_route_is_compared_with_what_would_go_there() -> None:
    asked = make_spec([(BELL, [[0.1], [0.2]], 50)], backend="b", route="executor")
    served = on_service(asked)
    assert input_difference(asked, v2_params(served), v2_params(served)) is None
    assert input_difference(served, v2_params(served), v2_params(asked)) is None
    changed = make_spec([(BELL, [[0.1], [0.3]], 50)], backend="b", route="executor")
    assert input_difference(served, v2_params(served), v2_params(changed)) is not None
