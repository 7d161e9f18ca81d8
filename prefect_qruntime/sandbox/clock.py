"""The service's clock, which may run faster or slower than real time, and its timers."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any


class Timer:
    """One scheduled call that can be cancelled."""

    __slots__ = ("args", "call", "when")

    def __init__(self, when: float, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.when = when
        self.call: Callable[..., None] | None = call
        self.args = args

    def cancel(self) -> None:
        """Cancel the call."""
        self.call = None
        self.args = ()


class Clock:
    """Service seconds since the epoch; all timers share one timer of the loop, so a change of scale moves them all."""

    def __init__(self, scale: float) -> None:
        self._set(scale)
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._armed = float("inf")

    def _set(self, scale: float) -> None:
        """Show the real time, and run at this speed from now on."""
        self._scale = scale
        self._real = time.monotonic()
        self._service = time.time()

    @property
    def scale(self) -> float:
        """Service seconds per real second."""
        return self._scale

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the timers on this loop from now on."""
        self._loop = loop
        self._arm()

    def now(self) -> float:
        """Return the service's time in seconds since the epoch."""
        return self._service + (time.monotonic() - self._real) * self._scale

    def set_scale(self, scale: float) -> None:
        """Change the speed of the clock from now on; pending timers follow."""
        now = self.now()
        self._real = time.monotonic()
        self._service = now
        self._scale = scale
        self._disarm()
        self._arm()

    def step(self, end: float) -> bool:
        """Go on to the next timer and call it, if one is due by then; else to `end`. Whether there was one."""
        self._arm()
        due = bool(self._heap) and self._heap[0][0] <= end
        now = max(self.now(), self._heap[0][0] if due else end)
        self._service, self._real = now, time.monotonic()
        self._disarm()
        if due:
            self._call_first()
        self._arm()
        return due

    def call_later(self, delay: float, call: Callable[..., None], *args: Any) -> Timer:
        """Schedule a call after `delay` service seconds, on the service's loop."""
        timer = Timer(self.now() + delay, call, args)
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        if timer.when < self._armed:
            self._arm()
        return timer

    async def sleep(self, delay: float) -> None:
        """Wait for `delay` service seconds."""
        if delay <= 0:
            return
        done = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay, _wake, done)
        try:
            await done
        finally:
            timer.cancel()

    def clear(self) -> None:
        """Cancel all timers."""
        for _, _, timer in self._heap:
            timer.cancel()
        self._heap.clear()
        self._disarm()

    def reset(self, scale: float) -> None:
        """Cancel all timers and show the real time again, however fast the clock ran before."""
        self.clear()
        self._set(scale)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self._armed = float("inf")

    def _arm(self) -> None:
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
        if not self._heap or self._loop is None:
            return
        when = self._heap[0][0]
        if when >= self._armed:
            return
        self._disarm()
        self._armed = when
        self._handle = self._loop.call_later(max(0.0, (when - self.now()) / self._scale), self._fire)

    def _call_first(self) -> None:
        timer = heapq.heappop(self._heap)[2]
        call, args = timer.call, timer.args
        timer.cancel()
        if call is not None:
            call(*args)

    def _fire(self) -> None:
        self._disarm()
        # The loop may be a clock tick early; timers that are due within that tick are due.
        now = self.now() + 1e-6
        while self._heap and self._heap[0][0] <= now:
            self._call_first()
        self._arm()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def iso(moment: float) -> str:
    """Return a service time in the format of the API, for example `2026-05-01T10:00:00.000Z`."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"
