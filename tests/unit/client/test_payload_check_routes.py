"""A job found by its key is this submission's, whichever route it took; another one never is."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

from prefect_qruntime.client.dialects import v2_params
from prefect_qruntime.client.inputs.meaning import meaning_of
from prefect_qruntime.client.payload_check import executor_difference, may_be_job_of, on_service
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.make import on_executor
from tests.support import circuits as families
from tests.support.random_circuits import build, executor_params


def _circuit(angle: float = 0.25) -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.rx(angle * Parameter("a"), 0)
    circuit.measure_all()
    return circuit


def _kept(pubs: Any, **given: Any) -> dict[str, Any]:
    found = on_executor(make_spec(pubs, backend="b", **given)).prepared
    assert found is not None
    return copy.deepcopy(found)


PUBS: list[tuple[Any, dict[str, Any]]] = [
    ([families.BELL], {"shots": 10}),
    ([(families.ANSATZ, {"theta": [1, 2], "alpha": [3, 4]})], {"shots": 10}),
    ([(families.BELL, ["ZZ", "XX"])], {"program_id": "estimator"}),
]


@pytest.mark.parametrize(("pubs", "given"), PUBS)
def test_the_same_work_by_either_route(pubs: Any, given: dict[str, Any]) -> None:
    spec = make_spec(pubs, backend="b", **given)
    for asked in (spec, on_executor(spec)):
        unseen: list[str] = []
        assert executor_difference(asked, _kept(pubs, **given), unseen=unseen) is None
        assert unseen == [], "all was compared"
        assert may_be_job_of(asked, "executor")
        assert may_be_job_of(asked, spec.program_id)
        assert not may_be_job_of(asked, "noise-learner")
    assert v2_params(on_service(on_executor(spec))) == v2_params(spec)


def test_a_circuit_built_again_and_one_that_went_as_text() -> None:
    spec = make_spec([(_circuit(), [0.1])], backend="b", shots=10)
    kept = _kept([(_circuit(), [0.1])], shots=10)
    assert kept != on_executor(spec).prepared
    assert executor_difference(spec, kept) is None
    text = on_executor(replace(spec, circuit_form="openqasm3")).prepared
    assert text is not None
    unseen: list[str] = []
    assert executor_difference(spec, text, unseen=unseen) is None
    assert "text and once as QPY" in unseen[0]
    assert "circuits is another" in str(executor_difference(spec, _kept([(_circuit(0.5), [0.1])], shots=10)))


FOLDED = [({"noise_factors": [1, 1.5]}, True), ({"noise_factors": [1, 3, 5]}, False), ({}, False)]
FOLDED += [({"noise_factors": [1, 2], "amplifier": "gate_folding_front"}, False)]
FOLDED += [({"noise_factors": [1, 2], "amplifier": "gate_folding"}, True)]


@pytest.mark.parametrize(("zne", "drawn"), FOLDED)
@pytest.mark.parametrize(
    ("level", "resilience"), [(2, {}), (0, {"zne_mitigation": True}), (2, {"zne_mitigation": False})]
)
def test_gates_that_a_preparation_draws_are_not_compared(
    zne: dict[str, Any], drawn: bool, level: int, resilience: dict[str, bool]
) -> None:
    spec = on_executor(make_spec([(families.BELL, "ZZ")], backend="b", program_id="estimator", shots=10))
    spec = replace(spec, options={"resilience_level": level, "resilience": {**resilience, "zne": zne}})
    other = _kept([(families.GHZ, "ZZZZ")], program_id="estimator", shots=10)
    other["quantum_program"]["passthrough_data"] = spec.prepared["quantum_program"]["passthrough_data"]
    drawn = drawn and resilience != {"zne_mitigation": False}
    unseen: list[str] = []
    assert (executor_difference(spec, other, unseen=unseen) is None) is drawn
    assert ("at random" in "".join(unseen)) is drawn
    other["quantum_program"]["shots"] = 11
    assert "shots 11" in str(executor_difference(spec, other))


@pytest.mark.parametrize(
    ("pubs", "given", "word"),
    [
        ([families.BELL], {"shots": 11}, "shots 11, not 10"),
        ([families.GHZ], {"shots": 10}, "circuits is another"),
        ([families.BELL, families.BELL], {"shots": 10}, "2 PUBs, not 1"),
        ([(families.BELL, "ZZ")], {"program_id": "estimator", "shots": 10}, "program 'estimator'"),
        ([families.BELL], {"shots": 10, "options": {"execution": {"meas_type": "kerneled"}}}, "level 'kerneled'"),
        ([families.BELL], {"shots": 10, "options": {"execution": {"init_qubits": False}}}, None),
    ],
)
def test_another_job(pubs: Any, given: dict[str, Any], word: str | None) -> None:
    spec = make_spec([families.BELL], backend="b", shots=10)
    found = executor_difference(spec, _kept(pubs, **given))
    # What the service adds to the options is no difference; what was asked for and is missing is one.
    assert (found is None) if word is None else (word in str(found))
    if word is None:
        asked = make_spec(pubs, backend="b", **given)
        assert executor_difference(asked, _kept([families.BELL], shots=10)) == "its options differ"


def test_other_arguments_and_what_cannot_take_the_route() -> None:
    spec = make_spec([(families.ANSATZ, {"theta": 1.0, "alpha": 2.0})], backend="b", shots=10)
    kept = _kept([(families.ANSATZ, {"theta": 1.0, "alpha": 2.5})], shots=10)
    assert executor_difference(spec, kept) == "its quantum_program.items is another"
    unseen: list[str] = []
    assert executor_difference(spec, kept, exact=False, unseen=unseen) is None
    assert "transpiled" in unseen[0], "after a transpilation only the frame is compared"
    stuck = replace(spec, options={"dynamical_decoupling": {"enable": True}})
    assert "cannot be" in str(executor_difference(stuck, kept))
    for damaged in ({}, {"quantum_program": 5}, {"quantum_program": {"shots": 10, "circuits": []}}):
        assert executor_difference(spec, damaged) is not None


def test_a_meaning_never_outlives_its_params() -> None:
    spec = make_spec(None, backend="b", program_id="executor", params=executor_params(build(1)))
    again = executor_params(build(1))
    other = executor_params(build(2))
    assert replace(spec, params=other).digest() != spec.digest()
    assert replace(spec, params=other).canonical(other) is other
    assert replace(spec, params=again, meaning=meaning_of(again)).digest() == spec.digest()
