"""Whole jobs: `run_job` as three task runs, and the same as a block that can be saved and triggered."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, Any, Unpack, cast

from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import Field, HttpUrl

from prefect_qruntime.admission.budget import Budget, has_limits
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.client.inputs.spec import CircuitForm
from prefect_qruntime.client.programs.make import RequestedRoute
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.client.waiting.poller import OnTimeout, Stream
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput, JobFailed
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import Loadable
from prefect_qruntime.tasks.definitions import Submission, defaults_of, spelled_out
from prefect_qruntime.tasks.jobs import (
    acancel_job,
    afetch_results,
    await_for_completion,
    check_wait,
    fetch_results,
    wait_for_completion,
)
from prefect_qruntime.tasks.submit import asubmit_numbered, submit_numbered

__all__ = ["QuantumRuntimeJob", "QuantumRuntimeJobRun", "arun_job", "run_job"]


@spelled_out
def run_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    resubmit: int = 0,
    require_approval_above: float | None = None,
    **submission: Unpack[Submission],
) -> JobResult:
    """Submit one job, wait for it and fetch its result, as three task runs. Creates at most `1 + resubmit` jobs.

    Args:
        credentials: The credentials block.
        pubs: PUBs, as `submit_job` takes them.
        timeout: Seconds for the whole wait of one job; None for no limit.
        queue_timeout: Seconds until a job runs; None for no limit.
        on_timeout: What happens to the job then: `leave` or `cancel`.
        stream: Whether to use a websocket: `auto`, `always` or `never`.
        resubmit: How often a new job is submitted after the service said that one failed by the service's own
            fault (`JobFailed.retryable`); 0 submits no second one.
        require_approval_above: QPU seconds that the jobs may cost together, those of `resubmit` included, without a
            person's approval; see `require_approval`. With None no approval is needed.
        **submission: Backend, program, shots, limits and more: see `Submission`.

    Returns:
        The result.

    Raises:
        ApprovalDenied: A person was asked and did not approve; nothing was submitted.
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
    check_wait(timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream)
    chances = _chances(resubmit)
    if require_approval_above is not None:
        from prefect_qruntime.tasks.estimate import ask_above

        ask_above(require_approval_above, credentials, pubs, submission, times=1 + resubmit)
    for left in chances:
        job = submit_numbered(credentials, pubs, replaces=job, **submission)
        try:
            wait_for_completion(
                credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
            )
            break
        except JobFailed as error:
            _check_resubmission(error, left)
    assert job is not None  # noqa: S101 - there is one chance at least
    return fetch_results(credentials, job)


@spelled_out
async def arun_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    resubmit: int = 0,
    require_approval_above: float | None = None,
    **submission: Unpack[Submission],
) -> JobResult:
    """As `run_job`, for async flows."""
    job: JobRef | None = None
    check_wait(timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream)
    chances = _chances(resubmit)
    if require_approval_above is not None:
        from prefect_qruntime.tasks.estimate import aask_above

        await aask_above(require_approval_above, credentials, pubs, submission, times=1 + resubmit)
    for left in chances:
        job = await asubmit_numbered(credentials, pubs, replaces=job, **submission)
        try:
            await await_for_completion(
                credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
            )
            break
        except JobFailed as error:
            _check_resubmission(error, left)
    assert job is not None  # noqa: S101 - there is one chance at least
    return await afetch_results(credentials, job)


def _chances(resubmit: int) -> Iterator[int]:
    """Return the number of resubmissions left, once for each job that may be submitted."""
    if isinstance(resubmit, bool) or not isinstance(resubmit, int) or not 0 <= resubmit <= 10:
        raise InvalidInput("must be a whole number from 0 to 10", field="resubmit")
    return iter(range(resubmit, -1, -1))


def _check_resubmission(error: JobFailed, left: int) -> None:
    """Raise the error unless a new job was requested and may succeed.

    Raises:
        JobFailed: `error`.
    """
    if not left or not error.retryable:
        raise error
    notifications.log_to_run(f"{error} Submitting another job; {left} left.", level=logging.WARNING)


class QuantumRuntimeJobRun(JobRun[JobResult]):
    """A job that was triggered, or found again by its id.

    Args:
        credentials: The credentials block.
        job: The job's handle.
        timeout: Seconds for the whole wait; None for no limit.
        queue_timeout: Seconds until the job runs; None for no limit.
        on_timeout: What happens to the job then: `leave` or `cancel`.
        stream: Whether to use a websocket: `auto`, `always` or `never`.
        block: The job block that submitted it, if jobs that failed by the service's own fault are to be
            resubmitted as it says. However often the run is waited for, it submits `resubmit` more jobs in all.
    """

    def __init__(
        self,
        credentials: QuantumRuntimeCredentials,
        job: JobRef,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        on_timeout: OnTimeout = "leave",
        stream: Stream = "auto",
        block: QuantumRuntimeJob | None = None,
    ) -> None:
        self.credentials = credentials
        self.job = job
        self.timeout = timeout
        self.queue_timeout = queue_timeout
        self.on_timeout = on_timeout
        self.stream = stream
        self._block = block
        self._chances = _chances(block.resubmit if block is not None else 0)

    # Prefect annotates the abstract method with its logger's type; nothing returns one.
    async def wait_for_completion(self) -> None:  # type: ignore[override]
        """Wait until the service says that the job completed. Submits only what `resubmit` of the block allows.

        Raises:
            QuantumRuntimeError: As the task of the same name raises.
        """
        while True:
            job = self.job
            try:
                await await_for_completion(
                    self.credentials,
                    job,
                    timeout=self.timeout,
                    queue_timeout=self.queue_timeout,
                    on_timeout=self.on_timeout,
                    stream=self.stream,
                )
                return
            except JobFailed as error:
                if self.job is not job:  # another wait of this run has replaced it already
                    continue
                # Taken before the submission, which may fail or be cancelled after the service accepted the job.
                left = next(self._chances, 0)
                _check_resubmission(error, left)
                assert self._block is not None  # noqa: S101 - without it there is no chance left
                self.job = await self._block.submit(replaces=job)

    async def fetch_result(self) -> JobResult:
        """Fetch the finished job's result."""
        return await afetch_results(self.credentials, self.job)

    async def cancel(self) -> Job:
        """Cancel the job; one that is over already is left as it is."""
        return await acancel_job(self.credentials, self.job)


def _bounds(least: int, most: int | None = None) -> Any:
    bounds: dict[str, Any] = {"minimum": least} | ({} if most is None else {"maximum": most})
    return Field(json_schema_extra=bounds)


_PUB = Field(json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
"""What the form takes for a PUB. For an item of no type Prefect's second UI shows nothing, and saves none."""


def _as_object(schema: dict[str, Any]) -> None:
    """Show an optional object as one: beside "null", Prefect's second UI has no field to type it in."""
    schema.pop("anyOf", None)
    schema["type"] = "object"


class QuantumRuntimeJob(Loadable, JobBlock[JobResult]):
    """A quantum job that can be saved, shown in the UI, and triggered from code or from a generic flow.

    Triggering submits at most one job for one intent, by the same rules as `submit_job`: triggered again by a
    retried or resumed flow run, it attaches.

    Attributes:
        credentials: The credentials block.
        backend: Name of the backend.
        program_id: `sampler`, `estimator`, or with `params` any other.
        pubs: PUBs, as `submit_job` takes them.
        shots: Shots for PUBs without shots of their own.
        options: Options of the primitive.
        params: Raw payload of any program, in place of `pubs`.
        session: Id of the session or batch to run in.
        tags: Tags of your own.
        max_execution_time: QPU seconds the job may use.
        private: Whether the input is hidden and the result readable once.
        route: How PUBs run: `service`, `executor` or `auto`.
        circuit_form: How circuits travel to the executor.
        dry_run: Whether the job runs on the mock backend that stands for the backend, without a QPU.
        submission_key: Identity of the submission across flow runs.
        check_isa: Whether to compare the circuits with the backend's configuration before anything is sent.
        transpile: Whether to transpile the circuits for the backend.
        require_online: Whether to refuse a backend that is paused or offline.
        budget: The budget that must have room for the job.
        timeout: Seconds to wait for completion.
        queue_timeout: Seconds until the job runs.
        on_timeout: What happens to the job then.
        stream: Whether to use a websocket.
        resubmit: How often a new job is submitted after one failed by the service's own fault.
        require_approval_above: QPU seconds that the jobs may cost together, those of `resubmit` included, without
            a person's approval; see `require_approval`. Such a block is triggered in a flow.

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
    pubs: list[Annotated[Any, _PUB]] | None = Field(
        default=None,
        title="PUBs",
        description=(
            "Circuits as OpenQASM 2 or 3 text, or lists of circuit, parameters and shots; numbers as JSON input."
        ),
    )
    # The form keeps to these bounds; a value from elsewhere is refused by `submit_job`, which names it.
    shots: Annotated[int, _bounds(1)] | None = Field(
        default=None, title="Shots", description="Shots for PUBs without shots of their own, at least 1."
    )
    options: dict[str, Any] | None = Field(
        default=None, title="Options", description="Options of the primitive, as JSON.", json_schema_extra=_as_object
    )
    params: dict[str, Any] | None = Field(
        default=None,
        title="Raw params",
        description="Raw payload of any other program, as JSON, in place of PUBs.",
        json_schema_extra=_as_object,
    )
    tags: list[str] = Field(default_factory=list, title="Tags", description="At most six job tags of your own.")
    max_execution_time: Annotated[int, _bounds(1, MOST_SECONDS)] | None = Field(
        default=None, title="QPU seconds", description="Limit of QPU seconds, 1 to 10800; empty for the service's own."
    )
    private: bool = Field(
        default=False, title="Private", description="Hide the input; the service then hands the result out once."
    )
    route: RequestedRoute | None = Field(
        default=None,
        title="Route",
        description="How PUBs run: service, executor or auto; empty for the setting primitive_route.",
    )
    circuit_form: CircuitForm = Field(
        default="auto",
        title="Circuit form",
        description="How circuits travel to the executor: openqasm3, qpy, or auto (text as OpenQASM 3).",
    )
    dry_run: bool = Field(
        default=False,
        title="Dry run",
        description="Run on the mock backend that stands for the backend: no QPU, no charge, random results.",
    )
    submission_key: str | None = Field(
        default=None,
        title="Submission key",
        description="Identity of the submission across flow runs; empty: each flow run submits its own job.",
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

    queue_timeout: Annotated[float, _bounds(0)] | None = Field(
        default=None, title="Queue timeout", description="Seconds until the job runs; empty for no limit."
    )
    session: str | None = Field(
        default=None, title="Session", description="Id of the session or batch to run in; empty for none."
    )
    check_isa: bool = Field(
        default=False, title="Check circuits", description="Compare the circuits with the backend before sending them."
    )
    transpile: bool = Field(
        default=False, title="Transpile", description="Transpile the circuits for the backend (needs qiskit)."
    )
    require_online: bool = Field(
        default=False, title="Require online", description="Refuse to submit while the backend is paused or offline."
    )
    stream: Stream = Field(
        default="auto", title="Websocket", description="Whether to use the job's websocket if there is one."
    )
    resubmit: Annotated[int, _bounds(0, 10)] = Field(
        default=0,
        title="Resubmit",
        description="How often a new job is submitted after one failed by the service's own fault, 0 to 10.",
    )
    require_approval_above: Annotated[float, _bounds(0)] | None = Field(
        default=None,
        title="Approval above",
        description=(
            "QPU seconds that the jobs may cost together without a person's approval on the flow run's page; empty if "
            "no approval is needed."
        ),
    )

    async def trigger(self) -> QuantumRuntimeJobRun:
        """Submit the job, or attach to the one that this same call submitted before.

        Returns:
            The run to wait for.

        Raises:
            InvalidInput: A field is wrong; nothing was sent.
            ApprovalDenied: A person was asked and did not approve; nothing was sent.
            BudgetExhausted: The budget has no room for the job; nothing was sent.
            SubmissionUncertain: It is not known whether a job was accepted.
        """
        _chances(self.resubmit)
        check_wait(
            timeout=self.timeout, queue_timeout=self.queue_timeout, on_timeout=self.on_timeout, stream=self.stream
        )
        name, budget = self._block_document_name, self.budget
        if name and budget is not None and budget._block_document_id is None and has_limits(vars(budget)):
            notifications.log_to_run(
                f"The budget of job block {name!r} is a copy inside the block. Changes of a saved budget do not reach "
                "it.",
                level=logging.WARNING,
            )
        if (above := self.require_approval_above) is not None:
            from prefect_qruntime.tasks.estimate import aask_above

            await aask_above(above, self.credentials, self.pubs, self._submission(), times=1 + self.resubmit)
        return QuantumRuntimeJobRun(
            self.credentials,
            await self.submit(),
            timeout=self.timeout,
            queue_timeout=self.queue_timeout,
            on_timeout=self.on_timeout,
            stream=self.stream,
            block=self,
        )

    async def submit(self, *, replaces: JobRef | None = None) -> JobRef:
        """Submit the job or attach to it, as `trigger`; `replaces` is the failed job that a new one replaces."""
        job: JobRef = await asubmit_numbered(self.credentials, self.pubs, replaces=replaces, **self._submission())
        return job

    def _submission(self) -> Submission:
        names = ("backend", *defaults_of(Submission))
        return cast("Submission", {name: getattr(self, name) for name in names})
