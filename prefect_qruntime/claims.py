"""Who of several watchers resumes a flow run.

Prefect checks that a run is suspended before it resumes it, but two requests at the same moment may both pass (seen on
PostgreSQL). An input of a flow run is unique by its key, so the watcher that creates it goes first.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.exceptions import PrefectHTTPStatusError

from prefect_qruntime.orchestration import api

__all__ = ["claimed"]

_STALE = 60.0  # seconds after which a claim is taken for that of a dead watcher; longer than resuming ever takes


@asynccontextmanager
async def claimed(flow_run_id: UUID, pause_key: str) -> AsyncIterator[bool]:
    """Claim the resumption of a flow run that is suspended with this key. Runs on the home loop.

    A claim is kept, as a pause key is used once; left by an error, it is given back.

    Args:
        flow_run_id: The flow run.
        pause_key: What it is suspended with.

    Yields:
        Whether the claim is ours; else another watcher is at it.

    Raises:
        Exception: Prefect's API failed.
    """
    name = f"qruntime-resume-{uuid5(NAMESPACE_URL, pause_key).hex}"
    mine = await _create(flow_run_id, name) or (
        await _is_stale(flow_run_id, name) and await _take_over(flow_run_id, name)
    )
    try:
        yield mine
    except BaseException:
        if mine:
            with suppress(Exception):
                await (await api()).delete_flow_run_input(flow_run_id, name)
        raise


async def _create(flow_run_id: UUID, name: str) -> bool:
    try:
        await (await api()).create_flow_run_input(flow_run_id, name, f"{time.time():.3f}")
    except PrefectHTTPStatusError as error:
        if error.response.status_code == 409:
            return False
        raise
    return True


async def _is_stale(flow_run_id: UUID, name: str) -> bool:
    try:
        made = float(await (await api()).read_flow_run_input(flow_run_id, name))
    except PrefectHTTPStatusError as error:
        return error.response.status_code == 404  # given back just now
    return time.time() - made > _STALE


async def _take_over(flow_run_id: UUID, name: str) -> bool:
    with suppress(PrefectHTTPStatusError):
        await (await api()).delete_flow_run_input(flow_run_id, name)
    return await _create(flow_run_id, name)
