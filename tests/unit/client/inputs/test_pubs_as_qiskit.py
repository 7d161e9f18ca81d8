"""The local checks take and refuse what qiskit's own PUBs take and refuse, as the service builds those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import Delay, Duration, Parameter
from qiskit.circuit.classical import expr
from qiskit.circuit.library import Isometry, QFTGate, StatePreparation, UnitaryGate, XGate
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import PauliList, SparsePauliOp
from qiskit.utils import optionals

from prefect_qruntime.client.inputs import check_isa, transpile_pubs
from prefect_qruntime.client.inputs.meaning import identity_of
from prefect_qruntime.client.inputs.pub_values import check_observables, shape_of
from prefect_qruntime.client.inputs.pubs import load_qpy
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

ROTATION = 'OPENQASM 3.0; include "stdgates.inc"; input float[64] t; qubit[1] q; ry(t) q[0];'
SAMPLED = ROTATION + " bit[1] c; c = measure q;"
BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; c = measure q;'

coefficients = st.sampled_from([0.0, 1.0, -1.0, 1e-8, -1e-8, 9e-9, 1.1e-8, 1e-12, 0.5, -0.5])
operators = st.lists(st.tuples(st.sampled_from(["ZZ", "XX", "IZ"]), coefficients), min_size=1, max_size=4)


@given(st.lists(operators, min_size=1, max_size=3))
@settings(deadline=None)
def test_zero_observables_are_refused_where_qiskit_refuses_them(terms: list[list[tuple[str, float]]]) -> None:
    written = [SparsePauliOp.from_list(operator) for operator in terms]
    try:
        ObservablesArray.coerce(written)
        refused = False
    except ValueError:
        refused = True
    if not refused:
        check_observables(written, 2, field="observables")
        return
    with pytest.raises(InvalidInput, match="is zero") as caught:
        check_observables(written, 2, field="observables")
    place = int(str(caught.value.field).removeprefix("observables[").removesuffix("]"))
    with pytest.raises(ValueError, match="Empty"):
        ObservablesArray.coerce(written[place])


@pytest.mark.parametrize("value", [{"ZZ": 0}, {"ZZ": 1e-8, "XX": -1e-9}, ["ZZ", {"XX": 0.0}], [["ZZ"], [{"ZZ": 0}]]])
def test_zero_observables_without_qiskit(value: Any) -> None:
    with pytest.raises(InvalidInput, match="is zero"):
        check_observables(value, 2, field="x")
    assert check_observables({"ZZ": 0.0, "XX": 1.1e-8}, 2, field="x")


def test_a_pauli_list_is_a_list_of_observables() -> None:
    assert check_observables(PauliList(["ZZ", "-XX"]), 2, field="x") == ["ZZ", {"XX": -1.0}]
    with pytest.raises(InvalidInput, match="not Hermitian"):
        check_observables(PauliList(["iZZ"]), 2, field="x")


shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@given(shapes)
@settings(deadline=None)
def test_pub_objects_without_parameters_keep_their_shape(shape: tuple[int, ...]) -> None:
    circuit = QuantumCircuit(1)
    circuit.measure_all()
    values = BindingsArray({}, shape=shape)
    forms = [SamplerPub(circuit, values, 10), (circuit, values, 10)]
    specs = [make_spec([form], backend="b") for form in forms]
    text = make_spec([(BELL, values, 10)], backend="b")
    for spec in (*specs, text):
        found = spec.pubs[0].parameters
        assert (() if found is None else shape_of(found, field="x")) == ((*shape, 0) if shape else ())
    assert specs[0].digest() == specs[1].digest()
    bare = circuit.remove_final_measurements(inplace=False)
    assert bare is not None
    pub = EstimatorPub.coerce((bare, ObservablesArray(np.full(shape, "Z")), values))
    kept = make_spec([pub], backend="b", program_id="estimator").pubs[0].parameters
    assert (() if kept is None else shape_of(kept, field="x")) == ((*shape, 0) if shape else ())


@given(shapes, st.integers(1, 3))
@settings(deadline=None)
def test_a_bindings_array_means_the_same_for_text_as_by_name(shape: tuple[int, ...], count: int) -> None:
    names = [f"t{number}" for number in range(count)]
    text = "OPENQASM 3.0; " + "".join(f"input float[64] {name}; " for name in names) + "qubit[1] q;"
    values = np.arange(count * int(np.prod(shape)), dtype=float).reshape(*shape, count)
    array = BindingsArray({tuple(names): values})
    named = {name: values[..., place].tolist() for place, name in enumerate(names)}
    first, second = (make_spec([(text, "Z", form)], backend="b", program_id="estimator") for form in (array, named))
    for name in names:
        found, wanted = (np.array(spec.pubs[0].parameters[name]) for spec in (first, second))
        assert np.array_equal(found.reshape(shape), wanted.reshape(shape))


def test_a_scalar_is_the_value_of_the_only_parameter() -> None:
    circuit = QuantumCircuit(1)
    circuit.ry(Parameter("t"), 0)
    assert EstimatorPub.coerce((circuit, "Z", 0.3)).shape == ()
    for form in (circuit, ROTATION, qasm3.dumps(circuit)):
        one, other = (make_spec([(form, "Z", value)], backend="b", program_id="estimator") for value in (0.3, [0.3]))
        assert one.digest() == other.digest()
    assert make_spec([(SAMPLED, np.float64(0.3))], backend="b").pubs[0].parameters == [0.3]


@pytest.mark.parametrize(
    ("field", "pubs", "options"),
    [
        ("pubs[0].precision", [(ROTATION, "Z", [0.1], 1e-7)], None),
        ("pubs[0].precision", [(ROTATION, "Z", [0.1], 5e-324)], None),
        ("options.precision", [(ROTATION, "Z", [0.1])], {"precision": 1e-6}),
        ("options.default_precision", [(ROTATION, "Z", [0.1])], {"default_precision": 1e-9}),
    ],
)
def test_a_precision_that_no_shots_reach_is_named(field: str, pubs: Any, options: Any) -> None:
    with pytest.raises(InvalidInput, match="too small") as caught:
        make_spec(pubs, backend="b", program_id="estimator", options=options)
    assert caught.value.field == field
    make_spec([(ROTATION, "Z", [0.1], 2.2e-5)], backend="b", program_id="estimator")


@pytest.mark.parametrize(
    ("field", "pubs", "more"),
    [
        ("shots", [BELL], {"shots": 1001}),
        ("pubs[1].shots", [(BELL, None, 1000), (BELL, None, 1001)], {}),
        ("options.default_shots", [BELL], {"options": {"default_shots": 1001}}),
        (None, [BELL], {"shots": 1000}),
        (None, [(BELL, None, 10)], {"shots": 1001}),
        (None, [BELL], {}),
        (None, [BELL], {"shots": 10, "options": {"default_shots": 1001}}),
    ],
)
def test_more_shots_than_the_backend_runs(field: str | None, pubs: Any, more: dict[str, Any]) -> None:
    spec = make_spec(pubs, backend="b", **more)
    if field is None:
        check_isa(spec, {"max_shots": 1000})
        return
    with pytest.raises(InvalidInput, match="1001 shots, but the backend runs at most 1000") as caught:
        check_isa(spec, {"max_shots": 1000})
    assert caught.value.field == field
    check_isa(spec, {})


@pytest.mark.parametrize(
    ("field", "precision", "more"),
    [
        ("pubs[0].precision", 0.01, {}),
        ("options.precision", None, {"options": {"precision": 0.01, "default_shots": 5}}),
        ("options.default_precision", None, {"options": {"default_precision": 0.01}}),
        ("options.default_precision", None, {}),
        ("options.default_shots", None, {"shots": 5, "options": {"default_shots": 1001}}),
        ("shots", None, {"shots": 1001}),
        (None, 0.1, {"shots": 1001}),
        (None, None, {"options": {"precision": 0.1, "default_shots": 1001}}),
    ],
)
def test_more_shots_for_a_precision_than_the_backend_runs_at_once(
    field: str | None, precision: float | None, more: dict[str, Any]
) -> None:
    pubs = [(ROTATION, "Z", [0.1], precision)]
    spec = make_spec(pubs, backend="b", program_id="estimator", route="executor", **more)
    if field is None:
        check_isa(spec, {"max_shots": 1000})
        return
    with pytest.raises(InvalidInput, match="shots, but the backend runs at most 1000") as caught:
        check_isa(spec, {"max_shots": 1000})
    assert caught.value.field == field


def _with(operation: Any, where: str) -> QuantumCircuit:
    circuit = QuantumCircuit(2, 1)
    wires = list(range(operation.num_qubits))
    if where == "block":
        with circuit.if_test((circuit.clbits[0], 1)):
            circuit.append(operation, wires)
    elif where == "composite":
        inner = QuantumCircuit(2)
        inner.append(operation, wires)
        circuit.append(inner.to_instruction(), [0, 1])
    else:
        circuit.append(operation, wires)
    circuit.measure(0, 0)
    return circuit


NOT_KEPT = {
    **{f"delay in {unit}": Delay(10, unit) for unit in ("s", "ms", "us", "ns", "ps")},
    "inverse state preparation": StatePreparation([0, 1]).inverse(),
    "isometry": Isometry(np.eye(4)[:, :2], 0, 0),
}
KEPT = {
    "delay in dt": Delay(10, "dt"),
    "duration": Delay(expr.lift(Duration.us(10))),
    "state preparation": StatePreparation([0, 1]),
    "matrix": UnitaryGate(np.diag([1, 1j])),
    "controlled by zero": XGate().control(ctrl_state=0),
    "composite": QFTGate(2),
}


@pytest.mark.parametrize("where", ["", "block", "composite"])
@pytest.mark.parametrize("name", [*NOT_KEPT, *KEPT])
def test_no_circuit_is_sent_that_is_read_as_another(name: str, where: str) -> None:
    """QPY loses the unit of a delay, and more: the job would compute something else, or fail after it was queued."""
    circuit = _with({**NOT_KEPT, **KEPT}[name], where)
    if name in NOT_KEPT:
        for route in ("service", "executor"):
            with pytest.raises(InvalidInput, match="QPY") as caught:
                make_spec([circuit], backend="b", route=route)
            assert caught.value.field == "pubs[0].circuit"
        return
    [pub] = make_spec([circuit], backend="b").pubs
    assert isinstance(pub.circuit, dict)
    assert identity_of(load_qpy(pub.circuit, field=""), b"") == pub.identity


def test_text_with_a_delay_goes_as_text_only() -> None:
    text = 'OPENQASM 3.0; include "stdgates.inc"; qubit q; bit[1] c; x q; delay[10us] q; c[0] = measure q;'
    assert (
        "delay[10us]"
        in make_spec([text], backend="b", route="executor").prepared["quantum_program"]["circuits"]["data"][0]
    )
    with pytest.raises(InvalidInput, match="a delay in us"):
        make_spec([text], backend="b", route="executor", circuit_form="qpy")
    # Transpiled for the backend it has the backend's own unit.
    configuration = {"n_qubits": 1, "basis_gates": ["x", "rz", "sx"], "dt": 0.5}
    [(circuit,)] = transpile_pubs([text], configuration)
    assert [(item.operation.duration, item.operation.unit) for item in circuit.data if item.name == "delay"] == [
        (20_000, "dt")
    ]
    make_spec([circuit], backend="b")


@pytest.mark.parametrize("how", ["transpile", "qpy"])
def test_where_qiskit_lacks_its_reader_of_openqasm_3_the_extra_is_named(how: str) -> None:
    def reads(text: str) -> object:
        if how == "transpile":
            return transpile_pubs([text], {"n_qubits": 2, "basis_gates": ["rz", "sx", "cz"]})
        return make_spec([text], backend="b", route="executor", circuit_form="qpy")

    version_2 = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; h q[0]; measure q -> c;'
    with optionals.HAS_QASM3_IMPORT.disable_locally():
        with pytest.raises(InvalidInput, match=r"pip install 'prefect-qruntime\[qiskit\]'") as caught:
            reads(BELL)
        assert reads(version_2)
    assert caught.value.field == "pubs[0].circuit"
