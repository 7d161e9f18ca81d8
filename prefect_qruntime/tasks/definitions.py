"""What the tasks are defined with: the parameters of a submission, handles, and the two kinds of tasks as pairs.

A submission's parameters are defined once, and handles become one form each.

The two kinds of tasks are those that create something, and those that may be repeated. A pair is written once, as an
async body that runs on the process's network loop. `creates` and `repeats` make the async task of it; `blocking` makes
the task for sync flows, with the same parameters.

The tasks carry no tags: for each run of a tagged task Prefect asks its server for a concurrency slot first, and an
error there would fail the fetch of a job that is paid for, or the closing of its session.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from string import Formatter
from types import FunctionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NoReturn,
    ParamSpec,
    Required,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.utilities.callables import get_call_parameters
from pydantic import BaseModel

from prefect_qruntime.admission.budget import BudgetLike
from prefect_qruntime.client import inputs
from prefect_qruntime.client.connection import check_id
from prefect_qruntime.client.cost_core import busy_seconds
from prefect_qruntime.client.inputs.spec import CircuitForm, JobSpec, check_flag
from prefect_qruntime.client.network_loop import network_loop, on_network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.make import RequestedRoute
from prefect_qruntime.client.provenance import read_versions
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.flow_parameters import limited_file_references
from prefect_qruntime.models import Backend, Job, JobRef, SessionRef
from prefect_qruntime.observability.telemetry import trace_task
from prefect_qruntime.prefect_api import in_run
from prefect_qruntime.run_context import submission_in_flight
from prefect_qruntime.settings import current_settings

__all__ = [
    "InFlowTask",
    "JobLike",
    "Plan",
    "SessionLike",
    "Submission",
    "UndeferredTask",
    "as_job",
    "as_session",
    "backend_name",
    "blocking",
    "check_credentials",
    "check_depth",
    "check_mapped",
    "creates",
    "defaults_of",
    "digest_fields",
    "given_only",
    "in_flow",
    "may_retry",
    "plan_submission",
    "repeats",
    "run_blocking",
    "spelled_out",
]


P = ParamSpec("P")
R = TypeVar("R")

JobLike = JobRef | Job | str
SessionLike = SessionRef | str

TaskT = TypeVar("TaskT", bound=Task[..., Any])

_RETRIES = 2
_DELAYS: list[float] = [5, 30]


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
        transpile: Transpile the circuits of PUBs for the backend (needs `[qiskit]`). Off by default.
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
        return JobRef(id=check_id(job.strip(), field="job"))
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
    found = {**fields, "route": "service", "circuit_form": "auto"}
    if fields.get("program_id") == "executor" and fields.get("params") is None:
        found["program_id"] = "sampler"  # of PUBs that is another name for the route
    return found


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
        if transpiles and spec.params is not None:
            raise InvalidInput(
                "is for PUBs: the circuits of raw params= and of a QuantumProgram go as they are. Leave it out",
                field="transpile",
            )
        if configuration is not None and transpiles:
            transpiled = inputs.transpile_pubs(pubs, configuration, program_id=spec.program_id)
            spec = make_spec(transpiled, **fields)
        if configuration is not None and checks:
            inputs.check_isa(spec, configuration)
        transpiled_here = configuration is not None and transpiles
        return Plan(spec, digest, transpiled=transpiled_here, busy_seconds=busy_seconds(spec))

    await read_versions()  # for the job's page
    return await asyncio.to_thread(read)


async def may_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect may run a task again: only if the error's advice is to repeat it.

    A plain function on purpose: Prefect 3.8 silently never retries for methods and partials.
    """
    try:
        await state.aresult()
    except QuantumRuntimeError as error:
        return error.advice.may_repeat
    except Exception:
        return False
    return False


def run_name_of(pattern: str) -> Callable[..., str]:
    """A task run name from parameters, with handles shortened to their ids."""

    def short(value: Any) -> str:
        if isinstance(value, SessionRef) and value.id is None:
            return f"{value.kind} on {value.backend}" if value.backend else value.kind  # of the legacy dialect
        return str(getattr(value, "id", None) or getattr(value, "name", None) or value)

    # Only what the pattern names: Prefect prints a block by making its whole JSON schema, which takes 10 ms.
    named = {field for _, field, _, _ in Formatter().parse(pattern) if field}

    def run_name(parameters: dict[str, Any]) -> str:
        if "submission" in parameters:
            parameters = {**defaults_of(Submission), **parameters["submission"]}
        return pattern.format_map({field: short(parameters[field]) for field in named})

    return run_name


_names: set[str] = set()
"""Names of our tasks."""


def _reaches_prefect(record: logging.LogRecord) -> bool:
    """Suppress Prefect's warning that one of our tasks outside any flow has no flow run for its log lines.

    It logs the end of each task run outside the run's context, and would warn each time.
    """
    outside = not getattr(record, "flow_run_id", None) and not in_run()
    if outside and getattr(record, "task_name", None) in _names:
        record.send_to_api = False
    return True


logging.getLogger("prefect.task_runs").addFilter(_reaches_prefect)


def check_credentials(given: Any) -> None:
    """Refuse what is not a credentials block, such as a block's name. It may be a key and is not shown.

    Raises:
        InvalidInput: It is none.
    """
    # A block that is not awaited yet says so itself when it is asked for the method.
    if not callable(getattr(given, "get_client", None)):
        raise InvalidInput(
            f"must be a Quantum Runtime Credentials block, not {type(given).__name__}.",
            field="credentials",
            solution="Load it by its name: `load_credentials(name)`, or `await aload_credentials(name)` in async code.",
        )


def _task_of(
    name: str, run_name: str, around: Callable[[], AbstractContextManager[Any]], **options: Any
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make an async task of a body, which runs on the network loop inside `around`."""
    _names.add(name)

    def decorate(body: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        flags = [one.name for one in inspect.signature(body).parameters.values() if isinstance(one.default, bool)]

        @functools.wraps(body)
        async def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            given = args[0] if args else kwargs.get("credentials")
            if not hasattr(given, "get_client"):  # checked here first, to save a call in each good one
                check_credentials(given)
            for flag in kwargs.keys() & flags:
                check_flag(kwargs[flag], field=flag)
            with trace_task(name), around():
                return await body(*args, **kwargs)

        made = task(name=name, task_run_name=run_name_of(run_name), cache_policy=NO_CACHE, **options)
        return made(on_network_loop(traced))

    return decorate


def creates(
    name: str, run_name: str, **options: Any
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make an async task of a body that creates something: not retried by Prefect, and its handle is stored."""
    # Calls that come together are recorded together. Without a number of retries a task takes that of the settings.
    return _task_of(name, run_name, submission_in_flight, persist_result=True, retries=0, **options)


def repeats(
    name: str, run_name: str
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make an async task of a body that can run again without harm; Prefect retries it if the advice allows."""
    options = {"retries": _RETRIES, "retry_delay_seconds": _DELAYS, "retry_condition_fn": may_retry}
    return _task_of(name, run_name, nullcontext, **options)


def run_blocking(body: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """Make a plain function of an async body: it runs on the network loop while the caller waits."""

    @functools.wraps(body)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return network_loop().run(body(*args, **kwargs))

    # The name in Prefect's errors and in `help()`.
    call.__name__ = body.__name__.removeprefix("a")
    return call


def blocking(twin: Task[P, Coroutine[Any, Any, R]]) -> Task[P, R]:
    """Make the task for sync flows from its async twin: same name, parameters, retries, result and errors."""
    changed: Any = copy.copy(twin)  # `with_options` would read the source file once more
    for field, value in vars(changed).items():
        if isinstance(value, list | set):  # hooks and tags that a user adds belong to one of the two
            setattr(changed, field, value.copy())
    changed.fn = run_blocking(twin.fn)
    changed.__name__ = changed.fn.__name__
    changed.isasync = False
    return changed  # type: ignore[no-any-return]


_MOST_LEVELS = 100
"""Levels of lists and dicts in a parameter: more than any payload may have, and fewer than Prefect can visit."""

_NESTED = (list, tuple, dict)


def check_depth(made: Task[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that are nested too deeply for Prefect, which visits all of them recursively.

    Raises:
        InvalidInput: One is; it is named.
    """
    for name, value in _given(made, args, kwargs).items():
        level: list[Any] = [value] if isinstance(value, _NESTED) else []
        for _ in range(_MOST_LEVELS):
            inner = (one for group in level for one in (group.values() if isinstance(group, dict) else group))
            # Each once: what is shared, or contains itself, would become more with each level.
            level = [*{id(one): one for one in inner if isinstance(one, _NESTED)}.values()]
            if not level:
                break
        else:
            raise InvalidInput(f"nested deeper than {_MOST_LEVELS} levels", field=name)


def check_mapped(made: Task[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuse to map over a block, a handle or another model, whose fields Prefect would take for the calls' values.

    Raises:
        InvalidInput: One is; it is named.
    """
    for name, value in _given(made, args, kwargs).items():
        if isinstance(value, BaseModel) and not isinstance(value, State):  # Prefect maps over what a state holds
            raise InvalidInput(
                f"is one {type(value).__name__} for all mapped calls: write `unmapped(...)` around it, after "
                "`from prefect import unmapped`",
                field=name,
            )


def _given(made: Task[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(inspect.signature(made.fn).parameters, args, strict=False)), **kwargs} if args else kwargs


class UndeferredTask(Task[P, R]):
    """A task that is not deferred to a task worker.

    Prefect stores the parameters of a deferred task run, including the credentials block with its unencrypted API key.
    """

    def delay(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error, because a deferred task run would store the API key.

        Raises:
            InvalidInput: Always, with what to do instead.
        """
        self._refuse("delay")

    def apply_async(self, *args: Any, **kwargs: Any) -> NoReturn:
        """As `delay`. Prefect comes here with `.map(deferred=True)`, and with all calls on its `PrefectTaskRunner`."""
        self._refuse("apply_async")

    def serve(self) -> NoReturn:
        """As `delay`."""
        self._refuse("serve")

    def _refuse(self, method: str) -> NoReturn:
        name = self.name.replace(" ", "_")
        raise InvalidInput(
            f"`{name}` has no `{method}`. Prefect would store the credentials block with its unencrypted API key, for "
            "a task worker to read. Start a deployment with `run_deployment`, or defer a task of your own that takes "
            "the block's name and loads it with `load_credentials`.",
            field=method,
        )


class InFlowTask(UndeferredTask[P, R]):
    """A task that is called, submitted and mapped, but not deferred to a task worker.

    Prefect visits all parameters recursively, so those that are nested too deeply are refused before.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.__call__`."""
        check_depth(self, args, kwargs)
        return super().__call__(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.submit`."""
        check_depth(self, args, kwargs)
        return super().submit(*args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.map`."""
        check_depth(self, args, kwargs)
        check_mapped(self, args, kwargs)
        return super().map(*args, **kwargs)

    def with_options(self, *args: Any, **kwargs: Any) -> InFlowTask[P, R]:
        """As `Task.with_options`; Prefect would return a plain task."""
        changed: Any = super().with_options(*args, **kwargs)
        changed.__class__ = InFlowTask
        return changed  # type: ignore[no-any-return]


class GivenTask(InFlowTask[P, R]):
    """A task that shows Prefect only those parameters of a submission that a call gives.

    Prefect visits each parameter several times, and keeps a list for each in the task run's record and in its events:
    twenty defaults cost more than the rest of a call.
    """

    named_fn: Callable[..., Any]

    def __call__(self, *args: Any, return_state: Any = False, wait_for: Any = None, **kwargs: Any) -> Any:
        """As `Task.__call__`."""
        get_call_parameters(self.named_fn, args, kwargs)  # refuses what is missing or unknown
        return super().__call__(*args, return_state=return_state, wait_for=wait_for, **kwargs)


def given_only(named: Task[P, R]) -> Task[P, R]:
    """Make a task that is only called and takes `**submission`, of one whose signature names every parameter."""
    fn: Any = named.fn
    # A copy, as the signature is the function's; a function around it would be one more call each time.
    call: Any = FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    functools.update_wrapper(call, fn)
    spelled = inspect.signature(fn)
    own = [one for one in spelled.parameters.values() if one.name not in Submission.__annotations__]
    rest = inspect.Parameter("submission", inspect.Parameter.VAR_KEYWORD)
    call.__signature__ = spelled.replace(parameters=[*own, rest])
    changed: Any = copy.copy(named)
    changed.__class__, changed.fn, changed.named_fn = GivenTask, call, fn
    return changed  # type: ignore[no-any-return]


def in_flow(made: TaskT) -> TaskT:
    """Make a task refuse to be deferred."""
    changed: Any = made
    changed.__class__ = InFlowTask
    return made
