"""The summary of a flow run: one artifact that lists all its jobs, written in the background with few writes.

Submissions are noted in it before anything polls for their jobs; those that come together share one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from cachetools import LRUCache

from prefect_qruntime import prefect_api
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import ATTACHED, OPEN, find_records, upsert
from prefect_qruntime.observability.markdown import summary_card, summary_description
from prefect_qruntime.redact import get_logger, number_text
from prefect_qruntime.run_context import process_facts, submissions_in_flight

__all__ = ["Background", "RunSummary", "Summaries", "in_background", "mark_dirty", "write_summary"]

log = get_logger(__name__)

_GATHER = 0.25  # seconds for which a note waits for other submissions in flight
_NOTE_SHARE = 3  # or this many times the duration of the last write
_PAUSE = 1.0  # seconds over which changes of a summary are gathered
_SETTLING = 4.0  # further seconds while some of its jobs have no page
_SHARE = 10  # the pause after a write is this many times as long as the write
_KEEP = 256  # flow runs whose jobs are kept in memory


class Background:
    """The background work for run pages.

    Attributes:
        tasks: What this process completes before it ends.
        optional: What an ending process does not wait for.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.optional: set[asyncio.Task[None]] = set()


def in_background(work: Callable[[], Awaitable[None]], *, optional: bool = False) -> asyncio.Task[None]:
    """Run work for the run page in the background; log its failure. Call it on the network loop.

    Args:
        work: The work.
        optional: Whether an ending process does not wait for it.

    Returns:
        Its task.
    """
    background = network_loop().state(Background)
    tasks = background.optional if optional else background.tasks
    task = asyncio.create_task(_try(work))
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception as error:
        log.warning("The run page could not be completed: %r", error)


@dataclass(eq=False)
class RunSummary:
    """A flow run's jobs as this process knows them, and the writes of its summary.

    Attributes:
        flow_run_id: The flow run.
        deployment_id: Its deployment, which is recorded because flow runs are deleted.
        jobs: Facts of each job.
        open: Notes of submissions whose jobs have no page yet.
        attached: Jobs that it attached to. The page of a job names its last flow run only.
        alone: Whether no other process and no earlier attempt can have submitted jobs for it.
        dirty: Whether something changed since its summary was written.
        is_written: Whether this process wrote its summary.
        done: Jobs noted here that have a page. What another process noted stays: its page may not have all of it.
    """

    flow_run_id: str
    deployment_id: str | None = None
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    attached: set[str] = field(default_factory=set)
    alone: bool = True
    dirty: bool = False
    is_written: bool = False
    _took: float = 0.0
    done: set[str] = field(default_factory=set)
    _unnoted: set[str] = field(default_factory=set)
    _another: asyncio.Event = field(default_factory=asyncio.Event)
    _all_paged: asyncio.Event = field(default_factory=asyncio.Event)
    _noting: asyncio.Task[None] | None = None
    _writer: asyncio.Task[None] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def learn(self, job_id: str, facts: Mapping[str, str | None]) -> None:
        """Remember facts of a job."""
        known = self.jobs.setdefault(job_id, {})
        known |= {name: value for name, value in facts.items() if value is not None}

    def paged(self, job_id: str) -> None:
        """Note that a job has its own page now."""
        if self.open.pop(job_id, None) is not None:
            self.done.add(job_id)
        if not self.open:
            self._all_paged.set()

    def note(self, job_id: str) -> asyncio.Task[None]:
        """Schedule the note of a submission; submissions that come together share one write."""
        self._unnoted.add(job_id)
        self._another.set()
        if self._noting is None:
            self._noting = in_background(self._note)
        return self._noting

    async def _note(self) -> None:
        with contextlib.suppress(TimeoutError):
            # Each note names all jobs without a page, so a busy server needs only few of them.
            async with asyncio.timeout(max(_GATHER, _NOTE_SHARE * self._took)):
                while submissions_in_flight() > len(self._unnoted):
                    self._another.clear()
                    await self._another.wait()
        async with self._lock:
            self._noting = None
            self._unnoted.clear()
            await self._write()

    def touch(self) -> None:
        """Schedule a write of the summary."""
        self.dirty = True
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._keep_writing())

    async def _keep_writing(self) -> None:
        pause = _PAUSE
        while self.dirty:
            await asyncio.sleep(pause)
            self._all_paged.clear()
            if self.open:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SETTLING):
                        await self._all_paged.wait()
            began = time.monotonic()
            await self.settle()
            pause = max(_PAUSE, _SHARE * (time.monotonic() - began))

    async def settle(self) -> None:
        """Write the summary now if it changed."""
        async with self._lock:
            if self.dirty:
                await _try(self._write)

    async def _write(self) -> None:
        self.dirty, began = False, time.monotonic()
        try:
            await write_summary(self.flow_run_id, self.jobs)
        except BaseException:
            self.dirty = True  # written again, at the latest when the process ends
            raise
        self._took = time.monotonic() - began


class Summaries:
    """The summaries of the flow runs that this process knows. Lives on the network loop."""

    def __init__(self) -> None:
        self.runs: LRUCache[str, RunSummary] = LRUCache(_KEEP)

    def of(self, flow_run_id: str) -> RunSummary:
        """The summary of a flow run, made if there is none."""
        run: RunSummary | None = self.runs.get(flow_run_id)
        if run is None:
            run = self.runs[flow_run_id] = RunSummary(flow_run_id)
        return run

    async def write_changed(self) -> None:
        """Write all summaries that changed."""
        await asyncio.gather(*(run.settle() for run in list(self.runs.values())))


def mark_dirty(flow_run_id: str, job_id: str, facts: Mapping[str, str | None] | None = None) -> None:
    """Schedule a write of a flow run's summary because a job of it changed. Call it on the network loop.

    Args:
        flow_run_id: The flow run that owns the job.
        job_id: The job; if it was attached to, it may be recorded on another flow run's page.
        facts: New facts of the job.
    """
    run = network_loop().state(Summaries).of(flow_run_id)
    if job_id not in run.jobs:
        run.alone = False  # another process recorded it first
    run.learn(job_id, facts or {})
    run.touch()


async def write_summary(flow_run_id: str, job_ids: Iterable[str] = ()) -> None:
    """Write the summary of a flow run now. Runs on the network loop.

    Args:
        flow_run_id: The flow run.
        job_ids: Jobs that may be recorded by another flow run, to whose jobs this one attached.

    Raises:
        Exception: Prefect's API failed.
    """
    run = network_loop().state(Summaries).of(flow_run_id)
    known = {job_id: dict(facts) for job_id, facts in run.jobs.items()}
    alone, first = run.alone and bool(known), not run.is_written
    jobs: dict[str, Mapping[str, str]] = {}
    if alone:
        jobs |= {job_id: {**facts, "id": job_id} for job_id, facts in known.items()}
    else:
        await _read_jobs(flow_run_id, jobs, [*dict.fromkeys([*job_ids, *known])])
        for job_id, facts in known.items():
            if job_id in jobs:  # its page may be older than this
                jobs[job_id] = {**jobs[job_id], **facts}
            else:
                jobs[job_id] = {**facts, "id": job_id}
    # A job without a state was neither submitted nor waited for here, only read.
    listed = sorted((facts for facts in jobs.values() if "state" in facts), key=lambda facts: facts.get("noted", ""))
    if not listed:
        return
    total = sum(float(facts.get("usage_seconds", 0)) for facts in listed if "shared" not in facts)
    meta = {"jobs": str(len(listed)), "usage_seconds": number_text(total), "flow_run": flow_run_id}
    await upsert(
        "summary",
        flow_run_id,
        summary_card(listed),
        {
            **meta,
            "deployment": run.deployment_id,
            **(process_facts() if run.open else {}),  # of the process that submitted them
            **{OPEN + job_id: note for job_id, note in run.open.items()},
            **{ATTACHED + job_id: "yes" for job_id in run.attached},
        },
        new=alone and first,
        drop=[OPEN + job_id for job_id in run.done],
        flow_run_id=flow_run_id,
        describe=summary_description,
    )
    run.is_written = True


async def _read_jobs(flow_run_id: str, jobs: dict[str, Mapping[str, str]], job_ids: list[str]) -> None:
    """Read the records of the jobs of a flow run and its subflows."""
    family = await prefect_api.family(UUID(flow_run_id))
    for record in await find_records("job", flow_run_ids=family):
        jobs.setdefault(record.meta["id"], record.meta)  # the newest record of a job comes first
    if missing := [job_id for job_id in job_ids if job_id not in jobs]:
        for record in await find_records("job", identifiers=missing):
            # Another flow run submitted it and counts its usage.
            jobs.setdefault(record.meta["id"], {**record.meta, "shared": "true"} if record.flow_run_id else record.meta)
