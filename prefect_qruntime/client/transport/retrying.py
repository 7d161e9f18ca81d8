"""Retry a single call with tenacity, by the advice that an error carries, and keep track of a create in flight.

The caller of a create may be cancelled. While nothing is out (waiting for a token, pausing after a 429) the create is
withdrawn and nothing is created; once the request is out, its answer is awaited, so that what was created is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from cachetools import TTLCache
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay

from prefect_qruntime.client.failures import Phase
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.redact import get_logger

__all__ = ["IN_FLIGHT", "InFlightCreate", "RetryDeadlines", "complete_or_withdraw", "odd_answers", "repeat"]


T = TypeVar("T")
log = get_logger(__name__)

_SETTLE = 10.0  # seconds a cancelled caller waits for the answer to a request in flight


@dataclass(frozen=True, slots=True)
class RetryDeadlines:
    """How many seconds a call of each phase is retried before it gives up.

    `wait` is short because the waiting loop above it outlives outages by itself. `submit` and `open`
    are long because only refusals that accepted nothing (429, connection refused) are repeated there,
    and the service admits five creates a minute.
    """

    token: float = 60.0
    read: float = 60.0
    wait: float = 10.0
    fetch: float = 120.0
    change: float = 60.0
    submit: float = 900.0
    open: float = 900.0
    first_pause: float = 0.5
    longest_pause: float = 20.0

    def of(self, phase: Phase) -> float:
        """Seconds for `phase`."""
        return float(getattr(self, phase))


def odd_answers() -> MutableMapping[str, None]:
    """A cache of the foreign answers that were logged recently, so that each is logged once."""
    return TTLCache(maxsize=64, ttl=600.0)


def _may_repeat(error: BaseException) -> bool:
    return isinstance(error, QuantumRuntimeError) and error.advice.may_repeat


@dataclass(frozen=True, slots=True)
class _Pause:
    """Exponential backoff with jitter, or what the service asked for."""

    patience: RetryDeadlines
    rng: random.Random = field(default_factory=random.Random)

    def __call__(self, state: RetryCallState) -> float:
        grown = self.patience.first_pause * 2.0 ** min(state.attempt_number - 1, 10)
        pause = min(grown, self.patience.longest_pause) * self.rng.uniform(0.5, 1.0)
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, QuantumRuntimeError) and error.advice.seconds is not None:
            # Spread callers that got the same time; a `Retry-After: 0`, again and again, does not allow a request each.
            asked = error.advice.seconds + self.rng.uniform(0.0, min(1.0, 0.1 * error.advice.seconds))
            return max(asked, pause if error.advice.seconds < self.patience.first_pause else 0.0)
        return pause


async def repeat(
    call: Callable[[], Awaitable[T]],
    *,
    phase: Phase,
    patience: RetryDeadlines,
    what: str,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    logged: MutableMapping[str, None] | None = None,
) -> T:
    """Run `call`, and repeat it while its error advises so and the phase's time lasts.

    Args:
        call: One attempt.
        phase: What it is for.
        patience: How long to retry.
        what: Names the call in the log.
        sleep: For the pauses.
        logged: The foreign answers that were logged already.

    Raises:
        QuantumRuntimeError: The last error, unchanged.
    """
    known = logged if logged is not None else odd_answers()

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        level, said = logging.INFO, str(error)
        if isinstance(error, QuantumRuntimeError) and error.details.get("foreign"):
            # A warning, because it may last; only one, even if many requests get this answer.
            level = logging.DEBUG if error.message in known else logging.WARNING
            known[error.message] = None
            said = f"{error.message} {error.solution or ''}".strip()
        log.log(level, "%s: %s Trying again in %.1f s.", what, said if said.endswith(".") else f"{said}.", pause)

    retrying = AsyncRetrying(
        retry=retry_if_exception(_may_repeat),
        wait=_Pause(patience),
        stop=stop_before_delay(patience.of(phase)),
        sleep=sleep,
        before_sleep=tell,
        reraise=True,
    )
    return await retrying(call)


@dataclass(slots=True)
class InFlightCreate:
    """The state that a sender shares with its caller, which may be cancelled.

    Attributes:
        idle: Nothing is out at the moment, and nothing has been accepted.
        withdrawn: The caller is gone: nothing may be sent any more.
        unanswered: A request was sent and cut off before anything was known of it.
    """

    idle: bool = False
    withdrawn: bool = False
    unanswered: bool = False

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
        except asyncio.CancelledError:
            self.unanswered = True
            raise
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
