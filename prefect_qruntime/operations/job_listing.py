"""List the jobs of instances with their owners: which flow run used which QPU seconds. Reads only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from math import fsum
from typing import Literal, get_args
from uuid import UUID

from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterId,
)
from prefect.client.schemas.responses import DeploymentResponse
from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.spec import check_texts
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.service import each_job
from prefect_qruntime.credentials import Attended, load_each, read_each
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability.artifacts import deployments_of_deleted
from prefect_qruntime.operations.usage_core import Owner
from prefect_qruntime.prefect_api import api, flow_runs_by_id, ids_of
from prefect_qruntime.redact import shown

__all__ = [
    "GROUPINGS",
    "GroupBy",
    "JobGroup",
    "JobList",
    "ListedJob",
    "Totals",
    "find_owners",
    "group_jobs",
    "list_jobs",
    "parse_since",
]

GroupBy = Literal["deployment", "owner", "tag", "flow-state"]
GROUPINGS: tuple[GroupBy, ...] = get_args(GroupBy)

_OURS = ("qr-key:", "qr-flow:")
_OVER = {state.value for state in JobStatus if state.is_terminal}

_NO_FLOW = "deleted flow"
_PAGE = 200
_SPAN = re.compile(r"(\d{1,6})\s*([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class ListedJob(BaseModel):
    """One job and its owner.

    `flow_run_id` comes from the job's `qr-flow:` tag, None for a job without one. `flow_run` is the run's name
    in Prefect, None if Prefect does not know it (deleted, or another server's); `flow_state` is the name of its
    state, `deployment` that of its deployment, `flow/deployment`, also if the run was deleted. `tags` are the job's
    own, without the package's.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    block: str
    state: str
    backend: str | None
    program: str | None
    created_at: datetime | None
    qpu_seconds: float | None
    qpu_seconds_final: bool
    flow_run_id: str | None
    flow_run: str | None
    url: str | None
    flow_state: str | None = None
    deployment: str | None = None
    tags: tuple[str, ...] = ()


class JobGroup(BaseModel):
    """The jobs that share a value, such as a deployment; `value` is None for jobs without one.

    `live` counts jobs that are not over, `not_final` those whose usage may still grow.
    """

    model_config = ConfigDict(frozen=True)

    value: str | None
    jobs: int
    live: int
    qpu_seconds: float
    not_final: int


class Totals(BaseModel):
    """Sums over the jobs listed; `not_final` counts jobs whose usage may still grow."""

    model_config = ConfigDict(frozen=True)

    jobs: int
    qpu_seconds: float
    not_final: int
    without_owner: int
    qpu_seconds_without_owner: float


class JobList(BaseModel):
    """Jobs, newest first, their sums, and the problems met. `more` says that the limit cut the list short.

    `unread` are the blocks whose instances could not be read: their jobs are in no list and no sum.
    `groups` are filled on request, those with the most QPU seconds first. A job with two tags is in two groups.
    """

    model_config = ConfigDict(frozen=True)

    jobs: list[ListedJob]
    totals: Totals
    more: bool
    problems: list[str]
    groups: list[JobGroup] = []
    unread: list[str] = []


def parse_since(text: str, *, now: datetime | None = None, field: str = "since") -> datetime:
    """Parse a time: an ISO date or time (UTC unless it names a zone), or a time span before now.

    Raises:
        InvalidInput: It is neither.

    Example:
        ```python
        from datetime import UTC, datetime
        from prefect_qruntime.operations.job_listing import parse_since

        assert parse_since("24h", now=datetime(2026, 5, 2, tzinfo=UTC)) == datetime(2026, 5, 1, tzinfo=UTC)
        ```
    """
    try:
        span = _SPAN.fullmatch(text.strip())
        if span is not None:
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InvalidInput(
            "must be a date or time like 2026-05-01T08:00, or a span like 90m, 24h or 7d", field=field
        ) from None


def list_jobs(
    blocks: Iterable[str] | None = None,
    *,
    states: Iterable[str] | None = None,
    limit: int = 50,
    since: str | None = None,
    by: GroupBy | None = None,
    attended: Attended | None = None,
) -> JobList:
    """List jobs; for code without an event loop.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        states: `queued`, `running`, `completed`, `cancelled`, `failed`; None for all.
        limit: Most jobs of each instance.
        since: Only jobs created since then; see `parse_since`.
        by: Also group them: by `deployment`, `owner` (the flow run), `tag`, or `flow-state` (the flow run's).
        attended: Give up on an instance that does not answer after some seconds; None to be patient.

    Raises:
        InvalidInput: An argument is wrong; nothing was sent.
    """
    wanted = _states(states)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput("must be a whole number, at least 1", field="limit")
    begin = parse_since(since) if since is not None else None
    if by is not None and by not in GROUPINGS:
        raise InvalidInput(f"must be one of {', '.join(GROUPINGS)}, not {shown(by)}", field="by")
    found = network_loop().run(_list(blocks, wanted, limit, begin, attended))
    return found.model_copy(update={"groups": group_jobs(found.jobs, by)}) if by is not None else found


def _states(states: Iterable[str] | None) -> frozenset[JobStatus] | None:
    if states is None:
        return None
    try:
        return frozenset(JobStatus(state.lower()) for state in check_texts(states, field="state"))
    except ValueError:
        raise InvalidInput(f"must be among {', '.join(JobStatus)}", field="state") from None


async def _list(
    blocks: Iterable[str] | None,
    states: frozenset[JobStatus] | None,
    limit: int,
    since: datetime | None,
    attended: Attended | None,
) -> JobList:
    found: dict[str, tuple[str, Job]] = {}  # by id: two blocks may lead to one instance
    loaded, problems = await load_each(blocks)
    more = False

    async def read(_: str, client: QuantumRuntimeClient) -> list[Job]:
        return await _jobs(client, states, limit + 1, since)

    for name, jobs in (await read_each(loaded, problems, read, attended)).items():
        more = more or len(jobs) > limit
        for job in jobs[:limit]:
            found.setdefault(job.id, (name, job))
    owners = await find_owners(job.flow_run_id for _, job in found.values())
    unknown = Owner("")
    never = datetime.min.replace(tzinfo=UTC)
    listed = [
        ListedJob(
            id=job.id,
            block=name,
            state=job.status.value if job.status is not None else job.raw_status,
            backend=job.backend,
            program=job.program_id,
            created_at=job.created_at,
            qpu_seconds=job.charged_seconds,
            qpu_seconds_final=job.usage_final or job.dry_run,
            flow_run_id=job.flow_run_id,
            flow_run=(owner := owners.get(job.flow_run_id or "", unknown)).flow_run,
            url=job.url,
            flow_state=owner.state,
            deployment=owner.deployment,
            tags=tuple(tag for tag in job.tags if not tag.startswith(_OURS)),
        )
        for name, job in sorted(found.values(), key=lambda item: item[1].created_at or never, reverse=True)
    ]
    return JobList(
        jobs=listed,
        totals=_totals(listed),
        more=more,
        problems=[problems[name] for name in sorted(problems)],
        unread=sorted(problems),
    )


async def _jobs(
    client: QuantumRuntimeClient, states: frozenset[JobStatus] | None, limit: int, since: datetime | None
) -> list[Job]:
    """List the newest matching jobs. The service filters by "over or not" only, so states are filtered here."""
    over = {state.is_terminal for state in states} if states is not None else {True, False}
    pending = None if len(over) == 2 else not over.pop()
    found: list[Job] = []
    page = _PAGE if states is not None else min(limit, _PAGE)
    async for job in each_job(client, page=page, pending=pending, created_after=since):
        if states is None or job.status in states:
            found.append(job)
        if len(found) >= limit:
            break
    return found


async def find_owners(flow_run_ids: Iterable[str | None]) -> dict[str, Owner]:
    """Read the names of flow runs, their flows and their deployments. Runs on the network loop.

    Args:
        flow_run_ids: Ids from the tags of jobs; invalid ones and those unknown to this Prefect are left out. Of a flow
            run that was deleted, the deployment is known.
    """
    client, wanted = await api(), set(flow_run_ids)
    runs = await flow_runs_by_id(wanted)
    deleted = await deployments_of_deleted(ids_of(wanted - runs.keys()))
    flows: dict[UUID, str] = {}
    deployments: dict[UUID, DeploymentResponse] = {}
    whose = {run.deployment_id for run in runs.values() if run.deployment_id is not None} | set(deleted.values())
    for some in _pages(whose):
        by_id = DeploymentFilter(id=DeploymentFilterId(any_=some))
        deployments |= {one.id: one for one in await client.read_deployments(deployment_filter=by_id, limit=_PAGE)}
    for some in _pages([run.flow_id for run in runs.values()] + [one.flow_id for one in deployments.values()]):
        of = FlowFilter(id=FlowFilterId(any_=some))
        flows |= {flow.id: flow.name for flow in await client.read_flows(flow_filter=of, limit=_PAGE)}

    def named(deployment_id: UUID, flow: str) -> str:
        known = deployments.get(deployment_id)
        return f"{flow}/{known.name if known is not None else f'deleted deployment {deployment_id}'}"

    found = {}
    for run_id, run in runs.items():
        flow = flows.get(run.flow_id, _NO_FLOW)
        deployment = named(run.deployment_id, flow) if run.deployment_id is not None else None
        state = run.state.name if run.state is not None else None
        found[run_id] = Owner(run_id, run.name, flow, deployment, tuple(sorted(run.tags)), state)
    for gone, deployment_id in deleted.items():
        known = deployments.get(deployment_id)
        flow = flows.get(known.flow_id, _NO_FLOW) if known is not None else _NO_FLOW
        tags = tuple(sorted(known.tags)) if known is not None else ()
        found[str(gone)] = Owner(str(gone), None, flow, named(deployment_id, flow), tags)
    return found


def _pages(ids: Iterable[UUID]) -> list[list[UUID]]:
    ordered = sorted(set(ids))
    return [ordered[start : start + _PAGE] for start in range(0, len(ordered), _PAGE)]


def group_jobs(jobs: list[ListedJob], by: GroupBy) -> list[JobGroup]:
    """Group jobs by a value that they share, most QPU seconds first."""
    values: dict[str | None, list[ListedJob]] = {}
    for job in jobs:
        for value in _values(job, by):
            values.setdefault(value, []).append(job)
    groups = [
        JobGroup(
            value=value,
            jobs=len(members),
            live=sum(job.state not in _OVER for job in members),
            qpu_seconds=fsum(job.qpu_seconds or 0.0 for job in members),
            not_final=sum(not job.qpu_seconds_final for job in members),
        )
        for value, members in values.items()
    ]
    return sorted(groups, key=lambda group: (-group.qpu_seconds, -group.jobs, group.value or ""))


def _values(job: ListedJob, by: GroupBy) -> tuple[str | None, ...]:
    if by == "tag":
        return job.tags or (None,)
    if by == "deployment":
        return (job.deployment,)
    if by == "flow-state":
        return (job.flow_state,)
    return (f"{job.flow_run or 'not in this Prefect'} ({job.flow_run_id})" if job.flow_run_id is not None else None,)


def _totals(jobs: list[ListedJob]) -> Totals:
    orphans = [job for job in jobs if job.flow_run_id is None]
    return Totals(
        jobs=len(jobs),
        qpu_seconds=fsum(job.qpu_seconds or 0.0 for job in jobs),
        not_final=sum(not job.qpu_seconds_final for job in jobs),
        without_owner=len(orphans),
        qpu_seconds_without_owner=fsum(job.qpu_seconds or 0.0 for job in orphans),
    )
