"""The rules of a submission, one by one: what a process remembers, what it compares, and when it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from prefect_qruntime.client import submission_core as core
from prefect_qruntime.client.inputs.spec import JobSpec, Pub
from prefect_qruntime.client.submission import History, Intent, submission_memory, submit_or_attach
from prefect_qruntime.client.submission_keys import Payload, SubmissionMemory
from prefect_qruntime.errors import (
    SEARCH_FIRST,
    InvalidInput,
    NotFound,
    QuantumRuntimeError,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_qruntime.models import Job, JobRef, JobStatus, SessionRef
from tests.support.virtual_clock import clock, run
from tests.unit.client.test_submission import LOST, SPEC, Service, key, made

UNREADABLE = ServiceUnavailable("accepted, but unreadable", status=200, advice=SEARCH_FIRST)
DOWN = ServiceUnavailable("it is down")


HOOKS = ("before_post", "on_bought", "key_history", "note_accepted")


async def ask(service: Service, **options: Any) -> Any:
    """The handle or the error."""
    hooks = {name: options.pop(name) for name in HOOKS if name in options}
    spec = options.pop("spec", SPEC)
    try:
        return await submit_or_attach(service, Intent(spec, key, **options), clock=clock, **hooks)
    except QuantumRuntimeError as error:
        return error


def several(service: Service, *callers: dict[str, Any]) -> list[Any]:
    async def main() -> list[Any]:
        return await asyncio.gather(*(ask(service, **options) for options in callers))

    return run(main())


def in_turn(service: Service, *callers: dict[str, Any] | Callable[[], Awaitable[None]]) -> list[Any]:
    async def main() -> list[Any]:
        ends = []
        for one in callers:
            if callable(one):
                await one()
            else:
                ends.append(await ask(service, **one))
        return ends

    return run(main())


def later(seconds: float) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.sleep(seconds)


def hidden(service: Service, lag: float = 1e6) -> Service:
    """The next POSTs are answered, and their jobs are listed late."""

    post = service.post_job

    async def post_job(spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef:
        ref = await post(spec, tags, session)
        moment, job = service.listed.pop()
        service.listed.append((moment + lag, job))
        return ref

    service.post_job = post_job  # type: ignore[method-assign]
    return service


# ---- what this process bought it knows ---------------------------------------------------------------------


@pytest.mark.parametrize("window", [{}, {"search_seconds": 5.0}, {"search_until": 0.0}], ids=str)
def test_equal_keys_at_once_are_one_job(window: dict[str, Any]) -> None:
    service = hidden(Service())
    service.seconds = 1.0
    refs = several(service, *[window] * 5)
    assert {ref.id for ref in refs} == {"d1"}
    assert sorted(ref.attached for ref in refs) == [False, True, True, True, True]
    assert len(service.posts) == 1


def test_equal_keys_in_turn_are_one_job_without_the_list() -> None:
    service = hidden(Service())
    refs = in_turn(service, {}, {"search_seconds": 5.0}, later(3.0), {"search_until": 0.0})
    assert [(ref.id, ref.attached) for ref in refs] == [("d1", False), ("d1", True), ("d1", True)]
    assert (len(service.posts), service.looks) == (1, [])


def test_what_was_found_is_remembered_too() -> None:
    service = Service(made("x1"))
    refs = in_turn(service, {"search_until": 0.0}, {"search_until": 0.0})
    assert [ref.id for ref in refs] == ["x1", "x1"]
    assert (service.looks, service.reads) == ([key(0)], ["x1"])


def test_after_a_refusal_the_next_caller_goes_on() -> None:
    service = Service()
    service.seconds = 1.0
    service.answers = [InvalidInput("bad")]
    first, *others = several(service, {}, {}, {})
    assert isinstance(first, InvalidInput)
    assert sorted((ref.id, ref.attached) for ref in others) == [("d2", False), ("d2", True)]


def test_after_a_stop_by_the_budget_the_next_caller_goes_on() -> None:
    service = Service()

    async def no_room(key: str) -> None:
        await asyncio.sleep(1.0)
        raise QuantumRuntimeError("no room")

    first, second = several(service, {"before_post": no_room}, {})
    assert str(first) == "no room."
    assert (second.id, len(service.posts)) == ("d1", 1)


def test_those_who_wait_learn_that_it_is_uncertain() -> None:
    service = Service()
    service.seconds = 1.0
    service.answers = [LOST]
    service.list_trouble = [DOWN]
    first, second, third = several(service, {}, {}, {})
    assert all(isinstance(end, SubmissionUncertain) for end in (first, second, third))
    assert second is not first
    assert (str(second), second.submission_key) == (str(first), key(0))
    assert len(service.posts) == 1


def test_a_later_caller_searches_from_the_last_request_on() -> None:
    service = Service()
    service.answers = [LOST, LOST, LOST]
    uncertain, ref = in_turn(service, {"grace": 4.0}, {"grace": 4.0})
    assert isinstance(uncertain, SubmissionUncertain)
    assert "3 answers were lost" in str(uncertain)
    assert (ref.id, ref.attached, len(service.posts)) == ("d4", False, 4)
    once = in_turn(fails_once(), {"attempts": 1, "grace": 4.0})
    assert "1 answer was lost" in str(once[0])


def fails_once() -> Service:
    service = Service()
    service.answers = [LOST]
    return service


@pytest.mark.parametrize("answer", [None, UNREADABLE, LOST])
def test_a_cancelled_buyer_leaves_its_request_to_the_others(answer: Any) -> None:
    service = Service()
    service.seconds = 5.0
    service.answers = [(answer, 3.0)] if answer is not None else []

    async def main() -> tuple[Any, float]:
        first = asyncio.create_task(ask(service))
        second = asyncio.create_task(ask(service))
        await asyncio.sleep(1.0)
        first.cancel()
        ref = await second
        with pytest.raises(asyncio.CancelledError):
            await first
        return ref, clock()

    ref, _ = run(main())
    assert (ref.id, ref.attached, len(service.posts)) == ("d1", True, 1)


def test_a_cancelled_buyer_whose_answer_never_comes_is_searched_for() -> None:
    service = Service()
    service.seconds = 1e6

    async def main() -> tuple[Any, float]:
        first = asyncio.create_task(ask(service))
        second = asyncio.create_task(ask(service))
        await asyncio.sleep(1.0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        service.seconds = 0.0
        return await second, clock()

    ref, ended = run(main())
    assert (ref.id, ref.attached, len(service.posts)) == ("d2", False, 2)
    assert ended == 11.0 + 30.0


def test_one_who_waits_may_go() -> None:
    service = Service()
    service.seconds = 5.0

    async def main() -> Any:
        first = asyncio.create_task(ask(service))
        second = asyncio.create_task(ask(service))
        await asyncio.sleep(1.0)
        second.cancel()
        return await first

    assert run(main()).id == "d1"


@pytest.mark.parametrize("scopes", [("a", "a"), ("a", "b")])
def test_two_instances_do_not_share_jobs(scopes: tuple[str, str]) -> None:
    service = Service()

    async def main() -> set[str]:
        ends = [await submit_or_attach(service, Intent(SPEC, key), scope=scope, clock=clock) for scope in scopes]
        return {end.id for end in ends}

    assert len(run(main())) == len(set(scopes))


def test_the_memory_is_bounded_and_keeps_what_is_under_way() -> None:
    memory = SubmissionMemory(keep=2)
    for number in range(5):
        memory.claim(number, "me").sent = 1.0
    assert len(memory) == 5
    for number in range(5):
        memory.release(number)
    assert len(memory) == 2
    assert memory.get(0) is None
    memory.forget()
    assert len(memory) == 0
    woken: list[int] = []
    memory.when_released("free", lambda: woken.append(1))
    assert woken == [1]


def test_a_key_that_says_nothing_is_not_kept() -> None:
    async def main() -> int:
        service = Service()
        service.answers = [InvalidInput("bad")]
        await ask(service)
        return len(submission_memory())

    assert run(main()) == 0


# ---- a job that is known -----------------------------------------------------------------------------------


@pytest.mark.parametrize("renews", [True, False])
def test_a_known_job_that_failed_is_bought_anew_only_if_asked_for(renews: bool) -> None:
    service = Service()

    async def dies() -> None:
        moment, job = service.listed.pop()
        service.listed.append((moment, job.model_copy(update={"status": JobStatus.FAILED})))

    first, second = in_turn(service, {}, dies, {"renew_failed": lambda job: renews})
    assert (second.id, second.attached) == (("d2", False) if renews else (first.id, True))


def test_a_known_job_that_cannot_be_read_is_attached_to() -> None:
    service = Service()

    async def job(job_id: str) -> Job:
        raise DOWN

    service.job = job  # type: ignore[method-assign]
    first, second = in_turn(service, {}, {"renew_failed": lambda job: True})
    assert (second.id, second.attached) == (first.id, True)


def test_a_known_job_that_does_not_show_yet_is_attached_to() -> None:
    service = Service()

    async def job(job_id: str) -> Job:
        raise NotFound("too new")

    service.job = job  # type: ignore[method-assign]
    first, second = in_turn(service, {}, later(29.0), {})
    assert (second.id, second.attached) == (first.id, True)


def test_a_known_job_that_is_gone_is_not_bought_again() -> None:
    service = Service()

    async def deleted() -> None:
        service.listed.clear()

    first, error = in_turn(service, {}, later(40.0), deleted, {})
    assert isinstance(error, SubmissionUncertain)
    assert (error.candidates, len(service.posts)) == ([first.id], 1)
    assert "another submission_key" in str(error)


def test_a_known_job_with_another_payload_is_not_handed_out() -> None:
    service = Service()
    other = JobSpec("sampler", "backend_a", options={"default_shots": 7})
    wider = JobSpec("sampler", "backend_a", pubs=(Pub("x"),))
    first, error, shape = in_turn(service, {}, {"spec": other}, {"spec": wider})
    assert first.id == "d1"
    assert "another payload" in str(error)
    assert "number of PUBs" in str(shape)
    assert len(service.posts) == 1


def test_a_large_payload_is_hashed_in_a_thread_and_a_transpiled_one_is_not() -> None:
    async def main() -> list[Any]:
        big = JobSpec("sampler", "backend_a", pubs=(Pub("x" * 100_000),))
        intents = [Intent(big, key, exact=False), Intent(SPEC, lambda g: "qr-key:other", digest="given")]
        return [await submit_or_attach(Service(), intent, clock=clock) for intent in intents]

    assert [ref.id for ref in run(main())] == ["d1", "d1"]


# ---- a 2xx is proof of acceptance --------------------------------------------------------------------------


def test_nothing_is_posted_after_an_unreadable_2xx() -> None:
    service = Service()
    service.answers = [(UNREADABLE, 1e6)]
    first, second = in_turn(service, {}, {"search_seconds": 5.0})
    for error in (first, second):
        assert isinstance(error, SubmissionUncertain)
        assert "accepted" in str(error)
        assert key(0) in str(error)
    assert len(service.posts) == 1


def test_an_unreadable_2xx_is_found_late() -> None:
    service = Service()
    service.answers = [(UNREADABLE, 40.0)]
    first, second = in_turn(service, {}, {})
    assert isinstance(first, SubmissionUncertain)
    assert (second.id, second.attached, len(service.posts)) == ("d1", True, 1)


def test_an_unreadable_2xx_and_the_list_fails() -> None:
    service = Service()
    service.answers = [(UNREADABLE, 0.0)]
    service.list_trouble = [DOWN]
    first, second = in_turn(service, {}, {})
    assert isinstance(first, SubmissionUncertain)
    assert "it is down" in str(first)
    assert (second.id, len(service.posts)) == ("d1", 1)


# ---- the search before the first POST ----------------------------------------------------------------------


def test_the_window_is_counted_from_each_callers_own_start() -> None:
    service = Service()
    service.listed = [(12.0, made("x1"))]
    (ref,) = in_turn(service, later(10.0), {"search_seconds": 3.0})
    assert (ref.id, ref.attached) == ("x1", True)
    late = Service()
    late.listed = [(12.0, made("x1"))]
    assert in_turn(late, {"search_seconds": 3.0, "search_until": 4.0})[0].id == "d1"


@pytest.mark.parametrize("certain", [True, False])
def test_certainty_that_the_key_was_never_sent_cuts_the_search(certain: bool) -> None:
    service = Service()

    async def main() -> float:
        ref = await ask(service, search_seconds=30.0, key_history=heard(History(never_sent=certain)))
        assert (ref.id, ref.attached) == ("d1", False)
        return clock()

    assert run(main()) == (0.0 if certain else 30.0)
    assert (len(service.looks) == 1) is certain


def heard(known: History | Exception) -> Callable[[str], Awaitable[History]]:
    async def key_history(key: str) -> History:
        if isinstance(known, Exception):
            raise known
        return known

    return key_history


def test_no_answer_is_no_certainty() -> None:
    service = Service()

    async def main() -> float:
        await ask(service, search_seconds=30.0, key_history=heard(RuntimeError("Prefect is away")))
        return clock()

    assert run(main()) == 30.0


NOTED = {"search_seconds": 30.0, "key_history": heard(History(accepted=True, job_id="x1"))}


def test_what_another_process_noted_is_attached_to_without_the_list() -> None:
    service = Service()
    service.listed = [(1e6, made("x1"))]
    (ref,) = in_turn(service, NOTED)
    assert (ref.id, ref.attached, service.looks, service.posts) == ("x1", True, [], [])


def test_what_another_process_noted_is_compared_too() -> None:
    service = Service(made("x1"))
    service.inputs = {"x1": {"pubs": [["another"]]}}
    (error,) = in_turn(service, NOTED)
    assert isinstance(error, SubmissionUncertain)
    assert service.posts == []


def test_what_another_process_noted_and_is_gone_is_not_bought_again() -> None:
    service = Service()
    (error,) = in_turn(service, NOTED)
    assert isinstance(error, SubmissionUncertain)
    assert "another submission_key" in str(error)
    assert service.posts == []


def test_what_another_process_noted_and_cannot_be_read_is_an_outage() -> None:
    service = Service()

    async def job(job_id: str) -> Job:
        raise DOWN

    service.job = job  # type: ignore[method-assign]
    assert in_turn(service, NOTED) == [DOWN]
    assert service.posts == []


def test_a_key_whose_tag_a_user_took_off_the_job_is_free() -> None:
    service = Service(made("x1").model_copy(update={"tags": ("qr-flow:f",)}))
    (ref,) = in_turn(service, NOTED)
    assert (ref.attached, len(service.posts)) == (False, 1)


def test_an_acceptance_that_another_process_could_not_read_stops_the_purchase() -> None:
    service = Service()
    (error,) = in_turn(service, {"search_seconds": 30.0, "key_history": heard(History(accepted=True))})
    assert isinstance(error, SubmissionUncertain)
    assert service.posts == []


@pytest.mark.parametrize("answer", [None, (UNREADABLE, 0.0), InvalidInput("bad"), (LOST, 0.0)], ids=repr)
@pytest.mark.parametrize("fails", [True, False])
def test_each_2xx_is_noted(answer: Any, fails: bool) -> None:
    service = Service()
    service.answers = [answer]
    noted: list[tuple[str, str | None]] = []

    async def note_accepted(key: str, job_id: str | None) -> None:
        noted.append((key, job_id))
        if fails:
            raise RuntimeError("Prefect is away")

    (end,) = in_turn(service, {"note_accepted": note_accepted})
    told = {"None": [(key(0), "d1")], repr((UNREADABLE, 0.0)): [(key(0), None)]}
    assert noted == told.get(repr(answer), [])
    assert isinstance(end, JobRef | InvalidInput)


def test_a_list_counts_for_when_it_was_asked_for() -> None:
    service = Service()
    service.listed = [(9.5, made("x1"))]
    listed = service.jobs_tagged

    async def slowly(tag: str) -> list[Job]:
        jobs = await listed(tag)
        await asyncio.sleep(3.0)
        return jobs

    service.jobs_tagged = slowly  # type: ignore[method-assign]
    assert in_turn(service, {"search_until": 10.0})[0].id == "x1"


# ---- is it what was asked for? -----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [{"search_until": 0.0}, {}], ids=str)
def test_a_copied_tag_is_not_attached_to(window: dict[str, Any]) -> None:
    service = Service(made("x1"))
    service.inputs = {"x1": {"pubs": [["another"]]}}
    service.answers = [LOST]
    (error,) = in_turn(service, window)
    assert isinstance(error, SubmissionUncertain)
    assert (error.candidates, error.job_id) == (["x1"], "x1")
    assert "1 PUB, not 0" in str(error)
    assert "replace_tags" in str(error)


@pytest.mark.parametrize(
    ("fields", "words"), [({"program_id": "estimator"}, "'estimator'"), ({"private": True}, "private")], ids=str
)
def test_what_the_job_itself_tells_is_compared_first(fields: dict[str, Any], words: str) -> None:
    service = Service(made("x1", **fields))
    service.inputs = {"x1": AssertionError("not asked for")}
    (error,) = in_turn(service, {"search_until": 0.0})
    assert words in str(error)


def test_a_job_that_is_listed_before_it_can_be_read() -> None:
    service = Service(made("x1"))
    service.inputs = {"x1": NotFound("too new")}

    async def main() -> Any:
        asyncio.get_running_loop().call_later(5.0, service.inputs.clear)
        return await ask(service, search_until=0.0)

    assert run(main()).id == "x1"


def test_a_job_that_is_listed_and_can_never_be_read() -> None:
    service = Service(made("x1"))
    service.inputs = {"x1": NotFound("never")}
    (error,) = in_turn(service, {"search_until": 0.0, "grace": 4.0})
    assert isinstance(error, SubmissionUncertain)
    assert (error.candidates, service.posts) == (["x1"], [])


def test_a_job_that_was_listed_once_and_vanishes_is_not_bought_again() -> None:
    service = Service(made("x1"))
    service.inputs = {"x1": NotFound("too new")}

    async def main() -> Any:
        asyncio.get_running_loop().call_later(2.0, service.listed.clear)
        return await ask(service, search_until=0.0, grace=4.0)

    assert isinstance(run(main()), SubmissionUncertain)
    assert service.posts == []


@pytest.mark.parametrize(("window", "kind"), [({"search_until": 0.0}, ServiceUnavailable), ({}, SubmissionUncertain)])
def test_a_job_that_cannot_be_compared_is_not_attached_to(window: dict[str, Any], kind: type[Exception]) -> None:
    service = Service(made("x1"))
    service.inputs = {"x1": DOWN}
    service.answers = [LOST]
    (error,) = in_turn(service, window)
    assert type(error) is kind
    assert "it is down" in str(error)


def test_a_payload_that_is_too_large_is_not_read_back() -> None:
    big = JobSpec("sampler", "backend_a", pubs=(Pub("x" * 5_000_000),))
    service = Service(made("x1"))
    service.inputs = {"x1": AssertionError("not asked for")}
    (ref,) = in_turn(service, {"search_until": 0.0, "spec": big, "digest": "given"})
    assert ref.id == "x1"


# ---- the session -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["s1", None])
def test_an_attached_job_names_the_session_it_is_in(found: str | None) -> None:
    wanted = SessionRef(id="s2", mode="batch", max_ttl=60)
    service = Service(made("x1", session_id=found))
    ref = in_turn(service, {"search_until": 0.0, "session": wanted})[0]
    assert ref.session == (SessionRef(id="s1", backend="backend_a") if found else None)


def test_an_attached_job_of_the_same_session_keeps_what_is_known_of_it() -> None:
    wanted = SessionRef(id="s1", mode="batch", max_ttl=60)
    service = Service(made("x1", session_id="s1"))
    assert in_turn(service, {"search_until": 0.0, "session": wanted})[0].session == wanted


def test_another_callers_job_keeps_its_session() -> None:
    service = Service()
    service.seconds = 1.0
    wanted = [SessionRef(id="s1"), SessionRef(id="s2")]
    refs = several(service, *({"session": session} for session in wanted))
    assert [ref.session.id for ref in refs] == ["s1", "s1"]


# ---- events that come late ---------------------------------------------------------------------------------


def machine(memory: SubmissionMemory, owner: str, **options: Any) -> core.Submission:
    return core.Submission(core.Ask(key, payload=Payload(), **options), memory, owner)


def test_an_answer_after_its_caller_is_gone_still_counts() -> None:
    memory = SubmissionMemory()
    first, second = machine(memory, "a"), machine(memory, "b")
    assert first.start(0.0) == core.Admit(key(0))
    assert first.admitted(0.0) == core.Post(key(0))
    first.abandoned(1.0)
    assert second.start(1.0) == core.Look(key(0))
    assert first.posted(2.0, JobRef(id="d1")) == core.Bought(JobRef(id="d1"))
    second.looked = second.until
    assert second.listed(40.0, []) == core.Attach(key(0), JobRef(id="d1"), None)
    assert memory.get(("", key(0))).owner is None  # type: ignore[union-attr]


def test_a_late_proof_stops_a_caller_that_waits_to_be_admitted() -> None:
    memory = SubmissionMemory()
    first, second = machine(memory, "a"), machine(memory, "b")
    first.start(0.0)
    first.admitted(0.0)
    first.abandoned(1.0)
    second.start(1.0)
    second.looked = second.until
    assert second.listed(40.0, []) == core.Admit(key(0))
    first.unreadable(41.0)
    assert second.admitted(42.0) == core.Look(key(0))
    assert second.doubt == "accepted"


def test_a_late_refusal_changes_nothing() -> None:
    memory = SubmissionMemory()
    first, second = machine(memory, "a"), machine(memory, "b")
    first.start(0.0)
    first.admitted(0.0)
    first.abandoned(1.0)
    second.start(1.0)
    first.refused(2.0, InvalidInput("bad"))
    assert memory.get(("", key(0))).owner == "b"  # type: ignore[union-attr]


def test_what_was_forgotten_meanwhile_is_looked_for() -> None:
    for event in (lambda m: m.read_failed(1.0), lambda m: m.read_missing(1.0)):
        memory = SubmissionMemory()
        memory.note(("", key(0))).ref = JobRef(id="d1")
        one = machine(memory, "a", search_until=0.0)
        assert one.start(0.0) == core.Read("d1")
        memory.forget()
        assert event(one) == core.Look(key(0))
    memory = SubmissionMemory()
    one = machine(memory, "b")
    memory.note(("", key(0))).ref = JobRef(id="d1")
    assert one.start(0.0) == core.Read("d1")
    memory.forget()
    assert one.read(0.0, made("d1")) == core.Attach(key(0), made("d1").ref(), made("d1"))


def test_two_who_find_a_known_job_gone_look_one_after_the_other() -> None:
    memory = SubmissionMemory()
    record = memory.note(("", key(0)))
    record.ref, record.accepted = JobRef(id="d1"), 0.0
    first, second = machine(memory, "a"), machine(memory, "b")
    assert first.start(100.0) == second.start(100.0) == core.Read("d1")
    assert first.read_missing(100.0) == core.Look(key(0))
    assert second.read_missing(100.0) == core.AwaitOther(key(0))
