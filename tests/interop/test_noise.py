"""Noise learners, calibration and dry runs of the official client."""

from importlib import import_module

import numpy as np
import pytest
from qiskit_ibm_runtime import NoiseLearner, NoiseLearnerV3, SamplerV2, Session
from qiskit_ibm_runtime.calibrator import Calibrator
from qiskit_ibm_runtime.executor_estimator import Estimator
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.results.noise_learner import NoiseLearnerResult
from samplomatic.transpiler import generate_boxing_pass_manager
from samplomatic.utils import find_unique_box_instructions

from .circuits import bell, isa, observables


def boxed(backend):
    """A Bell circuit in boxes, as the noise learner and the executor want it, and its unique boxes."""
    manager = generate_boxing_pass_manager(inject_noise_targets="gates", inject_noise_strategy="uniform_modification")
    circuit = manager.run(isa(bell(), backend))
    return circuit, find_unique_box_instructions(circuit)


def test_noise_learner_v3(noisy, control):
    _, boxes = boxed(noisy)
    learner = NoiseLearnerV3(mode=noisy)
    learner.options.num_randomizations = 16
    job = learner.run(boxes)
    result = job.result()
    assert len(result) == len(boxes)
    kinds = {layer.metadata["learning_protocol"] for layer in result}
    assert kinds == {"lindblad", "trex"}
    for layer in result.to_pauli_lindblad_maps():
        assert layer.num_qubits == 2
        assert (layer.rates >= 0).all()
    sent = control.job(job.job_id())["params"]
    models = import_module(
        "ibm_quantum_schemas.noise_learner_v3.version_" + sent["schema_version"][1:].replace(".", "_")
    )
    assert models.ParamsModel.model_validate(sent)
    raw = noisy.service._active_api_client.job_results(job.job_id())
    assert models.NoiseLearnerV3ResultsModel.model_validate_json(raw)


def test_noise_learner(noisy):
    learner = NoiseLearner(mode=noisy)
    learner.options.max_layers_to_learn = 2
    result = learner.run([isa(bell(), noisy)]).result()
    assert isinstance(result, NoiseLearnerResult)
    (layer,) = result.data
    assert layer.num_qubits == 2
    assert layer.error.generators.num_qubits == 2
    assert (np.asarray(layer.error.rates) > 0).all()


@pytest.mark.parametrize("mitigation", ["pec", "pea"])
def test_mitigation_with_the_learned_noise(noisy, mitigation):
    circuit = isa(bell(measured=False), noisy)
    estimator = Estimator(mode=noisy)
    resilience = estimator.options.resilience
    resilience.measure_mitigation = True
    if mitigation == "pec":
        resilience.pec_mitigation = True
    else:
        resilience.zne_mitigation = True
        resilience.zne.amplifier = "pea"
    layers = estimator.find_unique_layers([(circuit, observables(circuit, "ZZ"))])
    learned = NoiseLearnerV3(mode=noisy).run(layers).result()
    resilience.layer_noise_model = list(zip(layers, learned.to_pauli_lindblad_maps(), strict=True))
    data = estimator.run([(circuit, observables(circuit, "ZZ"))], precision=0.02).result()[0].data
    assert data.evs == pytest.approx([1], abs=0.03 + 5 * data.stds.max())


def test_calibrator_in_a_session(noisy):
    with Session(backend=noisy) as session:
        result = Calibrator(mode=session).run().result()
    assert result.start <= result.stop


@pytest.mark.parametrize("primitive", [SamplerV2, Sampler])
def test_dry_run(ideal, control, primitive):
    job = primitive(mode=ideal).run([isa(bell(), ideal)], shots=200, dry_run=True)
    assert set(job.result()[0].data.meas.get_counts()) == {"00", "01", "10", "11"}
    assert job.backend().name == "mock_ideal"
    assert control.usage()["usage_consumed_seconds"] == 0


def test_mock_backends_are_shown_on_request(service):
    assert not [backend for backend in service.backends() if backend.name.startswith("mock_")]
    assert {"mock_ideal", "mock_noisy"} <= {backend.name for backend in service.backends(include_mocks=True)}
