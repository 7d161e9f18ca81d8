"""Follow a job's websocket, which serves one purpose: to wake the poller.

Facts (legacy service, `/stream/jobs/{id}`): the first message is only an acknowledgement, the next ones
are results, close 1000 means the server is done, which can be before the job's state says so. The
present cloud service has no socket. So nothing read here is believed: each message wakes the poller, and
`GET /jobs/{id}` decides. A socket that sends too much is closed, so that it cannot keep the process busy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect as _connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, WebSocketException

from prefect_qruntime.client.connection import is_loopback
from prefect_qruntime.client.transport.http import Transport
from prefect_qruntime.client.waiting.plan import TokenBucket
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.redact import get_logger, redact

__all__ = ["JobStream", "StreamSettings"]

log = get_logger(__name__)

# 1000: the server is done. 4002 and 4003 (job finished, job unknown) belong to the older job-status
# socket and mean the same to us.
_FINISHED = (1000, 4002, 4003)
_TOO_LARGE = 1009  # we refused a frame, and the only large one is the result; the server seldom replies
Ending = Literal["done", "refused", "given-up"]


class _Flooded(Exception):
    """A socket sends more messages than are of any use."""


class _connect_here(_connect):
    """A connection that follows no redirect, because the handshake carries the token."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Times of a socket in seconds, and how many messages it may send: `burst` at once and `rate` a second."""

    open_timeout: float = 10.0
    ping_interval: float = 20.0
    ping_timeout: float = 10.0
    reconnects: int = 5
    first_pause: float = 0.5
    longest_pause: float = 8.0
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
            too many broken connections or a flood of messages. In every case polling continues.
        """
        failures = 0
        renewed = False
        while True:
            try:
                ended, heard = await self._one_connection()
                failures = 0 if heard else failures + 1
                if ended:
                    return "done"
            except _Flooded:
                log.info("The websocket of a job sent too many messages and was closed. The job is polled.")
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
            socket = await self._open(await self._transport.auth_headers())
        except InvalidStatus as exc:
            return f"HTTP {exc.response.status_code}"
        except (OSError, TimeoutError, WebSocketException) as exc:
            return redact(str(exc)) or type(exc).__name__
        socket.transport.abort()  # as in `follow`: the server's side of a close may take long
        return None

    async def _one_connection(self) -> tuple[bool, bool]:
        """Serve one connection. Returns (socket is finished, it brought more than the acknowledgement).

        Raises:
            _Flooded: It sends more messages than are of any use.
        """
        headers = await self._transport.auth_headers()
        self._last_token = headers["Authorization"].removeprefix("Bearer ")
        heard = 0
        too_large = False
        bucket, clock = TokenBucket(self._settings.rate, self._settings.burst), asyncio.get_running_loop().time
        async with await self._open(headers) as socket:
            self.connected = True
            try:
                async for _ in socket:
                    heard += 1
                    if bucket.take(clock()) > 0:
                        socket.transport.abort()
                        raise _Flooded
                    if heard > 1:  # the first message is only an acknowledgement
                        self._wake()
            except ConnectionClosed as exc:
                too_large = exc.sent is not None and exc.sent.code == _TOO_LARGE
            except asyncio.CancelledError:
                # The job is over: a closing handshake with a silent server would only cost time.
                socket.transport.abort()
                raise
            finally:
                self.connected = False
                self._wake()
        return too_large or socket.close_code in _FINISHED, heard > 1

    async def _open(self, headers: dict[str, str]) -> ClientConnection:
        settings = self._settings
        local = is_loopback(urlsplit(self._url).hostname)
        return await _connect_here(
            self._url,
            additional_headers={k: v for k, v in headers.items() if k != "Accept"},
            open_timeout=settings.open_timeout,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            close_timeout=2.0,
            max_size=2**20,
            compression=None,
            proxy=self._transport.connection.proxy or (None if local else True),
            ssl=self._transport.tls if self._url.startswith("wss") else None,
            process_exception=lambda exc: exc,
            logger=log,
        )
