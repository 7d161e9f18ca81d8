"""Check locally whether circuits of PUBs or a quantum program fit a backend: qubits, gates, coupled pairs, shots.

The service refuses other circuits only when the job runs (code 7001 and the like). This reads the
backend's configuration (`GET /backends/{id}/configuration`) and the circuit, and sends nothing.
Circuits that arrange their qubits at run time are checked as far as their text shows.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_qruntime.client.encodings.tensors import decode_tensor
from prefect_qruntime.client.inputs.meaning import qpy_in
from prefect_qruntime.client.inputs.pub_values import (
    bindings_of,
    check_observables,
    check_order,
    is_bindings_array,
    point_rows,
)
from prefect_qruntime.client.inputs.pubs import (
    TOO_DEEP,
    is_quantum_circuit,
    load_circuits,
    load_qasm,
    load_qpy,
    parameter_values,
    pub_parts,
    with_measurements_shown,
)
from prefect_qruntime.client.inputs.qasm import number_value, scan, statements, text_of
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.redact import nearest

__all__ = ["check_isa", "transpile_pubs"]

_WORDS = frozenset(
    {
        "OPENQASM", "include", "defcalgrammar", "const", "bit", "qubit", "creg", "qreg", "input",
        "output", "int", "uint", "float", "angle", "bool", "complex", "duration", "stretch",
        "array", "let", "gate", "opaque", "def", "extern", "cal", "defcal", "if", "else", "for",
        "while", "switch", "case", "default", "break", "continue", "end", "return", "measure",
        "reset", "barrier", "delay", "box", "nop", "in", "gphase",
    }
)  # fmt: skip
# Same effect in both directions, so either direction of a coupling will do.
_SYMMETRIC = frozenset({"cz", "rzz", "swap", "iswap", "rxx", "ryy", "cp", "cphase"})
_ALWAYS = frozenset(
    {
        "measure", "reset", "barrier", "delay", "id", "if_else", "for_loop", "while_loop",
        "switch_case", "break_loop", "continue_loop", "store", "box", "global_phase", "gphase",
    }
)  # fmt: skip
_MODIFIER = re.compile(r"(inv|ctrl|negctrl|pow)\s*(?:\(([^()]*)\))?\s*@\s*")
_FEW = re.compile(r"\s*[0-9]{1,2}\s*")
_CALL = re.compile(r"([^\W\d]\w*)(?!\w)\s*(\(.*\))?\s*(?:\[[^\]]*\]\s*)?((?:\$|[^\W\d]).*)?", re.DOTALL)
_NAME = re.compile(r"[^\W\d]\w*")
_PI = {"pi": math.pi, "π": math.pi}
_BLOCK_HEAD = re.compile(r"(?:if|else|while|for|switch|case|default|box)\b")
_OPERAND = re.compile(r"\$([0-9]{1,9})|([^\W\d]\w*)\s*\[\s*([0-9]{1,9})\s*\]")
_PHYSICAL = re.compile(r"\$([0-9]{1,9})")
_DECLARED = re.compile(r"(?:qubit(?:\s*\[\s*(\d+)\s*\])?\s*([^\W\d]\w*)|qreg\s+([^\W\d]\w*)\s*\[\s*(\d+)\s*\])")


@dataclass(frozen=True, slots=True)
class _Use:
    """One operation: its name and, if known, the qubits it acts on and its first parameter, of a text as written."""

    name: str
    qubits: tuple[int, ...] | None
    angle: Any = None


class _Points:
    """The points at which a circuit runs, read when the first angle depends on them: there may be millions of values.

    Args:
        circuit: A text or a `QuantumCircuit`.
        place: Where the circuit stands.
        values: Gives the values; None if they are not known.
        field: Where the values stand.
    """

    def __init__(self, circuit: Any, place: str, values: Callable[[], Any], field: str) -> None:
        self.circuit, self.place, self.values, self.field = circuit, place, values, field
        self.seen: set[Any] = set()

    @functools.cached_property
    def columns(self) -> dict[Any, list[float]]:
        """The values of each input of a text by its name, of a `QuantumCircuit` by its `Parameter`, as far as known."""
        values, is_text = self.values(), isinstance(self.circuit, str)
        if values is None:
            return {}
        # Readers of OpenQASM text order inputs by their names.
        inputs = sorted(scan(self.circuit, field=self.place).inputs or ()) if is_text else [*self.circuit.parameters]
        if not inputs:
            return {}
        _, rows = point_rows(values, [getattr(one, "name", one) for one in inputs], field=self.field)
        unsure: set[str] = set()
        for statement in statements(self.circuit) if is_text else ():
            # A name that is declared or assigned again, or decides what runs, says nothing for certain.
            if not statement.startswith("input ") and (not (call := _CALL.fullmatch(statement)) or call[1] in _WORDS):
                unsure.update(_NAME.findall(statement))
        return {one: [row[column] for row in rows] for column, one in enumerate(inputs) if one not in unsure}

    def angles(self, angle: Any) -> Iterator[tuple[float, tuple[float, ...]]]:
        """What a new angle is, for each combination of the values on which it depends; nothing if that is not known."""
        if not isinstance(angle, Hashable) or angle in self.seen:
            return  # an array is the parameter of another gate of that name
        self.seen.add(angle)
        is_text = isinstance(angle, str)
        found_in = dict.fromkeys(_NAME.findall(str(angle))) if is_text else getattr(angle, "parameters", ())
        names = [name for name in found_in if name not in _PI and (not is_text or name in self.columns)]
        if not all(name in self.columns for name in names):
            return  # the variable of a loop
        given = dict.fromkeys(zip(*(self.columns[name] for name in names), strict=True)) if names else [()]
        plain = names == [angle]  # as most are
        for values in given:
            found = values[0] if plain else _angle(angle, dict(zip(names, values, strict=True)))
            if found is not None:
                yield found, values


def _angle(angle: Any, known: dict[Any, float]) -> float | None:
    if isinstance(angle, str):
        return number_value(angle, _PI | known)
    try:
        return float(angle.bind(known) if known else angle)
    except Exception:  # qiskit has errors of its own for what has no real value
        return None


def check_isa(spec: JobSpec, configuration: Mapping[str, Any]) -> None:
    """Check all circuits against a backend. Needs qiskit only for those given as QPY.

    Args:
        spec: A checked submission.
        configuration: The backend's configuration as the service answers it; parts it lacks
            (`n_qubits`, `basis_gates`, `supported_instructions`, `coupling_map`, `max_shots`) are not checked.

    Raises:
        InvalidInput: A qubit, gate or pair of qubits the backend does not have, or more shots than it runs; or a raw
            payload that is no quantum program, whose circuits are not known.

    Example:
        ```python
        from prefect_qruntime.client.inputs import check_isa
        from prefect_qruntime.client.programs import make_spec

        text = "OPENQASM 3.0; bit[1] c; x $0; c[0] = measure $0;"
        check_isa(make_spec(text, backend="b"), {"n_qubits": 5, "basis_gates": ["x", "sx", "rz", "cz"]})
        ```
    """
    _check_shots(spec, configuration.get("max_shots"))
    size = configuration.get("n_qubits")
    names = {*_names(configuration, "basis_gates"), *_names(configuration, "supported_instructions")}
    edges = set(_coupling(configuration)) or None
    for field, circuit, points in _circuits(spec):
        try:
            for use in _text_uses(circuit) if isinstance(circuit, str) else _uses(circuit):
                if use.name == "rzz" and not configuration.get("simulator"):
                    _check_angles(use, points, field)
                _check(use, size if isinstance(size, int) else None, names, edges, field)
        except RecursionError:
            raise InvalidInput(TOO_DEEP, field=field) from None


def _names(configuration: Mapping[str, Any], key: str) -> list[str]:
    """The names that a configuration lists; none if it lists none."""
    found = configuration.get(key)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list | tuple | set) else []


def _coupling(configuration: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The coupled pairs of qubits; none if all are, or if the service answers something else."""
    found = configuration.get("coupling_map")
    pairs = found if isinstance(found, list | tuple | set) else ()
    known = [tuple(pair) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]
    readable = [(a, b) for a, b in known if type(a) is int and type(b) is int and a >= 0 and b >= 0]
    return readable if len(readable) == len(pairs) else []


def _circuits(spec: JobSpec) -> Iterator[tuple[str, Any, _Points]]:
    """Each circuit with its place, as text or as a `QuantumCircuit`, and the points at which it runs."""
    for place, pub in enumerate(spec.pubs):
        field = f"pubs[{place}].circuit"
        circuit = pub.circuit if isinstance(pub.circuit, str) else load_qpy(pub.circuit, field=field)
        values = functools.partial(getattr, pub, "parameters")
        yield field, circuit, _Points(circuit, field, values, f"pubs[{place}].parameters")
    if spec.params is None:
        return
    field = "params.quantum_program.circuits"
    sent = _program(spec).get("circuits")
    found: Any = sent.get("data") if isinstance(sent, dict) else None
    if isinstance(sent, dict) and isinstance(sent.get("b64_data"), str):
        text = sent["b64_data"]
        found = load_circuits(lambda: qpy_in(text) or b"", field=field)
    if not isinstance(found, list):
        raise InvalidInput(
            "is for PUBs and for quantum programs since v1.0; the circuits of this payload are not known. Leave it out",
            field="check_isa",
        )
    for place, circuit in enumerate(found):
        if not isinstance(circuit, str) and not hasattr(circuit, "data"):
            raise InvalidInput(f"must be text, not {type(circuit).__name__}", field=f"{field}[{place}]")
        spot = f"params.quantum_program.items[{place}].circuit_arguments"
        here = f"{field}[{place}]"
        yield here, circuit, _Points(circuit, here, functools.partial(_arguments, spec, place), spot)


def _arguments(spec: JobSpec, place: int) -> Any:
    """The values of a circuit of a quantum program; None if they are not known: a samplex computes them in the job."""
    items = _program(spec).get("items")
    item = items[place] if isinstance(items, list) and place < len(items) else None
    try:
        return decode_tensor(item.get("circuit_arguments")).tolist() if isinstance(item, dict) else None
    except ValueError:
        return None


def _program(spec: JobSpec) -> dict[str, Any]:
    found = (spec.params or {}).get("quantum_program")
    return found if isinstance(found, dict) else {}


def _check_shots(spec: JobSpec, most: Any) -> None:
    """Check the backend's limit of shots, which applies to each PUB."""
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        return
    asked = [(f"pubs[{place}].shots", pub.shots) for place, pub in enumerate(spec.pubs)]
    # PUBs that all have shots of their own do not use the common number.
    if not spec.pubs or any(pub.shots is None for pub in spec.pubs):
        default = spec.options.get("default_shots")
        asked.append(("shots", spec.shots) if spec.shots is not None else ("options.default_shots", default))
    if spec.program_id == "estimator" and spec.prepared is not None:
        # One number for all, from whatever says it first; the server's estimator splits them.
        said = (
            ("pubs[0].precision", spec.pubs[0].precision),
            ("options.precision", spec.options.get("precision")),
            ("options.default_shots", spec.options.get("default_shots")),
            ("shots", spec.shots),
        )
        field = next((name for name, value in said if value is not None), "options.default_precision")
        asked = [(field, spec.prepared["quantum_program"]["shots"])]
    asked.append(("params.quantum_program.shots", _program(spec).get("shots")))
    for field, shots in asked:
        if isinstance(shots, int) and shots > most:
            raise InvalidInput(
                f"{shots} shots, but the backend runs at most {most}. Split them over several PUBs or jobs",
                field=field,
            )


_TRANSPILES = (".", ": `transpile=True` does it here.")


def _check_angles(use: _Use, points: _Points, field: str) -> None:
    for angle, values in points.angles(use.angle):
        if not _is_calibrated(use.name, angle):
            by = f" for the parameter value{'s' * (len(values) > 1)} {', '.join(f'{one:.6g}' for one in values)}"
            raise InvalidInput(
                f"rzz({angle:.6g}){by if values else ''}, but QPUs run rzz with angles from 0 to pi/2 only",
                field=points.field if values else field,
                solution="Write it with other gates" + _TRANSPILES[field.startswith("pubs")],
            )


def _is_calibrated(name: str, angle: Any) -> bool:
    """Whether a QPU runs an operation with its angle: IBM's client refuses other angles of rzz, by the same margin."""
    return name != "rzz" or (isinstance(angle, int | float) and 0 <= angle <= math.pi / 2 + 1e-10)


def _check(use: _Use, size: int | None, names: set[str], edges: set[tuple[int, int]] | None, field: str) -> None:
    if size is not None and use.qubits and max(use.qubits) >= size:
        raise InvalidInput(f"qubit {max(use.qubits)}, but the backend has {size}", field=field)
    if not use.name:
        return
    if names and use.name not in names and use.name not in _ALWAYS:
        raise InvalidInput(
            f"the backend has no gate {use.name!r}. {nearest(use.name, names)}".strip(),
            field=field,
            solution="Transpile for the backend first" + _TRANSPILES[field.startswith("pubs")],
        )
    if edges is None or use.qubits is None or len(use.qubits) != 2 or use.name in _ALWAYS:
        return
    pair = (use.qubits[0], use.qubits[1])
    if pair in edges or (use.name in _SYMMETRIC and pair[::-1] in edges):
        return
    reverse = " in this direction" if pair[::-1] in edges else ""
    raise InvalidInput(f"{use.name} on qubits {pair[0]}, {pair[1]}, which are not coupled{reverse}", field=field)


def _text_uses(text: str) -> Iterator[_Use]:
    starts: dict[str, int] = {}
    total = 0
    for statement in statements(text):
        for physical in _PHYSICAL.finditer(statement):
            yield _Use("", (int(physical[1]),))
        if declared := _DECLARED.match(statement):
            starts[declared[2] or declared[3]] = total
            total += int(declared[1] or declared[4] or 1)
            yield _Use("", (total - 1,))
            continue
        if _BLOCK_HEAD.match(statement):
            # A branch without braces ("if (c) x $0") ends in a statement of its own.
            statement = _after_condition(statement)
        controls, whole = "", statement
        while modifier := _MODIFIER.match(statement):
            statement = statement[modifier.end() :]
            controls += _controls(modifier[1], modifier[2] or "1")
        call = _CALL.fullmatch(statement)
        if call is None or call[1] in _WORDS or not call[3] or "=" in statement:
            continue
        spots = [_place(operand, starts) for operand in call[3].split(",")]
        known = [spot for spot in spots if spot is not None]
        angle = call[2][1:-1] if call[2] and statement is whole else None  # a modifier changes it
        yield _Use(controls + call[1], tuple(known) if len(known) == len(spots) else None, angle)


def _controls(modifier: str, count: str) -> str:
    """What a modifier puts before the name of a gate: `ctrl @ z` is `cz`, and no backend has one with `negctrl`."""
    if modifier == "negctrl":
        return "negctrl @ "
    return "c" * (int(count) if _FEW.fullmatch(count) else 1) if modifier == "ctrl" else ""


def _place(operand: str, starts: Mapping[str, int]) -> int | None:
    """The qubit an operand names; None for a whole register or a computed index."""
    spot = _OPERAND.fullmatch(operand.strip())
    if spot is None:
        return None
    if spot[1] is not None:
        return int(spot[1])
    return starts[spot[2]] + int(spot[3]) if spot[2] in starts else None


def _after_condition(statement: str) -> str:
    depth = 0
    for place, letter in enumerate(statement):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return statement[place + 1 :].strip()
    return statement.removeprefix("else").strip() if statement.startswith("else") else ""


def _uses(circuit: Any) -> Iterator[_Use]:
    yield _Use("", (circuit.num_qubits - 1,) if circuit.num_qubits else ())
    yield from _circuit_uses(circuit, {bit: place for place, bit in enumerate(circuit.qubits)})


def _circuit_uses(circuit: Any, places: dict[Any, int]) -> Iterator[_Use]:
    for item in circuit.data:
        qubits = tuple(places[bit] for bit in item.qubits)
        yield _Use(item.operation.name, qubits, next(iter(getattr(item.operation, "params", ())), None))
        for block in getattr(item.operation, "blocks", ()):
            yield from _circuit_uses(block, dict(zip(block.qubits, qubits, strict=True)))


# Qiskit does not take the statements that leave a loop as basis gates.
_CONTROL_FLOW = ("if_else", "for_loop", "while_loop", "switch_case", "box")


def transpile_pubs(
    pubs: Any,
    configuration: Mapping[str, Any],
    *,
    program_id: str = "sampler",
    optimization_level: int = 1,
    seed: int = 0,
) -> list[tuple[Any, ...]]:
    """PUBs with circuits that fit the backend, and observables laid out with them.

    The gate rzz is kept only if all its angles are known and such that a QPU runs it.

    Needs the extra `[qiskit]`, for OpenQASM 3 text also `qiskit-qasm3-import`. With one seed and one
    version of qiskit the outcome is the same each time on one machine; another version or machine
    may give another circuit, and so another submission key. Keep the outcome if that matters.

    Args:
        pubs: As for `make_spec`.
        configuration: The backend's configuration as the service answers it.
        program_id: `sampler` or `estimator`.
        optimization_level: 0 to 3, as in qiskit.
        seed: Seed of the transpiler.

    Returns:
        One tuple for each PUB, to be given to `make_spec`.

    Raises:
        InvalidInput: qiskit is missing, a circuit cannot be read, it does not fit the backend, or values are given as a
            list in an order that its text leaves open.

    Example:
        ```python
        from prefect_qruntime.client.inputs import transpile_pubs
        from prefect_qruntime.client.programs import make_spec

        configuration = {"n_qubits": 2, "basis_gates": ["rz", "sx", "x", "cz"], "coupling_map": [[0, 1]]}
        text = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[1]; creg c[1]; h q[0]; measure q -> c;'
        spec = make_spec(transpile_pubs(text, configuration), backend="ibm_torino")
        ```
    """
    try:
        from qiskit.transpiler import CouplingMap, generate_preset_pass_manager
    except ImportError:
        raise InvalidInput("transpiling needs qiskit: pip install 'prefect-qruntime[qiskit]'", field="pubs") from None
    coupling = _coupling(configuration)
    supported = [name for name in _names(configuration, "supported_instructions") if name in _CONTROL_FLOW]
    gates = [*dict.fromkeys([*_names(configuration, "basis_gates"), *supported])]

    def passes(basis_gates: list[str]) -> Any:
        return generate_preset_pass_manager(
            optimization_level=optimization_level,
            basis_gates=basis_gates or None,
            coupling_map=CouplingMap(coupling) if coupling else None,
            # In nanoseconds; without it delays keep their units, which QPY does not.
            dt=dt * 1e-9 if isinstance(dt := configuration.get("dt"), int | float) and dt > 0 else None,
            seed_transpiler=seed,
        )

    try:
        manager = passes(gates)
    except ValueError as error:
        raise InvalidInput(f"qiskit cannot transpile for its gates: {error}", field="backend") from None
    found: list[tuple[Any, ...]] = []
    for place, parts in enumerate(pub_parts(pubs, program_id=program_id)):
        field = f"pubs[{place}].circuit"
        given = text_of(parts[0], field=field)
        if isinstance(given, str):
            _check_order(given, parts[1:], f"pubs[{place}]", program_id)
        circuit = _circuit(given, field)
        size = configuration.get("n_qubits")
        if isinstance(size, int) and circuit.num_qubits > size:
            raise InvalidInput(f"{circuit.num_qubits} qubits, but the backend has {size}", field=field)
        try:
            if program_id == "estimator" and optimization_level not in (0, 1):
                circuit = _kept_before_measurements(circuit)
            fitting = manager.run(circuit)
            if (
                not configuration.get("simulator")
                and "rzz" in gates
                and not all(_is_calibrated(use.name, use.angle) for use in _uses(fitting))
            ):
                fitting = passes([gate for gate in gates if gate != "rzz"]).run(circuit)
        except Exception as error:
            raise InvalidInput(f"cannot be transpiled: {type(error).__name__}: {error}", field=field) from None
        rest = list(parts[1:])
        if program_id == "estimator" and rest:
            # Qiskit takes an observable that is too short for one on the first qubits.
            observables = check_observables(rest[0], circuit.num_qubits, field=f"pubs[{place}].observables")
            rest[0] = _laid_out(observables, fitting, f"pubs[{place}].observables")
        if (which := _VALUES[program_id]) < len(rest) and len(fitting.parameters) < len(circuit.parameters):
            rest[which] = _still_needed(rest[which], circuit, fitting, f"pubs[{place}].parameters")
        found.append((fitting, *rest))
    return found


def _kept_before_measurements(circuit: Any) -> Any:
    """A circuit with a barrier before each measurement.

    From level 2 on qiskit drops diagonal gates that no measurement of the circuit shows. The estimator ignores the last
    measurements, and the gates decide what it measures instead.
    """
    target = circuit.copy_empty_like()
    for item in with_measurements_shown(circuit).data:
        if item.operation.name == "measure":
            target.barrier(*item.qubits)
        target.append(item)
    return target


# Where the values stand behind the circuit.
_VALUES = {"sampler": 0, "estimator": 1}


def _still_needed(values: Any, circuit: Any, fitting: Any, field: str) -> Any:
    """The values of the parameters that the transpiled circuit still has: others would be taken for theirs.

    Qiskit removes what has no effect on the outcomes, such as a rotation about z before a measurement.
    """
    names = [parameter.name for parameter in circuit.parameters]
    rows = parameter_values(values, circuit, field=field)
    if rows is None:
        return None
    from numpy import asarray

    return asarray(rows)[..., [names.index(parameter.name) for parameter in fitting.parameters]].tolist()


def _check_order(text: str, rest: list[Any], field: str, program_id: str) -> None:
    """Refuse a list of values whose order the text leaves open: the transpiled circuit has one order, qiskit's."""
    place = _VALUES[program_id]
    values = rest[place] if len(rest) > place else None
    values = bindings_of(values) if is_bindings_array(values) else values
    check_order(values, scan(text, field=f"{field}.circuit").inputs, field=f"{field}.parameters")


def _circuit(value: Any, field: str) -> Any:
    if is_quantum_circuit(value):
        return value
    if isinstance(value, dict):
        return load_qpy(value, field=field)
    return load_qasm(str(value), field=field)


def _laid_out(observables: Any, circuit: Any, field: str) -> Any:
    """Observables on the qubits of a transpiled circuit. Qiskit 2.0 cannot do that itself."""
    from qiskit.primitives.containers.observables_array import ObservablesArray

    size, layout = circuit.num_qubits, circuit.layout
    places = range(size) if layout is None else layout.final_index_layout()

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        found = {}
        for label, coefficient in value.items():
            letters = ["I"] * size
            for letter, place in zip(reversed(label), places, strict=False):
                letters[place] = letter
            found["".join(reversed(letters))] = coefficient
        return found

    try:
        return moved(ObservablesArray.coerce(observables).tolist())
    except Exception as error:
        raise InvalidInput(f"do not fit the circuit: {error}", field=field) from None
