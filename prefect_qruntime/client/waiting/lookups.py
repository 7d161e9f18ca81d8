"""Look up single jobs in the order in which they were asked for, a few at a time; share out websockets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from prefect_qruntime.client.waiting.plan import TokenBucket
from prefect_qruntime.client.waiting.subscription import Subscription
from prefect_qruntime.client.waiting.websocket import Ending, JobStream
from prefect_qruntime.models import Job
from prefect_qruntime.redact import get_logger

__all__ = ["LookupQueue", "Sockets", "Stream"]


class LookupQueue:
    """Looks jobs up one by one and reports each outcome.

    Args:
        look: Asks the service.
        told: Called with the job's id and the job, or the error instead.
        lanes: Lookups in flight at once, unless `freely`.
        throttle: How many a second, unless `freely`.
    """

    def __init__(
        self,
        look: Callable[[str], Awaitable[Job]],
        told: Callable[[str, Job | Exception], None],
        *,
        lanes: int,
        throttle: TokenBucket,
    ) -> None:
        self.queue: dict[str, None] = {}  # in order, each once
        self.flying: dict[str, asyncio.Task[None]] = {}
        self._look = look
        self._told = told
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
        """Take a job out of the queue: it was answered for otherwise."""
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
            outcome = await self._look(job_id)
        except Exception as error:
            outcome = error
        finally:
            if self.flying.get(job_id) is asyncio.current_task():  # a forgotten one may have a successor
                del self.flying[job_id]
        self._told(job_id, outcome)


log = get_logger(__name__)

Stream = Literal["auto", "always", "never"]


class _Service(Protocol):
    """What sockets need of the service."""

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None: ...

    def stream_ended(self, ending: Ending) -> None: ...


class Sockets:
    """Gives websockets to waits, up to a limit; the other waits are polled until one is free.

    Args:
        service: The calls of the service.
        limit: Most sockets at once.
        hurry: Called with a wait whose job should be polled now.
    """

    def __init__(self, service: _Service, *, limit: int, hurry: Callable[[Subscription], None]) -> None:
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
        except Exception:  # the socket only saves time: whatever breaks there must not end the wait
            log.debug("the websocket failed", exc_info=True)
        self._hurry(watch)

    def _free(self) -> None:
        self.open -= 1
        while self.waiting and self.open < self._limit:
            watch = next(iter(self.waiting))
            self.listen(watch, self.waiting.pop(watch))
