"""Wait for jobs: one poller asks about those of an instance for all waits of a process together.

A few jobs are polled one by one. Many share `GET /jobs`: one call shows up to 200 of them. A job that the list does
not show, shows incompletely, or shows in an older state than is known, is looked up by itself. From time to time one
job is looked up by itself to check the list. In every case the state is the service's own answer.

The poller is one task with one timer queue, so a wait costs no timer of its own. It lives on the network loop while
there are waits.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cachetools import LRUCache

from prefect_qruntime.client.parsing import listed_moments, listed_whole
from prefect_qruntime.client.waiting.job_list import LARGEST_PAGE, JobListBreaker, JobListPager, Page
from prefect_qruntime.client.waiting.plan import (
    USUAL_PACE,
    Deadlines,
    PollIntervals,
    PollLimits,
    PollSchedule,
    TimerQueue,
    TokenBucket,
)
from prefect_qruntime.client.waiting.subscription import Expired, Sockets, SocketService, Stream, Subscription
from prefect_qruntime.errors import JobTimeout, NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.redact import get_logger

if TYPE_CHECKING:
    from prefect_qruntime.client.service import Service

__all__ = ["JobPoller", "LookupQueue", "OnChange", "OnTimeout", "Stream", "follow_job"]

OnTimeout = Literal["leave", "cancel"]
OnChange = Callable[[Job, float], Awaitable[None]]

log = get_logger(__name__)

_REMEMBERED = 10_000  # jobs that this process submitted or saw
_TICK = 1e-6  # seconds; a shorter pause may be lost in rounding and make the poller spin
_LATE = 0.9  # seconds past the deadline for which a lookup that began near it is still awaited


class LookupQueue:
    """Looks jobs up one by one and reports each outcome.

    Args:
        fetch: Asks the service for a job.
        report: Called with the job's id and the job, or the error instead.
        lanes: Lookups in flight at once, unless `freely`.
        throttle: How many a second, unless `freely`.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[Job]],
        report: Callable[[str, Job | Exception], None],
        *,
        lanes: int,
        throttle: TokenBucket,
    ) -> None:
        self.queue: dict[str, None] = {}  # in order, each once
        self.flying: dict[str, asyncio.Task[None]] = {}
        self._fetch = fetch
        self._report = report
        self._lanes = lanes
        self._throttle = throttle

    def ask(self, job_id: str, *, at_once: bool = False) -> None:
        """Look a job up in its turn, or at once."""
        if at_once:
            self.queue.pop(job_id, None)
            self._fly(job_id)
        elif job_id not in self.flying:
            self.queue[job_id] = None

    def withdraw(self, job_id: str) -> None:
        """Take a job out of the queue: another answer covered it."""
        self.queue.pop(job_id, None)

    def forget(self, job_id: str) -> None:
        """Take a job out of the queue and cancel its lookup: no wait is left for it."""
        self.queue.pop(job_id, None)
        if (flight := self.flying.pop(job_id, None)) is not None:
            flight.cancel()

    def start(self, now: float, *, freely: bool) -> float:
        """Begin as many lookups as allowed. Returns the seconds until another may begin."""
        while self.queue and (freely or len(self.flying) < self._lanes):
            if not freely:
                if (delay := self._throttle.wait(now)) > 0:
                    return delay
                self._throttle.take(now)
            job_id = next(iter(self.queue))
            del self.queue[job_id]
            self._fly(job_id)
        return math.inf

    def _fly(self, job_id: str) -> None:
        if job_id not in self.flying:
            self.flying[job_id] = asyncio.get_running_loop().create_task(self._flight(job_id))

    async def _flight(self, job_id: str) -> None:
        outcome: Job | Exception
        try:
            outcome = await self._fetch(job_id)
        except Exception as error:
            outcome = error
        finally:
            if self.flying.get(job_id) is asyncio.current_task():  # a forgotten one may have a successor
                del self.flying[job_id]
        self._report(job_id, outcome)


class _Service(SocketService, Protocol):
    """What polling needs of the service."""

    async def fetch_job(self, job_id: str) -> Job: ...

    async def list_page(self, page: Page) -> list[dict[str, Any]]: ...

    def read_listed(self, entry: dict[str, Any]) -> Job: ...


class JobPoller:
    """Polls the jobs of one instance for all waits.

    Args:
        service: The calls of the service.
        limits: Sizes and times.
        clock: Monotonic seconds, those of the event loop.
        rng: For jitter.
    """

    def __init__(
        self,
        service: _Service,
        *,
        limits: PollLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.limits = limits or PollLimits()
        self.clock = clock
        self.rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._service = service
        self._by_id: dict[str, list[Subscription]] = {}
        self._size = 0
        self._timers = TimerQueue[Subscription]()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._throttle = TokenBucket(rate=self.limits.rate, burst=self.limits.rate)
        self._known: LRUCache[str, None] = LRUCache(_REMEMBERED)
        self._lookups = LookupQueue(self._lookup, self._on_outcome, lanes=self.limits.lanes, throttle=self._throttle)
        self._round: asyncio.Task[None] | None = None
        self._round_began = self._page_came = -math.inf
        self._rounds = 0
        self._riding: set[Subscription] = set()  # covered by the list call in flight
        self._parked: set[Subscription] = set()  # due while a list call is in flight that may show them
        self._breaker = JobListBreaker(relist=self.limits.relist, behind=self.limits.behind)
        self._first_poll = -math.inf
        self._sockets = Sockets(service, limit=self.limits.sockets, hurry=self.hurry)

    @property
    def _many(self) -> bool:
        return len(self._by_id) > self.limits.few

    @property
    def footprint(self) -> dict[str, int]:
        """Sizes of what is kept, for tests of growth."""
        sizes = {"queue": len(self._lookups.queue), "flying": len(self._lookups.flying), "riding": len(self._riding)}
        sizes |= {"parked": len(self._parked), "ended": len(self._breaker.ended), "calendar": len(self._timers)}
        return {"waits": self._size, "sockets": self._sockets.open, "socketless": len(self._sockets.waiting), **sizes}

    # ---- known jobs ----------------------------------------------------------------------------

    def note(self, job_id: str) -> None:
        """Remember that a job exists: this process submitted or saw it."""
        self._known[job_id] = None

    def knows(self, job_id: str) -> bool:
        """Whether this process submitted or saw a job; a refusal to show such a job is not believed at once."""
        return job_id in self._known

    # ---- waits ---------------------------------------------------------------------------------

    def enter(self, job_id: str, plan: PollSchedule, *, every_change: bool) -> Subscription:
        """Begin to poll a job; pair it with `leave`."""
        plan.known = plan.known or self.knows(job_id)
        watch = Subscription(job_id, plan, every_change=every_change)
        self._by_id.setdefault(job_id, []).append(watch)
        self._size += 1
        now = self.clock()
        due = max(now, self._first_poll + self.limits.gather) if self._many else now
        self._arm(watch, min(due, now + plan.left(now)))
        if self._task is None:
            # In a context of its own, because it does not work for its first caller only.
            self._task = asyncio.get_running_loop().create_task(self._serve(), context=Context())
        return watch

    async def leave(self, watch: Subscription) -> None:
        """Forget a wait, over or not, and close its websocket."""
        self._drop(watch)
        await self._sockets.close(watch)

    def listen(self, watch: Subscription, stream: Stream) -> None:
        """Give the wait a websocket, if one is free."""
        self._sockets.listen(watch, stream)

    def hurry(self, watch: Subscription) -> None:
        """Poll a job now, or a little later if it was polled a moment ago."""
        if watch.hurried and not watch.asked:
            return
        watch.hurried = True
        if not watch.over and (not watch.asked or watch in self._riding):
            self._arm(watch, max(self.clock(), min(watch.rests_until, watch.plan.deadline)))

    def hurry_for(self, job_id: str) -> None:
        """Poll a job now if there are waits for it, because it was changed."""
        for watch in list(self._by_id.get(job_id, ())):
            self.hurry(watch)

    def _drop(self, watch: Subscription) -> None:
        watch.over = True
        self._timers.remove(watch)
        self._riding.discard(watch)
        self._parked.discard(watch)
        same = self._by_id.get(watch.job_id, [])
        if watch not in same:
            return
        same.remove(watch)
        self._size -= 1
        if not same:
            del self._by_id[watch.job_id]
            self._lookups.forget(watch.job_id)
        if not self._size:
            self._wake.set()
            if self._round is not None:
                self._round.cancel()

    # ---- the timers ----------------------------------------------------------------------------

    def _arm(self, watch: Subscription, when: float) -> None:
        if self._timers.put(watch, when):
            self._wake.set()

    def _served(self, watch: Subscription, now: float) -> None:
        """Set the time of the next poll after an answer or a failure, or end the wait."""
        watch.asked = False
        self._riding.discard(watch)
        self._parked.discard(watch)
        if watch.over:
            self._drop(watch)
            return
        pause = watch.plan.pause(now, streamed=watch.streamed)
        if watch.hurried:
            pause = min(pause, max(0.0, watch.rests_until - now))
        watch.soon = now + pause / 2
        self._arm(watch, now + pause)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._size:
                self._wake.clear()
                delay = self._dispatch(self.clock())
                timer = loop.call_later(max(delay, _TICK), self._wake.set) if delay < math.inf else None
                await self._wake.wait()
                if timer is not None:
                    timer.cancel()
        except Exception as error:  # a bug must not leave waits without a poller
            log.exception("The job poller failed.")
            for watch in [watch for same in self._by_id.values() for watch in same]:
                watch.fail(error)
                self._drop(watch)
        finally:
            self._task = None

    def _dispatch(self, now: float) -> float:
        """Start what is due. Returns the seconds until the next timer."""
        due: list[Subscription] = []
        for watch in self._timers.due(now):
            if not watch.asked or (watch.hurried and watch.plan.left(now) > 0):
                due.append(watch)
                continue
            watch.failed(None, now)  # the deadline came before the answer
            if watch.over:
                self._drop(watch)
            else:
                self._arm(watch, now + max(watch.plan.left(now), 0.001))
        if due:
            self._share_out(due, now)
        return min(self._lookups.start(now, freely=not self._many), self._timers.pause(now))

    def _share_out(self, due: list[Subscription], now: float) -> None:
        """Decide which jobs are looked up one by one, and which by the list."""
        one_by_one = not (self._many and self._breaker.may_list(now))
        if any(watch.last is None for watch in due):
            self._first_poll = now
        together: list[Subscription] = []
        for watch in due:
            if one_by_one or watch.hurried:
                self._poll_alone(watch, now)
            elif self._round is None:
                together.append(watch)
            else:  # under way, and it may show this one too; many pages take long, but come one by one
                ends = watch.plan.left(now) <= 0
                patience = (
                    self._round_began + self.limits.slow_at_the_end if ends else self._page_came + self.limits.slow
                )
                if now >= patience:
                    self._poll_alone(watch, now)
                else:
                    self._arm(watch, patience)
                    self._parked.add(watch)
        if together:
            # Jobs queued for a lookup as well: the queue empties slowly, and the list may show them first.
            queue = self._lookups.queue
            # All that are due must be among them, as they have no timer any more.
            soon = dict.fromkeys(together) | {
                w: None
                for same in self._by_id.values()
                for w in same
                if w.soon <= now and (not w.asked or w.job_id in queue)
            }
            if len({watch.job_id for watch in soon}) > self.limits.few:
                self._begin_round(list(soon), now)
            else:
                for watch in together:
                    self._poll_alone(watch, now)

    def _asks(self, watch: Subscription, now: float) -> None:
        watch.asked = True
        self._riding.discard(watch)
        ends = watch.plan.deadline
        self._arm(watch, max(ends, min(now, ends) + _LATE))

    # ---- single lookups ------------------------------------------------------------------------

    def _poll_alone(self, watch: Subscription, now: float) -> None:
        self._asks(watch, now)
        self._lookups.ask(watch.job_id, at_once=watch.hurried)
        if watch.hurried:
            watch.hurried, watch.rests_until = False, now + self.limits.wake

    async def _lookup(self, job_id: str) -> Job:
        try:
            return await self._service.fetch_job(job_id)
        except NotFound:
            now = self.clock()
            doubtful = [watch for watch in self._by_id.get(job_id, ()) if watch.plan.is_doubtful(now)]
            if not doubtful:
                raise
            try:
                listed = await self._find_in_list(job_id)
            except (QuantumRuntimeError, TimeoutError) as error:
                log.debug("the job list does not show whether job %s exists: %s", job_id, error)
            else:
                if listed is not None:
                    return listed
                for watch in doubtful:
                    watch.plan.unlisted = True
            raise

    async def _find_in_list(self, job_id: str) -> Job | None:
        """The job as the newest page shows it, or None: a job too new for a lookup would be there."""
        async with asyncio.timeout(self.limits.page):
            entries = await self._service.list_page(Page(LARGEST_PAGE))
        return next((self._service.read_listed(entry) for entry in entries if entry.get("id") == job_id), None)

    def _on_outcome(self, job_id: str, outcome: Job | Exception) -> None:
        """Process the outcome of one lookup."""
        now = self.clock()
        self._wake.set()
        watches = list(self._by_id.get(job_id, ()))
        if isinstance(outcome, Job):
            self._breaker.answered(now)
            if outcome.is_terminal:
                self._breaker.job_ended(job_id, now)
            self.note(job_id)
            for watch in watches:
                watch.listed_as = None
                watch.saw(outcome, now)
                self._served(watch, now)
            return
        if isinstance(outcome, QuantumRuntimeError) and outcome.advice.may_repeat:
            self._breaker.unanswered += 1
            if self._breaker.is_down:  # the other lookups in the queue would fail in the same way
                for other in list(self._lookups.queue):
                    self._lookups.withdraw(other)
                    watches += self._by_id[other]
        else:
            self._breaker.answered(now)
        for watch in watches:
            if isinstance(outcome, QuantumRuntimeError):
                watch.failed(outcome, now)
            else:
                watch.fail(outcome)
            self._served(watch, now)

    # ---- the list ------------------------------------------------------------------------------

    def _begin_round(self, watches: list[Subscription], now: float) -> None:
        for watch in watches:
            self._asks(watch, now)
        self._riding = set(watches)
        self._first_poll = self._round_began = self._page_came = now
        self._round = asyncio.get_running_loop().create_task(self._together())
        # No `finally` in the round itself: a task that is cancelled before its first step never reaches it.
        self._round.add_done_callback(self._round_over)

    def _round_over(self, _: asyncio.Task[None]) -> None:
        self._round = None
        now = self.clock()
        for watch in list(self._riding):  # the list did not show them
            self._poll_alone(watch, now)
        parked, self._parked = self._parked, set()
        for watch in parked:
            if not watch.asked:
                self._arm(watch, now)
        self._wake.set()

    async def _together(self) -> None:
        walk = JobListPager((watch.job_id, watch.created) for watch in self._riding)
        try:
            while (page := walk.next()) is not None:
                if (delay := self._throttle.take(self.clock())) > 0:
                    await asyncio.sleep(delay)
                asked = self.clock()
                async with asyncio.timeout(self.limits.page):
                    entries = await self._service.list_page(page)
                self._read(entries, asked)
                newest, oldest = listed_moments(entries)
                walk.took((str(entry.get("id")) for entry in entries), newest=newest, oldest=oldest)
            self._rounds += 1
            if self._rounds % self.limits.verify == 0:
                self._verify()
        except Exception as error:  # any error, also for unforeseen answers: single lookups decide
            log.debug("the job list cannot be read", exc_info=True)
            self._breaker.list_failed(error, self.clock())

    def _read(self, entries: list[dict[str, Any]], asked: float) -> None:
        """Give every wait its job's entry in the list."""
        now = self._page_came = self.clock()
        self._breaker.list_worked(now)
        for entry in entries:
            job_id = entry.get("id")
            same = self._by_id.get(job_id) if isinstance(job_id, str) else None
            if not same:
                if (
                    isinstance(job_id, str)
                    and job_id in self._breaker.ended
                    and not self._service.read_listed(entry).is_terminal
                ):
                    self._breaker.listed_alive(job_id, asked, now)
                continue
            state, top = entry.get("state"), entry.get("status")
            said = (state.get("status") if isinstance(state, dict) else None, top)
            job: Job | None = None
            self._lookups.withdraw(entry["id"])
            for watch in list(same):
                if watch.listed_as == said:
                    watch.same(now)
                    self._served(watch, now)
                    continue
                job = job or self._service.read_listed(entry)
                behind = watch.plan.status is JobStatus.RUNNING and job.status is JobStatus.QUEUED
                if behind or (job.is_terminal and not listed_whole(entry, job)):
                    self._poll_alone(watch, now)
                    continue
                watch.listed_as = said
                self.note(job.id)
                watch.saw(job, now)
                self._served(watch, now)

    def _verify(self) -> None:
        """Look one job up by itself, each in turn: a list that is stuck would otherwise hold the waits forever."""
        job_id = next(iter(self._by_id), None)
        if job_id is None:
            return
        same = self._by_id[job_id] = self._by_id.pop(job_id)
        if not same[0].asked:
            same[0].hurried = True
            self._poll_alone(same[0], self.clock())


async def follow_job(
    service: Service,
    job_id: str,
    *,
    watcher: JobPoller,
    deadlines: Deadlines,
    on_timeout: OnTimeout = "leave",
    stream: Stream = "auto",
    in_session: bool = False,
    pace: PollIntervals | None = None,
    on_change: OnChange | None = None,
    once: bool = False,
    known: bool = False,
) -> Job:
    """Wait until the service itself says that the job is over.

    An outage of the service or of IAM does not end the wait, nor does an answer that is not the service's own. A
    websocket only makes the next poll come earlier.

    Args:
        service: The calls of the service.
        job_id: Which job.
        watcher: The poller, the same for all waits on an instance.
        deadlines: When to stop waiting.
        on_timeout: `leave` lets the job live on, `cancel` cancels it first.
        stream: Whether to use a websocket, if one is free.
        in_session: Poll at the faster pace from the start.
        pace: Times between polls.
        on_change: Awaited at the first answer and at each change of state, with the seconds waited.
        once: End with the service's first answer about the job, whatever its state.
        known: The job is known to exist, so that a refusal to show it is not believed at once. Jobs that this process
            submitted or saw are known anyway.

    Returns:
        The job in a terminal state, whichever it is; with `once` in any state.

    Raises:
        JobTimeout: A deadline passed.
        NotFound: There is no such job.
        QuantumRuntimeError: The service refused to show the job, or an outage outlasted its limit.
    """
    plan = PollSchedule(
        deadlines.check(), started=watcher.clock(), pace=pace or USUAL_PACE, in_session=in_session, rng=watcher.rng
    )
    plan.known = known
    watch = watcher.enter(job_id, plan, every_change=once or on_change is not None)
    try:
        watcher.listen(watch, stream)
        while True:
            event = await watch.next_event()
            if isinstance(event, Expired):
                end = await _give_up(service, job_id, plan, event.limit, on_timeout, watch.last, event.at)
                if end is not None:
                    return end
                plan.ran = True
                await watcher.leave(watch)
                watch = watcher.enter(job_id, plan, every_change=once or on_change is not None)
                watcher.listen(watch, stream)
                continue
            if on_change is not None:
                await on_change(event.job, event.waited)
            if once or event.job.is_terminal:
                return event.job
    finally:
        await watcher.leave(watch)


async def _give_up(
    service: Service,
    job_id: str,
    plan: PollSchedule,
    limit: str,
    on_timeout: OnTimeout,
    last: Job | None,
    now: float,
) -> Job | None:
    """End the wait: cancel the job if that is wished, and raise; None if the wait goes on, because the job runs."""
    cancelled, fate = False, "it lives on"
    if on_timeout == "cancel" and limit != "outage":
        try:
            # In an outage it may have begun to run: then the limit on the queue was kept.
            if limit == "queue_timeout" and plan.answered < plan.deadline:
                last = await service.fetch_job(job_id)
                if last.status not in (JobStatus.QUEUED, None):
                    return None
            last = await service.cancel(job_id)
        except QuantumRuntimeError as error:
            requested = error.fields.get("requested")
            fate = error.message if requested else f"cancelling it failed ({error.message}), so {fate}"
        else:
            cancelled = last.status is JobStatus.CANCELLED and not last.ran_too_long
            if last.is_terminal and not cancelled:
                return last
            fate = (
                "it was cancelled" if cancelled else f"its cancellation has not happened yet, though accepted: {fate}"
            )
    state = "unknown" if last is None else last.raw_status
    raise JobTimeout(
        f"waited {now - plan.started:.0f} s for job {job_id} and stopped ({limit}): {fate}"
        + ("" if cancelled else f" (last state {state!r})."),
        solution=None
        if cancelled
        else f"Attach again with wait_for_completion(credentials, {job_id!r}), or end it with cancel_job.",
        job_id=job_id,
        job_url=last.url if last else None,
        limit=limit,
        waited_seconds=round(now - plan.started, 3),
        last_status=state,
        cancelled=cancelled,
    )
