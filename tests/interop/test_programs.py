"""Quantum programs: ours validate in IBM's schema package, and IBM's own are prepared and read through our inputs.

They run on the simulator that IBM's client has for its local mode, so that each end is IBM's own code.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import samplomatic
from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor.version_2_0 import (
    ItemMetadataModel,
    MetadataModel,
    ParamsModel,
    QuantumProgramResultItemModel,
    QuantumProgramResultModel,
)
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import Parameter
from qiskit.quantum_info import PauliLindbladMap
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.decoders.executor_sampler.post_processor_v0_1 import sampler_v2_post_processor_v0_1
from qiskit_ibm_runtime.executor_estimator.prepare import prepare
from qiskit_ibm_runtime.fake_provider.executor.run_quantum_program import run_quantum_program
from qiskit_ibm_runtime.options_models.estimator import EstimatorOptions
from qiskit_ibm_runtime.options_models.executor import ExecutorOptions
from qiskit_ibm_runtime.options_models.simulator import SimulatorOptions
from qiskit_ibm_runtime.quantum_program import QuantumProgram
from qiskit_ibm_runtime.quantum_program.converters.converters_2_0 import (
    passthrough_data_to_2_0,
    quantum_program_from_2_0,
)

from prefect_qruntime import QuantumRuntimeCredentials, compare_routes
from prefect_qruntime.client.inputs.meaning import meaning_of
from prefect_qruntime.client.payload_check import executor_difference
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import InvalidInput

HEAD = 'OPENQASM 3.0; include "stdgates.inc"; '
BELL = HEAD + "bit[2] c; h $0; cx $0, $1; c[0] = measure $0; c[1] = measure $1;"
SWEEP = (
    HEAD
    + "input float[64] b; input angle a; qubit[2] q; bit[2] c; rx(a) q[0]; cx q[0], q[1]; rz(b) q[1]; c = measure q;"
)
POINTS = {"a": [0.1, 2.0, 3.0], "b": [0.0, 0.5, -1.0]}


def circuit() -> QuantumCircuit:
    angle = Parameter("t")
    found = QuantumCircuit(2, 2)
    found.rx(angle, 0)
    found.cx(0, 1)
    found.measure([0, 1], [0, 1])
    return found


PUBS: list[tuple[str, Any]] = [
    ("sampler", BELL),
    ("sampler", (SWEEP, POINTS)),
    ("sampler", (circuit(), [[0.1], [0.2]])),
    (
        "sampler",
        (
            QuantumCircuit.from_qasm_str(
                'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; x q[0]; measure q -> c;'
            ),
            [[], []],
        ),
    ),
    ("estimator", (BELL, ["ZZ", {"XX": 0.5, "YI": 1.0, "II": 2.0}])),
    ("estimator", (SWEEP, [["ZZ"], ["XI"]], POINTS)),
    ("estimator", (circuit(), ["ZZ", "0X"], [[0.1], [0.2]])),
]


@pytest.mark.parametrize("form", ["auto", "qpy", "openqasm3"])
@pytest.mark.parametrize(("program", "pub"), PUBS)
def test_each_payload_validates(program: str, pub: Any, form: str) -> None:
    spec = make_spec([pub], backend="b", program_id=program, route="executor", circuit_form=form)
    model = ParamsModel.model_validate_json(json.dumps(spec.prepared))
    circuits = model.quantum_program.circuits.to_python()
    for item, found in zip(model.quantum_program.items, circuits, strict=True):
        assert item.circuit_arguments.to_numpy().shape[-1] == found.num_parameters
    assert model.quantum_program.semantic_role is None
    assert meaning_of(spec.prepared).certain


def _run(spec: Any) -> tuple[JobResult, Any]:
    params = spec.prepared if spec.params is None else spec.params
    program, _ = quantum_program_from_2_0(ParamsModel.model_validate_json(json.dumps(params)))
    for item in program.items:
        if hasattr(item, "samplex"):
            item.samplex.finalize()
    found = run_quantum_program(AerSimulator(), program, SimulatorOptions(seed_simulator=3))
    data = [
        QuantumProgramResultItemModel(
            results={
                name: CompressedTensorModel.from_numpy(np.ascontiguousarray(value)) for name, value in item.items()
            },
            metadata=ItemMetadataModel(),
        )
        for item in found
    ]
    body = QuantumProgramResultModel(
        data=data,
        metadata=MetadataModel(chunk_timing=[]),
        passthrough_data=passthrough_data_to_2_0(found.passthrough_data),
    )
    return JobResult.from_body(body.model_dump_json(), job_id="d1", program_id="executor"), found


@pytest.mark.parametrize("form", ["auto", "qpy"])
def test_our_programs_run_on_ibms_simulator(form: str) -> None:
    given = {"backend": "b", "route": "executor", "circuit_form": form}
    counts = _run(make_spec([BELL], shots=400, **given))[0].counts()
    assert set(counts) == {"00", "11"}
    values = _run(make_spec([(BELL, ["ZZ", "XX", "YY"])], program_id="estimator", **given))[0].expectation_values()
    assert values == [1.0, 1.0, -1.0]


@pytest.mark.parametrize(
    "pub", [(circuit(), [[3.14159265], [0.0]]), (SWEEP, {"a": [3.14159265, 0.0], "b": [0.0, 0.0]})]
)
def test_twirled_sampling_is_prepared_by_ibm_and_read_as_ibm_reads_it(pub: Any) -> None:
    options = {"twirling": {"enable_gates": True, "enable_measure": True, "num_randomizations": 4}}
    spec = make_spec([pub], backend="b", shots=256, route="executor", options=options)
    assert spec.prepared["quantum_program"]["items"][0]["item_type"] == "samplex"
    result, found = _run(spec)
    assert result.counts_array() == [{"11": 256}, {"00": 256}]
    theirs = sampler_v2_post_processor_v0_1(found)[0].data.c
    assert result.to_primitive_result()[0].data.c == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"resilience_level": 1},
        {"resilience_level": 0, "twirling": {"enable_measure": True}},
        {"resilience_level": 0, "resilience": {"zne_mitigation": True}},
    ],
)
def test_mitigated_estimates_are_prepared_and_computed_by_ibm(options: dict[str, Any]) -> None:
    pub = (circuit(), [["ZZ"], ["IZ"]], [[0.0], [3.14159265]], 0.05)
    spec = make_spec([pub], backend="b", program_id="estimator", route="executor", options=options)
    result, _ = _run(spec)
    assert np.allclose(result.expectation_values(), [[1, 1], [1, -1]], atol=0.15)
    assert result.to_primitive_result()[0].data.evs.shape == (2, 2)
    assert len(result.to_table()) == 4


def test_ibms_quantum_program_stands_where_pubs_stand() -> None:
    def program() -> QuantumProgram:
        found = QuantumProgram(shots=100)
        found.append_circuit_item(circuit(), circuit_arguments=np.array([[0.0], [3.14159265]]))
        return found

    one, other = (make_spec(program(), backend="b", program_id="executor") for _ in range(2))
    assert one.params != other.params
    assert one.digest() == other.digest()
    assert not one.doubts
    assert _run(one)[0].counts_array() == [{"00": 100}, {"11": 100}]
    with pytest.raises(InvalidInput, match="refuses") as caught:
        make_spec(program(), backend="b", program_id="executor", options={"init_qubit": True})
    assert caught.value.field == "options.init_qubit"
    with pytest.raises(InvalidInput, match="refuses") as caught:
        make_spec(program(), backend="b", options={"execution": {"init_qubits": True}})
    assert caught.value.field == "options.execution"
    for given in ([1], "x", ExecutorOptions()):
        with pytest.raises(InvalidInput, match="must be a dict"):
            make_spec(program(), backend="b", options=given)
    with pytest.raises(InvalidInput, match="executor") as caught:
        make_spec(program(), backend="b", program_id="estimator")
    assert caught.value.field == "program_id"
    crn = f"crn:v1:bluemix:public:quantum-computing:us-east:a/{'0' * 32}:01234567-89ab-cdef-0123-456789abcdef::"
    block = QuantumRuntimeCredentials(api_key="k" * 44, crn=crn)
    with pytest.raises(InvalidInput, match="not 'executor'"):
        compare_routes(block, program(), backend="b")


@pytest.mark.parametrize("kind", [QuantumProgram, samplomatic.quantum_program.QuantumProgram])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_arguments_of_a_quantum_program_that_are_not_finite_are_refused(kind: Any, wrong: float) -> None:
    def program(first: float, second: float, rate: float) -> Any:
        boxed = QuantumCircuit(1, 1)
        with boxed.box([samplomatic.Twirl(), samplomatic.InjectNoise("n")]):
            boxed.rx(Parameter("t"), 0)
            boxed.noop(0)
        with boxed.box([samplomatic.Twirl()]):
            boxed.measure(0, 0)
        template, samplex = samplomatic.build(boxed)
        found = kind(shots=5)
        found.append_circuit_item(circuit(), circuit_arguments=np.array([[0.0], [first]]))
        arguments = {
            "parameter_values": np.array([second]),
            "pauli_lindblad_maps": {"n": PauliLindbladMap.from_list([("X", rate)])},
        }
        found.append_samplex_item(template, samplex, samplex_arguments=arguments)
        return found

    assert make_spec(program(0.2, 0.2, 0.1), backend="b").params is not None
    for given, field in (
        ((wrong, 0.2, 0.1), "items[0].circuit_arguments"),
        ((0.2, wrong, 0.1), "items[1].samplex_arguments.parameter_values"),
        ((0.2, 0.2, wrong), "items[1].samplex_arguments.pauli_lindblad_maps.n.sparse_terms[0][2]"),
    ):
        with pytest.raises(InvalidInput, match="infinity") as caught:
            make_spec(program(*given), backend="b")
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (
            {"resilience_level": 2, "resilience": {"zne": {"noise_factors": [1]}}},
            "options.resilience.zne.noise_factors",
        ),
        (
            {"resilience_level": 2, "resilience": {"zne": {"noise_factors": [0, 1]}}},
            "options.resilience.zne.noise_factors",
        ),
        ({"resilience_level": 1, "seed_estimator": 3}, "options.seed_estimator"),
        ({"dynamical_decoupling": {"enable": True}}, "options.dynamical_decoupling.enable"),
    ],
)
def test_what_ibms_preparation_refuses_or_ignores_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_spec([(BELL, "ZZ")], backend="b", program_id="estimator", route="executor", options=options)
    assert caught.value.field == field


def test_options_that_are_not_set_or_without_effect_are_no_obstacle_to_ibms_preparation() -> None:
    options = {
        "resilience_level": 1,
        "resilience": {"layer_noise_learning": {"num_randomizations": 3}, "zne": {"noise_factors": None}},
        "simulator": {"noise_model": None},
        "experimental": {"execution": {"scheduler_timing": True}},
    }
    spec = make_spec([(BELL, "ZZ")], backend="b", program_id="estimator", route="executor", options=options)
    assert spec.prepared["options"]["scheduler_timing"] is True


def test_a_samplex_means_the_same_when_it_is_built_again() -> None:
    options = {"twirling": {"enable_gates": True}}
    given = {"backend": "b", "shots": 64, "route": "executor", "options": options}
    one, other, changed = (make_spec([(circuit(), [angle])], **given).prepared for angle in (0.1, 0.1, 0.2))
    assert one != other
    assert meaning_of(one) == meaning_of(other)
    assert meaning_of(one).certain
    assert meaning_of(one) != meaning_of(changed)


def test_a_program_for_expectation_values_has_one_key_however_many_came_before() -> None:
    def program() -> QuantumProgram:
        pub = (circuit().remove_final_measurements(inplace=False), ["ZZ", "XX"], [0.1])
        found, _ = prepare([pub], EstimatorOptions(resilience_level=1))
        return found

    one, other = (make_spec(program(), backend="b", program_id="executor") for _ in range(2))
    assert one.params != other.params
    assert one.digest() == other.digest()
    assert not one.doubts


def test_openqasm_2_is_rewritten_as_qiskit_reads_it() -> None:
    text = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; h q[0]; cx q[0], q[1]; measure q -> c;'
    spec = make_spec([text], backend="b", shots=10, route="executor")
    sent = spec.prepared["quantum_program"]["circuits"]["data"][0]
    assert qasm3.loads(sent) == QuantumCircuit.from_qasm_str(text)


@pytest.mark.parametrize("amplifier", ["gate_folding", "gate_folding_front"])
@pytest.mark.parametrize("factors", [[1, 3, 5], [1, 1.4, 2.2]])
def test_a_program_that_is_prepared_again_is_found_to_be_the_same_work(factors: list[float], amplifier: str) -> None:
    deep = QuantumCircuit(3)
    for _ in range(8):
        deep.cz(0, 1)
        deep.cz(1, 2)
    options = {"resilience_level": 2, "resilience": {"zne": {"noise_factors": factors, "amplifier": amplifier}}}
    given = {"backend": "b", "program_id": "estimator", "route": "executor", "options": options}
    one, other = (make_spec([(deep, "ZZZ")], **given) for _ in range(2))
    assert executor_difference(one, other.prepared) is None
    third = make_spec([(deep, "XXX")], **given)
    assert executor_difference(one, third.prepared)
