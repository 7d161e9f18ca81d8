"""The client's newer primitives, which run in the client on top of the program `executor`."""

import math
from importlib import import_module

import numpy as np
import pytest
import samplomatic
from qiskit import QuantumCircuit
from qiskit.primitives import PrimitiveResult
from qiskit_ibm_runtime import Batch, Executor, QuantumProgram, Session
from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
from qiskit_ibm_runtime.executor_estimator import Estimator
from qiskit_ibm_runtime.executor_sampler import Sampler

from .circuits import bell, ghz, isa, observables, rotations, teleportation


def test_executor(ideal):
    program = QuantumProgram(shots=200)
    program.append_circuit_item(isa(ghz(11), ideal))
    values = np.array([[[0, 0], [math.pi, 0]], [[0, math.pi], [math.pi, math.pi]]])
    program.append_circuit_item(isa(rotations(measured=True), ideal), circuit_arguments=values)
    first, second = Executor(mode=ideal).run(program).result()
    assert first["meas"].shape == (200, 11)
    assert set(first["meas"].sum(axis=-1)) == {0, 11}
    assert second["meas"].shape == (2, 2, 200, 2)
    assert (second["meas"] == np.array([[[0, 0], [1, 0]], [[0, 1], [1, 1]]])[:, :, np.newaxis, :]).all()


def test_client_side_sampler(noisy):
    values = np.array([[0, 0], [math.pi, 0], [0, math.pi]])
    with Session(backend=noisy) as session:
        sampler = Sampler(mode=session, options={"default_shots": 2000})
        job = sampler.run([isa(bell(), noisy), (isa(rotations(measured=True), noisy), values)])
        result = job.result()
    assert isinstance(result, PrimitiveResult)
    counts = result[0].data.meas.get_counts()
    assert 0.94 < (counts["00"] + counts["11"]) / 2000 < 0.99
    assert result[1].data.shape == (3,)
    for place, key in enumerate(("00", "01", "10")):
        assert result[1].data.meas.get_counts(place)[key] > 1850


def test_client_side_sampler_with_a_dynamic_circuit(ideal):
    data = Sampler(mode=ideal).run([isa(teleportation(math.pi), ideal)], shots=100).result()[0].data
    assert data.received.get_counts() == {"1": 100}
    assert len(data.sent.get_counts()) == 4


def schema(version):
    """IBM's own models of the executor's params and results in a version."""
    return import_module(f"ibm_quantum_schemas.executor.version_{version.removeprefix('v').replace('.', '_')}")


def submit(backend, params):
    """Send params by the client's transport."""
    api = backend.service._active_api_client
    return api.program_run(
        program_id="executor", backend_name=backend.name, params=params, image="", log_level=None, session_id=None
    )


def test_results_and_params_fit_the_schema_package(ideal, control):
    circuit = isa(rotations(measured=True), ideal)
    program = QuantumProgram(shots=30, meas_level="both", passthrough_data={"mine": [np.arange(3.0), "x", None]})
    program.append_circuit_item(circuit, circuit_arguments=np.zeros((3, 2)))
    boxed = QuantumCircuit(2, 2)
    with boxed.box([samplomatic.Twirl()]):
        boxed.measure([0, 1], [0, 1])
    template, samplex = samplomatic.build(boxed)
    program.append_samplex_item(template, samplex, shape=(4,))
    executor = Executor(mode=ideal)
    job = executor.run(program)
    result = job.result()
    assert sorted(result[0]) == ["meas", "meas_iq"]
    assert ((result[0]["meas_iq"].real > 0) == result[0]["meas"]).all()
    assert result[1]["c"].shape == (4, 30, 2)
    assert (result.passthrough_data["mine"][0] == [0, 1, 2]).all()
    assert [part.size for span in result.metadata.chunk_timing for part in span.parts] == [3, 4]
    sent = control.job(job.job_id())["params"]
    models = schema(sent["schema_version"])
    assert models.ParamsModel.model_validate(sent).quantum_program.shots == 30
    raw = ideal.service._active_api_client.job_results(job.job_id())
    assert models.QuantumProgramResultModel.model_validate_json(raw).schema_version == sent["schema_version"]


@pytest.mark.parametrize("version", ["v0.1", "v0.2", "v1.0", "v1.1", "v2.0"])
def test_every_version_of_the_schema(ideal, control, version):
    """The client's converters for all versions, the sandbox, and the client's decoder of the answer."""
    module = f"qiskit_ibm_runtime.quantum_program.converters.converters_{version.removeprefix('v').replace('.', '_')}"
    convert = getattr(import_module(module), f"quantum_program_to_{version.removeprefix('v').replace('.', '_')}")
    program = QuantumProgram(shots=8)
    circuit = isa(rotations(measured=True), ideal)
    program.append_circuit_item(circuit, circuit_arguments=[[math.pi, 0], [0, 0], [math.pi, math.pi]])
    params = convert(program, Executor(mode=ideal).options).model_dump()
    api = ideal.service._active_api_client
    answer = submit(ideal, params)
    assert control.wait_job(answer["id"])["status"] == "Completed"
    raw = api.job_results(answer["id"])
    assert schema(version).QuantumProgramResultModel.model_validate_json(raw)
    found = ExecutorResultDecoder.decode(raw)[0]["meas"]
    assert (found == np.array([[1, 0], [0, 0], [1, 1]])[:, np.newaxis]).all()


def test_openqasm_in_place_of_qpy(ideal, control):
    text = (
        'OPENQASM 3.0; include "stdgates.inc"; input float[64] a; bit[2] c; rx(a) $0;'
        " c[0] = measure $0; c[1] = measure $1;"
    )
    models = schema("v2.0")
    common = import_module("ibm_quantum_schemas.common")
    arguments = common.F64CompressedTensorModel.from_numpy(np.array([[math.pi], [0.0]]))
    params = models.ParamsModel(
        quantum_program=models.QuantumProgramModel(
            shots=5,
            circuits=common.OpenQasm3DataModel(data=[text]),
            items=[models.CircuitItemModel(circuit_arguments=arguments, shape=[2])],
        ),
        options=models.OptionsModel(),
    ).model_dump()
    api = ideal.service._active_api_client
    answer = submit(ideal, params)
    assert control.wait_job(answer["id"])["status"] == "Completed"
    (item,) = ExecutorResultDecoder.decode(api.job_results(answer["id"]))
    assert (item["c"] == np.array([[1, 0], [0, 0]])[:, np.newaxis]).all()


@pytest.mark.parametrize("kind", ["gates", "measurements", "both"])
def test_client_side_sampler_with_twirling(ideal, control, kind):
    sampler = Sampler(mode=ideal)
    sampler.options.twirling.enable_gates = kind != "measurements"
    sampler.options.twirling.enable_measure = kind != "gates"
    sampler.options.twirling.num_randomizations = 8
    sampler.options.twirling.shots_per_randomization = 50
    values = np.array([[0, 0], [math.pi, 0], [0, math.pi]])
    job = sampler.run([isa(ghz(3), ideal), (isa(rotations(measured=True), ideal), values)])
    result = job.result()
    (sent,) = control.jobs()
    assert [item["item_type"] for item in sent["params"]["quantum_program"]["items"]] == ["samplex", "samplex"]
    counts = result[0].data.meas.get_counts()
    assert set(counts) == {"000", "111"}
    assert sum(counts.values()) == 400
    assert [result[1].data.meas.get_counts(place) for place in range(3)] == [{"00": 400}, {"01": 400}, {"10": 400}]


@pytest.mark.parametrize("meas_type", ["kerneled", "avg_kerneled"])
def test_client_side_sampler_with_kerneled_measurements(ideal, meas_type):
    sampler = Sampler(mode=ideal, options={"execution": {"meas_type": meas_type}})
    circuit = isa(rotations(measured=True), ideal)
    data = sampler.run([(circuit, [math.pi, 0])], shots=200).result()[0].data.meas
    assert data.shape == ((200, 2) if meas_type == "kerneled" else (2,))
    assert data.reshape(-1, 2).mean(axis=0) == pytest.approx([1, -1], abs=0.1)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_client_side_estimator_at_each_resilience_level(noisy, control, level):
    circuit = isa(bell(measured=False), noisy)
    estimator = Estimator(mode=noisy, options={"resilience_level": level})
    job = estimator.run([(circuit, observables(circuit, "ZZ", "XX", "YY", "ZI"))], precision=0.02)
    (pub,) = job.result()
    (sent,) = control.jobs()
    assert {item["item_type"] for item in sent["params"]["quantum_program"]["items"]} == {"samplex"}
    # 1 % readout error on two qubits is visible without mitigation, and gone with it.
    expected = 1 if level else 0.95
    assert pub.data.stds.shape == (4,)
    allowed = 0.03 + 5 * pub.data.stds.max()
    assert pub.data.evs == pytest.approx([expected, expected, -expected, 0], abs=allowed)


@pytest.mark.parametrize("mitigation", ["zne", "trex"])
def test_client_side_estimator_with_each_mitigation(noisy, mitigation):
    estimator = Estimator(mode=noisy)
    resilience = estimator.options.resilience
    resilience.measure_mitigation = mitigation == "trex"
    resilience.zne_mitigation = mitigation == "zne"
    circuit = isa(bell(measured=False), noisy)
    data = estimator.run([(circuit, observables(circuit, "ZZ"))], precision=0.03).result()[0].data
    assert data.evs == pytest.approx([0.98], abs=0.1)


def test_client_side_estimator_broadcasts(ideal):
    angles = np.linspace(0, math.pi, 4)
    values = np.stack([angles, np.zeros(4)], axis=-1)
    circuit = isa(rotations(measured=False), ideal)
    columns = [[observable] for observable in observables(circuit, "IZ", "IY", "ZI")]
    pub = Estimator(mode=ideal).run([(circuit, columns, values)], precision=0.03).result()[0]
    expected = [np.cos(angles), -np.sin(angles), np.ones(4)]
    np.testing.assert_allclose(pub.data.evs, expected, atol=0.15)


def test_in_a_batch(ideal, control):
    with Batch(backend=ideal) as batch:
        jobs = [Sampler(mode=batch).run([isa(bell(), ideal)], shots=20) for _ in range(2)]
        assert all(sum(job.result()[0].data.meas.get_counts().values()) == 20 for job in jobs)
    assert {job["session_id"] for job in control.jobs()} == {batch.session_id}
