"""Buy one job for one intent, or attach to the one bought before.

The service has no idempotency key. What it has are job tags that can be listed, so each intent
carries a tag of its own and every doubt is settled by a look at the list. We promise that no job is
bought twice automatically; we do not promise "exactly once".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.transport.in_flight import complete_or_withdraw
from prefect_qruntime.errors import QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import Job, JobRef, JobStatus, SessionRef
from prefect_qruntime.redact import get_logger

__all__ = ["BeforePost", "Intent", "submit_or_attach"]

log = get_logger(__name__)

BeforePost = Callable[[str], Awaitable[JobSpec | None]]


@dataclass(frozen=True, slots=True)
class Intent:
    """What is wanted, and how careful to be.

    Attributes:
        spec: The checked submission.
        key_tag: Gives the submission key's tag for a generation (0 is the first).
        tags: Further tags (the flow's and the user's).
        session: The session to run in.
        search_until: Look for an earlier job before the first POST, until this moment of `clock` at
            least once; None when no earlier attempt can exist.
        renew_failed: Whether an earlier job that failed or was cancelled is to be bought anew.
        grace: Seconds after a lost answer within which the job must show up in the list.
        attempts: Most POSTs for one generation.
    """

    spec: JobSpec
    key_tag: Callable[[int], str]
    tags: tuple[str, ...] = ()
    session: SessionRef | None = None
    search_until: float | None = None
    renew_failed: Callable[[Job], bool] = field(default=lambda job: False)
    grace: float = 30.0
    attempts: int = 3


class _Service(Protocol):
    """What submitting needs of the client."""

    async def post_job(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef: ...

    async def jobs_tagged(self, tag: str) -> list[Job]: ...


async def submit_or_attach(
    service: _Service,
    intent: Intent,
    *,
    before_post: BeforePost | None = None,
    on_bought: Callable[[JobRef], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> JobRef:
    """Return the one job of this intent, bought now or found.

    Args:
        service: The client.
        intent: What is wanted.
        before_post: Awaited with the key before each POST: budget and rate limits. It may raise to stop, or
            return what to send in place of the intent's spec (a lower limit of QPU seconds).
        on_bought: Told of a new job at once, even when the caller is being cancelled meanwhile.
        clock: Monotonic seconds.
        sleep: For the pauses between looks.

    Returns:
        The job; `attached` tells whether it existed already.

    Raises:
        SubmissionUncertain: It cannot be told whether a job was bought; nothing more is sent.
        QuantumRuntimeError: The service refused the job; nothing was bought.
    """
    generation = 0
    while True:
        key = intent.key_tag(generation)
        earlier = None
        if intent.search_until is not None:
            earlier = await _search(service, intent, key, intent.search_until, clock, sleep)
        if earlier is None:
            return await _buy(service, intent, key, before_post, on_bought, clock, sleep)
        dead = earlier.status in (JobStatus.FAILED, JobStatus.CANCELLED)
        if not (dead and intent.renew_failed(earlier)):
            return _attached(earlier, intent, key)
        generation += 1


async def _buy(
    service: _Service,
    intent: Intent,
    key: str,
    before_post: BeforePost | None,
    on_bought: Callable[[JobRef], None] | None,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> JobRef:
    tags = (key, *intent.tags)
    for attempt in range(1, intent.attempts + 1):
        spec = (await before_post(key) if before_post is not None else None) or intent.spec
        try:
            return await complete_or_withdraw(_post(service, intent, spec, key, tags, on_bought))
        except QuantumRuntimeError as error:
            if error.advice.kind != "search-first":
                raise
            log.warning("submission %s: the answer was lost (%s); looking for the job", key, error)
            try:
                found = await _search(service, intent, key, clock() + intent.grace, clock, sleep)
            except SubmissionUncertain:
                raise
            except QuantumRuntimeError as unseen:
                raise _uncertain(key, f"looking for it failed: {unseen.message}", []) from unseen
            if found is not None:
                return _attached(found, intent, key)
            log.warning("submission %s: no job after %.0f s, so it was not accepted", key, intent.grace)
            if attempt == intent.attempts:
                raise _uncertain(key, f"{attempt} answers were lost: {error.message}", []) from error
    raise AssertionError("unreachable: attempts is at least 1")


async def _post(
    service: _Service,
    intent: Intent,
    spec: JobSpec,
    key: str,
    tags: tuple[str, ...],
    on_bought: Callable[[JobRef], None] | None,
) -> JobRef:
    ref = await service.post_job(spec, tags, intent.session)
    ref = ref.model_copy(update={"submission_key": key, "tags": tags})
    if on_bought is not None:
        on_bought(ref)
    return ref


async def _search(
    service: _Service,
    intent: Intent,
    key: str,
    until: float,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> Job | None:
    """Look for the key's job, at least once and again until `until`, as lists may lag."""
    pause = min(0.25, intent.grace / 4)
    while True:
        found = [job for job in await service.jobs_tagged(key) if key in job.tags]
        if len(found) > 1:
            raise _uncertain(key, "more than one job carries its key", [job.id for job in found])
        if found:
            return found[0]
        left = until - clock()
        if left <= 0:
            return None
        await sleep(min(pause, left))
        pause = min(pause * 1.5, 3.0)


def _attached(job: Job, intent: Intent, key: str) -> JobRef:
    if job.backend and job.backend != intent.spec.backend:
        log.warning(
            "attached to job %s on %s although %s was asked for now; another submission_key buys one there",
            job.id,
            job.backend,
            intent.spec.backend,
        )
    session = intent.session
    if session is not None and session.id is None and job.session_id and not job.is_terminal:
        # A legacy session that this very job opened: follow-ups belong into it while it lives.
        session = session.model_copy(update={"id": job.session_id})
    return job.ref().model_copy(
        update={
            "attached": True,
            "submission_key": key,
            "session": session,
            "program_id": intent.spec.program_id,
            "widths": intent.spec.widths,
        }
    )


def _uncertain(key: str, why: str, candidates: list[str]) -> SubmissionUncertain:
    shown = f" Candidates: {', '.join(candidates)}." if candidates else ""
    return SubmissionUncertain(
        f"it cannot be told whether the job was bought: {why}.{shown}",
        solution=(
            f"Look for the tag {key} in the instance's workloads. If a job is there, pass its id on instead of "
            "submitting; if none is, run the flow again: it looks first."
        ),
        submission_key=key,
        candidates=candidates,
        job_id=candidates[0] if len(candidates) == 1 else None,
    )
