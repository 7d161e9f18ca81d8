"""One open Prefect API client for the network loop.

Making a client costs tens of milliseconds and Prefect's own one belongs to the flow's loop, so the
network loop keeps one per Prefect API address.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import get_current_settings
from pydantic import ValidationError

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import InvalidInput

__all__ = [
    "api",
    "current_flow_run_id",
    "family",
    "in_run",
    "load_saved",
    "over",
]

# A Prefect server on SQLite that is asked for many things at once stands still until its lock times out after a minute.
_CONNECTIONS = 2


@dataclass(slots=True)
class _Clients:
    """The open clients of this process, by API address and home folder."""

    opening: dict[tuple[str, str], asyncio.Task[PrefectClient]] = field(default_factory=dict)


async def api() -> PrefectClient:
    """The open client of the Prefect API in force here. Call it on the network loop only."""
    here = network_loop()
    settings = get_current_settings()
    clients = here.state(_Clients).opening
    name = (str(settings.api.url), str(settings.home))
    opening = clients.get(name)
    if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
        # One for all who come first at the same moment; none of them takes it along when it is cancelled.
        opening = clients[name] = asyncio.create_task(_open())
    return await asyncio.shield(opening)


async def _open() -> PrefectClient:
    limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=25)
    client = get_client(httpx_settings={"limits": limits})
    await client.__aenter__()

    async def close() -> None:
        await client.__aexit__(None, None, None)

    network_loop().on_close(close)
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


B = TypeVar("B", bound=Block)


async def load_saved(kind: type[B], name: str, *, field: str, fix: str) -> B:
    """Load a saved block of a type.

    Args:
        kind: The block's class.
        name: The block's name.
        field: What gave the name.
        fix: Said where no block has the name.

    Returns:
        The block.

    Raises:
        InvalidInput: No block has the name, or a field of it is wrong.
    """
    title = kind._block_type_name
    try:
        return cast(B, await kind.aload(name))
    except InvalidInput as error:
        wrong = error.message
    except ValidationError as error:
        wrong = _fields(error)
    except RuntimeError as error:  # Prefect's word for a document that its class refuses
        if not isinstance(error.__cause__, ValidationError):
            raise
        wrong = _fields(error.__cause__)
    except ValueError as error:
        raise InvalidInput(f"no {title} block is named {name!r}; {fix}", field=field) from error
    # Without its cause, which would show the values.
    raise InvalidInput(
        f"the {title} block {name!r} has a wrong field ({wrong}); correct it in the UI under Blocks, or see "
        "`prefect-qruntime doctor`",
        field=field,
    ) from None


def _fields(error: ValidationError) -> str:
    found = [f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in error.errors()]
    return "; ".join(found)


_PAGE = 200
_FINAL = [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED]


async def family(flow_run_id: UUID) -> list[UUID]:
    """The flow run and its subflows, whose tasks note jobs and sessions under their own ids.

    A subflow that is a run of a deployment is none: it has its own process and its own jobs.
    """
    found, parents = [flow_run_id], [flow_run_id]
    while parents:
        of = FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=parents),
            deployment_id=FlowRunFilterDeploymentId(is_null_=True),
        )
        parents = []
        while True:
            page = await (await api()).read_flow_runs(flow_run_filter=of, limit=_PAGE, offset=len(parents))
            parents += [child.id for child in page]
            if len(page) < _PAGE:
                break
        parents = [child for child in dict.fromkeys(parents) if child not in found]
        found += parents
    return found


def over() -> FlowRunFilter:
    """Selects the flow runs that are in a final state."""
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_FINAL)))
