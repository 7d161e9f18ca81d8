"""What the sandbox reads of OpenQASM, compared with what Python makes of the same expressions; and what it refuses."""

import math
import re

import orjson
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit.classical import expr, types

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.state import Run
from prefect_qruntime.sandbox.worker import execute

from .test_physics import encode_circuit

H3 = 'OPENQASM 3.0; include "stdgates.inc"; '
H2 = 'OPENQASM 2.0; include "qelib1.inc"; '
IDEAL = Run(Backend("ideal", 32, noisy=False), 7)
QUIET = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def outcome(circuit, values=None, shots=8, run=IDEAL):
    return execute("sampler", {"pubs": [[circuit, values, shots]]}, run)


def read(circuit, values=None, shots=8):
    """Run a circuit that has one answer in every register; return them."""
    done = outcome(circuit, values, shots)
    assert done.body is not None, done.reason
    data = orjson.loads(done.body)["results"][0]["data"]
    for register in data.values():
        assert len(set(register["samples"])) == 1, register["samples"]
    return {name: int(register["samples"][0], 16) for name, register in data.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # scalar bits
        ("qubit[2] q; bit a; bit[1] c; x q[0]; a = measure q[0]; if (a == 1) { x q[1]; } c[0] = measure q[1];", 1),
        ("qubit[2] q; bit a; bit[1] c; x q[0]; a = measure q[0]; if (a == 0) { x q[1]; } c[0] = measure q[1];", 0),
        ("qubit[2] q; bit a; bit[1] c; a = measure q[0]; if (a != 1) { x q[1]; } c[0] = measure q[1];", 1),
        ("qubit[2] q; bit a; bit[1] c; a = measure q[0]; if (1 == a) { x q[1]; } c[0] = measure q[1];", 0),
        ("qubit[2] q; bit a; bit[1] c; x q[0]; a = measure q[0]; if (a) { x q[1]; } c[0] = measure q[1];", 1),
        ("qubit[2] q; bit a = 1; bit b; bit[1] c; b = a; if (a && b) x q[1]; c[0] = measure q[1];", 1),
        # loops
        ("qubit[4] q; bit[4] c; for uint i in [0:2] { x q[i]; } c = measure q;", 0b0111),
        ("qubit[4] q; bit[4] c; for uint i in [0:2:3] { x q[i]; } c = measure q;", 0b0101),
        ("qubit[4] q; bit[4] c; for int i in [3:-1:2] { x q[i]; } c = measure q;", 0b1100),
        ("qubit[4] q; bit[4] c; for uint i in {0, 3} { x q[i]; } c = measure q;", 0b1001),
        ("qubit[4] q; bit[4] c; x q[0]; for uint i in [0:2] { cx q[i], q[i + 1]; } c = measure q;", 0b1111),
        ("qubit[4] q; bit[4] c; x q[2]; for int i in [0:3] { c[i] = measure q[i]; }", 0b0100),
        ("qubit[4] q; bit[4] c; for int i in [0:1] { for int j in [0:1] { x q[2 * i + j]; } } c = measure q;", 0b1111),
        ("qubit[4] q; bit[4] c; for int i in [0:3] { if (i % 2 == 1) { x q[i]; } } c = measure q;", 0b1010),
        ("const uint n = 3; qubit[n] q; bit[n] c; for uint i in [0:n - 1] { x q[i]; } c = measure q;", 0b111),
        ("qubit[1] q; bit[1] c; for int i in [1:2] { rx(pi / 2) q[0]; } c = measure q;", 1),
        ("qubit[2] q; bit[2] c; for uint i in [0:3] { x q[0]; break; } c = measure q;", 1),
        # constants
        ("const int[32] n = 1 + 1; qubit[n] q; bit[2 * n] c; x q[n - 1]; c[n] = measure q[1];", 0b100),
        ("const float[64] half = pi / 2; qubit[1] q; bit[1] c; rx(2 * half) q[0]; c = measure q;", 1),
        ("const angle turn = pi; gate flip a { rx(turn) a; } qubit[1] q; bit[1] c; flip q[0]; c = measure q;", 1),
        ("const bool yes = true; qubit[1] q; bit[1] c; if (yes && !false) { x q[0]; } c = measure q;", 1),
        ("qubit[1] q; bit[1] c; rx(2 * arcsin(1)) q[0]; rx(pi * sqrt(4)) q[0]; c = measure q;", 1),
        # variables
        ("qubit[2] q; bit[2] c; int[32] n = 3; if (n == 3) { x q[0]; } c = measure q;", 1),
        ("qubit[2] q; bit[2] c; uint[8] n = 255; n = n + 1; if (n == 0) { x q[0]; } c = measure q;", 1),
        ("qubit[2] q; bit[2] c; uint[8] n = 3; n += 4; n <<= 1; if (n == 14) { x q[0]; } c = measure q;", 1),
        ("qubit[2] q; bit[2] c; bool b = true; b = !b; if (b) { x q[0]; } c = measure q;", 0),
        ("qubit[2] q; bit[2] c; x q[0]; c = measure q; uint[2] n = c; if (n[0]) { x q[1]; } c = measure q;", 0b11),
        ("qubit[2] q; bit[2] c; x q[0]; c = measure q; if (uint[2](c) + 1 == 2) { x q[1]; } c = measure q;", 0b11),
        ('qubit[2] q; bit[2] c = "10"; if (c == 2) { x q[0]; } c = measure q;', 1),
        ('qubit[2] q; bit[2] c; c = "10";', 2),
        ("qubit[3] q; bit[3] c; x q[0]; c[0] = measure q[0]; if (c[0]) { if (c[1] == 0) { x q[2]; } } c = measure q;", 5),
        # switch
        ("qubit[2] q; bit[2] c; x q[0]; c[0] = measure q[0]; switch (c) { case 1 { x q[1]; } default { } } c = measure q;", 3),
        ("qubit[2] q; bit[2] c; int n = 5; switch (n) { case 1, 2 { x q[0]; } default { x q[1]; } } c = measure q;", 2),
        # the rest
        ("output bit[2] c; qubit[2] q; x q[1]; c = measure q;", 2),
        ("pragma something else\nqubit[1] q; bit[1] c; @note here\nx q[0]; c = measure q;", 1),
        ("qubit[1] q; bit[1] c; stretch wait; duration d = 10ns; delay[wait] q; delay[d] q; x q; c = measure q;", 1),
        ("qubit[1] q; bit[1] c; box { x q; } c = measure q; end; x q;", 1),
        ("qubit[1] q; bit[1] c; x q; c = measure q; if (c[0]) { box { x q; } } c = measure q;", 0),
    ],
)  # fmt: skip
def test_programs(text, expected):
    assert read(H3 + text)["c"] == expected


def test_the_version_may_be_left_out_and_a_mark_may_come_first():
    assert read('include "stdgates.inc"; qubit[1] q; bit[1] c; x q; c = measure q;') == {"c": 1}
    assert read("\ufeff/* OPENQASM 2.0; */ " + H3 + "qubit[1] q; bit[1] c; x q; c = measure q;") == {"c": 1}
    assert read("\ufeff// first\r\n" + H2 + "qreg q[1];\r\ncreg c[1]; x q[0]; measure q->c;") == {"c": 1}


def test_inputs_that_nothing_uses():
    text = H3 + "input float[64] a; input float[64] b; qubit[1] q; bit[1] c; rx(b) q[0]; c = measure q;"
    assert read(text, {"a": 1.0, "b": math.pi}) == {"c": 1}
    assert read(text, [1.0, math.pi]) == {"c": 1}
    assert read(text, [math.pi, 0.0]) == {"c": 0}
    params = {"pubs": [[text.replace("bit[1] c;", "").replace("c = measure q;", ""), "Z", {"a": 1.0, "b": math.pi}]]}
    done = execute("estimator", params, IDEAL)
    assert orjson.loads(done.body)["results"][0]["data"]["evs"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Not what the gates of these names do in the library: each only flips its last qubit.
        (H2 + "qreg q[2]; creg c[2]; gate cu a, b { x b; } cu q[0], q[1]; measure q -> c;", 2),
        (H2 + "qreg q[2]; creg c[2]; gate rzz(t) a, b { x b; } rzz(1) q[0], q[1]; measure q -> c;", 2),
        (H2 + "qreg q[2]; creg c[2]; gate iswap a, b { x b; } iswap q[0], q[1]; measure q -> c;", 2),
        (H3 + "gate rzz(t) a, b { x b; } qubit[2] q; bit[2] c; rzz(1) q[0], q[1]; c = measure q;", 2),
        (H3 + "gate ecr a, b { x b; } gate ccz a, b { ecr a, b; } qubit[2] q; bit[2] c; ccz q[0], q[1]; c = measure q;", 2),
        ("OPENQASM 3.0; gate x a { } gate h a { U(pi, 0, pi) a; } qubit[2] q; bit[2] c; x q[0]; h q[1]; c = measure q;", 2),
        (H3 + "gate rzz(t) a, b { x b; } qubit[2] q; bit[2] c; if (c[0] == 0) { rzz(1) q[0], q[1]; } c = measure q;", 2),
    ],
)  # fmt: skip
def test_own_gates_named_like_those_of_the_library(text, expected):
    assert read(text) == {"c": expected}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(qubit a) { x a; } qubit[1] q; bit[1] c;", "line 1: 'def' is not supported"),
        ("extern f(int[32]) -> int[32]; qubit[1] q; bit[1] c;", "'extern' is not supported"),
        ("qubit[1] q; array[bit, 2] c;", "declarations of type 'array' are not supported"),
        ("qubit[1] q; complex[float[64]] c;", "declarations of type 'complex' are not supported"),
        ("output int[32] n; qubit[1] q; bit[1] c;", "the 'output' keyword is not supported"),
        ("input int[32] n; qubit[1] q; bit[1] c;", "only 'float' and 'angle' inputs are supported"),
        ("qubit[1] q; bit[1] c; float[64] f = 1.0; f = 2.0;", "a constant cannot be changed"),
        ("qubit[1] q; bit[1] c; const int n = 1; n = 2;", "a constant cannot be changed"),
        ("qubit[1] q; bit[1] c; uint[8] n = 4; n = n / 2;", "the operator '/' is not supported on variables"),
        ("qubit[1] q; bit[1] c; int[8] n = -1;", "the value -1 does not fit 8 bits without a sign"),
        ("qubit[1] q; bit[1] c; uint[2] n = 4;", "the value 4 does not fit 2 bits"),
        ("qubit[1] q; bit[1] c; uint[65] n;", "integers may have 1 to 64 bits, not 65"),
        ("qubit[1] q; bit[1] c; uint[8] n = 1; x q[n];", "an index must be constant"),
        ("qubit[1] q; bit[1] c; uint[8] n = 1; rx(n) q[0];", "line 1"),
        ("qubit[2] q; bit[1] c; x q[2];", "index 2 is beyond the 2 elements"),
        ("input float a; qubit[1] q; bit[1] c; rx(sin(a)) q[0];", "required a constant value"),
        ("qubit[1] q; bit[1] c; for int i in [0:100000] { x q[0]; }", "more than 10000 rounds"),
        ("qubit[1] q; bit[1] c; for float f in {1.0} { x q[0]; }", "only integer loop variables"),
        ("qubit[1] q; bit[1] c; rx(1 / 0) q[0];", "line 1"),
        ("qubit[1] q; bit[1] c; if (c[0]) { end; }", "'end inside a block' is not supported"),
        ("qubit[1] q; bit[1] c; nonsense q[0];", "gate 'nonsense' is not defined"),
        ("qubit[1] q; bit[1] c; x q[0] x q[0];", "could not be parsed"),
        ("qubit[1] q; bit[1] c; duration d = durationof({ x q[0]; });", "'DurationOf'"),
        ('defcalgrammar "openpulse"; qubit[1] q; bit[1] c;', "'defcalgrammar' is not supported"),
        ("gate cx a, b { } qubit[2] q; bit[1] c;", "'cx' is already defined"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name_and_place(text, words):
    done = outcome(H3 + text)
    assert done.status == "Failed"
    assert words in done.reason
    assert not re.search(r"AttributeError|TypeError|object at 0x", done.reason)


# --- expressions, against Python

BITS = {"a": 1, "b": 0, "r": 0b101, "k": 0b011, "n": 0b1011, "m": 0b0110}
"""Scalar bits, registers of three bits, integers of four."""
PREPARED = (
    "qubit[4] q; bit a = 1; bit b = 0; bit[3] r; bit[3] k; bit[1] c; x q[0]; x q[2]; r = measure q[0:2];"
    " x q[1]; x q[2]; k = measure q[0:2]; reset q; uint[4] n = 11; uint[4] m = 6; "
)
TRUTHS = st.sampled_from(["a", "b", "r[0]", "r[1]", "k[2]", "true", "false", "n[3]", "m[0]"])
WIDE = st.sampled_from(["r", "k", "n", "m"])


def python(text):
    """The same expression for Python, with arithmetic on four bits (three for registers alone)."""
    text = re.sub(r"\b([a-z])\[(\d)\]", r"(\1 >> \2 & 1)", text)
    text = text.replace("&&", " and ").replace("||", " or ").replace("true", "True").replace("false", "False")
    return re.sub(r"!(?!=)", " not ", text)


@st.composite
def truths(draw, depth=3):
    """Expressions that are true or false."""
    kind = draw(st.integers(0, 5)) if depth else 0
    if kind == 0:
        return draw(TRUTHS)
    if kind == 1:
        return f"!({draw(truths(depth - 1))})"
    if kind in (2, 3):
        sign = draw(st.sampled_from(["&&", "||"]))
        return f"(({draw(truths(depth - 1))}) {sign} ({draw(truths(depth - 1))}))"
    sign = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    left, right = draw(WIDE), draw(st.one_of(WIDE, st.integers(0, 7).map(str)))
    if kind == 5:
        inner = draw(st.sampled_from(["&", "|", "^"]))
        left = f"({left} {inner} {draw(st.one_of(WIDE, st.integers(0, 7).map(str)))})"
    return f"({left} {sign} {right})"


@QUIET
@given(truths())
def test_conditions(text):
    program = f"{H3}{PREPARED} if ({text}) {{ x q[3]; }} c[0] = measure q[3];"
    assert read(program, shots=2)["c"] == int(bool(eval(python(text), {}, BITS)))


@QUIET
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["n", "m"]),
            st.sampled_from(["+", "-", "*", "&", "|", "^", "<<", ">>"]),
            st.sampled_from(["n", "m"]),
            st.sampled_from(["n", "m", "1", "2", "3", "r"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_arithmetic(steps):
    values, program = dict(BITS), H3 + PREPARED
    for target, sign, left, right in steps:
        if sign in ("<<", ">>") and right == "r":
            right = "2"
        program += f"{target} = {left} {sign} {right}; "
        values[target] = eval(f"({left} {sign} {right}) % 16", {}, values)
    checks = f"(n == {values['n']}) && (m == {values['m']})"
    assert read(f"{program} if ({checks}) {{ x q[3]; }} c[0] = measure q[3];", shots=2)["c"] == 1


def test_circuits_with_variables_and_boxes():
    circuit = QuantumCircuit(2, 2)
    flag = circuit.add_var("flag", expr.lift(True))
    count = circuit.add_var("count", expr.lift(0, types.Uint(4)))
    with circuit.box():
        circuit.x(0)
    circuit.measure(0, 0)
    circuit.store(flag, expr.logic_not(circuit.clbits[0]))
    with circuit.for_loop(range(3)):
        circuit.store(count, expr.add(count, 1))
    with circuit.if_test(expr.logic_and(expr.logic_not(flag), expr.equal(count, 3))):
        inner = circuit.add_var("inner", expr.bit_not(count))
        with circuit.if_test(expr.equal(inner, 12)):
            circuit.x(1)
    circuit.measure(1, 1)
    assert read(encode_circuit(circuit)) == {"c": 3}


def test_a_while_loop_over_a_variable():
    text = "qubit[1] q; bit[1] c; uint[3] n = 5; while (n > 0) { n = n - 1; x q[0]; } c = measure q;"
    assert read(H3 + text) == {"c": 1}


def test_what_qiskit_writes_is_read():
    circuit = QuantumCircuit(3, 3)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.rzz(0.3, 1, 2)
    with circuit.switch(circuit.cregs[0]) as case:
        with case(0):
            circuit.x(2)
        with case(case.DEFAULT):
            circuit.y(2)
    circuit.measure(2, 2)
    assert read(qasm3.dumps(circuit)) == {"c": 4}
