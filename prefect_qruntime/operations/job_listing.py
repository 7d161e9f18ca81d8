"""The jobs of instances with their owners: which flow run spent which QPU seconds. Reads only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from pydantic import BaseModel, ConfigDict

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import aload_credentials, saved_blocks
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.prefect_api import api

__all__ = ["JobList", "ListedJob", "Totals", "alist_jobs", "list_jobs", "parse_since"]

_PAGE = 200
_SPAN = re.compile(r"(\d{1,6})\s*([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class ListedJob(BaseModel):
    """One job and who owns it.

    `flow_run_id` comes from the job's `qr-flow:` tag, None for a job without one. `flow_run` is the run's name
    in Prefect, None where Prefect does not know it (deleted, or another server's).
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


class Totals(BaseModel):
    """Sums over the jobs listed; `not_final` counts jobs whose usage may still grow."""

    model_config = ConfigDict(frozen=True)

    jobs: int
    qpu_seconds: float
    not_final: int
    without_owner: int
    qpu_seconds_without_owner: float


class JobList(BaseModel):
    """Jobs, newest first, their sums, and what could not be looked into. `more` tells that the limit cut it short."""

    model_config = ConfigDict(frozen=True)

    jobs: list[ListedJob]
    totals: Totals
    more: bool
    problems: list[str]


def parse_since(text: str, *, now: datetime | None = None, field: str = "since") -> datetime:
    """Read a moment: an ISO date or time (local unless it names a zone), or a time span before now.

    Raises:
        InvalidInput: It is neither.

    Example:
        ```python
        from datetime import UTC, datetime
        from prefect_qruntime.operations.job_listing import parse_since

        assert parse_since("24h", now=datetime(2026, 5, 2, tzinfo=UTC)) == datetime(2026, 5, 1, tzinfo=UTC)
        ```
    """
    span = _SPAN.fullmatch(text.strip())
    try:
        if span is not None:
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(
            "must be a date or time like 2026-05-01T08:00, or a span like 90m, 24h or 7d", field=field
        ) from None


def list_jobs(
    blocks: Iterable[str] | None = None,
    *,
    states: Iterable[str] | None = None,
    limit: int = 50,
    since: str | None = None,
) -> JobList:
    """List jobs; for code without an event loop.

    Args:
        blocks: Names of credentials blocks; None for all saved ones.
        states: `queued`, `running`, `completed`, `cancelled`, `failed`; None for all.
        limit: Most jobs of each instance.
        since: Only jobs created since then; see `parse_since`.

    Raises:
        InvalidInput: An argument is wrong; nothing was sent.
    """
    return network_loop().run(alist_jobs(blocks, states=states, limit=limit, since=since))


async def alist_jobs(
    blocks: Iterable[str] | None = None,
    *,
    states: Iterable[str] | None = None,
    limit: int = 50,
    since: str | None = None,
) -> JobList:
    """As `list_jobs`, for async code."""
    wanted = _states(states)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput("must be a whole number, at least 1", field="limit")
    begin = parse_since(since) if since is not None else None
    return await network_loop().arun(_list(blocks, wanted, limit, begin))


def _states(states: Iterable[str] | None) -> frozenset[JobStatus] | None:
    if states is None:
        return None
    try:
        return frozenset(JobStatus(state.lower()) for state in states)
    except ValueError:
        raise InvalidInput(f"must be among {', '.join(JobStatus)}", field="state") from None


async def _list(
    blocks: Iterable[str] | None, states: frozenset[JobStatus] | None, limit: int, since: datetime | None
) -> JobList:
    found: dict[str, tuple[str, Job]] = {}  # by id: two blocks may lead to one instance
    problems, more = [], False
    for name in sorted(set(blocks)) if blocks is not None else await saved_blocks():
        try:
            client = (await aload_credentials(name)).get_client()
            jobs = await _jobs(client, states, limit + 1, since)
        except (QuantumRuntimeError, ValueError) as error:
            problems.append(f"{name}: {error}")
            continue
        more = more or len(jobs) > limit
        for job in jobs[:limit]:
            found.setdefault(job.id, (name, job))
    names = await _names(job.flow_run_id for _, job in found.values())
    never = datetime.min.replace(tzinfo=UTC)
    listed = [
        ListedJob(
            id=job.id,
            block=name,
            state=job.status.value if job.status is not None else job.raw_status,
            backend=job.backend,
            program=job.program_id,
            created_at=job.created_at,
            qpu_seconds=job.usage_seconds,
            qpu_seconds_final=job.usage_final,
            flow_run_id=(owner := job.flow_run_id),
            flow_run=names.get(owner) if owner is not None else None,
            url=job.url,
        )
        for name, job in sorted(found.values(), key=lambda item: item[1].created_at or never, reverse=True)
    ]
    return JobList(jobs=listed, totals=_totals(listed), more=more, problems=problems)


async def _jobs(
    client: QuantumRuntimeClient, states: frozenset[JobStatus] | None, limit: int, since: datetime | None
) -> list[Job]:
    """The newest jobs that fit. The service filters by "over or not" only, so states are picked out here."""
    over = {state.is_terminal for state in states} if states is not None else {True, False}
    pending = None if len(over) == 2 else not over.pop()
    found: dict[str, Job] = {}
    seen: set[str] = set()
    before: datetime | None = None
    while len(found) < limit:
        size = _PAGE if states is not None else min(limit - len(found), _PAGE)
        page = await client.jobs(pending=pending, created_after=since, created_before=before, limit=size)
        fresh = [job for job in page if job.id not in seen]
        seen.update(job.id for job in fresh)
        found.update((job.id, job) for job in fresh if states is None or job.status in states)
        before = page[-1].created_at if page else None
        if len(page) < size or not fresh or before is None:
            break
    return list(found.values())[:limit]


async def _names(flow_run_ids: Iterable[str | None]) -> dict[str, str]:
    """The names of flow runs, asked for together."""
    wanted = []
    for text in set(flow_run_ids):
        try:
            wanted += [UUID(text)] if text is not None else []
        except ValueError:
            continue  # a tag of somebody else's making
    names: dict[str, str] = {}
    for start in range(0, len(wanted), _PAGE):
        ids = FlowRunFilter(id=FlowRunFilterId(any_=wanted[start : start + _PAGE]))
        names |= {str(run.id): run.name for run in await (await api()).read_flow_runs(flow_run_filter=ids, limit=_PAGE)}
    return names


def _totals(jobs: list[ListedJob]) -> Totals:
    orphans = [job for job in jobs if job.flow_run_id is None]
    return Totals(
        jobs=len(jobs),
        qpu_seconds=sum(job.qpu_seconds or 0.0 for job in jobs),
        not_final=sum(not job.qpu_seconds_final for job in jobs),
        without_owner=len(orphans),
        qpu_seconds_without_owner=sum(job.qpu_seconds or 0.0 for job in orphans),
    )
