"""The tasks: each as a pair, `x` for sync flows and `ax` for async flows.

Submit, wait and fetch are separate task runs. `submit_job` has no retries: run again, it attaches to the
job it bought. A retry of `wait_for_completion` or `fetch_results` never submits.

The async twin of each task takes the same parameters, returns and raises the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from prefect_qruntime import arguments, work
from prefect_qruntime.arguments import JobLike, SessionLike
from prefect_qruntime.client.following import OnTimeout, Stream
from prefect_qruntime.client.home import home
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Backend, InstanceReport, Job, JobRef, SessionRef, Usage
from prefect_qruntime.submit_task import numbered

__all__ = [
    "aauthenticate",
    "acancel_job",
    "aclose_session",
    "afetch_results",
    "aget_usage",
    "alist_backends",
    "aopen_session",
    "aselect_backend",
    "asubmit_job",
    "authenticate",
    "await_for_completion",
    "cancel_job",
    "close_session",
    "fetch_results",
    "get_usage",
    "list_backends",
    "open_session",
    "select_backend",
    "submit_job",
    "wait_for_completion",
]

P = ParamSpec("P")
R = TypeVar("R")

_TAGS = {"qruntime"}
_RETRIES = 2
_DELAYS: list[float] = [5, 30]


async def may_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect may run a task again: only where the error's advice says that it can help.

    A plain function on purpose: Prefect 3.8 silently never retries for methods and partials.
    """
    try:
        await state.aresult()
    except QuantumRuntimeError as error:
        return error.advice.may_repeat
    except Exception:
        return False
    return False


def _name(pattern: str) -> Callable[..., str]:
    """A task run name from parameters, with handles shortened to their ids."""

    def short(value: Any) -> str:
        if isinstance(value, SessionRef) and value.id is None:
            return "unbound session"
        return str(getattr(value, "id", None) or getattr(value, "name", None) or value)

    def run_name(parameters: dict[str, Any]) -> str:
        return pattern.format_map({key: short(value) for key, value in parameters.items()})

    return run_name


def _once(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that creates something: Prefect never retries it by itself, and its handle is stored."""
    return task(name=name, task_run_name=_name(run_name), tags=_TAGS, cache_policy=NO_CACHE, persist_result=True)


def _repeatable(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that can be run again without harm; Prefect does so where the error's advice says it can help."""
    return task(
        name=name,
        task_run_name=_name(run_name),
        tags=_TAGS,
        cache_policy=NO_CACHE,
        retries=_RETRIES,
        retry_delay_seconds=_DELAYS,
        retry_condition_fn=may_retry,
    )


@_repeatable("authenticate", "authenticate")
def authenticate(credentials: QuantumRuntimeCredentials) -> InstanceReport:
    """Check that the key works on the instance; reads only.

    Args:
        credentials: The credentials block.

    Returns:
        What the key can do, never a token.

    Raises:
        AuthenticationError: The key is unknown or refused.
        PermissionDenied: The key may not use the instance.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, authenticate

        @flow
        def check(credentials_block: str) -> None:
            report = authenticate(QuantumRuntimeCredentials.load(credentials_block))
            print(report.backends)
        ```
    """
    return home().run(work.authenticate(credentials))


@_repeatable("authenticate", "authenticate")
async def aauthenticate(credentials: QuantumRuntimeCredentials) -> InstanceReport:
    """As `authenticate`, for async flows."""
    return await home().arun(work.authenticate(credentials))


@_repeatable("list backends", "list backends")
def list_backends(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    status: str | None = None,
    simulator: bool | None = None,
) -> list[Backend]:
    """List the instance's backends with status, size and queue; reads only.

    Args:
        credentials: The credentials block.
        min_qubits: Only backends of at least this size.
        status: Only `online`, `paused` or `offline` ones.
        simulator: True for simulators only, False for QPUs only.

    Returns:
        The backends that fit, in the service's order.
    """
    return home().run(work.list_backends(credentials, min_qubits, status, simulator))


@_repeatable("list backends", "list backends")
async def alist_backends(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    status: str | None = None,
    simulator: bool | None = None,
) -> list[Backend]:
    """As `list_backends`, for async flows."""
    return await home().arun(work.list_backends(credentials, min_qubits, status, simulator))


@_repeatable("select backend", "select backend")
def select_backend(
    credentials: QuantumRuntimeCredentials, *, min_qubits: int | None = None, simulator: bool | None = None
) -> Backend:
    """Pick the least busy backend that is online; reads only.

    Args:
        credentials: The credentials block.
        min_qubits: Least number of qubits.
        simulator: True for simulators only, False for QPUs only.

    Returns:
        The backend with the shortest queue.

    Raises:
        NotFound: None that fits is online.
    """
    return home().run(work.select_backend(credentials, min_qubits, simulator))


@_repeatable("select backend", "select backend")
async def aselect_backend(
    credentials: QuantumRuntimeCredentials, *, min_qubits: int | None = None, simulator: bool | None = None
) -> Backend:
    """As `select_backend`, for async flows."""
    return await home().arun(work.select_backend(credentials, min_qubits, simulator))


@_once("open session", "open {mode} session on {backend}")
def open_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
) -> SessionRef:
    """Open a session or a batch. Costs money from its first job on; prefer `runtime_session`, which closes it.

    Args:
        credentials: The credentials block.
        backend: Where.
        mode: `dedicated` keeps the QPU between jobs and is charged by the clock; `batch` is not.
        max_ttl: Longest life in seconds; default from the settings (two hours).

    Returns:
        The session. In the legacy dialect it has no id until its first job is accepted.

    Raises:
        PermissionDenied: The plan has no dedicated sessions (code 1352): use `batch`.
        SubmissionUncertain: The answer was lost and looking did not settle it.
    """
    return home().run(work.open_session(credentials, arguments.plain_backend(backend), mode, max_ttl))


@_once("open session", "open {mode} session on {backend}")
async def aopen_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
) -> SessionRef:
    """As `open_session`, for async flows."""
    return await home().arun(work.open_session(credentials, arguments.plain_backend(backend), mode, max_ttl))


@numbered
@_once("submit job", "submit {program_id} → {backend}")
def submit_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    backend: str | Backend,
    program_id: str = "sampler",
    session: SessionLike | None = None,
    shots: int | None = None,
    options: Any = None,
    params: dict[str, Any] | None = None,
    tags: Iterable[str] = (),
    max_execution_time: int | None = None,
    private: bool = False,
    submission_key: str | None = None,
    check_isa: bool = False,
    transpile: bool = False,
    call_index: int | None = None,
) -> JobRef:
    """Buy one job, or attach to the one this very call bought before. Creates at most one job.

    Run again (flow retry, restart after a crash, resume), it finds its job by the submission key
    that it left as a tag: a live one is attached to, a completed one too, and a failed or cancelled
    one is bought anew only when the flow was retried. Two equal calls in one flow run are two jobs.

    Args:
        credentials: The credentials block.
        pubs: PUBs: OpenQASM 2/3 text, or `(circuit, parameters, shots)` for the sampler,
            `(circuit, observables, parameters, precision)` for the estimator.
        backend: A backend or its name.
        program_id: `sampler`, `estimator`, or with `params` any other.
        session: Session or batch to run in.
        shots: Shots for PUBs that name none.
        options: Options of the primitive.
        params: Raw payload of any program, in place of `pubs`.
        tags: At most six tags of your own, each of at most 86 characters.
        max_execution_time: QPU seconds the job may use, 1 to 10800.
        private: Hide the input; the result can then be read once.
        submission_key: Identity of this purchase across flow runs, for instance deployment and
            scheduled time; it replaces flow run and call order.
        check_isa: Compare the circuits with the backend's configuration before anything is bought.
        transpile: Transpile the circuits for the backend (needs `[qiskit]`). Never done unasked.
        call_index: Which of several equal calls this is; set by the library for mapped calls.

    Returns:
        The job's handle.

    Raises:
        InvalidInput: A field is wrong; it is named and nothing was sent.
        UsageLimitReached: The instance has no QPU time left.
        SubmissionUncertain: It cannot be told whether a job was bought; nothing more was sent.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, fetch_results, submit_job, wait_for_completion

        @flow
        def one_job(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = QuantumRuntimeCredentials.load(credentials_block)
            job = submit_job(credentials, [circuit], backend=backend, shots=1000)
            wait_for_completion(credentials, job)
            return fetch_results(credentials, job).counts()
        ```
    """
    configuration = home().run(arguments.configuration(credentials, backend, needed=check_isa or transpile))
    plan = arguments.plan(
        pubs,
        configuration=configuration,
        check_isa=check_isa,
        transpile=transpile,
        backend=backend,
        program_id=program_id,
        shots=shots,
        options=options,
        params=params,
        tags=tags,
        max_execution_time=max_execution_time,
        private=private,
    )
    return home().run(work.submit(credentials, plan, arguments.as_session(session), submission_key, call_index))


@numbered
@_once("submit job", "submit {program_id} → {backend}")
async def asubmit_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    backend: str | Backend,
    program_id: str = "sampler",
    session: SessionLike | None = None,
    shots: int | None = None,
    options: Any = None,
    params: dict[str, Any] | None = None,
    tags: Iterable[str] = (),
    max_execution_time: int | None = None,
    private: bool = False,
    submission_key: str | None = None,
    check_isa: bool = False,
    transpile: bool = False,
    call_index: int | None = None,
) -> JobRef:
    """As `submit_job`, for async flows."""
    configuration = await home().arun(arguments.configuration(credentials, backend, needed=check_isa or transpile))
    plan = arguments.plan(
        pubs,
        configuration=configuration,
        check_isa=check_isa,
        transpile=transpile,
        backend=backend,
        program_id=program_id,
        shots=shots,
        options=options,
        params=params,
        tags=tags,
        max_execution_time=max_execution_time,
        private=private,
    )
    return await home().arun(work.submit(credentials, plan, arguments.as_session(session), submission_key, call_index))


@_repeatable("wait for completion", "wait for {job}")
def wait_for_completion(
    credentials: QuantumRuntimeCredentials,
    job: JobLike,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> Job:
    """Wait until the service says that the job completed. Never submits; survives outages.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.
        timeout: Seconds for the whole wait, retries included; None for no limit.
        queue_timeout: Seconds until the job runs; None for no limit.
        on_timeout: `leave` lets the job live on, `cancel` cancels it.
        stream: `auto` uses a websocket where the dialect has one, `always` tries one anywhere,
            `never` polls only. In every case the job's state comes from `GET /jobs/{id}`.

    Returns:
        The completed job.

    Raises:
        JobFailed: The job failed; `retryable` tells whether a new one may succeed.
        JobRanTooLong: It reached its QPU time limit.
        JobCancelled: It was cancelled.
        JobTimeout: A limit of this wait passed; the error says how to attach again.
        NotFound: No such job in this instance.
    """
    return home().run(work.wait(credentials, arguments.as_job(job), timeout, queue_timeout, on_timeout, stream))


@_repeatable("wait for completion", "wait for {job}")
async def await_for_completion(
    credentials: QuantumRuntimeCredentials,
    job: JobLike,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> Job:
    """As `wait_for_completion`, for async flows."""
    return await home().arun(work.wait(credentials, arguments.as_job(job), timeout, queue_timeout, on_timeout, stream))


@_repeatable("fetch results", "fetch {job}")
def fetch_results(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobResult:
    """Fetch a finished job's result; reads only.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The result: `counts`, `expectation_values`, `quasi_dists` and more.

    Raises:
        JobFailed: The job failed; carries the service's text.
        ResultNotReady: The job is not over.
        NotFound: No such job, or a private result that was read before.
    """
    return home().run(work.fetch(credentials, arguments.as_job(job)))


@_repeatable("fetch results", "fetch {job}")
async def afetch_results(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobResult:
    """As `fetch_results`, for async flows."""
    return await home().arun(work.fetch(credentials, arguments.as_job(job)))


@_repeatable("cancel job", "cancel {job}")
def cancel_job(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """Cancel a job. One that is over already is left as it is and is no error.

    Args:
        credentials: The credentials block.
        job: A handle or a bare job id.

    Returns:
        The job as the service shows it afterwards.
    """
    return home().run(work.cancel(credentials, arguments.as_job(job)))


@_repeatable("cancel job", "cancel {job}")
async def acancel_job(credentials: QuantumRuntimeCredentials, job: JobLike) -> Job:
    """As `cancel_job`, for async flows."""
    return await home().arun(work.cancel(credentials, arguments.as_job(job)))


@_repeatable("close session", "close {session}")
def close_session(credentials: QuantumRuntimeCredentials, session: SessionLike, *, drain: bool = True) -> SessionRef:
    """Close a session or batch and read back that it is closed.

    Args:
        credentials: The credentials block.
        session: The session or its id.
        drain: True lets queued jobs run first, False drops them; a running one finishes either way.

    Returns:
        The session as read back.
    """
    ref = arguments.as_session(session)
    if ref is None:
        raise InvalidInput("must be a SessionRef or a session id", field="session")
    return home().run(work.close_session(credentials, ref, drain))


@_repeatable("close session", "close {session}")
async def aclose_session(
    credentials: QuantumRuntimeCredentials, session: SessionLike, *, drain: bool = True
) -> SessionRef:
    """As `close_session`, for async flows."""
    ref = arguments.as_session(session)
    if ref is None:
        raise InvalidInput("must be a SessionRef or a session id", field="session")
    return await home().arun(work.close_session(credentials, ref, drain))


@_repeatable("get usage", "get usage")
def get_usage(credentials: QuantumRuntimeCredentials) -> Usage:
    """Read how many QPU seconds the instance used and has left; reads only.

    Args:
        credentials: The credentials block.

    Returns:
        Usage of the current period.
    """
    return home().run(work.get_usage(credentials))


@_repeatable("get usage", "get usage")
async def aget_usage(credentials: QuantumRuntimeCredentials) -> Usage:
    """As `get_usage`, for async flows."""
    return await home().arun(work.get_usage(credentials))
