"""Read a job's result: 204 patience, text bodies of failed jobs, results kept elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import orjson

from prefect_qruntime.client.replies import Reply
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.client.transport import Transport
from prefect_qruntime.connection import is_loopback
from prefect_qruntime.errors import (
    JobFailed,
    NotFound,
    QuantumRuntimeError,
    ResultNotReady,
    ServiceUnavailable,
)
from prefect_qruntime.failures import job_error
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.redact import redact, register_secret

__all__ = ["fetch_result"]


async def fetch_result(
    transport: Transport,
    look: Callable[[str], Awaitable[Job]],
    ref: JobRef,
    *,
    grace: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> JobResult:
    """Fetch the result of a finished job.

    Args:
        transport: The wire.
        look: Reads the job's state.
        ref: Which job.
        grace: Seconds a completed job may still answer 204 or 404.
        clock: Monotonic seconds.
        sleep: For the pauses between looks.

    Raises:
        JobFailed: The job failed; carries the service's text.
        JobCancelled: The job was cancelled.
        ResultNotReady: The job is not over, or its result did not appear in time.
        NotFound: No such job, or the only copy of a private result was read before.
    """
    started = clock()
    pause = 0.2
    while True:
        reply = await transport.request("GET", f"/jobs/{ref.id}/results", phase="fetch", accept=(404,), job_id=ref.id)
        if reply.status == 200 and reply.content:
            return await _decoded(transport, look, ref, reply)
        job = await look(ref.id)  # raises NotFound for a job that is not there
        error = job_error(job)
        if error is not None:
            raise error
        if job.private and reply.status == 404:
            raise NotFound(
                f"the result of private job {job.id} was read before, and the service keeps no second copy",
                solution="Use the stored result of the run that read it first.",
                job_id=job.id,
                job_url=job.url,
                status=404,
            )
        if not job.is_terminal or clock() - started >= grace:
            raise ResultNotReady(
                f"job {job.id} has no final result yet (state {job.raw_status!r})",
                solution="Wait for its completion first.",
                job_id=job.id,
                job_url=job.url,
                status=reply.status,
            )
        await sleep(pause)
        pause = min(pause * 2, 2.0)


async def _decoded(transport: Transport, look: Callable[[str], Awaitable[Job]], ref: JobRef, reply: Reply) -> JobResult:
    content = reply.content
    if content.lstrip()[:1] not in (b"{", b"["):
        # A failed job's result is its traceback as plain text.
        job = await look(ref.id)
        error = job_error(job)
        text = redact(reply.text.strip())
        if isinstance(error, JobFailed):
            fields = {**error.fields, "reason": error.reason or text[-2000:], "results_text": text[-10000:]}
            raise type(error)(error.message, **fields)
        raise error or QuantumRuntimeError(f"the result of job {ref.id} is not JSON: {text[:200]!r}", job_id=ref.id)
    if len(content) < 4096 and b'"url"' in content:
        body = orjson.loads(content)
        if isinstance(body, dict) and set(body) == {"url"} and isinstance(body["url"], str):
            content = await _elsewhere(transport, body["url"], ref.id)
    return JobResult.from_body(content, job_id=ref.id, program_id=ref.program_id, widths=ref.widths)


async def _elsewhere(transport: Transport, url: str, job_id: str) -> bytes:
    """Fetch from object storage, as results of 2023 and 2024 may be kept: without our token or CRN."""
    register_secret(url.partition("?")[2])  # the signature in it opens the result to anybody
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    safe = address.scheme == "https" or (address.scheme == "http" and is_loopback(address.host))
    if not safe or not address.host or not 0 < (address.port or 443) < 65536:
        raise QuantumRuntimeError(
            f"job {job_id} points to its result by no address that can be trusted; not fetched", job_id=job_id
        )
    register_secret(address.query.decode("ascii"))
    answer: httpx.Response | None = None
    try:
        async with httpx.AsyncClient(
            timeout=transport.connection.request_timeout,
            proxy=transport.connection.proxy,
            verify=transport.tls,
            trust_env=not is_loopback(address.host),
        ) as http:
            answer = await http.get(address)
    except httpx.HTTPError as exc:
        trouble = type(exc).__name__  # its text and its request hold the address with the signature
    if answer is None:
        raise ServiceUnavailable(f"the stored result of job {job_id} cannot be read: {trouble}", job_id=job_id)
    if answer.status_code != 200:
        raise QuantumRuntimeError(
            f"the stored result of job {job_id} cannot be read", status=answer.status_code, job_id=job_id
        )
    return answer.content
