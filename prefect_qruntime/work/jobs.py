"""What the tasks of one job do. Runs on the network loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime

from prefect.context import TaskRunContext

from prefect_qruntime import binding, keys, observe, private_results, stored_results
from prefect_qruntime.arguments import Plan
from prefect_qruntime.budget import BudgetLike
from prefect_qruntime.cancellation import cancels_jobs
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.following import OnTimeout, Stream
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.waiting import Deadlines
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_name
from prefect_qruntime.errors import InvalidInput, JobTimeout, NotFound, QuantumRuntimeError
from prefect_qruntime.failures import job_error
from prefect_qruntime.gate import gate
from prefect_qruntime.late_usage import follow_usage
from prefect_qruntime.lookout import looks_out
from prefect_qruntime.models import Job, JobRef, JobStatus, SessionRef
from prefect_qruntime.orchestration import in_run
from prefect_qruntime.purchase_lock import alone_with
from prefect_qruntime.settings import current_settings
from prefect_qruntime.sightings import Sighting
from prefect_qruntime.spec import JobSpec
from prefect_qruntime.submission_marks import key_history, mark_accepted, mark_sent
from prefect_qruntime.work.instance import queue_length
from prefect_qruntime.work.sessions import note_session

__all__ = ["cancel", "fetch", "submit", "wait"]


async def submit(
    credentials: QuantumRuntimeCredentials,
    plan: Plan,
    session: SessionRef | None,
    submission_key: str | None,
    index: int | None,
    budget: BudgetLike | None = None,
    replaces: JobRef | None = None,
) -> JobRef:
    """Buy the one job of this intent, or attach to it; it is noted in Prefect before this returns.

    With `replaces`, the intent is that job's: the next generation of its key is bought or attached to.
    """
    client = credentials.get_client()
    settings = current_settings()
    where = await keys.origin()
    spec, digest = plan.spec, plan.digest
    if submission_key is not None:
        identity, number = keys.explicit_identity(submission_key), 0
    else:
        identity = where.identity
        number = 0 if replaces else keys.call_index(where, digest) if index is None else index
    first = 0
    if replaces is not None and (submission_key is not None or where.flow_run_id is not None):
        made = 1 if submission_key is not None else keys.made(where, digest)
        number, first = keys.next_generation(replaces, client.connection.crn, identity, digest, made=made)
    flow_tag = keys.flow_tag(where.flow_run_id) if where.flow_run_id else None

    def renew_failed(job: Job) -> bool:
        # Within one attempt, a failed job found under an explicit key is the answer; a later run wants a new one.
        return where.wants_anew(job) or (flow_tag is not None and flow_tag not in job.tags)

    def key_tag(generation: int) -> str:
        return keys.key_tag(client.connection.crn, identity, digest, index=number, generation=generation)

    def later_tag(generation: int) -> str:
        return key_tag(first + generation)

    known: list[str] = []
    marked = submission_key is not None and in_run()  # as the lock: outside a run there is no Prefect to ask
    alone = alone_with(key_tag(0)) if submission_key is not None else contextlib.nullcontext(False)
    async with cancels_jobs(client, known), binding.first_through(session) as usable, alone:
        grace = settings.submission_grace_seconds
        intent = Intent(
            spec=spec,
            key_tag=later_tag,
            tags=((flow_tag,) if flow_tag else ()) + spec.tags,
            session=usable,
            # Earlier attempts of this run ended before this process began; another process may have used an
            # explicit key a moment before the lock was free.
            search_until=where.touched + grace if where.repeated else None,
            search_seconds=grace if submission_key is not None else None,
            renew_failed=renew_failed,
            grace=grace,
            digest=plan.digest,
            exact=not plan.transpiled,
        )
        async with gate(client, spec, where, budget) as passing:

            def bought(new: JobRef) -> None:
                known.append(new.id)
                passing.bought(new)

            async def before_post(key: str) -> JobSpec | None:
                if marked:
                    await mark_sent(key)
                return await passing.before_post(key)

            ref = await client.submit(
                intent,
                before_post=before_post,
                on_bought=bought,
                key_history=key_history if marked else None,
                note_accepted=mark_accepted if marked else None,
            )
            bought(ref)
            # Before the gate waits for the service to list the job: it is to be found from now on.
            if usable is not None and usable.id is None and ref.session is not None and await _takes_jobs(client, ref):
                binding.bind(usable, ref)
                await note_session(credentials, usable.token, ref.session, where)
                observe.session_event("opened", ref.session, max_ttl=ref.session.max_ttl)
            await observe.job_submitted(ref, block=block_name(credentials), flow_run_id=where.flow_run_id)
    return ref


async def _takes_jobs(client: QuantumRuntimeClient, ref: JobRef) -> bool:
    """Whether the session that a first job opened takes more of them.

    The one of a job attached to may be closed by the try that opened it; then the next job opens another.
    """
    if ref.session is None or ref.session.id is None:
        return False
    if not ref.attached:
        return True
    try:
        session = (await client.session(ref.session.id)).ref()
    except NotFound:
        return False
    return not session.is_closed and session.accepting_jobs is not False


def _time_left(timeout: float | None) -> float | None:
    """What a retried wait has left of its total time: a retry does not start the clock again."""
    context = TaskRunContext.get()
    if timeout is None or context is None or (context.task_run.run_count or 0) <= 1:
        return timeout
    began = context.task_run.start_time
    if began is None:
        return timeout
    return max(0.001, timeout - (datetime.now(UTC) - began).total_seconds())


async def wait(
    credentials: QuantumRuntimeCredentials,
    job: JobRef,
    timeout: float | None,
    queue_timeout: float | None,
    on_timeout: OnTimeout,
    stream: Stream,
) -> Job:
    """Follow the job to its end; raise unless it completed."""
    if on_timeout not in ("leave", "cancel"):
        raise InvalidInput("must be 'leave' or 'cancel'", field="on_timeout")
    if stream not in ("auto", "always", "never"):
        raise InvalidInput("must be 'auto', 'always' or 'never'", field="stream")
    settings = current_settings()
    deadlines = Deadlines(total=timeout, queue=queue_timeout, outage=settings.outage_patience_seconds).check()
    deadlines = Deadlines(total=_time_left(timeout), queue=queue_timeout, outage=deadlines.outage)
    client = credentials.get_client()
    history: list[Sighting] = []
    last: list[Job] = []

    async def on_change(seen: Job, waited: float) -> None:
        history.append(Sighting(seen.status, seen.raw_status.lower(), waited, datetime.now(UTC)))
        last[:] = [seen]
        observe.job_changed(seen, waited)

    reminder = asyncio.create_task(_remind(client, job.id, last, settings.progress_seconds))
    try:
        async with cancels_jobs(client, [job.id]), looks_out(client, job.id):
            done = await client.wait(
                job.id,
                deadlines=deadlines,
                on_timeout=on_timeout,
                stream=stream,
                in_session=job.session is not None,
                on_change=on_change,
            )
    except JobTimeout as late:
        if late.fields.get("cancelled"):
            await _tell_cancelled(client, job.id)
        raise
    finally:
        reminder.cancel()
    observe.job_over(done, history)
    follow_usage(client, done)
    error = job_error(done)
    if error is not None:
        raise error
    return done


async def _tell_cancelled(client: QuantumRuntimeClient, job_id: str) -> None:
    with contextlib.suppress(QuantumRuntimeError):  # it is cancelled all the same; the sweep completes its page
        cancelled = await client.job(job_id)
        await observe.job_cancelled(cancelled)
        follow_usage(client, cancelled)


async def _remind(client: QuantumRuntimeClient, job_id: str, last: list[Job], every: float) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(every)
        waited = time.monotonic() - started
        if last:
            queued, backend = last[0].status is JobStatus.QUEUED, last[0].backend
            queue = await queue_length(client, backend) if queued and backend else None
            observe.job_still(last[0], waited, queue)
        else:
            observe.say(f"job {job_id}: the service has not told its state after {waited:.0f} s")


async def fetch(credentials: QuantumRuntimeCredentials, job: JobRef) -> JobResult:
    """Read the result; of a private job, store it before it is handed on."""
    client = credentials.get_client()
    grace = current_settings().result_grace_seconds
    private = job.private if job.private is not None else (await client.job(job.id)).private
    shelf = stored_results.shelf()
    if not private:
        result = await client.result(job, grace=grace, shelf=shelf)
        if result.file is None:  # a large one is not decoded for a picture
            observe.job_fetched(job.id, result)
        return await stored_results.share_if_persisted(result)
    kept = await private_results.read(job.id)
    if kept is not None:
        observe.say(f"job {job.id} is private and was read before: handing on the stored copy")
        return kept
    result = await client.result(job, grace=grace, shelf=shelf.for_only_copy())
    return await private_results.keep(result, memory_limit=shelf.memory_limit)


async def cancel(credentials: QuantumRuntimeCredentials, job: JobRef) -> Job:
    """Cancel, and tell what became of it."""
    client = credentials.get_client()
    done = await client.cancel(job.id)
    word = "was over already" if done.status in (JobStatus.COMPLETED, JobStatus.FAILED) else "is cancelled"
    observe.say(f"job {done.id} {word} (state {done.raw_status!r})")
    await observe.job_cancelled(done)
    follow_usage(client, done)
    return done
