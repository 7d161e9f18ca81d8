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
from prefect_qruntime.observability.artifacts import find_records, upsert
from prefect_qruntime.observability.markdown import summary_card, summary_description
from prefect_qruntime.observability.processes import process_facts
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import submissions_in_flight

__all__ = ["Background", "RunSummary", "Summaries", "in_background", "mark_dirty", "write_summary"]

log = get_logger(__name__)

_GATHER = 0.25  # seconds for which a note waits for other submissions that are under way
_NOTE_SHARE = 3  # or so much longer than the last one took
_PAUSE = 1.0  # seconds over which changes of a summary are gathered
_SETTLING = 4.0  # more of them while jobs of it are without a page
_SHARE = 10  # so much longer than the last write took is the pause after it
_KEEP = 256  # flow runs whose jobs are remembered


class Background:
    """What this process does for run pages in the background, and finishes before it ends."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()


def in_background(work: Callable[[], Awaitable[None]], *, again: bool = True) -> asyncio.Task[None]:
    """Do something for the run page in the background. Call it on the network loop.

    Args:
        work: What to do.
        again: Whether an ending process waits for it.

    Returns:
        The task that does it.
    """
    tasks = network_loop().state(Background).tasks
    task = asyncio.create_task(_try(work))
    if again:
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
    """The jobs of a flow run as this process knows them, and the writes of its summary.

    Attributes:
        flow_run_id: The flow run.
        jobs: Facts of each job.
        open: Notes of submissions whose jobs have no page yet.
        alone: Whether no other process, and no earlier attempt, can have had jobs in it.
        dirty: Whether something changed since its summary was written.
        is_written: Whether this process wrote its summary.
        done: Jobs that have a page.
    """

    flow_run_id: str
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
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
        """Keep facts of a job."""
        known = self.jobs.setdefault(job_id, {})
        known |= {name: value for name, value in facts.items() if value is not None}

    def paged(self, job_id: str) -> None:
        """A job has its own page now."""
        self.open.pop(job_id, None)
        self.done.add(job_id)
        if not self.open:
            self._all_paged.set()

    def note(self, job_id: str) -> asyncio.Task[None]:
        """Have a submission noted soon; those that come together share one write."""
        self._unnoted.add(job_id)
        self._another.set()
        if self._noting is None:
            self._noting = in_background(self._note)
        return self._noting

    async def _note(self) -> None:
        with contextlib.suppress(TimeoutError):
            # Each note names all jobs without a page: a busy server gets few of them.
            async with asyncio.timeout(max(_GATHER, _NOTE_SHARE * self._took)):
                while submissions_in_flight() > len(self._unnoted):
                    self._another.clear()
                    await self._another.wait()
        async with self._lock:
            self._noting = None
            self._unnoted.clear()
            await self._write()

    def touch(self) -> None:
        """Have the summary written soon."""
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
        """Write the summary now if something changed."""
        async with self._lock:
            if self.dirty:
                await _try(self._write)

    async def _write(self) -> None:
        self.dirty, began = False, time.monotonic()
        try:
            await write_summary(self.flow_run_id, self.jobs)
        except BaseException:
            self.dirty = True  # for the end of the process
            raise
        self._took = time.monotonic() - began


class Summaries:
    """The flow runs whose jobs this process knows. Lives on the network loop."""

    def __init__(self) -> None:
        self.runs: LRUCache[str, RunSummary] = LRUCache(_KEEP)

    def of(self, flow_run_id: str) -> RunSummary:
        """What is known of a flow run's jobs."""
        run: RunSummary = self.runs.setdefault(flow_run_id, RunSummary(flow_run_id))
        return run

    async def write_changed(self) -> None:
        """Write all summaries that changed."""
        await asyncio.gather(*(run.settle() for run in list(self.runs.values())))


def mark_dirty(flow_run_id: str, job_id: str, facts: Mapping[str, str | None] | None = None) -> None:
    """Have the summary of a flow run written soon, because a job of it changed. Call it on the network loop.

    Args:
        flow_run_id: The flow run that owns the job.
        job_id: The job; it may be noted on another flow run's page, if it was attached to.
        facts: What is known of it now.
    """
    run = network_loop().state(Summaries).of(flow_run_id)
    if job_id not in run.jobs:
        run.alone = False  # others noted it first
    run.learn(job_id, facts or {})
    run.touch()


async def write_summary(flow_run_id: str, job_ids: Iterable[str] = ()) -> None:
    """Write the summary of a flow run now. Runs on the network loop.

    Args:
        flow_run_id: The flow run.
        job_ids: Jobs of it that may be noted elsewhere: by the run that bought what this one attached to.

    Raises:
        Exception: Whatever Prefect's API raises.
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
            if job_id in jobs:  # its page may be written later than this
                jobs[job_id] = {**jobs[job_id], **facts}
            else:
                jobs[job_id] = {**facts, "id": job_id}
    # Without a state it was neither bought nor waited for here, only read.
    listed = sorted((facts for facts in jobs.values() if "state" in facts), key=lambda facts: facts.get("noted", ""))
    if not listed:
        return
    total = sum(float(facts.get("usage_seconds", 0)) for facts in listed if "shared" not in facts)
    meta = {"jobs": str(len(listed)), "usage_seconds": f"{total:g}", "flow_run": flow_run_id}
    await upsert(
        "summary",
        flow_run_id,
        summary_card(listed),
        {
            **meta,
            **(process_facts() if run.open else {}),  # of the process that submitted them
            **{f"open {job_id}": note for job_id, note in run.open.items()},
        },
        new=alone and first,
        drop=[f"open {job_id}" for job_id in run.done],
        flow_run_id=flow_run_id,
        describe=summary_description,
    )
    run.is_written = True


async def _read_jobs(flow_run_id: str, jobs: dict[str, Mapping[str, str]], job_ids: list[str]) -> None:
    """Read what is noted of a flow run's jobs, its subflows' included."""
    family = await prefect_api.family(UUID(flow_run_id))
    for record in await find_records("job", flow_run_ids=family):
        jobs.setdefault(record.meta["id"], record.meta)  # the newest note of a job comes first
    if missing := [job_id for job_id in job_ids if job_id not in jobs]:
        for record in await find_records("job", identifiers=missing):
            # Another flow run paid for it, and counts it.
            jobs.setdefault(record.meta["id"], {**record.meta, "shared": "true"} if record.flow_run_id else record.meta)
