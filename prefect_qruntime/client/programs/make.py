"""Build a checked `JobSpec` from what a user passes, and choose the route of its PUBs.

The route is the service's own primitive, or a quantum program of the executor; choosing it is pure.

| asked for | PUBs of the sampler and the estimator | raw `params` |
|---|---|---|
| `service` | the server's primitive | as they are |
| `executor` | a quantum program | refused, unless the program is the executor |
| `auto` | the server's primitive; the executor if the service says that the program is gone | as they are |

Program `executor` with PUBs means the sampler on that route. A dialect without an executor refuses the program's
payload.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prefect_qruntime.client.encodings.tensors import not_finite
from prefect_qruntime.client.inputs.meaning import meaning_of
from prefect_qruntime.client.inputs.pubs import is_quantum_circuit, measures, read_pubs
from prefect_qruntime.client.inputs.spec import (
    CIRCUIT_FORMS,
    IBM_EXTRA,
    CircuitForm,
    JobSpec,
    Pub,
    check_flag,
    check_id,
    check_max_execution_time,
    check_shots,
    check_size,
    check_tags,
    has_ibm,
    is_quantum_program,
    params_of_program,
    plain_json,
)
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Backend, mock_backend
from prefect_qruntime.redact import nearest, shown

__all__ = [
    "ROUTES",
    "PrimitiveRoute",
    "RequestedRoute",
    "Route",
    "choose_route",
    "make_spec",
    "on_executor",
    "program_is_gone",
    "route_notices",
]


PrimitiveRoute = Literal["service", "executor"]
RequestedRoute = Literal["service", "executor", "auto"]
ROUTES: tuple[RequestedRoute, ...] = ("service", "executor", "auto")

_PRIMITIVES = ("sampler", "estimator")
_REFUSALS = (400, 403, 404, 410, 422)
_GONE = re.compile(
    r"\b(?:not found|unknown|no longer|removed|retired|discontinued|deprecated|sunset|unsupported|not supported|"
    r"not available|unavailable|not offered|does not exist|invalid)\b",
    re.IGNORECASE,
)
_OTHER_THINGS = re.compile(r"\b(?:backend|session|instance|job [a-z0-9-]+|schema|pub|option)s?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Route:
    """The route of a submission.

    Attributes:
        route: The route it takes first.
        program_id: What the PUBs are for: `sampler` or `estimator`; of a raw payload its program.
        may_turn: Whether it takes the executor if the service says that the program is gone.
    """

    route: PrimitiveRoute
    program_id: str
    may_turn: bool = False


def choose_route(requested: str, program_id: str, *, raw: bool = False) -> Route:
    """Choose the route of a submission.

    Args:
        requested: `service`, `executor` or `auto`.
        program_id: The program that was asked for.
        raw: Whether there is a raw payload in place of PUBs.

    Raises:
        InvalidInput: There is no such route.
    """
    if not (isinstance(requested, str) and requested in ROUTES):
        raise InvalidInput(f"must be 'service', 'executor' or 'auto', not {shown(requested)}", field="route")
    if raw:
        if requested == "executor" and program_id != "executor":
            raise InvalidInput(
                f"'executor' is for PUBs; the raw params= of program {program_id!r} go there anyway. Leave route out",
                field="route",
            )
        return Route("service", program_id)
    if program_id == "executor":
        requested, program_id = "executor", "sampler"
    if program_id not in _PRIMITIVES:
        if requested == "executor":
            raise InvalidInput(
                f"'executor' runs the sampler and the estimator, not program {program_id!r}. Leave route out",
                field="route",
            )
        return Route("service", program_id)
    if requested == "executor":
        return Route("executor", program_id)
    return Route("service", program_id, may_turn=requested == "auto")


def program_is_gone(error: BaseException, program_id: str) -> bool:
    """Whether the service's refusal of a submission says that the program itself is gone or not offered.

    Only such a refusal lets `auto` turn to the executor: nothing was accepted then. Everything else does not, a
    lost answer least of all. How the service will word it is not known, so the words must name the program and
    nothing else that could be missing.
    """
    if not isinstance(error, QuantumRuntimeError) or error.status not in _REFUSALS:
        return False
    text = f"{error.message} {error.reason or ''}"
    named = re.search(rf"\b(?:programs?|primitives?|{re.escape(program_id)})\b", text, re.IGNORECASE)
    if named is None or _OTHER_THINGS.search(text):
        return False
    return error.status == 410 or _GONE.search(text) is not None


def on_executor(spec: JobSpec) -> JobSpec:
    """The same submission on the executor: it has the same digest, and so the same key.

    IBM's preparation makes its params if an option needs it and it is installed, else our own.

    Raises:
        InvalidInput: Something that the executor cannot do; it is named.
    """
    if spec.params is not None:
        raise InvalidInput("'executor' is for PUBs; raw params= have a program of their own", field="route")
    # Loaded here: few submissions take the executor.
    from prefect_qruntime.client.programs.executor import executor_params, ibm_params, options_that_need_ibm

    if any(options_that_need_ibm(spec.options)) and has_ibm():
        return replace(spec, prepared=ibm_params(spec))
    return replace(spec, prepared=executor_params(spec))


def route_notices(spec: JobSpec) -> tuple[str, ...]:
    """Differences on a submission's route although no option was refused, to be logged when it is submitted."""
    if spec.prepared is None or spec.program_id != "estimator":
        return ()
    from prefect_qruntime.client.programs.executor import options_that_need_ibm

    if "resilience_level" in spec.options or any(options_that_need_ibm(spec.options)):
        return ()
    return (
        'The route "executor" runs the estimator without error mitigation, while the service\'s own estimator would '
        "mitigate readout errors (resilience level 1). Set options.resilience_level to 0 to confirm that, or to 1 "
        f"for IBM's mitigation ({IBM_EXTRA}).",
    )


def make_spec(
    pubs: Any,
    *,
    backend: str | Backend,
    program_id: str = "sampler",
    shots: int | None = None,
    options: Any = None,
    params: Any = None,
    tags: Any = (),
    max_execution_time: int | None = None,
    private: bool = False,
    route: str = "service",
    circuit_form: CircuitForm = "auto",
    dry_run: bool = False,
) -> JobSpec:
    """Check a submission locally and build its `JobSpec`. Sends nothing.

    Args:
        pubs: A list of PUBs, or a single one. Sampler: OpenQASM 2/3 text, a `pathlib.Path` to it, a
            `QuantumCircuit`, or `(circuit, parameters, shots)`. Estimator: `(circuit,
            observables, parameters, precision)`. None with `params`.
        backend: Name of the backend, or a `Backend`.
        program_id: `sampler`, `estimator`, or with `params` any other program.
        shots: For all PUBs that have none of their own.
        options: `SamplerOptions`, `EstimatorOptions` or a dict like them.
        params: The raw `params` of any program; then no pubs, shots and options.
        tags: At most six.
        max_execution_time: QPU seconds the job may use, 1 to 10,800.
        private: The service hides the parameters and hands the result out once.
        route: `service` runs PUBs by the server's primitive, `executor` as a quantum program. `auto` is the former
            until the service says that the program is gone, see `choose_route`.
        circuit_form: How circuits travel to the executor: `openqasm3`, `qpy`, or `auto` (text as OpenQASM 3).
        dry_run: Run on the mock backend that stands for `backend`, without a QPU.

    Returns:
        The checked submission.

    Raises:
        InvalidInput: Anything wrong; `field` names it, for instance `pubs[2].parameters`.

    Example:
        ```python
        from prefect_qruntime.client.programs import make_spec

        bell = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; x $0; c[0] = measure $0;'
        spec = make_spec([bell, (bell, None, 500)], backend="ibm_torino", shots=1000)
        assert spec.pubs[1].shots == 500 and spec.widths == (1, 1)
        ```
    """
    if is_quantum_program(pubs) and params is None:
        if program_id not in ("sampler", "executor"):  # the former is the default
            raise InvalidInput(
                f"a QuantumProgram runs as program 'executor', not {shown(program_id)}", field="program_id"
            )
        _check_object(pubs, options)
        params, pubs, options, program_id = params_of_program(pubs, options), None, None, "executor"
        _check_program(params["quantum_program"], field="")
    program_id = check_id(program_id, field="program_id")
    way = choose_route(route, program_id, raw=params is not None)
    program_id = way.program_id
    if isinstance(backend, Backend):
        backend = backend.name
    _check_form(circuit_form, raw=params is not None, takes_executor=way.route == "executor" or way.may_turn)
    backend = check_id(backend, field="backend")
    common: dict[str, Any] = {
        "program_id": program_id,
        "backend": mock_backend(backend) if check_flag(dry_run, field="dry_run") else backend,
        "tags": check_tags(tags),
        "max_execution_time": check_max_execution_time(max_execution_time),
        "private": check_flag(private, field="private"),
    }
    if params is not None:
        raw = _raw(params, pubs, shots, options)
        meaning = meaning_of(raw)
        spec = JobSpec(**common, params=raw, meaning=meaning, doubts=meaning.doubts)
    else:
        if program_id not in _PRIMITIVES:
            raise InvalidInput(
                f"PUBs are for the programs sampler and estimator, not for {program_id!r}.",
                field="program_id",
                solution=f"{nearest(program_id, _PRIMITIVES)} Give any other program its params=.".strip(),
            )
        read = read_pubs(pubs, program_id=program_id)
        meaning = None
        if options is not None:
            from prefect_qruntime.client.inputs.options import check_options  # fourteen models

            options = check_options(options, program_id=program_id)
            meaning = meaning_of(options, "options")  # a noise model holds circuits
        spec = JobSpec(
            **common,
            pubs=read,
            shots=check_shots(shots, field="shots"),
            options=options or {},
            support_qiskit=any(not isinstance(pub.circuit, str) for pub in read),
            meaning=meaning,
            doubts=(*_doubts(read), *(meaning.doubts if meaning is not None else ())),
            may_turn=way.may_turn,
            circuit_form=circuit_form,
        )
        if way.route == "executor":
            spec = on_executor(spec)
    check_size(spec)
    return spec


def _check_form(circuit_form: str, *, raw: bool, takes_executor: bool) -> None:
    if not (isinstance(circuit_form, str) and circuit_form in CIRCUIT_FORMS):
        raise InvalidInput(f"must be 'auto', 'openqasm3' or 'qpy', not {shown(circuit_form)}", field="circuit_form")
    if circuit_form != "auto" and (raw or not takes_executor):
        what = "raw params= go as they are" if raw else 'the service\'s own programs choose it; use route="executor"'
        raise InvalidInput(f"is for PUBs on the executor: {what}. Leave circuit_form out", field="circuit_form")


def _doubts(pubs: Sequence[Pub]) -> Iterator[str]:
    for place, pub in enumerate(pubs):
        if pub.identity is None and not isinstance(pub.circuit, str):
            yield f"pubs[{place}].circuit is an encoded circuit, which is known by its text."
        elif isinstance(pub.identity, dict) and "qpy" in pub.identity:
            yield f"pubs[{place}].circuit has an operation without a definition that could be compared."


def _raw(params: Any, pubs: Any, shots: Any, options: Any) -> dict[str, Any]:
    for name, value in (("pubs", pubs), ("shots", shots), ("options", options)):
        if value is not None and not (isinstance(value, list | tuple | dict) and not value):
            raise InvalidInput("cannot be given together with params=", field=name)
    if not isinstance(params, dict):
        raise InvalidInput(f"must be a dict, not {type(params).__name__}", field="params")
    copy: dict[str, Any] = plain_json(params, field="params")
    if isinstance(program := copy.get("quantum_program"), dict):
        _check_program(program, field="params.quantum_program.")
    return copy


def _check_object(program: Any, options: Any) -> None:
    """Check what a `QuantumProgram` holds before IBM's client writes it, whose errors name other fields."""
    items = [{"chunk_size": getattr(item, "chunk_size", None)} for item in program.items]
    _check_program({"shots": program.shots, "items": items}, field="")
    # Without a measurement a circuit can still be run for its timing.
    timed = isinstance(options, Mapping) and any(map(options.get, ("scheduler_timing", "stretch_values")))
    for place, item in enumerate(program.items):
        circuit = getattr(item, "circuit", None)
        if not is_quantum_circuit(circuit):
            raise InvalidInput(f"{type(item).__name__} is not an item of a quantum program", field=f"items[{place}]")
        if not timed and not measures(circuit):
            raise InvalidInput("nothing is measured, so the job would return nothing", field=f"items[{place}].circuit")


def _check_program(program: Mapping[str, Any], *, field: str) -> None:
    """Refuse a quantum program that would run nothing or too many shots, and NaN and infinity among its arguments.

    Raw payloads are of any version, so only what is there counts, and what is in another form goes as it is.
    """
    if "shots" in program and check_shots(program["shots"], field=f"{field}shots") is None:
        raise InvalidInput("must be an integer, not None", field=f"{field}shots")
    items = program.get("items")
    if items == []:
        raise InvalidInput("at least one item is needed", field=f"{field}items")
    for place, item in enumerate(items if isinstance(items, list) else ()):
        if not isinstance(item, dict):
            continue
        spot = f"{field}items[{place}]"
        chunk = item.get("chunk_size")
        if chunk is not None and not isinstance(chunk, str):  # "auto"
            check_shots(chunk, field=f"{spot}.chunk_size")
        for name in ("circuit_arguments", "samplex_arguments"):
            if (wrong := not_finite(item.get(name), f"{spot}.{name}")) is not None:
                raise InvalidInput("NaN and infinity cannot be sent", field=wrong)
        arguments = item.get("circuit_arguments")
        rows = arguments.get("shape") if isinstance(arguments, dict) else None
        points = rows[:-1] if isinstance(rows, list) else None
        for name, shape in (("circuit_arguments", points), ("shape", item.get("shape"))):
            if isinstance(shape, list) and 0 in shape:
                raise InvalidInput("holds no parameter point at all", field=f"{spot}.{name}")
