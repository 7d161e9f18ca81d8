"""Keep track of a create in flight whose caller may be cancelled.

While nothing is out (waiting for a token, pausing after a 429) it is withdrawn and nothing is created;
once the request is out, its answer is awaited, so that what was created is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from prefect_qruntime.errors import QuantumRuntimeError

__all__ = ["IN_FLIGHT", "InFlightCreate", "complete_or_withdraw"]

T = TypeVar("T")

_SETTLE = 10.0  # seconds a cancelled caller waits for the answer to a request in flight


@dataclass(slots=True)
class InFlightCreate:
    """The state that a sender shares with its caller, which may be cancelled.

    Attributes:
        idle: Nothing is out at the moment, and nothing has been accepted.
        withdrawn: The caller is gone: nothing may be sent any more.
    """

    idle: bool = False
    withdrawn: bool = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a block in which nothing is in flight except inside `sending`."""
        self.idle = True
        try:
            yield
        finally:
            self.idle = False

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Mark a block in which the request is in flight. Raises `CancelledError` instead if its caller is gone."""
        if self.withdrawn:
            raise asyncio.CancelledError
        self.idle = False
        try:
            yield
        finally:
            self.idle = True


IN_FLIGHT: ContextVar[InFlightCreate | None] = ContextVar("qruntime_in_flight", default=None)
"""The create that this task runs for, if any."""


async def complete_or_withdraw(create: Awaitable[T]) -> T:
    """Await a create; when cancelled meanwhile, withdraw it, or wait for its outcome if it is in flight."""
    in_flight = InFlightCreate()

    async def run() -> T:
        IN_FLIGHT.set(in_flight)
        return await create

    task = asyncio.ensure_future(run())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        in_flight.withdrawn = True
        if in_flight.idle:
            task.cancel()
        with contextlib.suppress(TimeoutError, asyncio.CancelledError, QuantumRuntimeError):
            await asyncio.wait_for(task, _SETTLE)
        raise
