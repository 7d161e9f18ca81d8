"""What can be read off OpenQASM text without a parser: version, registers, inputs.

This is no OpenQASM parser and refuses only what is certainly wrong; everything it cannot tell
exactly it leaves open (None), and the service decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from prefect_qruntime.client.inputs.fields import MAX_PAYLOAD_BYTES
from prefect_qruntime.errors import InvalidInput

__all__ = ["Program", "looks_like_qasm", "read_path", "scan", "statements", "text_of"]

_SKIPPED = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_PRAGMA = re.compile(r"^[ \t]*(?:@|#?pragma\b)[^\n]*", re.MULTILINE)
_BRACE = re.compile(r"[{}]")
_HEADER = re.compile(r"OPENQASM\s+([0-9]+)(?:\.[0-9]+)?\s*;")
_CONST = re.compile(r"const\s+u?int(?:\s*\[[^\]]*\])?\s+(\w+)\s*=\s*([0-9_]+)")
_BITS = re.compile(r"(?:output\s+)?bit(?:\s*\[\s*(\w+)\s*\]\s*|\s+)([^\W\d]\w*)\s*(?:=.*)?", re.DOTALL)
_CREG = re.compile(r"creg\s+([^\W\d]\w*)\s*(?:\[\s*(\w+)\s*\])?")
_QUBITS = re.compile(r"qubit(?:\s*\[\s*(\w+)\s*\]\s*|\s+)([^\W\d]\w*)")
_QREG = re.compile(r"qreg\s+([^\W\d]\w*)\s*(?:\[\s*(\w+)\s*\])?")
_INPUT = re.compile(r"input\s+(\w+)\s*(?:\[[^\]]*\])?\s*([^\W\d]\w*)")
_MEASURE = re.compile(r"\bmeasure\b")
_DECLARING = ("const", "bit", "output", "creg", "qubit", "qreg", "input")
_DEFINITION = re.compile(r"\b(?:gate|cal|defcal)\b[^{};]*\{[^{}]*\}")
_PHYSICAL = re.compile(r"\$([0-9]{1,9})\b")


@dataclass(frozen=True, slots=True)
class Program:
    """What the text says. None means: not exactly known.

    Attributes:
        version: 2 or 3.
        registers: Classical registers in order of declaration, with their bits.
        inputs: Names of the scalar float and angle inputs, in order of declaration.
        qubits: Declared qubits; for physical qubits (`$n`) None.
        measures: Whether anything is measured.
    """

    version: int
    registers: tuple[tuple[str, int | None], ...]
    inputs: tuple[str, ...] | None
    qubits: int | None
    measures: bool

    @property
    def width(self) -> int | None:
        """Number of classical bits over all registers."""
        widths = [bits for _, bits in self.registers]
        known = [bits for bits in widths if bits is not None]
        return sum(known) if known and len(known) == len(widths) else None


def text_of(value: Any, *, field: str) -> Any:
    """What a path or a file reference points to, as text; anything else as it is.

    A reference is `file:` with an absolute or relative path (`file:/shared/bell.qasm`, `file:bell.qasm`,
    `file:///shared/my%20bell.qasm`): for places that hold text only, such as flow parameters, forms and saved
    blocks. The file is read where the job is submitted.

    Raises:
        InvalidInput: No file of this machine, or one that cannot be read.
    """
    if isinstance(value, str) and value.startswith("file:"):
        parts = urlsplit(value)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not path or "\0" in path:
            raise InvalidInput(f"{value[:200]!r} names no file of this machine", field=field)
        value = Path(path)
    return read_path(value, field=field) if isinstance(value, Path) else value


def read_path(path: Path, *, field: str) -> str:
    """The text of an OpenQASM file, read now: the job must not depend on a later state of the file."""
    try:
        if path.stat().st_size > MAX_PAYLOAD_BYTES:
            raise InvalidInput(f"{path} is larger than {MAX_PAYLOAD_BYTES // 10**6} MB", field=field)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is no UTF-8 text", field=field) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise InvalidInput(f"{path} cannot be read: {why}", field=field) from None


def looks_like_qasm(text: str) -> bool:
    """Whether the text has an OpenQASM version line, after comments at most."""
    return _HEADER.match(_without_comments(text).lstrip().removeprefix("\ufeff").lstrip()) is not None


def scan(text: str, *, field: str) -> Program:
    """Read version, registers and inputs off OpenQASM 2 or 3 text.

    Raises:
        InvalidInput: Empty text, or no `OPENQASM 2` or `OPENQASM 3` line at its start.
    """
    if not text.strip():
        raise InvalidInput("the circuit text is empty", field=field)
    bare = _without_comments(text)
    header = _HEADER.match(bare.lstrip())
    if header is None:
        shown = text.strip()[:40]
        hint = (
            " To read a file, pass a pathlib.Path or 'file:<path>'." if "\n" not in shown and ";" not in shown else ""
        )
        raise InvalidInput(f"no OPENQASM 2 or 3 line at the start of {shown!r}.{hint}", field=field)
    version = int(header[1])
    if version not in (2, 3):
        raise InvalidInput(f"OpenQASM {version} is not known to the service; use 2 or 3", field=field)

    constants: dict[str, int] = {}
    registers: list[tuple[str, int | None]] = []
    inputs: list[str] | None = []
    qubits: int | None = 0
    for statement in _top_level(bare):
        if not statement.startswith(_DECLARING):
            continue
        if match := _CONST.fullmatch(statement):
            constants[match[1]] = int(match[2].replace("_", ""))
        elif match := _BITS.fullmatch(statement):
            registers.append((match[2], _size(match[1], constants)))
        elif match := _CREG.fullmatch(statement):
            registers.append((match[1], _size(match[2], constants)))
        elif match := _QUBITS.fullmatch(statement):
            size = _size(match[1], constants)
            qubits = None if qubits is None or size is None else qubits + size
        elif match := _QREG.fullmatch(statement):
            size = _size(match[2], constants)
            qubits = None if qubits is None or size is None else qubits + size
        elif statement.startswith("input") and not statement[5:6].isalnum():
            match = _INPUT.fullmatch(statement)
            if match is None or match[1] not in ("float", "angle") or inputs is None:
                inputs = None  # a kind of input whose count depends on the service's reader
            else:
                inputs.append(match[2])
    if _PHYSICAL.search(bare):
        qubits = None
    return Program(
        version=version,
        registers=tuple(registers),
        inputs=tuple(inputs) if inputs is not None else None,
        qubits=qubits or None,
        measures=_MEASURE.search(bare) is not None,
    )


def statements(text: str) -> Iterator[str]:
    """All statements in blocks too, but not in gate and calibration definitions; without comments."""
    for piece in re.split(r"[;{}]", _DEFINITION.sub(";", _without_comments(text))):
        statement = " ".join(piece.split())
        if statement:
            yield statement


def _without_comments(text: str) -> str:
    def keep_strings(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith('"') else " "

    # A byte order mark is no white space for str.strip, and some editors write one.
    bare = text.removeprefix("\ufeff")
    if "/" in bare:
        bare = _SKIPPED.sub(keep_strings, bare)
    return _PRAGMA.sub("", bare) if "@" in bare or "pragma" in bare else bare


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


def _size(text: str | None, constants: dict[str, int]) -> int | None:
    if text is None:
        return 1
    digits = text.replace("_", "")
    return int(digits) if digits.isdecimal() else constants.get(text)
