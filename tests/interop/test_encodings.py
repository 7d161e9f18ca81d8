"""Whatever one side encodes, the other reads alike: generated cases through IBM's RuntimeEncoder and RuntimeDecoder."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime import RuntimeDecoder, RuntimeEncoder
from qiskit_ibm_runtime.execution_span import (
    DoubleSliceSpan,
    ExecutionSpans,
    SliceSpan,
    TwirledSliceSpan,
    TwirledSliceSpanV2,
)
from qiskit_ibm_runtime.results import EstimatorPubResult

from prefect_qruntime.client.dialects import v2_params
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.results.job_result import JobResult

from .test_decoders import same

FINITE = st.floats(-1e6, 1e6)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)


# --- submissions: ours written, theirs read ------------------------------------------------------------------


def official(params):
    """The params as they travel, read by IBM's decoder."""
    return json.loads(json.dumps(params), cls=RuntimeDecoder)


@st.composite
def circuits(draw, *, measured):
    """A circuit with named, counted and vector parameters, several registers, control flow and a composite."""
    qubits = draw(st.integers(1, 4))
    registers = [
        ClassicalRegister(draw(st.integers(1, 3)), name)
        for name in draw(st.lists(st.sampled_from(["c", "meas", "out", "b1"]), min_size=1, max_size=3, unique=True))
    ]
    circuit = QuantumCircuit(QuantumRegister(qubits, "q"), *registers)
    names = draw(st.lists(st.sampled_from(["a", "theta", "phi", "z9", "z10"]), max_size=4, unique=True))
    angles = [Parameter(name) for name in names]
    angles += list(ParameterVector("v", draw(st.sampled_from([0, 0, 2, 11]))))
    for place, angle in enumerate(draw(st.permutations(angles))):
        circuit.rx(draw(st.sampled_from([1, 0.5])) * angle, place % qubits)
    inner = QuantumCircuit(1, name="inner")
    inner.rz(draw(FINITE), 0)
    circuit.append(inner.to_gate(), [qubits - 1])
    if measured:
        for place, bit in enumerate(circuit.clbits):
            circuit.measure(place % qubits, bit)
        if draw(st.booleans()):
            with circuit.if_test((circuit.clbits[0], 1)):
                circuit.x(0)
    return circuit


@st.composite
def values(draw, circuit):
    """Parameter values in one of the forms qiskit takes, or None."""
    count = circuit.num_parameters
    if not count:
        return None
    shape = draw(SHAPES)
    array = draw(hnp.arrays(np.float64, (*shape, count), elements=FINITE))
    form = draw(st.sampled_from(["array", "list", "names", "together"]))
    if form == "array":
        return array
    if form == "list":
        return array.tolist()
    if form == "together":
        return {tuple(parameter.name for parameter in circuit.parameters): array}
    # With the axis of the parameter: without it a last axis of one point would be taken for that.
    return {parameter.name: array[..., [place]] for place, parameter in enumerate(circuit.parameters)}


def same_pub(sent, circuit, given):
    """The official decoder's PUB has the circuit and the bindings of what was given."""
    assert sent[0] == circuit
    expected = SamplerPub.coerce((circuit, given)) if circuit.num_clbits else EstimatorPub.coerce((circuit, "I", given))
    if given is None:
        assert len(sent) < 2 or sent[1] is None
        return
    assert isinstance(sent[1], np.ndarray)
    assert sent[1].dtype == np.float64
    found = SamplerPub.coerce((sent[0], sent[1])).parameter_values
    assert found.shape == expected.parameter_values.shape
    np.testing.assert_array_equal(
        found.as_array(sent[0].parameters), expected.parameter_values.as_array(circuit.parameters)
    )


@given(st.data())
def test_sampler_pubs_are_read_as_they_were_given(data):
    circuit = data.draw(circuits(measured=True))
    bound = data.draw(values(circuit))
    shots = data.draw(st.none() | st.integers(1, 10**6))
    params = official(v2_params(make_spec([(circuit, bound, shots)], backend="b")))
    assert params["support_qiskit"] is True
    (sent,) = params["pubs"]
    same_pub(sent, circuit, bound)
    assert (sent[2] if len(sent) > 2 else None) == shots
    # A PUB that qiskit has coerced is the same.
    pub = SamplerPub.coerce((circuit, bound, shots))
    again = official(v2_params(make_spec(pub, backend="b")))["pubs"][0]
    assert again[0] == sent[0]
    np.testing.assert_equal(again[1:], sent[1:])


@given(st.data())
def test_estimator_pubs_are_read_as_they_were_given(data):
    circuit = data.draw(circuits(measured=False))
    bound = data.draw(values(circuit))
    labels = st.text("IXYZ", min_size=circuit.num_qubits, max_size=circuit.num_qubits)
    count = data.draw(st.integers(1, 3))
    observable = SparsePauliOp.from_list(
        [(data.draw(labels), data.draw(st.floats(0.1, 5))) for _ in range(count)]
    ).simplify()
    precision = data.draw(st.none() | st.floats(1e-4, 1))
    spec = make_spec([(circuit, observable, bound, precision)], backend="b", program_id="estimator")
    (sent,) = official(v2_params(spec))["pubs"]
    same_pub([sent[0], *sent[2:3]], circuit, bound)
    theirs = EstimatorPub.coerce((circuit, observable, bound)).observables.tolist()
    assert EstimatorPub.coerce((sent[0], sent[1], bound)).observables.tolist() == pytest.approx(theirs)
    assert (sent[3] if len(sent) > 3 else None) == precision


# --- results: theirs written, ours read -----------------------------------------------------------------------


@st.composite
def bits(draw, shape, shots):
    width = draw(st.integers(1, 20) | st.sampled_from([31, 32, 33, 63, 64, 65, 127]))
    rows = draw(hnp.arrays(np.uint8, (*shape, shots, (width + 7) // 8)))
    if width % 8:
        rows[..., 0] &= (1 << width % 8) - 1
    return BitArray(rows, width)


MOMENTS = st.datetimes(
    datetime(2000, 1, 1),  # noqa: DTZ001 - the zone is drawn beside it
    datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30))]),
)
PLACES = st.integers(0, 1000)
SLICES = st.builds(slice, PLACES, PLACES)
SPAN_SHAPES = st.lists(st.integers(1, 50), min_size=2, max_size=4).map(tuple)


@st.composite
def spans(draw):
    kind, parts = draw(
        st.sampled_from(
            [
                (SliceSpan, (SPAN_SHAPES, SLICES)),
                (DoubleSliceSpan, (SPAN_SHAPES, SLICES, SLICES)),
                (TwirledSliceSpan, (SPAN_SHAPES, st.booleans(), SLICES, SLICES)),
                (TwirledSliceSpanV2, (SPAN_SHAPES, st.booleans(), SLICES, SLICES, PLACES)),
            ]
        )
    )
    return kind(draw(MOMENTS), draw(MOMENTS), draw(st.dictionaries(st.integers(0, 5), st.tuples(*parts), max_size=3)))


ARRAYS = st.sampled_from(["u1", "<i8", ">i4", "<f4", "<f8", "|b1", "<c16"]).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), SHAPES)
)
OBJECTS = st.lists(st.sampled_from(["linear", "exponential"]), max_size=3).map(
    lambda names: np.array(names, dtype=object)
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text(max_size=5)
    | st.complex_numbers(allow_nan=False, allow_infinity=False)
    | MOMENTS
    | st.sets(st.integers(-5, 5) | st.text(max_size=3), max_size=4)
    | ARRAYS
    | OBJECTS
    | st.sampled_from([np.array("linear", dtype=object), np.array(3, dtype=object)])
    | st.lists(spans(), max_size=3).map(ExecutionSpans)
)
METADATA = st.dictionaries(
    st.text("abc_", min_size=1, max_size=6),
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@st.composite
def sampler_results(draw):
    shape = draw(SHAPES)
    shots = draw(st.integers(1, 4))
    names = draw(st.lists(st.sampled_from(["c", "meas", "out", "b1"]), min_size=1, max_size=3, unique=True))
    data = DataBin(**{name: draw(bits(shape, shots)) for name in names}, shape=shape)
    return SamplerPubResult(data, metadata=draw(METADATA))


@st.composite
def kerneled_results(draw):
    shape = draw(SHAPES)
    kept = (*shape, *draw(SHAPES))
    data = DataBin(c=draw(hnp.arrays(np.complex128, kept)), shape=shape)
    return SamplerPubResult(data, metadata=draw(METADATA))


@st.composite
def estimator_results(draw):
    shape = draw(SHAPES)
    evs, stds = (draw(hnp.arrays(np.float64, shape)) for _ in range(2))
    more = {"evs_noise_factors": draw(hnp.arrays(np.float64, (*shape, 3)))} if draw(st.booleans()) else {}
    kind = draw(st.sampled_from([PubResult, EstimatorPubResult]))
    return kind(DataBin(evs=evs, stds=stds, **more, shape=shape), metadata=draw(METADATA))


RESULTS = st.builds(
    lambda pubs, metadata: PrimitiveResult(pubs, metadata=metadata),
    st.lists(sampler_results() | kerneled_results() | estimator_results(), max_size=3),
    METADATA,
)


@given(RESULTS)
def test_results_are_read_as_ibms_decoder_reads_them(result):
    body = json.dumps(result, cls=RuntimeEncoder)
    theirs = json.loads(body, cls=RuntimeDecoder)
    ours = JobResult.from_body(body, job_id="d1")
    same(ours.to_primitive_result(), theirs)
    for place, pub in enumerate(theirs):
        assert ours.shape(place) == pub.data.shape
        for name, field in pub.data.items():
            if isinstance(field, BitArray):
                point = (0,) * field.ndim
                one = field[point] if point else field
                assert ours.counts(place, name, index=point or None) == one.get_counts()
                assert ours.memory(place, name, index=point or None) == one.get_bitstrings()
        if "evs" in pub.data:
            np.testing.assert_array_equal(np.array(ours.expectation_values(place)), pub.data.evs)


def test_spans_are_of_ibms_classes():
    at = datetime(2026, 1, 2, tzinfo=UTC)
    found = ExecutionSpans([SliceSpan(at, at, {0: ((2, 50), slice(0, 100))})])
    body = json.dumps(PrimitiveResult([], metadata={"execution": {"execution_spans": found}}), cls=RuntimeEncoder)
    read = JobResult.from_body(body, job_id="d1").to_primitive_result().metadata["execution"]["execution_spans"]
    assert read == found
    assert read[0].mask(0).sum() == math.prod((2, 50))
