"""Run the same PUBs on both routes and compare the results: six task runs of the other tasks, and a comparison."""

from __future__ import annotations

from typing import Any, Unpack, cast

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs.agreement import RouteComparison, checked_rate, compare_results
from prefect_qruntime.client.programs.make import PrimitiveRoute
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.client.waiting.poller import OnTimeout, Stream
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.tasks.definitions import Submission, check_credentials, plan_submission, spelled_out
from prefect_qruntime.tasks.estimate import aask_above, ask_above
from prefect_qruntime.tasks.jobs import (
    afetch_results,
    await_for_completion,
    check_wait,
    fetch_results,
    wait_for_completion,
)
from prefect_qruntime.tasks.submit import asubmit_numbered, submit_numbered

__all__ = ["acompare_routes", "compare_routes"]

# The service's first: if its program is gone, it refuses that job, and nothing is submitted at all.
_ROUTES: tuple[PrimitiveRoute, ...] = ("service", "executor")


@spelled_out
def compare_routes(
    credentials: QuantumRuntimeCredentials,
    pubs: Any,
    *,
    false_alarm: float = 0.001,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    require_approval_above: float | None = None,
    **submission: Unpack[Submission],
) -> RouteComparison:
    """Run PUBs by the server-side primitive and by the executor, and test whether the results agree. Buys two jobs.

    The route is part of both submission keys: run again (flow retry, resume), each job is attached to on its own
    route. Both submissions are checked before the first one is sent.

    Counts are compared by a chi-squared test, expectation values by their difference in standard errors. Two runs
    of one circuit are reported as different in at most `false_alarm` of cases, however many PUBs, registers and points
    there are. A backend that drifts between the two jobs differs too.

    Args:
        credentials: The credentials block; of the cloud dialect, since the legacy one has no executor.
        pubs: PUBs, as `submit_job` takes them.
        false_alarm: How often two runs of the same circuits may be reported as different.
        timeout: Seconds for the whole wait of one job; None for no limit.
        queue_timeout: Seconds until a job runs; None for no limit.
        on_timeout: What happens to the job then: `leave` or `cancel`.
        stream: Whether to use a websocket: `auto`, `always` or `never`.
        require_approval_above: QPU seconds that both jobs may cost together without a person's approval; see
            `require_approval`. With None no approval is needed.
        **submission: Backend, program, shots, limits and more: see `Submission`. `route` is left out.

    Returns:
        The two jobs and the comparison, which is also an artifact `qruntime-comparison-<service job>`.

    Raises:
        InvalidInput: A field is wrong, or does not hold on both routes; nothing was sent.
        ApprovalDenied: Somebody was asked and did not approve; nothing was sent.
        QuantumRuntimeError: As the three tasks raise. A job that was submitted by then is left as it is.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, compare_routes

        @flow
        def may_we_move(credentials_block: str, circuit: str, backend: str) -> bool:
            credentials = QuantumRuntimeCredentials.load(credentials_block)
            return compare_routes(credentials, [circuit], backend=backend, shots=4000).agrees
        ```
    """
    check_wait(timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream)
    network_loop().run(_check(credentials, pubs, submission, false_alarm))
    ask_above(require_approval_above, credentials, pubs, *(_on(route, submission) for route in _ROUTES))
    jobs = [submit_numbered(credentials, pubs, by_route=True, **_on(route, submission)) for route in _ROUTES]
    for job in jobs:
        wait_for_completion(
            credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
        )
    results = [fetch_results(credentials, job) for job in jobs]
    return network_loop().run(_compared(jobs, results, false_alarm))


@spelled_out
async def acompare_routes(
    credentials: QuantumRuntimeCredentials,
    pubs: Any,
    *,
    false_alarm: float = 0.001,
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    require_approval_above: float | None = None,
    **submission: Unpack[Submission],
) -> RouteComparison:
    """As `compare_routes`, for async flows."""
    check_wait(timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream)
    await network_loop().arun(_check(credentials, pubs, submission, false_alarm))
    await aask_above(require_approval_above, credentials, pubs, *(_on(route, submission) for route in _ROUTES))
    jobs = [await asubmit_numbered(credentials, pubs, by_route=True, **_on(route, submission)) for route in _ROUTES]
    for job in jobs:
        await await_for_completion(
            credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
        )
    results = [await afetch_results(credentials, job) for job in jobs]
    return await network_loop().arun(_compared(jobs, results, false_alarm))


def _on(route: PrimitiveRoute, submission: Submission) -> Submission:
    return cast("Submission", {**submission, "route": route})


async def _check(credentials: QuantumRuntimeCredentials, pubs: Any, submission: Submission, false_alarm: float) -> None:
    """Check both submissions, so that no job is submitted if the results could not be compared.

    Raises:
        InvalidInput: A field is wrong; it is named.
    """
    check_credentials(credentials)
    checked_rate(false_alarm)
    if submission.get("route") is not None:
        raise InvalidInput("compare_routes runs both routes. Leave route out.", field="route")
    if submission.get("params") is not None or pubs is None:
        raise InvalidInput("compare_routes takes PUBs, since raw params= have one route. Pass pubs.", field="pubs")
    if submission.get("dry_run"):
        raise InvalidInput("a dry run's results are random, so there is nothing to compare", field="dry_run")
    if credentials.dialect == "legacy":
        raise InvalidInput("the legacy dialect has no executor to compare with", field="credentials")
    for route in _ROUTES:
        spec = (await plan_submission(credentials, pubs, _on(route, submission))).spec
        if spec.program_id not in ("sampler", "estimator") or spec.route != route:
            raise InvalidInput(f"must be 'sampler' or 'estimator', not {spec.wire_program!r}", field="program_id")
        if spec.program_id == "estimator" and "resilience_level" not in spec.options:
            raise InvalidInput(
                "is not set, and the routes differ in its default: the service mitigates readout errors, the executor "
                "nothing. Set it, for instance to 0",
                field="options.resilience_level",
            )


async def _compared(jobs: list[JobRef], results: list[JobResult], false_alarm: float) -> RouteComparison:
    service, executor = jobs
    agreement = compare_results(*results, false_alarm=false_alarm)
    comparison = RouteComparison(service=service, executor=executor, agreement=agreement)
    await notifications.routes_compared(comparison)
    return comparison
