"""Turn circuits and raw `params` payloads into a canonical form that is equal for equal work, in every process.

Two payloads that compute the same can differ in every byte: QPY holds random parameter ids and counted names,
compressed bytes depend on the library, a samplex holds QPY within JSON within JSON. So all of these are decoded:
circuits become their digest, arrays their values. If something cannot be decoded (qiskit is not installed, a circuit
has an operation without a definition), its bytes are used instead and a doubt is recorded: the same work, built again,
may then count as new work.

A digest of a circuit's QPY would not do: QPY holds random parameter ids, counted circuit names (`circuit-7`) and the
version of qiskit. So the circuit is walked: operations, numbers, bits, blocks and, for gates outside qiskit's library,
their definitions. Names that qiskit counts up (circuits, classical registers `c3`, loop variables) do not count;
parameters count by name. If an operation cannot be identified for certain, the QPY bytes stand in: then a circuit built
again gets a new digest, which at worst submits a second job, while a too coarse identity would return the results of
another circuit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from prefect_qruntime.client.encodings.arrays import Allowance, read_npy
from prefect_qruntime.client.encodings.tensors import decode_tensor, is_tensor

__all__ = ["Meaning", "identity_of", "meaning_of", "qpy_in"]


_COUNTED_REGISTER = re.compile(r"(c|cr|meas)(\d+)")
_COUNTED_BASIS = re.compile(r"basis_changes\.basis([0-9]{1,18})\b")
_COUNTED_NAME = re.compile(r"circuit-\d+(?:-\d+)?")
_LOOP_NAME = re.compile(r"_loop_([a-z])_(\d+)")
_LIBRARY = "qiskit.circuit.library."
# Here name and parameters say all; their definitions are either none or costly to build.
_COMPLETE_MODULES = ("qiskit.circuit.library.standard_gates.",)
_COMPLETE = frozenset(
    {
        "Barrier", "Delay", "Measure", "Reset", "UnitaryGate", "DiagonalGate", "PermutationGate",
        "PauliGate", "LinearFunction", "Initialize", "StatePreparation", "Isometry", "BreakLoopOp",
        "ContinueLoopOp", "Store",
    }
)  # fmt: skip
_WITH_OPTIONS = "MCXVChain"  # the one standard gate with options that neither its name nor its parameters show
# Their qubits and bits come from sets of qiskit's builder: the order says nothing. Own gates may have the names, too.
_UNORDERED = {
    "if_else": "IfElseOp", "while_loop": "WhileLoopOp", "for_loop": "ForLoopOp", "switch_case": "SwitchCaseOp",
    "box": "BoxOp", "break_loop": "BreakLoopOp", "continue_loop": "ContinueLoopOp",
}  # fmt: skip
# Where expressions are compared: at points of both signs and of several magnitudes, as `abs(t)` is `t` for positive
# t only, `asin(sin(t))` for small ones, and `abs(t + 9)` for those above -9.
_PROBES = (
    (0.1234567890123, 1.0), (0.5772156649015, -1.0), (0.4346294587253, 0.3), (0.6434105462883, -0.3),
    (0.9159655941772, 7.0), (0.2614972128476, -7.0), (0.8346268416740, 60.0), (0.3036630028987, -60.0),
    (0.7642236535892, 4000.0), (0.4142135623731, -4000.0),
)  # fmt: skip
_LEAST_TOLD = 3  # points at which an expression must have a value
_GOLDEN = 0.6180339887498949

_QPY = b"QISKIT"
_QPY_BASE64 = "UUlTS0lU"
# How base64 of a zlib stream begins, by its level of compression.
_ZLIB_BASE64 = ("eJ", "eA", "eF", "eN")
_LIMIT = 1 << 30
_NEGATIVE_ZERO = b"\0\0\0\0\0\0\0\x80"
# Keys that say how a neighbour is written, not what it is.
_WRITING = {"b64_data": "qpy_version", "circuit_b64": "qpy_version", "circuit_base64": "qpy"}
_VERSIONS = frozenset({"samplomatic_version"})


class _UnknownError(Exception):
    """An operation whose meaning cannot be read off its public parts."""


def identity_of(circuit: Any, fallback: bytes) -> dict[str, str]:
    """A digest of the circuit for `Pub.identity`; of `fallback` if the circuit cannot be identified."""
    try:
        text = orjson.dumps(_circuit(circuit))
    except Exception:
        return {"qpy": hashlib.sha256(fallback).hexdigest()}
    return {"circuit": hashlib.sha256(text).hexdigest()}


def _circuit(
    circuit: Any, loops: _Loops | None = None, order: tuple[Sequence[Any], Sequence[Any]] | None = None
) -> list[Any]:
    """A circuit, or a block whose qubits and bits are in the order in which the circuit around it numbers them."""
    loops = _Loops.around(circuit) if loops is None else loops
    numbered = [{bit: place for place, bit in enumerate(bits)} for bits in order or (circuit.qubits, circuit.clbits)]
    qubits, clbits = numbered
    scope = _Scope(circuit, clbits, loops)
    registers = [[scope.registers[register.name], [clbits[bit] for bit in register]] for register in circuit.cregs]
    if order is not None:
        registers.sort(key=lambda register: (register[1], str(register[0])))
    items: list[Any] = []
    for item in circuit.data:
        places = [qubits[bit] for bit in item.qubits], [clbits[bit] for bit in item.clbits]
        found = scope.operation(item.operation, places)
        kind = _UNORDERED.get(item.name)
        unordered = kind is not None and type(item.operation).__name__ == kind
        items.append([found, *(map(sorted, places) if unordered else places)])
    return [
        len(qubits),
        len(clbits),
        registers,
        loops.in_order(circuit.parameters),
        [[kind, var.name, str(var.type)] for kind, var in _variables(circuit)],
        scope.value(circuit.global_phase),
        items,
    ]


def _by_place(bits: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [bits[number] for number in sorted(range(len(bits)), key=places.__getitem__)]


def _variables(circuit: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for kind in ("input", "captured", "declared"):
        vars_of = getattr(circuit, f"iter_{kind}_vars", tuple)
        # A block captures variables in the order in which qiskit's sets have them.
        ordered: Any = sorted(vars_of(), key=lambda var: str(var.name)) if kind == "captured" else vars_of()
        found += [(kind, var) for var in ordered]
    return found


def _register_names(circuit: Any) -> dict[str, Any]:
    """Counted names become their prefix and their place in the count: `c2, c1` stays other than `c1, c2`."""
    names: dict[str, Any] = {register.name: register.name for register in circuit.cregs}
    counted = [match for name in names if (match := _COUNTED_REGISTER.fullmatch(name))]
    for rank, match in enumerate(sorted(counted, key=lambda match: int(match[2]))):
        names[match[0]] = [match[1], rank]
    return names


@dataclass(frozen=True, slots=True)
class _Loops:
    """Canonical names of the loop variables that qiskit counts up: each by the number of those around it.

    Attributes:
        names: Name in the circuit → canonical name.
        depth: How many are bound here.
    """

    names: Mapping[str, str]
    depth: int

    @classmethod
    def around(cls, circuit: Any) -> _Loops:
        """Those that a whole circuit leaves free, in the order of their count, as a caller gives their values."""
        found = [match for parameter in circuit.parameters if (match := _LOOP_NAME.fullmatch(parameter.name))]
        loops = cls({}, 0)
        for match in sorted(found, key=lambda match: int(match[2])):
            loops = loops.inside(match[0])
        return loops

    def inside(self, name: str) -> _Loops:
        """The names inside a loop over this variable."""
        match = _LOOP_NAME.fullmatch(name)
        if match is None:
            return self
        # The outermost one has no number, as it has none in the digests of earlier submissions.
        canonical = f"_loop_{match[1]}_{self.depth}" if self.depth else f"_loop_{match[1]}"
        return _Loops({**self.names, name: canonical}, self.depth + 1)

    def name(self, parameter: Any) -> str:
        """The canonical name of a parameter."""
        name = str(parameter.name)
        return self.names.get(name) or _LOOP_NAME.sub(r"_loop_\1", name)

    def in_order(self, parameters: Any) -> list[str]:
        """The canonical names of a circuit's parameters in qiskit's order, where a count decides nothing."""
        names = [(self.name(parameter), _LOOP_NAME.fullmatch(parameter.name) is not None) for parameter in parameters]
        counted = iter(sorted(name for name, is_counted in names if is_counted))
        return [next(counted) if is_counted else name for name, is_counted in names]


class _Scope:
    """Canonical forms inside one circuit: its classical bits and registers."""

    def __init__(self, circuit: Any, clbits: dict[Any, int], loops: _Loops) -> None:
        self.clbits = clbits
        self.loops = loops
        self.registers = _register_names(circuit)

    def operation(self, op: Any, places: tuple[list[int], list[int]]) -> list[Any]:
        """The canonical form of an operation on the qubits and bits at these places."""
        # The type of a singleton gate is a class without a module; an annotated one has no base class.
        kind = getattr(op, "base_class", type(op))
        form: list[Any] = [_COUNTED_NAME.sub("circuit", op.name)]
        complete = kind.__module__.startswith(_COMPLETE_MODULES) and kind.__name__ != _WITH_OPTIONS
        if complete and not op.params:
            return [*form, getattr(op, "ctrl_state", None)]
        blocks = getattr(op, "blocks", ())
        if blocks:
            loops = self._loops_in(op)
            orders = [(_by_place(block.qubits, places[0]), _by_place(block.clbits, places[1])) for block in blocks]
            inner = [_circuit(block, loops, order) for block, order in zip(blocks, orders, strict=True)]
            return [*form, self._control_flow(op, loops), inner]
        form.append([self.value(value) for value in op.params])
        form.append([getattr(op, "ctrl_state", None), getattr(op, "unit", None), op.num_qubits, op.num_clbits])
        if kind.__name__ == "AnnotatedOperation":
            return [*form, [_modifier(one) for one in op.modifiers], self.operation(op.base_op, places)]
        if complete or (kind.__name__ in _COMPLETE and kind.__module__.startswith("qiskit.")):
            return form
        definition = getattr(op, "definition", None)
        if definition is not None:
            return [*form, _circuit(definition, self.loops)]
        if kind.__module__.startswith(_LIBRARY) or kind.__name__ not in ("Gate", "Instruction"):
            raise _UnknownError(op.name)
        return form  # opaque by intent: a name the backend knows

    def _loops_in(self, op: Any) -> _Loops:
        parameter = op.params[1] if type(op).__name__ == "ForLoopOp" else None
        return self.loops if parameter is None else self.loops.inside(str(parameter.name))

    def _control_flow(self, op: Any, loops: _Loops) -> list[Any]:
        annotations = [repr(item) for item in getattr(op, "annotations", ())]
        if any(" at 0x" in text for text in annotations):
            raise _UnknownError(op.name)
        form: list[Any] = [type(op).__name__, annotations, getattr(op, "unit", None)]
        form.append(self.value(getattr(op, "duration", None)))
        if type(op).__name__ == "ForLoopOp":
            indices, parameter, _ = op.params
            form += [self.value(indices), None if parameter is None else ["parameter", loops.name(parameter)]]
        elif type(op).__name__ == "SwitchCaseOp":
            form += [self.value(op.target), [[self.value(case) for case in cases] for cases, _ in op.cases_specifier()]]
        elif type(op).__name__ in ("IfElseOp", "WhileLoopOp"):
            form.append(self._condition(op.condition))
        elif type(op).__name__ != "BoxOp":
            raise _UnknownError(op.name)
        return form

    def _condition(self, condition: Any) -> Any:
        # A bit is compared with 1 or True, which are the same. Qiskit 2.6 has True in all circuits that it copied,
        # transpiled or read; older versions keep 1.
        if isinstance(condition, tuple) and _hashable(condition[0]) and condition[0] in self.clbits:
            condition = (condition[0], bool(condition[1]))
        return self.value(condition)

    def value(self, value: Any) -> Any:
        """The canonical form of a number, name, array, parameter expression or classical expression."""
        if hasattr(value, "dtype") and not getattr(value, "shape", True):
            value = value.item()  # QPY is read with Python's numbers in place of numpy's
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float):
            # rx(1) and rx(1.0) are one gate, rx(0.0) and rx(-0.0) too; a large int stays exact.
            return float(value) + 0.0 if float(value) == value else str(value)
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if isinstance(value, range | list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, Mapping):
            return [[self.value(key), self.value(item)] for key, item in sorted(value.items())]
        if type(value).__module__.endswith(("circuit.classical.expr", "circuit.classical.expr.expr")):
            return self._classical(value)
        if type(value).__qualname__.startswith("Duration."):
            return ["duration", repr(value)]
        if _hashable(value) and value in self.clbits:
            return ["clbit", self.clbits[value]]
        kind = type(value).__name__
        if kind == "ClassicalRegister":
            return ["creg", self.registers.get(value.name, value.name), len(value)]
        if kind in ("Parameter", "ParameterVectorElement"):
            return ["parameter", self.loops.name(value)]
        if hasattr(value, "bind") and hasattr(value, "parameters"):
            return _expression(value, self.loops)
        if hasattr(value, "dtype") and hasattr(value, "tobytes"):
            shape = [int(size) for size in value.shape]
            return ["array", str(value.dtype), shape, hashlib.sha256(value.tobytes()).hexdigest()]
        if kind == "_DefaultCaseType":
            return ["default"]
        raise _UnknownError(kind)

    def _classical(self, node: Any) -> list[Any]:
        """A node of qiskit's classical expressions: its type and the public parts it consists of."""
        kind = type(node).__name__
        form: list[Any] = [kind, str(getattr(node, "type", ""))]
        if kind in ("Var", "Stretch"):
            return [*form, node.name if node.name is not None else self.value(node.var)]
        known = False
        for part in ("op", "value", "operand", "left", "right", "target", "index"):
            if hasattr(node, part):
                known = True
                item = getattr(node, part)
                if isinstance(item, bool):  # newer versions of qiskit have 1 for True; the type says that it is one
                    item = int(item)
                form.append([part, str(item) if part == "op" else self.value(item)])
        if not known:
            raise _UnknownError(kind)
        return form


def _modifier(modifier: Any) -> str:
    power = getattr(modifier, "power", None)
    # QPY writes the power 2 as 2.0.
    return repr(modifier) if power is None or power % 1 else f"PowerModifier(power={int(power)})"


def _hashable(value: Any) -> bool:
    return getattr(type(value), "__hash__", None) is not None


def _expression(value: Any, loops: _Loops) -> list[Any]:
    """A parameter expression by what it evaluates to: printed forms round, and differ by version."""
    parameters = sorted(value.parameters, key=loops.name)
    names = [loops.name(parameter) for parameter in parameters]
    points: list[Any] = []
    told = 0
    for shift in range(len(_PROBES)):
        point = _at(value, {parameter: _probe(shift, place) for place, parameter in enumerate(parameters)})
        told += point is not None
        points.append(point)
    if told < _LEAST_TOLD:
        raise _UnknownError("expression")
    return ["expression", names, points]


@lru_cache(maxsize=1 << 14)
def _probe(shift: int, place: int) -> float:
    """The value of a parameter at a point.

    Multiples of the golden ratio modulo 1: no two parameters get the same value. From one point to the next other
    parameters are negative, so that any two of them have all four combinations of signs.
    """
    probe, scale = _PROBES[shift]
    sign = -1 if place >> (shift // 2 % 4) & 1 else 1
    return sign * scale * ((0.05 if abs(scale) <= 1 else 0.5) + (probe + _GOLDEN * (place + 1) * (shift + 1)) % 1.0)


def _at(value: Any, values: dict[Any, float]) -> list[float] | None:
    """The value of an expression at a point; None if it has none there."""
    try:
        bound = value.bind(values)
        number = complex(bound.numeric() if hasattr(bound, "numeric") else bound)
    except Exception:  # a logarithm of zero, an arcsine of two, an overflow: qiskit has an error for each
        return None
    parts = [number.real + 0.0, number.imag + 0.0]
    return parts if all(map(math.isfinite, parts)) else None


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a payload.

    Attributes:
        canonical: Plain JSON, equal for equal work.
        doubts: What could not be decoded, one sentence each.
        source: The payload itself: the form does not apply to another object that replaces it.
    """

    canonical: Any
    doubts: tuple[str, ...] = ()
    source: Any = field(default=None, repr=False, compare=False)

    @property
    def certain(self) -> bool:
        """Whether the same work, written again in another process, is certain to have this form."""
        return not self.doubts


def meaning_of(payload: Any, path: str = "params") -> Meaning:
    """Read a payload made of plain JSON. Imports qiskit only if there is QPY in it.

    Args:
        payload: The payload.
        path: Its name in the doubts.

    Example:
        ```python
        from prefect_qruntime.client.inputs.meaning import meaning_of

        assert meaning_of({"shots": 5}).certain
        ```
    """
    reader = _Reader()
    canonical = reader.value(payload, path)
    return Meaning(canonical, tuple(reader.doubts), payload)


def qpy_in(text: str, allowance: Allowance | None = None) -> bytes | None:
    """The QPY that a text holds as base64, compressed or not; None if it holds none."""
    try:
        if text.startswith(_QPY_BASE64):
            return base64.b64decode(text, validate=True)
        if text.startswith(_ZLIB_BASE64) and len(text) >= 16:
            head = base64.b64decode(text[:256][: len(text[:256]) // 4 * 4], validate=True)
            if zlib.decompressobj().decompress(head, len(_QPY)) == _QPY:
                return (allowance or Allowance(_LIMIT)).inflate(text)
    except (ValueError, binascii.Error, zlib.error):
        pass
    return None


class _Reader:
    def __init__(self) -> None:
        self.doubts: list[str] = []
        self.allowance = Allowance(_LIMIT)

    def value(self, value: Any, path: str, *, nested_json: bool = False) -> Any:
        if isinstance(value, str):
            return self._text(value, path, nested_json=nested_json)
        if isinstance(value, list):
            return [self.value(item, f"{path}[{place}]", nested_json=nested_json) for place, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if is_tensor(value) and not nested_json:
            return self._tensor(value, path)
        if "__type__" in value and "__value__" in value:
            form = self._encoded(value, path)
            beside = {name: item for name, item in value.items() if name not in ("__type__", "__value__")}
            # Of qiskit's own objects the class stands beside the value.
            return [form, self.value(beside, path)] if beside else form
        skipped = {other for name, other in _WRITING.items() if name in value} | _VERSIONS
        if isinstance(value.get("samplex"), dict) and isinstance(value.get("samplex_arguments"), dict):
            value = _with_counted_names(value)
        return {
            name: self.value(item, f"{path}.{name}", nested_json=nested_json or name == "samplex_json")
            for name, item in value.items()
            if name not in skipped
        }

    def _text(self, text: str, path: str, *, nested_json: bool) -> Any:
        qpy = qpy_in(text, self.allowance)
        if qpy is not None:
            return self._circuits(qpy, path)
        if nested_json and text[:1] in ("{", "["):
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                self.doubts.append(f"{path} is not readable JSON.")
                return text
            return ["json", self.value(inner, path, nested_json=True)]
        return text

    def _circuits(self, qpy: bytes, path: str) -> list[Any]:
        digest = hashlib.sha256(qpy).hexdigest()
        try:
            from qiskit import qpy as reader
        except ImportError:
            self.doubts.append(f"{path} holds circuits as QPY, which cannot be compared without qiskit.")
            return ["qpy", digest]
        try:
            circuits = reader.load(io.BytesIO(qpy))
        except Exception as error:  # qiskit raises all kinds of errors for what it cannot read
            self.doubts.append(f"{path} holds QPY that qiskit cannot read ({type(error).__name__}).")
            return ["qpy", digest]
        identities = [identity_of(circuit, qpy) for circuit in circuits]
        if any("qpy" in identity for identity in identities):
            self.doubts.append(
                f"{path} holds a circuit that has an operation without a definition that could be compared."
            )
        return ["circuits", identities]

    def _tensor(self, value: dict[str, Any], path: str) -> Any:
        try:
            found = decode_tensor(value, allowance=self.allowance)
        except ValueError as error:
            self.doubts.append(f"{path} is not a readable tensor ({error}).")
            return ["text", value]
        return ["array", found.dtype, list(found.shape), _values_digest(found.data, found.dtype in ("f64", "c128"))]

    def _encoded(self, value: dict[str, Any], path: str) -> Any:
        """An object of IBM's RuntimeEncoder; a circuit's text is recognised as QPY by itself."""
        kind, inner = value["__type__"], value["__value__"]
        if kind == "ndarray" and isinstance(inner, str):
            try:
                found = read_npy(self.allowance.inflate(inner))
            except ValueError as error:
                self.doubts.append(f"{path} is not a readable array ({error}).")
                return ["text", value]
            floats = found.descr in ("<f8", "<c16")
            return ["array", found.descr, list(found.shape), _values_digest(found.data, floats)]
        if kind == "Parameter" and isinstance(inner, str):
            return ["parameter", self._parameter(inner, path)]
        canonical = self.value(inner, path)
        if kind == "set" and isinstance(canonical, list):
            canonical = sorted(canonical, key=lambda item: orjson.dumps(item, option=orjson.OPT_SORT_KEYS))
        return ["object", kind, canonical]

    def _parameter(self, text: str, path: str) -> str:
        """The name of an encoded parameter, whose id is random: a length, 16 bytes of id, and the name."""
        try:
            data = base64.b64decode(text, validate=True)
            size = int.from_bytes(data[:2], "big")
            if len(data) == 18 + size:
                return data[18:].decode()
        except ValueError:
            pass
        self.doubts.append(f"{path} is not a readable parameter.")
        return text


def _with_counted_names(item: dict[str, Any]) -> dict[str, Any]:
    """A samplex item whose basis changes are numbered by themselves: samplomatic counts them up in each process."""
    text, arguments = item["samplex"].get("samplex_json"), item["samplex_arguments"]
    if not isinstance(text, str):
        return item
    numbers = {int(number) for name in (text, *arguments) for number in _COUNTED_BASIS.findall(name)}
    ranks = {number: rank for rank, number in enumerate(sorted(numbers))}

    def counted(name: str) -> str:
        return _COUNTED_BASIS.sub(lambda match: f"basis_changes.basis{ranks[int(match[1])]}", name)

    return {
        **item,
        "samplex": {**item["samplex"], "samplex_json": counted(text)},
        "samplex_arguments": {counted(name): value for name, value in arguments.items()},
    }


def _values_digest(data: bytes, floats: bool) -> str:
    # 0.0 and -0.0 are one value; a match that spans two numbers changes nothing that counts.
    if floats and _NEGATIVE_ZERO in data:
        words = memoryview(bytearray(data)).cast("Q")
        sign = int.from_bytes(_NEGATIVE_ZERO, "little")
        for place, word in enumerate(words):
            if word == sign:
                words[place] = 0
        data = words.tobytes()
    return hashlib.sha256(data).hexdigest()
