"""One wait as the `JobPoller` keeps it, the queue from which its caller takes events, and its share of websockets.

A job's websocket serves one purpose: to wake the poller. Facts (legacy service, `/stream/jobs/{id}`): the first
message is only an acknowledgement, the next ones are results, close 1000 means the server is done, which can be before
the job's state says so. The present cloud service has no socket. So nothing read here is believed: each message wakes
the poller, and `GET /jobs/{id}` decides. A socket that sends too much is closed, so that it cannot keep the process
busy.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect as _connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, WebSocketException
from websockets.protocol import Event, State

from prefect_qruntime.client.failures import is_refusal
from prefect_qruntime.client.transport.http import Transport, is_secure, proxy_of
from prefect_qruntime.client.waiting.plan import PollSchedule, TokenBucket
from prefect_qruntime.errors import NotFound, QuantumRuntimeError
from prefect_qruntime.models import Job
from prefect_qruntime.redact import get_logger, redact

__all__ = ["Expired", "JobStream", "Seen", "Sockets", "Stream", "StreamSettings", "Subscription"]


log = get_logger(__name__)

# 1000: the server is done. 4002 and 4003 (job finished, job unknown) belong to the older job-status
# socket and mean the same to us.
_FINISHED = (1000, 4002, 4003)
_PART = 4096  # bytes that are read at once: 2,000 of the smallest frames, which take 15 ms
_TOO_LARGE = 1009  # we refused a frame, and the only large one is the result; the server seldom replies
Ending = Literal["done", "refused", "given-up"]

Stream = Literal["auto", "always", "never"]


class _Flooded(Exception):
    """A socket sends more frames than are of any use."""


class _Socket(ClientConnection):
    """A connection that breaks off if too many frames arrive: messages, or pings and fragments, which never end one.

    Args:
        bucket: One token for each frame.
    """

    def __init__(self, *args: Any, bucket: TokenBucket, **options: Any) -> None:
        super().__init__(*args, **options)
        self.flooded = False
        self._bucket = bucket

    def data_received(self, data: bytes) -> None:
        """Read what arrived, in small parts."""
        for start in range(0, len(data), _PART):
            if not self.flooded:
                super().data_received(data[start : start + _PART])

    def start_keepalive(self) -> None:
        """Ping from now on, unless the connection is lost already: the first ping would log an error."""
        if self.protocol.state is State.OPEN:
            super().start_keepalive()

    def process_event(self, event: Event) -> None:
        """Count the frame."""
        if not self.flooded and self._bucket.take(self.loop.time()) > 0:
            self.flooded = True
            self.transport.abort()
        if not self.flooded:
            super().process_event(event)


class _connect_here(_connect):
    """A connection that follows no redirect, because the handshake carries the token."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Times of a socket in seconds, and how many frames it may send: `burst` at once and `rate` a second.

    A connection that breaks sooner than after `lasting` is a failure, whatever it brought.
    """

    open_timeout: float = 10.0
    ping_interval: float = 20.0
    ping_timeout: float = 10.0
    reconnects: int = 5
    first_pause: float = 0.5
    longest_pause: float = 8.0
    lasting: float = 30.0
    burst: float = 100.0
    rate: float = 10.0


class JobStream:
    """Follow one job's socket and call `wake` at every message after the acknowledgement.

    Args:
        transport: Gives host and, at every connect, fresh headers.
        path: The socket's path below the API's base URL.
        wake: Called when the job's state may have changed.
        settings: Times.
        sleep: For the pauses between reconnects.
    """

    def __init__(
        self,
        transport: Transport,
        path: str,
        wake: Callable[[], None],
        *,
        settings: StreamSettings | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        base = transport.connection.base_url
        self._url = "ws" + base.removeprefix("http") + path
        self._transport = transport
        self._wake = wake
        self._settings = settings or StreamSettings()
        self._sleep = sleep
        self._last_token = ""
        self.connected = False

    async def follow(self) -> Ending:
        """Follow the socket until it has no more to say.

        Returns:
            `done` after a normal close, `refused` when the host has no such socket, `given-up` after
            too many broken connections or a flood of frames. In every case polling continues.
        """
        failures = 0
        renewed = False
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                ended, heard = await self._one_connection()
                # One that breaks after each message would be opened twice a second for hours, with a poll each time.
                failures = 0 if heard and clock() - began >= self._settings.lasting else failures + 1
                if ended:
                    return "done"
            except _Flooded:
                log.info("The websocket of a job sent too many frames and was closed. The job is polled.")
                return "given-up"
            except InvalidStatus as exc:
                status = exc.response.status_code
                if status == 401 and not renewed:
                    renewed = True
                    self._transport.tokens.discard(self._last_token)
                    continue
                log.debug("websocket refused with HTTP %s", status)
                if status < 500 and status not in (408, 429):
                    return "refused"
                failures += 1
            except QuantumRuntimeError as exc:  # no token: the poller meets the same and reports it
                log.debug("no token for the websocket: %s", exc)
                failures += 1
            except ImportError as exc:  # `python-socks`, for a SOCKS proxy
                log.debug("no websocket: %s", exc)
                return "refused"
            except (OSError, TimeoutError, WebSocketException) as exc:
                if isinstance(exc, InvalidHandshake):
                    log.debug("websocket handshake failed: %s", redact(str(exc)))
                    if not isinstance(exc, InvalidMessage):  # an answer that broke off says nothing about the host
                        return "refused"
                failures += 1
            if failures > self._settings.reconnects:
                return "given-up"
            pause = min(self._settings.first_pause * 2 ** max(failures - 1, 0), self._settings.longest_pause)
            await self._sleep(pause * random.uniform(0.7, 1.0))  # noqa: S311 - jitter, no secret

    async def knock(self) -> str | None:
        """Open the socket once and close it. Returns why it did not open, None if it did."""
        try:
            socket = await self._open()
        except InvalidStatus as exc:
            return f"HTTP {exc.response.status_code}"
        except (OSError, TimeoutError, WebSocketException, ImportError) as exc:
            return redact(str(exc)) or type(exc).__name__
        socket.transport.abort()  # as in `follow`: the server's side of a close may take long
        return None

    async def _one_connection(self) -> tuple[bool, bool]:
        """Serve one connection. Returns (socket is finished, it brought more than the acknowledgement).

        Raises:
            _Flooded: It sends more frames than are of any use.
        """
        heard = 0
        too_large = False
        socket = await self._open()
        async with socket:
            self.connected = True
            try:
                async for _ in socket:
                    heard += 1
                    if heard > 1:  # the first message is only an acknowledgement
                        self._wake()
            except ConnectionClosed as exc:
                too_large = exc.sent is not None and exc.sent.code == _TOO_LARGE
            except BaseException:
                # The job is over: a closing handshake with a silent server would only cost time. In the middle of a
                # message, websockets may raise an error of its own in place of the cancellation.
                socket.transport.abort()
                raise
            finally:
                self.connected = False
                self._wake()
        if socket.flooded:
            raise _Flooded
        return too_large or socket.close_code in _FINISHED, heard > 1

    async def _open(self) -> _Socket:
        # The token is in no frame below which messages are read: an error there is logged with its traceback.
        headers = await self._transport.auth_headers()
        self._last_token = headers["Authorization"].removeprefix("Bearer ")
        settings, connection = self._settings, self._transport.connection
        make = functools.partial(_Socket, bucket=TokenBucket(settings.rate, settings.burst))
        proxy = proxy_of(connection, connection.base_url)
        of_proxy: dict[str, Any] = {"proxy_ssl": self._transport.tls} if proxy and is_secure(proxy) else {}
        opened = await _connect_here(
            self._url,
            additional_headers={k: v for k, v in headers.items() if k != "Accept"},
            open_timeout=settings.open_timeout,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            close_timeout=2.0,
            max_size=2**20,
            compression=None,
            proxy=proxy,
            ssl=self._transport.tls if self._url.startswith("wss") else None,
            **of_proxy,
            process_exception=lambda exc: exc,
            create_connection=cast(type[ClientConnection], make),
            logger=log,
        )
        return cast(_Socket, opened)


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


class SocketService(Protocol):
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

    def __init__(self, service: SocketService, *, limit: int, hurry: Callable[[Subscription], None]) -> None:
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
