"""One process at a time for one explicit submission key.

Two flow runs that share a `submission_key` (a slot of a schedule, say) may start at the same moment in
two processes. Both would look, find nothing and buy. So whoever uses an explicit key first takes one of
a few named slots in Prefect, where the server holds a lease that ends with its holder's death.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import httpx
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_qruntime.client.home import home
from prefect_qruntime.orchestration import api, in_run

__all__ = ["alone_with", "slot_name"]

log = logging.getLogger("prefect_qruntime.tasks")

_SLOTS = 16
_LEASE_SECONDS = 60.0  # the shortest that Prefect gives; a killed holder is in the way for that long


def slot_name(tag: str) -> str:
    """The Prefect concurrency limit that guards a submission key's tag.

    Example:
        ```python
        from prefect_qruntime.purchase_lock import slot_name

        assert slot_name("qr-key:00") == slot_name("qr-key:00")
        ```
    """
    number = hashlib.sha256(tag.encode()).digest()[0] % _SLOTS
    return f"qruntime-submit-{number:x}"


@asynccontextmanager
async def alone_with(tag: str) -> AsyncIterator[bool]:
    """Hold the tag's slot, waiting for other processes that hold it. Runs on the home loop.

    Outside a run there is no Prefect to ask, and nobody waits.

    Args:
        tag: The submission key's tag of the first generation.

    Yields:
        Whether another process held the slot before: it may have bought the job just now.

    Raises:
        prefect.concurrency.asyncio.ConcurrencySlotAcquisitionError: Prefect gives no slot.
    """
    if not in_run():
        yield False
        return
    name = slot_name(tag)
    # Among the calls of this process a lock will do, and their queueing is no sign of another process.
    here = home().shared.setdefault(f"lock:{name}", asyncio.Lock())
    async with here, AsyncExitStack() as held:
        await _make_sure_of(name)
        contended = False
        try:
            await held.enter_async_context(_slot(name, max_retries=0))
        except Exception as error:
            if not _taken(error):
                raise
            contended = True
        if contended:
            log.info("another process submits under this or a neighbouring submission key; waiting for it")
            await held.enter_async_context(_slot(name, max_retries=None))
        yield contended


def _slot(name: str, *, max_retries: int | None) -> AbstractAsyncContextManager[None]:
    return concurrency(
        name,
        max_retries=max_retries,
        lease_duration=_LEASE_SECONDS,
        strict=True,
        # A hiccup of the renewal must not cut a purchase in two: its answer would be lost.
        raise_on_lease_renewal_failure=False,
    )


def _taken(error: Exception) -> bool:
    cause = error.__cause__
    return isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.LOCKED


async def _make_sure_of(name: str) -> None:
    client = await api()
    made = home().shared.setdefault("submission slots", set())
    if (known := (str(client.api_url), name)) in made:
        return
    try:
        await client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        try:
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        except (ObjectAlreadyExists, httpx.HTTPStatusError):
            # Another process was quicker; if not, this raises.
            await client.read_global_concurrency_limit_by_name(name)
    made.add(known)
