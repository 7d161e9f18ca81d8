"""Which measurements an expectation value leaves out: the same in every form of a circuit, never one that counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qasm3
from qiskit.circuit import Clbit, Qubit
from qiskit.circuit.classical import expr, types

from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.expectation import circuit_without_last_measurements
from prefect_qruntime.client.programs.openqasm import without_last_measurements
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.errors import InvalidInput
from tests.support.executor import run

HEAD = 'OPENQASM 3.0; include "stdgates.inc"; '
WIDTH = 3
SHOTS = 2000
QUBIT = st.integers(0, WIDTH - 1)
BIT = st.integers(0, WIDTH - 1)
PLAIN = st.one_of(
    st.tuples(st.just("h"), QUBIT),
    st.tuples(st.just("measure"), QUBIT, BIT),
    st.tuples(st.just("barrier"), st.sets(QUBIT, min_size=1).map(sorted)),
    st.tuples(st.just("reset"), QUBIT),
)
FLOW = st.one_of(
    PLAIN,
    st.tuples(st.just("if"), BIT, QUBIT),
    st.tuples(st.just("if register"), QUBIT),
    st.tuples(st.just("if and measure"), BIT, QUBIT, BIT),
    st.tuples(st.just("if on all"), BIT, QUBIT),
    st.tuples(st.just("switch"), QUBIT),
    st.tuples(st.just("for"), QUBIT),
    st.tuples(st.just("store"), BIT),
)


def _built(steps: list[Any]) -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumRegister(WIDTH, "q"), ClassicalRegister(WIDTH, "c"))
    variables = 0
    for kind, *what in steps:
        if kind == "if":
            with circuit.if_test((circuit.clbits[what[0]], 1)):
                circuit.x(what[1])
        elif kind == "if register":
            with circuit.if_test(expr.less(circuit.cregs[0], 2)):
                circuit.x(what[0])
        elif kind == "if and measure":
            with circuit.if_test((circuit.clbits[what[0]], 1)):
                circuit.measure(what[1], what[2])
        elif kind == "if on all":
            body = QuantumCircuit(WIDTH, WIDTH)
            body.x(what[1])
            circuit.if_test((circuit.clbits[what[0]], 1), body, range(WIDTH), range(WIDTH))
        elif kind == "switch":
            with circuit.switch(circuit.cregs[0]) as case, case(1, 2):
                circuit.x(what[0])
        elif kind == "for":
            with circuit.for_loop(range(2)):
                circuit.x(what[0])
        elif kind == "store":
            variables += 1
            circuit.add_var(f"v{variables}", expr.lift(circuit.clbits[what[0]]))
        else:
            getattr(circuit, kind)(*what)
    return circuit


def _shown(circuit: QuantumCircuit) -> list[Any]:
    """The operations outside blocks with their numbers of qubits and, of a measurement, of its bit."""
    return [
        (
            item.operation.name,
            [circuit.find_bit(bit).index for bit in item.qubits] if item.operation.name in ("measure", "h") else [],
            [circuit.find_bit(bit).index for bit in item.clbits] if item.operation.name == "measure" else [],
        )
        for item in circuit.data
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(PLAIN, max_size=10))
def test_without_control_flow_it_is_the_rule_of_qiskit(steps: list[Any]) -> None:
    circuit = _built(steps)
    found = circuit_without_last_measurements(circuit, keep_registers=True)
    wanted = circuit.remove_final_measurements(inplace=False)
    both = [Counter((item.name, item.qubits, item.clbits) for item in one.data) for one in (found, wanted)]
    assert both[0] == both[1]
    assert circuit_without_last_measurements(circuit) == wanted
    assert (found.cregs, circuit.num_clbits) == (circuit.cregs, WIDTH)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FLOW, max_size=8))
@example([("measure", 0, 0), ("if", 0, 1), ("measure", 1, 1)])
@example([("h", 0), ("measure", 0, 0), ("if on all", 1, 2)])
@example([("measure", 0, 0), ("store", 0)])
@example([("measure", 0, 0), ("measure", 1, 0), ("if", 0, 2)])
def test_text_and_circuit_lose_the_same_measurements(steps: list[Any]) -> None:
    circuit = _built([("measure", 0, 0), ("h", 0), *steps])  # a text without a measurement stays as it is
    text = qasm3.dumps(circuit)
    found = circuit_without_last_measurements(circuit)
    kept = circuit_without_last_measurements(circuit, keep_registers=True)
    assert Counter(map(str, _shown(found))) == Counter(map(str, _shown(kept)))
    wanted = qasm3.dumps(kept)
    assert without_last_measurements(text, field="x").split() == wanted.split()


@settings(max_examples=300, deadline=None)
@given(st.lists(PLAIN, max_size=8), BIT, QUBIT)
def test_no_dropped_measurement_counts(steps: list[Any], bit: int, turned: int) -> None:
    """Checked without the rule: the last writer of a bit that is read stays, and so does what a gate follows."""
    steps = [*steps, ("if", bit, turned)]
    left = _shown(circuit_without_last_measurements(_built(steps), keep_registers=True))
    numbered = [(kind, what[0], *what[1:]) for kind, *what in steps if kind in ("h", "measure")]
    writers = [place for place, step in enumerate(numbered) if step[0] == "measure" and step[2] == bit]
    needed = writers[-1:]
    for place, (kind, qubit, *_) in enumerate(numbered):
        if kind == "measure" and (qubit == turned or ("h", qubit) in numbered[place + 1 :]):
            needed.append(place)
    for place in needed:
        _, qubit, target = numbered[place]
        assert ("measure", [qubit], [target]) in left
    assert sum(name == "h" for name, *_ in left) == sum(kind == "h" for kind, *_ in numbered)


def _values(circuit: Any, observables: Any, **given: Any) -> list[float]:
    spec = make_spec(
        [(circuit, observables)], backend="b", route="executor", program_id="estimator", shots=SHOTS, **given
    )
    body = json.dumps(run(json.loads(json.dumps(spec.prepared)), 1))
    found: list[float] = JobResult.from_body(body, job_id="d1", program_id="executor").expectation_values()
    return found


def _dynamic() -> QuantumCircuit:
    circuit = QuantumCircuit(2, 3)
    circuit.h([0, 1])
    circuit.measure(1, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(1)
    circuit.measure(0, 1)
    circuit.measure(1, 2)
    return circuit


@pytest.mark.parametrize("form", ["auto", "openqasm3", "qpy"])
@pytest.mark.parametrize("given", ["text", "circuit"])
def test_each_form_of_a_circuit_has_the_same_value(given: str, form: str) -> None:
    circuit = _dynamic()
    found = _values(qasm3.dumps(circuit) if given == "text" else circuit, ["IX", "ZI"], circuit_form=form)
    assert found == pytest.approx([1.0, 1.0])


def _with_variable(kind: str, *, declared: bool) -> QuantumCircuit:
    circuit = QuantumCircuit(2, 2)
    if not declared:
        circuit.delay(10, 1)
    elif kind == "stretch":
        circuit.delay(circuit.add_stretch("slack"), 1)
    elif kind == "input":
        circuit.add_input("given", types.Bool())
    else:
        circuit.add_var("flag", expr.lift(True))
    circuit.h(0)
    circuit.measure([0, 1], [0, 1])
    return circuit


@pytest.mark.parametrize("kind", ["variable", "input", "stretch"])
def test_variables_of_a_circuit_do_not_matter(kind: str) -> None:
    left = [
        [item.name for item in circuit_without_last_measurements(_with_variable(kind, declared=declared)).data]
        for declared in (True, False)
    ]
    assert "h" in left[0]
    assert "measure" not in left[0]
    assert set(left[0]) - {"store", "delay"} == set(left[1]) - {"delay"}


@pytest.mark.parametrize("form", ["openqasm3", "qpy"])
@pytest.mark.parametrize("kind", ["variable", "stretch"])
def test_circuits_with_variables_go_to_the_executor(kind: str, form: str) -> None:
    assert make_spec(
        [(_with_variable(kind, declared=True), "IX")],
        backend="b",
        route="executor",
        program_id="estimator",
        circuit_form=form,
    ).prepared


# The text after `qubit[2] q; bit[2] c; h q[0];`, and the value of X on qubit 0: 1 if the measurement was a last one.
TAILS = [
    ("c = measure q; x q[1];", 1.0),
    ("c = measure q; rz(0.1) q[0]; rz(-0.1) q[0];", 0.0),
    ("bit[2] d = measure q; x q[1];", 1.0),
    ("let a = q[0:1]; c[0] = measure q[0]; x a[1];", 1.0),
    ("let a = q[0:1]; c[0] = measure q[0]; rz(0.1) a[0]; rz(-0.1) a[0];", 0.0),
    ("let a = q[{0, 1}]; c[0] = measure a[0];", 1.0),
    ("let a = q[1] ++ q[0]; c[0] = measure q[0]; z a[1]; z a[1];", 0.0),
    ("let a = q[1] ++ q[0]; c[0] = measure a[1]; z a[0];", 1.0),
    ("let a = q; let b = a[0:0]; c[0] = measure q[0]; z b[0]; z b[0];", 0.0),
    ("c[0] = measure q[-2]; x q[1];", 1.0),
    ("c[0] = measure q[0];\n@note this\nc[1] = measure q[1];", 1.0),
    ("\n@note this\nc[0] = measure q[0];\n", 1.0),
    ("c[0] = measure q[0]; c[0] = measure q[1]; if (c[0]) { x q[1]; }", 1.0),
    ("c[0] = measure q[0]; if (c == 1) { x q[1]; }", 0.0),
    ("c[0] = measure q[0]; if (c[0]) c[1] = measure q[1];", 0.0),
    ("bool b; c[0] = measure q[0]; b = c[0]; if (b) { x q[1]; }", 0.0),
    ("c[0] = measure q[0]; end; x q[0];", 1.0),
    ("end; c[0] = measure q[0]; x q[0];", 1.0),
]


@pytest.mark.parametrize(("tail", "value"), TAILS)
def test_last_measurements_in_text(tail: str, value: float) -> None:
    text = f"{HEAD}qubit[2] q; bit[2] c; h q[0]; {tail}"
    sent = make_spec([(text, "IX")], backend="b", route="executor", program_id="estimator", circuit_form="openqasm3")
    left = sent.prepared["quantum_program"]["circuits"]["data"][0].split("bit[1] qr_meas")[0]
    measured = any(f"measure {name}" in left for name in ("q[0]", "q;", "a[1]", "q[-2]"))
    assert measured == (value == 0.0), left
    assert "end;" not in left, "what follows would not be reached"


UNCLEAR = [
    "c[0] = measure q[0]; for uint i in [0:1] { x q[i]; }",
    "const int i = 1; c[0] = measure q[0]; for uint i in [0:1] { x q[i]; }",
    "uint i = 1; c[0] = measure q[0]; x q[i];",
    "uint i = 1; c[i] = measure q[i];",
    "uint i = 0; let a = q[i:1]; c[0] = measure q[0]; x a[0];",
    "uint i = 0; let a = q[i:1]; c[0] = measure a[0];",
    "bool b = measure q[0];",
    "if (c[0]) { end; }",
    "if (c[0]) end;",
]


@pytest.mark.parametrize("tail", UNCLEAR)
def test_what_cannot_be_told_is_refused(tail: str) -> None:
    with pytest.raises(InvalidInput, match="leaves open") as caught:
        without_last_measurements(f"{HEAD}qubit[2] q; bit[2] c; h q[0]; {tail}", field="pubs[0].circuit")
    assert caught.value.field == "pubs[0].circuit"


def test_a_text_with_something_unclear_goes_as_qpy_if_qiskit_reads_it() -> None:
    text = f"{HEAD}qubit[2] q; bit[2] c; h q[0]; let a = q[0:1]; c[0] = measure q[0]; h a[0];"
    assert _values(text, ["IZ"])[0] == pytest.approx(0.0, abs=0.1)
    assert _values(text, ["IZ"], circuit_form="qpy")[0] == pytest.approx(0.0, abs=0.1)


def _registers(*parts: Any, flip: int) -> QuantumCircuit:
    circuit = QuantumCircuit(*parts)
    circuit.x(flip)
    return circuit


def _loose_and_register(flip: int) -> QuantumCircuit:
    return _registers(QuantumRegister(1, "q"), [Qubit(), Qubit()], flip=flip)


def _other_order(flip: int) -> QuantumCircuit:
    bits = [Qubit() for _ in range(3)]
    return _registers(bits, QuantumRegister(bits=[bits[2], bits[0]], name="r"), flip=flip)


def _overlapping(flip: int) -> QuantumCircuit:
    bits = [Qubit() for _ in range(3)]
    both = [QuantumRegister(bits=bits[1:], name="a"), QuantumRegister(bits=bits[1::-1], name="b")]
    return _registers(bits, *both, flip=flip)


def _with_loose_bits(flip: int) -> QuantumCircuit:
    circuit = _registers(QuantumRegister(2, "c"), [Qubit(), Clbit()], ClassicalRegister(1, "q"), flip=flip)
    with circuit.if_test((circuit.clbits[1], 1)):
        circuit.x([0, 1, 2])
    circuit.measure([0, 1], [0, 1])
    return circuit


BUILDERS = [_loose_and_register, _other_order, _overlapping, _with_loose_bits]


@pytest.mark.parametrize("form", ["openqasm3", "qpy"])
@pytest.mark.parametrize("flip", range(3))
@pytest.mark.parametrize("build", BUILDERS)
def test_observables_meet_the_qubits_of_the_circuit(build: Callable[[int], Any], flip: int, form: str) -> None:
    found = _values(build(flip), ["IIZ", "IZI", "ZII"], circuit_form=form)
    assert found == [-1.0 if place == flip else 1.0 for place in range(3)]
