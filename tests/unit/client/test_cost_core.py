"""The estimate keeps its promise on costs of a law it does not know, and promises nothing without finished jobs."""

from __future__ import annotations

import base64
import math
import random
import zlib
from dataclasses import replace
from itertools import combinations_with_replacement, product
from statistics import mean, median
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from prefect_qruntime.client.cost_core import (
    COVERAGE,
    ENOUGH,
    MOST_SECONDS,
    CostEstimate,
    PastJob,
    busy_seconds,
    estimate,
    interval,
    priced_seconds,
)
from prefect_qruntime.client.encodings.tensors import encode_tensor
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

ONE = 'OPENQASM 3.0; include "stdgates.inc"; input float a; bit[1] c; rx(a) $0; c[0] = measure $0;'
TWO = (
    'OPENQASM 3.0; include "stdgates.inc"; input float a; input float b; bit[1] c; rx(a) $0; rz(b) $0; '
    "c[0] = measure $0;"
)
PLAIN = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
REPETITION = 270e-6


class HiddenLaw:
    """Costs by a law of its own: overhead, seconds for a busy second, noise; and jobs of all sizes."""

    def __init__(self, seed: int, *, timed: bool = False) -> None:
        self.random = random.Random(seed)
        self.overhead = self.random.choice([0.0, 0.5, 4.0, 20.0])
        self.factor = self.random.choice([0.2, 1.0, 3.0])
        self.noise = self.random.choice([0.05, 0.3, 0.8])
        self.timed = timed

    def job(self) -> PastJob:
        busy = math.exp(self.random.uniform(math.log(0.05), math.log(200)))
        executed = self.factor * busy * self.random.lognormvariate(0, self.noise)
        overhead = self.overhead * self.random.lognormvariate(0, self.noise)
        return PastJob(busy, executed + overhead, executed if self.timed else None)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("seen", [ENOUGH, 37, 2 * ENOUGH, 90, 200])
def test_the_interval_covers_unseen_jobs_at_its_stated_rate(seen: int, timed: bool) -> None:
    trials, inside = 400, 0
    for seed in range(trials):
        law = HiddenLaw(seed, timed=timed)
        past, new = [law.job() for _ in range(seen)], law.job()
        told = interval(past, new.busy_seconds)
        assert told.coverage == COVERAGE
        inside += told.low <= new.charged_seconds <= told.high
    # The stated rate, and four standard errors of so many trials around it.
    slack = 4 * math.sqrt(COVERAGE * (1 - COVERAGE) / trials)
    assert inside / trials >= COVERAGE - slack
    assert inside / trials < 1, "an interval that is never missed is too wide to be of use"


def test_learning_makes_the_interval_narrow() -> None:
    def width(seen: int, timed: bool = False) -> float:
        widths = []
        for seed in range(60):
            law = HiddenLaw(seed, timed=timed)
            law.noise = 0.1
            past, new = [law.job() for _ in range(seen)], law.job()
            told = interval(past, new.busy_seconds)
            widths.append((told.high - told.low) / new.charged_seconds)
        return median(widths)

    assert width(0) > 100
    assert width(ENOUGH) < width(0) / 10
    assert width(200) < width(ENOUGH) / 2, "the adjusted model knows overhead and rate"
    assert width(200) < 1
    assert width(200, timed=True) < 1


@pytest.mark.parametrize("seen", range(ENOUGH))
def test_before_enough_jobs_nothing_is_promised_and_the_interval_is_wide(seen: int) -> None:
    told = interval([PastJob(1.0, 5.0)] * seen, 1.0)
    assert (told.low, told.high, told.coverage, told.learnt_from) == (0, MOST_SECONDS, None, seen)
    assert told.expected == pytest.approx(5.0 if seen else 3.0)
    assert interval([PastJob(1.0, 5.0)] * seen, 1.0, limit=60).high == 60


JOBS = st.lists(
    st.builds(
        PastJob,
        busy_seconds=st.floats(0, 1e4),
        charged_seconds=st.floats(0, 1e4),
        executed_seconds=st.one_of(st.none(), st.floats(0, 1e4)),
    ),
    max_size=60,
)


@given(JOBS, st.floats(0, 1e5), st.one_of(st.none(), st.integers(1, MOST_SECONDS)))
def test_whatever_the_past_was_the_ends_are_in_order_and_within_the_limit(
    past: list[PastJob], busy: float, limit: int | None
) -> None:
    told = interval(past, busy, limit=limit)
    assert 0 <= told.low <= told.high <= (limit or MOST_SECONDS)
    assert 0 <= told.expected <= (limit or MOST_SECONDS)
    assert (told.coverage is None) == (len(past) < ENOUGH)


def test_payloads_of_which_nothing_is_known_are_learnt_by_their_own_costs() -> None:
    spec = make_spec(None, backend="big", program_id="noise-learner", params={"circuits": []})
    assert busy_seconds(spec) == 0
    told = interval([PastJob(0.0, 30.0 + n % 5) for n in range(50)], 0.0)
    assert (told.low, told.high) == (30, 34)


def busy(pubs: Any, **given: Any) -> float:
    return busy_seconds(make_spec(pubs, backend="big", **given)) / REPETITION


@pytest.mark.parametrize(
    ("pubs", "given", "executions"),
    [
        ([PLAIN], {"shots": 1000}, 1000),
        ([PLAIN], {}, 4096),
        ([PLAIN], {"options": {"default_shots": 50}}, 50),
        ([PLAIN, (PLAIN, None, 500)], {"shots": 1000}, 1500),
        ([(ONE, [[0.1], [0.2], [0.3]])], {"shots": 100}, 300),
        ([(ONE, {"a": [0.1, 0.2]})], {"shots": 100}, 200),
        ([(ONE, {"a": [[0.1], [0.2]]})], {"shots": 100}, 200),
        ([(ONE, {"a": 0.1})], {"shots": 100}, 100),
        ([(TWO, {"a": [0.1, 0.2, 0.3], "b": [1.0, 2.0, 3.0]})], {"shots": 100}, 300),
        ([(TWO, [[0.1, 0.2], [0.3, 0.4]])], {"shots": 100}, 200),
        ([(TWO, [0.1, 0.2])], {"shots": 100}, 100),
        ([(ONE, [0.1])], {"shots": 100}, 100),
        (
            [PLAIN],
            {"options": {"twirling": {"enable_measure": True, "num_randomizations": 8, "shots_per_randomization": 16}}},
            128,
        ),
        ([PLAIN], {"options": {"twirling": {"enable_measure": True}}, "shots": 10}, 64),
        ([(PLAIN, "Z")], {"program_id": "estimator"}, 4096),
        ([(PLAIN, "Z", None, 0.1)], {"program_id": "estimator"}, 128),
        ([(PLAIN, ["Z", "X", "I"], None, 0.1)], {"program_id": "estimator"}, 256),
        ([(PLAIN, "I", None, 0.1)], {"program_id": "estimator", "options": {"resilience_level": 0}}, 100),
        ([(PLAIN, "Z")], {"program_id": "estimator", "options": {"default_shots": 7}}, 64),
    ],
)
def test_executions(pubs: Any, given: dict[str, Any], executions: int) -> None:
    assert busy(pubs, **given) == pytest.approx(executions)


SAID: tuple[dict[str, Any], ...] = (
    {"shots": 30},
    {"options": {"default_shots": 40}},
    {"options": {"default_precision": 0.5}},
    {"options": {"precision": 0.25}},
    {"pub": 0.125},
)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"enable_gates": True},
        {"enable_measure": True},
        {"enable_measure": False},
        {"enable_gates": False, "enable_measure": False},
    ],
)
@pytest.mark.parametrize(
    ("program", "level"),
    [("sampler", None), ("estimator", None), ("estimator", 0), ("estimator", 1), ("estimator", 2)],
)
def test_the_shots_are_those_that_the_service_takes(program: str, level: int | None, flags: dict[str, Any]) -> None:
    """Whatever says the shots: the PUB, the job, twirling, the defaults; and any two of them together."""
    pytest.importorskip("qiskit")
    from prefect_qruntime.client.dialects import v2_params
    from prefect_qruntime.sandbox.catalog import Backend
    from prefect_qruntime.sandbox.state import Run
    from prefect_qruntime.sandbox.worker import execute

    run = Run(Backend("mock_big", 5, noisy=False, mock=True), seed=1)
    for randomizations, each in product((4, 7, "auto"), (16, "auto")):
        twirling = {**flags, "num_randomizations": randomizations, "shots_per_randomization": each}
        for one, other in combinations_with_replacement((*SAID, {}), 2):
            options: dict[str, Any] = one.get("options", {}) | other.get("options", {}) | {"twirling": twirling}
            own = other.get("pub")
            pub: Any = (ONE, "Z", [[0.1], [0.2]], own)
            if program == "sampler":
                options = {name: options[name] for name in ("default_shots", "twirling") if name in options}
                pub = (ONE, [[0.1], [0.2]], own and 70)
            elif level is not None:
                options["resilience_level"] = level
            given = {"shots": shots} if (shots := other.get("shots", one.get("shots"))) else {}
            spec = make_spec([pub], backend="mock_big", program_id=program, options=options, **given)
            outcome = execute(program, v2_params(spec), run)
            assert busy_seconds(spec) / REPETITION == pytest.approx(outcome.execution_ns / 2000), (options, own, given)
            raw_spec = make_spec(None, backend="mock_big", program_id=program, params=v2_params(spec))
            assert busy_seconds(raw_spec) == pytest.approx(busy_seconds(spec))


def test_a_prepared_program_is_priced_as_it_is_sent() -> None:
    """A preparation may add randomizations, noise factors and calibration, which the PUBs do not show."""
    spec = make_spec([(ONE, [[0.1], [0.2]])], backend="big", shots=100, route="executor")
    assert busy_seconds(spec) == pytest.approx(200 * REPETITION)
    assert spec.prepared is not None
    program = spec.prepared["quantum_program"]
    items = [{**program["items"][0], "shape": [32, 2]}, *program["items"]]
    changed = {**spec.prepared, "quantum_program": {**program, "items": items}, "options": {"rep_delay": 0.0}}
    assert busy_seconds(replace(spec, prepared=changed)) == pytest.approx(6600 * 20e-6)


def test_the_repetition_delay_counts() -> None:
    spec = make_spec([PLAIN], backend="big", shots=1000, options={"execution": {"rep_delay": 0.001}})
    assert busy_seconds(spec) == pytest.approx(1000 * 0.00102)


def test_the_points_of_a_quantum_program() -> None:
    def program(items: Any, **rest: Any) -> float:
        params = {"quantum_program": {"shots": 100, "items": items}, **rest}
        return busy_seconds(make_spec(None, backend="big", program_id="executor", params=params))

    assert program([{"shape": [2, 3]}, {"shape": []}, {}]) == pytest.approx(800 * REPETITION)
    assert program([{"shape": [2]}], options={"rep_delay": 0.0}) == pytest.approx(200 * 20e-6)
    assert program("none") == program([{"shape": ["x"]}]) == 0

    arguments = encode_tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [3, 2])
    assert program([{"item_type": "circuit", "shape": [], "circuit_arguments": arguments}]) == program([{"shape": [3]}])
    repeated = {"item_type": "circuit", "shape": [5, 3], "circuit_arguments": arguments}
    assert program([repeated]) == program([{"shape": [15]}])


def packed_array(*shape: int) -> str:
    """An array of zeros as the service's encoder writes it."""
    header = repr({"descr": "<f8", "fortran_order": False, "shape": shape}).encode()
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8 * math.prod(shape))
    return base64.b64encode(zlib.compress(body)).decode()


def raw(program_id: str, params: dict[str, Any]) -> float:
    return priced_seconds(make_spec(None, backend="big", program_id=program_id, params=params)) / REPETITION


def test_pubs_on_the_wire_cost_what_they_cost_as_arguments() -> None:
    two = {"__type__": "ndarray", "__value__": packed_array(2, 1)}
    assert raw("sampler", {"pubs": [[ONE, [[0.1], [0.2]], 50], [PLAIN], PLAIN], "shots": 10}) == pytest.approx(120)
    assert raw("sampler", {"pubs": [[ONE, two]], "options": {"default_shots": 7}}) == pytest.approx(14)
    encoded = {"__type__": "QuantumCircuit", "__value__": "not read for its price"}
    assert raw("sampler", {"pubs": [[encoded, [[0.1], [0.2]], 50]]}) == pytest.approx(100)
    assert raw("estimator", {"pubs": [[PLAIN, ["Z", "X"], None, 0.1]]}) == pytest.approx(256)
    assert raw("noise-learner", {"circuits": []}) == 0, "known by past jobs only"
    # The executor's payload that PUBs are turned into costs as much as the PUBs.
    spec = make_spec([(TWO, [[0.1, 0.2], [0.3, 0.4]])], backend="big", shots=30, route="executor")
    assert spec.prepared is not None
    assert raw("executor", spec.prepared) == pytest.approx(60) == busy_seconds(spec) / REPETITION


@pytest.mark.parametrize(
    ("program_id", "params", "field"),
    [
        ("executor", {}, "params.quantum_program"),
        ("executor", {"quantum_program": {"shots": 1}}, "params.quantum_program.items"),
        ("executor", {"quantum_program": {"items": [{}]}}, "params.quantum_program.shots"),
        ("executor", {"quantum_program": {"shots": 1, "items": [{}, {"shape": "x"}]}}, "items[1].shape"),
        (
            "executor",
            {"quantum_program": {"shots": 1, "items": [{"circuit_arguments": {"shape": [-1]}}]}},
            "items[0].circuit_arguments.shape",
        ),
        ("sampler", {"circuits": []}, "params.pubs"),
        ("sampler", {"pubs": [[PLAIN], []]}, "params.pubs[1]"),
        ("estimator", {"pubs": [[PLAIN]]}, "params.pubs[0]"),
        ("sampler", {"pubs": [[ONE, {"__type__": "ndarray", "__value__": "no"}]]}, "params.pubs[0].parameters"),
        ("executor", {"quantum_program": {"shots": 1, "items": [{"circuit_arguments": "x"}]}}, "circuit_arguments"),
        ("executor", {"quantum_program": {"shots": 1, "items": [{"shape": [10**18] * 20}]}}, "params"),
        ("executor", {"quantum_program": {"shots": 2**31 - 1, "items": [{"shape": [10**18] * 17}]}}, "params"),
        ("sampler", {"pubs": [PLAIN], "options": "x"}, "params.options"),
        ("sampler", {"pubs": [PLAIN], "options": {"default_shots": "100"}}, "params.options.default_shots"),
        ("sampler", {"pubs": [PLAIN], "shots": {"a": 1}}, "params.shots"),
        ("sampler", {"pubs": [[PLAIN, None, "5"]]}, "params.pubs[0].shots"),
        ("sampler", {"pubs": [[PLAIN, "abc"]]}, "params.pubs[0].parameters"),
        ("sampler", {"pubs": [[PLAIN, {"__type__": "BindingsArray", "__value__": {}}]]}, "params.pubs[0].parameters"),
        ("sampler", {"pubs": [[ONE, {"a": [[1], [2, 3]]}]]}, "params.pubs[0].parameters[1]"),
        ("estimator", {"pubs": [[PLAIN, "Z"]], "precision": "0.1"}, "params.precision"),
        ("estimator", {"pubs": [[PLAIN, "Z"]], "options": {"default_precision": "a"}}, "default_precision"),
        ("estimator", {"pubs": [[PLAIN, "Z", None, 0]]}, "params.pubs[0].precision"),
        ("estimator", {"pubs": [[PLAIN, "Z", None, 1e-9]]}, "params.pubs[0].precision"),
        ("estimator", {"pubs": [[PLAIN, None]]}, "params.pubs[0].observables"),
        ("estimator", {"pubs": [[PLAIN, "Q"]]}, "params.pubs[0].observables"),
        ("estimator", {"pubs": [[PLAIN, [["Z"], "X"]]]}, "params.pubs[0].observables"),
        ("estimator", {"pubs": [[PLAIN, {"Z": None}]]}, "params.pubs[0].observables.Z"),
        ("estimator", {"pubs": [[PLAIN, {"__type__": "complex", "__value__": 1}]]}, "params.pubs[0].observables"),
    ],
)
def test_what_cannot_be_priced_is_named(program_id: str, params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        raw(program_id, params)
    assert str(caught.value.field).endswith(field)
    # It can be bought all the same; then nothing is known of it.
    assert busy_seconds(make_spec(None, backend="big", program_id=program_id, params=params)) == 0


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**63 - 1, -1, 0]),
        st.floats(allow_nan=False),
        st.sampled_from(["", "Z", "XX", "II", "auto", "0.1", "no", PLAIN, ONE, packed_array(2, 1)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "Z", "X", "shape", "shots", "__type__"]), inner, max_size=3),
        st.builds(
            lambda kind, value: {"__type__": kind, "__value__": value},
            st.sampled_from(
                ["ndarray", "ObservablesArray", "BindingsArray", "complex", "QuantumCircuit", "set", "datetime"]
            ),
            inner,
        ),
    ),
    max_leaves=6,
)
PUB = st.one_of(JSON, st.lists(JSON, max_size=4).map(lambda parts: [ONE, *parts]))
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "pubs": st.one_of(JSON, st.lists(PUB, max_size=3)),
        "shots": JSON,
        "precision": JSON,
        "options": st.one_of(
            JSON,
            st.dictionaries(
                st.sampled_from(["default_shots", "default_precision", "execution", "twirling", "rep_delay"]),
                st.one_of(
                    JSON,
                    st.fixed_dictionaries(
                        {
                            "enable_gates": st.just(True),
                            "num_randomizations": JSON,
                            "shots_per_randomization": JSON,
                            "rep_delay": JSON,
                        }
                    ),
                ),
            ),
        ),
        "quantum_program": st.one_of(
            JSON,
            st.fixed_dictionaries(
                {
                    "shots": st.one_of(JSON, st.just(3)),
                    "items": st.lists(
                        st.one_of(JSON, st.fixed_dictionaries({"shape": JSON, "circuit_arguments": JSON})), max_size=2
                    ),
                }
            ),
        ),
    },
)


def priced_or_refused(spec: JobSpec) -> tuple[float, str | None]:
    try:
        return priced_seconds(spec), None
    except InvalidInput as error:
        return 0.0, str(error.field)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(["sampler", "estimator", "executor", "noise-learner"]), PARAMS)
def test_any_payload_is_priced_or_refused_by_name(program_id: str, params: dict[str, Any]) -> None:
    # Without the checks of a submission: prices are also told of jobs that others sent.
    spec = replace(make_spec(PLAIN, backend="big"), program_id=program_id, pubs=(), params=params)
    found, field = priced_or_refused(spec)
    assert 0 <= found < math.inf
    assert busy_seconds(spec) == found
    assert field is None or field.startswith("params")


def nested(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize("depth", [5, 40, 5000])
def test_deep_payloads_are_priced_or_refused(depth: int) -> None:
    spec = make_spec([(PLAIN, "Z")], backend="big", program_id="estimator")
    for pub in ([PLAIN, nested(depth, "Z")], [PLAIN, "Z", nested(depth, 0.1)]):
        deep = replace(spec, pubs=(), params={"pubs": [pub]})
        assert (busy_seconds(deep) > 0) == (depth == 5 or (depth == 40 and pub[1] == "Z"))


@pytest.mark.parametrize(
    ("observables", "bases"),
    [
        ("Z", 1),
        (["Z", "X"], 2),
        ({"__type__": "ObservablesArray", "__value__": [{"Z": 1.0}, {"X": 1.0}, {"0": 0.5}]}, 2),
        ({"__type__": "ObservablesArray", "__value__": {"Z": 1.0}}, 1),
        ({"__type__": "ndarray", "__value__": ["Z", "Y"]}, 2),
        ({"Z": {"__type__": "complex", "__value__": [1.0, 0.0]}, "X": 2}, 2),
        ({"I": 1.0}, 1),
    ],
)
def test_observables_on_the_wire(observables: Any, bases: int) -> None:
    params = {"pubs": [[PLAIN, observables]], "options": {"default_shots": 10}, "resilience_level": 0}
    assert raw("estimator", params) == pytest.approx(10 * bases)


def test_whole_randomizations_are_priced() -> None:
    def twirled(**given: Any) -> float:
        options = {"default_shots": 10, "twirling": {"enable_gates": True, **given}}
        return raw("sampler", {"pubs": [PLAIN], "options": options})

    assert twirled(num_randomizations=4, shots_per_randomization=5) == pytest.approx(20)
    assert twirled(num_randomizations=4, shots_per_randomization="auto") == pytest.approx(12)
    assert twirled() == pytest.approx(64)


def test_the_same_work_has_one_name_on_both_routes_and_in_any_order() -> None:
    one, two = (make_spec([PLAIN], backend="big", shots=shots) for shots in (10, 20))
    route = make_spec([PLAIN], backend="other", shots=10, route="executor")
    assert estimate([one, two], []).work == estimate([two, one], []).work == estimate([route, two], []).work
    assert estimate([one], []).work != estimate([two], []).work
    assert (estimate([route], []).program_id, estimate([one], []).program_id) == ("executor", "sampler")
    assert busy_seconds(route) == busy_seconds(one)


def told(past: list[PastJob], remaining: float | None, jobs: int = 1) -> CostEstimate:
    spec = make_spec([PLAIN], backend="big", shots=1000, max_execution_time=100)
    return estimate([spec] * jobs, past, remaining_seconds=remaining)


@pytest.mark.parametrize(
    ("past", "remaining", "jobs", "words"),
    [
        (
            [],
            None,
            1,
            "1 job of sampler on big: 0 to 100 QPU seconds, about 2.27. The interval is as wide as the limits",
        ),
        ([], 400.0, 2, "2 jobs of sampler on big: 0 to 200 QPU seconds, about 4.54; at most 50% of the 400 s"),
        ([PastJob(0.27, 3.0)] * 5, None, 1, f"it takes {ENOUGH} finished jobs of this backend and program to learn"),
        (
            [PastJob(0.27, 3.0)] * 40,
            0.0,
            1,
            "3 to 3 QPU seconds, about 3; the instance has none left. Each holds for 90%",
        ),
    ],
)
def test_what_is_said(past: list[PastJob], remaining: float | None, jobs: int, words: str) -> None:
    assert words in str(told(past, remaining, jobs))


def test_estimates_of_several_programs_are_added_up() -> None:
    specs = [make_spec([(PLAIN, "Z")], backend="big", program_id="estimator", max_execution_time=10)]
    estimator = estimate(specs, [PastJob(1.0, 3.0)] * 40)
    sampler = told([], 400.0, jobs=2)
    both = sampler + estimator
    assert (both.jobs, both.coverage, both.learnt_from, both.remaining_seconds) == (3, None, 0, 400.0)
    for end in ("low_seconds", "expected_seconds", "high_seconds"):
        assert getattr(both, end) == pytest.approx(getattr(sampler, end) + getattr(estimator, end))
    assert str(both).startswith("3 jobs of sampler + estimator on big: ")
    assert both.work == (estimator + sampler).work
    assert len({both.work, sampler.work, estimator.work}) == 3
    assert (sampler + sampler).program_id == "sampler"


def test_a_loop_whose_length_is_not_known_is_bounded_by_its_longest() -> None:
    one = told([PastJob(0.27, 3.0)] * 40, None)
    loop = one.at_most(24)
    assert one.at_most(1) is one
    assert (loop.jobs, loop.bounded, loop.low_seconds, loop.high_seconds) == (24, True, one.low_seconds, 72)
    assert str(loop + one).startswith("at most 25 jobs of sampler on big: ")
    assert loop.work not in (one.work, one.at_most(23).work)


def test_a_dedicated_session_costs_its_life_at_most() -> None:
    jobs = told([PastJob(0.27, 3.0)] * 40, None, jobs=4)
    held = CostEstimate.together([jobs], session_life=900)
    assert (held.low_seconds, held.high_seconds, held.work) == (12, 900, jobs.work)
    assert "A dedicated session is charged by the clock, here for 900 s at most." in str(held)
    assert CostEstimate.together([jobs], session_life=5).high_seconds == jobs.high_seconds == 12
    dry = jobs.model_copy(update={"dry_run": True})
    assert CostEstimate.together([dry], session_life=900) is dry


def test_the_share_of_what_is_left() -> None:
    assert told([], None).share_of_remaining is None
    assert told([], 400.0).share_of_remaining == 0.25
    assert told([], 0.0).share_of_remaining == math.inf
    assert CostEstimate.model_validate_json(told([], 400.0).model_dump_json()) == told([], 400.0)


def test_a_dry_run_costs_nothing() -> None:
    spec = make_spec([PLAIN], backend="big", shots=1000, dry_run=True)
    cost = estimate([spec], [PastJob(0.27, 3.0)] * 40, remaining_seconds=10.0)
    assert (cost.low_seconds, cost.high_seconds, cost.dry_run) == (0, 0, True)
    assert str(cost) == "1 job of sampler on mock_big, a dry run: no QPU, no charge."


def test_several_jobs_are_added_up() -> None:
    past = [PastJob(0.27, 3.0 + n / 100) for n in range(40)]
    one, three = told(past, None), told(past, None, jobs=3)
    for name in ("low_seconds", "expected_seconds", "high_seconds"):
        assert getattr(three, name) == pytest.approx(3 * getattr(one, name))
    assert mean([one.low_seconds, one.high_seconds]) == pytest.approx(3.2, abs=0.3)
