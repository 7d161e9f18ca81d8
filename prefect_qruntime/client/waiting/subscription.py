"""One wait as the `JobPoller` keeps it, the queue from which its caller takes events, and its share of websockets."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from prefect_qruntime.client.failures import is_refusal
from prefect_qruntime.client.waiting.plan import PollSchedule
from prefect_qruntime.client.waiting.websocket import Ending, JobStream
from prefect_qruntime.errors import NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job
from prefect_qruntime.redact import get_logger

__all__ = ["Expired", "Seen", "Sockets", "Stream", "Subscription"]

log = get_logger(__name__)

Stream = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Seen:
    """The job as the service showed it, `waited` seconds after the wait began."""

    job: Job
    waited: float


@dataclass(frozen=True, slots=True)
class Expired:
    """A limit passed: `timeout`, `queue_timeout` or `outage`, at a moment of the poller's clock."""

    limit: str
    at: float


class Subscription:
    """The state of one wait.

    Args:
        job_id: Which job.
        plan: When to poll and when to stop.
        every_change: Whether each change of state is an event, or only the end.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_events",
        "_every_change",
        "_reader",
        "_warned",
        "asked",
        "hurried",
        "job_id",
        "last",
        "listed_as",
        "listener",
        "over",
        "plan",
        "rests_until",
        "socket",
        "soon",
    )

    def __init__(self, job_id: str, plan: PollSchedule, *, every_change: bool) -> None:
        self.job_id = job_id
        self.plan = plan
        self.last: Job | None = None
        self.listed_as: object = None  # the state as the list last gave it: an equal one needs no parsing
        self.over = False
        self.asked = False  # a lookup is queued or in flight
        self.hurried = False
        self.rests_until = plan.started  # the earliest poll that a websocket may request
        self.soon = plan.started  # from then on a poll that costs nothing may be used
        self.socket: JobStream | None = None
        self.listener: asyncio.Task[None] | None = None
        self._every_change = every_change
        self._warned = False
        self._context = contextvars.copy_context()
        self._events: deque[Seen | Expired | BaseException] = deque()
        self._reader: asyncio.Future[None] | None = None

    @property
    def created(self) -> datetime | None:
        """When the job was created, by the service's own clock; None until it was seen."""
        return None if self.last is None else self.last.created_at

    @property
    def streamed(self) -> bool:
        """Whether a websocket is connected, which wakes the poller at the end."""
        return self.socket is not None and self.socket.connected

    # ---- the caller's side ---------------------------------------------------------------------

    async def next_event(self) -> Seen | Expired:
        """Wait for the next event.

        Raises:
            QuantumRuntimeError: The service refused to show the job.
        """
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        item = self._events.popleft()
        if isinstance(item, BaseException):
            raise item
        return item

    def _put(self, item: Seen | Expired | BaseException, *, over: bool) -> None:
        self.over = self.over or over
        self._events.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ---- the poller's side ---------------------------------------------------------------------

    def saw(self, job: Job, now: float) -> None:
        """The service answered."""
        self.last = job
        changed = self.plan.saw(job, now)
        if job.is_terminal or (changed and self._every_change):
            self._put(Seen(job, now - self.plan.started), over=job.is_terminal)
        if job.status is None and not self._warned:
            self._warned = True
            self._warn("job %s: unknown state %r, waiting on", job.id, job.raw_status)
        self.expire(now)

    def same(self, now: float) -> None:
        """The service answered as before."""
        self.plan.same(now)
        self.expire(now)

    def failed(self, error: QuantumRuntimeError | None, now: float) -> None:
        """The poll got no usable answer (None: time ran out). Wait on, and believe a refusal only if it repeats."""
        if error is not None and is_refusal(error):
            if self.plan.refused(now, missing=isinstance(error, NotFound)):
                return self.fail(error)
        elif error is not None and not error.advice.may_repeat:
            return self.fail(error)
        if self.plan.missed(error.advice.seconds if error else None) and error is not None:
            # A foreign answer was logged by the transport when it was first seen.
            why = "" if error.details.get("foreign") else f": {error}"
            self._warn("no answer about job %s for now, waiting on%s", self.job_id, why)
        return self.expire(now)

    def fail(self, error: BaseException) -> None:
        """End the wait with an error."""
        self._put(error, over=True)

    def expire(self, now: float) -> None:
        """End the wait if a limit has passed."""
        if not self.over and (limit := self.plan.expired(now)) is not None:
            self._put(Expired(limit, now), over=True)

    def _warn(self, text: str, *values: object) -> None:
        # In the caller's context, by which Prefect assigns the log line to its run.
        self._context.run(log.warning, text, *values)


class _SocketService(Protocol):
    """What sockets need of the service."""

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None: ...

    def stream_ended(self, ending: Ending) -> None: ...


class Sockets:
    """Assign websockets to waits, up to a limit; the other waits are polled until one is free.

    Args:
        service: The calls of the service.
        limit: Most sockets at once.
        hurry: Called with a wait whose job should be polled now.
    """

    def __init__(self, service: _SocketService, *, limit: int, hurry: Callable[[Subscription], None]) -> None:
        self.open = 0
        self.waiting: dict[Subscription, Stream] = {}
        self._service = service
        self._limit = limit
        self._hurry = hurry

    def listen(self, watch: Subscription, stream: Stream) -> None:
        """Give the wait a websocket, now or once one is free, if the service has them."""
        if stream == "never":
            return
        if self.open >= self._limit:
            self.waiting[watch] = stream
            return
        socket = self._service.job_stream(watch.job_id, lambda: self._hurry(watch), stream)
        if socket is not None:
            self.open += 1
            watch.socket = socket
            watch.listener = asyncio.create_task(self._follow(watch, socket))
            watch.listener.add_done_callback(lambda _: self._free())

    async def close(self, watch: Subscription) -> None:
        """Close the wait's websocket."""
        self.waiting.pop(watch, None)
        if watch.listener is not None:
            watch.listener.cancel()
            await asyncio.wait([watch.listener])  # unlike `await listener`, this keeps a cancellation of ours

    async def _follow(self, watch: Subscription, socket: JobStream) -> None:
        try:
            self._service.stream_ended(await socket.follow())
        except Exception:  # the socket only saves time: no failure of it may end the wait
            log.debug("the websocket failed", exc_info=True)
        self._hurry(watch)

    def _free(self) -> None:
        self.open -= 1
        while self.waiting and self.open < self._limit:
            watch = next(iter(self.waiting))
            self.listen(watch, self.waiting.pop(watch))
