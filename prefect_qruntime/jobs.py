"""`run_job`: submit, wait and fetch as three task runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefect_qruntime.client.following import OnTimeout, Stream
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.models import Backend
from prefect_qruntime.tasks import (
    afetch_results,
    asubmit_job,
    await_for_completion,
    fetch_results,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.work import SessionLike

__all__ = ["arun_job", "run_job"]


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
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> JobResult:
    """Buy one job, wait for it and fetch its result, as three task runs. Creates at most one job.

    Parameters are those of `submit_job` and `wait_for_completion`.

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
    )
    wait_for_completion(
        credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
    )
    return fetch_results(credentials, job)


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
    timeout: float | None = None,
    queue_timeout: float | None = None,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
) -> JobResult:
    """As `run_job`, for async flows."""
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
    )
    await await_for_completion(
        credentials, job, timeout=timeout, queue_timeout=queue_timeout, on_timeout=on_timeout, stream=stream
    )
    return await afetch_results(credentials, job)
