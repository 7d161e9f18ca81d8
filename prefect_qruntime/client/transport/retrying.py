"""How a single call is repeated: tenacity, driven by the advice an error carries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay

from prefect_qruntime.client.failures import Phase
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.redact import get_logger

__all__ = ["RetryDeadlines", "repeat"]

T = TypeVar("T")
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetryDeadlines:
    """How long, in seconds, a call of each phase goes on repeating before it gives up.

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
            # Spread callers that were all told the same time; and a `Retry-After: 0` is no leave to hammer.
            asked = error.advice.seconds + self.rng.uniform(0.0, min(1.0, 0.1 * error.advice.seconds))
            return max(asked, min(pause, self.patience.first_pause))
        return pause


async def repeat(
    call: Callable[[], Awaitable[T]],
    *,
    phase: Phase,
    patience: RetryDeadlines,
    what: str,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Run `call`, again while its error advises so and the phase's patience lasts.

    Raises:
        QuantumRuntimeError: The last error, unchanged.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        log.info("%s: %s; trying again in %.1f s", what, error, pause)

    retrying = AsyncRetrying(
        retry=retry_if_exception(_may_repeat),
        wait=_Pause(patience),
        stop=stop_before_delay(patience.of(phase)),
        sleep=sleep,
        before_sleep=tell,
        reraise=True,
    )
    return await retrying(call)
