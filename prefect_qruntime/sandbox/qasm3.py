"""Read OpenQASM 3 with qiskit's importer, extended by classical values, constants and loops over qubits.

Read:

- what `qiskit_qasm3_import` reads: gates and their modifiers, `gate`, `measure`, `reset`, `barrier`, `delay`, `let`,
  `input float` and `input angle`, hardware qubits (`$3`), `if`, `while`, `for`, `box`;
- `const` values of type int, uint, float, angle and bool, with the usual operators and functions;
- `for` over constant ranges and sets, unrolled, so that the variable may be an index, up to 10,000 rounds in all;
- bits, `bool`, `uint[n]` and `int[n]` (never negative, at most 64 bits) in expressions with `! ~ && || & | ^ == != <
  <= > >= + - * << >>` and casts, in conditions, declarations and assignments; scalar bits (`bit a;`) too;
- `switch`, `output bit`, `end` between statements; pragmas, and annotations of anything but boxes, are ignored.

Not supported, and refused with name and line: `def`, `extern`, `array`, `complex`, `defcal`, other calibrations, other
types of `output` and `input`, variables of type float, angle, duration and stretch that change, division of
variables, functions of inputs, `durationof`, `end` inside a block, `return`.
"""

from __future__ import annotations

import re
from typing import Any

from prefect_qruntime.sandbox.encoding import InputError

# The parser's own objects at the end of its messages.
_RECEIVED = re.compile(r", but received \[.*", re.DOTALL)
# The place in front of the importer's messages.
_PLACE = re.compile(r"\A(\d+),\d+: ")


def load(text: str) -> Any:
    """Turn OpenQASM 3 into a `QuantumCircuit`.

    Raises:
        InputError: If it is not valid, or has something that is not read; with the line if it is known.
    """
    import openqasm3
    from openqasm3.parser import QASM3ParsingError
    from qiskit.exceptions import QiskitError
    from qiskit_qasm3_import import ConversionError

    from prefect_qruntime.sandbox.qasm3_reader import Reader

    try:
        program = openqasm3.parse(text)
    except QASM3ParsingError as error:
        reason = _RECEIVED.sub("", str(error)) or "its syntax is wrong"
        raise InputError(f"The OpenQASM 3 program could not be parsed: {reason}") from error
    except Exception as error:
        raise InputError(f"The OpenQASM 3 program could not be parsed: {error}") from error
    reader = Reader()
    try:
        return reader.convert(program, source=text).circuit
    except ConversionError as error:
        reason = _PLACE.sub(r"line \1: ", str(getattr(error, "message", error)))
        raise InputError(f"The OpenQASM 3 program could not be parsed: {reason}") from error
    except InputError:
        raise
    except RecursionError:
        raise InputError("The OpenQASM 3 program is nested too deeply.") from None
    except Exception as error:
        # The importer and qiskit check little. Only qiskit's own messages are meant for the program's author.
        place = f" in line {reader.line}" if reader.line else ""
        known = isinstance(error, QiskitError | ArithmeticError)
        why = f"is not valid: {error}" if known else "is not valid, or of a form that the sandbox does not support."
        raise InputError(f"The OpenQASM 3 program could not be parsed: {reader.statement}{place} {why}") from error
