"""One intent, at most one paid job: every branch, and how many POSTs it took."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.submission import Intent, submit_or_attach
from prefect_qruntime.client.transport.retrying import IN_FLIGHT
from prefect_qruntime.errors import (
    SEARCH_FIRST,
    BudgetExhausted,
    InvalidInput,
    JobCancelled,
    NotFound,
    QuantumRuntimeError,
    RateLimited,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_qruntime.models import Job, JobRef, JobStatus, SessionRef
from tests.support.virtual_clock import clock, run

SPEC = JobSpec("sampler", "backend_a")
LOST = ServiceUnavailable("no answer", advice=SEARCH_FIRST)


def key(generation: int) -> str:
    return f"qr-key:{generation}"


def made(job_id: str, generation: int = 0, status: JobStatus | None = JobStatus.QUEUED, **fields: Any) -> Job:
    return Job(id=job_id, status=status, tags=(key(generation), "qr-flow:f"), backend="backend_a", **fields)


class Service:
    """Takes jobs and shows them in lists, or fails to.

    Attributes:
        posts: Tags of each POST.
        answers: What the next POSTs do: `None` answers well, an error is raised; `(error, lag)` accepts the
            job, loses the answer, and shows the job in lists `lag` seconds later.
        before: How long a POST waits before it is sent.
        seconds: How long it takes then.
    """

    def __init__(self, *jobs: Job) -> None:
        self.listed: list[tuple[float, Job]] = [(0.0, job) for job in jobs]
        self.answers: list[Any] = []
        self.posts: list[tuple[str, ...]] = []
        self.specs: list[JobSpec] = []
        self.looks: list[str] = []
        self.list_trouble: list[QuantumRuntimeError] = []
        self.inputs: dict[str, Any] = {}
        self.reads: list[str] = []
        self.before = self.seconds = 0.0

    async def post_job(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef:
        self.posts.append(tags)
        self.specs.append(spec)
        number = len(self.posts)
        answer = self.answers.pop(0) if self.answers else None
        create = IN_FLIGHT.get()
        assert create is not None
        with create.waiting():
            await asyncio.sleep(self.before)
            with create.sending():
                await asyncio.sleep(self.seconds)
        if isinstance(answer, QuantumRuntimeError):
            raise answer
        lag = answer[1] if answer else 0.0
        self.listed.append((clock() + lag, Job(id=f"d{number}", status=JobStatus.QUEUED, tags=tags)))
        if answer:
            raise answer[0]
        return JobRef(id=f"d{number}", session=session)

    async def jobs_tagged(self, tag: str) -> list[Job]:
        self.looks.append(tag)
        if self.list_trouble:
            raise self.list_trouble.pop(0)
        return [job for moment, job in self.listed if moment <= clock()]

    async def job(self, job_id: str) -> Job:
        self.reads.append(job_id)
        for _, job in self.listed:
            if job.id == job_id:
                return job
        raise NotFound("no such job")

    async def job_input(self, job_id: str) -> dict[str, Any]:
        answer = self.inputs.get(job_id, self.job_params(SPEC))
        if isinstance(answer, QuantumRuntimeError):
            raise answer
        return answer

    def job_params(self, spec: JobSpec) -> dict[str, Any]:
        return {"pubs": [[pub.circuit] for pub in spec.pubs]}


def submit(service: Service, **options: Any) -> Any:
    """The handle or the error."""
    hooks = {name: options.pop(name) for name in ("before_post", "on_bought") if name in options}
    intent = Intent(options.pop("spec", SPEC), key, tags=("qr-flow:f",), **options)

    async def main() -> Any:
        try:
            return await submit_or_attach(service, intent, clock=clock, **hooks)
        except QuantumRuntimeError as error:
            return error

    return run(main())


def again(**options: Any) -> dict[str, Any]:
    """Options of a run that may have an earlier attempt behind it."""
    return {"search_until": 0.0, **options}


def test_a_first_attempt_buys_without_looking() -> None:
    service = Service()
    bought: list[JobRef] = []
    ref = submit(service, on_bought=bought.append)
    assert (ref.id, ref.attached, ref.submission_key, ref.tags) == ("d1", False, key(0), (key(0), "qr-flow:f"))
    assert service.posts == [(key(0), "qr-flow:f")]
    assert service.looks == []
    assert bought == [ref]


def test_lost_answer_found_at_once() -> None:
    service = Service()
    service.answers = [(LOST, 0.0)]
    ref = submit(service)
    assert (ref.id, ref.attached, len(service.posts)) == ("d1", True, 1)


def test_lost_answer_found_when_the_list_has_caught_up() -> None:
    service = Service()
    service.answers = [(LOST, 20.0)]
    ref = submit(service, grace=30.0)
    assert (ref.id, ref.attached, len(service.posts)) == ("d1", True, 1)
    assert 5 <= len(service.looks) <= 20


def test_lost_answer_of_a_job_that_was_not_accepted_is_sent_again_after_the_grace() -> None:
    service = Service()
    service.answers = [LOST]
    moments: list[float] = []

    async def before_post(key: str) -> None:
        moments.append(clock())

    ref = submit(service, grace=30.0, before_post=before_post)
    assert (ref.id, ref.attached, len(service.posts)) == ("d2", False, 2)
    assert moments == [0.0, 30.0]
    assert service.posts[0] == service.posts[1]


def test_lost_answers_without_end_stop() -> None:
    service = Service()
    service.answers = [LOST] * 9
    error = submit(service)
    assert isinstance(error, SubmissionUncertain)
    assert len(service.posts) == 3
    assert (error.submission_key, error.candidates) == (key(0), [])
    assert str(error.advice) == "search-first"
    assert key(0) in str(error)


@pytest.mark.parametrize("before", [[], [LOST]])
@pytest.mark.parametrize("accepted", [False, True])
def test_what_something_in_between_calls_too_large_is_looked_for_and_not_sent_again(
    before: list[QuantumRuntimeError], accepted: bool
) -> None:
    service = Service()
    error = InvalidInput("too large", solution="Split it.", status=413, advice=SEARCH_FIRST, sent=True)
    service.answers = [*before, (error, 3.0) if accepted else error]
    end = submit(service, grace=30.0)
    assert len(service.posts) == len(before) + 1
    assert len(service.looks) > 2
    if accepted:
        assert (end.id, end.attached) == (f"d{len(service.posts)}", True)
    elif before:  # an earlier one may have been accepted, and be listed later still
        assert (type(end), end.submission_key, str(end.advice)) == (SubmissionUncertain, key(0), "search-first")
    else:
        assert (type(end), end.solution, str(end.advice)) == (InvalidInput, "Split it.", "never")


@pytest.mark.parametrize("message", ["list down", "list down."])
def test_lost_answer_and_the_list_fails(message: str) -> None:
    service = Service()
    service.answers = [LOST]
    service.list_trouble = [ServiceUnavailable(message)]
    error = submit(service)
    assert isinstance(error, SubmissionUncertain)
    assert "list down. Nothing" in str(error)
    assert len(service.posts) == 1


def test_lost_answer_and_two_found() -> None:
    service = Service(made("x1"), made("x2"))
    service.answers = [LOST]
    error = submit(service)
    assert isinstance(error, SubmissionUncertain)
    assert error.candidates == ["x1", "x2"]
    assert "x1, x2" in str(error)
    assert len(service.posts) == 1


@pytest.mark.parametrize(
    ("fields", "options", "kept", "certain"),
    [
        ({}, {}, None, True),
        ({}, {"exact": False}, None, False),
        ({}, {}, {}, False),
        ({"private": True}, {"spec": replace(SPEC, private=True)}, None, False),
        ({}, {"spec": replace(SPEC, options={"x": ["y" * 5_000_000]}), "digest": "d"}, None, False),
    ],
    ids=("all", "transpiled", "hidden", "private", "large"),
)
def test_a_job_found_is_certain_only_if_all_of_it_was_compared(
    fields: dict[str, Any], options: dict[str, Any], kept: Any, certain: bool
) -> None:
    service = Service(made("x1", **fields))
    if kept is not None:
        service.inputs = {"x1": kept}
    ref = submit(service, **again(**options))
    assert (ref.id, ref.attached, ref.certain) == ("x1", True, certain)


def test_only_the_exact_tag_counts() -> None:
    near = Job(id="x", status=JobStatus.QUEUED, tags=("qr-key:00", "qr-flow:f", "my qr-key:0"))
    service = Service(near)
    service.answers = [LOST]
    ref = submit(service)
    assert (ref.id, len(service.posts)) == ("d2", 2)


@pytest.mark.parametrize("error", [InvalidInput("bad"), RateLimited("slow"), ServiceUnavailable("refused")])
def test_a_refusal_is_final_and_nothing_is_looked_for(error: QuantumRuntimeError) -> None:
    service = Service()
    service.answers = [error]
    assert submit(service) is error
    assert (len(service.posts), service.looks) == (1, [])


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.COMPLETED, None])
@pytest.mark.parametrize("renew", [True, False])
def test_a_rerun_attaches_to_what_lives_or_is_done(status: JobStatus | None, renew: bool) -> None:
    service = Service(made("x1", status=status))
    bought: list[JobRef] = []
    ref = submit(service, **again(renew_failed=lambda job: renew), on_bought=bought.append)
    assert (ref.id, ref.attached, ref.submission_key, ref.program_id) == ("x1", True, key(0), "sampler")
    assert (service.posts, bought, len(service.looks)) == ([], [], 1)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_rerun_without_leave_to_renew_attaches_to_what_failed(status: JobStatus) -> None:
    service = Service(made("x1", status=status))
    ref = submit(service, **again())
    assert (ref.id, ref.attached, service.posts) == ("x1", True, [])


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_a_rerun_with_leave_buys_the_next_generation(status: JobStatus) -> None:
    service = Service(made("x1", status=status))
    asked: list[Job] = []
    ref = submit(service, **again(renew_failed=lambda job: asked.append(job) or True))
    assert (ref.id, ref.attached, ref.submission_key) == ("d1", False, key(1))
    assert service.posts == [(key(1), "qr-flow:f")]
    assert [job.id for job in asked] == ["x1"]


def test_generations_are_walked_to_the_last() -> None:
    dead = [made(f"x{g}", g, JobStatus.FAILED) for g in range(3)]
    ref = submit(Service(*dead, made("x3", 3)), **again(renew_failed=lambda job: True))
    assert (ref.id, ref.attached, ref.submission_key) == ("x3", True, key(3))
    service = Service(*dead)
    ref = submit(service, **again(renew_failed=lambda job: True))
    assert (ref.id, ref.submission_key, len(service.posts)) == ("d1", key(3), 1)


def test_a_rerun_gives_the_list_time_to_catch_up() -> None:
    service = Service()
    service.listed = [(8.0, made("x1"))]
    ref = submit(service, search_until=10.0)
    assert (ref.id, ref.attached, service.posts) == ("x1", True, [])
    late = Service()
    late.listed = [(12.0, made("x1"))]
    assert submit(late, search_until=10.0).id == "d1"


def test_a_rerun_that_finds_two_buys_nothing() -> None:
    service = Service(made("x1"), made("x2"))
    assert isinstance(submit(service, **again()), SubmissionUncertain)
    assert service.posts == []


def test_a_rerun_that_cannot_look_buys_nothing() -> None:
    service = Service()
    service.list_trouble = [ServiceUnavailable("list down")]
    error = submit(service, **again())
    assert isinstance(error, ServiceUnavailable)
    assert service.posts == []


def test_the_budget_may_stop_each_post() -> None:
    service = Service()
    service.answers = [LOST]
    calls = 0

    async def before_post(key: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise BudgetExhausted("no more", solution="Raise the budget.")

    error = submit(service, before_post=before_post)
    assert isinstance(error, SubmissionUncertain), "the first request may have been accepted"
    assert isinstance(error.__cause__, BudgetExhausted)
    assert "no more" in error.message
    assert error.solution is not None
    assert key(0) in error.solution
    assert error.solution.endswith("Raise the budget.")
    assert len(service.posts) == 1


def test_a_cancellation_that_is_noticed_before_the_request_is_sent_again_stays_one() -> None:
    """It says itself what may live on, and what was sent is still searched for by the next caller."""
    service = Service()
    service.answers = [(LOST, 40.0)]
    told = JobCancelled("The flow run is being cancelled.")

    async def before_post(key: str) -> None:
        if service.posts:
            raise told

    async def main() -> tuple[Any, Any]:
        intent = Intent(SPEC, key, grace=30.0)
        with pytest.raises(JobCancelled) as caught:
            await submit_or_attach(service, intent, clock=clock, before_post=before_post)
        await asyncio.sleep(15.0)
        return caught.value, await submit_or_attach(service, intent, clock=clock)

    error, ref = run(main())
    assert error is told
    assert (ref.id, ref.attached, len(service.posts)) == ("d1", True, 1)


def test_what_is_sent_may_have_a_lower_limit_than_what_was_asked_for() -> None:
    service = Service()
    asked: list[str] = []

    async def before_post(key: str) -> JobSpec:
        asked.append(key)
        return replace(SPEC, max_execution_time=40)

    assert submit(service, before_post=before_post).id == "d1"
    assert asked == [key(0)]
    assert [spec.max_execution_time for spec in service.specs] == [40]


def test_an_attached_legacy_job_hands_on_the_session_it_opened() -> None:
    unbound = SessionRef(backend="backend_a", max_ttl=60, token="t")
    service = Service(made("x1", session_id="x1"))
    ref = submit(service, **again(session=unbound))
    assert ref.session is not None
    assert (ref.session.id, ref.session.max_ttl) == ("x1", 60)
    over = submit(Service(made("x1", status=JobStatus.COMPLETED, session_id="x1")), **again(session=unbound))
    assert over.session == SessionRef(id="x1", backend="backend_a")


def cancelled(service: Service, after: float, **options: Any) -> tuple[list[str], float]:
    """Cancel the submission `after` seconds. Returns (ids bought, seconds until it ended)."""
    bought: list[str] = []

    async def main() -> float:
        intent = Intent(SPEC, key, **options)
        work = submit_or_attach(service, intent, on_bought=lambda ref: bought.append(ref.id), clock=clock)
        task = asyncio.create_task(work)
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return clock()

    took = run(main())
    return bought, took


def test_cancelled_during_the_post_it_first_learns_what_was_bought() -> None:
    service = Service()
    service.seconds = 5.0
    assert cancelled(service, after=1.0) == (["d1"], 5.0)
    assert len(service.posts) == 1


@pytest.mark.parametrize("answer", [LOST, InvalidInput("bad")])
def test_cancelled_during_a_post_that_fails_it_sends_no_other(answer: QuantumRuntimeError) -> None:
    service = Service()
    service.seconds = 5.0
    service.answers = [answer]
    assert cancelled(service, after=1.0) == ([], 5.0)
    assert len(service.posts) == 1
    assert service.looks == []


def test_cancelled_during_a_post_without_end_it_goes_after_a_while() -> None:
    service = Service()
    service.seconds = 1e6
    assert cancelled(service, after=1.0) == ([], 11.0)


def test_what_was_withdrawn_before_it_was_sent_makes_no_doubt_for_the_next_caller() -> None:
    service = Service()
    service.before = 60.0  # for a token, or after a 429
    service.answers = [None, InvalidInput("bad")]

    async def main() -> QuantumRuntimeError:
        first = asyncio.create_task(submit_or_attach(service, Intent(SPEC, key), clock=clock))
        await asyncio.sleep(1.0)
        first.cancel()
        await asyncio.wait([first])
        service.before = 0.0
        with pytest.raises(QuantumRuntimeError) as caught:
            await submit_or_attach(service, Intent(SPEC, key), clock=clock)
        return caught.value

    assert type(run(main())) is InvalidInput
    assert service.looks == []


def test_cancelled_while_looking_it_sends_nothing() -> None:
    service = Service()
    service.answers = [LOST]
    assert cancelled(service, after=3.0, grace=30.0) == ([], 3.0)
    assert len(service.posts) == 1


def test_cancelled_twice_during_the_post_it_ends() -> None:
    service = Service()
    service.seconds = 5.0

    async def main() -> float:
        task = asyncio.create_task(submit_or_attach(service, Intent(SPEC, key), clock=clock))
        for _ in range(2):
            await asyncio.sleep(1.0)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return clock()

    assert run(main()) == 2.0


def test_two_intents_are_two_jobs() -> None:
    service = Service()
    keys: list[Callable[[int], str]] = [lambda g: f"qr-key:a{g}", lambda g: f"qr-key:b{g}"]

    async def main() -> list[JobRef]:
        return await asyncio.gather(*(submit_or_attach(service, Intent(SPEC, k), clock=clock) for k in keys))

    first, second = run(main())
    assert {first.id, second.id} == {"d1", "d2"}
