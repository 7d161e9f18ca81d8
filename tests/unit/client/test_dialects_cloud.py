"""`v2_params` against IBM's schema, `v1_params` against what the legacy form can say."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm2, qasm3, qpy
from qiskit.circuit import Clbit, Parameter, ParameterVector, Qubit

from prefect_qruntime.client.cost_core import busy_seconds
from prefect_qruntime.client.dialects import v1_params, v2_params
from prefect_qruntime.client.inputs import EstimatorOptions, SamplerOptions
from prefect_qruntime.client.inputs.pubs import encode_array
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.executor import program_shots
from prefect_qruntime.errors import InvalidInput

SCHEMA = Path(__file__).parents[2] / "schemas" / "openapi-cloud.yaml"
BELL = 'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c; h q[0]; cx q[0], q[1]; c = measure q;'
TWO = "OPENQASM 3.0; input float[64] b; input angle a; qubit[2] q; bit[2] c; rx(a) q[0]; c = measure q;"
# IBM's encoder wrote this for the array [[0.1], [0.2]].
ANGLES = (
    "eJyb7BfqGxDJyFDGUK2eklqcXKRupaBuk2ahrqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2"
    "ckFqQC+RpGOgqGmjoKtQpkA65ZM0Fgpz2EPmkPAF4PJJw="
)


@pytest.fixture(scope="module")
def validator() -> Any:
    document = yaml.safe_load(SCHEMA.read_text())
    return Draft202012Validator({"$ref": "#/components/schemas/JobRunParams", "components": document["components"]})


def _circuit() -> QuantumCircuit:
    circuit = QuantumCircuit(2, 1)
    circuit.rx(Parameter("t"), 0)
    circuit.measure(0, 0)
    return circuit


def _encoded(circuit: QuantumCircuit) -> Any:
    return make_spec([(circuit, [0.1] * circuit.num_parameters)], backend="b").pubs[0].circuit


FULL_ESTIMATOR = {
    "resilience_level": 2,
    "precision": 0.1,
    "default_precision": 0.01,
    "default_shots": 100,
    "seed_estimator": 3,
    "dynamical_decoupling": {
        "enable": True,
        "sequence_type": "XY4",
        "extra_slack_distribution": "edges",
        "scheduling_method": "asap",
        "skip_reset_qubits": True,
    },
    "resilience": {
        "measure_mitigation": True,
        "measure_noise_learning": {"num_randomizations": 3, "shots_per_randomization": "auto"},
        "zne_mitigation": True,
        "zne": {
            "noise_factors": [1, 3, 5],
            "extrapolator": ["linear", "fallback"],
            "amplifier": "pea",
            "extrapolated_noise_factors": [0, 1],
        },
        "pec_mitigation": False,
        "pec": {"max_overhead": None, "noise_gain": "auto"},
        "layer_noise_learning": {
            "max_layers_to_learn": 4,
            "shots_per_randomization": 128,
            "num_randomizations": 32,
            "layer_pair_depths": [0, 1, 2],
        },
        "layer_noise_model": [],
    },
    "execution": {"init_qubits": True, "rep_delay": 0.00025},
    "twirling": {"enable_gates": True, "num_randomizations": "auto", "shots_per_randomization": 4},
    "simulator": {"noise_model": None, "seed_simulator": 1, "coupling_map": [[0, 1]], "basis_gates": ["x"]},
    "experimental": {"anything": {"goes": [1]}},
}
FULL_SAMPLER = {
    "default_shots": 4096,
    "dynamical_decoupling": {"enable": True, "sequence_type": "XpXm"},
    "execution": {"init_qubits": True, "rep_delay": 0.00025, "meas_type": "classified"},
    "twirling": {"enable_measure": True, "strategy": "active-accum"},
    "simulator": {"seed_simulator": None},
    "experimental": {},
}


@pytest.mark.parametrize(
    ("program", "pubs", "options"),
    [
        ("sampler", BELL, None),
        ("sampler", [BELL, (BELL, None, 5), (TWO, {"b": 1, "a": 2})], FULL_SAMPLER),
        ("sampler", [(_circuit(), [[0.1], [0.2]], 7)], {}),
        ("estimator", [(BELL, "ZZ"), (TWO, {"ZZ": 1}, {"a": 1, "b": 2}, 0.1)], FULL_ESTIMATOR),
        ("estimator", [(_circuit(), ["ZZ", "XX"], [0.3])], {"resilience_level": 0}),
    ],
)
def test_v2_params_fit_the_strict_schema(validator: Any, program: str, pubs: Any, options: Any) -> None:
    spec = make_spec(pubs, backend="ibm_torino", program_id=program, options=options, shots=10)
    params = v2_params(spec)
    validator.validate({"program_id": program, "backend": "ibm_torino", "params": params})
    if program == "estimator" and options and len(options) > 1:
        kept = {name: value for name, value in options.items() if name not in ("resilience_level", "precision")}
        assert params["options"] == kept, "what the user set is sent as set"
        assert (params["resilience_level"], params["precision"]) == (2, 0.1)


def _option_paths(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from ((name, *path) for path in _option_paths(inner))
        else:
            yield (name,)


@pytest.mark.parametrize(
    ("program", "model", "pub"), [("sampler", SamplerOptions, BELL), ("estimator", EstimatorOptions, (BELL, "ZZ"))]
)
def test_any_option_that_is_accepted_fits_the_schema(validator: Any, program: str, model: Any, pub: Any) -> None:
    accepted = 0
    for path in _option_paths(model):
        for value in (None, [], {}, "auto", "x", 1, 0, -1, 1.5, True, [None], [["a"]], [1]):
            option: Any = value
            for name in reversed(path):
                option = {name: option}
            with contextlib.suppress(InvalidInput):
                params = v2_params(make_spec([pub], backend="b", program_id=program, options=option))
                accepted += 1
                errors = list(validator.iter_errors({"program_id": program, "backend": "b", "params": params}))
                assert not errors, (path, value)
    assert accepted > 20


def test_v2_sampler_wire_form() -> None:
    spec = make_spec([BELL, (BELL, None, 5), (TWO, {"b": 1, "a": 2})], backend="b", shots=9)
    assert v2_params(spec) == {
        "version": 2,
        "support_qiskit": False,
        "shots": 9,
        "pubs": [[BELL], [BELL, None, 5], [TWO, {"b": 1.0, "a": 2.0}]],
    }


def test_v2_estimator_puts_shots_where_they_belong() -> None:
    spec = make_spec((BELL, "ZZ"), backend="b", program_id="estimator", shots=9)
    assert v2_params(spec)["options"] == {"default_shots": 9}
    assert v2_params(spec)["pubs"] == [[BELL, "ZZ"]]
    assert spec.options == {}, "placing options must not change the submission"


def _may_be_none() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every option, of a group too, that may be None."""
    for program, model in (("sampler", SamplerOptions), ("estimator", EstimatorOptions)):
        for name, field in model.model_fields.items():
            inner = getattr(field.annotation, "model_fields", {})
            for options in [{name: None}, *({name: {part: None}} for part in inner)]:
                with contextlib.suppress(ValueError):
                    model.model_validate(options)
                    yield program, options


@pytest.mark.parametrize(("program", "options"), [*_may_be_none()], ids=str)
def test_an_option_that_is_none_is_one_that_is_not_set(program: str, options: dict[str, Any]) -> None:
    pub = (BELL, "ZZ") if program == "estimator" else BELL
    given, plain = (
        make_spec(pub, backend="b", program_id=program, shots=9, options=found) for found in (options, None)
    )
    wire = v2_params(given)
    assert wire.get("shots", wire.get("options", {}).get("default_shots")) == 9
    assert busy_seconds(given) == busy_seconds(plain)
    assert program_shots(given) == program_shots(plain) == 9
    default = make_spec(pub, backend="b", program_id=program, options=options)
    assert program_shots(default) == program_shots(make_spec(pub, backend="b", program_id=program))
    if next(iter(options)) in ("execution", "simulator", "default_shots", "precision", "seed_estimator"):
        assert v1_params(given) == v1_params(plain)


def test_v2_circuit_is_qpy_17_in_zlib_and_base64() -> None:
    circuit = _circuit()
    pub = v2_params(make_spec([(circuit, [[0.1], [0.2]], 7)], backend="b"))["pubs"][0]
    assert pub[0]["__type__"] == "QuantumCircuit"
    plain = zlib.decompress(base64.b64decode(pub[0]["__value__"]))
    assert plain[:7] == b"QISKIT" + bytes([min(17, qpy.QPY_VERSION)])
    assert qpy.load(io.BytesIO(plain))[0] == circuit
    assert pub[1] == {"__type__": "ndarray", "__value__": ANGLES}
    assert pub[2] == 7


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=4, max_side=4), elements=st.floats(allow_nan=False)))
def test_numpy_reads_what_is_encoded(values: np.ndarray) -> None:
    encoded = encode_array(values.tolist())
    found = np.load(io.BytesIO(zlib.decompress(base64.b64decode(encoded["__value__"]))), allow_pickle=False)
    assert found.dtype == np.dtype("<f8")
    np.testing.assert_array_equal(found, values)


def test_raw_params_are_what_was_given() -> None:
    given = {"anything": [1, {"a": None}]}
    spec = make_spec(None, backend="b", program_id="executor", params=given)
    assert v2_params(spec) == given == v1_params(spec)


def test_v1_sampler() -> None:
    sorted_names = TWO.replace("angle a", "angle c").replace("rx(a)", "rx(c)")
    pubs = [(TWO, {"b": 2, "a": [1]}), (sorted_names, [[3, 4]]), (TWO, {("b", "a"): [[[6, 5]]]}), BELL]
    spec = make_spec(pubs, backend="b", shots=5)
    assert v1_params(spec) == {
        "circuits": [TWO, sorted_names, TWO, BELL],
        "circuit_indices": [0, 1, 2, 3],
        "parameter_values": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], []],
        "run_options": {"shots": 5},
    }


def test_v1_estimator() -> None:
    options = {"resilience_level": 1, "execution": {"init_qubits": True}, "simulator": {"seed_simulator": 4}}
    spec = make_spec([(BELL, "ZZ"), (BELL, [{"XX": 1}])], backend="b", program_id="estimator", options=options, shots=3)
    assert v1_params(spec) == {
        "circuits": [BELL, BELL],
        "circuit_indices": [0, 1],
        "parameter_values": [[], []],
        "observables": ["ZZ", {"XX": 1.0}],
        "observable_indices": [0, 1],
        "run_options": {"init_qubits": True, "seed_simulator": 4, "shots": 3},
        "resilience_settings": {"level": 1},
    }


def test_v1_shots_of_all_pubs_agree() -> None:
    assert v1_params(make_spec([(BELL, None, 5), (BELL, None, 5)], backend="b"))["run_options"] == {"shots": 5}
    assert v1_params(make_spec([(BELL, None, 5), BELL], backend="b", shots=5))["run_options"] == {"shots": 5}
    assert v1_params(make_spec(BELL, backend="b", options={"default_shots": 6}))["run_options"] == {"shots": 6}


def test_v1_writes_circuits_as_openqasm() -> None:
    params = v1_params(make_spec([(_circuit(), [0.25])], backend="b"))
    back = qasm2.loads(params["circuits"][0])
    assert back == _circuit().assign_parameters([0.25])
    assert params["parameter_values"] == [[]]
    looped = QuantumCircuit(1, 1)
    with looped.if_test((looped.clbits[0], 1)):
        looped.x(0)
    looped.measure(0, 0)
    assert v1_params(make_spec(looped, backend="b"))["circuits"][0].startswith("OPENQASM 3")


@pytest.mark.parametrize("seed", range(40))
def test_v1_texts_have_qubits_and_bits_in_the_order_of_the_circuit(seed: int) -> None:
    """Results and observables of the legacy dialect know them by their places only."""
    draw = random.Random(seed)
    wires: list[Any] = [QuantumRegister(2, "r"), [Qubit()], QuantumRegister(1, "q"), [Qubit()]]
    bits: list[Any] = [ClassicalRegister(2, "d"), [Clbit()], ClassicalRegister(1, "c"), [Clbit()]]
    draw.shuffle(wires)
    draw.shuffle(bits)
    circuit = QuantumCircuit(*wires, *bits[: draw.randint(1, 4)])
    turned = {place for place in range(5) if draw.random() < 0.5}
    for place in sorted(turned):
        circuit.x(place)
    measured = {bit: draw.randrange(5) for bit in range(circuit.num_clbits)}
    for bit, qubit in measured.items():
        circuit.measure(qubit, bit)
    if draw.random() < 0.3:
        with circuit.if_test((circuit.clbits[0], 1)):  # goes as OpenQASM 3
            circuit.x(0)
    [text] = v1_params(make_spec(circuit, backend="b"))["circuits"]
    read = qasm3.loads(text) if text.startswith("OPENQASM 3") else qasm2.loads(text)
    places = [
        (item.name, read.find_bit(item.qubits[0]).index, *(read.find_bit(bit).index for bit in item.clbits))
        for item in read.data
        if item.name in ("x", "measure")
    ]
    assert {place for name, place, *_ in places if name == "x"} == turned
    assert {bit[0]: place for name, place, *bit in places if name == "measure"} == measured


def test_v1_binds_the_values_of_an_encoded_circuit_by_their_names() -> None:
    names = ParameterVector("t", 12)  # "t[10]" is the eleventh for qiskit, and the third by its letters
    circuit = QuantumCircuit(1, 1)
    for place, name in enumerate(names):
        (circuit.rx if place % 2 else circuit.rz)(name, 0)
    circuit.measure(0, 0)
    values = [round(0.1 * (place + 1), 1) for place in range(12)]
    wanted = v1_params(make_spec([(circuit, values)], backend="b"))
    by_name = {name.name: value for name, value in zip(names, values, strict=True)}
    for form in (values, by_name, dict(reversed(by_name.items()))):
        assert v1_params(make_spec([(_encoded(circuit), form)], backend="b")) == wanted


def test_v1_refuses_a_condition_on_a_register_that_no_text_has() -> None:
    circuit = QuantumCircuit(QuantumRegister(1, "q"), [Clbit()], ClassicalRegister(1, "c"))
    circuit.measure([0, 0], [0, 1])
    with circuit.if_test((circuit.cregs[0], 1)):
        circuit.x(0)
    spec = make_spec(circuit, backend="b")
    with pytest.raises(InvalidInput, match="condition on a register") as caught:
        v1_params(spec)
    assert caught.value.field == "pubs[0].circuit"


@pytest.mark.parametrize(
    ("program", "pubs", "options", "field"),
    [
        ("sampler", [(BELL, None, 5), (BELL, None, 6)], None, "pubs[1].shots"),
        ("sampler", [(BELL, None, 5), BELL], None, "pubs[1].shots"),
        ("sampler", [(TWO.replace("float[64] b", "float[64] _"), [[1, 2], [3, 4]])], None, "pubs[0].parameters"),
        ("sampler", [(TWO, {"a": [1, 2], "b": [3, 4]})], None, "pubs[0].parameters.a"),
        ("sampler", [(_circuit(), [[1], [2]])], None, "pubs[0].parameters"),
        ("sampler", BELL, {"twirling": {"enable_gates": True}}, "options.twirling"),
        ("sampler", BELL, {"execution": {"meas_type": "kerneled"}}, "options.execution"),
        ("sampler", _encoded(_circuit()), None, "pubs[0].parameters"),
        ("sampler", [(_encoded(_circuit()), {"other": 0.1})], None, "pubs[0].parameters.other"),
        ("sampler", [(_encoded(_circuit()), [0.1, 0.2])], None, "pubs[0].parameters"),
        ("estimator", (BELL, ["ZZ", "XX"]), None, "pubs[0].observables"),
        ("estimator", (BELL, "ZZ", None, 0.1), None, "pubs[0].precision"),
        ("estimator", (BELL, "ZZ"), {"default_precision": 0.1}, "options.default_precision"),
    ],
)
def test_what_v1_cannot_say(program: str, pubs: Any, options: Any, field: str) -> None:
    spec = make_spec(pubs, backend="b", program_id=program, options=options)
    v2_params(spec)
    with pytest.raises(InvalidInput) as caught:
        v1_params(spec)
    assert caught.value.field == field
