"""When to look at a job next, and when to stop: pure arithmetic, no clock and no socket of its own.

The end of a job is noticed within `max(0.5 s, 2 % of the time spent in the present state)`, so an hour in
the queue costs about 300 looks; while it runs, or in a session, the first looks come faster.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job, JobStatus

__all__ = ["Deadlines", "PollIntervals", "PollLimits", "PollSchedule", "TimerQueue", "TokenBucket"]


@dataclass(frozen=True, slots=True)
class PollIntervals:
    """Seconds between looks.

    Attributes:
        queued: Shortest pause while queued.
        lively: Shortest pause while running or in a session.
        share: Pause as a share of the time spent in the present state.
        longest: Longest pause.
        streamed: Shortest pause while a websocket is connected (it wakes us earlier).
        streamed_share: As `share`, while a websocket is connected.
        outage: Shortest pause after a look that failed.
        longest_asked: Longest `Retry-After` that is honoured.
    """

    queued: float = 0.5
    lively: float = 0.4
    share: float = 0.02
    longest: float = 60.0
    streamed: float = 5.0
    streamed_share: float = 0.05
    outage: float = 1.0
    longest_asked: float = 3600.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Limits of one wait, in seconds from its start; None means no limit.

    Attributes:
        total: The whole wait.
        queue: Until the job runs.
        outage: Time without a single usable answer.
        unseen: How long a 404 counts as "not visible yet" right after the start.
    """

    total: float | None = None
    queue: float | None = None
    outage: float | None = 4 * 3600.0
    unseen: float = 60.0

    def check(self) -> Deadlines:
        """Refuse limits that make no sense.

        Raises:
            InvalidInput: A limit is not a positive number.
        """
        for field_name, value in (("timeout", self.total), ("queue_timeout", self.queue)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
                raise InvalidInput("must be a positive number of seconds or None", field=field_name)
        return self


@dataclass(slots=True)
class PollSchedule:
    """The state of one wait. Feed it what was seen; it says when to look again and when to stop.

    Example:
        ```python
        from prefect_qruntime.client.waiting.plan import Deadlines, PollSchedule

        plan = PollSchedule(Deadlines(total=60), started=0.0)
        assert 0 < plan.pause(now=0.0) <= 0.5
        assert plan.expired(now=61.0) == "timeout"
        ```
    """

    deadlines: Deadlines
    started: float
    pace: PollIntervals = field(default_factory=PollIntervals)
    in_session: bool = False
    rng: random.Random = field(default_factory=random.Random)
    status: JobStatus | None = JobStatus.QUEUED
    since: float = field(init=False)
    answered: float = field(init=False)
    failures: int = 0
    asked: float = 0.0
    seen: bool = False
    ran: bool = False

    def __post_init__(self) -> None:
        self.since = self.started
        self.answered = self.started

    def saw(self, job: Job, now: float) -> bool:
        """Note an answer. Returns whether the state changed since the last one."""
        changed = not self.seen or job.status is not self.status
        if changed:
            self.status, self.since = job.status, now if self.seen else self.started
        self.seen, self.failures, self.answered = True, 0, now
        # A state this version does not know is no proof that it runs: `queue_timeout` goes on counting.
        self.ran = self.ran or job.status not in (JobStatus.QUEUED, None)
        self.in_session = self.in_session or job.session_id is not None
        return changed

    def same(self, now: float) -> None:
        """Note an answer that says the same as the last one."""
        self.failures, self.answered = 0, now

    def missed(self, asked: float | None = None) -> bool:
        """Note a look that got no usable answer. Returns whether it is the first of an outage.

        Args:
            asked: Seconds the service asked to wait (`Retry-After`).
        """
        self.failures += 1
        self.asked = min(asked or 0.0, self.pace.longest_asked)
        return self.failures == 1

    def pause(self, now: float, *, streamed: bool = False) -> float:
        """Seconds until the next look, never past a deadline."""
        spent = max(0.0, now - self.since)
        if self.failures:
            pause = min(self.pace.outage * 2.0 ** min(self.failures - 1, 6), self.pace.longest)
        elif streamed:
            pause = max(self.pace.streamed, self.pace.streamed_share * spent)
        else:
            lively = self.in_session or self.status is JobStatus.RUNNING
            pause = max(self.pace.lively if lively else self.pace.queued, self.pace.share * spent)
        # Jitter only shortens, so that the promise on lag holds; it keeps many waits from marching in step.
        pause = min(pause, self.pace.longest) * self.rng.uniform(0.85, 1.0)
        if self.failures:
            pause = max(pause, self.asked)
        return min(pause, self.left(now))

    @property
    def deadline(self) -> float:
        """When the nearest limit passes; infinity without one."""
        limits, ends = self.deadlines, math.inf
        if limits.total is not None:
            ends = self.started + limits.total
        if limits.queue is not None and not self.ran:
            ends = min(ends, self.started + limits.queue)
        return ends

    def left(self, now: float) -> float:
        """Seconds until the nearest deadline, not below 0; infinity without one."""
        left = self.deadline - now
        return left if left > 0.0 else 0.0

    def expired(self, now: float) -> str | None:
        """Which limit has passed: `timeout`, `queue_timeout`, `outage` or None."""
        limits = self.deadlines
        if limits.total is not None and now >= self.started + limits.total:
            return "timeout"
        if limits.queue is not None and not self.ran and now >= self.started + limits.queue:
            return "queue_timeout"
        if limits.outage is not None and self.failures and now >= self.answered + limits.outage:
            return "outage"
        return None

    def may_be_unseen(self, now: float) -> bool:
        """Whether a 404 may still mean that the service does not show the new job yet."""
        return not self.seen and now < self.started + self.deadlines.unseen


@dataclass(frozen=True, slots=True)
class PollLimits:
    """Sizes and times (seconds) of a watcher.

    Attributes:
        few: Up to so many jobs are looked at one by one.
        lanes: Single looks under way at once, where there are more.
        sockets: Most websockets at once; the other jobs are polled.
        rate: Requests a second where there are more than a few jobs.
        gather: A new wait's first look may be this much later, so that it can share one.
        slow: A list that takes longer is no longer waited for.
        slow_at_the_end: The same for a wait whose deadline has come.
        page: Longest time for one page.
        relist: How long a list that is refused or behind is left alone.
        behind: How much later than the job itself the list may show a change.
        verify: Every so many lists one job is looked at by itself.
    """

    few: int = 2
    lanes: int = 4
    sockets: int = 8
    rate: float = 20.0
    gather: float = 0.28
    slow: float = 2.0
    slow_at_the_end: float = 0.5
    page: float = 10.0
    relist: float = 600.0
    behind: float = 5.0
    verify: int = 8


@dataclass(slots=True)
class TokenBucket:
    """At most `rate` requests a second over time, `burst` of them at once.

    Example:
        ```python
        from prefect_qruntime.client.waiting.plan import TokenBucket

        throttle = TokenBucket(rate=10.0, burst=1.0)
        assert throttle.take(now=0.0) == 0.0
        assert throttle.take(now=0.0) == 0.1
        ```
    """

    rate: float = 20.0
    burst: float = 20.0
    credit: float = field(init=False)
    counted: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.credit = self.burst

    def wait(self, now: float) -> float:
        """Seconds until a request may go."""
        self._count(now)
        return max(0.0, (1.0 - self.credit) / self.rate)

    def take(self, now: float) -> float:
        """Take a request's place. Returns the seconds to wait before it goes."""
        wait = self.wait(now)
        self.credit -= 1.0
        return wait

    def _count(self, now: float) -> None:
        if now > self.counted:
            self.credit = min(self.burst, self.credit + (now - self.counted) * self.rate)
            self.counted = now


T = TypeVar("T")

_SLACK = 64


class TimerQueue(Generic[T]):
    """Dates of hashable things; a new date replaces the old one.

    Example:
        ```python
        from prefect_qruntime.client.waiting.plan import TimerQueue

        calendar = TimerQueue[str]()
        calendar.put("d1", 5.0)
        calendar.put("d1", 3.0)
        assert calendar.pause(now=1.0) == 2.0
        assert calendar.due(now=9.0) == ["d1"]
        assert calendar.due(now=9.0) == []
        ```
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._valid: dict[T, int] = {}  # which entry counts
        self._last = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: T, when: float) -> bool:
        """Set a date; infinity means none. Returns whether it is the next one of all."""
        self._last += 1
        if when == math.inf:
            self._valid.pop(item, None)
        else:
            self._valid[item] = self._last
            heapq.heappush(self._heap, (when, self._last, item))
        self._shrink()
        return bool(self._heap) and self._heap[0][1] == self._last

    def remove(self, item: T) -> None:
        """Forget a thing and its date."""
        self._valid.pop(item, None)
        self._shrink()

    def due(self, now: float) -> list[T]:
        """Take out everything whose date has come, earliest first."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            _, number, item = heapq.heappop(self._heap)
            if self._valid.get(item) == number:
                del self._valid[item]
                found.append(item)
        return found

    def pause(self, now: float) -> float:
        """Seconds until something may be due; infinity when nothing is."""
        return max(0.0, self._heap[0][0] - now) if self._heap else math.inf

    def _shrink(self) -> None:
        # Entries that were replaced would else stay until their time, which may be days away.
        if len(self._heap) > 2 * len(self._valid) + _SLACK:
            self._heap = [entry for entry in self._heap if self._valid.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
