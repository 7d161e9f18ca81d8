"""OpenQASM text for the executor: version 2 as version 3, and circuits that end in a measurement of Paulis.

The executor takes OpenQASM 3 only. Version 2 is rewritten only if each statement means the same in both
versions; anything else is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from prefect_qruntime.client.inputs.qasm import statements
from prefect_qruntime.errors import InvalidInput

__all__ = ["as_version_3", "measured", "qubit_operands", "unused_name", "version_of"]

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_HEADER = re.compile(r"\s*OPENQASM\s+([0-9]+)(?:\.[0-9]+)?\s*;")
_WORD = re.compile(r"[^\W\d]\w*")
_OPERAND = r"(?:\$\d+|[^\W\d]\w*(?:\s*\[[^\[\]]*\])?)"
_MEASURES = (
    re.compile(rf"(?:bit\b\s*(?:\[\s*\w+\s*\])?\s*)?({_OPERAND})\s*=\s*measure\s+({_OPERAND})"),
    re.compile(rf"measure\s+({_OPERAND})\s*->\s*({_OPERAND})"),
    re.compile(rf"measure\s+({_OPERAND})"),
)
_BARRIER = re.compile(rf"barrier\s*({_OPERAND}(?:\s*,\s*{_OPERAND})*)?")
_USED = re.compile(r"\$\d+|([^\W\d]\w*)(?:\s*\[\s*(\d+)\s*\])?")
_QUBIT = re.compile(r"qubit(?:\s*\[\s*(\w+)\s*\]\s*|\s+)([^\W\d]\w*)|qreg\s+([^\W\d]\w*)\s*\[\s*(\w+)\s*\]")
_CONST = re.compile(r"const\s+u?int(?:\s*\[[^\]]*\])?\s+(\w+)\s*=\s*([0-9_]+)")
_PHYSICAL = re.compile(r"\$(\d+)\b")
_INCLUDE = re.compile(r'include\s*"stdgates\.inc"\s*;')

# Rotations after which a measurement of Z is one of the Pauli: rz and sx are in the basis of every IBM backend.
_TURNS = {"X": ("rz(pi/2)", "sx"), "Y": ("sx",), "Z": ()}

# Gates of qelib1.inc and of stdgates.inc that do the same up to a global phase, and no keyword of version 3.
_SAME = frozenset(
    {
        "x", "y", "z", "h", "s", "sdg", "t", "tdg", "sx", "id", "rx", "ry", "rz", "p", "u1", "u2", "u3", "cx", "cy",
        "cz", "ch", "ccx", "swap", "cswap", "crx", "cry", "crz", "cp",
    }
)  # fmt: skip
_KEYWORDS_3 = frozenset(
    {
        "angle", "array", "bit", "bool", "box", "break", "cal", "case", "complex", "const", "continue", "ctrl", "def",
        "default", "defcal", "delay", "duration", "durationof", "else", "end", "euler", "extern", "false", "float",
        "for", "gate", "gphase", "im", "in", "input", "int", "inv", "let", "mutable", "negctrl", "nop", "output", "pow",
        "pragma", "qubit", "readonly", "return", "sizeof", "stretch", "switch", "tau", "true", "uint", "void", "while",
        "sin", "cos", "tan", "exp", "log", "sqrt", "mod", "popcount", "rotl", "rotr", "arcsin", "arccos", "arctan",
        "ceiling", "floor", "real", "imag", "phase", "cphase", "cu", "CX",
    }
)  # fmt: skip
_STANDARD = _SAME | {"phase", "cphase", "cu", "CX"}
_GATE = re.compile(r"\bgate\s+(\w+)")
_REGISTER_2 = re.compile(r"(qreg|creg)\s+([a-z]\w*)\s*\[\s*(\d+)\s*\]", re.ASCII)
_CALL_2 = re.compile(rf"([a-z]\w*)\s*(?:\((.*)\))?\s*({_OPERAND}(?:\s*,\s*{_OPERAND})*)", re.ASCII)
# Arithmetic that both versions read alike once each number is a real one: version 2 knows no other numbers, while
# version 3 divides integers as integers. A sign stands only where both have one: version 3 has no unary plus.
_REAL = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
_TOKEN = re.compile(rf"(?P<real>{_REAL})|(?P<integer>[0-9]+)|(?P<pi>pi)\b|(?P<mark>[-+*/(),])", re.ASCII)
_OPERATORS = frozenset("+-*/(,")  # after these and at the beginning a number, a bracket or a minus follows


def version_of(text: str) -> int:
    """The version in the text's first line; 3 if there is none."""
    header = _HEADER.match(_bare(text))
    return int(header[1]) if header else 3


def as_version_3(text: str, *, field: str) -> str:
    """The same circuit as OpenQASM 3.

    Raises:
        InvalidInput: OpenQASM 2 with a statement that cannot be rewritten for certain.
    """
    if version_of(text) != 2:
        return text
    statements_2 = [" ".join(statement.split()) for statement in _top_level(_bare(text))]
    lines = ["OPENQASM 3.0;", 'include "stdgates.inc";']
    for statement in statements_2[1:]:
        if statement in ('include "qelib1.inc"', ""):
            continue
        lines.append(_rewritten(statement, field) + ";")
    return "\n".join(lines) + "\n"


def qubit_operands(text: str, *, field: str) -> list[str]:
    """How each qubit of an OpenQASM 3 circuit is written, by its number: `q[0]`, or `$0` for physical ones.

    A circuit on physical qubits has all of them up to the highest that it names.

    Raises:
        InvalidInput: The size of a register cannot be read from the text.
    """
    constants: dict[str, int] = {}
    operands: list[str] = []
    highest = -1
    for statement in statements(text):
        highest = max([highest, *(int(place) for place in _PHYSICAL.findall(statement))])
        if match := _CONST.fullmatch(statement):
            constants[match[1]] = int(match[2].replace("_", ""))
        elif match := _QUBIT.fullmatch(statement):
            name, size = match[2] or match[3], match[1] or match[4]
            if size is None:
                operands.append(name)
                continue
            digits = size.replace("_", "")
            number = int(digits) if digits.isdecimal() else constants.get(size)
            if number is None:
                raise InvalidInput(f"the size {size!r} of qubit register {name!r} is not a plain number", field=field)
            operands += [f"{name}[{place}]" for place in range(number)]
    return operands or [f"${place}" for place in range(highest + 1)]


def measured(text: str, letters: Mapping[int, str], *, operands: Sequence[str], register: str, field: str) -> str:
    """The circuit without its last measurements, followed by one of a Pauli operator.

    Args:
        text: OpenQASM 3.
        letters: Qubit → `X`, `Y` or `Z`. Bit k of the register belongs to the k-th of them.
        operands: How each qubit is written, see `qubit_operands`.
        register: Name of the new classical register, which the text must not use.
        field: Name of the field in error messages.

    Raises:
        InvalidInput: The text defines standard gates itself, which the measurement of X and Y needs.
    """
    kept = _without_last_measurements(text) if "measure" in text else text.rstrip()
    turned = any(_TURNS[letter] for letter in letters.values())
    if turned and not _INCLUDE.search(_bare(kept)):
        kept = _bare(kept)
        own = next((name for name in _GATE.findall(kept) if name in _STANDARD), None)
        if own is not None:
            raise InvalidInput(
                f"the circuit defines the gate {own!r} itself, but the measurement of X and Y needs the standard "
                'gates. Include "stdgates.inc" instead, or use route="service"',
                field=field,
            )
        header = _HEADER.match(kept)
        end = header.end() if header else 0
        kept = f'{kept[:end]}\ninclude "stdgates.inc";{kept[end:]}'
    lines = [kept, f"bit[{len(letters)}] {register};"]
    for qubit, letter in letters.items():
        lines += [f"{gate} {operands[qubit]};" for gate in _TURNS[letter]]
    if len(letters) > 1:
        lines.append(f"barrier {', '.join(operands[qubit] for qubit in letters)};")
    lines += [f"{register}[{place}] = measure {operands[qubit]};" for place, qubit in enumerate(letters)]
    return "\n".join(lines) + "\n"


def unused_name(wanted: str, texts: Iterable[str]) -> str:
    """A name that none of the texts uses: the wanted one, or the wanted one with a number."""
    used = {word for text in texts for word in _WORD.findall(text)}
    name, number = wanted, 0
    while name in used:
        number += 1
        name = f"{wanted}{number}"
    return name


def _rewritten(statement: str, field: str) -> str:
    if match := _REGISTER_2.fullmatch(statement):
        if match[2] in _KEYWORDS_3 or match[2] in _SAME:
            raise _not_rewritten(statement, field)
        return f"{'qubit' if match[1] == 'qreg' else 'bit'}[{match[3]}] {match[2]}"
    if match := _MEASURES[1].fullmatch(statement):
        return f"{match[2]} = measure {match[1]}"
    call = _CALL_2.fullmatch(statement)
    if call is None or call[1] not in (_SAME | {"barrier", "reset"}):
        raise _not_rewritten(statement, field)
    if call[2] is None:
        return statement
    arguments = _in_reals(call[2])
    if arguments is None:
        raise _not_rewritten(statement, field)
    return f"{call[1]}({arguments}) {call[3]}"


def _in_reals(arguments: str) -> str | None:
    """The arguments of a gate with all their numbers as reals; None if they hold anything that may differ."""
    written: list[str] = []
    before = "("  # what stands before the next token
    place = 0
    while place < len(arguments):
        if arguments[place].isspace():
            place += 1
            continue
        token = _TOKEN.match(arguments, place)
        if token is None:
            return None
        begins = token["mark"] in (None, "(")
        if token["mark"] != "-" and (before in _OPERATORS) != begins:
            return None
        written.append(f"{token[0]}.0" if token["integer"] else token[0])
        before = token[0]
        place = token.end()
    return None if written and before in _OPERATORS else "".join(written)


def _not_rewritten(statement: str, field: str) -> InvalidInput:
    return InvalidInput(
        f"the executor takes OpenQASM 3, and the OpenQASM 2 statement {statement[:60]!r} is not rewritten: it may mean "
        "something else there. Write the circuit in OpenQASM 3, install prefect-qruntime[qiskit], or use "
        'route="service"',
        field=field,
    )


def _without_last_measurements(text: str) -> str:
    """Drop the measurements and barriers after which nothing touches their qubits and bits."""
    kept: list[str] = []
    touched: set[str] = set()
    for statement in reversed(_top_level(_bare(text))):
        parts = _last(statement.strip())
        if parts is not None and not any(_touches(part, touched) for part in parts):
            continue
        if statement.strip():
            kept.append(statement if statement.endswith("}") else statement + ";")
            for match in _USED.finditer(statement):
                touched.add("".join(match[0].split()))
            if parts == ["*"]:
                touched.add("*")
    return "".join(reversed(kept)).strip()


def _last(statement: str) -> list[str] | None:
    """The operands of a measurement or a barrier; None for any other statement."""
    for pattern in _MEASURES:
        if match := pattern.fullmatch(statement):
            return [_thing(part) for part in match.groups()]
    if match := _BARRIER.fullmatch(statement):
        return [_thing(part) for part in re.findall(_OPERAND, match[1])] if match[1] else ["*"]
    return None


def _thing(operand: str) -> str:
    """An operand as it counts as touched: a slice or a computed index stands for the whole register."""
    found = "".join(operand.split())
    name, bracket, index = found.partition("[")
    return found if not bracket or index[:-1].isdecimal() else name


def _touches(operand: str, touched: set[str]) -> bool:
    if "*" in touched or operand == "*":  # a barrier over all qubits
        return bool(touched)
    name = operand.split("[")[0]
    # `c` touches `c[0]` and `c[0]` touches `c`; `c[0]` and `c[1]` are two things.
    return operand in touched or name in touched or ("[" not in operand and any(_of(item, name) for item in touched))


def _of(item: str, name: str) -> bool:
    return item.startswith(f"{name}[")


def _bare(text: str) -> str:
    return _COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else " ", text.removeprefix("\ufeff"))


def _top_level(bare: str) -> list[str]:
    """Statements in their order, without their stops; a block with its head is one that ends in a brace."""
    found: list[str] = []
    depth = start = 0
    for match in re.finditer(r'"[^"\n]*"|[{};]', bare):
        mark = match[0]
        depth += (mark == "{") - (mark == "}")
        if depth == 0 and mark in ";}":
            found.append(bare[start : match.end()] if mark == "}" else bare[start : match.start()])
            start = match.end()
    if bare[start:].strip():
        found.append(bare[start:])
    return found
