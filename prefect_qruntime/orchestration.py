"""One open Prefect API client for the network loop.

Making a client costs tens of milliseconds and Prefect's own one belongs to the flow's loop, so the
home loop keeps one per Prefect API address.
"""

from __future__ import annotations

import asyncio

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import get_current_settings

from prefect_qruntime.client.home import home

__all__ = ["api", "current_flow_run_id", "in_run"]

# A Prefect server on SQLite that is asked for many things at once stands still until its lock times out after a minute.
_CONNECTIONS = 2


async def api() -> PrefectClient:
    """The open client of the Prefect API in force here. Call it on the home loop only."""
    here = home()
    settings = get_current_settings()
    name = f"prefect:{settings.api.url}:{settings.home}"
    opening: asyncio.Task[PrefectClient] | None = here.shared.get(name)
    if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
        # One for all who come first at the same moment; none of them takes it along when it is cancelled.
        opening = here.shared[name] = asyncio.create_task(_open())
    return await asyncio.shield(opening)


async def _open() -> PrefectClient:
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=25)
    client = get_client(httpx_settings={"limits": limits})
    await client.__aenter__()

    async def close() -> None:
        await client.__aexit__(None, None, None)

    home().on_close(close)
    return client


def in_run() -> bool:
    """Whether the caller is inside a flow or task run."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def current_flow_run_id() -> str | None:
    """The id of the flow run the caller is in."""
    flow_context = FlowRunContext.get()
    if flow_context is not None and flow_context.flow_run is not None:
        return str(flow_context.flow_run.id)
    task_context = TaskRunContext.get()
    if task_context is not None and task_context.task_run.flow_run_id is not None:
        return str(task_context.task_run.flow_run_id)
    return None
