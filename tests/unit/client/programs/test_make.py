"""Dry runs and forms of circuits, as a checked submission knows them."""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import PauliList, SparsePauliOp
from samplomatic.quantum_program import CircuitItem, QuantumProgram

from prefect_qruntime.client.dialects import Cloud, Legacy
from prefect_qruntime.client.encodings.tensors import encode_tensor
from prefect_qruntime.client.inputs import check_isa
from prefect_qruntime.client.payload_check import differs_at_sight, shape
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Backend, Job, JobRef, JobStatus, mock_backend

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'


@pytest.mark.parametrize(
    ("backend", "mock"),
    [
        ("ibm_torino", "mock_torino"),
        ("ibm_new_york", "mock_new_york"),
        ("mock_torino", "mock_torino"),
        ("aer", "mock_aer"),
        ("odd_", "mock_odd_"),
    ],
)
def test_the_mock_backend_of_a_backend(backend: str, mock: str) -> None:
    assert mock_backend(backend) == mock


@pytest.mark.parametrize("backend", ["ibm_torino", Backend(name="ibm_torino")])
def test_a_dry_run_goes_to_the_mock_backend_and_is_another_work(backend: Any) -> None:
    real = make_spec([BELL], backend=backend)
    dry = make_spec([BELL], backend=backend, dry_run=True)
    assert (real.dry_run, dry.dry_run) == (False, True)
    assert Cloud().job_body(dry, (), None) == {**Cloud().job_body(real, (), None), "backend": "mock_torino"}
    assert dry.digest() != real.digest()
    assert shape(dry) != shape(real)


def test_what_names_a_mock_backend_is_a_dry_run_without_being_called_one() -> None:
    named = make_spec([BELL], backend="mock_torino")
    assert named == make_spec([BELL], backend="ibm_torino", dry_run=True)
    raw: dict[str, Any] = {"params": {"x": 1}, "program_id": "p"}
    assert make_spec(None, backend="mock_a", **raw).digest() == make_spec(None, backend="mock_b", **raw).digest()
    assert make_spec(None, backend="mock_a", **raw).digest() != make_spec(None, backend="ibm_a", **raw).digest()


@pytest.mark.parametrize(("backend", "found"), [("mock_a", "ibm_a"), ("ibm_a", "mock_a")])
def test_a_job_found_by_its_key_is_never_the_other_kind(backend: str, found: str) -> None:
    spec = make_spec([BELL], backend=backend)
    job = Job(id="j", status=JobStatus.COMPLETED, program_id="sampler", backend=found)
    assert "dry run" in (differs_at_sight(spec, job) or "")
    assert differs_at_sight(spec, job.model_copy(update={"backend": backend})) is None


def test_the_legacy_dialect_has_none() -> None:
    with pytest.raises(InvalidInput, match="dry_run: the legacy dialect has no mock backends"):
        Legacy().job_body(make_spec([BELL], backend="b_c", dry_run=True), (), None)


def test_handles_say_it() -> None:
    assert JobRef(id="j", backend="mock_a").dry_run
    assert not JobRef(id="j").dry_run
    assert Job(id="j", status=None, backend="mock_a").dry_run


@pytest.mark.parametrize("route", ["executor", "auto"])
def test_the_form_of_circuits_is_kept_until_the_executor_is_turned_to(route: str) -> None:
    from prefect_qruntime.client.programs.make import on_executor

    spec = make_spec([BELL], backend="b", route=route, circuit_form="qpy")
    program = on_executor(spec).prepared
    assert program is not None
    assert "b64_data" in program["quantum_program"]["circuits"]
    assert spec.digest() == make_spec([BELL], backend="b").digest(), "neither route nor form is part of the key"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"pubs": [BELL], "circuit_form": "qpy"}, 'route="executor"'),
        ({"pubs": [BELL], "circuit_form": "text", "route": "executor"}, "not 'text'"),
        ({"pubs": None, "params": {}, "program_id": "executor", "circuit_form": "qpy"}, "as they are"),
    ],
)
def test_a_form_without_effect_is_refused(given: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word) as caught:
        make_spec(backend="b", **given)
    assert caught.value.field == "circuit_form"


def test_dry_run_is_a_flag() -> None:
    with pytest.raises(InvalidInput, match="dry_run"):
        make_spec([BELL], backend="b", dry_run="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("program", "meant"),
    [("Sampler", "sampler"), ("SamplerV2", "sampler"), ("EstimatorV2", "estimator"), ("Estimators", "estimator")],
)
def test_a_misspelt_primitive_brings_the_right_name(program: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=f"not for '{program}'.*Did you mean '{meant}'") as caught:
        make_spec([BELL], backend="b", program_id=program)
    assert caught.value.field == "program_id"


ODD: list[Any] = [
    1j, "1", b"1", 10**400, float("nan"), Decimal("sNaN"), Parameter("x"), Parameter("x") + 1, SparsePauliOp("ZZ"),
    PauliList(["XX", "ZZ"]), np.array([]), np.array([0.1]), np.array([0.1, 0.2]), np.array(1j), np.complex128(0.1),
    np.array(None), np.array({"x": 1}), np.array("ZZ"), np.array(["ZZ", "XX"]), np.array([1, None]),
    np.ma.masked, np.ma.array([1.0, 2.0], mask=[False, True]), np.datetime64("2026-01-01"), np.timedelta64(1, "s"),
    np.zeros(1, dtype=[("a", float)]), {}, [], {"x": []}, object(), len, slice(1), ...,
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(ODD)))
def test_a_value_of_any_type_is_taken_or_refused(place: int) -> None:
    """Of a field in the wrong place, too: numpy and qiskit have errors of their own for a comparison."""
    odd = ODD[place]
    estimator = {"program_id": "estimator"}
    given: list[dict[str, Any]] = [
        {"pubs": odd},
        {"pubs": [odd]},
        *({"pubs": [[BELL, *parts]]} for parts in ([odd], [None, odd])),
        *({"pubs": [[BELL, *parts]], **estimator} for parts in ([odd], ["ZZ", odd], ["ZZ", None, odd])),
        *({"pubs": [(BELL, form)], **estimator} for form in ([odd], {"ZZ": odd})),
        *({"pubs": [(BELL, "ZZ")], **estimator, "options": {name: odd}} for name in ("precision", "resilience")),
        *({"pubs": [BELL], name: odd} for name in ("shots", "tags", "options", "private", "max_execution_time")),
        *({"pubs": [BELL], name: odd} for name in ("route", "circuit_form", "program_id", "dry_run", "params")),
    ]
    for fields in given:
        with suppress(InvalidInput):
            make_spec(backend="b", **fields).digest()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_an_argument_of_a_quantum_program_that_is_not_finite_is_refused(wrong: float) -> None:
    def params(item: dict[str, Any]) -> dict[str, Any]:
        first = {"item_type": "circuit", "circuit_arguments": encode_tensor([], (0,))}
        program = {"shots": 5, "items": [first, item], "passthrough_data": {"mine": encode_tensor([wrong], (1,))}}
        return {"schema_version": "v2.0", "quantum_program": program}

    given: dict[str, Any] = {"backend": "b", "program_id": "executor"}
    for name, path, argument in (
        ("circuit_arguments", "", lambda tensor: tensor),
        ("samplex_arguments", ".a", lambda tensor: {"b": 1, "a": tensor}),
    ):
        make_spec(None, params=params({name: argument(encode_tensor([0.0, 1e308], (2, 1)))}), **given)
        with pytest.raises(InvalidInput, match="infinity") as caught:
            make_spec(None, params=params({name: argument(encode_tensor([0.0, wrong], (2, 1)))}), **given)
        assert caught.value.field == f"params.quantum_program.items[1].{name}{path}"


NO_COUNTS: list[Any] = [
    None, 0, -1, 2**31, 2**40, 2**70, True, 2.5, 5.0, 1e308, float("nan"), "5", np.float64(5), np.bool_(True),
    np.array([5]), Decimal(5), Ellipsis,
    type("bool_", (), {"__index__": lambda _self: 1, "__repr__": lambda _self: "bool_"})(),
]  # fmt: skip


@pytest.mark.parametrize("wrong", NO_COUNTS, ids=repr)
def test_a_quantum_program_has_shots_by_the_rules_of_pubs(wrong: Any) -> None:
    """As an object and as raw params; what JSON cannot hold is refused as such."""
    measured = QuantumCircuit(1, 1)
    measured.measure(0, 0)
    item = CircuitItem(measured, chunk_size=wrong)
    given: list[tuple[str, dict[str, Any]]] = [
        ("shots", {"pubs": QuantumProgram(wrong, [CircuitItem(measured)])}),
        ("params.quantum_program.shots", _raw(shots=wrong)),
    ]
    if wrong is not None and not isinstance(wrong, str):  # both let the service choose
        given += [
            ("items[1].chunk_size", {"pubs": QuantumProgram(5, [CircuitItem(measured), item])}),
            ("params.quantum_program.items[0].chunk_size", _raw(shots=5, items=[{"chunk_size": wrong}])),
        ]
    for field, fields in given:
        with pytest.raises(InvalidInput) as caught:
            make_spec(backend="b", **fields)
        assert str(caught.value.field).startswith(field)


def _raw(**program: Any) -> dict[str, Any]:
    return {"pubs": None, "program_id": "executor", "params": {"quantum_program": program}}


@pytest.mark.parametrize("shots", [1, 2**31 - 1, np.int64(5), np.uint8(5)])
def test_a_quantum_program_takes_every_whole_number_of_shots(shots: Any) -> None:
    spec = make_spec(backend="b", **_raw(shots=shots, items=[{"chunk_size": shots}, {"chunk_size": "auto"}]))
    assert (spec.params or {})["quantum_program"]["shots"] == shots


def test_a_quantum_program_that_runs_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = QuantumCircuit(1)

    def program(*items: Any) -> dict[str, Any]:
        return {"pubs": QuantumProgram(5, items)}

    def raw(*shape: int, name: str = "circuit_arguments") -> dict[str, Any]:
        return _raw(shots=5, items=[{}, {name: {"shape": [*shape]} if name != "shape" else [*shape]}])

    for field, given in {
        "items": [program(), _raw(shots=5, items=[])],
        "items[0]": [program("x")],
        "items[0].circuit": [program(CircuitItem(silent))],
        "items[1].circuit_arguments": [raw(0, 1), raw(2, 0, 3), raw(0, 0)],
        "items[1].shape": [raw(0, name="shape"), raw(3, 0, 2, name="shape")],
    }.items():
        for fields in given:
            with pytest.raises(InvalidInput) as caught:
                make_spec(backend="b", **fields)
            assert str(caught.value.field).removeprefix("params.quantum_program.") == field
    # Points of no parameters, one point, and a circuit that is run for its timing.
    for points in ((4, 0), (0,), (1, 1)):
        make_spec(backend="b", **raw(*points))
    monkeypatch.setitem(sys.modules, "qiskit_ibm_runtime", None)
    with pytest.raises(InvalidInput, match="IBM's own client"):  # which alone could write it
        make_spec(backend="b", **program(CircuitItem(silent)), options={"scheduler_timing": True})


@pytest.mark.parametrize("program", [None, "x", {"items": None}, {"items": [None, {"circuit_arguments": 3}]}])
def test_a_quantum_program_that_is_none_goes_as_it_is(program: Any) -> None:
    params = {"quantum_program": program}
    assert make_spec(None, backend="b", program_id="executor", params=params).params == params


def nested(kind: str, levels: int = 3000) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if kind == "dict" else (value,) if kind == "tuple" else [value]
    return value


FLIPPED = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; BODY c[0] = measure q[0];'
MANY = 3000
DEEP_TEXTS = {
    "brackets": FLIPPED.replace("BODY", f"rz({'(' * MANY}1{')' * MANY}) q[0];"),
    "signs": FLIPPED.replace("BODY", f"rz({'-' * MANY}1) q[0];"),
    "blocks": FLIPPED.replace("BODY", f"{'if (c[0]) {' * MANY}x q[0];{'}' * MANY}"),
    "modifiers": FLIPPED.replace("BODY", f"{'inv @ ' * MANY}x q[0];"),
}


def deep_circuit(what: str) -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    circuit.x(0)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        for _ in range(400):
            outer = QuantumCircuit(1, 1)
            if what == "blocks":
                outer.if_test((outer.clbits[0], 1), circuit, [0], [0])
            else:
                outer.append(circuit.to_instruction(), [0], [0])
            circuit = outer
    finally:
        sys.setrecursionlimit(limit)
    circuit.measure(0, 0)
    return circuit


@pytest.mark.parametrize("route", ["service", "executor"])
@pytest.mark.parametrize("circuit", [*DEEP_TEXTS, "a circuit of blocks", "a circuit of instructions"])
def test_a_circuit_that_is_nested_deeply_is_taken_or_refused(circuit: str, route: str) -> None:
    given = DEEP_TEXTS.get(circuit) or deep_circuit(circuit.split()[-1])
    field = "pubs[0].circuit"
    try:
        spec = make_spec([given], backend="b", route=route)
        spec.digest()
        check_isa(spec, {"n_qubits": 5})
    except InvalidInput as error:
        field = error.field or ""
    assert field.startswith("pubs[0].circuit")


FIELDS = [
    *("pubs", "shots", "options", "params", "tags", "max_execution_time", "private", "route", "circuit_form"),
    *("dry_run", "program_id", "backend"),
]
PARTS = {field: (field, None) for field in FIELDS} | {f"pubs {place}": ("pubs", place) for place in range(3)}


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
@pytest.mark.parametrize("part", PARTS)
def test_what_is_nested_deeply_is_refused_by_name(part: str, kind: str) -> None:
    field, place = PARTS[part]
    given: dict[str, Any] = {"pubs": [FLIPPED.replace("BODY", "")], "backend": "b", field: nested(kind)}
    if field == "params":
        del given["pubs"]
    if place is not None:
        parts = [FLIPPED.replace("BODY", ""), None, None]
        parts[place] = nested(kind)
        given["pubs"] = [tuple(parts)]
    with pytest.raises(InvalidInput) as caught:
        make_spec(given.pop("pubs", None), **given)
    assert (caught.value.field or "").startswith(field)
    assert len(str(caught.value)) < 20_000
