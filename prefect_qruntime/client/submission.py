"""Submit one job for one intent, or attach to the one submitted before.

`submission_core` decides; this module acts: it calls the service, sleeps, waits for other callers of the
process, and reports each outcome back. We promise that no job is bought twice automatically; we do not promise
"exactly once".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prefect_qruntime.client import submission_core as core
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.payload_check import (
    differs_at_sight,
    input_difference,
    is_comparable,
    is_small,
    on_service,
    shape,
)
from prefect_qruntime.client.submission_core import History
from prefect_qruntime.client.submission_keys import Payload, SubmissionMemory
from prefect_qruntime.client.transport.retrying import IN_FLIGHT, complete_or_withdraw
from prefect_qruntime.errors import JobCancelled, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef, SessionRef
from prefect_qruntime.redact import get_logger

if TYPE_CHECKING:
    from prefect_qruntime.client.service import Service

__all__ = ["BeforePost", "History", "Intent", "KeyHistory", "NoteAccepted", "submission_memory", "submit_or_attach"]

log = get_logger(__name__)

BeforePost = Callable[[str], Awaitable[JobSpec | None]]
KeyHistory = Callable[[str], Awaitable[History]]
NoteAccepted = Callable[[str, str | None], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Intent:
    """What to submit, and how carefully.

    Attributes:
        spec: The checked submission.
        key_tag: Gives the submission key's tag for a generation (0 is the first).
        tags: Further tags (the flow's and the user's).
        session: The session to run in.
        search_until: Search for an earlier job before the first POST, until this moment of `clock` at least once. For
            attempts that are over when this process starts.
        search_seconds: Search for an earlier job for this long from now on, at least once. For keys that another
            process may have used a moment ago. With both None no earlier attempt can exist.
        renew_failed: Whether an earlier job that failed or was cancelled is replaced by a new one.
        grace: Seconds after a lost answer within which the job must show up in the list.
        attempts: Most POSTs for one generation.
        digest: The payload's digest, if it was computed already.
        exact: Whether a job with this key must have the same circuits. False if they were transpiled for a backend.
    """

    spec: JobSpec
    key_tag: Callable[[int], str]
    tags: tuple[str, ...] = ()
    session: SessionRef | None = None
    search_until: float | None = None
    search_seconds: float | None = None
    renew_failed: Callable[[Job], bool] = field(default=lambda job: False)
    grace: float = 30.0
    attempts: int = 3
    digest: str | None = None
    exact: bool = True


_memories: WeakKeyDictionary[asyncio.AbstractEventLoop, SubmissionMemory] = WeakKeyDictionary()


def submission_memory() -> SubmissionMemory:
    """The memory of the running loop. A process submits on one loop only; a forked process has another one."""
    return _memories.setdefault(asyncio.get_running_loop(), SubmissionMemory())


async def submit_or_attach(
    service: Service,
    intent: Intent,
    *,
    scope: str = "",
    before_post: BeforePost | None = None,
    on_bought: Callable[[JobRef], None] | None = None,
    on_lost: Callable[[str], None] | None = None,
    key_history: KeyHistory | None = None,
    note_accepted: NoteAccepted | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> JobRef:
    """Return the one job of this intent, submitted now or found.

    Args:
        service: The calls of the service.
        intent: The request.
        scope: The instance; callers of one process with equal scope and key share one job.
        before_post: Awaited with the key before each POST: budget and rate limits. It may raise to stop, or
            return what to send in place of the intent's spec (a lower limit of QPU seconds).
        on_bought: Called with a new job at once, even if the caller is being cancelled.
        on_lost: Called with the key if a request's outcome is not known, even if the caller is being cancelled.
        key_history: Awaited with the key before a search that precedes the first POST: what other processes did with
            it. It must not guess: `never_sent`, which reduces the search to one query, is true only if every process
            leaves a mark in `before_post`, under a lock that excludes other processes with the key.
        note_accepted: Awaited with the key and the job's id (None if it could not be read) after a 2xx, for the
            histories of other processes. If it fails, the job is returned nevertheless.
        clock: Monotonic seconds.
        sleep: For the pauses between looks.

    Returns:
        The job; `attached` says whether it existed already.

    Raises:
        SubmissionUncertain: It is not known whether a job was accepted; nothing more is sent.
        QuantumRuntimeError: The service refused the job; nothing was submitted.
    """
    ask = core.Ask(
        key_tag=intent.key_tag,
        scope=scope,
        payload=Payload(shape(intent.spec), await _digest(intent)),
        renew_failed=intent.renew_failed,
        search_until=intent.search_until,
        search_seconds=intent.search_seconds,
        knows_history=key_history is not None,
        grace=intent.grace,
        attempts=intent.attempts,
    )
    memory = submission_memory()
    machine = core.Submission(ask, memory, object())
    caller = _Caller(
        service, intent, machine, memory, before_post, on_bought, on_lost, key_history, note_accepted, clock, sleep
    )
    try:
        return await caller.run()
    except BaseException:
        machine.abandoned(clock())
        raise


async def _digest(intent: Intent) -> str | None:
    if intent.digest is not None or not intent.exact:
        return intent.digest
    return intent.spec.digest() if is_small(intent.spec) else await asyncio.to_thread(intent.spec.digest)


@dataclass(slots=True)
class _Caller:
    """Carry out the core's decisions for one caller; see `submit_or_attach` for its callbacks."""

    service: Service
    intent: Intent
    machine: core.Submission
    memory: SubmissionMemory
    before_post: BeforePost | None
    on_bought: Callable[[JobRef], None] | None
    on_lost: Callable[[str], None] | None
    key_history: KeyHistory | None
    note_accepted: NoteAccepted | None
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    spec: JobSpec = field(init=False)
    accepted: tuple[str, str | None] | None = None  # to be noted
    compared: bool = True
    """Whether all of the input of a job found in the list could be compared."""

    async def run(self) -> JobRef:
        self.spec = self.intent.spec
        action = self.machine.start(self.clock())
        while True:
            match action:
                case core.Bought(ref):
                    return ref
                case core.Attach():
                    return _attached(action, self.intent, certain=self.compared)
                case core.GiveUp(error):
                    raise error
                case core.Post(key):
                    action = await complete_or_withdraw(self._create(key))
                case core.Admit(key):
                    try:
                        allowed = await self.before_post(key) if self.before_post is not None else None
                    except JobCancelled:  # which says itself what may live on
                        raise
                    except QuantumRuntimeError as error:
                        action = self.machine.refused(self.clock(), error)
                        continue
                    self.spec = allowed or self.intent.spec
                    action = self.machine.admitted(self.clock())
                case core.AwaitOther(key):
                    action = await self._await_other(key)
                case core.Pause(seconds):
                    await self.sleep(seconds)
                    action = self.machine.waited(self.clock())
                case core.AskHistory(key):
                    known = await self._history(key)
                    action = self.machine.history(self.clock(), known)
                case core.Fetch(job_id):
                    action = await self._fetch(job_id)
                case core.Look(key):
                    action = await self._look(key)
                case core.Compare(job):
                    action = await self._compare(job)
                case core.Read(job_id):
                    action = await self._read(job_id)

    async def _await_other(self, key: str) -> core.Action:
        log.info("submission %s: another caller of this process submits it; waiting for its outcome", key)
        free = asyncio.Event()
        self.memory.when_released(self.machine.memory_key, free.set)
        await free.wait()
        return self.machine.other_settled(self.clock())

    async def _history(self, key: str) -> History:
        assert self.key_history is not None  # noqa: S101  # else the core does not ask
        try:
            return await self.key_history(key)
        except Exception as error:  # only certainty shortens the search
            log.warning("Whether submission %s was sent before is not known: %r. Its job is searched for.", key, error)
            return History()

    async def _note_accepted(self) -> None:
        if self.accepted is None or self.note_accepted is None:
            return
        try:
            await self.note_accepted(*self.accepted)
        except Exception as error:  # a job that was submitted is returned
            log.warning("The acceptance of submission %s could not be recorded: %r", self.accepted[0], error)

    async def _fetch(self, job_id: str) -> core.Action:
        try:
            job = await self.service.job(job_id)
        except NotFound:
            return self.machine.fetch_missing(self.clock())
        except QuantumRuntimeError as error:
            return self.machine.fetch_failed(self.clock(), error)
        return self.machine.fetched(self.clock(), job)

    async def _look(self, key: str) -> core.Action:
        try:
            # The service leaves jobs on mock backends out unless it is asked for them.
            mocks = {"mocks": True} if self.intent.spec.dry_run else {}
            jobs = await self.service.jobs_tagged(key, **mocks)
        except QuantumRuntimeError as error:
            return self.machine.list_failed(self.clock(), error)
        return self.machine.listed(self.clock(), jobs)

    async def _compare(self, job: Job) -> core.Action:
        try:
            difference = await self._difference(job)
        except NotFound:
            return self.machine.compare_missing(self.clock())
        except QuantumRuntimeError as error:
            return self.machine.compare_failed(self.clock(), error)
        return self.machine.compared(self.clock(), difference)

    async def _difference(self, job: Job) -> str | None:
        spec = self.intent.spec
        self.compared = False
        if (difference := differs_at_sight(spec, job)) is not None:
            return difference
        unseen: list[str] = []
        if job.private:
            unseen.append("the input of a private job")
        elif not is_comparable(spec):
            unseen.append("the input, which is too large to be read back")
        else:
            difference = await self._input_difference(job.id, unseen)
        self.compared = not unseen
        if unseen and difference is None:
            log.info("job %s: it has the key of this submission, but not compared is %s", job.id, ", ".join(unseen))
        return difference

    async def _input_difference(self, job_id: str, unseen: list[str]) -> str | None:
        spec = self.intent.spec
        kept, sent = await self.service.job_input(job_id), self.service.job_params(on_service(spec))
        compare = partial(input_difference, spec, sent, kept, exact=self.intent.exact, unseen=unseen)
        # What may hold QPY is decoded in a thread: reading it can take seconds, and imports qiskit.
        decoded = spec.support_qiskit or spec.canonical(spec.options) != spec.options
        plain = not decoded and spec.params is None and "quantum_program" not in kept
        return compare() if is_small(spec) and plain else await asyncio.to_thread(compare)

    async def _read(self, job_id: str) -> core.Action:
        try:
            job = await self.service.job(job_id)
        except NotFound:
            return self.machine.read_missing(self.clock())
        except QuantumRuntimeError as error:
            log.warning("Job %s was submitted by this process, but cannot be read now: %s", job_id, error)
            return self.machine.read_failed(self.clock())
        return self.machine.read(self.clock(), job)

    async def _create(self, key: str) -> core.Action:
        """Send the request, and report and note its outcome, even if the caller is gone meanwhile."""
        action = await self._post(key)
        await self._note_accepted()
        return action

    def _lost(self, key: str) -> None:
        if self.on_lost is not None:
            self.on_lost(key)

    async def _post(self, key: str) -> core.Action:
        """Send the request and report its outcome."""
        tags = (key, *self.intent.tags)
        try:
            ref = await self.service.post_job(self.spec, tags, self.intent.session)
        except asyncio.CancelledError:
            create = IN_FLIGHT.get()
            if create is None or create.unanswered:
                self._lost(key)
            else:
                self.machine.withdrawn()
            raise
        except QuantumRuntimeError as error:
            now = self.clock()
            if error.advice.kind != "search-first":
                return self.machine.refused(now, error)
            self._lost(key)
            if error.status is not None and 200 <= error.status < 300:
                log.warning(
                    "Submission %s was accepted with an unreadable answer: %s Its job is searched for.", key, error
                )
                self.accepted = key, None
                return self.machine.unreadable(now)
            log.warning("The answer to submission %s was lost: %s Its job is searched for.", key, error)
            return self.machine.lost(now, error)
        ref = ref.model_copy(update={"submission_key": key, "tags": tags})
        action = self.machine.posted(self.clock(), ref)
        self.accepted = key, ref.id
        if self.on_bought is not None:
            self.on_bought(ref)
        return action


def _attached(found: core.Attach, intent: Intent, *, certain: bool) -> JobRef:
    ref = found.job.ref() if found.job is not None else found.ref
    if ref.backend and ref.backend != intent.spec.backend:
        log.warning(
            "Attached to job %s on %s, although %s was requested now. Another submission_key submits one there.",
            ref.id,
            ref.backend,
            intent.spec.backend,
        )
    return ref.model_copy(
        update={
            "attached": True,
            "certain": certain,
            "submission_key": found.key,
            "session": _session(ref, found.job, intent.session),
            "program_id": intent.spec.program_id,
            "widths": intent.spec.widths,
        }
    )


def _session(ref: JobRef, job: Job | None, wanted: SessionRef | None) -> SessionRef | None:
    """The session the job is in, which need not be the requested one."""
    found = ref.session
    if found is None or found.id is None or wanted is None:
        return found
    # A legacy session without an id is the one that this job opened, unless it is over.
    opened = wanted.id is None and job is not None and not job.is_terminal
    if opened or wanted.id == found.id:
        return wanted.model_copy(update={"id": found.id})
    log.info("job %s runs in session %s, not in %s", ref.id, found.id, wanted.id or "the requested session")
    return found
