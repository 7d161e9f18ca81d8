"""Submit a job, or attach to the one that the same call submitted before: the tasks and their bodies.

Which of several equal calls a submission is belongs to its key. Calls that run in this process are counted when
they run; but with `.submit` and `.map` they may run in other processes (process pool, Dask, Ray), which cannot see
each other's count. So those get their number here, in the flow's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, Unpack

from prefect import State, Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import BaseAnnotation, unmapped
from prefect.utilities.collections import isiterable
from prefect.utilities.engine import resolve_inputs_sync

from prefect_qruntime import run_context
from prefect_qruntime.admission import policy
from prefect_qruntime.admission.budget import as_budget
from prefect_qruntime.admission.guard import admission_guard
from prefect_qruntime.admission.locks import (
    key_history,
    mark_accepted,
    mark_sent,
    marks_and_notes,
    noted_before,
    noted_by_earlier_attempts,
    submission_lock,
)
from prefect_qruntime.cancellation import (
    cancels_jobs,
    ends_if_cancelled,
    ends_with_runs_around,
    known_policy,
    note_owner,
)
from prefect_qruntime.client import QuantumRuntimeClient, submission_keys
from prefect_qruntime.client.inputs.spec import JobSpec, input_notices
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.programs.make import on_executor, program_is_gone, route_notices
from prefect_qruntime.client.submission import History, Intent
from prefect_qruntime.credentials import QuantumRuntimeCredentials, block_name
from prefect_qruntime.errors import InvalidInput, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef, is_mock
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.circuit_page import show_circuits
from prefect_qruntime.observability.telemetry import trace_job
from prefect_qruntime.prefect_api import clock_offset, in_run, lineage
from prefect_qruntime.redact import shown
from prefect_qruntime.run_context import current_run
from prefect_qruntime.settings import current_settings
from prefect_qruntime.tasks import session_notes
from prefect_qruntime.tasks.backends import check_online, say_if_held
from prefect_qruntime.tasks.definitions import (
    InFlowTask,
    Submission,
    UndeferredTask,
    as_session,
    backend_name,
    blocking,
    check_depth,
    check_mapped,
    creates,
    digest_fields,
    given_only,
    in_flow,
    plan_submission,
    spec_fields,
    spelled_out,
)
from prefect_qruntime.tasks.sessions import bind, check_not_left, first_through, note_lost, note_refused, note_session

__all__ = ["asubmit_job", "asubmit_numbered", "submit_job", "submit_numbered"]

TaskT = TypeVar("TaskT", bound=Task[..., Any])

_NAMES = ("submit job", "submit {program_id} → {backend}")
_BY_ORDER = 1_000_000
_OF_PREFECT = ("return_state", "wait_for", "deferred")


@ends_with_runs_around
async def _submit(
    credentials: QuantumRuntimeCredentials,
    pubs: Any,
    submission: Submission,
    *,
    call_index: int | None = None,
    replaces: JobRef | None = None,
    by_route: bool = False,
) -> JobRef:
    """Submit or attach; the job is recorded in Prefect before this returns. Runs on the network loop.

    Args:
        credentials: The credentials block.
        pubs: The PUBs.
        submission: The other parameters.
        call_index: Which of several equal calls this is, if the flow's process counted it. With a negative one it
            is counted here, apart from the calls with another index.
        replaces: The failed job of this same submission that a new one is wanted for: the next generation of its
            key is submitted or attached to.
        by_route: Whether the route is part of the key, so that the same work is submitted once on each.
    """
    budget, session = as_budget(submission.get("budget")), as_session(submission.get("session"))
    submission_key = submission.get("submission_key")
    client, block = credentials.get_client(), block_name(credentials)
    where = await current_run()
    runs = await lineage() if where.flow_run_id is not None else ()
    on_cancel = known_policy() if runs else None  # at once, while Prefect shows the flows around
    # Before the plan, which may ask the service. The guard checks again before each POST, as the policy may change.
    await policy.admit(client.connection, where, block, [_asked(submission)])
    plan = await plan_submission(credentials, pubs, submission)
    settings = current_settings()
    spec = plan.spec
    digest = f"{plan.digest}/{spec.route}" if by_route else plan.digest
    if spec.dry_run and session is not None:
        notifications.log_to_run("A dry run uses no QPU, so this job does not run in the session.")
        session = None
    for notice in (*route_notices(spec), *input_notices(spec)):
        notifications.log_to_run(notice, level=logging.WARNING)
    for doubt in spec.doubts:
        notifications.log_to_run(f"{doubt} The same work, written again in another process, may count as new work.")
    if submission_key is not None:
        identity, number = submission_keys.explicit_identity(submission_key), 0
    else:
        identity = where.identity
        if call_index is not None and call_index < 0:
            number = (1 - call_index) * _BY_ORDER + run_context.call_index(where, f"{digest} {call_index}")
        else:
            number = 0 if replaces else run_context.call_index(where, digest) if call_index is None else call_index
    first = 0
    if replaces is not None:
        submitted_so_far = 1 if submission_key is not None else run_context.submitted_so_far(where, digest)
        # Outside flows each call is a run of its own, with a key of its own, unless a task of the user's is around it.
        if submitted_so_far or where.flow_run_id is not None:
            number, first = submission_keys.next_generation(
                replaces, client.connection.crn, identity, digest, submitted_so_far=submitted_so_far
            )
    flow_tag = submission_keys.flow_tag(where.flow_run_id) if where.flow_run_id else None

    had: set[str] = set()  # of the jobs with the key: those that earlier attempts of this flow run had, or may have had

    async def key_history_of_run(tag: str) -> History:
        known = await key_history(tag)
        if known.job_id is not None:
            had.add(known.job_id)
            if not await noted_before(where, tag, known.job_id):
                had.discard(known.job_id)
        return known

    def renew_failed(job: Job) -> bool:
        # A failed job that another run submitted under an explicit key is the answer if this run had it while it lived;
        # a later run wants a new one.
        anew = where.may_resubmit(
            job, service_ahead=client.known_clock_skew() or 0.0, prefect_ahead=clock_offset() or 0.0
        )
        later = flow_tag is not None and flow_tag not in job.tags
        return anew or (later and job.id not in had and not run_context.has_had(where, job.id))

    def key_tag(generation: int) -> str:
        return submission_keys.key_tag(client.connection.crn, identity, digest, index=number, generation=generation)

    def later_tag(generation: int) -> str:
        return key_tag(first + generation)

    known: list[str] = []
    lost: set[str] = set()  # keys of what was sent and is not known to be accepted or refused
    checked: set[str] = set()
    # Other processes may submit with an explicit key; and the engine of the flow's tasks may run this call once more in
    # another process, which knows nothing of this one.
    shared = submission_key is not None or (call_index is not None and run_context.may_run_twice())
    marked = shared and in_run()  # as for the lock: outside a run no Prefect may be configured
    alone = submission_lock(key_tag(0)) if shared else contextlib.nullcontext()
    history = noted_by_earlier_attempts(where)
    if marked:
        history = key_history_of_run if submission_key is not None else marks_and_notes(history)
    async with (
        cancels_jobs(client, known, lost=lost),
        ends_if_cancelled(client, where=where, lost=lost) if runs else contextlib.nullcontext() as watch,
        first_through(credentials, session) as usable,
        alone as lock,
    ):
        if watch is not None and where.ending:  # a job attached to would live on, if nothing waits for it
            await watch.check()
        grace = settings.submission_grace_seconds
        intent = Intent(
            spec=spec,
            key_tag=later_tag,
            tags=((flow_tag,) if flow_tag else ()) + spec.tags,
            session=usable,
            # Earlier attempts of this run ended before this process began; another process may have used an
            # explicit key a moment before the lock was free.
            search_until=where.touched + grace if where.repeated else None,
            search_seconds=grace if shared else None,
            renew_failed=renew_failed,
            grace=grace,
            digest=plan.digest,
            exact=not plan.transpiled,
        )
        async with admission_guard(client, spec, where, budget, usable) as passing:
            passing.key_lock, passing.block = lock, block
            passing.still_wanted = watch.check if watch is not None else None

            def bought(new: JobRef) -> None:
                known.append(new.id)
                lost.clear()
                note_owner(client, new.id, runs)
                run_context.note_job(where, new)
                if usable is not None and not new.attached:  # at once: the caller may be gone when this returns
                    bind(usable, new)
                passing.bought(new)

            def is_lost(key: str) -> None:
                lost.add(key)
                note_lost(usable, key)

            async def before_post(key: str) -> JobSpec | None:
                if watch is not None:
                    watch.arm()
                # Not earlier, because an earlier job is attached to; and once, before anything can be accepted.
                wanted = submission.get("require_online", False) and not submission.get("dry_run", False)
                if wanted and key not in checked:
                    await check_online(client, spec.backend)
                    checked.add(key)
                if marked:
                    await mark_sent(key)
                if usable is not None and usable.id is None:
                    await session_notes.note_first_job(usable.token, key)
                allowed = await passing.before_post(key)
                if usable is not None:
                    check_not_left(usable)
                if watch is not None:
                    watch.arm(False)  # what is sent is waited for, and then recorded
                return allowed

            async def submit(intent: Intent) -> JobRef:
                try:
                    ref = await client.submit(
                        intent,
                        before_post=before_post,
                        on_bought=bought,
                        on_lost=is_lost,
                        key_history=history,
                        note_accepted=mark_accepted if marked else None,
                    )
                except InvalidInput:  # in doubt it is `SubmissionUncertain`
                    note_refused(usable, lost)
                    lost.clear()
                    raise
                if watch is not None:
                    watch.arm(False)
                return ref

            try:
                ref = await submit(intent)
            except QuantumRuntimeError as error:
                # A refusal: nothing was accepted. The route is not part of the key.
                if not (spec.may_turn and program_is_gone(error, spec.program_id)):
                    if spec.dry_run and isinstance(error, NotFound):
                        raise _no_mock_backend(error, spec) from error
                    raise
                notifications.log_to_run(f"{error} The PUBs take the executor instead.", level=logging.WARNING)
                passing.spec = await asyncio.to_thread(on_executor, spec)
                ref = await submit(replace(intent, spec=passing.spec))
            bought(ref)
            await passing.in_session(ref)
            # Before the guard waits for the service to list the job: it must be found from now on.
            if usable is not None and usable.id is None and ref.session is not None and await _takes_jobs(client, ref):
                bind(usable, ref)
                await note_session(credentials, usable.token, ref.session, where)
                notifications.session_event("opened", ref.session, max_ttl=ref.session.max_ttl)
            ref = ref.model_copy(update={"payload_digest": plan.digest, "certain": ref.certain and not spec.doubts})
            await notifications.job_submitted(
                ref,
                block=block,
                instance=client.connection.instance,
                flow_run_id=where.flow_run_id,
                deployment_id=where.deployment_id,
                session=usable,
                busy_seconds=plan.busy_seconds,
                on_cancel=on_cancel,
            )
            if not ref.attached:
                say_if_held(client, ref)
                if not spec.private:
                    show_circuits(client, ref.id, spec)
    trace_job(ref)
    return ref


def _asked(submission: Submission) -> policy.Asked:
    """The parameters of a submission that its arguments show, for the policy."""
    limit = submission.get("max_execution_time")
    return policy.Asked(
        backend_name(submission["backend"]),
        program if isinstance(program := submission.get("program_id", "sampler"), str) else shown(program),
        limit if isinstance(limit, int) else None,
    )


def _no_mock_backend(error: NotFound, spec: JobSpec) -> NotFound:
    fields = {**error.fields, "solution": "Nothing was submitted. Leave dry_run out, or choose another backend."}
    return NotFound(f"A dry run needs backend {spec.backend}, which the service refused: {error.message}", **fields)


async def _takes_jobs(client: QuantumRuntimeClient, ref: JobRef) -> bool:
    """Whether the session that a first job opened accepts more jobs.

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


class SubmitTask(InFlowTask[..., Any]):
    """A task whose `.submit` and `.map` give each call its number among equal ones.

    The number travels as a parameter of another function, `numbered_fn`, so that users do not see it in this task's
    signature.
    """

    numbered_fn: Callable[..., Any]

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.submit`."""
        bound, of_prefect = self._bind(args, kwargs)
        return self._numbered().submit(**bound, call_index=self._number(bound), **of_prefect)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        """As `Task.map`."""
        check_mapped(self, args, kwargs)
        bound, of_prefect = self._bind(args, kwargs)
        # Read twice, here and by Prefect: a generator would be empty the second time.
        bound = {name: list(value) if isinstance(value, Iterator) else value for name, value in bound.items()}
        return self._numbered().map(**bound, call_index=self._numbers(bound), **of_prefect)

    def with_options(self, *args: Any, **kwargs: Any) -> SubmitTask:
        """As `Task.with_options`; Prefect would return a plain task."""
        return _as_submit_task(super().with_options(*args, **kwargs), self.numbered_fn)

    def _numbered(self) -> Task[..., Any]:
        """This task, with all options and hooks that it was given, around the function that takes the number."""
        twin: Any = copy.copy(self)
        twin.__class__, twin.fn = UndeferredTask, self.numbered_fn  # `_bind` has checked the depth
        return twin  # type: ignore[no-any-return]

    def _bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The call's own arguments by name, and those that are for Prefect."""
        check_depth(self, args, kwargs)
        of_prefect = {name: kwargs[name] for name in _OF_PREFECT if name in kwargs}
        plain = {name: value for name, value in kwargs.items() if name not in of_prefect}
        return dict(inspect.signature(self.fn).bind_partial(*args, **plain).arguments), of_prefect

    def _number(self, arguments: dict[str, Any]) -> int | None:
        """The call's number, or None outside a flow run, where each call is its own anyway."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None or context.detached:
            return None
        arguments = {name: _bare(value) for name, value in arguments.items()}
        # Only the digest is needed, and the route is not part of it.
        fields: dict[str, Any] = digest_fields(spec_fields(arguments))  # type: ignore[arg-type]
        backend = getattr(fields.get("backend"), "name", fields.get("backend"))
        if not (isinstance(backend, str) and is_mock(backend)):  # which is not part of the digest, while the dry run is
            fields["backend"] = "any"
        fields.pop("tags", None)
        where = network_loop().run(current_run())
        if pending := [*_pending(arguments.get("pubs")), *_pending(fields)]:
            # The payload comes from another task. In this process it is counted when it is there: the order in which
            # results arrive may be another one the next time. In another process it cannot be. Calls with the same
            # task's result, for instance on several backends, are counted apart: threads run them in any order.
            if isinstance(context.task_runner, ThreadPoolTaskRunner):
                return -run_context.call_index(where, f"pending {','.join(pending)}") or None
            return _BY_ORDER + run_context.call_index(where, "unknown payload")
        try:
            digest = make_spec(arguments.get("pubs"), **fields).digest()
        except InvalidInput:
            return None  # the task itself reports the error
        return run_context.call_index(where, digest)

    def _numbers(self, arguments: dict[str, Any]) -> Any:
        """A number for each mapped call, by Prefect's own rules of mapping."""
        # As Prefect does: it maps over what a future holds, and over what an annotation other than `unmapped` does.
        arguments = resolve_inputs_sync(arguments, max_depth=0)
        mapped = {
            name: list(_bare(value))
            for name, value in arguments.items()
            if not isinstance(value, unmapped) and isiterable(_bare(value))
        }
        lengths = {name: len(value) for name, value in mapped.items()}
        length = max(lengths.values(), default=0)
        if length == 0:
            return unmapped(None)
        if len(set(lengths.values())) > 1:  # Prefect's own error would name the numbers as well
            raise InvalidInput(
                "mapped arguments must have equal lengths, not "
                f"{', '.join(f'{name}: {number}' for name, number in lengths.items())}. Write `unmapped(...)` around "
                "one that is the same for all calls, after `from prefect import unmapped`",
                field=next(name for name in lengths if lengths[name] != next(iter(lengths.values()))),
            )
        fixed = {name: value for name, value in arguments.items() if name not in mapped}
        return [self._number({**fixed, **{name: value[i] for name, value in mapped.items()}}) for i in range(length)]


def _bare(value: Any) -> Any:
    """The value that Prefect hands to the task for an annotated one."""
    return value.unwrap() if isinstance(value, BaseAnnotation) else value


def _pending(value: Any) -> Iterator[str]:
    """Name the task runs whose results Prefect puts into a value when the call runs."""
    if isinstance(value, State):
        yield str(value.state_details.task_run_id or value.id)
    elif isinstance(value, PrefectFuture):
        yield str(getattr(value, "task_run_id", id(value)))
    elif isinstance(value, dict | list | tuple | set):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _pending(_bare(item))


def _as_submit_task(plain: Task[..., Any], numbered_fn: Callable[..., Any]) -> SubmitTask:
    changed: Any = plain
    changed.__class__, changed.numbered_fn = SubmitTask, numbered_fn
    return changed  # type: ignore[no-any-return]


def _counting(numbered: Task[..., Any]) -> Callable[[TaskT], TaskT]:
    """Make a task number its calls through the function of its twin with the library's own parameters."""

    def decorate(plain: TaskT) -> TaskT:
        _as_submit_task(plain, numbered.fn)
        numbered.fn.__name__ = plain.fn.__name__  # in Prefect's errors about a call
        return plain

    return decorate


@creates(*_NAMES)
@spelled_out
async def _asubmit_numbered(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    *,
    call_index: int | None = None,
    replaces: JobRef | None = None,
    by_route: bool = False,
    **submission: Unpack[Submission],
) -> JobRef:
    return await _submit(credentials, pubs, submission, call_index=call_index, replaces=replaces, by_route=by_route)


_submit_numbered = blocking(_asubmit_numbered)

asubmit_numbered = given_only(_asubmit_numbered)
"""As `asubmit_job`, with the parameters that only this library sets. It is called only, not submitted or mapped."""

submit_numbered = given_only(_submit_numbered)
"""As `asubmit_numbered`, for sync flows."""


@_counting(_asubmit_numbered)
@in_flow
@creates(*_NAMES)
@spelled_out
async def asubmit_job(
    credentials: QuantumRuntimeCredentials,
    pubs: Any = None,
    **submission: Unpack[Submission],
) -> JobRef:
    """Submit one job, or attach to the one that this same call submitted before. Creates at most one job.

    Run again (flow retry, restart after a crash, resume), it finds its job by the submission key
    that it left as a tag: a live one is attached to, a completed one too, and a failed or cancelled
    one is submitted again only when the flow was retried. Two equal calls in one flow run are two jobs.

    Args:
        credentials: The credentials block.
        pubs: PUBs: OpenQASM 2/3 text, or `(circuit, parameters, shots)` for the sampler,
            `(circuit, observables, parameters, precision)` for the estimator.
        **submission: Backend, program, shots, limits and more: see `Submission`.

    Returns:
        The job's handle.

    Raises:
        InvalidInput: A field is wrong; it is named and nothing was sent.
        UsageLimitReached: The instance has no QPU time left.
        BackendOffline: The backend is paused or offline, and `require_online` is set; nothing was sent.
        BudgetExhausted: The budget has no room for the job; nothing was sent.
        JobCancelled: The flow run is being cancelled; nothing was sent.
        SubmissionUncertain: It is not known whether a job was accepted; nothing more was sent.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, fetch_results, submit_job, wait_for_completion

        @flow
        def one_job(credentials_block: str, circuit: str, backend: str) -> dict[str, int]:
            credentials = QuantumRuntimeCredentials.load(credentials_block)
            job = submit_job(credentials, [circuit], backend=backend, shots=1000)
            wait_for_completion(credentials, job)
            return fetch_results(credentials, job).counts()
        ```
    """
    return await _submit(credentials, pubs, submission)


submit_job = _counting(_submit_numbered)(blocking(asubmit_job))
"""As `asubmit_job`, for sync flows."""
