"""Rewrite circuits so that qiskit-aer can run them: boxes and own gates inlined, classical variables as hidden bits.

Typed variables (`bool`, `uint`) and expressions over them become bits after the circuit's own, and logic of single
bits; a `switch` becomes a chain of `if`.
"""

from __future__ import annotations

from typing import Any

from prefect_qruntime.sandbox.bit_logic import BitLogic, Bits
from prefect_qruntime.sandbox.encoding import InputError

_SIMPLE = frozenset({"BIT_AND", "BIT_OR", "BIT_XOR", "LOGIC_AND", "LOGIC_OR", "EQUAL", "NOT_EQUAL", "BIT_NOT"})

_JUMPS = ("break_loop", "continue_loop")


def lower(circuit: Any, known: frozenset[str]) -> Any:
    """Return a circuit that Aer can run except for gates that it does not know; the same one if nothing changes.

    Args:
        circuit: The circuit.
        known: Names of gates that the simulator knows, which gates of the circuit's own may have taken.

    Raises:
        InputError: If the circuit has classical values that cannot be simulated.
    """
    if circuit.num_input_vars:
        raise InputError("Circuits with classical input variables cannot be simulated.")
    return _Lowering(circuit, known).run() if _needs_lowering(circuit, known) else circuit


def _needs_lowering(circuit: Any, known: frozenset[str]) -> bool:
    if circuit.num_vars:
        return True
    for item in circuit.data:
        operation = item.operation
        if operation.name in ("box", "switch_case", "store") or _is_own(item, known):
            return True
        if operation.name in _JUMPS and not item.qubits:
            return True
        condition = getattr(operation, "condition", None)
        if condition is not None and not isinstance(condition, tuple) and not _is_simple(condition):
            return True
        if any(_needs_lowering(block, known) for block in getattr(operation, "blocks", ())):
            return True
    return False


def _is_own(item: Any, known: frozenset[str]) -> bool:
    """Whether an instruction only has the name of a gate that the simulator knows."""
    operation = item.operation
    if operation.name not in known or item.is_standard_gate():
        return False
    from qiskit.circuit import Gate

    return isinstance(operation, Gate) and operation.definition is not None


def _is_simple(node: Any) -> bool:
    from qiskit.circuit.classical import expr

    if isinstance(node, expr.Binary):
        return node.op.name in _SIMPLE and _is_simple(node.left) and _is_simple(node.right)
    if isinstance(node, expr.Unary):
        return node.op.name in (*_SIMPLE, "LOGIC_NOT") and _is_simple(node.operand)
    return isinstance(node, expr.Var | expr.Value)


class _Lowering:
    """One run over a circuit."""

    def __init__(self, circuit: Any, known: frozenset[str]) -> None:
        from qiskit import QuantumCircuit

        self._source = circuit
        self._known = known
        self._target = QuantumCircuit(circuit.qubits, circuit.clbits, *circuit.qregs, *circuit.cregs)
        self._target.global_phase = circuit.global_phase
        # The bits that stand for typed variables, by the variables' ids, and for values that must not change yet.
        self._hidden: dict[Any, list[Any]] = {}
        self._logic = BitLogic(self._bits_of)
        self._clbits: dict[Any, Any] = {}
        self._stores = False

    def run(self) -> Any:
        """Return the rewritten circuit."""
        from qiskit.circuit import CircuitInstruction, Clbit, Measure

        same = {bit: bit for bit in (*self._source.qubits, *self._source.clbits)}
        self._emit(self._source, same)
        if self._stores and self._source.num_qubits:
            # Aer keeps the classical bits only of circuits that measure something; at the start this changes nothing.
            witness = Clbit()
            self._target.add_bits([witness])
            self._target.data.insert(0, CircuitInstruction(Measure(), [self._source.qubits[0]], [witness]))
        return self._target

    def _emit(self, circuit: Any, places: dict[Any, Any]) -> None:
        """Append a circuit's instructions; `places` maps its bits to those of the target."""
        outer, self._clbits = self._clbits, places
        for variable in circuit.iter_declared_vars():
            self._hide(variable)
        for item in circuit.data:
            self._append(item, places)
        self._clbits = outer

    def _append(self, item: Any, places: dict[Any, Any]) -> None:
        operation = item.operation
        qubits = [places[bit] for bit in item.qubits]
        clbits = [places[bit] for bit in item.clbits]
        name = operation.name
        if name in ("barrier", "delay"):
            return
        if name == "store":
            self._store(operation.lvalue, self._logic.compile(operation.rvalue))
        elif name == "box":
            self._emit_block(operation.blocks[0], qubits, clbits)
        elif name == "if_else":
            self._branch(operation, qubits, clbits)
        elif name == "while_loop":
            with self._target.while_loop(self._expression(self._condition(operation.condition))):
                self._emit_block(operation.blocks[0], qubits, clbits)
        elif name == "for_loop":
            indices, parameter, block = operation.params
            with self._target.for_loop(indices, parameter):
                self._emit_block(block, qubits, clbits)
        elif name == "switch_case":
            self._switch(operation, qubits, clbits)
        elif name in _JUMPS:
            self._target.barrier(self._target.qubits)  # As for stores: Aer ends the program at a jump without qubits.
            getattr(self._target, name)()
        elif _is_own(item, self._known):
            inner = operation.definition
            self._emit(inner, dict(zip(inner.qubits, qubits, strict=True)))
        else:
            self._target.append(operation, qubits, clbits)

    def _emit_block(self, block: Any, qubits: list[Any], clbits: list[Any]) -> None:
        places = dict(zip(block.qubits, qubits, strict=True)) | dict(zip(block.clbits, clbits, strict=True))
        self._emit(block, places)

    # --- control flow

    def _condition(self, condition: Any) -> Any:
        from qiskit.circuit import ClassicalRegister

        if not isinstance(condition, tuple):
            return self._logic.compile(condition)[0]
        target, value = condition
        bits = [self._bit(bit) for bit in (target if isinstance(target, ClassicalRegister) else [target])]
        return self._logic.equal(bits, [bool(int(value) >> place & 1) for place in range(len(bits))])

    def _branch(self, operation: Any, qubits: list[Any], clbits: list[Any]) -> None:
        condition = self._condition(operation.condition)
        yes, no = (*operation.blocks, None)[:2]
        if isinstance(condition, bool):
            chosen = yes if condition else no
            if chosen is not None:
                self._emit_block(chosen, qubits, clbits)
            return
        with self._target.if_test(condition) as otherwise:
            self._emit_block(yes, qubits, clbits)
        if no is not None:
            with otherwise:
                self._emit_block(no, qubits, clbits)

    def _switch(self, operation: Any, qubits: list[Any], clbits: list[Any]) -> None:
        from qiskit.circuit import CASE_DEFAULT, ClassicalRegister, Clbit

        target = operation.target
        if isinstance(target, ClassicalRegister | Clbit):
            bits = [self._bit(bit) for bit in ([target] if isinstance(target, Clbit) else target)]
        else:
            bits = self._logic.compile(target)
        kept = self._keep(bits)

        def chain(cases: list[tuple[tuple[Any, ...], Any]]) -> None:
            if not cases:
                return
            (labels, block), rest = cases[0], cases[1:]
            if CASE_DEFAULT in labels:
                self._emit_block(block, qubits, clbits)
                return
            hit: Any = False
            for label in labels:
                if int(label) >> len(kept) == 0:
                    wanted = [bool(int(label) >> place & 1) for place in range(len(kept))]
                    hit = self._logic.either(hit, self._logic.equal(kept, wanted))
            with self._target.if_test(self._expression(hit)) as otherwise:
                self._emit_block(block, qubits, clbits)
            if rest:
                with otherwise:
                    chain(rest)

        chain(list(operation.cases_specifier()))

    # --- classical values

    def _hide(self, variable: Any) -> None:
        from qiskit.circuit import Clbit

        kind = variable.type.kind.__name__
        if kind not in ("Bool", "Uint"):
            raise InputError(f"Classical variables of type {variable.type} cannot be simulated.")
        # A block that is emitted twice declares its variables twice; the bits stay the same.
        if variable.var not in self._hidden:
            self._hidden[variable.var] = [Clbit() for _ in range(1 if kind == "Bool" else variable.type.width)]
            self._target.add_bits(self._hidden[variable.var])

    def _bit(self, bit: Any) -> Any:
        from qiskit.circuit.classical import expr

        return expr.lift(self._clbits.get(bit, bit))

    def _bits_of(self, variable: Any) -> Bits:
        from qiskit.circuit import ClassicalRegister, Clbit
        from qiskit.circuit.classical import expr

        place = variable.var
        if isinstance(place, Clbit):
            return [self._bit(place)]
        if place in self._hidden:
            return [expr.lift(bit) for bit in self._hidden[place]]
        if isinstance(place, ClassicalRegister):
            return [self._bit(bit) for bit in place]
        raise InputError("The circuit reads a classical variable that it does not declare.")

    def _store(self, lvalue: Any, bits: Bits) -> None:
        """Write all bits at once: they may depend on those that are overwritten."""
        targets = [bit.var for bit in self._compiled_lvalue(lvalue)]
        values = bits if len(bits) == 1 or all(isinstance(bit, bool) for bit in bits) else self._keep(bits)
        self._write(targets, values)

    def _compiled_lvalue(self, lvalue: Any) -> Bits:
        from qiskit.circuit.classical import expr

        if isinstance(lvalue, expr.Index):
            if not isinstance(lvalue.index, expr.Value):
                raise InputError("Writing to a bit whose place is not constant cannot be simulated.")
            return [self._bits_of(lvalue.target)[int(lvalue.index.value)]]
        return self._bits_of(lvalue)

    def _keep(self, bits: Bits) -> Bits:
        """Copy values into bits of their own."""
        from qiskit.circuit import Clbit
        from qiskit.circuit.classical import expr

        fresh = [Clbit() for _ in bits]
        self._target.add_bits(fresh)
        self._write(fresh, bits)
        return [expr.lift(bit) for bit in fresh]

    def _write(self, targets: list[Any], values: Bits) -> None:
        # Aer keeps stores in order with jumps over them only if the block has qubits, so it gets all qubits.
        self._stores = True
        self._target.barrier(self._target.qubits)
        for target, value in zip(targets, values, strict=True):
            self._target.store(target, self._expression(value))

    def _expression(self, bit: Any) -> Any:
        from qiskit.circuit.classical import expr

        return expr.lift(bit) if isinstance(bit, bool) else bit
