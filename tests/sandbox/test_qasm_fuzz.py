"""Any OpenQASM 3 program runs, or is refused in words for its author: never with an error from inside the sandbox."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from hypothesis.strategies import DrawFn

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.state import Run
from prefect_qruntime.sandbox.worker import execute

IDEAL = Run(Backend("ideal", 32, noisy=False), 7)
QUIET = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
INTERNAL = re.compile(
    r"Traceback|\b[A-Z]\w*(?:Error|Exception)\b|NoneType|object at 0x|has no attribute|subscriptable|unhashable|span="
    r"|(?:positional|keyword) argument"
    r"|unsupported operand|not supported between|not iterable|\bself\b|<class|prefect_qruntime|qiskit_qasm3_import"
)
"""What a Python error says of itself, and what no author of a circuit could have meant."""

# The names that a program may declare, each with one of these kinds; others are used too, undeclared.
NAMES = ("a", "b", "n", "m", "q", "r", "c", "d", "f", "g", "i", "pi")
TYPES = (
    *("bit", "bit[2]", "bit[3]", "bool", "int", "int[8]", "uint", "uint[4]", "float", "float[64]", "angle", "duration"),
    *(
        "stretch",
        "complex",
        "complex[float[64]]",
        "array[int[8], 2]",
        "qubit",
        "qubit[2]",
        "qubit[0]",
        "bit[0]",
        "uint[0]",
    ),
)
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "255",
    "1.5",
    "0x1f",
    "0b101",
    "1e400",
    "10ns",
    "2dt",
    '"01"',
    "true",
    "3im",
    "1_000",
)
BINARY = ("+", "-", "*", "/", "%", "**", "<<", ">>", "&", "|", "^", "&&", "||", "==", "!=", "<", "<=", ">", ">=", "++")
FUNCTIONS = ("sin", "sqrt", "log", "mod", "popcount", "rotl", "sizeof", "real", "durationof", "unknown")
GATES = (
    *("x", "h", "cx", "rx", "rzz", "U", "gphase", "own", "nothing", "ctrl @ x", "negctrl(2) @ x", "inv @ s", "u3"),
    *("pow(0.5) @ x", "pow(n) @ x", "ctrl(n) @ rx", "measure"),
)  # fmt: skip
OTHERS = (
    *("gate own(t) u { rx(t) u; }", "gate own u, v { cx u, v; measure u; }", "gate g(a) { }", "def g(int[8] n) { }"),
    *("extern f(int) -> int;", "defcal x q { }", "cal { }", "return 1;", "break;", "continue;", "nop q;", "f(1);"),
    *("pragma x", "@note\nx q;", 'include "other.inc";'),
)


@st.composite
def expressions(draw: DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 9)) if depth else draw(st.integers(0, 1))
    inner = expressions(depth - 1) if depth else st.just("1")
    if kind == 0:
        return draw(st.sampled_from(NAMES))
    if kind == 1:
        return draw(st.sampled_from(NUMBERS))
    if kind in (2, 3, 4):
        return f"({draw(inner)} {draw(st.sampled_from(BINARY))} {draw(inner)})"
    if kind == 5:
        return f"{draw(st.sampled_from(['!', '~', '-']))}({draw(inner)})"
    if kind == 6:
        return f"{draw(st.sampled_from(FUNCTIONS))}({', '.join(draw(st.lists(inner, max_size=2)))})"
    if kind == 7:
        return f"{draw(st.sampled_from(TYPES[:12]))}({draw(inner)})"
    return f"{draw(st.sampled_from(NAMES))}[{draw(indices())}]"


@st.composite
def indices(draw: DrawFn) -> str:
    part = expressions(0)
    kind = draw(st.integers(0, 4))
    if kind < 2:
        return draw(part)
    if kind == 2:
        return f"{draw(part)}:{draw(part)}"
    if kind == 3:
        return f"{draw(part)}:{draw(part)}:{draw(part)}"
    return "{" + ", ".join(draw(st.lists(part, max_size=3))) + "}"


@st.composite
def places(draw: DrawFn) -> str:
    name = draw(st.sampled_from([*NAMES, "q", "q", "$0", "$1"]))
    return f"{name}[{draw(indices())}]" if draw(st.booleans()) else name


@st.composite
def gate_calls(draw: DrawFn) -> str:
    values = draw(st.lists(expressions(1), max_size=2))
    given = f"({', '.join(values)})" if values else ""
    return f"{draw(st.sampled_from(GATES))}{given} {', '.join(draw(st.lists(places(), min_size=1, max_size=3)))};"


@st.composite
def declarations(draw: DrawFn) -> str:
    word = draw(st.sampled_from(["", "", "", "const ", "input ", "output ", "mutable "]))
    value = f" = {draw(expressions())}" if draw(st.booleans()) else ""
    return f"{word}{draw(st.sampled_from(TYPES))} {draw(st.sampled_from(NAMES))}{value};"


@st.composite
def statements(draw: DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 15))
    if kind <= 2:
        return draw(declarations())
    if kind <= 5:
        return draw(gate_calls())
    if kind == 6:
        return f"{draw(places())} = {draw(expressions())};"
    if kind == 7:
        return f"{draw(places())} {draw(st.sampled_from(['+=', '<<=', '&=', '/=', '~=']))} {draw(expressions(1))};"
    if kind == 8:
        return f"{draw(places())} = measure {draw(places())};"
    if kind == 9:
        return draw(
            st.sampled_from(
                ["reset q;", "barrier;", "barrier q, r;", "delay[10ns] q;", "delay[n] q[0];", "end;", "measure q -> c;"]
            )
        )
    if kind == 10:
        return f"let {draw(st.sampled_from(NAMES))} = {draw(places())}{draw(st.sampled_from(['', ' ++ q', ' ++ c']))};"
    if kind == 11:
        return draw(st.sampled_from(OTHERS))
    if not depth:
        return "x q[0];"
    block = "{ " + " ".join(draw(st.lists(statements(depth - 1), max_size=2))) + " }"
    if kind == 12:
        other = f" else {block}" if draw(st.booleans()) else ""
        return f"if ({draw(expressions())}) {block}{other}"
    if kind == 13:
        over = draw(st.one_of(st.sampled_from(NAMES), indices().map(lambda text: text if "{" in text else f"[{text}]")))
        return f"for {draw(st.sampled_from(['int', 'uint[4]', 'float', 'bit']))} i in {over} {block}"
    if kind == 14:
        # A condition that never changes is a loop without an end, which the time limit of the job is for.
        return f"while ({draw(st.sampled_from(['false', 'n < 0', 'c[7]', 'f', 'sin(1) > 2', 'q']))}) {block}"
    cases = f"case {draw(expressions(0))} {block} " * draw(st.integers(0, 2))
    return f"switch ({draw(expressions(1))}) {{ {cases}default {block} }}"


@QUIET
@given(
    head=st.sampled_from(
        [
            "",
            "qubit[3] q; bit[3] c; ",
            "qubit[3] q; bit[3] c; qubit r; bit b; uint[4] n = 3; bool f = true; ",
            "input float a; qubit[3] q; bit[3] c; int[8] m; const int i = 2; ",
        ]
    ),
    body=st.lists(statements(), min_size=1, max_size=4),
)
@example("qubit[2] q; bit[2] c; ", ["c = q;"])
@example("qubit[2] q; bit[2] c; ", ["q = c;"])
@example("qubit[2] q; bit[2] c; ", ["x c;"])
@example("qubit[2] q; bit[2] c; ", ["uint[4] n; n[0] = 1;"])
@example("qubit[2] q; bit[2] c; ", ["let a = c[0:1] ++ q;"])
@example("qubit[2] q; bit[2] c; ", ["int n = 1.5; float f = true; angle d = 1 << 3;"])
def test_a_program_runs_or_is_refused_in_words(head: str, body: list[str]) -> None:
    assert_clear(f'OPENQASM 3.0; include "stdgates.inc"; {head}{chr(10).join(body)}')


@QUIET
@given(st.text(alphabet=st.sampled_from('ghqc01 ;{}[]()=+-*/<>"@$:,.\n\\\t\x00é'), max_size=40))
def test_any_text_is_refused_in_words(text: str) -> None:
    assert_clear(f"OPENQASM 3.0;\n{text}")


@pytest.mark.parametrize("depth", [50, 1000])
def test_depth_is_refused_in_words(depth: int) -> None:
    head = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; '
    for text in (
        f"rx({'(' * depth}1{')' * depth}) q[0];",
        f"{'if (c[0]) { ' * depth}x q[0];{' }' * depth}",
        f"rx({'-' * depth}1) q[0];",
    ):
        assert_clear(f"{head}{text} c = measure q;")


def assert_clear(text: str) -> None:
    """Run a program; what it says if it fails is for its author."""
    params: dict[str, Any] = {"pubs": [[text, None, 2]]}
    done = execute("sampler", params, IDEAL)
    if done.body is not None:
        return
    assert done.status == "Failed"
    assert done.reason, text
    assert len(done.reason) < 1000
    assert "Traceback" not in (done.text or ""), f"{text}\n{done.text}"
    found = INTERNAL.search(done.reason)
    assert found is None, f"{text}\n{done.reason}"
