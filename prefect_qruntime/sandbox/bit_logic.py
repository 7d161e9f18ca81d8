"""Compile typed classical expressions of qiskit into logic of single bits, which is all that qiskit-aer can evaluate.

A value is a list of bits, the lowest first; a bit is a Python bool or a boolean expression of qiskit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect_qruntime.sandbox.encoding import InputError

# Arithmetic on bits grows with the square of the width; beyond this it is refused.
_MAX_NODES = 50_000

Bits = list[Any]


class BitLogic:
    """Compiles expressions.

    Args:
        bits_of: Returns the bits of a variable: a `Clbit`, a `ClassicalRegister` or a typed variable.

    Raises:
        InputError: From every method, for an expression that cannot be compiled.
    """

    def __init__(self, bits_of: Callable[[Any], Bits]) -> None:
        self._bits_of = bits_of
        self._nodes = 0

    def compile(self, node: Any) -> Bits:
        """Return the bits of an expression."""
        from qiskit.circuit.classical import expr

        if isinstance(node, expr.Var):
            return self._bits_of(node)
        if isinstance(node, expr.Value):
            return self._value(node)
        if isinstance(node, expr.Cast):
            return self._cast(node)
        if isinstance(node, expr.Unary):
            operand = self.compile(node.operand)
            if node.op.name in ("BIT_NOT", "LOGIC_NOT"):
                return [self.inverse(bit) for bit in operand]
        elif isinstance(node, expr.Index):
            return self._index(node)
        elif isinstance(node, expr.Binary):
            return self._binary(node)
        raise InputError(f"The classical expression {type(node).__name__.lower()} cannot be simulated.")

    def equal(self, left: Bits, right: Bits) -> Any:
        """Return whether two values of one width are equal."""
        result: Any = True
        for one, other in zip(left, right, strict=True):
            result = self.both(result, self.inverse(self.differ(one, other)))
        return result

    # --- single bits

    def inverse(self, bit: Any) -> Any:
        """Return `not bit`."""
        from qiskit.circuit.classical import expr

        return (not bit) if isinstance(bit, bool) else self._made(expr.logic_not(bit))

    def both(self, left: Any, right: Any) -> Any:
        """Return `left and right`."""
        from qiskit.circuit.classical import expr

        if isinstance(left, bool):
            return right if left else False
        if isinstance(right, bool):
            return left if right else False
        return self._made(expr.logic_and(left, right))

    def either(self, left: Any, right: Any) -> Any:
        """Return `left or right`."""
        from qiskit.circuit.classical import expr

        if isinstance(left, bool):
            return True if left else right
        if isinstance(right, bool):
            return True if right else left
        return self._made(expr.logic_or(left, right))

    def differ(self, left: Any, right: Any) -> Any:
        """Return whether two bits differ."""
        from qiskit.circuit.classical import expr

        if isinstance(left, bool):
            return self.inverse(right) if left else right
        if isinstance(right, bool):
            return self.inverse(left) if right else left
        return self._made(expr.bit_xor(left, right))

    def choose(self, condition: Any, yes: Any, no: Any) -> Any:
        """Return one bit or another."""
        return self.either(self.both(condition, yes), self.both(self.inverse(condition), no))

    def _made(self, expression: Any) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise InputError("The circuit's classical expressions are too large to be simulated.")
        return expression

    # --- values

    def _value(self, node: Any) -> Bits:
        width = _width(node.type)
        return [bool(int(node.value) >> place & 1) for place in range(width)]

    def _cast(self, node: Any) -> Bits:
        operand, width = self.compile(node.operand), _width(node.type)
        if node.type.kind.__name__ == "Bool":
            truth: Any = False
            for bit in operand:
                truth = self.either(truth, bit)
            return [truth]
        return [*operand, *([False] * width)][:width]

    def _index(self, node: Any) -> Bits:
        target, index = self.compile(node.target), self.compile(node.index)
        found: Any = False
        for place, bit in enumerate(target):
            wanted = [bool(place >> n & 1) for n in range(len(index))]
            if place >> len(index) == 0:
                found = self.either(found, self.both(self.equal(index, wanted), bit))
        return [found]

    def _binary(self, node: Any) -> Bits:
        left, right, name = self.compile(node.left), self.compile(node.right), node.op.name
        if name in ("SHIFT_LEFT", "SHIFT_RIGHT"):
            return self._shift(left, right, 1 if name == "SHIFT_LEFT" else -1)
        pair = {"BIT_AND": self.both, "LOGIC_AND": self.both, "BIT_OR": self.either, "LOGIC_OR": self.either}
        if name in (*pair, "BIT_XOR"):
            return [pair.get(name, self.differ)(one, other) for one, other in zip(left, right, strict=True)]
        if name in ("EQUAL", "NOT_EQUAL"):
            same = self.equal(left, right)
            return [same if name == "EQUAL" else self.inverse(same)]
        if name in ("LESS", "GREATER_EQUAL"):
            return [self._less(left, right, inverted=name == "GREATER_EQUAL")]
        if name in ("GREATER", "LESS_EQUAL"):
            return [self._less(right, left, inverted=name == "LESS_EQUAL")]
        if name == "ADD":
            return self._add(left, right, carry=False)
        if name == "SUB":
            return self._add(left, [self.inverse(bit) for bit in right], carry=True)
        if name == "MUL":
            return self._multiply(left, right)
        raise InputError(f"The classical operation {name.lower()} cannot be simulated.")

    def _less(self, left: Bits, right: Bits, *, inverted: bool) -> Any:
        less: Any = False
        for one, other in zip(left, right, strict=True):
            less = self.choose(self.differ(one, other), other, less)
        return self.inverse(less) if inverted else less

    def _add(self, left: Bits, right: Bits, *, carry: Any) -> Bits:
        total = []
        for one, other in zip(left, right, strict=True):
            half = self.differ(one, other)
            total.append(self.differ(half, carry))
            carry = self.either(self.both(one, other), self.both(half, carry))
        return total

    def _multiply(self, left: Bits, right: Bits) -> Bits:
        total: Bits = [False] * len(left)
        for place, bit in enumerate(right):
            shifted = [False] * place + [self.both(one, bit) for one in left[: len(left) - place]]
            total = self._add(total, shifted, carry=False)
        return total

    def _shift(self, value: Bits, amount: Bits, direction: int) -> Bits:
        for place, bit in enumerate(amount):
            step = min(1 << place, len(value))
            empty = [False] * step
            moved = empty + value[: len(value) - step] if direction > 0 else value[step:] + empty
            value = [self.choose(bit, one, other) for one, other in zip(moved, value, strict=True)]
        return value


def _width(kind: Any) -> int:
    if kind.kind.__name__ == "Bool":
        return 1
    if kind.kind.__name__ == "Uint":
        return int(kind.width)
    raise InputError(f"Classical values of type {kind} cannot be simulated.")
