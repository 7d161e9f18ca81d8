"""Read version, registers and inputs from OpenQASM text without a parser.

The scanner refuses only what is certainly wrong. What it cannot read exactly it leaves open (None), and the
service decides. `syntax_error` asks a real parser if one is installed.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect_qruntime.client.inputs.spec import MAX_PAYLOAD_BYTES
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import lock_of_process

__all__ = [
    "PRAGMA",
    "Program",
    "constant_value",
    "limit_references",
    "number_value",
    "path_of",
    "read_path",
    "scan",
    "statements",
    "syntax_error",
    "text_of",
    "with_version",
    "without_comments",
]

_SKIPPED = re.compile(r"""("[^"\n]*"|'[^'\n]*')|//[^\n]*|/\*.*?(?:\*/|\Z)""", re.DOTALL)
PRAGMA = re.compile(r"^[ \t]*(?:@|#?pragma\b)[^\n]*", re.MULTILINE)
_BRACE = re.compile(r"[{}]")
_HEADER = re.compile(r"OPENQASM\s+([0-9]+)(?:\.[0-9]+)?\s*;")
_CONST = re.compile(r"const\s+u?int(?:\s*\[[^\]]*\])?\s+(\w+)\s*=\s*(.+)", re.DOTALL)
_BITS = re.compile(r"(?:output\s+)?bit(?:\s*\[(?P<size>[^\[\]]+)\]\s*|\s+)(?P<name>[^\W\d]\w*)\s*(?:=.*)?", re.DOTALL)
_CREG = re.compile(r"creg\s+(?P<name>[^\W\d]\w*)\s*(?:\[(?P<size>[^\[\]]+)\])?")
_QUBITS = re.compile(r"qubit(?:\s*\[(?P<size>[^\[\]]+)\]\s*|\s+)(?P<name>[^\W\d]\w*)")
_QREG = re.compile(r"qreg\s+(?P<name>[^\W\d]\w*)\s*(?:\[(?P<size>[^\[\]]+)\])?")
_INPUT = re.compile(r"input\s+(\w+)\s*(?:\[[^\]]*\])?\s*([^\W\d]\w*)")
_MEASURE = re.compile(r"\bmeasure\b")
_DECLARING = ("const", "bit", "output", "creg", "qubit", "qreg", "input")
# How a version 3 text without its version line may begin; a file name begins otherwise.
_OPENING = re.compile(
    r"(?:include\s*(?:\"[^\"]*\"|'[^']*')|(?:qubit|bit)\s*\[[^\]]+\]\s*[^\W\d]\w*|(?:qubit|bit)\s+[^\W\d]\w*|(?:qreg|creg)\s+[^\W\d]\w*"
    r"|(?:input|output|const)\s+\w+|(?:gate|def|extern)\s+[^\W\d]\w*|(?:[^\W\d]\w*(?:\s*\([^()]*\))?\s+)\$\d+)"
)
_INTEGER = re.compile(r"0[bB][01_]+|0[oO][0-7_]+|0[xX][0-9a-fA-F_]+|[0-9][0-9_]*")
_REAL = re.compile(r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+")
_TOKEN = re.compile(rf"{_REAL.pattern}|\w+|\S")
_EXPRESSION = re.compile(r"[\w\s.+*/%()-]{1,200}")
_LARGEST = 2**31
_DEFINITION = re.compile(r"\b(?:gate|cal|defcal)\b[^{};]*\{[^{}]*\}")
_PLACE = re.compile(r"L(\d+):C(\d+)")
_PLACE_2 = re.compile(r":(\d+),(\d+):")
_PHYSICAL = re.compile(r"\$([0-9]{1,9})\b")


@functools.cache  # compiled when a circuit's syntax is checked: it takes a tenth of the package's import
def _plain_statement() -> re.Pattern[str]:
    """A gate or its definition, a measurement, a declaration: what almost all circuits consist of, with one meaning."""
    keywords = (
        "OPENQASM include defcalgrammar def cal defcal gate extern box let break continue if else end return for while "
        "in switch case default input output const readonly mutable qreg qubit creg bool bit int uint float angle "
        "complex array void duration stretch gphase inv pow ctrl negctrl durationof delay reset measure barrier im "
        "true false pragma sizeof nop"
    )
    # Possessive, and with one way to read each text: a text that fails would be tried in exponentially many otherwise.
    space, gap = r"[ \t\n]*+", r"[ \t\n]++"
    name = rf"(?!(?:{'|'.join(keywords.split())})\b)[A-Za-z_]\w*+"
    names = rf"{name}(?:{space},{space}{name})*+"
    place = rf"{name}(?:\[[0-9]++\])?+"
    qubit = rf"(?:\$[0-9]++|{place})"
    qubits = rf"{qubit}(?:{space},{space}{qubit})*+"
    size = r"\[0*+[1-9][0-9]*+\]"
    number = rf"(?:-{space})?+(?:[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|{name})(?![\w.])"
    angle = rf"{number}(?:{space}[-+*/]{space}{number})*+"
    angles = rf"\({space}{angle}(?:{space},{space}{angle})*+{space}\)"
    gate = rf"{name}(?:{space}{angles}{space}|{gap}){qubits}{space};"
    forms = (
        gate,
        rf"gate{gap}{name}(?:{space}\({space}{names}{space}\){space}|{gap}){names}{space}\{{(?:{space}{gate})*+{space}\}}",
        rf"{place}{space}={space}measure{gap}{qubit}{space};",
        rf"measure{gap}{qubit}{space}->{space}{place}{space};",
        rf"(?:barrier{gap}{qubits}|reset{gap}{qubit}){space};",
        rf"(?:qubit|bit)(?:{size}{space}|{gap}){name}{space};",
        rf"(?:qreg|creg){gap}{name}{size}{space};",
        rf"input{gap}(?:float|angle)(?:{size}{space}|{gap}){name}{space};",
        rf"include[ \t]++\"[^\"'\n\r\t]++\"{space};",
    )
    return re.compile(rf"{space}(?:{'|'.join(forms)})", re.ASCII)


_PLAIN_HEADER = re.compile(r"[ \t\n]*+OPENQASM[ \t]++[23](?:\.[0-9]++)?+[ \t]*;")
_LINE_COMMENT = re.compile(r"//[^\r\n]*+")


@dataclass(frozen=True, slots=True)
class Program:
    """The contents of the text. None means: not exactly known.

    Attributes:
        version: 2 or 3.
        registers: Classical registers in order of declaration, with their bits. A scalar bit is one of 1 bit.
        scalars: Names of those that are scalar bits (`bit c;`, `creg c;`), not registers (`bit[1] c;`).
        inputs: Names of the scalar float and angle inputs, in order of declaration.
        qubits: Declared qubits; for physical qubits (`$n`) None.
        measures: Whether anything is measured.
        wires: Names of the declared qubits and their registers in order of declaration, with their sizes as written
            and as known. A single qubit (`qubit a;`) has no written size.
        constants: The integer constants and their values.
    """

    version: int
    registers: tuple[tuple[str, int | None], ...]
    inputs: tuple[str, ...] | None
    qubits: int | None
    measures: bool
    scalars: tuple[str, ...] = ()
    wires: tuple[tuple[str, str | None, int | None], ...] = ()
    constants: tuple[tuple[str, int], ...] = ()

    @property
    def width(self) -> int | None:
        """Number of classical bits over all registers."""
        widths = [bits for _, bits in self.registers]
        known = [bits for bits in widths if bits is not None]
        return sum(known) if known and len(known) == len(widths) else None


def path_of(value: Any, *, field: str) -> Path | None:
    """The file that a path or a `file:` reference names; None for anything else.

    A reference is `file:` with an absolute or relative path (`file:/shared/bell.qasm`, `file:bell.qasm`,
    `file:///shared/my%20bell.qasm`): for places that hold text only, such as flow parameters, forms and saved
    blocks.

    Raises:
        InvalidInput: The reference names no file of this machine.
    """
    if isinstance(value, str) and value.startswith("file:"):
        parts = urlsplit(value)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not path or "\0" in path:
            raise InvalidInput(f"{value[:200]!r} does not name a file of this machine", field=field)
        return Path(path)
    return value if isinstance(value, Path) else None


_check_reference: ContextVar[Callable[[Path, str], Path] | None] = ContextVar("_check_reference", default=None)


@contextmanager
def limit_references(check: Callable[[Path, str], Path]) -> Iterator[None]:
    """Inside this block, check `file:` references before `text_of` reads them; a `Path` object is not checked.

    Args:
        check: Takes the path and the field's name; returns the path to read, or raises `InvalidInput`.
    """
    token = _check_reference.set(check)
    try:
        yield
    finally:
        _check_reference.reset(token)


def text_of(value: Any, *, field: str) -> Any:
    """The text of the file that a path or a `file:` reference names; any other value unchanged.

    The file is read now, in the submitting process: the job must not depend on a later state of the file.

    Raises:
        InvalidInput: No file of this machine, or one that cannot be read.
    """
    path = path_of(value, field=field)
    if path is None:
        return value
    check = _check_reference.get()
    if check is not None and isinstance(value, str):
        path = check(path, field)
    return read_path(path, field=field)


def read_path(path: Path, *, field: str, limit: int = MAX_PAYLOAD_BYTES) -> str:
    """The text of a regular file. Devices, pipes and large files are refused unread; content is never shown.

    Raises:
        InvalidInput: Not a regular file, too large, unreadable, or not UTF-8 text.
    """
    shown = str(path)[:200]
    try:
        # Opened without waiting, so that a pipe without a writer cannot hang the process.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise InvalidInput(f"{shown} is not a regular file", field=field)
            if found.st_size > limit:
                raise InvalidInput(f"{shown} has {found.st_size:,} bytes; at most {limit:,} are read", field=field)
            # A file may grow, and those of /proc have no size.
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise InvalidInput(f"{shown} cannot be read: {why}", field=field) from None
    if len(content) > limit:
        raise InvalidInput(f"{shown} has more than {limit:,} bytes", field=field)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # `from None`: the decoder's error holds the whole content.
        raise InvalidInput(f"{shown} is not UTF-8 text", field=field) from None


def with_version(text: str) -> str:
    """The text with a version line: OpenQASM 3 may leave it out, and a reader should not have to guess.

    The digest sees the text as it is sent, so both forms of such a text are the same work.
    """
    return text if _HEADER.match(_without_comments(text).lstrip()) else f"OPENQASM 3.0;\n{text}"


def _version(bare: str, *, field: str) -> int:
    """The version of a text without comments."""
    start = bare.lstrip()
    header = _HEADER.match(start)
    if header is not None:
        version = int(header[1])
        if version not in (2, 3):
            raise InvalidInput(
                f"OpenQASM {version} is not a version that the service reads. Use version 2 or 3", field=field
            )
        return version
    if ";" in start and not start.startswith("OPENQASM") and _OPENING.match(start):
        if "qelib1.inc" in start:
            raise InvalidInput(
                "the text includes qelib1.inc, so it is OpenQASM 2, but has no version line. "
                "Put 'OPENQASM 2.0;' in front of it",
                field=field,
            )
        return 3
    # The text itself is not shown: it may be a file's content.
    hint = "" if "\n" in start.strip() or ";" in start else ". To read a file, pass a pathlib.Path or 'file:<path>'"
    raise InvalidInput(f"the text does not start with an OPENQASM 2 or 3 version line{hint}", field=field)


def scan(text: str, *, field: str) -> Program:
    """Read version, registers and inputs from OpenQASM 2 or 3 text.

    Raises:
        InvalidInput: Empty text, or neither OpenQASM 2 nor 3. OpenQASM 3 may leave its version line out.
    """
    if not text.strip():
        raise InvalidInput("the circuit text is empty", field=field)
    bare = _without_comments(text)
    version = _version(bare, field=field)

    constants: dict[str, int] = {}
    registers: list[tuple[str, int | None]] = []
    scalars: list[str] = []
    inputs: list[str] | None = []
    wires: list[tuple[str, str | None, int | None]] = []
    for statement in _top_level(bare):
        if not statement.startswith(_DECLARING):
            continue
        if match := _CONST.fullmatch(statement):
            value = constant_value(match[2], constants)
            if value is not None:
                constants[match[1]] = value
        elif match := _BITS.fullmatch(statement) or _CREG.fullmatch(statement):
            registers.append((match["name"], _size(match["size"], constants)))
            if match["size"] is None:
                scalars.append(match["name"])
        elif match := _QUBITS.fullmatch(statement) or _QREG.fullmatch(statement):
            wires.append((match["name"], match["size"], _size(match["size"], constants)))
        elif statement.startswith("input") and not statement[5:6].isalnum():
            match = _INPUT.fullmatch(statement)
            if match is None or match[1] not in ("float", "angle") or inputs is None:
                inputs = None  # a kind of input whose count depends on the service's reader
            else:
                inputs.append(match[2])
    sizes = [size for _, _, size in wires if size is not None]
    known = len(sizes) == len(wires) and not _PHYSICAL.search(bare)
    return Program(
        version=version,
        registers=tuple(registers),
        inputs=tuple(inputs) if inputs is not None else None,
        qubits=(sum(sizes) or None) if known else None,
        measures=_MEASURE.search(bare) is not None,
        scalars=tuple(scalars),
        wires=tuple(wires),
        constants=tuple(constants.items()),
    )


def statements(text: str) -> Iterator[str]:
    """All statements in blocks too, but not in gate and calibration definitions; without comments."""
    for piece in re.split(r"[;{}]", _DEFINITION.sub(";", _without_comments(text))):
        statement = " ".join(piece.split())
        if statement:
            yield statement


def without_comments(text: str) -> str:
    """The text without comments and without a byte order mark, which is no white space for `str.strip`."""
    bare = text.removeprefix("\ufeff")
    return _SKIPPED.sub(lambda match: match[1] or " ", bare) if "/" in bare else bare


def _without_comments(text: str) -> str:
    """The text without comments, pragmas and annotations."""
    bare = without_comments(text)
    return PRAGMA.sub("", bare) if "@" in bare or "pragma" in bare else bare


def _top_level(text: str) -> Iterator[str]:
    """Statements outside all braces: only those declare what the whole program has."""
    outside: list[str] = []
    depth = start = 0
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            if depth == 0:
                outside.append(text[start : brace.start()])
            depth += 1
        else:
            depth = max(depth - 1, 0)
            if depth == 0:
                start = brace.end()
                outside.append(";")
    if depth == 0:
        outside.append(text[start:])
    for piece in "".join(outside).split(";"):
        if statement := piece.strip():
            yield statement


def _size(text: str | None, constants: Mapping[str, int]) -> int | None:
    return 1 if text is None else constant_value(text, constants)


def constant_value(text: str, constants: Mapping[str, int]) -> int | None:
    """The value of a constant integer expression such as `2*n + 1`; None if it is not one or is out of range.

    Args:
        text: The expression: integers in any base, names of constants, `+ - * / %`, brackets.
        constants: The constants known by name.

    Example:
        ```python
        from prefect_qruntime.client.inputs.qasm import constant_value

        assert constant_value("2*n + 0b10", {"n": 3}) == 8
        ```
    """
    plain = len(text) < 10 and text.isascii() and text.isdigit()  # as nearly all are
    value = int(text) if plain else number_value(text, constants)
    return value if isinstance(value, int) and 0 <= value <= _LARGEST else None


def number_value(text: str, known: Mapping[str, float]) -> int | float | None:
    """The value of an expression of numbers, known names, `+ - * / %` and brackets; None if it is another one."""
    if not _EXPRESSION.fullmatch(text):
        return None
    # Not by `ast.parse`: in CPython 3.11 threads that parse at the same time break each other's work.
    tokens = _TOKEN.findall(text)[::-1]
    try:
        value = _evaluated(tokens, known)
    except (ValueError, IndexError):  # not such an expression, or it breaks off
        return None
    return None if tokens else value


_RANKS = {"+": 0, "-": 0, "*": 1, "/": 1, "%": 1}


def _evaluated(tokens: list[str], known: Mapping[str, float], least: int = 0) -> int | float:
    """Take an expression of operators of at least this rank from the end of the reversed tokens."""
    value = _operand(tokens, known)
    while tokens and (rank := _RANKS.get(tokens[-1], -1)) >= least:
        operator, right = tokens.pop(), _evaluated(tokens, known, rank + 1)
        if operator in "+-":
            value = value + right if operator == "+" else value - right
        elif operator == "*":
            value *= right
        elif operator == "/" and right and isinstance(value + right, float):
            value /= right
        elif isinstance(value + right, int) and value >= 0 and right > 0:
            value = value // right if operator == "/" else value % right
        else:
            raise ValueError("no division whose result is certain")
        if not abs(value) <= _LARGEST:
            raise ValueError("out of range")
    return value


def _operand(tokens: list[str], known: Mapping[str, float]) -> int | float:
    word = tokens.pop()
    if word in "+-":
        value = _operand(tokens, known)
        return -value if word == "-" else value
    if word == "(":
        value = _evaluated(tokens, known)
        if tokens.pop() != ")":
            raise ValueError("a bracket is open")
        return value
    if word in known:
        return known[word]
    if _REAL.fullmatch(word):
        return float(word)
    if not _INTEGER.fullmatch(word):
        raise ValueError("not a number")
    digits = word.replace("_", "")
    base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2].lower())
    value = int(digits[2:], base) if base else int(digits)
    if value > _LARGEST:
        raise ValueError("out of range")
    return value


MAX_PARSED = 20_000
"""Most characters of a text that is parsed locally: the reference parser reads about 20,000 in a second."""


def syntax_error(text: str, version: int) -> str | None:
    """The first syntax error that a parser on this machine finds, with its line and column.

    The parser is the reference parser of OpenQASM 3, package `openqasm3`, which the service's own reader is built
    on. It reads version 2 with few exceptions, so for version 2 qiskit has the last word.

    Args:
        text: The OpenQASM text.
        version: 2 or 3.

    Returns:
        None if there is no error, if no parser is installed, or if the text is longer than `MAX_PARSED`.
    """
    if len(text) > MAX_PARSED:
        return None
    with _parsing:  # jobs that are submitted together often have the same circuits
        return _first_error(text, version)


def _is_plain(text: str) -> bool:
    """Whether all statements are plain: then there is no syntax error. The parser needs 250 times as long to say so."""
    bare = _LINE_COMMENT.sub("", text.replace("\r\n", "\n"))
    statement, found, end = _plain_statement(), _PLAIN_HEADER.match(bare), 0
    while found is not None:
        end = found.end()
        found = statement.match(bare, end)
    return end > 0 and not bare[end:].strip(" \t\n")


_parsing = lock_of_process()


@lru_cache(maxsize=64)
def _first_error(text: str, version: int) -> str | None:
    """As `syntax_error`; several threads would parse one text several times."""
    if _is_plain(text):
        return None
    try:
        from openqasm3.parser import QASM3ParsingError, parse
    except ImportError:
        return None
    try:
        parse(text)
    except QASM3ParsingError as error:
        return _place_of(error) if version == 3 else _error_in_version_2(text)
    except (RecursionError, ValueError):
        return None  # the parser's own limits say nothing about the text
    return None


def _place_of(error: Exception) -> str:
    if found := _PLACE.match(str(error)):
        return f"line {found[1]}, column {int(found[2]) + 1}"
    cause: Any = error
    while cause is not None:
        token = getattr(cause, "offendingToken", None) or next(
            (token for item in cause.args if (token := getattr(item, "offendingToken", None)) is not None), None
        )
        if token is not None:
            return f"line {token.line}, column {token.column + 1}"
        cause = cause.__cause__ or cause.__context__
    return "an unknown place"


def _error_in_version_2(text: str) -> str | None:
    try:
        from qiskit import qasm2
    except ImportError:
        return None
    try:
        qasm2.loads(text, custom_instructions=qasm2.LEGACY_CUSTOM_INSTRUCTIONS)
    except qasm2.QASM2ParseError as error:
        found = _PLACE_2.search(str(error))
        return f"line {found[1]}, column {int(found[2]) + 1}" if found else "an unknown place"
    return None
