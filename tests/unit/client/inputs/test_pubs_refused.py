"""Every wrong input is refused before anything is sent, and the field is named."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path
from typing import Any
from zlib import compress

import numpy
import pytest
from qiskit import QuantumCircuit, qpy

from prefect_qruntime.client.inputs import spec as spec_module
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'
ONE = "OPENQASM 3.0; input float[64] theta; qubit q; bit c; rx(theta) q; c = measure q;"
TWO = "OPENQASM 3.0; input float[64] a; input angle b; qubit[2] q; bit[2] c; rx(a) q[0]; c = measure q;"
NAN, INF = float("nan"), float("inf")

SAMPLER: list[tuple[str, Any, dict[str, Any]]] = [
    ("pubs", [], {}),
    ("pubs", None, {}),
    ("pubs", 7, {}),
    ("pubs[1]", [(BELL,), 7], {}),
    ("pubs[0]", [()], {}),
    ("pubs[0]", [(BELL, None, 100, 1)], {}),
    ("pubs[0].circuit", "", {}),
    ("pubs[0].circuit", "   \n", {}),
    ("pubs[0].circuit", "bell.qasm", {}),
    ("pubs[0].circuit", 'include "qelib1.inc"; qreg q[1]; creg c[1]; measure q -> c;', {}),
    ("pubs[0].circuit", "OPENQASM 4.0; bit c; c = measure $0;", {}),
    ("pubs[0].circuit", "OPENQASM 3.0; qubit q; h q;", {}),
    ("pubs[0].circuit", "OPENQASM 3.0; qubit q; bit c; h q;", {}),
    ("pubs[0].circuit", "OPENQASM 3.0; bit c; // \ud800\n c = measure $0;", {}),
    ("pubs[2].circuit", [BELL, BELL, (3.0, None)], {}),
    ("pubs[0].circuit", Path("/no/such/file.qasm"), {}),
    ("pubs[0].circuit", Path("/"), {}),
    ("pubs[0].circuit", "file:/no/such/file.qasm", {}),
    ("pubs[0].circuit", "file:", {}),
    ("pubs[0].circuit", "file://elsewhere.example/bell.qasm", {}),
    ("pubs[0].circuit", "file:/x\0y", {}),
    ("pubs[0].circuit", "file:/etc/hostname", {}),
    ("pubs[0]", [{"__type__": "Instruction", "__value__": "x"}, BELL], {}),
    ("pubs[0].parameters", [(ONE,)], {}),
    ("pubs[0].parameters", [(TWO, [1.0])], {}),
    ("pubs[0].parameters", [(TWO, [[1.0, 2.0, 3.0]])], {}),
    ("pubs[0].parameters", [(BELL, [1.0])], {}),
    ("pubs[0].parameters", [(TWO, 1.0)], {}),
    ("pubs[0].parameters", [(ONE, [[]])], {}),
    ("pubs[0].parameters[1]", [(TWO, [1.0, "x"])], {}),
    ("pubs[0].parameters[1]", [(TWO, [1.0, NAN])], {}),
    ("pubs[0].parameters[0]", [(TWO, [INF, 1.0])], {}),
    ("pubs[0].parameters[0]", [(TWO, [True, 1.0])], {}),
    ("pubs[0].parameters[0]", [(TWO, [1j, 1.0])], {}),
    ("pubs[0].parameters[0]", [(TWO, [10**400, 1.0])], {}),
    ("pubs[0].parameters[1]", [(TWO, [[1.0, 2.0], [1.0]])], {}),
    ("pubs[0].parameters[0][1]", [(TWO, [[1.0, None], [1.0, 2.0]])], {}),
    ("pubs[0].parameters.alpha", [(TWO, {"alpha": 1.0, "b": 2.0})], {}),
    ("pubs[0].parameters", [(TWO, {"a": 1.0})], {}),
    ("pubs[0].parameters.a[0]", [(TWO, {"a": [NAN], "b": 2.0})], {}),
    ("pubs[0].parameters", [(TWO, {3: 1.0, "b": 2.0})], {}),
    ("pubs[0].parameters.b", [(TWO, {"a": [1, 2, 3], "b": [1, 2]})], {}),
    ("pubs[0].parameters.b", [(TWO, {"a": [1, 2, 3], "b": 1})], {}),
    ("pubs[0].parameters", [(TWO.replace(" b;", " A;"), [1, 2])], {}),
    ("pubs[0].parameters.a,b", [(TWO, {("a", "b"): [1.0, 2.0, 3.0]})], {}),
    ("pubs[0].parameters", [(TWO, {(): [1.0], "a": 1.0, "b": 2.0})], {}),
    ("pubs[0].parameters", [(TWO, {(): []})], {}),
    ("pubs[0].shots", [(BELL, None, 0)], {}),
    ("pubs[0].shots", [(BELL, None, -5)], {}),
    ("pubs[0].shots", [(BELL, None, True)], {}),
    ("pubs[0].shots", [(BELL, None, 10.0)], {}),
    ("pubs[0].shots", [(BELL, None, "10")], {}),
    ("shots", BELL, {"shots": 0}),
    ("shots", BELL, {"shots": True}),
    ("shots", BELL, {"shots": 2**31}),
    ("backend", BELL, {"backend": ""}),
    ("backend", BELL, {"backend": "../jobs"}),
    ("backend", BELL, {"backend": "ibm\r\nX-Evil: 1"}),
    ("backend", BELL, {"backend": "x" * 65}),
    ("backend", BELL, {"backend": "ibm_a\n"}),
    ("backend", BELL, {"backend": None}),
    ("program_id", BELL, {"program_id": "sampler?x=1"}),
    ("program_id", BELL, {"program_id": "noise-learner"}),
    ("tags", BELL, {"tags": "mine"}),
    ("tags[1]", BELL, {"tags": ["a", 3]}),
    ("tags[0]", BELL, {"tags": [""]}),
    ("tags[0]", BELL, {"tags": ["x" * 87]}),
    ("tags[0]", BELL, {"tags": ["a\nb"]}),
    ("tags[0]", BELL, {"tags": ["qr-key:0"]}),
    ("tags[0]", BELL, {"tags": ["qr-flow:0"]}),
    ("tags[6]", BELL, {"tags": [str(number) for number in range(9)]}),
    ("max_execution_time", BELL, {"max_execution_time": 0}),
    ("max_execution_time", BELL, {"max_execution_time": 10_801}),
    ("max_execution_time", BELL, {"max_execution_time": True}),
    ("max_execution_time", BELL, {"max_execution_time": 1.5}),
    ("private", BELL, {"private": 1}),
    ("private", BELL, {"private": "no"}),
    ("options", BELL, {"options": [1]}),
    ("options.twirlin", BELL, {"options": {"twirlin": {}}}),
    ("options.twirling", BELL, {"options": {"twirling": True}}),
    ("options.twirling.strategy", BELL, {"options": {"twirling": {"strategy": "most"}}}),
    ("options.twirling.strateg", BELL, {"options": {"twirling": {"strateg": "all"}}}),
    ("options.twirling.num_randomizations", BELL, {"options": {"twirling": {"num_randomizations": 0}}}),
    ("options.twirling.enable_gates", BELL, {"options": {"twirling": {"enable_gates": 1}}}),
    ("options.default_shots", BELL, {"options": {"default_shots": -1}}),
    ("options.default_shots", BELL, {"options": {"default_shots": True}}),
    ("options.execution.meas_type", BELL, {"options": {"execution": {"meas_type": "raw"}}}),
    ("options.execution.rep_delay", BELL, {"options": {"execution": {"rep_delay": NAN}}}),
    ("options.resilience_level", BELL, {"options": {"resilience_level": 1}}),
    ("options.experimental.x", BELL, {"options": {"experimental": {"x": object()}}}),
    ("options.simulator.seed_simulator", BELL, {"options": {"simulator": {"seed_simulator": "1"}}}),
    ("pubs", BELL, {"params": {"pubs": []}}),
    ("shots", None, {"params": {"a": 1}, "shots": 3}),
    ("options", None, {"params": {"a": 1}, "options": {"b": 1}}),
    ("params", None, {"params": [1]}),
    ("params.a.b", None, {"params": {"a": {"b": {1, 2}}}}),
    ("params.a[1]", None, {"params": {"a": [1, NAN]}}),
    ("params.a", None, {"params": {"a": 2**64}}),
    ("params.a", None, {"params": {"a": "\udfff"}}),
    ("params", None, {"params": {1: 2}}),
]

ESTIMATOR: list[tuple[str, Any, dict[str, Any]]] = [
    ("pubs[0].observables", BELL, {}),
    ("pubs[0].observables", [(BELL,)], {}),
    ("pubs[0].observables", [(BELL, None)], {}),
    ("pubs[0].observables", [(BELL, [])], {}),
    ("pubs[0].observables", [(BELL, {})], {}),
    ("pubs[0].observables", [(BELL, "")], {}),
    ("pubs[0].observables", [(BELL, "zz")], {}),
    ("pubs[0].observables", [(BELL, "ZA")], {}),
    ("pubs[0].observables", [(BELL, "ZZZ")], {}),
    ("pubs[0].observables", [(BELL, ["ZZ", "Z"])], {}),
    ("pubs[0].observables", [(BELL, ["ZZ", ["XX"]])], {}),
    ("pubs[0].observables[1]", [(BELL, ["ZZ", 3])], {}),
    ("pubs[0].observables.ZZ", [(BELL, {"ZZ": 1j})], {}),
    ("pubs[0].observables.ZZ", [(BELL, {"ZZ": NAN})], {}),
    ("pubs[0].observables.ZZ", [(BELL, {"ZZ": "1"})], {}),
    ("pubs[0].observables", [(BELL, {5: 1.0})], {}),
    ("pubs[0].observables", [(TWO, ["ZZ", "XX"], [[1, 2]] * 3)], {}),
    ("pubs[0].precision", [(BELL, "ZZ", None, 0)], {}),
    ("pubs[0].precision", [(BELL, "ZZ", None, NAN)], {}),
    ("pubs[0].precision", [(BELL, "ZZ", None, True)], {}),
    ("pubs[0].precision", [(BELL, "ZZ", None, "0.1")], {}),
    ("pubs[0]", [(BELL, "ZZ", None, 0.1, 5)], {}),
    ("options.resilience_level", (BELL, "ZZ"), {"options": {"resilience_level": 3}}),
    ("options.precision", (BELL, "ZZ"), {"options": {"precision": 0}}),
    ("options.default_precision", (BELL, "ZZ"), {"options": {"default_precision": 0.0}}),
    ("options.execution.meas_type", (BELL, "ZZ"), {"options": {"execution": {"meas_type": "classified"}}}),
    ("options.resilience.zne.amplifier", (BELL, "ZZ"), {"options": {"resilience": {"zne": {"amplifier": "x"}}}}),
    (
        "options.resilience.zne.extrapolator",
        (BELL, "ZZ"),
        {"options": {"resilience": {"zne": {"extrapolator": ["linear", "cubic"]}}}},
    ),
    ("options.resilience.pec.noise_gain", (BELL, "ZZ"), {"options": {"resilience": {"pec": {"noise_gain": -1}}}}),
]


def _refused(pubs: Any, **given: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        make_spec(pubs, **{"backend": "ibm_torino", **given})
    return caught.value


@pytest.mark.parametrize(("field", "pubs", "given"), SAMPLER, ids=[f"{n}-{c[0]}" for n, c in enumerate(SAMPLER)])
def test_sampler(field: str, pubs: Any, given: dict[str, Any]) -> None:
    error = _refused(pubs, **given)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")


@pytest.mark.parametrize(("field", "pubs", "given"), ESTIMATOR, ids=[f"{n}-{c[0]}" for n, c in enumerate(ESTIMATOR)])
def test_estimator(field: str, pubs: Any, given: dict[str, Any]) -> None:
    assert _refused(pubs, program_id="estimator", **given).field == field


def test_hints_name_what_was_meant() -> None:
    assert "'strategy'" in str(_refused(BELL, options={"twirling": {"strateg": "all"}}))
    assert "shots=" in str(_refused(BELL, options={"shots": 5}))
    assert "'theta'" in str(_refused([(ONE, {"tetha": 1.0})]))
    assert "pathlib.Path" in str(_refused("bell.qasm"))
    for name, program, said in (
        ("seed_estimator", "sampler", "It belongs to options of the estimator."),
        ("resilience_level", "sampler", "It belongs to options of the estimator."),
        ("zne", "sampler", "It belongs to options.resilience of the estimator."),
        ("zne_mitigation", "estimator", "It belongs to options.resilience."),
        ("meas_type", "sampler", "It belongs to options.execution."),
        ("meas_type", "estimator", "It belongs to options.execution of the sampler."),
        ("strategy", "estimator", "It belongs to options.twirling."),
    ):
        pubs = BELL if program == "sampler" else (BELL, "ZZ")
        assert said in str(_refused(pubs, program_id=program, options={name: 1}))
    assert "capitals" in str(_refused((BELL, "zz"), program_id="estimator"))


def test_unreadable_files(tmp_path: Path) -> None:
    binary = tmp_path / "c.qasm"
    binary.write_bytes(b"OPENQASM 3.0;\xff\xfe")
    assert "UTF-8" in str(_refused(binary))
    large = tmp_path / "large.qasm"
    with large.open("wb") as file:
        file.truncate(300_000_001)  # sparse: the size is looked at before the content
    assert "at most 300,000,000 are read" in str(_refused([(large, None, 3)]))


def test_more_than_the_service_takes_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec_module.MAX_PAYLOAD_BYTES == 300_000_000
    monkeypatch.setattr(spec_module, "MAX_PAYLOAD_BYTES", 5_000_000)
    long = BELL + "\n" * 2_600_000  # two bytes each in JSON
    assert _refused(long).field == "pubs"
    assert _refused(None, program_id="executor", params={"text": "x" * 5_100_000}).field == "params"
    assert _refused(BELL, options={"experimental": {"text": "x" * 5_100_000}}).field == "pubs"
    # The bound is on what is sent: below it nothing is refused.
    assert make_spec(BELL + " " * 1_000_000, backend="b").pubs[0].width == 2


@pytest.mark.parametrize("form", ["openqasm3", "qpy", "auto"])
def test_a_circuit_of_an_old_qiskit_is_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ones could have different keys, so a repeated run would submit a second job; texts have no such fault."""
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    for version, works in (("2.3.9", False), ("1.4.5", False), ("2.4.0rc1", True), ("3.0", True)):
        monkeypatch.setattr("qiskit.__version__", version)
        assert make_spec(BELL, backend="b", route="executor", circuit_form=form if form != "qpy" else "auto")
        if works:
            assert make_spec(circuit, backend="b", route="executor", circuit_form=form)
            continue
        for route in ("service", "executor"):
            options = {"route": route, "circuit_form": form} if route == "executor" else {}
            refused = _refused(circuit, **options)
            assert refused.field == "pubs[0].circuit"
            assert f"Qiskit {version}" in str(refused)


def test_deep_nesting_is_no_crash() -> None:
    value: Any = 1
    for _ in range(10_000):
        value = [value]
    assert _refused(None, program_id="x", params={"a": value}).field is not None
    assert _refused([(ONE, value)]).field is not None
    assert _refused((BELL, value), program_id="estimator").field is not None


@pytest.mark.parametrize("observable", ["ZZ", ["ZZ"], [["XX", "ZZ"]], {"a": "ZI", "b": 1.0}])
def test_the_sampler_names_what_is_meant_as_an_observable(observable: Any) -> None:
    with pytest.raises(InvalidInput, match="looks like an observable: only the estimator") as caught:
        make_spec([(TWO, observable)], backend="b")
    assert str(caught.value.field).startswith("pubs[0].parameters")
    with pytest.raises(InvalidInput) as caught:
        make_spec([(TWO, [1.0, "pi"])], backend="b")
    assert "observable" not in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 2), (0, 0), (3, 0, 2), (0, 1), (1, 0, 0)], ids=str)
@pytest.mark.parametrize("circuit", [ONE, TWO, BELL])
def test_an_array_of_no_points_is_named_as_one(circuit: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="holds no parameter point at all"):
        make_spec([(circuit, numpy.zeros(shape))], backend="b")


def _encoded(plain: bytes) -> dict[str, str]:
    return {"__type__": "QuantumCircuit", "__value__": b64encode(compress(plain)).decode()}


def _qpy(*circuits: QuantumCircuit, version: int) -> bytes:
    target = io.BytesIO()
    qpy.dump(circuits, target, version=version)
    return target.getvalue()


@pytest.mark.parametrize("version", range(qpy.QPY_COMPATIBILITY_VERSION, qpy.QPY_VERSION + 1))
@pytest.mark.parametrize("route", ["service", "executor"])
def test_an_encoded_circuit_is_one_circuit(version: int, route: str) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    one, given = _qpy(circuit, version=version), {"route": route, "shots": 10}
    assert make_spec(_encoded(one), backend="b", **given).pubs[0].circuit == _encoded(one)
    for wrong in (
        _encoded(_qpy(circuit, circuit, version=version)),
        _encoded(b"QISKIT" + bytes(12)),
        _encoded(one[:12]),
        _encoded(b"PK" + one),
        {**_encoded(one), "__value__": _encoded(one)["__value__"][:-8]},
        {**_encoded(one), "__value__": "not base64"},
        {**_encoded(one), "__value__": ""},
    ):
        assert _refused([(wrong,)], **given).field == "pubs[0].circuit"
