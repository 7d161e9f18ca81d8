"""The pages of a flow run: one artifact for each job and one summary, written in the background with few writes.

A submission is noted in the flow run's summary before anything polls for the job; submissions that come together share
one write. The job's own page follows when it is over, or after some seconds if it is not, so that a quick job is
written once. What is still unwritten when the process ends is drained within a limit, and the rest is reported.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from cachetools import LRUCache
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_qruntime import prefect_api
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import find_records, open_note, upsert
from prefect_qruntime.observability.markdown import (
    job_card,
    job_description,
    join_sections,
    summary_card,
    summary_description,
    with_history,
    with_progress,
)
from prefect_qruntime.observability.processes import process_facts
from prefect_qruntime.prefect_api import in_run, patience
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import current_run, submissions_in_flight

__all__ = [
    "PageWrites",
    "add_section",
    "amend",
    "drain",
    "flush",
    "in_background",
    "mark_dirty",
    "note_submitted",
    "write",
    "write_debounced",
    "write_progress",
    "write_summary",
]

log = get_logger(__name__)

_PATIENCE = 0.3  # seconds a submission waits for its note; the API needs some hundredths unless it is overloaded
_GATHER = 0.25  # seconds for which a note waits for other submissions that are under way
_NOTE_SHARE = 3  # or so much longer than the last one took
_FIRST = 3.0  # seconds after its submission until the page of a job that is not over is written
_TOGETHER = 2.0  # seconds over which the end and the result of a job are gathered into one write
_PAUSE = 1.0  # seconds over which changes of a summary are gathered
_SETTLING = 4.0  # more of them while jobs of it are without a page
_SHARE = 10  # so much longer than the last write took is the pause after it
_KEEP = 256  # flow runs whose jobs are remembered
_TRIES = 3  # of a page whose write failed, patience included
_AGAIN = 15.0  # seconds before another try
_AT_ONCE = 4  # pages written at the same time
_AT_END = 8  # by a process that ends
_STUCK = 12.0  # seconds without a page written after which such a process gives up; a worker kills it after 30
_DRAIN = 90.0  # seconds after which it gives up in any case
_AT_END_PATIENCE = 5.0  # seconds for which a write is repeated then, and for the summary
_WORTH_A_WORD = 5.0  # seconds of writing at the end after which the log says why the process does not end

Facts = dict[str, str | None]


async def write(
    job_id: str,
    meta: Facts,
    *,
    defaults: Mapping[str, str] | None = None,
    new: bool = False,
    flow_run_id: str | None = None,
) -> None:
    """Write facts to the page of a job now, together with what waits; a failure is logged. Runs on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        defaults: Facts that count only if nothing was noted of them before.
        new: Whether the page cannot exist yet, which saves a request.
        flow_run_id: The flow run that owns the job, if the caller is in none.
    """
    if in_run() or flow_run_id:
        pages = network_loop().state(PageWrites)
        pages.put(job_id, meta, defaults=defaults, new=new, flow_run_id=flow_run_id)
        await pages.write_page(job_id)


async def note_submitted(
    job_id: str, meta: Facts, *, defaults: Mapping[str, str], new: bool, flow_run_id: str | None
) -> None:
    """Note a submission in Prefect, waiting a moment at most; its page follows. Runs on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        defaults: Facts that count only if nothing was noted of them before.
        new: Whether nothing can be noted yet.
        flow_run_id: The flow run that owns the job.
    """
    if not (in_run() or flow_run_id):
        return
    pages = network_loop().state(PageWrites)
    if flow_run_id is None:  # a task outside any flow has no summary
        noting = in_background(lambda: write(job_id, meta, defaults=defaults, new=new))
        await asyncio.wait({noting}, timeout=_PATIENCE)
        return
    run = pages.run(flow_run_id)
    run.alone = run.alone and new and await _knows_all_jobs()
    facts = {**defaults, **{name: value for name, value in meta.items() if value is not None}}
    run.learn(job_id, facts)
    run.open[job_id] = open_note(facts)
    pages.put(job_id, meta, defaults=defaults, new=new, flow_run_id=flow_run_id, after=_FIRST)
    await asyncio.wait({run.note(job_id)}, timeout=_PATIENCE)


async def _knows_all_jobs() -> bool:
    """Whether this process sees all jobs of its flow run: its first attempt, and no task in another process."""
    context = FlowRunContext.get()
    return (
        context is not None
        and not context.detached
        and isinstance(context.task_runner, ThreadPoolTaskRunner)
        and not (await current_run()).repeated
    )


def write_debounced(job_id: str, meta: Facts, section: str | None = None) -> None:
    """Write facts to the page of a job soon, together with what follows. Call it on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        section: Its result as shown on the page. It comes last, so the page is written at once.
    """
    if in_run():
        after = 0.0 if section is not None else _TOGETHER
        network_loop().state(PageWrites).put(job_id, meta, section=section, after=after)


def amend(job_id: str, meta: Facts) -> None:
    """Add facts to a write of a job's page that is due anyway; they cause none. Call it on the network loop."""
    pages = network_loop().find(PageWrites)
    if pages is not None and (pending := pages.pages.get(job_id)) is not None:
        pending.meta |= {name: value for name, value in meta.items() if value is not None}


async def write_progress(job_id: str, meta: Facts, *, flow_run_id: str) -> None:
    """Write to a job's page how the job goes on, for a flow run that has no process. Runs on the network loop.

    The flow run's summary is left alone, and so is a page that tells the job's end.

    Args:
        job_id: The job.
        meta: Plain facts.
        flow_run_id: The flow run that owns the job.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    await upsert("job", job_id, job_card, meta, flow_run_id=flow_run_id, describe=job_description, merge=with_progress)


def add_section(job_id: str, section: str) -> None:
    """Add a section to a job's page, with the next write if one is due. Call it on the network loop."""
    if in_run():
        network_loop().state(PageWrites).put(job_id, {}, section=section, after=_FIRST)


@dataclass(slots=True)
class _Pending:
    """What is still to be written to the page of a job."""

    meta: Facts
    section: str | None
    defaults: dict[str, str]
    new: bool
    flow_run_id: str | None
    context: Context
    due: float
    tries: int = 0


class PageWrites:
    """What this process still has to write to run pages. Lives on the network loop."""

    def __init__(self) -> None:
        self.pages: dict[str, _Pending] = {}
        self.runs: LRUCache[str, _Run] = LRUCache(_KEEP)
        self.tasks: set[asyncio.Task[None]] = set()
        self.writing: dict[str, asyncio.Task[bool]] = {}
        self.written = 0
        self._order: list[tuple[float, int, str]] = []
        self._count = itertools.count()
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._jobs: set[asyncio.Task[None]] = set()
        self._ending = False

    def run(self, flow_run_id: str) -> _Run:
        """What is known of a flow run's jobs."""
        run: _Run = self.runs.setdefault(flow_run_id, _Run(flow_run_id))
        return run

    def put(
        self,
        job_id: str,
        meta: Facts,
        *,
        section: str | None = None,
        defaults: Mapping[str, str] | None = None,
        new: bool = False,
        flow_run_id: str | None = None,
        after: float = 0.0,
    ) -> None:
        """Have facts written after some seconds at the latest; those of one job that wait share one write."""
        due, pending = time.monotonic() + after, self.pages.get(job_id)
        if pending is None:
            pending = self.pages[job_id] = _Pending(
                dict(meta), section, dict(defaults or {}), new, flow_run_id, copy_context(), due
            )
        else:
            pending.meta |= {name: value for name, value in meta.items() if value is not None}
            pending.section = join_sections(pending.section, section) or section or pending.section
            pending.due = min(pending.due, due)
        self._schedule(job_id, pending)

    def _schedule(self, job_id: str, pending: _Pending) -> None:
        heapq.heappush(self._order, (pending.due, next(self._count), job_id))
        self._changed.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self.pages and not self._ending:
            due, _, job_id = self._order[0]
            pending = self.pages.get(job_id)
            if pending is None or pending.due != due:
                heapq.heappop(self._order)
                continue
            self._changed.clear()
            left = due - time.monotonic()
            if left > 0:
                try:
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            heapq.heappop(self._order)
            await self._places.acquire()
            if (pending := self.pages.pop(job_id, None)) is None:  # written by another meanwhile
                self._places.release()
                continue
            job = asyncio.create_task(self._write_pending(job_id, pending, last=False))
            self._jobs.add(job)
            job.add_done_callback(self._freed)

    def _freed(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        self._places.release()

    async def write_page(self, job_id: str, *, last: bool = False) -> None:
        """Write what waits for a page, and try again later if that fails.

        Args:
            job_id: The job.
            last: Whether the process ends, so that a failure stays.
        """
        pending = self.pages.pop(job_id, None)
        if pending is not None:
            await self._write_pending(job_id, pending, last=last)

    async def _write_pending(self, job_id: str, pending: _Pending, *, last: bool) -> None:
        async def attempt() -> bool:
            with patience(_AT_END_PATIENCE, silence=_DRAIN) if last else contextlib.nullcontext():
                return await _write(job_id, pending)

        done = False
        writing = asyncio.create_task(attempt(), context=pending.context)
        self.writing[job_id] = writing
        try:
            done = await writing
        finally:
            self.writing.pop(job_id, None)
            self.written += done
            pending.tries += 1
            if not done and (last or pending.tries < _TRIES):
                self._put_back(job_id, pending, again=not last)

    def _put_back(self, job_id: str, pending: _Pending, *, again: bool) -> None:
        if (newer := self.pages.get(job_id)) is not None:
            newer.meta = {**pending.meta, **newer.meta}
            newer.section = join_sections(pending.section, newer.section) or newer.section or pending.section
            newer.new, newer.defaults = newer.new or pending.new, {**pending.defaults, **newer.defaults}
            return
        self.pages[job_id] = pending
        if again:
            pending.due = time.monotonic() + _AGAIN
            self._schedule(job_id, pending)

    async def write_pages(self, *, last: bool = False) -> None:
        """Write all pages that wait now."""
        self._ending = last  # the pages that are being written are finished, the others are written here
        self._changed.set()
        at_once = asyncio.Semaphore(_AT_END if last else _AT_ONCE)

        async def one(job_id: str) -> None:
            async with at_once:
                await self.write_page(job_id, last=last)

        await asyncio.gather(*(one(job_id) for job_id in list(self.pages)))
        while under_way := [*self.writing.values(), *self._jobs]:
            await asyncio.wait(under_way)

    async def write_summaries(self) -> None:
        """Write all summaries that changed."""
        await asyncio.gather(*(run.settle() for run in list(self.runs.values())))

    async def stop(self) -> None:
        """Give up what is being written; it counts as not written."""
        worker = [self._worker] if self._worker is not None else []
        under_way: list[asyncio.Task[Any]] = [*self.writing.values(), *self._jobs, *worker]
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)


async def _write(job_id: str, pending: _Pending) -> bool:
    """Write a page, in the context of the first that had something to write; returns whether that went well."""

    def text(facts: Mapping[str, str], old: str) -> str:
        return job_card(facts, old, pending.section)

    try:
        page = None if in_run() else pending.flow_run_id
        await upsert(
            "job",
            job_id,
            text,
            pending.meta,
            defaults=pending.defaults,
            new=pending.new,
            flow_run_id=page,
            describe=job_description,
            merge=with_history,
        )
        owner = pending.flow_run_id or (await current_run()).flow_run_id
        if owner is not None:
            run = network_loop().state(PageWrites).run(owner)
            run.paged(job_id)
            if "now" not in pending.meta or run.jobs.get(job_id, {}).get("state") != pending.meta.get("state"):
                mark_dirty(owner, job_id, {**pending.defaults, **pending.meta})
    except Exception as error:
        log.warning("The artifact of job %s could not be written: %r", job_id, error)
        return False
    return True


@dataclass(eq=False)
class _Run:
    """The jobs of a flow run as this process knows them, and the writes of its summary.

    Attributes:
        flow_run_id: The flow run.
        jobs: Facts of each job.
        open: Notes of submissions whose jobs have no page yet.
        alone: Whether no other process, and no earlier attempt, can have had jobs in it.
    """

    flow_run_id: str
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    alone: bool = True
    dirty: bool = False
    _written: bool = False
    _took: float = 0.0
    _done: set[str] = field(default_factory=set)
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
        self._done.add(job_id)
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


def mark_dirty(flow_run_id: str, job_id: str, facts: Mapping[str, str | None] | None = None) -> None:
    """Have the summary of a flow run written soon, because a job of it changed. Call it on the network loop.

    Args:
        flow_run_id: The flow run that owns the job.
        job_id: The job; it may be noted on another flow run's page, if it was attached to.
        facts: What is known of it now.
    """
    run = network_loop().state(PageWrites).run(flow_run_id)
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
    run = network_loop().state(PageWrites).run(flow_run_id)
    known = {job_id: dict(facts) for job_id, facts in run.jobs.items()}
    alone, first = run.alone and bool(known), not run._written
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
        drop=[f"open {job_id}" for job_id in run._done],
        flow_run_id=flow_run_id,
        describe=summary_description,
    )
    run._written = True


async def _read_jobs(flow_run_id: str, jobs: dict[str, Mapping[str, str]], job_ids: list[str]) -> None:
    """Read what is noted of a flow run's jobs, its subflows' included."""
    family = await prefect_api.family(UUID(flow_run_id))
    for record in await find_records("job", flow_run_ids=family):
        jobs.setdefault(record.meta["id"], record.meta)  # the newest note of a job comes first
    if missing := [job_id for job_id in job_ids if job_id not in jobs]:
        for record in await find_records("job", identifiers=missing):
            # Another flow run paid for it, and counts it.
            jobs.setdefault(record.meta["id"], {**record.meta, "shared": "true"} if record.flow_run_id else record.meta)


def in_background(work: Callable[[], Awaitable[None]], *, again: bool = True) -> asyncio.Task[None]:
    """Do something for the run page in the background. Call it on the network loop.

    Args:
        work: What to do.
        again: Whether an ending process waits for it.

    Returns:
        The task that does it.
    """
    tasks = network_loop().state(PageWrites).tasks
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


async def flush() -> None:
    """Write everything that this process has to write to run pages. Runs on the network loop."""
    pages = network_loop().state(PageWrites)
    while pages.tasks:
        await asyncio.wait(pages.tasks)
    await pages.write_pages()
    await pages.write_summaries()


async def drain(stuck: float = _STUCK) -> list[str]:
    """Write what is left when the process ends, and report what is not written in time. Runs on the network loop.

    A busy server takes its time, so this goes on as long as pages are written. The summary has every job in it; it is
    written even if they are not.

    Args:
        stuck: Seconds without a page written after which it gives up.

    Returns:
        The jobs whose pages are incomplete.
    """
    pages = network_loop().state(PageWrites)

    async def write_what_is_left() -> None:
        if pages.tasks:
            await asyncio.wait(pages.tasks)
        await pages.write_pages(last=True)

    with patience(_AT_END_PATIENCE):
        await _while_it_goes_on(write_what_is_left(), pages, stuck)
        await pages.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_AT_END_PATIENCE, stuck / 2)):
                await pages.write_summaries()
    missing = sorted(pages.pages)
    summaries = any(run.dirty for run in pages.runs.values())
    pages.pages.clear()
    for run in pages.runs.values():
        run.dirty = False
    if missing or summaries:
        what = _job_pages(len(missing)) if missing else "The flow run's summary"
        log.warning(
            "%s could not be written to Prefect before the process ended. The jobs themselves are not affected. "
            "Run `prefect-qruntime sweep` to complete the pages.",
            what,
        )
    return missing


async def _while_it_goes_on(work: Coroutine[Any, Any, None], pages: PageWrites, stuck: float) -> None:
    """Run what writes pages until it is done, or no page was written for some seconds."""
    task, began, said = asyncio.create_task(work), time.monotonic(), False
    moved, seen = began, pages.written
    while not task.done() and (now := time.monotonic()) - moved < stuck and now - began < _DRAIN:
        if not said and now - began > _WORTH_A_WORD:
            said = True
            left = len(pages.pages) + len(pages.writing)
            log.info("Writing %s to Prefect, which is busy, before the process ends.", _job_pages(left))
        await asyncio.wait({task}, timeout=min(1.0, stuck / 4))
        if pages.written != seen:
            moved, seen = time.monotonic(), pages.written
    task.cancel()
    await asyncio.wait({task})


def _job_pages(number: int) -> str:
    return f"{number} job page{'' if number == 1 else 's'}"


def _drain_at_exit() -> None:
    loop = network_loop()
    pages = loop.find(PageWrites)
    if pages is not None and (pages.pages or pages.writing or pages.tasks or any(r.dirty for r in pages.runs.values())):
        loop.run(drain())


# Before the pools of threads are shut down, without which no connection can be opened; and again at the very end, for
# what other threads left. Both come before the network loop closes, because they are registered later.
getattr(threading, "_register_atexit", atexit.register)(_drain_at_exit)
atexit.register(_drain_at_exit)
