"""One process at a time where two that look before they buy would both find nothing.

Two flow runs that share a `submission_key` (a slot of a schedule, say) may start at the same moment in
two processes, and so may two that share the last seconds of a budget. So whoever uses an explicit key or a
budget first takes one of a few named slots in Prefect, where the server holds a lease that ends with its
holder's death. Slots of keys are taken before those of budgets, and those in the order of their names, so
that no two wait for each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.prefect_api import api, in_run
from prefect_qruntime.redact import get_logger

__all__ = ["budget_lock", "slot_name", "submission_lock"]

log = get_logger(__name__)

_SLOTS = 16
_LEASE_SECONDS = 60.0  # the shortest that Prefect gives; a killed holder is in the way for that long


def slot_name(tag: str) -> str:
    """The Prefect concurrency limit that guards a submission key's tag.

    Example:
        ```python
        from prefect_qruntime.admission.locks import slot_name

        assert slot_name("qr-key:00") == slot_name("qr-key:00")
        ```
    """
    return f"qruntime-submit-{_number(tag):x}"


def _number(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % _SLOTS


@dataclass(slots=True)
class _KnownSlots:
    """Limits that this process has seen in Prefect, by API address and name."""

    names: set[tuple[str, str]] = field(default_factory=set)


@asynccontextmanager
async def submission_lock(tag: str) -> AsyncIterator[bool]:
    """Hold the tag's slot, waiting for other processes that hold it. Runs on the network loop.

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
    async with _alone(slot_name(tag), "under this or a neighbouring submission key") as contended:
        yield contended


@asynccontextmanager
async def budget_lock(scopes: Iterable[str]) -> AsyncIterator[None]:
    """Hold the slots of what a budget counts over, waiting for other processes. Runs on the network loop.

    Args:
        scopes: What jobs are counted for: a flow run, a deployment, an instance. Those of a caller in a run.

    Raises:
        prefect.concurrency.asyncio.ConcurrencySlotAcquisitionError: Prefect gives no slot.
    """
    async with AsyncExitStack() as held:
        for name in sorted({f"qruntime-budget-{_number(scope):x}" for scope in scopes}):
            await held.enter_async_context(_alone(name, "under this or a neighbouring budget"))
        yield


@asynccontextmanager
async def _alone(name: str, what: str) -> AsyncIterator[bool]:
    """Hold a slot; yields whether another process held it before."""
    # Among the calls of this process a lock will do, and their queueing is no sign of another process.
    async with network_loop().lock(f"slot:{name}"):
        await _make_sure_of(name)
        slot, contended = _slot(name, max_retries=0), False
        try:
            await slot.__aenter__()
        except Exception as error:
            if not _taken(error):
                raise
            contended = True
        if contended:
            log.info("another process submits %s; waiting for it", what)
            slot = _slot(name, max_retries=None)
            await slot.__aenter__()
        try:
            yield contended
        finally:
            try:
                await slot.__aexit__(None, None, None)
            except Exception as error:  # what was bought is not to be lost for it: the lease ends by itself
                log.warning("the slot %s could not be given back (%s); it is free in a minute", name, error)


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
    known_slots = network_loop().state(_KnownSlots).names
    if (known := (str(client.api_url), name)) in known_slots:
        return
    try:
        await client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        try:
            await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        except (ObjectAlreadyExists, httpx.HTTPStatusError):
            # Another process was quicker; if not, this raises.
            await client.read_global_concurrency_limit_by_name(name)
    known_slots.add(known)
