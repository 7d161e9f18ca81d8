"""The official decoder and ours read the same bodies alike; the client's lowest layer carries plain JSON too."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from qiskit import qasm3
from qiskit.primitives import BitArray
from qiskit_ibm_runtime import EstimatorV2, SamplerV2
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

from prefect_qruntime.client.results.job_result import JobResult

from .circuits import bell, isa, observables, rotations, teleportation


def same(ours, theirs):
    """Compare two `PrimitiveResult`s field by field, types included."""
    assert type(ours) is type(theirs)
    equal(ours.metadata, theirs.metadata)
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        assert type(mine) is type(yours)
        equal(mine.metadata, yours.metadata)
        assert mine.data.shape == yours.data.shape
        assert list(mine.data) == list(yours.data)
        for name in mine.data:
            one, other = mine.data[name], yours.data[name]
            if isinstance(other, BitArray):
                assert one == other
            else:
                equal(one, other)


def equal(ours, theirs):
    """Compare decoded values: types, and arrays with their shapes."""
    if isinstance(theirs, np.ndarray | np.generic):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            equal(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            equal(one, other)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs or (ours != ours and theirs != theirs)


ANGLES = [[0.1, 0.2], [1.0, 2.0], [math.pi, 0.0]]


def sampler_pubs(backend):
    return [
        (isa(bell(), backend), None, 100),
        (isa(rotations(measured=True), backend), np.array([ANGLES, ANGLES]), 100),
        (isa(teleportation(1.0), backend), None, 100),
    ]


def estimator_pubs(backend):
    state, turned = isa(bell(measured=False), backend), isa(rotations(measured=False), backend)
    return [
        (state, observables(state, "ZZ")[0]),
        (turned, [[one] for one in observables(turned, "IZ", "XX")], np.array(ANGLES)),
    ]


@pytest.mark.parametrize("name", ["sandbox_ideal", "sandbox_noisy"])
@pytest.mark.parametrize(("primitive", "pubs"), [(SamplerV2, sampler_pubs), (EstimatorV2, estimator_pubs)])
def test_encoded_bodies(service, transport, name, primitive, pubs):
    backend = service.backend(name)
    job = primitive(mode=backend).run(pubs(backend))
    theirs = job.result()
    body = transport().job_results(job.job_id())
    same(JobResult.from_body(body, job_id=job.job_id()).to_primitive_result(), theirs)


def submit_plain(client, control, program, pubs):
    answer = client.program_run(program, "sandbox_ideal", {"pubs": pubs, "version": 2}, None, None, None)
    control.wait_job(answer["id"])
    return client.job_results(answer["id"])


def plain(pub):
    """Return a PUB of Qiskit objects as text and numbers."""
    circuit, *rest = pub
    return [qasm3.dumps(circuit), *(_plain(part) for part in rest)]


def _plain(part):
    if hasattr(part, "to_list"):
        return {label: coeff.real for label, coeff in part.to_list()}
    if isinstance(part, np.ndarray):
        return part.tolist()
    return [_plain(one) for one in part] if isinstance(part, list) else part


@pytest.mark.parametrize(
    ("primitive", "program", "pubs"),
    [(SamplerV2, "sampler", sampler_pubs), (EstimatorV2, "estimator", estimator_pubs)],
)
def test_plain_bodies_hold_the_same(qruntime_sandbox, transport, control, ideal, primitive, program, pubs):
    """The same PUBs as text, in the same place of a seeded sandbox: ours of plain is theirs of encoded."""
    made = pubs(ideal)
    theirs = primitive(mode=ideal).run(made).result()
    # Only encoded bodies say when what ran.
    assert ("execution" in theirs.metadata) is (program == "sampler")
    theirs.metadata.pop("execution", None)
    qruntime_sandbox.reset()
    body = submit_plain(transport(), control, program, [plain(pub) for pub in made])
    decoded = ResultDecoder.decode(body)
    assert decoded == json.loads(body)
    ours = JobResult.from_body(body, job_id="d1")
    assert ours.raw == decoded
    same(ours.to_primitive_result(), theirs)


def test_counts_and_values_agree(ideal, transport):
    client = transport()
    job = SamplerV2(mode=ideal).run(sampler_pubs(ideal))
    theirs, ours = job.result(), JobResult.from_body(client.job_results(job.job_id()), job_id="d1")
    assert ours.counts() == theirs[0].data.meas.get_counts()
    assert ours.counts(2, "sent") == theirs[2].data.sent.get_counts()
    job = EstimatorV2(mode=ideal).run(estimator_pubs(ideal))
    theirs, ours = job.result(), JobResult.from_body(client.job_results(job.job_id()), job_id="d1")
    assert ours.expectation_values() == theirs[0].data.evs
    assert np.array_equal(ours.expectation_values(1), theirs[1].data.evs)
    assert np.array_equal(ours.standard_errors(1), theirs[1].data.stds)
