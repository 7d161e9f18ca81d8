"""Fetch a job's result, including late, redirected and incomplete results and the texts of failed jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

from prefect_qruntime.client.failures import WHOLE, Question, is_refusal, job_error, read_text, whose
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.results.views import form_of, loads
from prefect_qruntime.client.transport.http import Transport, download_elsewhere
from prefect_qruntime.client.transport.replies import Reply
from prefect_qruntime.client.transport.spool import BodyStore, StoredBody
from prefect_qruntime.errors import (
    NEVER,
    JobFailed,
    NotFound,
    QuantumRuntimeError,
    ResultNotReady,
    ServiceUnavailable,
)
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.redact import get_logger, plain_text

__all__ = ["fetch_result"]

_HEAD = 100_000  # bytes of a body in a file that are examined
_SHOWN = 50_000  # bytes of a body's beginning and of its end that are masked, to be shown in part
_OPENING = (b"{", b"[")
_PRIMITIVES = frozenset({"sampler", "estimator", "executor"})  # the form of their results is known
_MARKS = frozenset({"__type__", "schema_version"})  # of what a program wrote, also in a form of a later version

log = get_logger(__name__)


class _Unusable(Exception):
    """A body that is not the result, or not all of it: worth another request."""

    def __init__(self, why: ServiceUnavailable) -> None:
        super().__init__(why.message)
        self.why = why


async def fetch_result(
    transport: Transport,
    fetch_job: Callable[[str], Awaitable[Job]],
    ref: JobRef,
    *,
    grace: float,
    known: bool = False,
    refused: float = 60.0,
    shelf: BodyStore | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> JobResult:
    """Fetch the result of a finished job.

    Args:
        transport: The wire.
        fetch_job: Reads the job's state.
        ref: Which job.
        grace: Seconds a completed job may still answer 204 or 404.
        known: Whether this process has seen the job.
        refused: Seconds that a 401, 403 or 404 about a known job must persist before it is believed.
        shelf: Store for a result that is too large for memory; None keeps every result in memory.
        clock: Monotonic seconds.
        sleep: For the pauses between requests.

    Raises:
        JobFailed: The job failed; carries the service's text.
        JobCancelled: The job was cancelled.
        ResultNotReady: The job is not over, or its result did not appear in time.
        NotFound: No such job, or the only copy of a private result was read before.
        ServiceUnavailable: No answer, or an incomplete one, until the time for retries ended. An incomplete only
            copy stays in its file, which the error names.
        QuantumRuntimeError: The result is larger than the shelf takes, the disk is full, or it is no JSON.
    """
    shelf = shelf or BodyStore()
    # Unique, even if two services give out the same ids.
    name = f"{ref.id}-{transport.connection.instance}"
    started = clock()
    pause = 0.2
    while True:
        try:
            # A process that died after the download has left the only copy there.
            if shelf.only_copy and (kept := await asyncio.to_thread(shelf.find, name)) is not None:
                return await _checked(transport, fetch_job, ref, kept, shelf, name)
            reply = await transport.download(
                f"/jobs/{ref.id}/results", shelf=shelf, name=name, accept=(404,), job_id=ref.id
            )
            if isinstance(reply, StoredBody) or (reply.status in WHOLE and reply.content):
                body = reply if isinstance(reply, StoredBody) else read_text(reply.content)
                return await _checked(transport, fetch_job, ref, body, shelf, name)
            job = await fetch_job(ref.id)
        except _Unusable as error:
            if clock() - started >= transport.patience.of("fetch"):
                raise error.why from None
            log.warning("%s. It is fetched again.", error.why.message)
        except QuantumRuntimeError as error:
            # A refusal about a known job is not believed at once.
            if not known or not is_refusal(error) or clock() - started >= refused:
                if shelf.only_copy and (cut := shelf.beginning(name)) is not None:
                    error.solution = f"What arrived of the result is kept in {cut}. {error.solution or ''}".strip()
                raise
            log.warning("Job %s: %s Its result is fetched again.", ref.id, error)
        else:
            _raise_if_none(job, reply, over=clock() - started >= grace, cut=shelf.beginning(name))
        await sleep(pause)
        pause = min(pause * 2, 2.0)


def _raise_if_none(job: Job, reply: Reply, *, over: bool, cut: Path | None) -> None:
    """Raise if there is no result and none will come; `over` means that the wait was long enough.

    `cut` is the file with what arrived of a result whose download broke off or was damaged.
    """
    error = job_error(job)
    if error is not None:
        raise error
    # The service answers a second read with an empty success; IBM's older hosts with a 404.
    if job.private and (reply.status == 404 or (job.is_terminal and over)):
        broken = f"by a download that broke off or was damaged; what arrived of it is kept in {cut}" if cut else ""
        raise NotFound(
            f"the result of private job {job.id} was read before, "
            f"{broken or 'perhaps by a download that broke off'}, and the service keeps no second copy",
            solution="Use the stored result of the run that read it first.",
            job_id=job.id,
            job_url=job.url,
            status=reply.status,
            read_before=True,
        )
    if not job.is_terminal or over:
        raise ResultNotReady(
            f"job {job.id} has no final result yet (state {job.raw_status!r})",
            solution="Wait for its completion first.",
            job_id=job.id,
            job_url=job.url,
            status=reply.status,
        )


async def _checked(
    transport: Transport,
    fetch_job: Callable[[str], Awaitable[Job]],
    ref: JobRef,
    body: bytes | StoredBody,
    shelf: BodyStore,
    name: str,
) -> JobResult:
    head = _head(body)
    if head.lstrip()[:1] in _OPENING and len(head) < 4096 and b'"url"' in head:
        url = _address(head)
        if url is not None:
            moved = await download_elsewhere(
                url,
                connection=transport.connection,
                tls=transport.tls,
                patience=transport.patience,
                shelf=shelf,
                name=name,
                job_id=ref.id,
            )
            body = read_text(moved.content) if isinstance(moved, Reply) else moved
            head = _head(body)
    if whose(Question("fetch", "GET", f"/jobs/{ref.id}/results"), 200, head) == "other":
        if isinstance(body, StoredBody):
            body.discard()
        raise _Unusable(_foreign(ref, f"not the service's own: {_shown(head)[:100]!r}"))
    begins = head.lstrip()[:1] in _OPENING
    found = await _whole(body, ref) if begins else None
    if found is not None and _has_form(found):
        return found
    if found is None and isinstance(body, StoredBody) and not shelf.only_copy:
        body.discard()
    # A failed job's result is its traceback as plain text, and a program of its own kind returns any JSON.
    job = await fetch_job(ref.id)
    error, text = job_error(job), _shown(head)
    if error is None and job.is_terminal:
        if found is not None and {ref.program_id, job.program_id}.isdisjoint(_PRIMITIVES):
            return found
        if shelf.only_copy:
            raise _damaged(body if isinstance(body, StoredBody) else None, job)
    # The only copy of a job that is not over is checked again: the state may be older than the result.
    if isinstance(body, StoredBody) and (error is not None or not shelf.only_copy):
        body.discard()
    if isinstance(error, JobFailed):
        fields = {**error.fields, "reason": error.reason or text[-2000:], "results_text": text[-10000:]}
        raise type(error)(error.message, **fields)
    if error is not None:
        raise error
    if found is not None:
        raise _Unusable(_foreign(ref, f"no result: {text[:200]!r}"))
    if begins:
        raise _Unusable(ServiceUnavailable(f"the result of job {ref.id} is cut off or damaged", job_id=ref.id))
    raise _Unusable(_foreign(ref, f"not JSON: {text[:200]!r}"))


def _has_form(result: JobResult) -> bool:
    """Whether a body has one of the forms in which primitives return; one that is too large for an error has."""
    if result.file is not None and result.file.size > _HEAD:
        return True
    if isinstance(result.raw, dict) and not _MARKS.isdisjoint(result.raw):
        return True
    form = form_of(result.raw)
    names = {"plain": "results", "quasi": "quasi_dists"}
    return form != "other" and (form not in names or isinstance(result.raw[names[form]], list))


def _damaged(kept: StoredBody | None, job: Job) -> ServiceUnavailable:
    """Build the error for a damaged result that the service does not hand out again; what arrived is kept."""
    where = f"is kept in {kept.path}" if kept else "could not be kept, because it could not be written to disk"
    return ServiceUnavailable(
        f"what arrived as the result of private job {job.id} is cut off, damaged or no result, and the service may "
        f"keep no second copy; it {where}",
        solution="Save from it what can be saved, then remove the file to fetch the result again." if kept else None,
        job_id=job.id,
        job_url=job.url,
        advice=NEVER,
    )


def _address(body: bytes) -> str | None:
    """The address of a result that is kept in object storage, as those of 2023 and 2024 may be."""
    try:
        known = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    url = known["url"] if isinstance(known, dict) and set(known) == {"url"} else None
    return url if isinstance(url, str) else None


def _foreign(ref: JobRef, seen: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"the answer with the result of job {ref.id} is {seen}", job_id=ref.id, foreign=True)


def _shown(head: bytes) -> str:
    """What a body that is no result reads, its beginning and its end; cut before it is masked, which takes time."""
    text = head if len(head) <= 2 * _SHOWN else head[:_SHOWN] + b"\n[...]\n" + head[-_SHOWN:]
    return plain_text(text.decode("utf-8", "replace").strip())


def _head(body: bytes | StoredBody) -> bytes:
    return read_text(body if isinstance(body, bytes) else body.head(_HEAD))


async def _whole(body: bytes | StoredBody, ref: JobRef) -> JobResult | None:
    """The result, or None if its JSON is not complete."""
    if isinstance(body, StoredBody):
        if not await asyncio.to_thread(_is_complete, body):
            return None
        return JobResult(file=body, job_id=ref.id, program_id=ref.program_id, widths=ref.widths)
    try:
        return JobResult.from_body(body, job_id=ref.id, program_id=ref.program_id, widths=ref.widths)
    except QuantumRuntimeError:
        return None


def _is_complete(body: StoredBody) -> bool:
    """Whether the JSON in a file was not cut, even right behind a bracket.

    Only a small one, and one whose brackets do not match, which those in a text may cause, is read as a whole.
    """
    if body.tail().rstrip()[-1:] not in (b"}", b"]"):
        return False
    counts = dict.fromkeys(b"{}[]", 0)
    for piece in body.pieces(1 << 20):
        for bracket in counts:
            counts[bracket] += piece.count(bracket)
    if body.size > _HEAD and counts[ord("{")] == counts[ord("}")] and counts[ord("[")] == counts[ord("]")]:
        return True
    try:
        body.read(lambda view: loads(view, ""))
    except QuantumRuntimeError:
        return False
    return True
