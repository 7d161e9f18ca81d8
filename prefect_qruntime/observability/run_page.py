"""The pages of a flow run's jobs: one artifact for each job, written in the background with few writes.

A submission is noted in the flow run's summary (`run_summary`) before anything polls for the job. The job's own page
follows when it is over, or after some seconds if it is not, so that a quick job is written once. What is still
unwritten when the process ends is drained within a limit, and the rest is reported.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Coroutine, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_qruntime.client.network_loop import network_loop, used_loop
from prefect_qruntime.observability.artifacts import open_note, upsert
from prefect_qruntime.observability.markdown import (
    job_card,
    job_description,
    join_sections,
    with_history,
    with_progress,
)
from prefect_qruntime.observability.run_summary import Background, Summaries, in_background, mark_dirty
from prefect_qruntime.prefect_api import in_run, patience
from prefect_qruntime.redact import get_logger, many
from prefect_qruntime.run_context import current_run

__all__ = [
    "PageWrites",
    "add_section",
    "amend",
    "drain",
    "flush",
    "note_submitted",
    "write",
    "write_debounced",
    "write_progress",
]

log = get_logger(__name__)

_PATIENCE = 0.3  # seconds that a submission waits for its note; the API needs some hundredths unless overloaded
_FIRST = 3.0  # seconds after its submission until the page of a job that is not over is written
_FIRST_EACH = 0.03  # more of them for each page that waits: so long does a busy server take to write one
_TOGETHER = 2.0  # seconds over which the end and the result of a job are gathered into one write
_TRIES = 3  # attempts to write a page
_AGAIN = 15.0  # seconds before another try
_AT_ONCE = 4  # pages written at the same time
_AT_END = 8  # the same, by a process that ends
_STUCK = 12.0  # seconds without a written page after which such a process gives up; a worker kills it after 30
_DRAIN = 90.0  # seconds after which it gives up in any case
_AT_END_PATIENCE = 5.0  # seconds for which a write is repeated then, and for the summary
_WORTH_A_WORD = 5.0  # seconds of writing after which the log says why the process has not ended yet

Facts = dict[str, str | None]


async def write(
    job_id: str,
    meta: Facts,
    *,
    defaults: Mapping[str, str] | None = None,
    new: bool = False,
    flow_run_id: str | None = None,
) -> None:
    """Write facts to a job's page now, with those that are pending; log a failure. Runs on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        defaults: Facts that apply only if they were not recorded before.
        new: Whether the page cannot exist yet, which saves a request.
        flow_run_id: The flow run that owns the job, if the caller is in none.
    """
    if in_run() or flow_run_id:
        pages = network_loop().state(PageWrites)
        pages.put(job_id, meta, defaults=defaults, new=new, flow_run_id=flow_run_id)
        await pages.write_page(job_id)


async def note_submitted(
    job_id: str,
    meta: Facts,
    *,
    defaults: Mapping[str, str],
    new: bool,
    flow_run_id: str | None,
    deployment_id: str | None = None,
) -> None:
    """Note a submission in the flow run's summary, waiting a moment at most; its page follows. On the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        defaults: Facts that apply only if they were not recorded before.
        new: Whether nothing can have been recorded yet.
        flow_run_id: The flow run that owns the job.
        deployment_id: Its deployment.
    """
    if not (in_run() or flow_run_id):
        return
    pages = network_loop().state(PageWrites)
    if flow_run_id is None:  # a task outside any flow has no summary
        noting = in_background(lambda: write(job_id, meta, defaults=defaults, new=new))
        await asyncio.wait({noting}, timeout=_PATIENCE)
        return
    run = network_loop().state(Summaries).of(flow_run_id)
    run.deployment_id = deployment_id
    run.alone = run.alone and new and await _knows_all_jobs()
    facts = {**defaults, **{name: value for name, value in meta.items() if value is not None}}
    run.learn(job_id, facts)
    run.open[job_id] = open_note(facts)
    if not new:
        run.attached.add(job_id)
    pages.put(job_id, meta, defaults=defaults, new=new, flow_run_id=flow_run_id, after=pages.first())
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
    """Write facts to a job's page soon, together with later ones. Call it on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        section: Its result as shown on the page. It comes last, so the page is written at once.
    """
    if in_run():
        after = 0.0 if section is not None else _TOGETHER
        network_loop().state(PageWrites).put(job_id, meta, section=section, after=after)


def amend(job_id: str, meta: Facts) -> None:
    """Add facts to a pending write of a job's page; cause no write. Call it on the network loop."""
    pages = network_loop().find(PageWrites)
    if pages is not None and (pending := pages.pages.get(job_id)) is not None:
        pending.meta |= {name: value for name, value in meta.items() if value is not None}


async def write_progress(job_id: str, meta: Facts, *, flow_run_id: str) -> None:
    """Write to a job's page how the job goes on, for a flow run that has no process. Runs on the network loop.

    The flow run's summary is left alone, and so is a page that tells the job's end.

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
    """The pending write of a job's page."""

    meta: Facts
    section: str | None
    defaults: dict[str, str]
    new: bool
    flow_run_id: str | None
    context: Context
    due: float
    tries: int = 0


class PageWrites:
    """The job pages that this process still has to write. Lives on the network loop."""

    def __init__(self) -> None:
        self.pages: dict[str, _Pending] = {}
        self.writing: dict[str, asyncio.Task[bool]] = {}
        self.written = 0
        self._order: list[tuple[float, int, str]] = []
        self._count = itertools.count()
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._ending = False

    def first(self) -> float:
        """Seconds after which the page of a job that has not ended is written: its end may save that write.

        The flow run's summary notes the job until then.
        """
        return _FIRST + _FIRST_EACH * len(self.pages)

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
        """Schedule facts to be written after some seconds at the latest; pending facts of one job share one write."""
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
        # Without an entry, the pages that wait are being written now, and the end of that schedules them.
        while self.pages and self._order and not self._ending:
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
            if job_id in self.writing:  # its end schedules it
                continue
            await self._places.acquire()
            if job_id in self.writing or (pending := self.pages.pop(job_id, None)) is None:  # written meanwhile
                self._places.release()
                continue
            self._start(job_id, pending).add_done_callback(lambda _: self._places.release())

    async def write_page(self, job_id: str, *, last: bool = False) -> None:
        """Write the pending facts of a page, and schedule another attempt if that fails.

        Args:
            job_id: The job.
            last: Whether the process ends, so that there is no further attempt.
        """
        while (writing := self.writing.get(job_id)) is not None:
            await asyncio.wait([writing])
        if (pending := self.pages.pop(job_id, None)) is not None:
            await self._start(job_id, pending, last=last)

    def _start(self, job_id: str, pending: _Pending, *, last: bool = False) -> asyncio.Task[bool]:
        """Begin to write a page.

        There is one write at a time for each page. Newer facts wait, because those of a write that fails join them: if
        they were written first, the older ones would replace them at the next attempt.
        """

        async def attempt() -> bool:
            with patience(_AT_END_PATIENCE, silence=_DRAIN) if last else contextlib.nullcontext():
                return await _write(job_id, pending)

        def ended(writing: asyncio.Task[bool]) -> None:
            del self.writing[job_id]
            pending.tries += 1
            if not writing.cancelled() and writing.result():
                self.written += 1
            elif last or pending.tries < _TRIES:
                self._put_back(job_id, pending)
            if (waiting := self.pages.get(job_id)) is not None:
                self._schedule(job_id, waiting)

        writing = self.writing[job_id] = asyncio.create_task(attempt(), context=pending.context)
        writing.add_done_callback(ended)
        return writing

    def _put_back(self, job_id: str, pending: _Pending) -> None:
        if (newer := self.pages.get(job_id)) is not None:
            newer.meta = {**pending.meta, **newer.meta}
            newer.section = join_sections(pending.section, newer.section) or newer.section or pending.section
            newer.new, newer.defaults = newer.new or pending.new, {**pending.defaults, **newer.defaults}
            return
        pending.due = time.monotonic() + _AGAIN
        self.pages[job_id] = pending

    async def write_pages(self, *, last: bool = False) -> None:
        """Write all pending pages now."""
        self._ending = last  # pages that are being written are completed, the others are written here
        self._changed.set()
        at_once = asyncio.Semaphore(_AT_END if last else _AT_ONCE)

        async def one(job_id: str) -> None:
            async with at_once:
                await self.write_page(job_id, last=last)

        await asyncio.gather(*(one(job_id) for job_id in list(self.pages)))
        while self.writing:
            await asyncio.wait(list(self.writing.values()))

    async def stop(self) -> None:
        """Cancel the writes in flight; they count as not written."""
        worker = [self._worker] if self._worker is not None else []
        under_way: list[asyncio.Task[Any]] = [*self.writing.values(), *worker]
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)


async def _write(job_id: str, pending: _Pending) -> bool:
    """Write a page, in the context of the first pending fact; return whether that succeeded."""

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
            run = network_loop().state(Summaries).of(owner)
            run.paged(job_id)
            if "now" not in pending.meta or run.jobs.get(job_id, {}).get("state") != pending.meta.get("state"):
                mark_dirty(owner, job_id, {**pending.defaults, **pending.meta})
    except Exception as error:
        log.warning("The artifact of job %s could not be written: %r", job_id, error)
        return False
    return True


async def flush() -> None:
    """Write all pending pages and summaries of this process. Runs on the network loop."""
    tasks = network_loop().state(Background).tasks
    while tasks:
        await asyncio.wait(tasks)
    await network_loop().state(PageWrites).write_pages()
    await network_loop().state(Summaries).write_changed()


async def drain(stuck: float = _STUCK) -> list[str]:
    """Write what is pending when the process ends, and report what is not written in time. Runs on the network loop.

    A busy server is slow, so this continues while pages are written. The summary lists every job; it is written even
    if their pages are not.

    Args:
        stuck: Seconds without a written page after which it gives up.

    Returns:
        The jobs whose pages are incomplete.
    """
    pages, summaries = network_loop().state(PageWrites), network_loop().state(Summaries)
    tasks = network_loop().state(Background).tasks

    async def write_what_is_left() -> None:
        if tasks:
            await asyncio.wait(tasks)
        await pages.write_pages(last=True)

    with patience(_AT_END_PATIENCE):
        await _while_it_goes_on(write_what_is_left(), pages, stuck)
        await pages.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_AT_END_PATIENCE, stuck / 2)):
                await summaries.write_changed()
    missing = sorted(pages.pages)
    unwritten = [run for run in summaries.runs.values() if run.dirty]
    pages.pages.clear()
    for run in unwritten:
        run.dirty = False
    if missing or unwritten:
        what = many(len(missing), "job page") if missing else "The flow run's summary"
        log.warning(
            "%s could not be written to Prefect before the process ended. The jobs themselves are not affected. "
            "Run `prefect-qruntime sweep` to complete the pages.",
            what,
        )
    return missing


async def _while_it_goes_on(work: Coroutine[Any, Any, None], pages: PageWrites, stuck: float) -> None:
    """Run a coroutine that writes pages until it is done, or until no page was written for some seconds."""
    task, began, said = asyncio.create_task(work), time.monotonic(), False
    moved, seen = began, pages.written
    while not task.done() and (now := time.monotonic()) - moved < stuck and now - began < _DRAIN:
        if not said and now - began > _WORTH_A_WORD:
            said = True
            left = len(pages.pages) + len(pages.writing)
            log.info("Writing %s to Prefect, which is busy, before the process ends.", many(left, "job page"))
        await asyncio.wait({task}, timeout=min(1.0, stuck / 4))
        if pages.written != seen:
            moved, seen = time.monotonic(), pages.written
    task.cancel()
    await asyncio.wait({task})


def _drain_at_exit() -> None:
    if (loop := used_loop()) is None:
        return
    pages, summaries, background = loop.find(PageWrites), loop.find(Summaries), loop.find(Background)
    if (
        (pages is not None and (pages.pages or pages.writing))
        or (background is not None and background.tasks)
        or (summaries is not None and any(run.dirty for run in summaries.runs.values()))
    ):
        loop.run(drain())


# Before the thread pools are shut down, without which no connection can be opened; and again at the very end, for what
# other threads left. Both run before the network loop closes, because they are registered later.
getattr(threading, "_register_atexit", atexit.register)(_drain_at_exit)
atexit.register(_drain_at_exit)
