"""Decide when to poll a job next and when to stop: pure arithmetic, without a clock or a socket of its own.

In the queue the pause grows to 8 % of the time spent there, 30 s at most: an hour costs fewer than 200 polls, and
after it the end is noticed within 15 s (median). Once the job runs the pause is 2 % of its running time, at least
0.4 s; in a session the first pauses are as short.
"""

from __future__ import annotations

import heapq
import math
import random
import sys
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job, JobStatus

__all__ = [
    "USUAL_PACE",
    "Deadlines",
    "PollIntervals",
    "PollLimits",
    "PollSchedule",
    "TimerQueue",
    "TokenBucket",
    "is_seconds",
]


@dataclass(frozen=True, slots=True)
class PollIntervals:
    """Seconds between two polls of a job.

    Attributes:
        queued: Shortest pause while queued.
        lively: Shortest pause while running or in a session.
        queued_share: Pause as a share of the time spent in the queue.
        longest_queued: Longest pause in the queue.
        share: Pause as a share of the time spent in another state.
        longest: Longest pause in another state, with a websocket, and in an outage.
        streamed: Shortest pause while a websocket is connected, which wakes the poller earlier.
        streamed_share: Pause as a share of the time spent in the state, while a websocket is connected.
        outage: Shortest pause after a poll without a usable answer.
        longest_asked: Longest `Retry-After` that is honoured.
    """

    queued: float = 0.5
    lively: float = 0.4
    queued_share: float = 0.08
    longest_queued: float = 30.0
    share: float = 0.02
    longest: float = 60.0
    streamed: float = 5.0
    streamed_share: float = 0.05
    outage: float = 1.0
    longest_asked: float = 3600.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidInput: One is negative, or no number.
        """
        for one in fields(self):
            if not is_seconds(getattr(self, one.name), finite=True):
                raise InvalidInput("must be a number, 0 or more", field=one.name)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Limits of one wait, in seconds from its start; None means no limit.

    Attributes:
        total: The whole wait.
        queue: Until the job runs.
        outage: Time without a single usable answer.
        unseen: How long a 404 may mean that a job which was never seen is not visible yet.
        unknown: How long a 404 is repeated for a job that this process neither submitted nor saw, until the newest
            page of the job list decides. If the list cannot be read, `unseen` counts.
        refused: How long a 401, 403 or 404 about a known job must repeat before it is believed.
    """

    total: float | None = None
    queue: float | None = None
    outage: float | None = 4 * 3600.0
    unseen: float = 60.0
    unknown: float = 4.0
    refused: float = 60.0

    def check(self) -> Deadlines:
        """Refuse limits that make no sense.

        Raises:
            InvalidInput: A limit is not a positive number.
        """
        for one in fields(self):
            value = getattr(self, one.name)
            if value == one.default or (value is None and one.name == "outage"):
                continue
            parameter = {"total": "timeout", "queue": "queue_timeout"}.get(one.name)
            if parameter is not None and not (is_seconds(value) and value > 0):
                raise InvalidInput("must be a positive number of seconds or None", field=parameter)
            if not is_seconds(value):
                raise InvalidInput("must be a number of seconds, 0 or more", field=one.name)
        return self


def is_seconds(value: object, *, finite: bool = False) -> bool:
    """Whether a value is a number of seconds, 0 or more, that can be calculated with; True is none.

    Args:
        value: The value.
        finite: Whether infinity is none either.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max or (value == math.inf and not finite)


USUAL_PACE = PollIntervals()


@dataclass(slots=True)
class PollSchedule:
    """The state of one wait: it takes what was seen, and says when to poll again and when to stop.

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
    pace: PollIntervals = USUAL_PACE
    in_session: bool = False
    rng: random.Random = field(default_factory=random.Random)
    known: bool = False
    status: JobStatus | None = JobStatus.QUEUED
    since: float = field(init=False)
    answered: float = field(init=False)
    failures: int = 0
    asked: float = 0.0
    seen: bool = False
    ran: bool = False
    refused_since: float | None = None
    unlisted: bool = False

    def __post_init__(self) -> None:
        self.since = self.started
        self.answered = self.started

    def saw(self, job: Job, now: float) -> bool:
        """Record an answer. Returns whether the state changed since the last one."""
        changed = not self.seen or job.status is not self.status
        if changed:
            self.status, self.since = job.status, now if self.seen else self.started
        self.seen, self.failures, self.answered, self.refused_since = True, 0, now, None
        # A state this version does not know does not prove that the job runs: `queue_timeout` keeps counting.
        self.ran = self.ran or job.status not in (JobStatus.QUEUED, None)
        self.in_session = self.in_session or job.session_id is not None
        return changed

    def same(self, now: float) -> None:
        """Record an answer that equals the last one."""
        self.failures, self.answered, self.refused_since = 0, now, None

    def refused(self, now: float, *, missing: bool) -> bool:
        """Record that the service itself refused to show the job. Returns whether to believe it.

        Args:
            now: The time.
            missing: It says that there is no such job, rather than that it must not be shown.
        """
        if self.refused_since is None:
            self.refused_since = now
        if self.seen or self.known:
            limit = max(self.deadlines.refused, self.deadlines.unseen if missing and not self.seen else 0.0)
            return now >= self.refused_since + limit
        return not missing or self.unlisted or now >= self.started + self.deadlines.unseen

    def is_doubtful(self, now: float) -> bool:
        """Whether the list should decide if the job, which was never seen here, exists at all."""
        return not (self.seen or self.known or self.unlisted) and now >= self.started + self.deadlines.unknown

    def missed(self, asked: float | None = None) -> bool:
        """Record a poll that got no usable answer. Returns whether it is the first of an outage.

        Args:
            asked: Seconds the service asked to wait (`Retry-After`).
        """
        self.failures += 1
        self.asked = min(asked or 0.0, self.pace.longest_asked)
        return self.failures == 1

    def pause(self, now: float, *, streamed: bool = False) -> float:
        """Seconds until the next poll, never past a deadline."""
        pace, spent = self.pace, max(0.0, now - self.since)
        queued, longest = self.status is JobStatus.QUEUED, pace.longest
        if self.failures:
            pause = pace.outage * 2.0 ** min(self.failures - 1, 6)
        elif streamed:
            pause = max(pace.streamed, pace.streamed_share * spent)
        else:
            shortest = pace.lively if self.in_session or self.status is JobStatus.RUNNING else pace.queued
            pause = max(shortest, (pace.queued_share if queued else pace.share) * spent)
            longest = pace.longest_queued if queued else longest
        # Jitter only shortens, so that the limits on the lag hold; it keeps many waits out of step.
        pause = min(pause, longest) * self.rng.uniform(0.85, 1.0)
        if self.failures:
            pause = max(pause, self.asked)
            if self.refused_since is not None:
                pause = min(pause, max(self._until_believed(now), 0.05))
        return min(pause, self.left(now))

    def _until_believed(self, now: float) -> float:
        """Seconds until a refusal can be believed, or the list should be asked."""
        assert self.refused_since is not None  # noqa: S101  # the caller asks
        if self.seen or self.known:
            limit = self.refused_since + self.deadlines.refused
        elif now < self.started + self.deadlines.unknown:
            limit = self.started + self.deadlines.unknown
        else:
            limit = self.started + self.deadlines.unseen
        return limit - now if limit > now else math.inf

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


@dataclass(frozen=True, slots=True)
class PollLimits:
    """Sizes and times (seconds) of a `JobPoller`.

    Attributes:
        few: Up to this many jobs are polled one by one.
        lanes: Single lookups in flight, if there are more jobs.
        sockets: Most websockets at once; the other jobs are polled.
        rate: Requests a second, if there are more than a few jobs.
        gather: A new wait's first poll may be this much later, so that it can share one.
        slow: A list call that takes longer is no longer waited for.
        slow_at_the_end: The same for a wait whose deadline has come.
        page: Longest time for one page.
        relist: How long a list that is refused or stale is not read again.
        behind: How much later than the job itself the list may show a change.
        verify: After this many lists one job is looked up by itself, to check the list.
        wake: Shortest time between two polls of a job that a websocket asks for.
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
    wake: float = 0.25


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
        """Take one token. Returns the seconds to wait before the request goes."""
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
    """A priority queue of timers, one for each item; a new time replaces the old one.

    Example:
        ```python
        from prefect_qruntime.client.waiting.plan import TimerQueue

        timers = TimerQueue[str]()
        timers.put("d1", 5.0)
        timers.put("d1", 3.0)
        assert timers.pause(now=1.0) == 2.0
        assert timers.due(now=9.0) == ["d1"]
        assert timers.due(now=9.0) == []
        ```
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._valid: dict[T, int] = {}  # which entry counts
        self._last = 0

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: T, when: float) -> bool:
        """Set an item's time; infinity means none. Returns whether it is the earliest of all."""
        self._last += 1
        if when == math.inf:
            self._valid.pop(item, None)
        else:
            self._valid[item] = self._last
            heapq.heappush(self._heap, (when, self._last, item))
        self._shrink()
        return bool(self._heap) and self._heap[0][1] == self._last

    def remove(self, item: T) -> None:
        """Forget an item and its time."""
        self._valid.pop(item, None)
        self._shrink()

    def due(self, now: float) -> list[T]:
        """Take out the items whose time has come, earliest first."""
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
        # Replaced entries would otherwise stay until their time, which may be days away.
        if len(self._heap) > 2 * len(self._valid) + _SLACK:
            self._heap = [entry for entry in self._heap if self._valid.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
