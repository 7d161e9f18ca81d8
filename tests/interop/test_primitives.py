"""SamplerV2 and EstimatorV2 of the official client, decoded by itself."""

import math

import numpy as np
import pytest
from qiskit.primitives import BitArray, PrimitiveResult, PubResult, SamplerPubResult
from qiskit_ibm_runtime import EstimatorV2, RuntimeJobFailureError, SamplerV2

from .circuits import bell, ghz, isa, observables, rotations, teleportation

# Five standard deviations: a right result passes whatever the seed.
SIGMAS = 5


def share(counts, *keys):
    return sum(counts.get(key, 0) for key in keys) / sum(counts.values())


def spread(shots, p=0.5):
    return SIGMAS * math.sqrt(p * (1 - p) / shots)


def test_bell_on_both_backends(ideal, noisy):
    counts = SamplerV2(mode=ideal).run([isa(bell(), ideal)], shots=4000).result()[0].data.meas.get_counts()
    assert set(counts) == {"00", "11"}
    assert share(counts, "00") == pytest.approx(0.5, abs=spread(4000))
    counts = SamplerV2(mode=noisy).run([isa(bell(), noisy)], shots=4000).result()[0].data.meas.get_counts()
    assert set(counts) == {"00", "01", "10", "11"}
    assert 0.94 < share(counts, "00", "11") < 0.99


def test_several_pubs_and_their_kinds(ideal):
    circuits = [isa(ghz(width), ideal) for width in (3, 9, 12)]
    result = SamplerV2(mode=ideal).run(circuits, shots=500).result()
    assert isinstance(result, PrimitiveResult)
    assert result.metadata["version"] == 2
    spans = result.metadata["execution"]["execution_spans"]
    assert [sorted(span.pub_idxs) for span in spans] == [[0], [1], [2]]
    assert [span.size for span in spans] == [500, 500, 500]
    assert spans.start <= spans.stop
    for pub, width in zip(result, (3, 9, 12), strict=True):
        assert isinstance(pub, SamplerPubResult)
        assert isinstance(pub.data.meas, BitArray)
        assert (pub.data.meas.num_bits, pub.data.meas.num_shots) == (width, 500)
        assert set(pub.data.meas.get_counts()) == {"0" * width, "1" * width}


def test_parameters_broadcast(ideal):
    values = np.array([[[0, 0], [math.pi, 0], [0, math.pi]], [[math.pi, math.pi], [0, 0], [math.pi, 0]]])
    pub = SamplerV2(mode=ideal).run([(isa(rotations(measured=True), ideal), values)], shots=20).result()[0]
    assert pub.data.shape == (2, 3)
    found = [[set(pub.data.meas.get_counts((row, column))) for column in range(3)] for row in range(2)]
    assert found == [[{"00"}, {"01"}, {"10"}], [{"11"}, {"00"}, {"01"}]]


def test_dynamic_circuit_with_two_registers(ideal):
    angle, shots = 1.0, 4000
    circuit = isa(teleportation(angle), ideal)
    data = SamplerV2(mode=ideal).run([circuit], shots=shots).result()[0].data
    expected = math.sin(angle / 2) ** 2
    assert share(data.received.get_counts(), "1") == pytest.approx(expected, abs=spread(shots, expected))
    for key in ("00", "01", "10", "11"):
        assert share(data.sent.get_counts(), key) == pytest.approx(0.25, abs=spread(shots, 0.25))


def test_options_are_accepted(ideal):
    sampler = SamplerV2(mode=ideal, options={"default_shots": 33})
    sampler.options.dynamical_decoupling.enable = True
    sampler.options.dynamical_decoupling.sequence_type = "XpXm"
    sampler.options.twirling.enable_gates = True
    sampler.options.execution.rep_delay = 0.00025
    assert sampler.run([isa(bell(), ideal)]).result()[0].data.meas.num_shots == 33
    estimator = EstimatorV2(mode=ideal, options={"default_precision": 0.05, "resilience_level": 2})
    estimator.options.resilience.zne.noise_factors = (1, 3, 5)
    estimator.options.resilience.zne.extrapolator = "linear"
    estimator.options.resilience.measure_mitigation = True
    circuit = isa(bell(measured=False), ideal)
    data = estimator.run([(circuit, observables(circuit, "ZZ"))]).result()[0].data
    assert data.evs == pytest.approx([1.0], abs=0.05)


def test_twirling_decides_the_shots_that_nothing_else_asks_for(ideal):
    sampler = SamplerV2(mode=ideal)
    sampler.options.twirling.enable_measure = True
    sampler.options.twirling.num_randomizations = 4
    sampler.options.twirling.shots_per_randomization = 25
    assert sampler.run([isa(bell(), ideal)]).result()[0].data.meas.num_shots == 100
    assert sampler.run([isa(bell(), ideal)], shots=7).result()[0].data.meas.num_shots == 7


@pytest.mark.parametrize("meas_type", ["kerneled", "avg_kerneled"])
def test_readout_points(ideal, meas_type):
    sampler = SamplerV2(mode=ideal)
    sampler.options.execution.meas_type = meas_type
    data = sampler.run([(isa(rotations(measured=True), ideal), [math.pi, 0])], shots=200).result()[0].data.meas
    assert data.shape == ((200, 2) if meas_type == "kerneled" else (2,))
    assert data.reshape(-1, 2).mean(axis=0) == pytest.approx([1, -1], abs=0.1)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_estimator_at_each_resilience_level(noisy, level):
    circuit = isa(bell(measured=False), noisy)
    estimator = EstimatorV2(mode=noisy, options={"resilience_level": level, "default_precision": 0.005})
    data = estimator.run([(circuit, observables(circuit, "ZZ"))]).result()[0].data
    # 1 % readout error on two qubits is visible without mitigation only.
    low, high = (0.93, 0.97) if level == 0 else (0.97, 1.0)
    assert low < data.evs[0] < high


def test_estimator_on_bell(ideal):
    circuit = isa(bell(measured=False), ideal)
    job = EstimatorV2(mode=ideal).run([(circuit, observables(circuit, "ZZ", "XX", "YY", "ZI"))], precision=0.01)
    (pub,) = job.result()
    assert isinstance(pub, PubResult)
    assert pub.data.evs == pytest.approx([1, 1, -1, 0], abs=0.01)
    assert pub.data.stds.shape == pub.data.ensemble_standard_error.shape == (4,)
    assert pub.metadata["target_precision"] == 0.01


def test_estimator_broadcasts_parameters_against_observables(ideal):
    circuit = isa(rotations(measured=False), ideal)
    angles = np.linspace(0, math.pi, 4)
    values = np.stack([angles, np.zeros(4)], axis=-1)
    columns = [[observable] for observable in observables(circuit, "IZ", "IY", "ZI")]
    pub = EstimatorV2(mode=ideal).run([(circuit, columns, values)], precision=0.02).result()[0]
    assert pub.data.evs.shape == (3, 4)
    expected = [np.cos(angles), -np.sin(angles), np.ones(4)]
    np.testing.assert_allclose(pub.data.evs, expected, atol=0.02)


def test_noise_lowers_expectation_values(noisy):
    circuit = isa(bell(measured=False), noisy)
    pub = EstimatorV2(mode=noisy).run([(circuit, observables(circuit, "ZZ"))], precision=0.005).result()[0]
    assert 0.95 < pub.data.evs[0] < 0.999


def test_a_failed_job_says_why(ideal, control):
    control.script_job(status="Failed", reason="The coupler warmed up.", reason_code=6054)
    job = SamplerV2(mode=ideal).run([isa(bell(), ideal)], shots=5)
    with pytest.raises(RuntimeJobFailureError, match=r"6054.*The coupler warmed up"):
        job.result()
    assert job.errored()
    assert "The coupler warmed up." in job.error_message()
