"""The watcher, against a service that is made up and a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from prefect_qruntime.client.parsing import parse_job
from prefect_qruntime.client.waiting.job_list import Page
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals, PollSchedule
from prefect_qruntime.client.waiting.poller import JobPoller, follow_job
from prefect_qruntime.client.waiting.subscription import Ending, Stream
from prefect_qruntime.errors import (
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

START = datetime(2026, 5, 1, 10, tzinfo=UTC)
HOUR = 3600.0
SLOW = PollIntervals(queued=10.0, lively=10.0, share=0.1)


@lru_cache(maxsize=100_000)
def _moment(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


@dataclass
class Task:
    """One job: when it was created, runs and ends, and since when the list shows it."""

    created: float = 0.0
    runs: float | None = None
    ends: float | None = None
    end: str = "Completed"
    reason: str | None = "because"
    listed: float = 0.0
    usage: bool = True

    def entry(self, job_id: str, now: float) -> dict[str, Any]:
        state: dict[str, Any] = {"status": "Queued"}
        if self.ends is not None and now >= self.ends:
            state = {"status": self.end}
            if self.end != "Completed" and self.reason:
                state["reason"] = self.reason
        elif self.runs is not None and now >= self.runs:
            state = {"status": "Running"}
        body = {
            "id": job_id,
            "state": state,
            "status": state["status"],
            "program": {"id": "sampler"},
            "created": _moment(self.created),
        }
        return {**body, "usage": {"qpu_charge_time_seconds": 1.0, "status": "complete"}} if self.usage else body


@dataclass
class Service:
    """Shows `tasks`; `look_fault` and `list_fault` may raise, or return seconds that the answer takes."""

    tasks: dict[str, Task] = field(default_factory=dict)
    look_fault: Callable[[float], Any] = lambda now: 0.0
    list_fault: Callable[[float], Any] = lambda now: 0.0
    list_time: Callable[[float], float] = lambda now: now
    sockets: Callable[[str, Callable[[], None]], Any] | None = None
    looks: list[tuple[float, str]] = field(default_factory=list)
    pages: list[tuple[float, Page]] = field(default_factory=list)
    cancelled_looks: int = 0

    @property
    def requests(self) -> int:
        return len(self.looks) + len(self.pages)

    async def _trouble(self, fault: Callable[[float], Any]) -> None:
        said = fault(clock())
        if isinstance(said, Exception):
            raise said
        if said:
            await asyncio.sleep(said)

    async def fetch_job(self, job_id: str) -> Job:
        self.looks.append((clock(), job_id))
        try:
            await self._trouble(self.look_fault)
        except asyncio.CancelledError:
            self.cancelled_looks += 1
            raise
        if job_id not in self.tasks:
            raise NotFound("no such job")
        return parse_job(self.tasks[job_id].entry(job_id, clock()))

    async def list_page(self, page: Page) -> list[dict[str, Any]]:
        self.pages.append((clock(), page))
        await self._trouble(self.list_fault)
        now, shown = clock(), self.list_time(clock())
        latest = None if page.created_before is None else (page.created_before - START).total_seconds()
        found = [
            (task.created, job_id)
            for job_id, task in self.tasks.items()
            if task.listed <= now and (latest is None or task.created <= latest)
        ]
        found.sort(reverse=True)
        return [self.tasks[i].entry(i, shown) for _, i in found[page.offset : page.offset + page.limit]]

    def read_listed(self, entry: dict[str, Any]) -> Job:
        return parse_job(entry)

    async def cancel(self, job_id: str) -> Job:
        raise AssertionError("nobody asked for it")

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> Any:
        return self.sockets(job_id, wake) if self.sockets and stream != "never" else None

    def stream_ended(self, ending: Ending) -> None:
        pass


@dataclass
class End:
    """How one wait ended, and when."""

    what: Any
    at: float


async def follow(service: Service, watcher: JobPoller, job_id: str, **options: Any) -> End:
    try:
        what: Any = await follow_job(
            service, job_id, watcher=watcher, deadlines=options.pop("deadlines", None) or Deadlines(), **options
        )
    except QuantumRuntimeError as error:
        what = error
    return End(what, clock())


def follow_all(service: Service, ids: Iterable[str] | None = None, **options: Any) -> dict[str, End]:
    """Wait for all jobs at the same time, and see that nothing is left over."""

    async def main() -> dict[str, End]:
        watcher = JobPoller(service, clock=clock, rng=random.Random(1))
        wanted = list(service.tasks if ids is None else ids)
        ends = await asyncio.gather(*(follow(service, watcher, job_id, **options) for job_id in wanted))
        await assert_nothing_left(watcher)
        return dict(zip(wanted, ends, strict=True))

    return run(main())


async def assert_nothing_left(watcher: JobPoller) -> None:
    for _ in range(5):  # what was cancelled winds up
        await asyncio.sleep(0)
    kept = watcher.footprint
    assert {name: size for name, size in kept.items() if size and name not in ("ended", "calendar")} == {}
    assert kept["calendar"] <= 64
    assert kept["ended"] <= 32
    assert asyncio.all_tasks() == {asyncio.current_task()}


def on_time(service: Service, ends: dict[str, End], *, share: float = 0.08, least: float = 0.5) -> None:
    """Each end was noticed within the promised time, counted from the job's last change of state."""
    for job_id, end in ends.items():
        task = service.tasks[job_id]
        assert task.ends is not None
        assert end.what.status is JobStatus.COMPLETED
        in_state = task.ends - (task.runs or 0.0)
        assert 0 <= end.at - task.ends <= max(least, share * in_state) + 0.05, job_id


def test_two_hundred_jobs_an_hour_in_the_queue() -> None:
    service = Service({f"d{n}": Task(created=n * 0.01, ends=HOUR + n) for n in range(200)})
    on_time(service, follow_all(service))
    assert len([moment for moment, _ in service.pages + service.looks if moment <= HOUR]) <= 250
    assert len(service.pages) >= 150


def test_a_burst_of_two_hundred_needs_a_dozen_requests() -> None:
    service = Service({f"d{n}": Task(created=n * 0.01, runs=2.0, ends=2.5 + n * 0.005) for n in range(200)})
    ends = follow_all(service)
    on_time(service, ends)
    lags = sorted(end.at - (service.tasks[job_id].ends or 0) for job_id, end in ends.items())
    assert lags[100] <= 0.3
    assert service.requests <= 20


def test_jobs_that_are_submitted_one_after_the_other() -> None:
    tasks = {f"d{n}": Task(created=n * 0.05, listed=n * 0.05, runs=10.0, ends=20.0) for n in range(200)}
    service = Service(tasks)

    async def late(watcher: JobPoller, number: int) -> End:
        await asyncio.sleep(number * 0.05)
        return await follow(service, watcher, f"d{number}")

    async def main() -> list[End]:
        watcher = JobPoller(service, clock=clock)
        return await asyncio.gather(*(late(watcher, number) for number in range(200)))

    ends = run(main())
    assert all(20 <= end.at <= 20.5 for end in ends)
    assert service.requests <= 90


def test_one_or_two_jobs_are_looked_at_one_by_one() -> None:
    service = Service({"d1": Task(ends=100.0), "d2": Task(ends=200.0)})
    follow_all(service)
    assert not service.pages


def test_many_waits_for_one_job_share_its_looks() -> None:
    service = Service({"d1": Task(ends=HOUR)})
    ends = follow_all(service, ["d1"])

    async def main() -> list[End]:
        watcher = JobPoller(service, clock=clock)
        return await asyncio.gather(*(follow(service, watcher, "d1") for _ in range(50)))

    service.looks.clear()
    assert all(end.at <= HOUR + 30 for end in run(main()))
    assert not service.pages
    assert len(service.looks) <= 450
    assert ends["d1"].what.status is JobStatus.COMPLETED


def test_old_jobs_far_down_the_list() -> None:
    tasks = {f"other{n}": Task(created=float(n)) for n in range(0, 8000, 2)}
    tasks |= {f"old{n}": Task(created=1001.0 + 2 * n, ends=100.0) for n in range(150)}
    tasks |= {f"young{n}": Task(created=7900.5 + n, ends=100.0) for n in range(50)}
    tasks |= {f"odd{n}": Task(created=3000.5 + 1000 * n, ends=100.0) for n in range(3)}
    service = Service(tasks)
    ends = follow_all(service, [name for name in tasks if not name.startswith("other")])
    on_time(service, ends, share=0.08)
    assert service.requests <= 206 + 150 * 8


@pytest.mark.parametrize("lag", [3.0, 30.0])
def test_a_list_that_shows_new_jobs_late(lag: float) -> None:
    service = Service({f"d{n}": Task(created=n * 0.01, runs=60.0, ends=100.0, listed=lag) for n in range(60)})
    ends = follow_all(service)
    on_time(service, ends, least=3.0)
    assert len(service.looks) <= 20 + 20 * lag + 40  # the throttle holds
    assert all(moment < lag + 5 or len(service.pages) for moment, _ in service.looks)


def test_without_the_right_to_list_it_goes_on_one_by_one() -> None:
    service = Service({f"d{n}": Task(ends=100.0) for n in range(50)}, list_fault=lambda now: PermissionDenied("no"))
    ends = follow_all(service)
    on_time(service, ends, least=4.0)
    assert len(service.pages) == 1
    assert len(service.looks) <= 20 + 20 * 105
    assert {job_id for moment, job_id in service.looks if moment <= 3.0} == set(service.tasks)  # nobody starves


def test_the_right_to_list_may_come_later() -> None:
    refused = PermissionDenied("no")
    service = Service(
        {f"d{n}": Task(ends=1000.0) for n in range(10)}, list_fault=lambda now: refused if now < 30 else 0.0
    )
    follow_all(service)
    first, second, *_ = (moment for moment, _ in service.pages)
    assert first < 1
    assert 600 <= second <= 630


@pytest.mark.parametrize(
    "fault", [ServiceUnavailable("x"), RateLimited("x", advice=after(20)), ValueError("bug"), 99.0]
)
def test_a_list_out_of_order_fails_no_wait(fault: Any) -> None:
    service = Service({f"d{n}": Task(ends=100.0) for n in range(30)}, list_fault=lambda now: fault)
    on_time(service, follow_all(service), least=4.0)
    assert len(service.pages) <= 12


def test_a_list_that_stands_still_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    service = Service({f"d{n}": Task(ends=20.0 + n * 0.1) for n in range(40)}, list_time=lambda now: min(now, 10.0))
    with caplog.at_level(logging.WARNING, logger="prefect_qruntime"):
        ends = follow_all(service)
    assert all(end.what.status is JobStatus.COMPLETED for end in ends.values())
    assert max(end.at for end in ends.values()) <= 45
    assert "list lags behind" in caplog.text


def test_a_list_a_little_behind_is_used_on() -> None:
    service = Service({f"d{n}": Task(ends=60.0) for n in range(40)}, list_time=lambda now: now - 2.0)
    ends = follow_all(service)
    assert max(end.at for end in ends.values()) <= 67
    assert service.requests <= 200


@pytest.mark.uncounted
def test_a_walk_over_many_pages_is_waited_for_as_long_as_pages_come() -> None:
    # Fifteen pages of 0.3 s: one walk takes longer than the patience with a list that gives no sign of life.
    tasks = {f"d{n:04}": Task(created=-n / 100, ends=30.0 + n / 100) for n in range(3000)}
    service = Service(tasks, list_fault=lambda now: 0.3)
    ends = follow_all(service)
    assert max(end.at - tasks[job_id].ends for job_id, end in ends.items()) <= 12.0  # two walks and a pause
    assert len(service.looks) <= 100, "the waits fell back to looks of their own"


def test_what_the_list_shows_behind_the_job_itself_decides_nothing() -> None:
    # Single looks until the second job is over, then the list, which knows less than was known.
    told: dict[str, list[str]] = {"d0": [], "d1": [], "d2": []}

    async def on_change(job: Job, waited: float) -> None:
        told[job.id].append(job.raw_status)

    tasks = {name: Task(runs=5.0, ends=60.0) for name in told}
    service = Service(tasks, list_time=lambda now: 0.0 if now < 30 else now)

    async def main() -> list[End]:
        watcher = JobPoller(service, clock=clock)
        early = [asyncio.create_task(follow(service, watcher, f"d{n}", on_change=on_change)) for n in range(2)]
        await asyncio.sleep(10)
        late = asyncio.create_task(follow(service, watcher, "d2", on_change=on_change))
        return await asyncio.gather(*early, late)

    assert all(end.what.status is JobStatus.COMPLETED for end in run(main()))
    assert told["d0"] == told["d1"] == ["Queued", "Running", "Completed"]
    # Of the third nothing else was known when it came, so the list may have been believed once.
    assert told["d2"][-2:] == ["Running", "Completed"]
    assert told["d2"][:-2] in ([], ["Queued"])


@pytest.mark.parametrize("task", [Task(ends=5.0, usage=False), Task(ends=5.0, end="Failed", reason=None)])
def test_an_entry_that_says_too_little_of_an_end_is_looked_up(task: Task) -> None:
    service = Service({"odd": task, **{f"d{n}": Task(ends=5.0) for n in range(20)}})
    ends = follow_all(service)
    assert ends["odd"].what.is_terminal
    assert ends["odd"].at <= 6.0
    assert [job_id for moment, job_id in service.looks if moment > 5.0] == ["odd"]


def test_failed_jobs_are_told_with_their_reason_from_the_list() -> None:
    service = Service({f"d{n}": Task(ends=5.0, end="Failed", reason="broken") for n in range(20)})
    ends = follow_all(service)
    assert {end.what.reason for end in ends.values()} == {"broken"}
    assert len([moment for moment, _ in service.looks if moment > 1]) <= 1  # now and then the list is put to the test


def test_an_outage_of_everything_is_sat_out_at_little_cost() -> None:
    def down(now: float) -> Any:
        return ServiceUnavailable("down") if 10 <= now < 10 + HOUR else 0.0

    service = Service({f"d{n}": Task(ends=1000.0) for n in range(200)}, look_fault=down, list_fault=down)
    ends = follow_all(service)
    assert all(end.what.status is JobStatus.COMPLETED for end in ends.values())
    assert max(end.at for end in ends.values()) <= 10 + HOUR + 62
    in_outage = [moment for moment, _ in service.looks if 100 < moment < HOUR]
    assert len(in_outage) + len([m for m, _ in service.pages if 100 < m < HOUR]) <= 3 * HOUR


def test_an_outage_has_its_limit_for_all() -> None:
    down = ServiceUnavailable("down")
    service = Service(
        {f"d{n}": Task() for n in range(50)},
        look_fault=lambda now: down if now > 10 else 0.0,
        list_fault=lambda now: down if now > 10 else 0.0,
    )
    ends = follow_all(service, deadlines=Deadlines(outage=600.0))
    assert {end.what.limit for end in ends.values()} == {"outage"}
    assert all(600 <= end.at <= 740 for end in ends.values())


def test_one_job_that_cannot_be_shown_harms_no_other() -> None:
    service = Service({f"d{n}": Task(ends=20.0) for n in range(20)})
    ends = follow_all(service, [*service.tasks, "unknown"])
    assert isinstance(ends["unknown"].what, NotFound)
    assert 3 <= ends["unknown"].at <= 15
    del ends["unknown"]
    on_time(service, ends)


def test_a_fault_of_ours_reaches_the_wait() -> None:
    service = Service({"d1": Task()}, look_fault=lambda now: LookupError("bug"))
    with pytest.raises(LookupError, match="bug"):
        follow_all(service)


@pytest.mark.parametrize("hang", ["list", "look", "both"])
def test_deadlines_are_kept_when_nothing_answers(hang: str) -> None:
    service = Service(
        {f"d{n}": Task() for n in range(100)},
        look_fault=lambda now: 1e6 if hang != "list" else 0.0,
        list_fault=lambda now: 1e6 if hang != "look" else 0.0,
    )
    for total in (0.3, 0.5, 5.0, 33.0):
        ends = follow_all(service, deadlines=Deadlines(total=total))
        assert {end.what.limit for end in ends.values()} == {"timeout"}
        assert all(total <= end.at <= total + 1.0 for end in ends.values())


def test_each_deadline_counts_for_itself() -> None:
    service = Service({f"d{n}": Task(runs=30.0 if n % 2 else None) for n in range(100)})

    async def main() -> list[End]:
        watcher = JobPoller(service, clock=clock)
        limits = [Deadlines(total=20.0 + n, queue=None if n % 3 else 10.0 + n) for n in range(100)]
        return await asyncio.gather(
            *(follow(service, watcher, f"d{n}", deadlines=limit) for n, limit in enumerate(limits))
        )

    for number, end in enumerate(run(main())):
        queue = 10.0 + number if number % 3 == 0 and (number % 2 == 0 or number < 20) else float("inf")
        assert isinstance(end.what, JobTimeout)
        assert end.what.limit == ("queue_timeout" if queue < 20.0 + number else "timeout")
        assert end.at == pytest.approx(min(20.0 + number, queue), abs=0.01)


def test_a_new_wait_among_three_hundred_is_seen_to_soon() -> None:
    service = Service({f"d{n}": Task(created=float(n)) for n in range(300)})
    service.tasks["new"] = Task(created=200.0, ends=210.0, listed=200.0)
    seen: list[float] = []

    async def on_change(job: Job, waited: float) -> None:
        seen.append(waited)

    async def main() -> End:
        watcher = JobPoller(service, clock=clock)
        others = [asyncio.create_task(follow(service, watcher, f"d{n}")) for n in range(300)]
        await asyncio.sleep(200)
        end = await follow(service, watcher, "new", on_change=on_change)
        for other in others:
            other.cancel()
        await asyncio.wait(others)
        await assert_nothing_left(watcher)
        return end

    assert run(main()).what.status is JobStatus.COMPLETED
    assert seen[0] <= 0.5


@pytest.mark.parametrize("hang", [False, True])
def test_cancelled_waits_vanish_at_once(hang: bool) -> None:
    service = Service({f"d{n}": Task() for n in range(100)}, look_fault=lambda now: 1e6 if hang else 0.0)
    if hang:
        service.list_fault = lambda now: PermissionDenied("no")

    async def main() -> None:
        watcher = JobPoller(service, clock=clock)
        waits = [asyncio.create_task(follow(service, watcher, f"d{n}")) for n in range(100)]
        await asyncio.sleep(10)
        before = clock()
        for wait in waits[:99]:
            wait.cancel()
        await asyncio.wait(waits[:99])
        assert clock() == before
        assert watcher.footprint["waits"] == 1
        waits[99].cancel()
        await asyncio.wait(waits)
        await assert_nothing_left(watcher)
        asked = service.requests
        await asyncio.sleep(1000)
        assert service.requests == asked

    run(main())
    assert (service.cancelled_looks > 0) is hang


def test_the_watcher_rests_between_waits() -> None:
    service = Service({f"d{n}": Task(ends=10.0 + n) for n in range(20)})

    async def main() -> None:
        watcher = JobPoller(service, clock=clock)
        for _ in range(3):
            await asyncio.gather(*(follow(service, watcher, job_id) for job_id in service.tasks))
            await assert_nothing_left(watcher)
            await asyncio.sleep(100)

    run(main())


def test_a_list_given_up_before_it_began_is_asked_again() -> None:
    service = Service({f"d{n}": Task(ends=10.0) for n in range(5)})

    async def main() -> None:
        watcher = JobPoller(service, clock=clock)
        watches = [
            watcher.enter(job_id, PollSchedule(Deadlines(), clock()), every_change=False) for job_id in service.tasks
        ]
        while watcher._round is None:  # noqa: ASYNC110 - step by step is the point
            await asyncio.sleep(0)
        for watch in watches:
            await watcher.leave(watch)
        assert service.pages == [], "the round was to be cancelled before its first step"
        await asyncio.gather(*(follow(service, watcher, job_id) for job_id in service.tasks))
        await assert_nothing_left(watcher)

    run(main())
    assert len(service.pages) > 5


def test_a_wait_that_the_list_shows_while_it_stands_aside_is_not_lost() -> None:
    # It comes while a slow list is under way, which shows it, but not the others: those are listed again at once,
    # and as that is refused, from then on all are looked at one by one.
    service = Service(
        {f"d{n}": Task(listed=math.inf, ends=30.0) for n in range(5)},
        list_fault=lambda now: 1.0 if now < 0.5 else PermissionDenied("no"),
    )
    service.tasks["late"] = Task(ends=30.0)

    async def main() -> list[End]:
        watcher = JobPoller(service, clock=clock)
        others = [asyncio.create_task(follow(service, watcher, f"d{n}")) for n in range(5)]
        await asyncio.sleep(0.1)
        return await asyncio.gather(follow(service, watcher, "late"), *others)

    for end in run(main()):
        assert end.what.status is JobStatus.COMPLETED
        assert end.at <= 33.0


@pytest.mark.uncounted
def test_a_day_of_coming_and_going_leaves_nothing_behind() -> None:
    service = Service()
    largest: dict[str, int] = {}

    async def main() -> None:
        watcher = JobPoller(service, clock=clock)
        rng = random.Random(3)
        waits: set[asyncio.Task[End]] = set()
        ended = 0
        for number in range(24 * 20):  # one in three minutes, each waits two hours at most
            job_id = f"d{number}"
            service.tasks.pop(f"d{number - 100}", None)
            service.tasks[job_id] = Task(created=clock(), ends=clock() + rng.uniform(1, 2 * HOUR))
            limits = Deadlines(total=rng.choice([None, 7 * 24 * HOUR, HOUR]))
            wait = asyncio.create_task(follow(service, watcher, job_id, deadlines=limits, pace=SLOW))
            waits.add(wait)
            if number % 10 == 0:
                rng.choice(sorted(waits, key=id)).cancel()
            await asyncio.sleep(180)
            ended += len([wait for wait in waits if wait.done()])
            waits = {wait for wait in waits if not wait.done()}
            for name, size in watcher.footprint.items():
                largest[name] = max(largest.get(name, 0), size)
            largest["tasks"] = max(largest.get("tasks", 0), len(asyncio.all_tasks()))
        await asyncio.wait(waits)
        await assert_nothing_left(watcher)
        assert ended > 400

    run(main())
    assert largest["waits"] <= 41
    assert largest["calendar"] <= 2 * 41 + 64
    assert largest["queue"] + largest["riding"] + largest["parked"] <= 3 * 41
    assert largest["tasks"] <= 41 + 8
    assert service.requests <= 24 * HOUR / 4


class Socket:
    """Stands in for `JobStream`; tells of the end when it comes."""

    def __init__(self, service: Service, job_id: str, wake: Callable[[], None], opened: list[int]) -> None:
        self.connected = False
        self._wait = (service.tasks[job_id].ends or 0.0) - clock()
        self._wake, self._opened = wake, opened

    async def follow(self) -> Ending:
        self._opened.append(self._opened[-1] + 1)
        self.connected = True
        try:
            await asyncio.sleep(max(0.0, self._wait))
            self._wake()
            return "done"
        finally:
            self.connected = False
            self._opened.append(self._opened[-1] - 1)


def test_sockets_are_bounded_and_handed_on() -> None:
    opened = [0]
    service = Service({f"d{n}": Task(created=n * 0.1, ends=100.0 + 10 * n) for n in range(30)})
    service.sockets = lambda job_id, wake: Socket(service, job_id, wake, opened)
    ends = follow_all(service)
    assert max(opened) == 8
    assert opened[-1] == 0
    assert opened.count(8) > 20  # each one that is free is taken by the next
    on_time(service, ends)
    told = [job_id for job_id, end in ends.items() if end.at == service.tasks[job_id].ends]
    assert len(told) == 30


def test_with_enough_sockets_looks_are_few() -> None:
    opened = [0]
    service = Service({f"d{n}": Task(ends=HOUR) for n in range(5)})
    service.sockets = lambda job_id, wake: Socket(service, job_id, wake, opened)
    ends = follow_all(service)
    assert {end.at for end in ends.values()} == {HOUR}
    assert service.requests <= 220


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40))
@example(seed=1215, size=32)  # a wait that a list showed while it stood aside was lost
def test_whatever_goes_wrong_every_wait_ends_by_its_deadline(seed: int, size: int) -> None:
    rng = random.Random(seed)
    faults: list[Any] = [ServiceUnavailable("x"), RateLimited("x", advice=after(3)), TimeoutError(), 0.5, 50.0, 0.0]
    level = rng.choice([0.0, 0.3, 1.0])

    def fault(now: float) -> Any:
        said = rng.choice(faults) if rng.random() < level else 0.0
        return ServiceUnavailable("slow") if isinstance(said, TimeoutError) else said

    lag = rng.choice([0.0, 4.0])
    service = Service(look_fault=fault, list_fault=fault, list_time=lambda now: now - lag)
    for number in range(size):
        ends = rng.choice([None, rng.uniform(0, 200)])
        listed = rng.choice([0.0, 20.0])
        end = rng.choice(["Completed", "Failed", "Cancelled"])
        service.tasks[f"d{number}"] = Task(created=number * 0.01, ends=ends, listed=listed, end=end)
    total = rng.uniform(0.2, 300.0)
    ends_of_waits = follow_all(service, deadlines=Deadlines(total=total))
    for job_id, done in ends_of_waits.items():
        ends = service.tasks[job_id].ends
        assert done.at <= total + 1.0
        if isinstance(done.what, JobTimeout):
            assert done.at >= total - 1e-6
        else:
            assert ends is not None
            assert done.what.is_terminal
            assert done.at >= ends
