"""Evaluate constant expressions of OpenQASM 3, with more operators and functions than qiskit's importer has.

Imports qiskit: only `qasm3_reader` may import this module.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from openqasm3 import ast
from qiskit.circuit.classical import expr
from qiskit_qasm3_import import types
from qiskit_qasm3_import.exceptions import raise_from_node
from qiskit_qasm3_import.expression import ValueResolver

_FUNCTIONS: dict[str, Callable[..., float]] = {
    "arccos": math.acos,
    "arcsin": math.asin,
    "arctan": math.atan,
    "ceiling": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "mod": operator.mod,
    "pow": operator.pow,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "%": operator.mod,
    "**": operator.pow,
    "&&": lambda left, right: bool(left) and bool(right),
    "||": lambda left, right: bool(left) or bool(right),
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# Their results may be as large as the memory.
_GROWING = (operator.pow, operator.lshift)
_MOST = 10_000
_NUMBERS = (types.Int, types.Uint, types.Float, types.Angle, types.Bool)


def _typed(value: Any) -> tuple[Any, Any]:
    """Return a constant with its type."""
    if isinstance(value, bool):
        return value, types.Bool(const=True)
    return value, types.Int(const=True) if isinstance(value, int) else types.Float(const=True)


def _value(node: Any, what: str, function: Callable[..., Any], *given: Any) -> Any:
    """Return a function's value; refuse arguments for which it has none."""
    shown = ", ".join(map(str, given))
    try:
        if function in _GROWING and any(abs(one) > _MOST for one in given):
            raise OverflowError
        found = function(*given)
    except (ArithmeticError, TypeError, ValueError):
        raise_from_node(node, f"{what} has no value for ({shown})")
    if not isinstance(found, bool | int | float):
        raise_from_node(node, f"{what} has no real value for ({shown})")
    return found


class Resolver(ValueResolver):  # type: ignore[misc]
    """The importer's resolver of values, with more operators on constants."""

    def constant(self, node: Any) -> Any:
        """Return the value of a constant expression; refuse any other."""
        value, kind = self.visit(node)
        if not isinstance(kind, _NUMBERS) or not kind.const or not isinstance(value, bool | int | float):
            raise_from_node(node, f"required a constant value, not '{kind.pretty()}'")
        return value

    def visit_BinaryExpression(self, node: Any) -> Any:
        """Evaluate a node of type `BinaryExpression`."""
        if node.op.name not in _OPERATORS:
            for side in (node.lhs, node.rhs):
                if isinstance(self.visit(side)[0], expr.Expr):
                    raise_from_node(side, "required a constant or an input, not a variable")
            return super().visit_BinaryExpression(node)
        sides = self.constant(node.lhs), self.constant(node.rhs)
        return _typed(_value(node, f"the operator '{node.op.name}'", _OPERATORS[node.op.name], *sides))

    def visit_UnaryExpression(self, node: Any) -> Any:
        """Evaluate a node of type `UnaryExpression`."""
        if node.op.name == "!":
            return _typed(not self.constant(node.expression))
        return super().visit_UnaryExpression(node)

    def visit_FunctionCall(self, node: Any) -> Any:
        """Evaluate a node of type `FunctionCall`."""
        function = _FUNCTIONS.get(node.name.name, abs)
        if function is abs:
            raise_from_node(node, f"the function '{node.name.name}' is not supported")
        given = [self.constant(argument) for argument in node.arguments]
        return _typed(_value(node, f"the function '{node.name.name}'", function, *given))

    def visit_Cast(self, node: Any) -> Any:
        """Evaluate a node of type `Cast`."""
        value = self.constant(node.argument)
        names = {
            ast.IntType: int,
            ast.UintType: int,
            ast.FloatType: float,
            ast.BoolType: bool,
            ast.AngleType: float,
        }
        if type(node.type) not in names:
            raise_from_node(node, "only casts of constants to int, uint, float, angle and bool are supported here")
        return _typed(_value(node, "the cast", names[type(node.type)], value))

    def _index_collection(self, collection: Any, kind: Any, indexer: Any, base: Any) -> Any:
        if isinstance(indexer, list) and len(indexer) == 1 and isinstance(kind, types.BitArray | types.QubitArray):
            index, index_kind = self.visit(indexer[0])
            if isinstance(index_kind, types.Int | types.Uint):
                if not isinstance(index, int):
                    raise_from_node(base, "an index must be constant")
                if not -len(collection) <= index < len(collection):
                    raise_from_node(base, f"index {index} is beyond the {len(collection)} elements")
        return super()._index_collection(collection, kind, indexer, base)
