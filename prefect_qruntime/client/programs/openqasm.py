"""OpenQASM text for the executor: version 2 as version 3, and circuits that end in a measurement of Paulis.

The executor takes OpenQASM 3 only. Version 2 is rewritten only if each statement means the same in both
versions; anything else is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

from prefect_qruntime.client.inputs.qasm import PRAGMA, constant_value, scan, without_comments
from prefect_qruntime.client.programs.expectation import (
    Step,
    UnclearEndError,
    without_last_measurements as without_last,
)
from prefect_qruntime.errors import InvalidInput

__all__ = [
    "as_version_3",
    "measured",
    "qubit_operands",
    "unused_name",
    "without_last_measurements",
]

_MARK = re.compile(r"""("[^"\n]*"|'[^'\n]*')|[][{};]""")
_HEADER = re.compile(r"\s*OPENQASM\s+([0-9]+)(?:\.[0-9]+)?\s*;")
_WORD = re.compile(r"[^\W\d]\w*")
_OPERAND = r"(?:\$\d+|[^\W\d]\w*(?:\s*\[[^\[\]]*\])?)"
_MEASURES = (
    re.compile(
        rf"(?P<declared>bit\b\s*(?:\[[^\[\]]*\])?\s*)?(?P<bit>{_OPERAND})\s*=\s*measure\s+(?P<qubit>{_OPERAND})"
    ),
    re.compile(rf"measure\s+(?P<qubit>{_OPERAND})\s*->\s*(?P<bit>{_OPERAND})"),
    re.compile(rf"measure\s+(?P<qubit>{_OPERAND})"),
)
_BARRIER = re.compile(rf"barrier\s*({_OPERAND}(?:\s*,\s*{_OPERAND})*)?")
_NAMED = re.compile(r"\$\d+|(?<![\w.])[^\W\d]\w*")
_END = re.compile(r"\bend\s*;")
_LET = re.compile(r"let\s+([^\W\d]\w*)\s*=\s*(.+)")
_LOOP = re.compile(r"\bfor\s+\w+\s*(?:\[[^\[\]]*\])?\s+(\w+)\s+in\b")
_PHYSICAL = re.compile(r"\$(\d+)\b")
_INCLUDE = re.compile(r"""include\s*(?:"stdgates\.inc"|'stdgates\.inc')\s*;""")
# What is declared in the program's own scope: the name comes after the type and its sizes.
_DEFINED = re.compile(r"(?:gate|def|extern|opaque|let|qreg|creg)\s+([^\W\d]\w*)")
_DECLARED = re.compile(
    r"(?:(?:const|input|output|mutable|readonly)\s+)*"
    r"(?:qubit|bit|bool|int|uint|float|angle|complex|duration|stretch|array)\b"
    r"\s*(?:\[[^\[\]]*(?:\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\][^\[\]]*)*\])?\s*([^\W\d]\w*)"
)
_STANDARD_INCLUDE = 'include "stdgates.inc";'
# Statements that say what a name means; what they name is used where the name is.
_WITHOUT_EFFECT = frozenset(
    {"OPENQASM", "include", "gate", "defcal", "defcalgrammar", "extern", "opaque", "input", "const"}
)
_BLOCKS = frozenset({"if", "else", "for", "while", "switch", "box", "case", "default"})
# Words before an index or a size that are no operands.
_WORDS = frozenset({"bit", "int", "uint", "float", "angle", "complex", "array", "in", "delay", "box", "qubit"})

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
_REGISTER_2 = re.compile(r"(qreg|creg)\s+([a-z]\w*)\s*\[\s*(\d+)\s*\]", re.ASCII)
_CALL_2 = re.compile(rf"([a-z]\w*)\s*(?:\((.*)\))?\s*({_OPERAND}(?:\s*,\s*{_OPERAND})*)", re.ASCII)
# Arithmetic that both versions read alike once each number is a real one: version 2 knows no other numbers, while
# version 3 divides integers as integers. A sign stands only where both have one: version 3 has no unary plus.
_REAL = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
_TOKEN = re.compile(rf"(?P<real>{_REAL})|(?P<integer>[0-9]+)|(?P<pi>pi)\b|(?P<mark>[-+*/(),])", re.ASCII)
_OPERATORS = frozenset("+-*/(,")  # after these and at the beginning a number, a bracket or a minus follows


def as_version_3(text: str, *, field: str) -> str:
    """The same circuit as OpenQASM 3.

    Raises:
        InvalidInput: OpenQASM 2 with a statement that cannot be rewritten for certain.
    """
    bare = without_comments(text)
    header = _HEADER.match(bare)
    if header is None or int(header[1]) != 2:
        return text
    statements_2 = [" ".join(statement.rstrip(";").split()) for statement in _top_level(bare)]
    lines = ["OPENQASM 3.0;", _STANDARD_INCLUDE]
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
    operands: list[str] = []
    for name, written, size in scan(text, field=field).wires:
        if size is None:
            raise InvalidInput(f"the size {written!r} of qubit register {name!r} is not a constant", field=field)
        operands += [name] if written is None else _elements(name, size)
    highest = max((int(place) for place in _PHYSICAL.findall(without_comments(text))), default=-1)
    return operands or [f"${place}" for place in range(highest + 1)]


def measured(text: str, letters: Mapping[int, str], *, operands: Sequence[str], register: str, field: str) -> str:
    """The circuit, followed by a measurement of a Pauli operator.

    Args:
        text: OpenQASM 3 without last measurements, see `without_last_measurements`.
        letters: Qubit → `X`, `Y` or `Z`. Bit k of the register belongs to the k-th of them.
        operands: How each qubit is written, see `qubit_operands`.
        register: Name of the new classical register, which the text must not use.
        field: Name of the field in error messages.

    Raises:
        InvalidInput: The text uses names of standard gates for something else, and the measurement of X and Y needs
            the gates.
    """
    kept = text
    turned = any(_TURNS[letter] for letter in letters.values())
    if turned and not _INCLUDE.search(without_comments(kept)):
        kept = without_comments(kept)
        own = next((name for name in _declared_names(kept) if name in _STANDARD), None)
        if own is not None:
            raise InvalidInput(
                f"the circuit declares {own!r} itself, but the measurement of X and Y needs the standard gates, of "
                'which one has this name. Include "stdgates.inc" and choose another name, or use route="service"',
                field=field,
            )
        header = _HEADER.match(kept)
        end = header.end() if header else 0
        kept = f"{kept[:end]}\n{_STANDARD_INCLUDE}{kept[end:]}"
    lines = [kept, f"bit[{len(letters)}] {register};"]
    for qubit, letter in letters.items():
        lines += [f"{gate} {operands[qubit]};" for gate in _TURNS[letter]]
    if len(letters) > 1:
        lines.append(f"barrier {', '.join(operands[qubit] for qubit in letters)};")
    lines += [f"{register}[{place}] = measure {operands[qubit]};" for place, qubit in enumerate(letters)]
    return "\n".join(lines) + "\n"


def _declared_names(bare: str) -> Iterator[str]:
    """The names that a text declares in the scope of the whole program."""
    for statement in _top_level(bare):
        plain = _plain(statement)
        if match := _DEFINED.match(plain) or _DECLARED.match(plain):
            yield match[1]


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
        return f"{match['bit']} = measure {match['qubit']}"
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


def without_last_measurements(text: str, *, field: str) -> str:
    """The circuit without its last measurements, see `expectation.without_last_measurements`.

    Args:
        text: OpenQASM 3.
        field: Name of the field in error messages.

    Raises:
        InvalidInput: The text leaves open which measurements are the last ones.
    """
    if "measure" not in text and "end" not in text:
        return text.rstrip()
    # What is put behind the text must be reached.
    pieces = list(takewhile(lambda piece: _plain(piece) != "end", _top_level(without_comments(text))))
    reader = _StepReader(text, field)
    try:
        if any(map(_END.search, pieces)):
            raise UnclearEndError
        steps = [reader.step(_plain(piece)) for piece in pieces]
        kept = without_last(steps)
    except UnclearEndError:
        raise InvalidInput(
            "the text leaves open which measurements are the last ones of their qubits, and these do not belong to an "
            "expectation value. Name qubits and bits by numbers (`q[0]`), leave the last measurements "
            'out, or use route="service"',
            field=field,
        ) from None
    written = [_written(*three) for three in zip(pieces, steps, kept, strict=True)]
    return "".join(written).strip()


def _written(piece: str, before: Step, after: Step | None) -> str:
    """A statement as it stays in the text."""
    if after == before:
        return piece
    match = _measurement(_plain(piece))
    declared = f"\n{match['declared']}{match['bit']};" if match and match.groupdict().get("declared") else ""
    pairs = after.measures if after is not None else ()
    return declared + "".join(f"\n{'' if bit is None else f'{bit} = '}measure {qubit};" for qubit, bit in pairs)


class _StepReader:
    """Reads statements as steps: which qubits and bits of the program each of them uses.

    A qubit, a bit and any other variable is known by how it is written: `q[0]`, `$0`, `c`.
    """

    def __init__(self, text: str, field: str) -> None:
        program = scan(text, field=field)
        self.constants = dict(program.constants)
        # The elements of registers and aliases, and whether they are exactly these.
        self.known: dict[str, tuple[list[str], bool]] = {}
        declared = [(name, written is None, size) for name, written, size in program.wires]
        declared += [(name, name in program.scalars, size) for name, size in program.registers]
        for name, single, size in declared:
            if size is None:
                raise InvalidInput(f"the size of register {name!r} is not a constant", field=field)
            self.known[name] = ([name] if single else _elements(name, size), True)
        physical = sorted(set(_PHYSICAL.findall(without_comments(text))), key=int)
        self.every = frozenset([f"${place}" for place in physical])
        self.every |= {element for elements, _ in self.known.values() for element in elements}

    def step(self, statement: str) -> Step:
        """One statement."""
        if match := _LET.fullmatch(statement):
            parts = [self._operand(part.strip(), self.constants) for part in match[2].split("++")]
            elements = [element for found, _ in parts for element in found]
            self.known[match[1]] = (elements, all(exact for _, exact in parts))
            return Step()
        if match := _measurement(statement):
            return self._measured(match)
        if match := _BARRIER.fullmatch(statement):
            if match[1] is None:
                return Step(barrier=True, uses=self.every)
            return self._using(match[1], barrier=True)
        first = _WORD.match(statement)
        if first and first[0] == "def" and (match := _DEFINED.match(statement)):
            # Its parameters stand for operands of the call; physical qubits are used by the call without being named.
            self.known[match[1]] = ([f"${place}" for place in _PHYSICAL.findall(statement)], False)
            return Step()
        if (first and first[0] in _WITHOUT_EFFECT) or _DECLARED.fullmatch(statement):
            return Step()
        if re.search(r"\bmeasure\b", statement) and not (first and first[0] in _BLOCKS):
            raise UnclearEndError  # a form of measurement that is not known here
        return self._using(statement)

    def _measured(self, match: re.Match[str]) -> Step:
        qubits, exact = self._operand(match["qubit"], self.constants)
        bits: list[str | None] = [None] * len(qubits)
        if match.groupdict().get("bit"):
            found, exact_bits = self._operand(match["bit"], self.constants)
            bits = [*found]
            exact = exact and exact_bits and len(bits) == len(qubits)
        if not exact or not qubits:
            raise UnclearEndError
        return Step(measures=tuple(zip(qubits, bits, strict=True)))

    def _using(self, statement: str, *, barrier: bool = False) -> Step:
        """Everything that a statement names; with a block, all that the block names."""
        loops = set(_LOOP.findall(statement))  # whose variables hide constants of their names
        constants = {name: value for name, value in self.constants.items() if name not in loops}
        uses: set[str] = set()
        unclear: set[str] = set()
        for match in _NAMED.finditer(statement):
            found, exact = self._operand(match[0] + _index_after(statement, match.end()), constants)
            (uses if exact else unclear).update(found)
        return Step(barrier=barrier, uses=frozenset(uses), may_use=frozenset(unclear))

    def _operand(self, operand: str, constants: Mapping[str, int]) -> tuple[list[str], bool]:
        """The elements that an operand names, and whether it names exactly these or some of them."""
        name, bracket, index = operand.partition("[")
        name = name.strip()
        if name not in self.known:
            return [name], not bracket or name in _WORDS
        elements, exact = self.known[name]
        if not bracket:
            return elements, exact
        places = _places(index.rpartition("]")[0], len(elements), constants)
        if not exact or places is None:
            return elements, False
        return [elements[place] for place in places], True


def _measurement(statement: str) -> re.Match[str] | None:
    return next((match for pattern in _MEASURES if (match := pattern.fullmatch(statement))), None)


def _index_after(statement: str, start: int) -> str:
    """The index in brackets that follows a name, or nothing."""
    rest = statement[start:]
    if not rest.lstrip().startswith("["):
        return ""
    depth = 0
    for place, letter in enumerate(rest):
        depth += (letter == "[") - (letter == "]")
        if depth == 0 and letter == "]":
            return rest[: place + 1].lstrip()
    return rest.lstrip()


def _places(index: str, size: int, constants: Mapping[str, int]) -> list[int] | None:
    """The places that an index, a range or a set of indices names; None if they are not constants of that size."""
    text = index.strip()
    if text.startswith("{") and text.endswith("}"):
        places = [_place(part, size, constants) for part in text[1:-1].split(",")]
    elif ":" in text:
        parts = [part.strip() for part in text.split(":")]
        step = constant_value(parts[1], constants) if len(parts) == 3 else 1
        first = _place(parts[0] or "0", size, constants)
        last = _place(parts[-1] or "-1", size, constants)
        if len(parts) > 3 or not step or first is None or last is None:
            return None
        places = list(range(first, last + 1, step))
    else:
        places = [_place(text, size, constants)]
    found = [place for place in places if place is not None]
    return found if found and len(found) == len(places) else None


def _place(text: str, size: int, constants: Mapping[str, int]) -> int | None:
    number = text.strip()
    value = constant_value(number.removeprefix("-"), constants)
    if value is None:
        return None
    place = size - value if number.startswith("-") else value
    return place if 0 <= place < size else None


def _elements(name: str, size: int) -> list[str]:
    return [f"{name}[{place}]" for place in range(size)]


def _plain(statement: str) -> str:
    """A statement on one line, without its stop and annotations."""
    return " ".join(PRAGMA.sub("", statement).rstrip().removesuffix(";").split())


def _top_level(bare: str) -> Iterator[str]:
    """Statements in their order with their stops; a block with its head is one that ends in a brace."""
    depth = brackets = start = 0
    for match in _MARK.finditer(bare):
        mark = match[0]
        brackets = max(0, brackets + (mark == "[") - (mark == "]"))
        if brackets:
            continue  # the braces of a set of indices
        depth += (mark == "{") - (mark == "}")
        if depth == 0 and mark in ("}", ";"):
            yield bare[start : match.end()]
            start = match.end()
    if bare[start:].strip():
        yield bare[start:]
