"""Let a process live faster, so that hours of waiting are measured in minutes with unmodified code.

The sandbox has a scaled clock; this is the same for its client: what `time` tells runs `scale` times faster and
sleeping takes that much less. Work still takes the time it takes, so lags measured this way are upper bounds.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Any

real_monotonic: Callable[[], float] = time.monotonic
real_sleep: Callable[[float], None] = time.sleep


def hurry(scale: float) -> None:
    """Speed up this process; to be called once, before anything is imported that keeps a clock.

    Args:
        scale: Seconds told for each real second; 1 changes nothing.
    """
    if scale == 1:
        return
    start, wall = real_monotonic(), time.time()
    sleep = real_sleep

    def monotonic() -> float:
        return start + (real_monotonic() - start) * scale

    def now() -> float:
        return wall + (real_monotonic() - start) * scale

    time.monotonic = monotonic
    time.time = now
    time.sleep = lambda seconds: sleep(float(seconds) / scale)

    # asyncio reads the clock above, but waits in its selector.
    selector: Any = selectors.DefaultSelector
    select = selector.select

    def quick(self: Any, timeout: float | None = None) -> Any:
        return select(self, timeout / scale if timeout else timeout)

    selector.select = quick
