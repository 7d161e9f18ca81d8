"""A raw payload is recognised by what it means: rebuilt circuits are the same work, changed ones are not."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, Parameter

from prefect_qruntime.client.dialects import v2_params
from prefect_qruntime.client.inputs.meaning import meaning_of
from prefect_qruntime.client.inputs.pubs import dump_qpy, encode_array, encode_qpy
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.payload_check import input_difference
from prefect_qruntime.client.programs import make_spec
from tests.support import random_circuits
from tests.support.executor import tensor
from tests.support.random_circuits import CHANGES, build, digest, executor_params

COUNT = 1000


def _digests(hash_seed: int) -> list[list[str]]:
    run = subprocess.run(
        [sys.executable, random_circuits.__file__, "0", str(COUNT), str(hash_seed * 3)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        check=True,
        timeout=280,
        capture_output=True,
        text=True,
    )
    return [line.split() for line in run.stdout.splitlines()]


def test_a_thousand_circuits_rebuilt_in_other_processes_are_equal_and_changed_ones_differ() -> None:
    one, other = _digests(1), _digests(2)
    assert len(one) == COUNT
    assert one == other, "the same circuits, and the same changed circuits, in another process"
    assert all(same != changed for same, changed in one)
    # No two of all these circuits are the same, so no two digests are.
    found = [digest for pair in one for digest in pair]
    assert len(set(found)) == len(found)


def test_each_change_is_one_on_its_own() -> None:
    found = [digest(build(7, change)) for change in (None, *CHANGES)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "pair",
    [
        (lambda t: 1.5 + t.abs(), lambda t: 1.5 + t),
        (lambda t: (t + 9).abs(), lambda t: t + 9),
        (lambda t: (t - 900).abs(), lambda t: 900 - t),
        (lambda t: t.sin().arcsin(), lambda t: t),
        (lambda t: (t * t).log(), lambda t: 2 * t.log()),
    ],
)
def test_expressions_that_differ_for_some_angles_only(pair: Any) -> None:
    def circuit(expression: Any) -> QuantumCircuit:
        found = QuantumCircuit(1)
        found.ry(expression(Parameter("t")), 0)
        found.measure_all()
        return found

    one, other = (make_spec([(circuit(item), [-1.0])], backend="b") for item in pair)
    assert one.digest() != other.digest()
    assert make_spec([(circuit(pair[0]), [-1.0])], backend="b").digest() == one.digest()


def test_how_it_is_written_does_not_count() -> None:
    def plain(compressed: bool, level: int, version: int) -> dict[str, Any]:
        params = executor_params(build(3))
        sent = params["quantum_program"]
        qpy = zlib.decompress(base64.b64decode(sent["circuits"]["b64_data"]))
        data = zlib.compress(qpy, level) if compressed else qpy
        sent["circuits"] |= {"b64_data": base64.b64encode(data).decode(), "qpy_version": version}
        sent["items"][0]["circuit_arguments"] = tensor([0.5] * 4, packed=compressed)
        return params

    first = meaning_of(plain(True, 9, 17))
    assert first.certain
    for other in (plain(True, 1, 16), plain(True, 0, 17), plain(False, 0, 17)):
        assert meaning_of(other) == first


def test_any_value_counts() -> None:
    base = executor_params(build(3))
    variants = [base]
    for change in (
        lambda p: p["quantum_program"].update(shots=11),
        lambda p: p["quantum_program"].update(passthrough_data={"a": 1}),
        lambda p: p["quantum_program"].update(meas_level="kerneled"),
        lambda p: p["options"].update(init_qubits=False),
        lambda p: p["quantum_program"]["items"][0].update(circuit_arguments=tensor([0.5, 0.6])),
        lambda p: p["quantum_program"]["items"][0].update(circuit_arguments=tensor([[0.5, 0.6]])),
        lambda p: p["quantum_program"]["items"][0].update(circuit_arguments=tensor([0.6, 0.5])),
    ):
        variants.append(copy.deepcopy(base))
        change(variants[-1])
    found = [json.dumps(meaning_of(params).canonical, sort_keys=True) for params in variants]
    assert len(set(found)) == len(found)
    zeros = [meaning_of(tensor([0.0, 1.0])), meaning_of(tensor([-0.0, 1.0]))]
    assert zeros[0] == zeros[1]


def test_objects_of_the_runtime_encoder() -> None:
    def payload() -> dict[str, Any]:
        circuit = make_spec([(_free(), [0.1])], backend="b").pubs[0].circuit
        return {"pubs": [[circuit, encode_array([[0.1], [0.2]]), 100]], "version": 2, "support_qiskit": True}

    one, other = payload(), payload()
    assert one != other, "QPY differs each time"
    assert meaning_of(one) == meaning_of(other)
    assert meaning_of(one).certain
    names = [b"\0\1" + bytes([place] * 16) + b"a" for place in range(2)]
    parameters = [{"__type__": "Parameter", "__value__": base64.b64encode(name).decode()} for name in names]
    assert meaning_of(parameters[0]) == meaning_of(parameters[1])
    sets = [{"__type__": "set", "__value__": list(order)} for order in ("ab", "ba")]
    assert meaning_of(sets[0]) == meaning_of(sets[1])
    # Of qiskit's objects with settings the class stands beside the value: the same matrix is another channel.
    channels = [
        {"__type__": "settings", "__module__": "qiskit.quantum_info", "__class__": name, "__value__": {"data": [1.0]}}
        for name in ("Choi", "SuperOp")
    ]
    assert meaning_of(channels[0]) != meaning_of(channels[1])
    assert meaning_of(channels[0]) == meaning_of(dict(reversed(channels[0].items())))


def _free() -> QuantumCircuit:
    circuit = QuantumCircuit(1)
    circuit.rx(0.25 * Parameter("a"), 0)
    circuit.measure_all()
    return circuit


@pytest.mark.parametrize("first", [0, 1, 9, 98])
def test_the_count_of_basis_changes_in_a_process_does_not_count(first: int) -> None:
    def item(start: int, *, swapped: bool = False) -> dict[str, Any]:
        names = [f"basis_changes.basis{start + place}" for place in range(2)]
        nodes = [{"data": {"basis_ref": name, "inner": json.dumps({"name": name})}} for name in names]
        values = [tensor(np.uint8([0, 1])), tensor(np.uint8([2, 3]))][:: -1 if swapped else 1]
        return {
            "samplex": {"ssv": 4, "samplex_json": json.dumps({"nodes": nodes})},
            "samplex_arguments": dict(zip(names, values, strict=True)),
        }

    counted, other = ({"items": [item(start), item(start + 5)]} for start in (0, first))
    assert meaning_of(other) == meaning_of(counted)
    assert meaning_of({"items": [item(first, swapped=True), item(first)]}) != meaning_of(counted)
    assert meaning_of({"b": item(first), "name": "basis_changes.basis1"}).canonical["name"] == "basis_changes.basis1"


def test_qpy_inside_a_samplex_and_its_version_do_not_count() -> None:
    def samplex(version: str, angle: float) -> dict[str, Any]:
        circuit = QuantumCircuit(1)
        circuit.rz(angle * Parameter("p"), 0)
        import io

        from qiskit import qpy

        target = io.BytesIO()
        qpy.dump([circuit], target, version=15)
        table = json.dumps({"circuit_base64": base64.b64encode(target.getvalue()).decode(), "qpy": "15", "id": "P"})
        inner = {"attrs": {"param_table": table, "samplomatic_version": version, "ssv": "4"}, "nodes": [{"id": 0}]}
        return {"samplex": {"ssv": 4, "samplex_json": json.dumps(inner)}}

    one = meaning_of(samplex("0.21", 0.5))
    assert one.certain
    assert meaning_of(samplex("0.22", 0.5)) == one
    assert meaning_of(samplex("0.21", 0.6)) != one


def _with_noise_model(angle: float, rate: float) -> JobSpec:
    """An estimator with the noise of a layer, as IBM's encoder writes what its noise learner returns."""
    layer = QuantumCircuit(2)
    layer.rz(angle * Parameter("p"), 0)
    layer.cz(0, 1)
    model = {
        "__type__": "_json",
        "__module__": "qiskit_ibm_runtime.utils.noise_learner_result",
        "__class__": "LayerError",
        "__value__": {"circuit": encode_qpy(dump_qpy(layer, field="")[0]), "rates": encode_array([rate, 0.2])},
    }
    pub = ("OPENQASM 3.0; qubit[2] q; cz q[0], q[1];", "ZZ")
    options = {"resilience": {"pec_mitigation": True, "layer_noise_model": [model]}}
    return make_spec([pub], backend="b", program_id="estimator", options=options)


def test_circuits_in_options_are_known_by_what_they_compute() -> None:
    one, again = _with_noise_model(0.5, 0.1), _with_noise_model(0.5, 0.1)
    assert one.options != again.options, "QPY differs each time"
    assert (one.digest(), one.doubts) == (again.digest(), ())
    assert input_difference(one, v2_params(one), v2_params(again)) is None
    for other in (_with_noise_model(0.6, 0.1), _with_noise_model(0.5, 0.3)):
        assert other.digest() != one.digest()
        assert "layer_noise_model" in str(input_difference(one, v2_params(one), v2_params(other)))


def test_circuits_in_options_that_cannot_be_told_are_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qiskit", None)
    options = {"resilience": {"layer_noise_model": [{"circuit": base64.b64encode(b"QISKIT\x11").decode()}]}}
    spec = make_spec([("OPENQASM 3.0; qubit q; x q;", "Z")], backend="b", program_id="estimator", options=options)
    assert spec.doubts[0].startswith("options.resilience.layer_noise_model[0].circuit holds")


class _Odd(Gate):
    def __init__(self) -> None:
        super().__init__("odd", 1, [])


def test_what_cannot_be_told_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = QuantumCircuit(1)
    circuit.append(_Odd(), [0])
    circuit.measure_all()
    assert "without a definition" in make_spec([circuit], backend="b").doubts[0]
    encoded = make_spec([(_free(), [0.1])], backend="b").pubs[0].circuit
    assert "known by its text" in make_spec([(encoded, [0.1])], backend="b").doubts[0]
    assert not make_spec([(_free(), [0.1])], backend="b").doubts
    broken = {"b64_data": base64.b64encode(b"QISKIT\x11 no circuit").decode()}
    assert "cannot read" in meaning_of(broken).doubts[0]
    assert "not a readable tensor" in meaning_of({**tensor([1.0]), "shape": [7]}).doubts[0]
    params = executor_params(build(3))
    monkeypatch.setitem(sys.modules, "qiskit", None)
    found = make_spec(None, backend="b", program_id="executor", params=params)
    assert "without qiskit" in found.doubts[0]
    assert found.digest() == make_spec(None, backend="b", program_id="executor", params=params).digest()


def test_plain_payloads_import_nothing() -> None:
    code = (
        "import sys; from prefect_qruntime.client.programs import make_spec;"
        "s = make_spec(None, backend='b', program_id='x', params={'a': ['eJw', 'OPENQASM 3.0;', {'b': 1.5}]});"
        "print(s.doubts, 'qiskit' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True)
    assert run.stdout.split() == ["()", "False", "False"]


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_a_circuit_and_its_qpy_are_the_same(seed: int) -> None:
    import io

    from qiskit import qpy
    from qiskit.circuit.random import random_circuit

    from prefect_qruntime.client.inputs.meaning import identity_of

    for number in range(seed, seed + 20):
        circuit = build(number) if number % 2 else random_circuit(4, 6, conditional=True, measure=True, seed=number)
        target = io.BytesIO()
        qpy.dump(circuit, target, version=17)
        again = qpy.load(io.BytesIO(target.getvalue()))[0]
        assert set(identity_of(circuit, b"")) == {"circuit"}
        assert identity_of(circuit, b"") == identity_of(again, b"")
