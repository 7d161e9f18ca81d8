"""The arguments of the tasks: one definition of a submission's parameters, and handles in one form each."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    NamedTuple,
    ParamSpec,
    Required,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from prefect_qruntime.admission.budget import BudgetLike
from prefect_qruntime.client import inputs
from prefect_qruntime.client.connection import check_id
from prefect_qruntime.client.cost_core import busy_seconds
from prefect_qruntime.client.inputs.spec import CircuitForm, JobSpec
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.route import RequestedRoute
from prefect_qruntime.client.provenance import read_versions
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.flow_parameters import limited_file_references
from prefect_qruntime.models import Backend, Job, JobRef, SessionRef
from prefect_qruntime.settings import current_settings

__all__ = [
    "JobLike",
    "Plan",
    "SessionLike",
    "Submission",
    "as_job",
    "as_session",
    "backend_name",
    "defaults_of",
    "digest_fields",
    "plan_submission",
    "spelled_out",
]

P = ParamSpec("P")
R = TypeVar("R")

JobLike = JobRef | Job | str
SessionLike = SessionRef | str


class Default(NamedTuple):
    """The default of a parameter that a `TypedDict` declares."""

    value: Any


class Submission(TypedDict, total=False):
    """The parameters of a submission, beside `credentials` and `pubs`.

    `submit_job`, `run_job` and the job block all take these; nothing else declares them.

    Attributes:
        backend: A backend or its name.
        program_id: `sampler`, `estimator`, or with `params` any other.
        session: Session or batch to run in.
        shots: Shots for PUBs without shots of their own.
        options: Options of the primitive.
        params: Raw payload of any program, in place of `pubs`.
        tags: At most six tags of your own, each of at most 86 characters.
        max_execution_time: QPU seconds the job may use, 1 to 10800.
        private: Hide the input; the result can then be read once.
        route: `service` runs PUBs by the server's sampler and estimator, `executor` as a quantum program; `auto` is
            the former until the service says that the program is gone. Default from the setting `primitive_route`.
        circuit_form: How circuits travel to the executor: `openqasm3`, `qpy`, or `auto` (text as OpenQASM 3).
        dry_run: Run on the mock backend that stands for `backend`: the whole way without a QPU and without charge,
            with random results. Never attached to in place of the real job, and in no budget.
        submission_key: Identity of this submission across flow runs, for instance deployment and scheduled
            time; it replaces flow run and call order.
        check_isa: Compare the circuits with the backend's configuration before anything is sent.
        transpile: Transpile the circuits for the backend (needs `[qiskit]`). Off by default.
        require_online: Refuse to submit to a backend that is paused or offline. By default the job queues there, and
            the log says so.
        budget: A `Budget` or the name of a saved one, checked before anything is sent. In `.map` pass
            `unmapped(budget)`, or the name.
    """

    backend: Required[str | Backend]
    program_id: Annotated[str, Default("sampler")]
    session: Annotated[SessionLike | None, Default(None)]
    shots: Annotated[int | None, Default(None)]
    options: Annotated[Any, Default(None)]
    params: Annotated[dict[str, Any] | None, Default(None)]
    tags: Annotated[Iterable[str], Default(())]
    max_execution_time: Annotated[int | None, Default(None)]
    private: Annotated[bool, Default(False)]
    route: Annotated[RequestedRoute | None, Default(None)]
    circuit_form: Annotated[CircuitForm, Default("auto")]
    dry_run: Annotated[bool, Default(False)]
    submission_key: Annotated[str | None, Default(None)]
    check_isa: Annotated[bool, Default(False)]
    transpile: Annotated[bool, Default(False)]
    require_online: Annotated[bool, Default(False)]
    budget: Annotated[BudgetLike | None, Default(None)]


@functools.cache
def _parameters(declared: type) -> tuple[inspect.Parameter, ...]:
    """A `TypedDict`'s keys as keyword-only parameters."""
    found = []
    for name, hint in get_type_hints(declared, include_extras=True).items():
        default = inspect.Parameter.empty
        if get_origin(hint) is Required:
            hint = get_args(hint)[0]
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            default = next(extra.value for extra in extras if isinstance(extra, Default))
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return tuple(found)


def defaults_of(declared: type) -> dict[str, Any]:
    """The defaults that a `TypedDict` of parameters declares, by name."""
    return {one.name: one.default for one in _parameters(declared) if one.default is not inspect.Parameter.empty}


def spelled_out(function: Callable[P, R]) -> Callable[P, R]:
    """Give a function that takes `**name: Unpack[TypedDict]` a run-time signature that names every parameter.

    Prefect binds calls by the run-time signature; type checkers read the `Unpack` by themselves.
    """
    signature = inspect.signature(function, eval_str=True)
    spelled: list[inspect.Parameter] = []
    declared: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and get_origin(parameter.annotation) is Unpack:
            declared += _parameters(get_args(parameter.annotation)[0])
        else:
            spelled.append(parameter)
    parameters = sorted([*declared, *spelled], key=lambda parameter: parameter.kind)  # stable: the declared ones first
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function


def as_job(job: JobLike) -> JobRef:
    """A handle for a job, from any value that names it.

    Raises:
        InvalidInput: It names none.
    """
    if isinstance(job, Job):
        job = job.ref()
    if isinstance(job, str):
        return JobRef(id=check_id(job.strip(), field="job"), private=None)
    if isinstance(job, JobRef):
        check_id(job.id, field="job")
        return job
    raise InvalidInput("must be a JobRef, a Job or a job id", field="job")


def as_session(session: SessionLike | None) -> SessionRef | None:
    """A session handle, from any value that names a session.

    Raises:
        InvalidInput: It names none.
    """
    if session is None:
        return None
    if isinstance(session, str):
        return SessionRef(id=check_id(session.strip(), field="session"))
    if isinstance(session, SessionRef):
        if session.id is not None:
            check_id(session.id, field="session")
        return session
    raise InvalidInput("must be a SessionRef or a session id", field="session")


def backend_name(backend: Any) -> str:
    """The name, from a name or a `Backend`."""
    if isinstance(backend, Backend):
        return backend.name
    if isinstance(backend, str):
        return backend
    raise InvalidInput("must be a Backend or its name", field="backend")


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked submission, and the digest that identifies what was wanted.

    The digest is that of the circuits as given: transpiled for another backend, they are still the same work.
    `transpiled` says that those of `spec` are made for its backend, `busy_seconds` what the cost model says of it.
    """

    spec: JobSpec
    digest: str
    transpiled: bool = False
    busy_seconds: float = 0.0


_SPEC_FIELDS = (
    "backend",
    "program_id",
    "shots",
    "options",
    "params",
    "tags",
    "max_execution_time",
    "private",
    "route",
    "circuit_form",
    "dry_run",
)


def spec_fields(submission: Submission) -> dict[str, Any]:
    """The parameters that say what is submitted, not how carefully; the route from the settings if none is named."""
    fields: dict[str, Any] = {name: value for name, value in submission.items() if name in _SPEC_FIELDS}
    if fields.get("route") is None:
        of_pubs = fields.get("params") is None
        fields["route"] = current_settings().primitive_route if of_pubs else "service"
    return fields


def digest_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Those of `spec_fields` that the digest depends on: neither the route nor what belongs to it is a part of it."""
    return {**fields, "route": "service", "circuit_form": "auto"}


async def plan_submission(credentials: QuantumRuntimeCredentials, pubs: Any, submission: Submission) -> Plan:
    """Check everything that costs nothing to check; transpile only if asked to.

    Large inputs are read in a thread of their own, so that the network loop continues meanwhile.

    Raises:
        InvalidInput: A field is wrong; it is named.
    """
    checks, transpiles = submission.get("check_isa", False), submission.get("transpile", False)
    configuration: dict[str, Any] | None = None
    if checks or transpiles:
        configuration = await credentials.get_client().backend_configuration(backend_name(submission["backend"]))

    def read() -> Plan:
        with limited_file_references():
            return checked(spec_fields(submission))

    def checked(fields: dict[str, Any]) -> Plan:
        # For its digest alone a submission needs no quantum program, and before a transpilation there may be none.
        spec = make_spec(pubs, **(digest_fields(fields) if transpiles else fields))
        digest = spec.digest()
        if configuration is not None and transpiles:
            transpiled = inputs.transpile_pubs(pubs, configuration, program_id=spec.program_id)
            spec = make_spec(transpiled, **fields)
        if configuration is not None and checks:
            inputs.check_isa(spec, configuration)
        transpiled_here = configuration is not None and transpiles
        return Plan(spec, digest, transpiled=transpiled_here, busy_seconds=busy_seconds(spec))

    await read_versions()  # for the job's page
    return await asyncio.to_thread(read)
