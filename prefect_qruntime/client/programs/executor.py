"""PUBs of the sampler and the estimator as a quantum program of the executor, schema version v2.0.

Circuits go as OpenQASM 3 text, which needs neither qiskit nor numpy, or as QPY. The recipe that turns the
result back into counts or expectation values travels in `passthrough_data`, so that a job fetched by its id
in another process needs nothing else.

The executor runs circuits as they are. Twirling, dynamical decoupling and error mitigation are prepared on the
client's side, which IBM's own client does (extra `[ibm]`), called by name. They are IBM's code on both ends; none of it
is reimplemented here. What IBM's client prepares is sent as it is, and what it needs afterwards travels in the job's
`passthrough_data`. An option is dropped only if it has no effect.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from prefect_qruntime.client.encodings.arrays import NpyArray
from prefect_qruntime.client.encodings.tensors import encode_tensor
from prefect_qruntime.client.inputs.options import (
    check_equivalents,
    execution_flags,
    measurement_level,
    options_that_need_ibm,
    program_options,
)
from prefect_qruntime.client.inputs.pub_values import point_rows
from prefect_qruntime.client.inputs.pubs import TOO_DEEP, dump_qpy, load_qasm, load_qpy, write_qpy
from prefect_qruntime.client.inputs.qasm import scan, syntax_error
from prefect_qruntime.client.inputs.spec import (
    DEFAULT_PRECISION,
    DEFAULT_SHOTS,
    IBM_CLIENT,
    IBM_EXTRA,
    RECIPE_AUTHOR,
    RECIPE_VERSION,
    JobSpec,
    Pub,
    first_line,
    ibm_module,
    refused_by_ibm,
    write_program,
)
from prefect_qruntime.client.programs import openqasm
from prefect_qruntime.client.programs.expectation import (
    circuit_without_last_measurements,
    in_one_register,
    in_standard_gates,
    make_plan,
    shots_for,
)
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.redact import many

__all__ = [
    "SCHEMA_VERSION",
    "estimator_pub",
    "executor_params",
    "ibm_params",
    "measurement_level",
    "options_that_need_ibm",
    "program_circuits",
    "program_options",
    "program_shots",
]


SCHEMA_VERSION = "v2.0"

_Found = TypeVar("_Found")
# Names of constants in OpenQASM 3.
_CONSTANTS = frozenset({"pi", "π", "tau", "τ", "euler", "ℇ"})
# Options of the server's programs that IBM's client-side ones do not have, or have elsewhere; what of them would have
# an effect is refused.
_NOT_THEIRS = ("seed_estimator", "precision", "simulator", "experimental")


@dataclass(frozen=True, slots=True)
class _Circuit:
    """A circuit in the common form of its program, and its parameters in the program's order."""

    form: Any
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    circuit: Any
    arguments: dict[str, Any]


def executor_params(spec: JobSpec) -> dict[str, Any]:
    """The `params` of program `executor` for the PUBs of a checked submission. Deterministic and pure.

    Args:
        spec: A checked submission of program `sampler` or `estimator`.

    Raises:
        InvalidInput: Something that the executor cannot do: PUBs with different shots, options without an equivalent,
            OpenQASM 2 that is not rewritten, inputs that are not floats or angles.
    """
    shots = program_shots(spec)
    options = program_options(spec.options)
    circuits = _circuits(spec)
    texts = isinstance(circuits[0].form, str)
    estimator = spec.program_id == "estimator"
    items: list[_Item] = []
    recipe: list[dict[str, Any]] = []
    for place, (pub, circuit) in enumerate(zip(spec.pubs, circuits, strict=True)):
        field = f"pubs[{place}]"
        shape, rows = point_rows(pub.parameters, circuit.inputs, field=f"{field}.parameters")
        if estimator:
            recipe.append(_measured_items(pub, circuit, shape, rows, items, field))
        else:
            recipe.append({"item": len(items), "shape": list(shape)})
            items.append(_Item(circuit.form, encode_tensor(rows, shape=(*shape, len(circuit.inputs)))))
    record: dict[str, Any] = {
        "by": RECIPE_AUTHOR,
        "version": RECIPE_VERSION,
        "program": spec.program_id,
        "shots": shots,
        "pubs": recipe,
    }
    level = "classified" if estimator else measurement_level(spec.options)
    if not estimator:
        record["meas_level"] = level
    found = [item.circuit for item in items]
    return {
        "schema_version": SCHEMA_VERSION,
        "quantum_program": {
            "shots": shots,
            "circuits": {"data": found} if texts else _qpy(found),
            "items": [
                {"item_type": "circuit", "circuit_arguments": item.arguments, "shape": [], "chunk_size": "auto"}
                for item in items
            ],
            "meas_level": level,
            "passthrough_data": {"post_processor": record},
        },
        "options": options,
    }


def program_shots(spec: JobSpec) -> int:
    """The one number of shots with which the executor runs all PUBs.

    Raises:
        InvalidInput: PUBs that want different numbers; the field names the first that differs.
    """
    options = spec.options
    common = spec.shots if spec.shots is not None else options.get("default_shots")
    wanted: list[int] = []
    if spec.program_id == "estimator":
        common = options.get("default_shots") if options.get("default_shots") is not None else spec.shots
        part = "precision"
        for place, pub in enumerate(spec.pubs):
            precision = pub.precision if pub.precision is not None else options.get("precision")
            if precision is None and common is None:
                precision = options.get("default_precision") or DEFAULT_PRECISION
            field = f"pubs[{place}].precision" if pub.precision is not None else "options.precision"
            wanted.append(int(common or 0) if precision is None else shots_for(precision, field=field))
    else:
        part = "shots"
        common = DEFAULT_SHOTS if common is None else common
        wanted = [pub.shots if pub.shots is not None else common for pub in spec.pubs]
    for place, shots in enumerate(wanted):
        if shots != wanted[0]:
            raise InvalidInput(
                f"asks for {shots} shots and pubs[0] for {wanted[0]}: the executor runs all PUBs of a job with one "
                'number of shots. Give all PUBs the same, submit them as separate jobs, or use route="service"',
                field=f"pubs[{place}].{part}",
            )
    if not wanted or wanted[0] < 1:
        raise InvalidInput("must be at least 1 on the executor", field="options.default_shots")
    return wanted[0]


def _circuits(spec: JobSpec) -> list[_Circuit]:
    """The circuit of each PUB in one form; those of the estimator without their last measurements."""
    form, text = spec.circuit_form, all(isinstance(pub.circuit, str) for pub in spec.pubs)
    estimator = spec.program_id == "estimator"
    if form == "openqasm3" or (form == "auto" and text):
        try:
            return _once_each(spec, lambda pub, field: _as_text(pub, field, estimator=estimator))
        except _CannotBeTextError as error:
            if form == "openqasm3" or not _has_qiskit():
                raise error.reason from None
    return _once_each(spec, lambda pub, field: _as_object(pub, field, estimator=estimator))


def _once_each(spec: JobSpec, read: Callable[[Pub, str], _Found]) -> list[_Found]:
    """What is read of the circuit of each PUB. Many points of one circuit share one wire object: it is read once."""
    found: dict[int, _Found] = {}
    for place, pub in enumerate(spec.pubs):
        if id(pub.circuit) not in found:
            field = f"pubs[{place}].circuit"
            try:
                found[id(pub.circuit)] = read(pub, field)
            except RecursionError:
                raise InvalidInput(TOO_DEEP, field=field) from None
    return [found[id(pub.circuit)] for pub in spec.pubs]


def program_circuits(spec: JobSpec) -> list[Any]:
    """The circuit of each PUB as a `QuantumCircuit`. Needs qiskit.

    Raises:
        InvalidInput: qiskit is not installed, or cannot read one of them.
    """
    return _once_each(spec, lambda pub, field: _as_circuit(pub.circuit, field))


class _CannotBeTextError(Exception):
    def __init__(self, reason: InvalidInput) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _as_text(pub: Pub, field: str, *, estimator: bool) -> _Circuit:
    text = pub.circuit
    if not isinstance(text, str):
        return _exported(load_qpy(text, field=field), field, estimator=estimator)
    try:
        text = openqasm.as_version_3(text, field=field)
        if estimator:
            text = openqasm.without_last_measurements(text, field=field)
    except InvalidInput as error:
        raise _CannotBeTextError(error) from None
    inputs = scan(text, field=field).inputs
    if inputs is None:
        raise InvalidInput(
            "has inputs that are not scalar floats or angles, whose place among the executor's arguments is not "
            'known. Use floats and angles, or route="service"',
            field=field,
        )
    # Readers of OpenQASM text order parameters by their names.
    return _Circuit(text, tuple(sorted(inputs)))


def _as_object(pub: Pub, field: str, *, estimator: bool) -> _Circuit:
    circuit = _as_circuit(pub.circuit, field)
    if estimator:
        circuit = circuit_without_last_measurements(circuit)
    return _Circuit(circuit, tuple(parameter.name for parameter in circuit.parameters))


def _exported(circuit: Any, field: str, *, estimator: bool) -> _Circuit:
    from qiskit import qasm3
    from qiskit.circuit import Parameter

    names = tuple(parameter.name for parameter in circuit.parameters)
    if estimator:
        circuit = in_one_register(circuit_without_last_measurements(circuit, keep_registers=True))
    try:
        circuit = in_standard_gates(circuit)
        # Readers order parameters by name, so each gets a name that keeps its place.
        renamed = {parameter: Parameter(f"p_{place:06}") for place, parameter in enumerate(circuit.parameters)}
        text = str(qasm3.dumps(circuit.assign_parameters(renamed)))
    except Exception as error:
        raise InvalidInput(f"cannot be written as OpenQASM 3: {type(error).__name__}: {error}", field=field) from None
    if (wrong := syntax_error(text, 3)) is not None:
        raise InvalidInput(
            f"cannot be written as OpenQASM 3: qiskit's text has a syntax error at {wrong}. Leave circuit_form out",
            field=field,
        )
    program = scan(text, field=field)
    if program.inputs is None or set(program.inputs) != {one.name for one in renamed.values()}:
        raise InvalidInput("has input variables, to which the executor gives no values", field=field)
    written = {name for name, _ in program.registers}
    wrong_names = [one.name for one in circuit.cregs if one.name not in written and not estimator]
    # Qiskit before 2.6 writes a register named `pi` as it is, and angles of `pi` beside it.
    wrong_names += [one.name for one in (*circuit.qregs, *circuit.cregs) if one.name in _CONSTANTS]
    if wrong_names:
        raise InvalidInput(
            f"has a register named {wrong_names[0]!r}, which is not a name that OpenQASM 3 allows, so the text would "
            "have another one. Rename it, or leave circuit_form out",
            field=field,
        )
    return _Circuit(text.rstrip() if estimator else text, names)


def _as_circuit(value: str | dict[str, Any], field: str) -> Any:
    if isinstance(value, dict):
        return load_qpy(value, field=field)
    if not _has_qiskit():
        raise InvalidInput(
            "is text, which only qiskit can write as QPY; that is the form asked for, or the one of other circuits: "
            "pip install 'prefect-qruntime[qiskit]'",
            field=field,
        )
    circuit = load_qasm(value, field=field)
    write_qpy(circuit, field=field)
    return circuit


def _has_qiskit() -> bool:
    try:
        import qiskit  # noqa: F401
    except ImportError:
        return False
    return True


def _measured_items(
    pub: Pub, circuit: _Circuit, shape: tuple[int, ...], rows: list[list[float]], items: list[_Item], field: str
) -> dict[str, Any]:
    """Add one item for each group of commuting terms; return how their bits become expectation values."""
    plan = make_plan(pub.observables, shape, field=f"{field}.observables")
    measure = _text_measurement if isinstance(circuit.form, str) else _circuit_measurement
    width = len(plan.terms[0][0])
    groups: list[dict[str, Any]] = []
    for group in plan.groups:
        measured, register = measure(circuit.form, group.basis, width, f"{field}.circuit")
        every = len(group.points) == len(rows)
        chosen = rows if every else [rows[point] for point in group.points]
        arguments = encode_tensor(chosen, shape=(*(shape if every else (len(chosen),)), len(circuit.inputs)))
        groups.append({"item": len(items), "register": register, "qubits": list(group.basis)})
        if not every:
            groups[-1]["points"] = group.points
        items.append(_Item(measured, arguments))
    return {**plan.record(), "groups": groups}


def _text_measurement(text: str, basis: dict[int, str], width: int, field: str) -> tuple[str, str]:
    operands = openqasm.qubit_operands(text, field=field)
    physical = bool(operands) and operands[0] == "$0"
    if width < len(operands) or (width > len(operands) and not physical):
        raise InvalidInput(
            f"has {many(len(operands), 'qubit')} and its observables {many(width, 'letter')}; both must be equal",
            field=field,
        )
    if physical:
        operands = [f"${place}" for place in range(width)]
    register = openqasm.unused_name("qr_meas", [text])
    return openqasm.measured(text, basis, operands=operands, register=register, field=field), register


def _circuit_measurement(circuit: Any, basis: dict[int, str], width: int, field: str) -> tuple[Any, str]:
    from qiskit.circuit import ClassicalRegister

    if width != circuit.num_qubits:
        raise InvalidInput(
            f"has {many(circuit.num_qubits, 'qubit')} and its observables {many(width, 'letter')}; both must be equal",
            field=field,
        )
    target = circuit.copy()
    register = openqasm.unused_name("qr_meas", [name.name for name in target.cregs])
    bits = ClassicalRegister(len(basis), register)
    target.add_register(bits)
    for qubit, letter in basis.items():
        if letter == "X":
            target.rz(math.pi / 2, qubit)
        if letter != "Z":
            target.sx(qubit)
    target.barrier(list(basis))
    target.measure(list(basis), bits)
    return target, register


def _qpy(circuits: list[Any]) -> dict[str, Any]:
    plain, version = dump_qpy(circuits, field="pubs")
    data = base64.b64encode(zlib.compress(plain)).decode()
    return {"b64_data": data, "qpy_version": version, "num_programs": len(circuits)}


def ibm_params(spec: JobSpec) -> dict[str, Any]:
    """The `params` of program `executor` for PUBs whose options need IBM's preparation.

    Args:
        spec: A checked submission of program `sampler` or `estimator`.

    Raises:
        InvalidInput: IBM's client is not installed, or refuses something.
    """
    check_equivalents(spec.options)
    program_shots(spec)  # for its refusals, which name the PUB
    if spec.circuit_form == "openqasm3":
        raise InvalidInput("has no effect: IBM's preparation sends circuits as QPY. Leave it out", field="circuit_form")
    name = "executor_sampler" if spec.program_id == "sampler" else "executor_estimator"
    prepare = ibm_module(f"{name}.prepare", "error suppression and mitigation on the executor").prepare
    models = ibm_module(f"options_models.{spec.program_id}", "error suppression and mitigation on the executor")
    kind = models.SamplerOptions if spec.program_id == "sampler" else models.EstimatorOptions
    try:
        options = kind(**_obeying(_in_their_places(spec.options), spec))
    except ValidationError as error:
        raise refused_by_ibm(error) from None
    pubs: list[tuple[Any, ...]] = []
    for place, (pub, circuit) in enumerate(zip(spec.pubs, program_circuits(spec), strict=True)):
        values = () if pub.parameters is None else pub.parameters
        if values and not circuit.parameters and spec.program_id == "sampler":
            raise InvalidInput(
                "ask for points of a circuit without parameters, which IBM's preparation runs once. Leave them out",
                field=f"pubs[{place}].parameters",
            )
        if spec.program_id == "sampler":
            pubs.append((circuit, values or None, pub.shots))
        else:
            pubs.append((circuit, pub.observables, values or None, pub.precision))
    more: dict[str, Any] = {}
    if spec.program_id == "sampler":
        more["shots"] = spec.shots
    else:
        more["precision"] = spec.options.get("precision")
        if spec.shots is not None and options.default_shots is None:
            options.default_shots = spec.shots
    try:
        program, executor_options = prepare(pubs, options, **more)
    except Exception as error:  # IBM's client and samplomatic have errors of their own for each refusal
        raise InvalidInput(
            f"IBM's client cannot prepare them: {first_line(error)}",
            field="pubs",
            solution="Its preparation takes circuits in the gates of the backend, without control flow and boxes. "
            'Change that, switch off the options that need it, or use route="service".',
        ) from None
    return write_program(program, executor_options)


def _in_their_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """Checked options as IBM's models take them; what is None is not set."""
    given = {name: _set(value) for name, value in options.items() if name not in _NOT_THEIRS}
    given.get("resilience", {}).pop("layer_noise_learning", None)
    if options.get("experimental"):
        given["experimental"] = dict(options["experimental"])
    if flags := dict.fromkeys(execution_flags(options), True):
        given["execution"] = {**given.get("execution", {}), **flags}
    return given


def _obeying(options: dict[str, Any], spec: JobSpec) -> dict[str, Any]:
    """Options with which IBM's preparation takes the shots that a PUB or the job asks for.

    The service obeys them always; the preparation takes the product of twirling's two numbers instead.
    """
    common = spec.shots if spec.program_id == "sampler" else spec.options.get("precision")
    asked = common is not None or any(pub.shots is not None or pub.precision is not None for pub in spec.pubs)
    twirling = options.get("twirling")
    if asked and twirling and twirling.get("num_randomizations", "auto") != "auto":
        options["twirling"] = {**twirling, "shots_per_randomization": "auto"}
    return options


def _set(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: _set(item) for name, item in value.items() if item is not None}


def estimator_pub(raw: Mapping[str, Any], place: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values and metadata of one PUB of a job made by IBM's client-side Estimator.

    Raises:
        QuantumRuntimeError: IBM's client is not installed.
        ValueError: IBM's client cannot read the result.
    """
    try:
        decoder = import_module(f"{IBM_CLIENT}.decoders.executor.decoder")
        finish = import_module(f"{IBM_CLIENT}.decoders.executor_estimator.post_processor_v0_1")
    except ImportError:
        raise QuantumRuntimeError(
            "the job was made by IBM's client-side Estimator, and only IBM's own code turns its bits into "
            f"expectation values: {IBM_EXTRA}. `.raw` has the data"
        ) from None
    # From the text: from objects the models would take the tensors that were passed through for plain dicts.
    convert, model = decoder.AVAILABLE_DECODERS[raw["schema_version"]]
    found = finish.estimator_v2_post_processor_v0_1(convert(model.model_validate_json(orjson.dumps(raw))))[place]
    values = {name: _array(value) for name, value in found.data.items()}
    metadata = {name: _plain(value) for name, value in found.metadata.items()}
    record = raw["passthrough_data"]["post_processor"]
    return values, {**metadata, "shots": record.get("shots"), "target_precision": record.get("precision")}


def _array(value: Any) -> Any:
    """An array of numbers without numpy; any other as lists."""
    if value.dtype.str[1:] in ("f8", "i8", "b1", "c16"):
        return NpyArray(value.dtype.str, tuple(value.shape), value.tobytes())
    return value.tolist()


def _plain(value: Any) -> Any:
    return value.tolist() if callable(getattr(value, "tolist", None)) else value
