"""Waiting for a job, against a service that is made up and a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from prefect_qruntime.client.parsing import parse_job
from prefect_qruntime.client.waiting.job_list import Page
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals
from prefect_qruntime.client.waiting.poller import JobPoller, Stream, follow_job
from prefect_qruntime.client.waiting.subscription import Ending
from prefect_qruntime.errors import (
    NEVER,
    AuthenticationError,
    JobTimeout,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    RateLimited,
    ServiceUnavailable,
    after,
)
from prefect_qruntime.models import Job, JobStatus
from tests.support.virtual_clock import clock, run

HANG = object()
Says = Callable[[float, int], Any]


class Socket:
    """Stands in for `JobStream`."""

    def __init__(self, script: Callable[[Socket], Any]) -> None:
        self.connected = False
        self.wake: Callable[[], None] = lambda: None
        self._script = script
        self.cancelled = False
        self.winding_up = 0.0

    async def follow(self) -> Ending:
        try:
            return await self._script(self)
        except asyncio.CancelledError:
            await asyncio.sleep(self.winding_up)
            self.cancelled = True
            raise


class Service:
    """Answers `look` by what `says(seconds, number)` gives: a status, a body, an error or HANG."""

    def __init__(self, says: Says, socket: Socket | None = None, cancel: Any = "Cancelled") -> None:
        self.says = says
        self.socket = socket
        self.cancel_answer = cancel
        self.looks: list[float] = []
        self.cancels = 0
        self.endings: list[Ending] = []
        self.pages = 0
        self.listed: Any = []

    async def fetch_job(self, job_id: str) -> Job:
        self.looks.append(clock())
        said = self.says(clock(), len(self.looks))
        if said is HANG:
            await asyncio.sleep(1e9)
        if isinstance(said, Exception):
            raise said
        return parse_job({"id": job_id, **said} if isinstance(said, dict) else {"id": job_id, "status": said})

    async def list_page(self, page: Page) -> list[dict[str, Any]]:
        self.pages += 1
        listed = self.listed
        if isinstance(listed, Exception):
            raise listed
        return listed

    def read_listed(self, entry: dict[str, Any]) -> Job:
        return parse_job(entry)

    async def cancel(self, job_id: str) -> Job:
        self.cancels += 1
        if isinstance(self.cancel_answer, Exception):
            raise self.cancel_answer
        return parse_job({"id": job_id, "status": self.cancel_answer})

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> Any:
        if self.socket is None or stream == "never":
            return None
        self.socket.wake = wake
        return self.socket

    def stream_ended(self, ending: Ending) -> None:
        self.endings.append(ending)


def wait(service: Service, **options: Any) -> tuple[Any, float]:
    """The job or the error, and the seconds it took."""

    async def main() -> tuple[Any, float]:
        watcher = JobPoller(service, clock=clock)
        if options.pop("submitted", False):
            watcher.note("d1")
        limits = options.pop("deadlines", None) or Deadlines(total=options.pop("total", None))
        try:
            end: Any = await follow_job(service, "d1", watcher=watcher, deadlines=limits, **options)
        except QuantumRuntimeError as error:
            end = error
        return end, clock()

    return run(main())


def states(*changes: tuple[float, Any]) -> Says:
    """Says the last state whose time has come."""
    return lambda now, _: [said for moment, said in changes if moment <= now][-1]


@pytest.mark.parametrize("end", ["Completed", "Failed", "Cancelled"])
def test_it_waits_for_whatever_end(end: str) -> None:
    service = Service(states((0, "Queued"), (100, "Running"), (160, end)))
    job, took = wait(service)
    assert job.raw_status == end
    assert 160 <= took <= 161.2 + 0.1
    assert len(service.looks) < 250


def test_an_hour_in_the_queue() -> None:
    service = Service(states((0, "Queued"), (3600, "Completed")))
    job, took = wait(service)
    assert job.status is JobStatus.COMPLETED
    assert 3600 <= took <= 3630
    assert len(service.looks) <= 200


def test_a_finished_job_needs_one_look() -> None:
    service = Service(states((0, "Completed")))
    assert wait(service)[1] == 0
    assert len(service.looks) == 1


@pytest.mark.parametrize("state", ["Queued", "Running", "Completed", "Failed", "never heard of"])
def test_once_is_the_first_answer_whatever_the_state(state: str) -> None:
    service = Service(lambda t, n: ServiceUnavailable("down") if n < 3 else state)
    job, _ = wait(service, once=True)
    assert (job.raw_status, len(service.looks)) == (state, 3)


def test_changes_are_told_once_each() -> None:
    told: list[tuple[str, float]] = []

    async def on_change(job: Job, waited: float) -> None:
        told.append((job.raw_status, waited))

    wait(Service(states((0, "Queued"), (10, "Running"), (20, "Completed"))), on_change=on_change)
    assert [name for name, _ in told] == ["Queued", "Running", "Completed"]
    assert [moment for _, moment in told] == sorted(moment for _, moment in told)
    assert 10 <= told[1][1] <= 10.75


TROUBLES = [
    ServiceUnavailable("x"),
    RateLimited("x", advice=after(5)),
    ServiceUnavailable("no token", advice=after(2)),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda e: str(e.advice))
def test_an_outage_of_an_hour_is_sat_out(trouble: QuantumRuntimeError) -> None:
    service = Service(states((0, "Running"), (10, trouble), (3610, "Completed")))
    job, took = wait(service)
    assert job.status is JobStatus.COMPLETED
    assert took <= 3610 + 60
    assert len(service.looks) <= 120


def test_retry_after_is_honoured() -> None:
    service = Service(states((0, RateLimited("slow down", advice=after(300))), (200, "Completed")))
    wait(service)
    assert service.looks == [0.0, 300.0]


def test_an_outage_has_a_limit_of_its_own() -> None:
    service = Service(lambda now, n: "Running" if n == 1 else ServiceUnavailable("down"))
    error, took = wait(service, deadlines=Deadlines(outage=600.0), on_timeout="cancel")
    assert isinstance(error, JobTimeout)
    assert (error.limit, error.last_status, error.cancelled) == ("outage", "Running", False)
    assert 600 <= took <= 660
    assert service.cancels == 0  # who cannot be asked cannot be told either


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("wrong key", code="BXNIM0415E", status=400),
        QuantumRuntimeError("x"),
        ServiceUnavailable("cert", advice=NEVER),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_is_no_outage_ends_the_wait(error: QuantumRuntimeError) -> None:
    end, took = wait(Service(lambda now, n: "Queued" if n == 1 else error))
    assert end is error
    assert took < 1


REFUSALS = [AuthenticationError("x", status=401), PermissionDenied("x", status=403), NotFound("x", status=404)]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda e: type(e).__name__)
def test_even_a_single_look_believes_no_single_refusal(error: QuantumRuntimeError) -> None:
    job, took = wait(Service(states((0, error), (30, "Queued"))), submitted=True, once=True)
    assert job.status is JobStatus.QUEUED
    assert 30 <= took <= 60
    end, took = wait(Service(states((0, error))), submitted=True, once=True)
    assert end is error
    assert 60 <= took <= 72


@pytest.mark.parametrize("error", REFUSALS, ids=lambda e: type(e).__name__)
def test_a_refusal_about_a_job_that_was_seen_must_repeat_for_a_minute(error: QuantumRuntimeError) -> None:
    end, took = wait(Service(states((0, "Queued"), (100, error))))
    assert end is error
    assert 160 <= took <= 172
    job, took = wait(Service(states((0, "Queued"), (100, error), (155, "Running"), (170, error), (200, "Completed"))))
    assert job.status is JobStatus.COMPLETED
    assert took <= 232


@pytest.mark.parametrize("error", REFUSALS, ids=lambda e: type(e).__name__)
def test_a_refusal_about_a_job_that_was_submitted_here_must_repeat_too(error: QuantumRuntimeError) -> None:
    service = Service(states((0, error), (50, "Completed")))
    assert wait(service, submitted=True)[0].status is JobStatus.COMPLETED
    assert service.pages == 0
    end, took = wait(Service(states((0, error))), submitted=True)
    assert end is error
    assert 60 <= took <= 65


@pytest.mark.parametrize("error", REFUSALS[:2], ids=lambda e: type(e).__name__)
def test_a_refusal_about_a_job_that_nobody_has_seen_is_believed(error: QuantumRuntimeError) -> None:
    end, took = wait(Service(states((0, error))))
    assert (end, took) == (error, 0.0)


def test_an_id_that_never_existed_is_found_out_by_one_look_into_the_list() -> None:
    service = Service(states((0, NotFound("x"))))
    service.listed = [{"id": "d2", "status": "Queued"}]
    end, took = wait(service)
    assert isinstance(end, NotFound)
    assert 3 <= took <= 6
    assert service.pages == 1


def test_a_job_that_only_the_list_shows_yet_is_waited_for() -> None:
    service = Service(states((0, NotFound("x")), (20, "Queued"), (30, "Completed")))
    service.listed = [{"id": "d1", "status": "Queued"}]
    assert wait(service)[0].status is JobStatus.COMPLETED
    assert service.pages == 1


@pytest.mark.parametrize("trouble", [ServiceUnavailable("down"), PermissionDenied("no"), TimeoutError()], ids=repr)
def test_without_the_list_an_unseen_job_is_waited_for_a_minute(trouble: Exception) -> None:
    service = Service(states((0, NotFound("x")), (20, "Queued"), (30, "Completed")))
    service.listed = trouble
    assert wait(service)[0].status is JobStatus.COMPLETED
    service = Service(states((0, NotFound("x"))))
    service.listed = trouble
    end, took = wait(service)
    assert isinstance(end, NotFound)
    assert 60 <= took <= 65


@pytest.mark.parametrize("total", [0.05, 3.0, 77.0])
def test_the_deadline_leaves_the_job_alone(total: float) -> None:
    service = Service(states((0, "Queued")))
    error, took = wait(service, total=total)
    assert isinstance(error, JobTimeout)
    assert not isinstance(error, TimeoutError)
    assert (error.limit, error.job_id, error.cancelled, error.last_status) == ("timeout", "d1", False, "Queued")
    assert took == pytest.approx(total)
    assert "lives on" in str(error)
    assert "d1" in str(error)
    assert service.cancels == 0
    assert service.looks[-1] == pytest.approx(total)  # a last look at the deadline itself


def test_a_job_that_ends_at_the_deadline_has_ended() -> None:
    job, _ = wait(Service(states((0, "Running"), (10, "Completed"))), total=10.0)
    assert job.status is JobStatus.COMPLETED


@pytest.mark.parametrize(("ran", "limit", "moment"), [(None, "queue_timeout", 20), (15, "timeout", 50)])
def test_deadlines_together(ran: float | None, limit: str, moment: float) -> None:
    changes = [(0.0, "Queued"), *([(ran, "Running")] if ran else [])]
    error, took = wait(Service(states(*changes)), deadlines=Deadlines(total=50.0, queue=20.0))
    assert (error.limit, took) == (limit, pytest.approx(moment))


@pytest.mark.parametrize("deadlines", [Deadlines(total=30.0), Deadlines(queue=30.0)])
def test_an_unknown_state_is_warned_of_once_and_ends_at_the_deadline(
    deadlines: Deadlines, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="prefect_qruntime"):
        error, took = wait(Service(states((0, "Paused-By-Magic"))), deadlines=deadlines)
    assert (error.last_status, took) == ("Paused-By-Magic", pytest.approx(30.0))
    assert caplog.text.count("Paused-By-Magic") == 1


CANCELS: list[tuple[Any, Any]] = [
    ("Cancelled", "cancelled"),
    ("Completed", JobStatus.COMPLETED),
    ("Failed", JobStatus.FAILED),
    ("Cancelled - Ran too long", JobStatus.CANCELLED),
    ("Running", "has not happened yet"),
    (ServiceUnavailable("down"), "cancelling it failed (down)"),
    (NotFound("gone"), "cancelling it failed (gone)"),
    (ServiceUnavailable("it was accepted, but", requested=True), "stopped (timeout): it was accepted, but"),
]


@pytest.mark.parametrize(("answer", "expected"), CANCELS, ids=lambda v: str(v))
def test_cancel_at_the_deadline(answer: Any, expected: Any) -> None:
    service = Service(states((0, "Running")), cancel=answer)
    end, took = wait(service, total=10.0, on_timeout="cancel")
    assert service.cancels == 1
    assert took == pytest.approx(10.0)
    if isinstance(expected, JobStatus):
        assert end.status is expected
    else:
        assert isinstance(end, JobTimeout)
        assert expected in str(end)
        assert end.cancelled is (answer == "Cancelled")
        knows = not getattr(answer, "requested", False)  # whether it lives on after a cancel without an answer
        assert ("lives on" in str(end)) is (knows and answer != "Cancelled")


@pytest.mark.parametrize("trouble", [ServiceUnavailable("down"), RateLimited("slow down", advice=after(30)), HANG])
@pytest.mark.parametrize(
    ("then", "limit", "cancels"),
    [("Running", "timeout", 1), ("Completed", None, 0), ("Failed", None, 0), ("Queued", "queue_timeout", 1)],
)
def test_a_job_that_began_in_an_outage_is_not_cancelled_by_the_limit_on_the_queue(
    trouble: Any, then: str, limit: str | None, cancels: int
) -> None:
    def says(now: float, number: int) -> Any:
        if now < 10:
            return "Queued"
        polls = trouble is not HANG and now == 20 and service.looks.count(20.0) == 1  # for the last time
        return trouble if now < 20 or polls else then

    service = Service(says)
    told: list[str] = []

    async def on_change(job: Job, _: float) -> None:
        told.append(job.raw_status)

    end, took = wait(service, deadlines=Deadlines(total=99.0, queue=20.0), on_timeout="cancel", on_change=on_change)
    assert service.cancels == cancels
    assert told == list(dict.fromkeys(["Queued", then]))
    if limit is None:
        assert end.raw_status == then
    else:
        assert (end.limit, end.cancelled) == (limit, True)
    assert took == pytest.approx(99.0 if limit == "timeout" else 20.0, abs=1.0)


def test_a_job_whose_state_cannot_be_read_is_not_cancelled_by_the_limit_on_the_queue() -> None:
    service = Service(states((0, "Queued"), (10, ServiceUnavailable("down"))))
    end, _ = wait(service, deadlines=Deadlines(queue=20.0), on_timeout="cancel")
    assert (end.limit, end.cancelled, service.cancels) == ("queue_timeout", False, 0)
    assert "cancelling it failed (down), so it lives on (last state 'Queued')" in str(end)


@pytest.mark.parametrize("total", [5.0, 0.5])
def test_a_hanging_look_does_not_hold_up_the_deadline(total: float) -> None:
    error, took = wait(Service(lambda now, n: HANG), total=total)
    assert isinstance(error, JobTimeout)
    assert error.last_status == "unknown"
    assert took == pytest.approx(max(total, 0.9))  # the look is given that long


def test_a_cancelled_wait_ends_at_once_and_takes_its_socket_along() -> None:
    async def forever(socket: Socket) -> Ending:
        await asyncio.sleep(1e9)
        return "done"

    socket = Socket(forever)
    socket.winding_up = 0.5
    service = Service(states((0, "Running")), socket)

    async def main() -> float:
        watcher = JobPoller(service, clock=clock)
        task = asyncio.create_task(follow_job(service, "d1", watcher=watcher, deadlines=Deadlines()))
        await asyncio.sleep(100)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert socket.cancelled
        return clock()

    assert run(main()) == 100.5
    assert service.cancels == 0


def test_the_socket_leads_to_an_earlier_look_and_the_look_decides() -> None:
    async def script(socket: Socket) -> Ending:
        socket.connected = True
        await asyncio.sleep(100)
        socket.wake()  # too early: the job still runs
        await asyncio.sleep(50)
        socket.connected = False
        socket.wake()
        return "done"

    service = Service(states((0, "Running"), (150, "Completed")), Socket(script))
    job, took = wait(service)
    assert (job.status, took) == (JobStatus.COMPLETED, 150.0)
    assert 100.0 in service.looks
    assert len(service.looks) <= 35  # about every five seconds while the socket is there
    assert service.endings == ["done"]


def test_without_its_socket_the_wait_goes_on_at_its_own_pace() -> None:
    async def script(socket: Socket) -> Ending:
        raise RuntimeError("broken")

    service = Service(states((0, "Running"), (100, "Completed")), Socket(script))
    job, took = wait(service)
    assert job.status is JobStatus.COMPLETED
    assert took <= 102.1
    assert service.endings == []


def test_a_flood_of_wakes_costs_few_polls_and_delays_no_deadline() -> None:
    async def script(socket: Socket) -> Ending:
        socket.connected = True
        while True:
            await asyncio.sleep(0.001)
            socket.wake()

    service = Service(states((0, "Running"), (3, "Completed")), Socket(script))
    job, took = wait(service)
    assert job.status is JobStatus.COMPLETED
    assert took <= 3.3
    assert len(service.looks) <= 14
    hanging = Service(lambda now, n: HANG, Socket(script))
    error, took = wait(hanging, total=2.0)
    assert isinstance(error, JobTimeout)
    assert took <= 3.0
    error, took = wait(Service(states((0, "Running")), Socket(script)), total=2.0)
    assert isinstance(error, JobTimeout)
    assert took == pytest.approx(2.0, abs=0.3)


def test_never_means_no_socket() -> None:
    async def script(socket: Socket) -> Ending:
        raise AssertionError("opened")

    service = Service(states((0, "Running"), (5, "Completed")), Socket(script))
    assert wait(service, stream="never")[0].status is JobStatus.COMPLETED
    assert service.endings == []


SAID = st.sampled_from(
    ["Queued", "Running", "Odd", None, {}, {"state": None}, {"state": {"status": 5}}, "outage", HANG]
)


@settings(max_examples=60)
@given(said=st.lists(SAID, min_size=1, max_size=12), total=st.floats(0.2, 500), seed=st.integers(0, 99))
def test_whatever_the_service_says_the_wait_ends_by_its_deadline(said: list[Any], total: float, seed: int) -> None:
    rng = random.Random(seed)

    def says(now: float, number: int) -> Any:
        answer = rng.choice(said)
        return ServiceUnavailable("down") if answer == "outage" else answer

    error, took = wait(Service(says), total=total, pace=PollIntervals())
    assert isinstance(error, JobTimeout)
    assert total - 1e-6 <= took <= total + 2.0 + 1e-6
