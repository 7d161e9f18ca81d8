"""Convert parsed OpenQASM 3 into a circuit: qiskit's importer with classical values, constants and unrolled loops.

Imports qiskit: import this module only where a program is read, as `qasm3` does.
"""

from __future__ import annotations

from typing import Any, NoReturn

from openqasm3 import ast
from qiskit.circuit import ClassicalRegister, Clbit
from qiskit.circuit.classical import expr, types as kinds
from qiskit_qasm3_import import ConversionError, converter, types
from qiskit_qasm3_import.data import Scope, Symbol
from qiskit_qasm3_import.exceptions import raise_from_node
from qiskit_qasm3_import.state import LocalScope

from prefect_qruntime.sandbox.qasm3_constants import Resolver

_MAX_ROUNDS = 10_000
_MAX_WIDTH = 64
_RUNTIME = {
    "&&": "logic_and",
    "||": "logic_or",
    "&": "bit_and",
    "|": "bit_or",
    "^": "bit_xor",
    "<<": "shift_left",
    ">>": "shift_right",
    "==": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "+": "add",
    "-": "sub",
    "*": "mul",
}


_KEYWORDS = {
    "CalibrationDefinition": "defcal",
    "CalibrationGrammarDeclaration": "defcalgrammar",
    "CalibrationStatement": "cal",
    "EndStatement": "end inside a block",
    "ExpressionStatement": "a statement that is an expression",
    "ExternDeclaration": "extern",
    "ReturnStatement": "return",
    "SubroutineDefinition": "def",
}


_STATEMENTS = {
    "AliasStatement": "the alias",
    "BranchingStatement": "the condition",
    "ClassicalAssignment": "the assignment",
    "ClassicalDeclaration": "the declaration",
    "ConstantDeclaration": "the constant",
    "DelayInstruction": "the delay",
    "ForInLoop": "the loop",
    "IODeclaration": "the declaration",
    "QuantumBarrier": "the barrier",
    "QuantumGate": "the call of a gate",
    "QuantumGateDefinition": "the definition of a gate",
    "QuantumMeasurementStatement": "the measurement",
    "QuantumReset": "the reset",
    "QubitDeclaration": "the declaration",
    "SwitchStatement": "the switch",
    "WhileLoop": "the loop",
}


def _refuse(node: Any, message: str) -> NoReturn:
    raise_from_node(node, message)
    raise AssertionError(message)


class Reader(converter.ConvertVisitor):  # type: ignore[misc]
    """The importer with the extensions."""

    def __init__(self) -> None:
        super().__init__()
        self.line = 0
        self.statement = "a statement"
        self._rounds = 0

    def visit(self, node: Any, context: Any = None) -> Any:
        """Note the line, then convert the node."""
        if isinstance(node, ast.Statement) and node.span is not None:
            self.line = node.span.start_line
            self.statement = _STATEMENTS.get(type(node).__name__, "the statement")
        return super().visit(node, context)

    def generic_visit(self, node: Any, context: Any = None) -> Any:
        """Refuse a node that neither the importer nor this class supports."""
        name = type(node).__name__
        _refuse(node, f"'{_KEYWORDS.get(name, name)}' is not supported")

    def _resolve_generic(self, node: Any, context: Any, strict: bool) -> Any:
        return Resolver(context, strict).resolve(node)

    def visit_Program(self, node: Any, context: Any) -> Any:
        """Convert a node of type `Program`."""
        for statement in node.statements:
            if isinstance(statement, ast.EndStatement):
                break
            context = self.visit(statement, context)
        return context

    def visit_Pragma(self, node: Any, context: Any) -> Any:
        """Convert a node of type `Pragma`."""
        return context

    def visit_CompoundStatement(self, node: Any, context: Any) -> Any:
        """Convert a node of type `CompoundStatement`."""
        with LocalScope(context) as inner:
            for statement in node.statements:
                self.visit(statement, inner)
        return context

    # --- declarations

    def visit_ConstantDeclaration(self, node: Any, context: Any) -> Any:
        """Convert a node of type `ConstantDeclaration`."""
        self._define_constant(node, context)
        return context

    def _define_constant(self, node: Any, context: Any) -> None:
        makers = {
            ast.IntType: (int, types.Int(const=True)),
            ast.UintType: (int, types.Uint(const=True)),
            ast.FloatType: (float, types.Float(const=True)),
            ast.AngleType: (float, types.Angle(const=True)),
            ast.BoolType: (bool, types.Bool(const=True)),
        }
        if isinstance(node.type, ast.DurationType):
            value, kind = self._resolve_constant_duration(node.init_expression, context), types.Duration(const=True)
        elif type(node.type) in makers:
            make, kind = makers[type(node.type)]
            value = make(Resolver(context).constant(node.init_expression))
        else:
            _refuse(node, f"constants of type '{_type_name(node.type)}' are not supported")
        context.symbol_table.insert(Symbol(node.identifier.name, value, kind, context.scope, node))

    def visit_ClassicalDeclaration(self, node: Any, context: Any) -> Any:
        """Convert a node of type `ClassicalDeclaration`."""
        kind, name = node.type, node.identifier.name
        if isinstance(kind, ast.BitType):
            return self._declare_bits(node, context)
        if isinstance(kind, ast.StretchType):
            stretch = context.circuit.add_stretch(name)
            context.symbol_table.insert(Symbol(name, (stretch, None), types.Duration(const=True), context.scope, node))
            return context
        if isinstance(kind, ast.FloatType | ast.AngleType | ast.DurationType) and node.init_expression is not None:
            self._define_constant(node, context)
            return context
        if not isinstance(kind, ast.BoolType | ast.UintType | ast.IntType):
            _refuse(node, f"declarations of type '{_type_name(kind)}' are not supported")
        runtime: Any = kinds.Bool()
        if not isinstance(kind, ast.BoolType):
            width = 32 if kind.size is None else self._resolve_constant_int(kind.size, context)
            if not 1 <= width <= _MAX_WIDTH:
                _refuse(node, f"integers may have 1 to {_MAX_WIDTH} bits, not {width}")
            runtime = kinds.Uint(width)
        if isinstance(node.init_expression, ast.QuantumMeasurement):
            _refuse(node, "only bits can be measured into")
        initial = 0 if node.init_expression is None else self._runtime(node.init_expression, context)
        unique = name if not context.circuit.has_var(name) else context.unique_name(name)
        variable = context.circuit.add_var(unique, self._as(initial, runtime, node))
        symbol = (
            types.Bool(const=False) if isinstance(kind, ast.BoolType) else types.Uint(const=False, size=runtime.width)
        )
        context.symbol_table.insert(Symbol(name, variable, symbol, context.scope, node))
        return context

    def _declare_bits(self, node: Any, context: Any) -> Any:
        initial = node.init_expression
        if initial is None or isinstance(initial, ast.QuantumMeasurement):
            return super().visit_ClassicalDeclaration(node, context)
        bare = ast.ClassicalDeclaration(type=node.type, identifier=node.identifier)
        bare.span = node.span
        context = super().visit_ClassicalDeclaration(bare, context)
        self._assign(node.identifier, initial, context, node)
        return context

    def visit_IODeclaration(self, node: Any, context: Any) -> Any:
        """Convert a node of type `IODeclaration`."""
        if node.io_identifier is ast.IOKeyword.output and isinstance(node.type, ast.BitType):
            bare = ast.ClassicalDeclaration(type=node.type, identifier=node.identifier)
            bare.span = node.span
            return self.visit_ClassicalDeclaration(bare, context)
        return super().visit_IODeclaration(node, context)

    def visit_ClassicalAssignment(self, node: Any, context: Any) -> Any:
        """Convert a node of type `ClassicalAssignment`."""
        value = node.rvalue
        if isinstance(value, ast.QuantumMeasurement):
            statement = ast.QuantumMeasurementStatement(measure=value, target=node.lvalue)
            statement.span = node.span
            return self.visit_QuantumMeasurementStatement(statement, context)
        if node.op.name != "=":
            target: Any = node.lvalue
            value = ast.BinaryExpression(op=ast.BinaryOperator[node.op.name[:-1]], lhs=target, rhs=value)
            value.span = node.span
        self._assign(node.lvalue, value, context, node)
        return context

    def _assign(self, lvalue: Any, value: Any, context: Any, node: Any) -> None:
        target = self._runtime(lvalue, context)
        if not isinstance(target, expr.Expr):
            _refuse(node, "a constant cannot be changed")
        context.circuit.store(target, self._as(self._runtime(value, context), target.type, node))

    # --- loops and conditions

    def visit_ForInLoop(self, node: Any, context: Any) -> Any:
        """Convert a node of type `ForInLoop`."""
        if not isinstance(node.type, ast.IntType | ast.UintType):
            _refuse(node, "only integer loop variables are supported")
        if _leaves(node.block):
            return super().visit_ForInLoop(node, context)
        values, kind = self._resolve_generic(node.set_declaration, context, strict=True)
        if isinstance(kind, types.Range):
            if values.start is None or values.stop is None:
                _refuse(node.set_declaration, "for-loop ranges must have a start and end")
            values = range(values.start, values.stop, values.step or 1)
        elif not isinstance(kind, types.Sequence):
            _refuse(node.set_declaration, "only constant ranges and sets are supported")
        self._rounds += len(values)
        if self._rounds > _MAX_ROUNDS:
            _refuse(node, f"the loops have more than {_MAX_ROUNDS} rounds in all")
        for value in values:
            with LocalScope(context) as inner:
                inner.symbol_table.insert(Symbol(node.identifier.name, value, types.Int(const=True), Scope.LOCAL, node))
                for statement in node.block:
                    self.visit(statement, inner)
        return context

    def visit_BranchingStatement(self, node: Any, context: Any) -> Any:
        """Convert a node of type `BranchingStatement`."""
        known = self._known(node.condition, context)
        if known is None:
            return super().visit_BranchingStatement(node, context)
        with LocalScope(context) as inner:
            for statement in node.if_block if known else node.else_block:
                self.visit(statement, inner)
        return context

    def _known(self, condition: Any, context: Any) -> bool | None:
        """Return the value of a constant condition."""
        try:
            return bool(Resolver(context).constant(condition))
        except ConversionError:
            return None

    def _resolve_condition(self, node: Any, context: Any) -> Any:
        try:
            return super()._resolve_condition(node, context)
        except ConversionError:
            return self._as(self._runtime(node, context), kinds.Bool(), node)

    def visit_SwitchStatement(self, node: Any, context: Any) -> Any:
        """Convert a node of type `SwitchStatement`."""
        target = self._runtime(node.target, context)
        if not isinstance(target, expr.Expr):
            _refuse(node, "the target of a switch must not be constant")
        with context.circuit.switch(target) as case:
            for labels, block in node.cases:
                with case(*(self._resolve_constant_int(label, context) for label in labels)):
                    self.visit(block, context)
            if node.default is not None:
                with case(case.DEFAULT):
                    self.visit(node.default, context)
        return context

    def visit_DelayInstruction(self, node: Any, context: Any) -> Any:
        """Convert a node of type `DelayInstruction`."""
        duration, unit = self._resolve_constant_duration(node.duration, context)
        if unit is not None:
            return super().visit_DelayInstruction(node, context)
        for qarg in node.qubits:
            context.circuit.delay(duration, self._resolve_qarg(qarg, context))
        return context

    # --- expressions over bits and variables

    def _runtime(self, node: Any, context: Any) -> Any:
        """Return an expression of qiskit, or a Python value for a constant."""
        if isinstance(node, ast.BitstringLiteral):
            return expr.lift(node.value, kinds.Uint(node.width))
        try:
            return Resolver(context).constant(node)
        except ConversionError:
            pass
        if isinstance(node, ast.BinaryExpression):
            return self._operation(node, context)
        if isinstance(node, ast.UnaryExpression) and node.op.name in ("!", "~"):
            operand = self._runtime(node.expression, context)
            if node.op.name == "!" or operand.type == kinds.Bool():
                return expr.logic_not(self._as(operand, kinds.Bool(), node))
            return expr.bit_not(operand)
        if isinstance(node, ast.Cast):
            return self._cast(node, context)
        if isinstance(node, ast.IndexedIdentifier | ast.IndexExpression):
            found = self._element(node, context)
            if found is not None:
                return found
        value, kind = self._resolve_generic(node, context, strict=True)
        if isinstance(value, expr.Expr):
            return value
        if isinstance(value, Clbit | ClassicalRegister):
            return expr.lift(value)
        if isinstance(kind, types.BitArray):
            register = ClassicalRegister(name=converter._escape_qasm2(context.unique_name()), bits=list(value))
            context.circuit.add_register(register)
            return expr.lift(register)
        _refuse(node, f"values of type '{kind.pretty()}' are not supported in classical expressions")

    def _element(self, node: Any, context: Any) -> Any:
        """Return a bit of an integer variable, if the node is one."""
        name = node.name if isinstance(node, ast.IndexedIdentifier) else node.collection
        indices = node.indices[0] if isinstance(node, ast.IndexedIdentifier) else node.index
        if not isinstance(name, ast.Identifier):
            return None
        value, _ = self._resolve_generic(name, context, strict=True)
        if not isinstance(value, expr.Expr):
            return None
        if not isinstance(indices, list) or len(indices) != 1 or isinstance(indices[0], ast.RangeDefinition):
            _refuse(node, "only single bits of integer variables can be read")
        return expr.index(value, self._resolve_constant_int(indices[0], context))

    def _operation(self, node: Any, context: Any) -> Any:
        name = node.op.name
        function = _RUNTIME.get(name)
        if function is None:
            _refuse(node, f"the operator '{name}' is not supported on variables")
        left, right = self._runtime(node.lhs, context), self._runtime(node.rhs, context)
        if name in ("&&", "||"):
            left, right = (self._as(value, kinds.Bool(), node) for value in (left, right))
            return getattr(expr, function)(left, right)
        width = max(_width(value) for value in (left, right))
        both_truth = all(isinstance(value, bool) or _is_truth(value) for value in (left, right))
        zero_or_one = all(_is_truth(value) or value in (0, 1) for value in (left, right) if not _is_wide(value))
        if (
            name in ("==", "!=", "&", "|", "^")
            and width == 1
            and (both_truth or zero_or_one)
            and not any(_is_wide(value) for value in (left, right))
        ):
            kind: Any = kinds.Bool()
        else:
            kind = kinds.Uint(width)
        if name in ("<<", ">>"):
            amount = right if isinstance(right, expr.Expr) else expr.lift(right, kinds.Uint(max(1, right.bit_length())))
            return getattr(expr, function)(self._as(left, kind, node), amount)
        return getattr(expr, function)(self._as(left, kind, node), self._as(right, kind, node))

    def _cast(self, node: Any, context: Any) -> Any:
        operand = self._runtime(node.argument, context)
        if isinstance(node.type, ast.BoolType):
            return self._as(operand, kinds.Bool(), node)
        if isinstance(node.type, ast.UintType | ast.IntType | ast.BitType):
            size = node.type.size
            width = 32 if size is None else self._resolve_constant_int(size, context)
            if size is None and isinstance(node.type, ast.BitType):
                return self._as(operand, kinds.Bool(), node)
            return self._as(operand, kinds.Uint(width), node)
        _refuse(node, f"casts to '{_type_name(node.type)}' are not supported")

    def _as(self, value: Any, kind: Any, node: Any) -> Any:
        """Bring a value into a type; a constant must fit."""
        if not isinstance(value, expr.Expr):
            if kind == kinds.Bool():
                return expr.lift(bool(value), kind)
            if isinstance(value, float) or value < 0 or int(value) >> kind.width:
                _refuse(node, f"the value {value} does not fit {kind.width} bits without a sign")
            return expr.lift(int(value), kind)
        return value if value.type == kind else expr.cast(value, kind)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, expr.Expr) and value.type == kinds.Bool())


def _is_wide(value: Any) -> bool:
    return isinstance(value, expr.Expr) and value.type != kinds.Bool()


def _width(value: Any) -> int:
    if isinstance(value, expr.Expr):
        return 1 if value.type == kinds.Bool() else int(value.type.width)
    return max(1, int(value).bit_length())


def _type_name(kind: Any) -> str:
    return type(kind).__name__.removesuffix("Type").lower()


def _leaves(block: list[Any]) -> bool:
    """Whether a loop's block may leave it or skip its rest, in which case it cannot be unrolled."""
    for statement in block:
        if isinstance(statement, ast.BreakStatement | ast.ContinueStatement):
            return True
        inner = [*getattr(statement, "if_block", ()), *getattr(statement, "else_block", ())]
        if inner and _leaves(inner):
            return True
    return False
