"""Fetch a finished job's result: the tasks and their bodies."""

from __future__ import annotations

import asyncio

from prefect_qruntime import result_storage
from prefect_qruntime.cancellation import ends_with_flow_run
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import parse_crn
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.models import JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.events import materialize_result
from prefect_qruntime.observability.markdown import fetched_line
from prefect_qruntime.observability.traces import trace_chunks
from prefect_qruntime.settings import current_settings
from prefect_qruntime.tasks.arguments import JobLike, as_job
from prefect_qruntime.tasks.decorators import blocking, in_flow, repeats

__all__ = ["afetch_results", "fetch_results"]


@in_flow
@repeats("fetch results", "fetch {job}")
@ends_with_flow_run
async def afetch_results(credentials: QuantumRuntimeCredentials, job: JobLike) -> JobResult:
    """Fetch a finished job's result; reads only. A private job's result is stored before it is returned.

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
    ref = as_job(job)
    client = credentials.get_client()
    grace = current_settings().result_grace_seconds
    if ref.private is None:  # only its id is known
        seen = await client.job(ref.id)
        if seen.is_terminal:
            client.look_at_calibration(seen)
        private = seen.private
    else:
        private = ref.private
    shelf = result_storage.shelf()
    if not private:
        result = await client.result(ref, grace=grace, shelf=shelf)
        notifications.log_to_run(await asyncio.to_thread(fetched_line, result))
        if result.file is None:  # a large one is not decoded for a picture
            notifications.job_fetched(ref.id, result)
            trace_chunks(result)
        _record(client, ref, result)
        return await result_storage.share_if_persisted(result)
    kept = await result_storage.read_private(client.connection.crn, ref.id)
    if kept is not None:
        notifications.log_to_run(f"job {ref.id} is private and was read before: returning the stored copy")
        return kept
    result = await client.result(ref, grace=grace, shelf=shelf.for_only_copy())
    notifications.log_to_run(await asyncio.to_thread(fetched_line, result))
    _record(client, ref, result)
    return await result_storage.keep_private(client.connection.crn, result, memory_limit=shelf.memory_limit)


def _record(client: QuantumRuntimeClient, ref: JobRef, result: JobResult) -> None:
    facts = {"job_id": ref.id, "program_id": result.program_id, "backend": ref.backend, "key": ref.submission_key}
    ref = ref.model_copy(update={"url": ref.url or client.connection.job_url(ref.id)})
    materialize_result(ref, parse_crn(client.connection.crn).instance, facts)


fetch_results = blocking(afetch_results)
"""As `afetch_results`, for sync flows."""
