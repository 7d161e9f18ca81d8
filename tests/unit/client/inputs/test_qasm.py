"""OpenQASM text: constant sizes, scalar bits, the version line, syntax errors, files."""

from __future__ import annotations

import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from prefect_qruntime.client.inputs import qasm
from prefect_qruntime.client.inputs.qasm import (
    _first_error,
    constant_value,
    path_of,
    read_path,
    scan,
    syntax_error,
    with_version,
)
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import InvalidInput

numbers = st.integers(0, 99).flatmap(lambda n: st.sampled_from([str(n), hex(n), bin(n), oct(n)]))
expressions = st.recursive(
    numbers | st.sampled_from(["n", "m"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", "-", "*", " / ", "%"]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=6,
)


@given(expressions)
def test_a_constant_size_is_what_integer_arithmetic_gives(text: str) -> None:
    names = {"n": 3, "m": 7}
    try:
        wanted = eval(text.replace("/", "//"), {}, names)
    except ZeroDivisionError:
        wanted = None
    found = constant_value(text, names)
    if found is not None:
        assert found == wanted
    elif wanted is not None:
        assert not 0 <= wanted <= 2**31 or "/" in text or "%" in text, "division of negatives differs by language"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2**31",
        "9**9**9",
        "x",
        "__import__('os')",
        "f(2)",
        "1.5",
        "2 2",
        "-1",
        "1/0",
        "0b",
        "(" * 150 + "1" + ")" * 9,
    ],
)
def test_what_is_not_a_constant_is_left_open(text: str) -> None:
    assert constant_value(text, {}) is None


@pytest.mark.parametrize(
    ("declared", "registers", "scalars"),
    [
        ("bit[1+1] c;", (("c", 2),), ()),
        ("const uint n = 1+1; bit[2*n] c;", (("c", 4),), ()),
        ("bit[0b10] c;", (("c", 2),), ()),
        ("bit[f(2)] c;", (("c", None),), ()),
        ("bit c;", (("c", 1),), ("c",)),
        ("output bit c; bit[3] d;", (("c", 1), ("d", 3)), ("c",)),
        ("bit a; bit b;", (("a", 1), ("b", 1)), ("a", "b")),
        ("bit c = measure $0;", (("c", 1),), ("c",)),
        ("creg c[2];", (("c", 2),), ()),
        ("creg c; creg d[1];", (("c", 1), ("d", 1)), ("c",)),
        ("def f(qubit q) -> bit { bit d; return d; } bit[1] c;", (("c", 1),), ()),
    ],
)
def test_registers_and_scalar_bits(
    declared: str, registers: tuple[tuple[str, int | None], ...], scalars: tuple[str, ...]
) -> None:
    program = scan(f"OPENQASM 3.0; {declared} c = measure $0;", field="x")
    assert (program.registers, program.scalars) == (registers, scalars)


@pytest.mark.parametrize(
    "text",
    [
        'include "stdgates.inc"; qubit q; bit[1] c; c = measure q;',
        "// a comment\nqubit[2] q; bit[2] c; c = measure q;",
        "bit[1] c; c[0] = measure $0;",
        "x $0; bit[1] c; c[0] = measure $0;",
        "rz(0.5) $3; bit[1] c; c[0] = measure $3;",
        "input float[64] a; qubit q; rx(a) q; bit[1] c; c[0] = measure q;",
    ],
)
def test_version_3_may_leave_its_version_line_out(text: str) -> None:
    program = scan(text, field="x")
    assert program.version == 3
    values = [0.1] if program.inputs else None
    bare, full = (make_spec([(form, values)], backend="b") for form in (text, f"OPENQASM 3.0;\n{text}"))
    assert bare.pubs[0].circuit == full.pubs[0].circuit == with_version(text)
    assert bare.digest() == full.digest()


@pytest.mark.parametrize(
    "text",
    [
        "bell.qasm",
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/bash",
        "SECRET;0123",
        "TOKEN=abc; x",
        "OPENQASM x; bit c;",
    ],
)
def test_what_is_not_openqasm_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_spec([text], backend="b")
    assert text not in str(caught.value)


def test_version_2_without_its_version_line_says_what_to_add() -> None:
    with pytest.raises(InvalidInput, match=r"OPENQASM 2\.0;"):
        scan('// made by hand\ninclude "qelib1.inc";\nqreg q[1]; creg c[1]; measure q -> c;', field="x")


H3 = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'
H2 = 'OPENQASM 2.0;\ninclude "qelib1.inc";\n'


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (H3 + "qubit[2] q; bit[2] c;\nx q[0]\nc = measure q;", "line 5, column 1"),
        (H3 + "qubit q; bit[1] c; c = measure (q;", "line 3, column 32"),
        (H3 + "qubit q; bit[1] c; c = measure q; }", "line 3, column 35"),
        (H3 + "qubit q; bit[1] c; c = measure q; ?", "line 3, column 35"),
        (H2 + "qreg q[1]; creg c[1];\nx q[0]\nmeasure q -> c;", "line 5, column 1"),
    ],
)
def test_syntax_errors_are_found_locally_with_their_place(text: str, where: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_spec([text], backend="b")
    assert caught.value.field == "pubs[0].circuit"
    assert f"syntax error at {where}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        # Words of version 3 are plain names in version 2, and `opaque` is a statement.
        H2 + "opaque foo a; qreg box[1]; creg output[1]; measure box -> output;",
        H2 + "gate let a { x a; } qreg q[1]; creg c[1]; let q[0]; measure q -> c; if (c == 1) x q[0];",
        H3 + "qubit q; bit[1] c; for int i in [0:1] { x q; } c = measure q; if (c == 1) { x q; }",
        "OPENQASM 3.1;\n#pragma ibm x\n@note ?!\nbit[1] c; box { delay[10ns] $0; } c[0] = measure $0;",
    ],
)
def test_what_is_valid_passes(text: str) -> None:
    assert syntax_error(text, scan(text, field="x").version) is None


def test_without_a_parser_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _first_error.cache_clear()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "openqasm3.parser", None)
        assert syntax_error(H3 + "x q[0]", 3) is None
    _first_error.cache_clear()
    assert syntax_error(H3 + "x q[0]", 3) is not None


def test_threads_with_the_same_circuit_parse_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import openqasm3.parser

    parsed: list[str] = []

    def parse(text: str) -> None:
        parsed.append(text)
        time.sleep(0.05)  # the other threads arrive meanwhile

    monkeypatch.setattr(openqasm3.parser, "parse", parse)
    _first_error.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: syntax_error(H3 + "ctrl @ x q[0], q[1];", 3), range(4)))
    _first_error.cache_clear()
    assert (found, len(parsed)) == ([None] * 4, 1)


PLAIN = [
    'include "stdgates.inc";',
    "qubit[2] q;",
    "qubit a;",
    "bit[2] c;",
    "bit d;",
    "qreg q[2];",
    "creg c[2];",
    "input float[64] theta;",
    "h $0;",
    "cx q[0], q[1];",
    "rz(-pi/2*theta + 1.5e-3) $1;",
    "U(0, -theta, 2)q[0];",
    "c[0] = measure $0;",
    "c=measure q;",
    "measure q -> c;",
    "barrier q[0], $1;",
    "reset q;",
    "gate rzz(p) a, b { cx a, b; rz(p) b; cx a, b; }",
    "gate id2 a {}",
]
pieces = st.sampled_from(
    [*re.findall(r"->|[\w.$]+|\S", " ".join(PLAIN)), "if", "ctrl @", "0x1F", "10ns", "1.", "**", "//", "/*", "\r", "é"]
)
statements = st.sampled_from(PLAIN).map(lambda text: re.findall(r"->|\"[^\"]*\"|[\w.$]+|\S", text))
changed = st.tuples(statements, st.integers(0, 30), st.lists(pieces, max_size=2), st.integers(0, 2)).map(
    lambda drawn: [*drawn[0][: drawn[1]], *drawn[2], *drawn[0][drawn[1] + drawn[3] :]]
)
texts = st.tuples(st.lists(statements | changed, min_size=1, max_size=2), st.sampled_from([" ", "\n", "\t ", ""])).map(
    lambda drawn: "OPENQASM 3.0;\n" + "\n".join(drawn[1].join(statement) for statement in drawn[0])
)


@settings(max_examples=400)
@given(texts)
def test_what_is_plain_has_no_syntax_error(text: str) -> None:
    from openqasm3.parser import parse

    if qasm._is_plain(text):
        parse(text)


@pytest.mark.parametrize("statement", PLAIN)
def test_a_plain_statement_needs_no_parser(statement: str) -> None:
    for gap in ("\n", "  ", "\r\n", " // comment\n"):
        spaced = statement if statement.startswith("include") else statement.replace(" ", gap)
        assert qasm._is_plain(f"OPENQASM 3.0;{gap}{spaced}{gap}x $0;{gap}")
    assert not qasm._is_plain(f"OPENQASM 3.0;{statement[:-1]} ?")


@pytest.mark.parametrize("declared", ["creg c[0];", "qreg q[00];", "input angle[0] a;"])
def test_a_register_without_bits_is_left_to_the_parser(declared: str) -> None:
    assert syntax_error(f"OPENQASM 3.0;{declared}", 3) == "line 1, column " + str(declared.index("[") + 14)


def test_a_carriage_return_ends_a_comment_as_it_does_for_the_parser() -> None:
    assert qasm._is_plain("OPENQASM 3.0;\n// note\nx $0;")
    assert not qasm._is_plain("OPENQASM 3.0;\n// note\rx x x\nx $0;")


@pytest.mark.parametrize(
    "statement",
    [
        f"rx({' + '.join(['a'] * 2000)} + sin(b)) $0;",
        f"rx({' + - '.join(['1'] * 2000)} ?) $0;",
        f"rx(1 + {' ' * 19_000}?) $0;",
        f"barrier {' , '.join(['$0'] * 4000)} ?;",
        f"gate g {' , '.join(['a'] * 2000)} {{ {'x  a ; ' * 1000} ?",
    ],
)
def test_a_statement_that_is_not_plain_is_recognised_as_quickly(statement: str) -> None:
    # Tried in each way of splitting the blanks, one of these would take longer than the universe lasts.
    assert not qasm._is_plain(f"OPENQASM 3.0;{statement}")


def test_a_circuit_that_qiskit_transpiled_needs_no_parser() -> None:
    from qiskit import QuantumCircuit, qasm3, transpile
    from qiskit.transpiler import CouplingMap

    circuit = QuantumCircuit(4)
    for qubit in range(3):
        circuit.h(qubit)
        circuit.rzz(0.3, qubit, qubit + 1)
    circuit.measure_all()
    native = transpile(circuit, basis_gates=["rz", "sx", "x", "cz", "rzz"], coupling_map=CouplingMap.from_line(4))
    assert qasm._is_plain(qasm3.dumps(native))


def test_long_texts_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qasm, "MAX_PARSED", 10)
    assert syntax_error("OPENQASM 3.0; ?", 3) is None


def test_only_regular_files_within_the_limit_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(InvalidInput, match=r"not a regular file|cannot be read"):
            read_path(path, field="x")
    large = tmp_path / "large"
    large.write_text("SECRET" * 10)
    with pytest.raises(InvalidInput, match="60 bytes") as caught:
        read_path(large, field="x", limit=59)
    assert "SECRET" not in str(caught.value)
    assert read_path(large, field="x", limit=60) == "SECRET" * 10
    with pytest.raises(InvalidInput, match="more than 0 bytes"):
        read_path(Path("/proc/self/status"), field="x", limit=0)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("file:a.qasm", "a.qasm"),
        ("file:///x/my%20a.qasm", "/x/my a.qasm"),
        ("file:/x", "/x"),
        ("a.qasm", None),
        (Path("b"), "b"),
        (3, None),
    ],
)
def test_which_file_a_value_names(value: object, path: str | None) -> None:
    assert path_of(value, field="x") == (None if path is None else Path(path))
