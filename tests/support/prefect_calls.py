"""Questions to Prefect's API, over one open client for each server: to open one takes longer than most answers.

It is not the client of the package, which tests watch, break and block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TypeVar

from prefect.client.orchestration import PrefectClient, get_client
from prefect.settings import get_current_settings

T = TypeVar("T")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """A loop in a thread of its own, so that tests can ask whichever loop they run on."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="questions to Prefect", daemon=True).start()
    return loop


@cache
def _client(url: str) -> PrefectClient:
    async def opened() -> PrefectClient:
        return await get_client().__aenter__()

    return asyncio.run_coroutine_threadsafe(opened(), _loop()).result()


def asked(what: Callable[[PrefectClient], Awaitable[T]]) -> T:
    """Ask the API of the Prefect server in force here something."""
    client = _client(str(get_current_settings().api.url))

    async def ask() -> T:
        return await what(client)

    return asyncio.run_coroutine_threadsafe(ask(), _loop()).result()
