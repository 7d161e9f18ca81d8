"""Questions to Prefect about flow runs, asked so that few rows travel however many there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from prefect_qruntime.orchestration import api
from prefect_qruntime.waits import pause_key_of

__all__ = ["family", "is_suspended_with", "no_longer_suspended", "over", "suspended"]

_PAGE = 200
_FINAL = [StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED]


async def suspended(known: Iterable[UUID]) -> AsyncIterator[list[FlowRun]]:
    """Pages of the flow runs that are suspended, those in `known` left out."""
    left_out = set(known)
    while True:
        page = await (await api()).read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(not_any_=sorted(left_out)),
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.PAUSED]),
                    name=FlowRunFilterStateName(any_=["Suspended"]),
                ),
            ),
            limit=_PAGE,
        )
        if page:
            yield page
        if len(page) < _PAGE:
            return
        left_out |= {flow_run.id for flow_run in page}


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


async def no_longer_suspended(flow_run_ids: list[UUID]) -> list[UUID]:
    """Those of the flow runs that are in another state now."""
    if not flow_run_ids:
        return []
    wanted = FlowRunFilter(
        id=FlowRunFilterId(any_=flow_run_ids),
        state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.PAUSED])),
    )
    return [flow_run.id for flow_run in await (await api()).read_flow_runs(flow_run_filter=wanted, limit=_PAGE)]


async def is_suspended_with(flow_run_id: UUID, key: str) -> bool:
    """Whether a flow run is suspended with this very key now."""
    try:
        flow_run = await (await api()).read_flow_run(flow_run_id)
    except ObjectNotFound:
        return False
    return pause_key_of(flow_run.state) == key


def over() -> FlowRunFilter:
    """Selects the flow runs that are in a final state."""
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_FINAL)))
