"""Whole jobs: `run_job` as three task runs, and the same as a block that can be saved and triggered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import Field, HttpUrl

from prefect_qruntime import observe
from prefect_qruntime.arguments import SessionLike
from prefect_qruntime.budget import MOST_SECONDS, Budget, BudgetLike
from prefect_qruntime.client.following import OnTimeout, Stream
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput, JobFailed
from prefect_qruntime.models import Backend, Job, JobRef
from prefect_qruntime.tasks import (
    acancel_job,
    afetch_results,
    asubmit_job,
    await_for_completion,
    fetch_results,
    submit_job,
    wait_for_completion,
)

__all__ = ["QuantumRuntimeJob", "QuantumRuntimeJobRun", "arun_job", "run_job"]


def run_job(
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
    budget: BudgetLike | None = None,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    resubmit: int = 0,
) -> JobResult:
    """Buy one job, wait for it and fetch its result, as three task runs. Creates at most `1 + resubmit` jobs.

    Parameters are those of `submit_job` and `wait_for_completion`, and one more: `resubmit` says how often a job
    is bought anew after the service said that it failed by the service's own fault (`JobFailed.retryable`). Each
    job has the timeouts for itself; 0 buys no second one.

    Returns:
        The result.

    Raises:
        QuantumRuntimeError: As the three tasks raise.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, run_job

        @flow
        def counts(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = QuantumRuntimeCredentials.load(credentials_block)
            return run_job(credentials, [circuit], backend=backend, shots=1000).counts()
        ```
    """
    job: JobRef | None = None
    for left in _chances(resubmit):
        job = submit_job(
            credentials,
            pubs,
            backend=backend,
            program_id=program_id,
            session=session,
            shots=shots,
            options=options,
            params=params,
            tags=tags,
            max_execution_time=max_execution_time,
            private=private,
            submission_key=submission_key,
            check_isa=check_isa,
            transpile=transpile,
            budget=budget,
            replaces=job,
        )
        try:
            wait_for_completion(
                credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
            )
            break
        except JobFailed as error:
            if not left or not error.retryable:
                raise
            observe.say(f"{error}; buying another, {left} left", level=logging.WARNING)
    assert job is not None  # noqa: S101 - there is one chance at least
    return fetch_results(credentials, job)


def _chances(resubmit: int) -> Iterator[int]:
    """How many resubmissions are left, for each job that may be bought."""
    if isinstance(resubmit, bool) or not isinstance(resubmit, int) or not 0 <= resubmit <= 10:
        raise InvalidInput("must be a whole number from 0 to 10", field="resubmit")
    return iter(range(resubmit, -1, -1))


async def arun_job(
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
    budget: BudgetLike | None = None,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    resubmit: int = 0,
) -> JobResult:
    """As `run_job`, for async flows."""
    job: JobRef | None = None
    for left in _chances(resubmit):
        job = await asubmit_job(
            credentials,
            pubs,
            backend=backend,
            program_id=program_id,
            session=session,
            shots=shots,
            options=options,
            params=params,
            tags=tags,
            max_execution_time=max_execution_time,
            private=private,
            submission_key=submission_key,
            check_isa=check_isa,
            transpile=transpile,
            budget=budget,
            replaces=job,
        )
        try:
            await await_for_completion(
                credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
            )
            break
        except JobFailed as error:
            if not left or not error.retryable:
                raise
            observe.say(f"{error}; buying another, {left} left", level=logging.WARNING)
    assert job is not None  # noqa: S101 - there is one chance at least
    return await afetch_results(credentials, job)


class QuantumRuntimeJobRun(JobRun[JobResult]):
    """A job that was triggered, or found again by its id.

    Args:
        credentials: The credentials block.
        job: The job's handle.
        timeout: Seconds for the whole wait; None for no limit.
        on_timeout: What happens to the job then: `leave` or `cancel`.
    """

    def __init__(
        self,
        credentials: QuantumRuntimeCredentials,
        job: JobRef,
        *,
        timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
    ) -> None:
        self.credentials = credentials
        self.job = job
        self.timeout = timeout
        self.on_timeout = on_timeout

    # Prefect annotates the abstract method with its logger's type; nothing returns one.
    async def wait_for_completion(self) -> None:  # type: ignore[override]
        """Wait until the service says that the job completed. Never submits.

        Raises:
            QuantumRuntimeError: As the task of the same name raises.
        """
        await await_for_completion(self.credentials, self.job, timeout=self.timeout, on_timeout=self.on_timeout)

    async def fetch_result(self) -> JobResult:
        """Fetch the finished job's result."""
        return await afetch_results(self.credentials, self.job)

    async def cancel(self) -> Job:
        """Cancel the job; one that is over already is left as it is."""
        return await acancel_job(self.credentials, self.job)


def _bounds(least: int, most: int | None = None) -> Any:
    bounds: dict[str, Any] = {"minimum": least} | ({} if most is None else {"maximum": most})
    return Field(json_schema_extra=bounds)


class QuantumRuntimeJob(JobBlock[JobResult]):
    """A quantum job that can be saved, shown in the UI, and triggered from code or from a generic flow.

    Triggering buys at most one job for one intent, by the same rules as `submit_job`: triggered again by a
    retried or resumed flow run, it attaches.

    Attributes:
        credentials: The credentials block.
        backend: Name of the backend.
        program_id: `sampler`, `estimator`, or with `params` any other.
        pubs: PUBs, as `submit_job` takes them.
        shots: Shots for PUBs that name none.
        options: Options of the primitive.
        params: Raw payload of any program, in place of `pubs`.
        tags: Tags of your own.
        max_execution_time: QPU seconds the job may use.
        private: Whether the input is hidden and the result readable once.
        submission_key: Identity of the purchase across flow runs.
        budget: The budget that must have room for the job.
        timeout: Seconds to wait for completion.
        on_timeout: What happens to the job then.

    Example:
        ```python
        from prefect_qruntime import QuantumRuntimeJob

        job = QuantumRuntimeJob.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Quantum Runtime Job"
    _block_type_slug = "quantum-runtime-job"
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/1459110?s=200&v=4")
    _documentation_url = HttpUrl("https://quantum.cloud.ibm.com/docs/en/guides/cloud-setup-rest-api")
    _description = "A quantum job: circuits, backend and options, ready to be triggered on an instance."

    credentials: QuantumRuntimeCredentials = Field(
        default=..., title="Credentials", description="The credentials block of the instance that pays."
    )
    backend: str = Field(default=..., title="Backend", description="Name of the backend, for instance ibm_torino.")
    program_id: str = Field(default="sampler", title="Program", description="Primitive: sampler or estimator.")
    pubs: list[Any] | None = Field(
        default=None,
        title="PUBs",
        description="Circuits as OpenQASM 2 or 3 text, or lists of circuit, parameters and shots.",
    )
    # The form keeps to these bounds; a value from elsewhere is refused by `submit_job`, which names it.
    shots: Annotated[int, _bounds(1)] | None = Field(
        default=None, title="Shots", description="Shots for PUBs that name none, at least 1."
    )
    options: dict[str, Any] | None = Field(default=None, title="Options", description="Options of the primitive.")
    params: dict[str, Any] | None = Field(
        default=None, title="Raw params", description="Raw payload of any other program, in place of PUBs."
    )
    tags: list[str] = Field(default_factory=list, title="Tags", description="At most six job tags of your own.")
    max_execution_time: Annotated[int, _bounds(1, MOST_SECONDS)] | None = Field(
        default=None, title="QPU seconds", description="Limit of QPU seconds, 1 to 10800; empty for the service's own."
    )
    private: bool = Field(
        default=False, title="Private", description="Hide the input; the service then hands the result out once."
    )
    submission_key: str | None = Field(
        default=None,
        title="Submission key",
        description="Identity of the purchase across flow runs; empty: each flow run buys its own job.",
    )
    budget: Budget | None = Field(
        default=None, title="Budget", description="The budget that must have room for the job; empty for none."
    )
    timeout: Annotated[float, _bounds(0)] | None = Field(
        default=None, title="Timeout", description="Seconds to wait for completion; empty for no limit."
    )
    on_timeout: OnTimeout = Field(
        default="leave", title="On timeout", description="Leave the job running, or cancel it, when the wait ends."
    )

    async def trigger(self) -> QuantumRuntimeJobRun:
        """Buy the job, or attach to the one that this very call bought before.

        Returns:
            The run to wait for.

        Raises:
            InvalidInput: A field is wrong; nothing was sent.
            BudgetExhausted: The budget has no room for the job; nothing was sent.
            SubmissionUncertain: It cannot be told whether a job was bought.
        """
        job = await asubmit_job(
            self.credentials,
            self.pubs,
            backend=self.backend,
            program_id=self.program_id,
            shots=self.shots,
            options=self.options,
            params=self.params,
            tags=self.tags,
            max_execution_time=self.max_execution_time,
            private=self.private,
            submission_key=self.submission_key,
            budget=self.budget,
        )
        return QuantumRuntimeJobRun(self.credentials, job, timeout=self.timeout, on_timeout=self.on_timeout)
