"""Equal work, equal digest, in every process; other work, another digest."""

from __future__ import annotations

import importlib
import inspect
import io
import itertools
import pkgutil
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qpy
from qiskit.circuit import (
    AnnotatedOperation,
    Clbit,
    Duration,
    Gate,
    InverseModifier,
    Parameter,
    PowerModifier,
    Qubit,
)
from qiskit.circuit.classical import expr, types
from qiskit.circuit.library import PauliEvolutionGate, QFTGate, UnitaryGate, XGate, standard_gates
from qiskit.quantum_info import Operator, SparsePauliOp

from prefect_qruntime.client.inputs.meaning import identity_of
from prefect_qruntime.client.inputs.pubs import load_qpy, write_qpy
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

TWO = "OPENQASM 3.0; input float[64] a; input angle b; qubit[2] q; bit[2] c; rx(a) q[0]; c = measure q;"
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def _digest(pubs: Any, **given: Any) -> str:
    return make_spec(pubs, **{"backend": "b", **given}).digest()


@given(FINITE, FINITE)
def test_the_container_of_numbers_does_not_count(a: float, b: float) -> None:
    forms = [[a, b], (a, b), np.array([a, b]), [np.float64(a), b]]
    assert len({_digest([(TWO, form)]) for form in forms}) == 1


@given(st.integers(-(2**53), 2**53))
def test_an_integer_is_its_float(number: int) -> None:
    assert _digest([(TWO, [number, 0])]) == _digest([(TWO, [float(number), -0.0])])
    assert _digest([(TWO, {"b": number, "a": 1})]) == _digest([(TWO, {"a": 1.0, "b": float(number)})])


@given(FINITE, FINITE)
def test_any_changed_value_counts(one: float, other: float) -> None:
    same = _digest([(TWO, [one, 0.5])]) == _digest([(TWO, [other, 0.5])])
    assert same == (one == other)


def test_what_counts_and_what_does_not(tmp_path: Path) -> None:
    base = {"shots": 10, "options": {"default_shots": 5}}
    first = _digest([(TWO, [1, 2])], **base)
    file = tmp_path / "two.qasm"
    file.write_text(TWO)
    assert _digest([(file, [1, 2])], **base) == first
    # A repeated run may meet another backend; tags do not change the work.
    assert _digest([(TWO, [1, 2])], **base, tags=["x"]) == first
    assert make_spec([(TWO, [1, 2])], **base, backend="other").digest() == first
    others = [
        _digest([(TWO, [1, 2])]),
        _digest([(TWO, [1, 2])], shots=11, options={"default_shots": 5}),
        _digest([(TWO, [1, 2])], shots=10, options={"default_shots": 6}),
        _digest([(TWO, [1, 2], 10)], **base),
        _digest([(TWO, [1, 2.0000000000000004])], **base),
        _digest([(TWO, [2, 1])], **base),
        _digest([(TWO, [[1, 2]])], **base),
        _digest([(TWO + " ", [1, 2])], **base),
        _digest([(TWO, [1, 2]), (TWO, [1, 2])], **base),
        _digest([(TWO, [1, 2])], **base, max_execution_time=60),
        _digest([(TWO, [1, 2])], **base, private=True),
        _digest([(TWO, "ZZ", [1, 2])], program_id="estimator"),
        _digest([(TWO, "ZX", [1, 2])], program_id="estimator"),
        _digest([(TWO, "ZX", [1, 2], 0.5)], program_id="estimator"),
    ]
    assert len({first, *others}) == len(others) + 1


BUILD = """
import sys
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter, ParameterVector
for _ in range(int(sys.argv[1])):  # another count of circuits and registers made before
    QuantumCircuit(1, 1), QuantumRegister(1), ClassicalRegister(1)
inner = QuantumCircuit(1)
phi = Parameter("phi")
inner.rz(phi, 0)
inner.sx(0)
circuit = QuantumCircuit(QuantumRegister(3), ClassicalRegister(3))
angles = ParameterVector("t", 12)
for place, angle in enumerate(angles):
    circuit.ry(0.3 * angle + 1, place % 3)
circuit.append(inner.to_gate(), [1])
circuit.append(inner.to_gate().control(1, ctrl_state=0), [0, 1])
with circuit.for_loop(range(3)) as index:
    circuit.rx(index, 0)
circuit.measure(0, 0)
with circuit.if_test((circuit.clbits[0], 1)):
    circuit.x(1)
circuit.measure([1, 2], [1, 2])
from prefect_qruntime.client.programs import make_spec
spec = make_spec([(circuit, [[0.1] * 13], 100)], backend="b")
assert "circuit" in spec.pubs[0].identity, spec.pubs[0].identity
print(spec.digest())
"""


def test_one_circuit_built_in_two_processes_has_one_digest() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", BUILD, str(before)], check=True, timeout=300, capture_output=True, text=True
        ).stdout
        for before in (0, 5)
    ]
    assert found[0] == found[1]
    assert len(found[0].strip()) == 64


def _rx(angle: Any) -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1)
    circuit.rx(angle, 0)
    circuit.measure(0, 0)
    return circuit


@example(0.0, -0.0)
@given(st.floats(-10, 10), st.floats(-10, 10))
def test_any_changed_angle_of_a_circuit_counts(one: float, other: float) -> None:
    assert (_digest(_rx(one)) == _digest(_rx(other))) == (one == other)


def _on(*wires: int, size: int = 3) -> Callable[[Any], QuantumCircuit]:
    def build(operation: Any) -> QuantumCircuit:
        circuit = QuantumCircuit(QuantumRegister(size, "q"), ClassicalRegister(size, "out"))
        circuit.append(operation, list(wires))
        circuit.measure(range(size), range(size))
        return circuit

    return build


def _custom(angle: float) -> Gate:
    inner = QuantumCircuit(1)
    inner.rz(angle, 0)
    return inner.to_gate()


def _conditioned(value: int, register: bool) -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(2, "out"))
    with circuit.if_test((circuit.cregs[0], value) if register else (circuit.clbits[value], 1)):
        circuit.x(0)
    circuit.measure(0, 0)
    return circuit


def _expression(number: int) -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(2, "out"))
    with circuit.if_test(expr.less(circuit.cregs[0], number)):
        circuit.x(0)
    with circuit.switch(expr.bit_and(circuit.cregs[0], 1)) as case:
        with case(0, 1):
            circuit.x(0)
        with case(case.DEFAULT):
            circuit.y(0)
    circuit.measure(0, 0)
    return circuit


def _timed(nanoseconds: int) -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(1, "out"))
    slack = circuit.add_stretch("slack")
    flag = circuit.add_var("flag", expr.lift(True))
    circuit.delay(slack, 0)
    circuit.delay(expr.lift(Duration.ns(nanoseconds)), 0)
    with circuit.while_loop(flag):
        circuit.store(flag, expr.lift(circuit.clbits[0]))
    with circuit.box(duration=nanoseconds, unit="ns"):
        circuit.x(0)
    circuit.measure(0, 0)
    return circuit


def _named(*registers: str) -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumRegister(1, "q"), *(ClassicalRegister(1, name) for name in registers))
    for place in range(len(registers)):
        circuit.measure(0, place)
    return circuit


def _swapped(swap: bool, count: int) -> QuantumCircuit:
    angles = [Parameter(f"p{place:02}") for place in range(count)]
    circuit = QuantumCircuit(1, 1)
    first, last = (angles[-1], angles[0]) if swap else (angles[0], angles[-1])
    circuit.rx(first + 2 * last, 0)
    for angle in angles:
        circuit.ry(angle, 0)
    circuit.measure(0, 0)
    return circuit


VARIANTS: dict[str, list[Callable[[], QuantumCircuit]]] = {
    "gate": [lambda: _on(0)(XGate()), lambda: _on(1)(XGate()), lambda: _rx(1.0), lambda: _rx(2.0)],
    "control": [
        lambda: _on(0, 1, 2)(XGate().control(2)),
        lambda: _on(0, 1, 2)(XGate().control(2, ctrl_state=1)),
        lambda: _on(1, 0, 2)(XGate().control(2, ctrl_state=1)),
    ],
    "custom": [lambda: _on(0)(_custom(0.1)), lambda: _on(0)(_custom(0.1000001))],
    "custom control": [lambda: _on(0, 1)(_custom(0.1).control()), lambda: _on(0, 1)(_custom(0.2).control())],
    "opaque": [lambda: _on(0)(Gate("mine", 1, [0.1])), lambda: _on(0)(Gate("mine", 1, [0.2]))],
    "matrix": [lambda: _on(0)(UnitaryGate(np.eye(2))), lambda: _on(0)(UnitaryGate(np.diag([1, -1])))],
    "evolution": [
        lambda: _on(0, 1)(PauliEvolutionGate(SparsePauliOp("ZZ"), 0.1)),
        lambda: _on(0, 1)(PauliEvolutionGate(SparsePauliOp("XX"), 0.1)),
        lambda: _on(0, 1)(PauliEvolutionGate(SparsePauliOp("ZZ"), 0.2)),
    ],
    "library": [lambda: _on(0, 1)(QFTGate(2)), lambda: _on(0, 1, 2)(QFTGate(3))],
    "annotated": [
        lambda: _on(0)(AnnotatedOperation(XGate(), [PowerModifier(2.0)])),
        lambda: _on(0)(AnnotatedOperation(XGate(), [PowerModifier(3.0)])),
        lambda: _on(0)(AnnotatedOperation(XGate(), [InverseModifier()])),
    ],
    "condition": [
        lambda: _conditioned(0, True),
        lambda: _conditioned(1, True),
        lambda: _conditioned(0, False),
        lambda: _conditioned(1, False),
    ],
    "expression": [lambda: _expression(1), lambda: _expression(2)],
    "time": [lambda: _timed(5), lambda: _timed(6)],
    "register name": [lambda: _named("alpha"), lambda: _named("beta"), lambda: _named("c1"), lambda: _named("cr1")],
    "counted register names": [
        lambda: _named("c1", "c2"),
        lambda: _named("c2", "c1"),
        lambda: _named("c1", "meas2"),
        lambda: _named("c1", "x"),
    ],
    "parameter expression": [
        lambda: _rx(0.1 * Parameter("t")),
        lambda: _rx(0.1000000001 * Parameter("t")),
        lambda: _rx(0.1 * Parameter("u")),
        lambda: _rx(Parameter("t").sin()),
    ],
    "exchanged parameters": [lambda: _swapped(False, 15), lambda: _swapped(True, 15)],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_circuits_told_apart_and_told_alike(name: str) -> None:
    def digest(build: Callable[[], QuantumCircuit]) -> str:
        circuit = build()
        values = [0.5] * circuit.num_parameters or None
        spec = make_spec([(circuit, values)], backend="b")
        assert set(spec.pubs[0].identity) == {"circuit"}, "told by its structure, not by its QPY bytes"
        return spec.digest()

    found = [digest(build) for build in VARIANTS[name]]
    assert len(set(found)) == len(found), "different circuits"
    assert [digest(build) for build in VARIANTS[name]] == found, "the same circuits, built again"


def _with_every_option() -> list[Gate]:
    """The standard gates on three controls, with each value of each option that their classes take."""
    found: list[Gate] = []
    for module in pkgutil.iter_modules(standard_gates.__path__):
        kinds = vars(importlib.import_module(f"{standard_gates.__name__}.{module.name}")).values()
        for kind in list(kinds):
            if not (inspect.isclass(kind) and issubclass(kind, Gate) and kind.__module__.endswith(f".{module.name}")):
                continue
            parameters = inspect.signature(kind).parameters
            flags = [name for name, one in parameters.items() if str(one.annotation) == "bool"]
            if "num_ctrl_qubits" not in parameters or not flags:
                continue
            for values in itertools.product((False, True), repeat=len(flags)):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    found.append(kind(num_ctrl_qubits=3, **dict(zip(flags, values, strict=True))))
    return found


def test_options_that_a_standard_gate_shows_neither_by_name_nor_by_parameters_count() -> None:
    gates = _with_every_option()
    assert len(gates) >= 8
    read = []
    for gate in gates:
        circuit = QuantumCircuit(gate.num_qubits, 1)
        circuit.append(gate, range(gate.num_qubits))
        read.append((identity_of(circuit, b""), Operator(circuit).data))
        # QPY loses them: the circuit is sent as it is, or not at all.
        try:
            written, _ = write_qpy(circuit, field="")
        except InvalidInput:
            continue
        assert np.allclose(Operator(qpy.load(io.BytesIO(written))[0]).data, read[-1][1]), gate
    for (one, matrix), (other, another) in itertools.combinations(read, 2):
        assert one != other or np.allclose(matrix, another)


class _Odd(Gate):
    """A gate that does not say what it does."""

    def __init__(self) -> None:
        super().__init__("odd", 1, [])


def test_what_cannot_be_told_falls_back_to_its_bytes() -> None:
    circuit = _on(0)(_Odd())
    circuit.name = "fixed"
    spec = make_spec(circuit, backend="b")
    assert set(spec.pubs[0].identity) == {"qpy"}
    written = [write_qpy(circuit, field="")[0] for _ in range(2)]
    # Before 2.6 qiskit gives such a gate another name each time.
    assert (written[0] == written[1]) is (spec.digest() == make_spec(circuit, backend="b").digest())


def test_counted_names_do_not_count() -> None:
    def build() -> QuantumCircuit:
        circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1))
        circuit.measure(0, 0)
        circuit.measure_all()
        return circuit

    assert build().cregs[0].name != build().cregs[0].name
    assert _digest(build()) == _digest(build())
    assert _digest(_named("c9", "c10")) == _digest(_named("c1", "c2"))


def test_an_encoded_circuit_is_known_by_its_text() -> None:
    encoded = make_spec(_rx(1.0), backend="b").pubs[0].circuit
    assert isinstance(encoded, dict)
    assert _digest([(encoded, None)]) == _digest([(dict(encoded), None)])
    assert make_spec(encoded, backend="b").pubs[0].identity is None


def _blocks(seed: int) -> QuantumCircuit:
    """Nested blocks that use several qubits, registers, loose bits and variables; the same ones for each seed."""
    draw = random.Random(seed)
    first, second = ClassicalRegister(3), ClassicalRegister(3)
    circuit = QuantumCircuit(QuantumRegister(4), [Qubit()], first, second, [Clbit()])
    variables = [circuit.add_var(name, expr.lift(number, types.Uint(3))) for number, name in enumerate("abc")]
    flag = circuit.add_var("flag", expr.lift(True))

    def number() -> Any:
        return draw.choice([*variables, first, second])

    def fill(depth: int, *, in_loop: bool = False) -> None:
        for _ in range(draw.randint(1, 3)):
            kind = draw.choice(
                ["gate", "store", "measure", *(["if", "while", "for", "switch", "box"] if depth else [])]
            )
            if kind == "gate":
                circuit.cx(*draw.sample(range(5), 2))
            elif kind == "store":
                circuit.store(draw.choice(variables), expr.bit_xor(number(), draw.choice(variables)))
                circuit.store(flag, expr.less(number(), number()))
            elif kind == "measure":
                circuit.measure(draw.randrange(5), draw.randrange(7))
            elif kind == "if":
                conditions = [(circuit.clbits[2], 1), (circuit.clbits[6], False), (second, 5)]
                with circuit.if_test(draw.choice([*conditions, expr.equal(number(), number())])) as otherwise:
                    fill(depth - 1, in_loop=in_loop)
                with otherwise:
                    fill(depth - 1, in_loop=in_loop)
            elif kind == "while":
                with circuit.while_loop(draw.choice([flag, (circuit.clbits[0], 0), (first, 1)])):
                    fill(depth - 1, in_loop=True)
            elif kind == "for":
                with circuit.for_loop(range(3)) as place:
                    circuit.rx(place, draw.randrange(5))
                    fill(depth - 1, in_loop=True)
            elif kind == "switch":
                with circuit.switch(draw.choice([first, second, *variables])) as case:
                    for labels in ((0, 1), (5,), (case.DEFAULT,)):
                        with case(*labels):
                            fill(depth - 1, in_loop=in_loop)
            else:
                with circuit.box():
                    fill(depth - 1)
        if in_loop and draw.random() < 0.5:
            draw.choice([circuit.break_loop, circuit.continue_loop])()

    fill(3)
    circuit.append(AnnotatedOperation(XGate(), [PowerModifier(2)]), [0])
    circuit.measure(range(3), first)
    return circuit


def test_the_order_that_qiskit_gives_to_the_bits_of_a_block_does_not_count() -> None:
    """Its builder keeps them in sets, so that the order depends on the process and on counted names."""
    orders, found = set(), set()
    for seed in range(40):
        identities = set()
        for _ in range(4):
            circuit = _blocks(seed)
            target = io.BytesIO()
            qpy.dump(circuit, target, version=17)
            target.seek(0)
            for one in (circuit, qpy.load(target)[0]):
                ((kind, digest),) = identity_of(one, b"").items()
                assert kind == "circuit"
                identities.add(digest)
            orders.add((seed, *(circuit.find_bit(bit).index for item in circuit.data for bit in item.qubits)))
        assert len(identities) == 1, seed
        found |= identities
    assert len(orders) > 40, "the orders differ, or this shows nothing"
    assert len(found) == 40


def test_expressions_are_known_alike_by_every_version_of_qiskit() -> None:
    """Qiskit 2.0 keeps True as it is, 2.6 has 1: a job that was submitted before the upgrade is found by its key."""
    circuit = QuantumCircuit(QuantumRegister(1, "q"), ClassicalRegister(1, "out"))
    flag = circuit.add_var("flag", expr.lift(True))
    circuit.store(flag, expr.logic_or(expr.logic_not(flag), expr.Value(False, types.Bool())))
    with circuit.if_test(expr.logic_and(flag, expr.equal(circuit.cregs[0], 1))):
        circuit.x(0)
    circuit.measure(0, 0)
    recorded = "b5ba0474b17cff7f3da7466bb45971acc5ea3b1fc63d97ccd8389f3504366345"
    assert identity_of(circuit, b"") == {"circuit": recorded}


def test_operands_of_blocks_count() -> None:
    def build(qubits: list[int], bits: list[int], *, gate: tuple[int, int] = (0, 1)) -> QuantumCircuit:
        circuit = QuantumCircuit(QuantumRegister(3, "q"), ClassicalRegister(3, "out"))
        inner = QuantumCircuit(2, 2)
        inner.cx(*gate)
        inner.measure(0, 0)
        circuit.if_test((circuit.clbits[2], 1), inner, qubits, bits)
        circuit.measure(range(3), range(3))
        return circuit

    first = _digest(build([1, 2], [0, 1]))
    others = [
        build([2, 1], [0, 1]), build([1, 2], [1, 0]), build([0, 2], [0, 1]), build([1, 2], [0, 1], gate=(1, 0))
    ]  # fmt: skip
    assert len({first, *map(_digest, others)}) == 5


@pytest.mark.parametrize("name", ["box", "for_loop", "break_loop"])
def test_the_qubits_of_a_gate_with_the_name_of_a_block_count(name: str) -> None:
    inner = QuantumCircuit(2, name=name)
    inner.cx(0, 1)
    assert _digest(_on(0, 1)(inner.to_gate())) != _digest(_on(1, 0)(inner.to_gate()))


@pytest.mark.parametrize("value", [1, True])
def test_a_condition_on_a_bit_is_that_of_transpiled_circuits_also_in_earlier_submissions(value: int) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], value)):
        circuit.x(0)
    known = {"circuit": "47d602cff3592bddc395b838aeb3b84cb156793797aa0b04753358fb83b9c9a5"}
    for one in (circuit, circuit.copy()):
        assert identity_of(one, b"") == known


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64, int])
def test_numpy_s_numbers_are_those_that_qpy_is_read_with(kind: Any) -> None:
    def built() -> QuantumCircuit:
        circuit = QuantumCircuit(1, 1)
        angle = Parameter("angle")
        with circuit.for_loop([kind(1), kind(4)], angle):
            circuit.rx(angle * Parameter("a"), 0)
        with circuit.for_loop(np.arange(3, dtype=kind)):
            circuit.x(0)
        with circuit.box(duration=kind(100), unit="dt"):
            circuit.append(Gate("own", 1, [kind(3), np.float32(0.5)]), [0])
        circuit.measure(0, 0)
        return circuit

    sent = make_spec([(built(), [0.1])], backend="b").pubs[0]
    assert isinstance(sent.circuit, dict)
    assert identity_of(load_qpy(sent.circuit, field=""), b"") == sent.identity
    assert set(sent.identity) == {"circuit"}
