"""Expectation values from counts: which bases to measure, what of a circuit to drop, and what the measured bits say.

Terms that commute qubit by qubit are measured together. Letters other than I, X, Y and Z are projectors, as in
Qiskit: `0 1` in the basis of Z, `+ -` in that of X, `r l` in that of Y. The rightmost letter is that of qubit 0.

The state that an expectation value is about is the one before the circuit's own last measurements, in each form of a
circuit alike. A measurement is one of them if nothing but measurements and barriers follows on its qubit and nothing
reads its bit. Whether something does must be known: the value of a measured state is another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefect_qruntime.client.encodings.arrays import leaves, list_shape
from prefect_qruntime.client.encodings.tensors import broadcast_places
from prefect_qruntime.client.inputs.pub_values import ZERO
from prefect_qruntime.client.inputs.pubs import is_elementary, with_measurements_shown, written_out
from prefect_qruntime.client.inputs.spec import MAX_SHOTS
from prefect_qruntime.errors import InvalidInput

__all__ = [
    "Columns",
    "Plan",
    "Step",
    "UnclearEndError",
    "circuit_without_last_measurements",
    "estimate",
    "in_one_register",
    "in_standard_gates",
    "make_plan",
    "shots_for",
    "without_last_measurements",
]

_BASIS = {"X": "X", "Y": "Y", "Z": "Z", "0": "Z", "1": "Z", "+": "X", "-": "X", "r": "Y", "l": "Y"}
_ONES = frozenset("1-l")
_SIGNS = frozenset("XYZ")
_MAX_VALUES = 1 << 20
_CONTROL_FLOW = frozenset({"IfElseOp", "WhileLoopOp", "ForLoopOp", "SwitchCaseOp", "BoxOp"})


@dataclass(slots=True)
class Group:
    """Terms measured together.

    Attributes:
        basis: Qubit → `X`, `Y` or `Z`, in the order of the measured bits.
        points: Which parameter points need this measurement, by their flat index.
    """

    basis: dict[int, str]
    points: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the observables of one PUB are measured.

    Attributes:
        terms: Each distinct term and its group.
        groups: The measurements.
        observables: For each observable its constant, and the number of each term with its coefficient.
        own_shape: Shape of the observables.
        points: Shape of the parameter points.
    """

    terms: list[tuple[str, int]]
    groups: list[Group]
    observables: list[tuple[float, list[tuple[int, float]]]]
    own_shape: tuple[int, ...]
    points: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the expectation values."""
        return _broadcast(self.own_shape, self.points)

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """For each value, in C order, its observable and its parameter point."""
        shape = self.shape
        return zip(broadcast_places(shape, self.own_shape), broadcast_places(shape, self.points), strict=True)

    def record(self) -> dict[str, Any]:
        """The plan as JSON, without its groups."""
        return {
            "observables_shape": list(self.own_shape),
            "points": list(self.points),
            "terms": [[label, group] for label, group in self.terms],
            "observables": [[constant, [list(term) for term in terms]] for constant, terms in self.observables],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Plan:
        """The plan from its JSON, without its groups.

        Raises:
            ValueError: A damaged record.
        """
        try:
            plan = cls(
                [(str(label), int(group)) for label, group in record["terms"]],
                [],
                [
                    (float(constant), [(int(t), float(c)) for t, c in terms])
                    for constant, terms in record["observables"]
                ],
                tuple(map(int, record["observables_shape"])),
                tuple(map(int, record["points"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the recipe for expectation values is damaged: {error!r}") from None
        sizes = (*plan.own_shape, *plan.points)
        fits = len(sizes) <= _MAX_VALUES and all(1 <= size <= _MAX_VALUES for size in sizes)
        if not fits or math.prod(plan.own_shape) != len(plan.observables) or math.prod(plan.shape) > _MAX_VALUES:
            raise ValueError("the recipe for expectation values is damaged: its shapes do not fit")
        return plan


@dataclass(slots=True)
class Columns:
    """The bits of one measurement: one integer for each qubit, with one bit for each shot in one order for all."""

    shots: int
    bits: Mapping[int, int]


class UnclearEndError(Exception):
    """It is not known whether something follows on a measured qubit or reads its bit."""


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a circuit, as far as it decides what the circuit's last measurements are.

    Attributes:
        measures: Of a measurement each qubit with its bit; without a bit None.
        barrier: Whether it is a barrier.
        uses: The qubits that it acts on and the bits that it reads or sets.
        may_use: Those of which it may use some.
    """

    measures: tuple[tuple[Hashable, Hashable | None], ...] = ()
    barrier: bool = False
    uses: frozenset[Hashable] = frozenset()
    may_use: frozenset[Hashable] = frozenset()


def without_last_measurements(steps: Sequence[Step]) -> list[Step | None]:
    """The steps of a circuit without its last measurements and the barriers among them, which become None.

    Of a measurement of several qubits those stay that are not the last of their qubit.

    Raises:
        UnclearEndError: A step may use a measured qubit or its bit, or may not.
    """
    kept: list[Step | None] = []
    used: set[Hashable] = set()
    unclear: set[Hashable] = set()
    for step in reversed(steps):
        found: Step | None = step
        if step.measures:
            staying = [pair for pair in step.measures if not used.isdisjoint(pair)]
            if any(not unclear.isdisjoint(pair) for pair in step.measures if pair not in staying):
                raise UnclearEndError
            found = replace(step, measures=tuple(staying)) if staying else None
            for qubit, bit in staying:
                used.add(qubit)
                # It sets the bit, so that nothing after it reads what the bit was before.
                used.discard(bit)
                unclear.discard(bit)
        elif not step.barrier or not used.isdisjoint(step.uses):
            used |= step.uses
            unclear |= step.may_use
        elif not (used | unclear).isdisjoint(step.uses | step.may_use):
            unclear |= step.uses | step.may_use
        else:
            found = None
        kept.append(found)
    return kept[::-1]


def circuit_without_last_measurements(circuit: Any, *, keep_registers: bool = False) -> Any:
    """A `QuantumCircuit` without its last measurements.

    Args:
        circuit: The circuit, which stays as it is.
        keep_registers: Leave classical registers into which only these measure.
    """
    circuit = with_measurements_shown(circuit)
    flow = any(item.is_control_flow() for item in circuit.data)  # qiskit 2.0 has no method for it
    if not (keep_registers or flow or circuit.num_vars or circuit.num_stretches):
        # Qiskit's rule is the same if nothing reads a bit, and it knows how to take registers away; variables it loses.
        return circuit.remove_final_measurements(inplace=False)
    kept = without_last_measurements([_step(item) for item in circuit.data])
    target = circuit.copy_empty_like()
    for item, step in zip(circuit.data, kept, strict=True):
        if step is not None:
            target.append(item)
    return target


def in_one_register(circuit: Any) -> Any:
    """A `QuantumCircuit` whose qubits are declared in its own order, so that a text numbers them as it does.

    A text has loose qubits before registers, and the bits of a register in that register's order.
    """
    if circuit.layout is not None or [bit for register in circuit.qregs for bit in register] == circuit.qubits:
        return circuit
    from qiskit.circuit import QuantumCircuit, QuantumRegister

    names = {register.name for register in circuit.cregs}
    name = next(name for number in range(len(names) + 1) if (name := f"q{number or ''}") not in names)
    register = QuantumRegister(circuit.num_qubits, name)
    target = QuantumCircuit(register, circuit.clbits, *circuit.cregs, global_phase=circuit.global_phase)
    for kind, add in (
        ("input_vars", "input"),
        ("declared_vars", "uninitialized_var"),
        ("declared_stretches", "stretch"),
    ):
        for variable in getattr(circuit, f"iter_{kind}", tuple)():
            getattr(target, f"add_{add}")(variable)
    for item in circuit.data:
        target.append(item.operation, [register[circuit.find_bit(bit).index] for bit in item.qubits], item.clbits)
    return target


def in_standard_gates(circuit: Any) -> Any:
    """A `QuantumCircuit` with the definitions of all other gates in their place, so that a text defines none itself.

    What qiskit writes of such a definition need not be what it says: an argument may be counted twice, and two gates
    of one name, or one of a standard name, may become one.
    """
    return written_out(circuit, is_elementary)


def _step(item: Any) -> Step:
    if item.operation.name == "measure":
        return Step(measures=tuple(zip(item.qubits, item.clbits, strict=True)))
    if item.operation.name == "barrier":
        return Step(barrier=True, uses=frozenset(item.qubits))
    return Step(uses=frozenset(_used_by(item.operation, item.qubits, item.clbits)))


def _used_by(operation: Any, qubits: Sequence[Hashable], clbits: Sequence[Hashable]) -> Iterator[Hashable]:
    """The qubits and bits that an operation uses; of a block those that its own operations use, not all it has."""
    blocks = getattr(operation, "blocks", None)
    kind = type(operation).__name__
    if kind in ("BreakLoopOp", "ContinueLoopOp"):
        return
    for name in ("condition", "target", "lvalue", "rvalue", "duration"):
        yield from _read_in(getattr(operation, name, None))
    if blocks is None or kind not in _CONTROL_FLOW:
        yield from (*qubits, *clbits)
        return
    for block in blocks:
        places = dict(zip((*block.qubits, *block.clbits), (*qubits, *clbits), strict=True))
        for item in block.data:
            for bit in _used_by(item.operation, item.qubits, item.clbits):
                yield places.get(bit, bit)


def _read_in(value: Any) -> Iterator[Hashable]:
    """The bits that a condition, a classical expression or its target reads."""
    kind = type(value).__name__
    if kind == "Clbit":
        yield value
    elif kind == "ClassicalRegister":
        yield from value
    elif kind == "tuple":
        yield from (bit for part in value for bit in _read_in(part))
    elif "circuit.classical.expr" not in type(value).__module__:  # a number, a duration, None
        return
    elif kind == "Var":
        yield from _read_in(value.var)
    elif kind == "Index" and type(value.index).__name__ == "Value" and type(value.target).__name__ == "Var":
        yield value.target.var[value.index.value]
    else:
        for part in ("operand", "left", "right", "target", "index"):
            if hasattr(value, part):
                yield from _read_in(getattr(value, part))


def shots_for(precision: float, *, field: str) -> int:
    """Shots whose standard error is at most `precision` for one Pauli: ceil(1 / precision²).

    Raises:
        InvalidInput: More shots than the service counts.
    """
    if precision >= 1:  # its square may be too large for a float
        return 1
    wanted = 1 / precision**2 if precision > 1e-150 else math.inf
    if wanted > MAX_SHOTS:
        raise InvalidInput(
            f"{precision:g} would take {wanted:.0e} shots, more than the {MAX_SHOTS} that can be asked for",
            field=field,
        )
    return math.ceil(wanted)


def make_plan(observables: Any, points: tuple[int, ...], *, field: str) -> Plan:
    """Group the terms of a PUB's observables.

    Args:
        observables: Checked observables: a string, `{pauli: coefficient}` or nested lists of them.
        points: Shape of the PUB's parameter points.
        field: Name of the field in error messages.

    Raises:
        InvalidInput: An observable that is zero, or all of them constants, so that nothing is to be measured.
    """
    own = list_shape(observables)
    numbers: dict[str, int] = {}
    read = [
        _terms(item, numbers, f"{field}[{place}]" if own else field) for place, item in enumerate(leaves(observables))
    ]
    plan = Plan(*_grouped(list(numbers)), read, own, points)
    wanted: list[set[int]] = [set() for _ in plan.groups]
    for observable, point in plan.pairs:
        for term, _ in read[observable][1]:
            wanted[plan.terms[term][1]].add(point)
    for group, found in zip(plan.groups, wanted, strict=True):
        group.points = sorted(found)
    if not plan.groups:
        raise InvalidInput(
            "every term is the identity: the value is the sum of the coefficients, and there is nothing to measure",
            field=field,
        )
    return plan


def estimate(plan: Plan, columns: Callable[[int, int], Columns]) -> tuple[list[float], list[float]]:
    """The expectation value and its standard error for each pair of the plan.

    Terms of one group come from the same shots, so that their covariance counts. One shot has no error: NaN.

    Args:
        plan: What was measured.
        columns: Gives the bits of a group at a parameter point.
    """
    pairs = list(plan.pairs)
    values, errors = [0.0] * len(pairs), [0.0] * len(pairs)
    read: dict[int, _Measured] = {}
    last = None
    # Point by point, so that only the bits of one are in memory at a time.
    for place in sorted(range(len(pairs)), key=lambda place: pairs[place][1]):
        observable, point = pairs[place]
        if point != last:
            read.clear()
            last = point
        constant, terms = plan.observables[observable]
        parts: dict[int, list[tuple[str, float]]] = {}
        for number, coefficient in terms:
            label, group = plan.terms[number]
            parts.setdefault(group, []).append((label, coefficient))
        total, variance = [constant], 0.0
        for group, members in parts.items():
            if group not in read:
                read[group] = _Measured(columns(group, point))
            mean, spread = read[group].moments(members)
            total.append(mean)
            variance += spread
        values[place] = math.fsum(total)
        errors[place] = math.sqrt(variance) if variance == variance else math.nan
    return values, errors


class _Measured:
    """The terms' values in the shots of one measurement."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.every = (1 << columns.shots) - 1
        self.known: dict[str, tuple[int, int]] = {}

    def moments(self, members: Sequence[tuple[str, float]]) -> tuple[float, float]:
        """Mean of a sum of terms, and the square of its standard error."""
        shots = self.columns.shots
        if shots < 1:
            raise ValueError("a measurement has no shots")
        found = [(*self._masks(label), coefficient) for label, coefficient in members]
        means = [self._mean(sign, hit) for sign, hit, _ in found]
        mean = math.fsum(coefficient * value for (_, _, coefficient), value in zip(found, means, strict=True))
        if shots == 1:
            return mean, math.nan
        spread: list[float] = []
        for place, (sign, hit, coefficient) in enumerate(found):
            square = hit.bit_count() / shots
            spread.append(coefficient * coefficient * (square - means[place] ** 2))
            for other in range(place):
                with_sign, with_hit, factor = found[other]
                joint = self._mean(sign ^ with_sign, hit & with_hit)
                spread.append(2 * coefficient * factor * (joint - means[place] * means[other]))
        return mean, max(0.0, math.fsum(spread)) / (shots - 1)

    def _mean(self, sign: int, hit: int) -> float:
        return (hit.bit_count() - 2 * (sign & hit).bit_count()) / self.columns.shots

    def _masks(self, label: str) -> tuple[int, int]:
        """Shots in which the term's sign is negative, and shots in which its projectors hold."""
        if label not in self.known:
            sign, hit = 0, self.every
            for qubit, letter in enumerate(reversed(label)):
                if letter == "I":
                    continue
                column = self.columns.bits[qubit]
                if letter in _SIGNS:
                    sign ^= column
                else:
                    hit &= column if letter in _ONES else column ^ self.every
            self.known[label] = sign, hit
        return self.known[label]


def _terms(
    value: str | Mapping[str, float], numbers: dict[str, int], field: str
) -> tuple[float, list[tuple[int, float]]]:
    items = {value: 1.0} if isinstance(value, str) else value
    kept = {label: number for label, number in items.items() if abs(number) > ZERO}
    if not kept:
        shown = max((abs(number) for number in items.values()), default=0.0)
        raise InvalidInput(
            f"the observable is zero: its largest coefficient is {shown:g}. There is nothing to measure", field=field
        )
    constant = 0.0
    terms: list[tuple[int, float]] = []
    for label, number in kept.items():
        if set(label) <= {"I"}:
            constant += number
        else:
            terms.append((numbers.setdefault(label, len(numbers)), number))
    return constant, terms


def _grouped(labels: list[str]) -> tuple[list[tuple[str, int]], list[Group]]:
    """Put each term into the first group whose basis it fits, heaviest terms first."""
    groups: list[Group] = []
    where: dict[str, int] = {}
    for label in sorted(labels, key=lambda text: text.count("I")):
        basis = {qubit: _BASIS[letter] for qubit, letter in enumerate(reversed(label)) if letter != "I"}
        for number, group in enumerate(groups):
            if all(group.basis.get(qubit, letter) == letter for qubit, letter in basis.items()):
                group.basis.update(basis)
                where[label] = number
                break
        else:
            where[label] = len(groups)
            groups.append(Group(basis))
    for group in groups:
        group.basis = dict(sorted(group.basis.items()))
    return [(label, where[label]) for label in labels], groups


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    length = max(len(one), len(other))
    pairs = zip((1,) * (length - len(one)) + one, (1,) * (length - len(other)) + other, strict=True)
    return tuple(right if left == 1 else left for left, right in pairs)
