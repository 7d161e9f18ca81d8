"""A clock that moves only when somebody sleeps, and a loop that sleeps on it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing else is left to do.

    So an hour of `asyncio.sleep`, `wait_for` and timeouts passes in milliseconds, in the right order.
    No sockets and no threads may be waited for on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
        if not self._ready and scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, scheduled[0].when())
        if not self._ready and not scheduled:  # type: ignore[attr-defined]
            raise AssertionError(f"everybody waits at {self.now}, and nothing will ever happen")
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on a `JumpingLoop`."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


def clock() -> float:
    """The time of the running loop."""
    return asyncio.get_running_loop().time()
