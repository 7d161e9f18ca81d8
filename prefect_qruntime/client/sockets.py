"""A bounded number of job websockets, shared out among the waits in their order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, Protocol

from prefect_qruntime.client.stream import Ending, JobStream
from prefect_qruntime.client.watch import Watch

__all__ = ["Sockets", "Stream"]

log = logging.getLogger("prefect_qruntime.waiting")

Stream = Literal["auto", "always", "never"]


class _Service(Protocol):
    """What sockets need of the client."""

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None: ...

    def stream_ended(self, ending: Ending) -> None: ...


class Sockets:
    """Gives waits a websocket while there are some left; the others are polled until one is free.

    Args:
        service: The client.
        limit: Most sockets at once.
        hurry: Told of a wait whose job should be looked at now.
    """

    def __init__(self, service: _Service, *, limit: int, hurry: Callable[[Watch], None]) -> None:
        self.open = 0
        self.waiting: dict[Watch, Stream] = {}
        self._service = service
        self._limit = limit
        self._hurry = hurry

    def listen(self, watch: Watch, stream: Stream) -> None:
        """Give the wait a websocket, where there is one to have, now or later."""
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

    async def close(self, watch: Watch) -> None:
        """Wind up the wait's socket."""
        self.waiting.pop(watch, None)
        if watch.listener is not None:
            watch.listener.cancel()
            await asyncio.wait([watch.listener])  # unlike `await listener`, this keeps a cancellation of ours

    async def _follow(self, watch: Watch, socket: JobStream) -> None:
        try:
            self._service.stream_ended(await socket.follow())
        except Exception:  # the socket is a convenience: whatever breaks there must not end the wait
            log.debug("the websocket failed", exc_info=True)
        self._hurry(watch)

    def _free(self) -> None:
        self.open -= 1
        while self.waiting and self.open < self._limit:
            watch = next(iter(self.waiting))
            self.listen(watch, self.waiting.pop(watch))
