"""Sessions: none lost after a lost answer, none taken from somebody else, closed as asked."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client.session_core import says_nothing_about_jobs
from prefect_qruntime.client.sessions import close_session, open_session
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.errors import (
    SEARCH_FIRST,
    InvalidInput,
    JobFailed,
    JobTimeout,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    ServiceUnavailable,
    SubmissionUncertain,
)
from prefect_qruntime.models import Job, JobStatus, Session, SessionRef
from tests.support.mock_client import TOKEN, connection
from tests.support.virtual_clock import clock, run

LOST = ServiceUnavailable("no answer", advice=SEARCH_FIRST)


class Service:
    """Holds sessions; `answers` says what the next POSTs do: an error, or `(error, lag)` for a lost answer."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.visible: dict[str, float] = {}
        self.answers: list[Any] = []
        self.posts = 0
        self.seconds = 0.0
        self.list_trouble: QuantumRuntimeError | None = None
        self.pending: list[Job] = []
        self.unfinished: dict[str, JobStatus | None] = {}
        self.closing = 0.0
        self.calls: list[str] = []
        self.filters: dict[str, Any] = {}
        self.tokens = TokenSource(connection(), httpx.AsyncClient(), clock=clock)

    def add(self, session_id: str, lag: float = 0.0, **fields: Any) -> None:
        fields = {"backend": "b", "mode": "dedicated", "state": "open", **fields}
        self.sessions[session_id] = Session(id=session_id, **fields)
        self.visible[session_id] = clock() + lag

    async def post_session(self, backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
        self.posts += 1
        session_id = f"s{self.posts}"
        answer = self.answers.pop(0) if self.answers else None
        await asyncio.sleep(self.seconds)
        if isinstance(answer, QuantumRuntimeError):
            raise answer
        self.add(session_id, answer[1] if answer else 0.0, backend=backend, mode=mode, max_ttl=max_ttl)
        if answer:
            raise answer[0]
        return self.sessions[session_id].ref()

    async def session(self, session_id: str) -> Session:
        self.calls.append("session")
        if session_id not in self.sessions:
            raise NotFound("no session")
        return self.sessions[session_id]

    async def workloads(self, *, limit: int | None = None, **filters: Any) -> list[dict[str, Any]]:
        self.filters = filters
        if self.list_trouble:
            raise self.list_trouble
        return [{"id": name} for name in self.sessions if self.visible[name] <= clock()]

    async def jobs(
        self, *, session_id: str | None = None, pending: bool | None = None, limit: int | None = None
    ) -> list[Job]:
        self.calls.append("jobs")
        return self.pending[:limit]

    async def fetch_job(self, job_id: str) -> Job:
        self.calls.append("fetch_job")
        status = self.unfinished[job_id]
        if status is None:
            raise NotFound("not visible yet")
        return Job(id=job_id, status=status)

    def unfinished_jobs(self, session_id: str) -> list[str]:
        return list(self.unfinished)

    async def stop_accepting(self, session_id: str) -> None:
        self.calls.append("stop_accepting")

    async def drop_session(self, session_id: str) -> None:
        self.calls.append("drop")
        if session_id in self.sessions and not self.closing:
            self.sessions[session_id] = self.sessions[session_id].model_copy(update={"state": "closed"})
        elif self.closing:
            asyncio.get_running_loop().call_later(self.closing, self._closed, session_id)

    def _closed(self, session_id: str) -> None:
        self.sessions[session_id] = self.sessions[session_id].model_copy(update={"state": "closed"})


def opened(service: Service, *, mode: str = "dedicated", max_ttl: int | None = None) -> Any:
    async def main() -> Any:
        try:
            return await open_session(service, "b", mode=mode, max_ttl=max_ttl, clock=clock)
        except QuantumRuntimeError as error:
            return error

    return run(main())


def test_an_open_session() -> None:
    service = Service()
    assert opened(service, mode="batch", max_ttl=60) == SessionRef(
        id="s1", mode="batch", backend="b", max_ttl=60, state="open"
    )
    assert service.posts == 1


@pytest.mark.parametrize("life", [3600, 12])
@pytest.mark.parametrize("off", [-90_000.0, -3600.0, 0.0, 3600.0, 90_000.0, 1e15])
def test_a_wrong_clock_of_this_machine_hides_no_session(
    httpx_mock: HTTPXMock, monkeypatch: pytest.MonkeyPatch, off: float, life: int
) -> None:
    """Before: with a clock ten minutes ahead the session was not listed, and a second one was opened."""
    true, service = time.time(), Service()
    service.answers = [(LOST, 3.0)]
    token = {"access_token": TOKEN, "expires_in": life, "expiration": int(true) + life}
    if off > 1e9:
        token["expiration"], off = int(off), 0.0  # IAM's own time is none
    httpx_mock.add_response(json=token)

    async def main() -> Any:
        await service.tokens.get()
        monkeypatch.setattr(time, "time", lambda: true + off)  # it jumps after that
        return await open_session(service, "b", mode="dedicated", max_ttl=60, clock=clock)

    assert run(main()).id == "s1"
    early = true - service.filters["created_after"].timestamp()
    assert early >= 599.0
    assert early < 700.0 or off < 0


@pytest.mark.parametrize("lag", [0.0, 6.0])
def test_a_lost_answer_is_looked_for_before_another_is_opened(lag: float) -> None:
    service = Service()
    service.answers = [(LOST, lag)]
    assert opened(service, max_ttl=60).id == "s1"
    assert service.posts == 1
    assert (service.filters["mode"], service.filters["backend"]) == ("session", "b")


def test_a_lost_batch_is_looked_for_as_one() -> None:
    service = Service()
    service.answers = [(LOST, 0.0)]
    assert opened(service, mode="batch").mode == "batch"
    assert service.filters["mode"] == "batch"


def test_what_was_not_accepted_is_opened_anew() -> None:
    service = Service()
    service.answers = [LOST]
    assert opened(service).id == "s2"
    assert service.posts == 2


def test_twice_lost_is_uncertain() -> None:
    service = Service()
    service.answers = [LOST, LOST, LOST]
    assert isinstance(opened(service), SubmissionUncertain)
    assert service.posts == 2


@pytest.mark.parametrize(
    "fields",
    [{"state": "active"}, {"state": "closed"}, {"mode": "batch"}, {"backend": "other"}, {"max_ttl": 61}],
    ids=str,
)
def test_another_session_is_not_taken(fields: dict[str, Any]) -> None:
    service = Service()
    service.answers = [LOST]

    async def main() -> SessionRef:
        service.add("x", **{"max_ttl": 60, **fields})
        return await open_session(service, "b", mode="dedicated", max_ttl=60, clock=clock)

    assert run(main()).id == "s2"


def test_a_session_this_process_has_handed_out_is_not_taken() -> None:
    service = Service()

    async def main() -> tuple[SessionRef, SessionRef]:
        first = await open_session(service, "b", mode="dedicated", max_ttl=None, clock=clock)
        service.answers = [LOST]
        return first, await open_session(service, "b", mode="dedicated", max_ttl=None, clock=clock)

    first, second = run(main())
    assert (first.id, second.id, service.posts) == ("s1", "s3", 3)


def test_two_that_could_be_it_are_uncertain() -> None:
    service = Service()
    service.answers = [(LOST, 0.0)]

    async def main() -> Any:
        service.add("x")
        with pytest.raises(SubmissionUncertain) as caught:
            await open_session(service, "b", mode="dedicated", max_ttl=None, clock=clock)
        return caught.value

    error = run(main())
    assert sorted(error.candidates) == ["s1", "x"]
    assert service.posts == 1


def test_a_list_that_fails_is_uncertain() -> None:
    service = Service()
    service.answers = [LOST]
    service.list_trouble = ServiceUnavailable("list down")
    error = opened(service)
    assert isinstance(error, SubmissionUncertain)
    assert "list down" in str(error)
    assert service.posts == 1


@pytest.mark.parametrize("error", [PermissionDenied("plan"), InvalidInput("ttl"), ServiceUnavailable("refused")])
def test_refusals_are_final(error: QuantumRuntimeError) -> None:
    service = Service()
    service.answers = [error]
    assert opened(service) is error
    assert service.posts == 1


def test_a_refusal_after_a_lost_answer_is_uncertain_and_says_what_the_refusal_asks_for() -> None:
    service = Service()
    service.answers = [LOST, PermissionDenied("no sessions on this plan.", solution="Change the plan.")]
    error = opened(service)
    assert isinstance(error, SubmissionUncertain)
    assert "refused: no sessions on this plan." in error.message
    assert error.solution is not None
    assert error.solution.endswith("Change the plan.")
    assert service.posts == 2


def test_cancelled_while_opening_it_leaves_no_session_behind() -> None:
    service = Service()
    service.seconds = 5.0

    async def main() -> float:
        task = asyncio.create_task(open_session(service, "b", mode="dedicated", max_ttl=None, clock=clock))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return clock()

    assert run(main()) == 5.0
    assert service.sessions["s1"].state == "closed"


def closed(service: Service, *, drain: bool) -> tuple[Session | None, float]:
    async def main() -> tuple[Session | None, float]:
        if not service.sessions:
            service.add("s", state="active")
        return await close_session(service, "s", drain=drain, clock=clock), clock()

    return run(main())


def test_drain_with_nothing_queued_closes() -> None:
    service = Service()
    session, _ = closed(service, drain=True)
    assert session is not None
    assert session.ref().is_closed
    assert service.calls == ["stop_accepting", "jobs", "drop", "session"]


def test_drain_lets_queued_jobs_run() -> None:
    service = Service()
    service.pending = [Job(id="d1", status=JobStatus.QUEUED)]
    session, _ = closed(service, drain=True)
    assert session is not None
    assert not session.ref().is_closed
    assert "drop" not in service.calls


@pytest.mark.parametrize(
    ("status", "drops"),
    [(JobStatus.QUEUED, False), (JobStatus.RUNNING, False), (None, False), (JobStatus.FAILED, True)],
)
def test_drain_does_not_drop_a_job_the_list_does_not_show_yet(status: JobStatus | None, drops: bool) -> None:
    service = Service()
    service.unfinished = {"d1": status}
    closed(service, drain=True)
    assert ("drop" in service.calls) is drops


def test_drop_asks_nobody() -> None:
    service = Service()
    service.pending = [Job(id="d1", status=JobStatus.QUEUED)]
    session, _ = closed(service, drain=False)
    assert session is not None
    assert session.ref().is_closed
    assert service.calls == ["drop", "session"]


@pytest.mark.parametrize(("closing", "is_closed"), [(3.0, True), (100.0, False)])
def test_it_reads_back_until_closed_or_out_of_patience(closing: float, is_closed: bool) -> None:
    service = Service()
    service.closing = closing
    session, took = closed(service, drain=False)
    assert session is not None
    assert session.ref().is_closed is is_closed
    assert took == pytest.approx(min(closing, 20.0), abs=0.4)


@pytest.mark.parametrize("drain", [True, False])
def test_an_unknown_session_is_gone(drain: bool) -> None:
    service = Service()

    async def main() -> Session | None:
        return await close_session(service, "nobody", drain=drain, clock=clock)

    assert run(main()) is None


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("call", ["stop_accepting", "session", "drop_session"])
def test_a_session_that_is_unknown_for_a_moment_is_closed_all_the_same(call: str, drain: bool) -> None:
    service = Service()
    answer = getattr(service, call)

    async def forgetful(session_id: str) -> Any:
        if clock() < 5.0:
            raise NotFound("no such session")
        return await answer(session_id)

    setattr(service, call, forgetful)
    session, _ = closed(service, drain=drain)
    assert session is not None
    assert session.ref().is_closed


def test_a_list_of_jobs_that_is_not_found_says_nothing_about_the_session() -> None:
    service = Service()

    async def jobs(**filters: Any) -> list[Job]:
        raise NotFound("no such page")

    service.jobs = jobs  # type: ignore[method-assign, assignment]
    with pytest.raises(NotFound, match="page"):
        closed(service, drain=True)


UNREADABLE = ServiceUnavailable("accepted, but unreadable", status=200, advice=SEARCH_FIRST)


@pytest.mark.parametrize(("lag", "found"), [(0.0, True), (6.0, True), (60.0, False)])
def test_nothing_is_opened_after_a_2xx_that_cannot_be_read(lag: float, found: bool) -> None:
    service = Service()
    service.answers = [(UNREADABLE, lag)]
    end = opened(service)
    assert service.posts == 1
    if found:
        assert end.id == "s1"
    else:
        assert isinstance(end, SubmissionUncertain)
        assert "accepted" in str(end)
        assert "workloads" in str(end)


def test_a_session_that_its_first_job_opens_has_no_id() -> None:
    service = Service()

    async def post_session(backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
        return SessionRef(backend=backend)

    service.post_session = post_session  # type: ignore[method-assign]
    assert opened(service) == SessionRef(backend="b")


def test_two_lost_answers_in_one_process_are_told_apart() -> None:
    service = Service()
    service.answers = [(LOST, 0.0), (LOST, 0.0)]

    async def main() -> list[SessionRef]:
        one = open_session
        return await asyncio.gather(*(one(service, "b", mode="dedicated", max_ttl=None, clock=clock) for _ in range(2)))

    assert {ref.id for ref in run(main())} == {"s1", "s2"}
    assert service.posts == 2


def test_another_openings_session_is_not_taken_while_its_answer_is_under_way() -> None:
    service = Service()
    service.answers = [LOST]

    async def main() -> list[SessionRef]:
        first = asyncio.create_task(open_session(service, "b", mode="dedicated", max_ttl=None, clock=clock))
        await asyncio.sleep(1.0)
        post = service.post_session

        async def slowly(backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
            ref = await post(backend, mode=mode, max_ttl=max_ttl)
            await asyncio.sleep(5.0)
            return ref

        service.post_session = slowly  # type: ignore[method-assign]
        second = asyncio.create_task(open_session(service, "b", mode="dedicated", max_ttl=None, clock=clock))
        return [await first, await second]

    first, second = run(main())
    assert first.id != second.id


@pytest.mark.parametrize("call", ["stop_accepting", "jobs", "session", "drop_session"])
def test_an_outage_while_closing_drops_nothing(call: str) -> None:
    service = Service()
    service.pending = [Job(id="d1", status=JobStatus.QUEUED)]

    async def away(*args: Any, **options: Any) -> None:
        raise ServiceUnavailable("it is down")

    setattr(service, call, away)

    async def main() -> Any:
        service.add("s", state="active")
        with pytest.raises(ServiceUnavailable, match="it is down"):
            await close_session(service, "s", drain=call != "drop_session", clock=clock)

    run(main())
    assert "drop" not in service.calls


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (ServiceUnavailable("down"), True),
        (SubmissionUncertain("who knows"), True),
        (JobTimeout("waited 5 s"), True),
        (TimeoutError("a time limit of Prefect"), True),
        (JobTimeout("waited 5 s", cancelled=True), False),
        (JobFailed("it failed"), False),
        (InvalidInput("bad"), False),
        (ValueError("the flow's own"), False),
        (None, False),
    ],
    ids=repr,
)
def test_what_says_nothing_about_the_jobs(error: Exception | None, silent: bool) -> None:
    assert says_nothing_about_jobs(error) is silent
    outer = RuntimeError("the flow broke")
    outer.__cause__ = error
    assert says_nothing_about_jobs(outer) is silent
    circle = RuntimeError("a circle")
    circle.__cause__ = circle
    assert not says_nothing_about_jobs(circle)
