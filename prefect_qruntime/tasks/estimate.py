"""Estimate what jobs will cost before they are submitted, and ask a person to approve a high cost.

The cost of finished jobs is read from their pages in Prefect, so no other store is needed: each job's page has the
seconds that the model gave it when it was submitted, and later what the service charged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack
from urllib.parse import urlsplit
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import FlowPauseTimeout, PrefectHTTPStatusError
from prefect.flow_runs import apause_flow_run, asuspend_flow_run, pause_flow_run, suspend_flow_run
from prefect.input import RunInput, keyset_from_paused_state
from prefect.states import Paused, Suspended
from pydantic import Field

from prefect_qruntime import run_context
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import is_loopback
from prefect_qruntime.client.cost_core import NEWEST, CostEstimate, PastJob, estimate, priced_seconds
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.waiting.plan import is_seconds
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import ApprovalDenied, InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import recent_records
from prefect_qruntime.prefect_api import api
from prefect_qruntime.redact import number_text, shown
from prefect_qruntime.run_context import current_run
from prefect_qruntime.tasks.definitions import (
    Submission,
    backend_name,
    blocking,
    in_flow,
    plan_submission,
    repeats,
    spelled_out,
)

__all__ = [
    "CostApproval",
    "aask_above",
    "aestimate_cost",
    "arequire_approval",
    "ask_above",
    "estimate_cost",
    "estimate_jobs",
    "past_job",
    "require_approval",
]

_READ = 1000  # job pages that are searched for those of one backend and program
_FRESH = 60.0  # seconds for which they are not read again
_POLL = 5  # seconds between two checks whether it was resumed
_WAIT = 7 * 86400  # seconds that a flow run waits in its process, if it cannot be suspended


@dataclass(slots=True)
class _Seen:
    """Finished jobs by backend, program, and whether on this machine, as this process last read them, and when."""

    jobs: dict[tuple[str, str, bool], tuple[float, list[PastJob]]] = field(default_factory=dict)


def past_job(facts: Mapping[str, str]) -> PastJob | None:
    """Read a job's cost from its page; None unless it completed and the page has its final usage and its model."""
    over = facts.get("state", "").lower().startswith("completed") and facts.get("usage_final") == "true"
    if not over or facts.get("dry_run"):  # the usage that a dry run shows is not charged
        return None
    busy, charged, executed = (
        _number(facts.get(name)) for name in ("busy_seconds", "usage_seconds", "executed_seconds")
    )
    return None if busy is None or charged is None else PastJob(busy, charged, executed)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _here(url: str | None) -> bool:
    """Whether an address is on this machine, as a sandbox's is."""
    try:
        return is_loopback(urlsplit(url or "").hostname)
    except ValueError:
        return False


async def _past(backend: str, program: str, url: str) -> list[PastJob]:
    """Finished jobs of a backend and program that this Prefect knows, newest first; none if its API does not answer.

    Args:
        backend: The backend. A sandbox may have one with the name of a real one, but its jobs cost what it likes.
        program: The program.
        url: Address of the service.
    """
    seen, which = network_loop().state(_Seen).jobs, (backend, program, _here(url))
    if which in seen and time.monotonic() - seen[which][0] < _FRESH:
        return seen[which][1]
    found: dict[str, PastJob] = {}
    looked = 0
    try:
        async for page in recent_records("job"):
            for record in page:
                facts = record.meta
                job = past_job(facts)
                if job is not None and (facts.get("backend"), facts.get("program"), _here(facts.get("url"))) == which:
                    found.setdefault(facts["id"], job)
            looked += len(page)
            if len(found) >= NEWEST or looked >= _READ:
                break
    except Exception as error:
        notifications.log_to_run(
            f"Prefect's API did not list the finished jobs ({error!r}). The estimate uses the {len(found)} known here.",
            level=logging.WARNING,
        )
        return list(found.values())
    seen[which] = time.monotonic(), list(found.values())
    return seen[which][1]


async def estimate_jobs(
    credentials: QuantumRuntimeCredentials, pubs: Any, submission: Submission, *, pubs_per_job: int | None = None
) -> CostEstimate:
    """Estimate what a submission would cost; see `aestimate_cost`. Runs on the network loop."""
    groups = [pubs]
    if pubs_per_job is not None:
        if isinstance(pubs_per_job, bool) or not isinstance(pubs_per_job, int) or pubs_per_job < 1:
            raise InvalidInput(f"must be a whole number, 1 or more, not {shown(pubs_per_job)}", field="pubs_per_job")
        if not (isinstance(pubs, list | tuple) and pubs):
            raise InvalidInput("must be a list of PUBs, one at least, with pubs_per_job", field="pubs")
        groups = [pubs[start : start + pubs_per_job] for start in range(0, len(pubs), pubs_per_job)]
    specs = [(await plan_submission(credentials, group, submission)).spec for group in groups]
    for spec in specs:
        priced_seconds(spec)  # refuses what cannot be priced
    client = credentials.get_client()
    _, remaining = await asyncio.gather(_check_backend(client, backend_name(submission["backend"])), _remaining(client))
    past = await _past(specs[0].backend, specs[0].wire_program, client.connection.base_url)
    return estimate(specs, past, remaining_seconds=remaining)


async def _check_backend(client: QuantumRuntimeClient, name: str) -> None:
    """Refuse a backend that the instance does not have: what never runs has no price.

    Raises:
        InvalidInput: There is no such backend; the error names similar ones.
    """
    try:
        await client.backend_status(name)
    except NotFound as error:
        raise InvalidInput(error.message, field="backend", solution=error.solution) from None
    except QuantumRuntimeError as error:
        if not error.is_outage:
            raise
        notifications.log_to_run(f"It is not known whether backend {name} exists: {error}", level=logging.WARNING)


async def _remaining(client: QuantumRuntimeClient) -> float | None:
    try:
        return (await client.usage()).remaining_seconds
    except QuantumRuntimeError as error:
        if not error.is_outage:
            raise
        notifications.log_to_run(f"The remaining QPU time of the instance is not known: {error}", level=logging.WARNING)
        return None


@in_flow
@repeats("estimate cost", "estimate {program_id} on {backend}")
@spelled_out
async def aestimate_cost(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    pubs_per_job: int | None = None,
    **submission: Unpack[Submission],
) -> CostEstimate:
    """Estimate the QPU seconds that a job would cost, without submitting it. Costs nothing.

    The interval is learnt from finished jobs of the same backend and program whose pages are in Prefect. It states the
    probability with which it holds for a job that completes, or that there were too few jobs.

    Args:
        credentials: The credentials block.
        pubs: PUBs, as `submit_job` takes them.
        pubs_per_job: How many of the PUBs, in order, share a job; None for all of them. Of several jobs the
            estimates are added up.
        **submission: As for `submit_job`: see `Submission`.

    Returns:
        The interval, with its share of what the instance has left.

    Raises:
        InvalidInput: A field is wrong, the instance has no such backend, or a payload does not tell how much is run;
            it is named.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import estimate_cost, load_credentials, require_approval, run_job

        @flow
        def asks_first(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = load_credentials(credentials_block)
            cost = estimate_cost(credentials, [circuit], backend=backend, shots=1000, max_execution_time=30)
            require_approval(cost, above=60)
            return run_job(credentials, [circuit], backend=backend, shots=1000, max_execution_time=30).counts()
        ```
    """
    found = await estimate_jobs(credentials, pubs, submission, pubs_per_job=pubs_per_job)
    notifications.log_to_run(f"Estimate: {found}")
    return found


estimate_cost = blocking(aestimate_cost)
"""As `aestimate_cost`, for sync flows."""


class CostApproval(RunInput):
    """The form on the page of a suspended flow run."""

    # Without a default, so that resuming alone approves nothing.
    approve: bool = Field(title="Approve", description="Whether the jobs may be submitted. If not, the flow run fails.")
    comment: str = Field(default="", title="Comment", description="A comment for the flow run's log.")


@dataclass(frozen=True, slots=True)
class _Question:
    """The question, its key, and whether the flow run can release its worker until it is answered."""

    key: str
    text: str
    suspends: bool
    estimate: CostEstimate

    @property
    def form(self) -> type[CostApproval]:
        """The form of the flow run's page."""
        return CostApproval.with_initial_data(description=self.text)

    def check(self, answer: CostApproval) -> None:
        """Raise an error unless the answer is yes.

        Raises:
            ApprovalDenied: The answer is no.
        """
        comment = f" Comment: {answer.comment.strip()[:500]}" if answer.comment.strip() else ""
        if answer.approve:
            notifications.log_to_run(f"The cost was approved: {self.estimate}{comment}")
            return
        raise ApprovalDenied(
            f"The cost was not approved: {self.estimate}{comment}",
            solution="Nothing was submitted. Start another flow run to ask again.",
        )

    def late(self) -> ApprovalDenied:
        """The error if there is no answer in time."""
        return ApprovalDenied(
            f"The cost was not approved within {_WAIT // 86400} days: {self.estimate}",
            solution="Nothing was submitted. Start another flow run to ask again.",
        )


def require_approval(cost: CostEstimate, *, above: float) -> None:
    """Ask a person in Prefect's UI before jobs are submitted that may cost more than a number of QPU seconds.

    Call it in the flow, not in a task, with what `estimate_cost` says. If the interval's upper end is above the limit,
    the flow run is suspended: it releases its worker, and its page shows the estimate with a form. When a person
    resumes it with "Approve", Prefect runs the flow **from the top**, and this call, which finds its answer, returns.
    One approval holds for the same work in the same flow run, for retries too. A flow run that cannot be suspended
    (without a deployment, or a subflow) is paused: it waits in its process, for a week at most.

    Args:
        cost: What the jobs will probably cost.
        above: QPU seconds up to which no approval is needed.

    Raises:
        InvalidInput: `above` is not a number of seconds, or the call is not in a flow.
        ApprovalDenied: The answer was no, or there was none. Nothing was submitted.
    """
    question = network_loop().run(_question(cost, above))
    if question is None:
        return
    if question.suspends:
        question.check(suspend_flow_run(wait_for_input=question.form, key=question.key, _sync=True))  # type: ignore[call-overload]
        return
    try:
        answer = pause_flow_run(  # type: ignore[call-overload]
            wait_for_input=question.form, timeout=_WAIT, poll_interval=_POLL, key=question.key, _sync=True
        )
    except FlowPauseTimeout:
        raise question.late() from None
    question.check(answer)


async def arequire_approval(cost: CostEstimate, *, above: float) -> None:
    """As `require_approval`, for async flows."""
    question = await network_loop().arun(_question(cost, above))
    if question is None:
        return
    if question.suspends:
        question.check(await asuspend_flow_run(wait_for_input=question.form, key=question.key))
        return
    try:
        answer = await apause_flow_run(
            wait_for_input=question.form, timeout=_WAIT, poll_interval=_POLL, key=question.key
        )
    except FlowPauseTimeout:
        raise question.late() from None
    question.check(answer)


def ask_above(
    limit: float | None, credentials: QuantumRuntimeCredentials, pubs: Any, *jobs: Submission, times: int = 1
) -> None:
    """Ask for approval before jobs of the same PUBs are submitted, as `require_approval_above` of other functions.

    Args:
        limit: QPU seconds up to which no approval is needed; None estimates nothing and never asks.
        credentials: The credentials block.
        pubs: PUBs, as `submit_job` takes them.
        *jobs: The parameters of `submit_job` for each job.
        times: How often each may be submitted at the most.
    """
    if limit is None:
        return
    _asking_flow_run(limit, "require_approval_above")
    costs = [estimate_cost(credentials, pubs, **one) for one in jobs]
    require_approval(CostEstimate.together(costs).at_most(times), above=limit)


async def aask_above(
    limit: float | None, credentials: QuantumRuntimeCredentials, pubs: Any, *jobs: Submission, times: int = 1
) -> None:
    """As `ask_above`, for async flows."""
    if limit is None:
        return
    _asking_flow_run(limit, "require_approval_above")
    costs = [await aestimate_cost(credentials, pubs, **one) for one in jobs]
    await arequire_approval(CostEstimate.together(costs).at_most(times), above=limit)


def _asking_flow_run(above: Any, field: str) -> FlowRun:
    """The flow run whose page can ask.

    Raises:
        InvalidInput: `above` is not a number of seconds, or the call is not in a flow.
    """
    if not is_seconds(above, finite=True):
        raise InvalidInput(f"must be a number of QPU seconds, 0 or more, not {shown(above)}", field=field)
    context = FlowRunContext.get()
    if TaskRunContext.get() is not None or context is None or context.flow_run is None:
        raise InvalidInput("an approval can be asked for in a flow, but not in a task", field=field)
    return context.flow_run


async def _question(cost: CostEstimate, above: float) -> _Question | None:
    """What to ask; None if the cost is within the limit."""
    run = _asking_flow_run(above, "above")
    # Counted before it is known whether to ask: the key must be the same when the flow runs from the top.
    where = await current_run()
    number = run_context.call_index(where, f"approval {cost.work}")
    if cost.high_seconds <= above:
        return None
    text = (
        f"**Approve {cost.high_seconds:.3g} QPU seconds?** {cost} You are asked because the upper end is above "
        f"{number_text(above)} QPU seconds. Without approval nothing is submitted and the flow run fails."
    )
    suspends = run.deployment_id is not None and run.parent_task_run_id is None
    question = _Question(f"approve-{cost.work}-{number}", text, suspends, cost)
    # Prefect itself forgets at a retry which questions were answered.
    if where.repeated and (answer := await _answer(run.id, question)) is not None:
        question.check(answer)
        return None
    notifications.log_to_run(
        f"Waiting for an approval on the flow run's page. {cost} That is above {number_text(above)} QPU seconds.",
        level=logging.WARNING,
    )
    return question


async def _answer(flow_run_id: UUID, question: _Question) -> CostApproval | None:
    """The answer that an earlier attempt of the flow run was given; None if it was given none."""
    state: State[Any] = Suspended(pause_key=question.key) if question.suspends else Paused(pause_key=question.key)
    try:
        text = await (await api()).read_flow_run_input(flow_run_id, keyset_from_paused_state(state)["response"])
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 404:
            raise
        return None
    return CostApproval.model_validate_json(text)
