"""Build a checked `JobSpec` from what a user passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prefect_qruntime.client.inputs.fields import (
    check_flag,
    check_id,
    check_max_execution_time,
    check_shots,
    check_tags,
    plain_json,
)
from prefect_qruntime.client.inputs.meaning import meaning_of
from prefect_qruntime.client.inputs.pubs import read_pubs
from prefect_qruntime.client.inputs.quantum_program import is_quantum_program, params_of_program
from prefect_qruntime.client.inputs.spec import CIRCUIT_FORMS, CircuitForm, JobSpec, Pub, check_size
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Backend, mock_backend

__all__ = ["make_spec"]

_PRIMITIVES = ("sampler", "estimator")


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
            until the service says that the program is gone, see `client.programs.route`.
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
    # The programs are built upon the inputs, so they are looked up when they are needed.
    from prefect_qruntime.client.programs.route import choose_route, on_executor

    if is_quantum_program(pubs) and params is None:
        params, pubs, options = params_of_program(pubs, options), None, None
        program_id = "executor" if program_id == "sampler" else program_id
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
                f"PUBs are for the sampler and the estimator; give program {program_id!r} its params=",
                field="program_id",
            )
        read = read_pubs(pubs, program_id=program_id)
        spec = JobSpec(
            **common,
            pubs=read,
            shots=check_shots(shots, field="shots"),
            options=_options(options, program_id),
            support_qiskit=any(not isinstance(pub.circuit, str) for pub in read),
            doubts=tuple(_doubts(read)),
            may_turn=way.may_turn,
            circuit_form=circuit_form,
        )
        if way.route == "executor":
            spec = on_executor(spec)
    check_size(spec)
    return spec


def _options(options: Any, program_id: str) -> dict[str, Any]:
    if options is None:
        return {}
    from prefect_qruntime.client.inputs.options import check_options  # fourteen models

    return check_options(options, program_id=program_id)


def _check_form(circuit_form: str, *, raw: bool, takes_executor: bool) -> None:
    if circuit_form not in CIRCUIT_FORMS:
        raise InvalidInput(f"must be 'auto', 'openqasm3' or 'qpy', not {circuit_form!r}", field="circuit_form")
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
    return copy
