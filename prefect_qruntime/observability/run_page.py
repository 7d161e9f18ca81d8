"""The page of a job: its artifact, written at once or behind the flow's back, and the summary told of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from cachetools import LRUCache

from prefect_qruntime import prefect_api
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.artifacts import Write, find_records, upsert
from prefect_qruntime.observability.markdown import job_card, summary_card
from prefect_qruntime.prefect_api import in_run
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import current_run

__all__ = ["PageWrites", "in_background", "mark_dirty", "write", "write_bounded", "write_debounced", "write_summary"]

log = get_logger(__name__)

_PATIENCE = 0.3  # seconds; the API needs some hundredths unless hundreds of jobs come at once
_PAUSE = 1.0  # seconds over which news are bundled
_SHARE = 10  # so much longer than the last write took is the pause after it
_KEEP = 256
_TOGETHER = 0.25  # seconds over which news of a job are noted in one write


@dataclass(slots=True)
class _Late:
    """What is still to be noted of a job."""

    meta: dict[str, str | None]
    section: str | None
    dirty: int = 0


async def write(
    job_id: str,
    meta: dict[str, str | None],
    *,
    text: Write = job_card,
    defaults: Mapping[str, str] | None = None,
    new: bool = False,
    flow_run_id: str | None = None,
) -> None:
    """Note something of a job now; a failure is logged. Runs on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        text: What makes the page.
        defaults: Facts to note only where nothing was noted of them before.
        new: Whether nothing can be noted yet, which saves a look.
        flow_run_id: The flow run that owns the job, where the caller is in none.
    """
    if not (in_run() or flow_run_id):
        return
    try:
        page = None if in_run() else flow_run_id
        await upsert("job", job_id, text, meta, defaults=defaults, new=new, flow_run_id=page)
        owner = flow_run_id or (await current_run()).flow_run_id
        if owner is not None:
            mark_dirty(owner, job_id)
    except Exception:
        log.warning("the artifact of job %s could not be written", job_id, exc_info=True)


async def write_bounded(
    job_id: str, meta: dict[str, str | None], *, defaults: Mapping[str, str], new: bool, flow_run_id: str | None
) -> None:
    """As `write`, but for a moment at most: a Prefect API that is slow to answer is written to in the background."""
    if in_run() or flow_run_id:
        noting = in_background(lambda: write(job_id, meta, defaults=defaults, new=new, flow_run_id=flow_run_id))
        await asyncio.wait({noting}, timeout=_PATIENCE)


def write_debounced(job_id: str, meta: dict[str, str | None], section: str | None = None) -> None:
    """Note something of a job in one go with what comes in the next moment: its end and its result do.

    Nobody waits for it. Call it on the network loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        section: Its result as shown on the page.
    """
    if not in_run():
        return
    waiting = network_loop().state(PageWrites).debounced
    if (late := waiting.get(job_id)) is not None:
        late.meta |= meta
        late.section = section or late.section
        late.dirty += 1
        return
    late = waiting[job_id] = _Late(meta, section)

    async def settle() -> None:
        await asyncio.sleep(_TOGETHER)
        while True:
            noted = late.dirty
            await write(job_id, late.meta, text=lambda facts, old: job_card(facts, old, late.section))
            if late.dirty == noted:
                waiting.pop(job_id, None)
                return

    in_background(settle)


@dataclass
class _Page:
    jobs: dict[str, None] = field(default_factory=dict)
    dirty: bool = False
    writer: asyncio.Task[None] | None = None


class PageWrites:
    """What this process still has to write to run pages."""

    def __init__(self) -> None:
        self.debounced: dict[str, _Late] = {}
        self.pages: LRUCache[str, _Page] = LRUCache(_KEEP)
        self.tasks: set[asyncio.Task[None]] = set()


def mark_dirty(flow_run_id: str, job_id: str) -> None:
    """Have the summary of a flow run written soon, because a job of it changed. Call it on the network loop.

    Args:
        flow_run_id: The flow run that owns the job.
        job_id: The job; it may be noted on another flow run's page, where it was attached to.
    """
    page = network_loop().state(PageWrites).pages.setdefault(flow_run_id, _Page())
    page.jobs[job_id] = None
    page.dirty = True
    if page.writer is None or page.writer.done():
        page.writer = asyncio.create_task(_keep_writing(flow_run_id, page))


async def _keep_writing(flow_run_id: str, page: _Page) -> None:
    pause = _PAUSE
    try:
        while page.dirty:
            await asyncio.sleep(pause)
            page.dirty = False
            began = time.monotonic()
            await _try(lambda: write_summary(flow_run_id, page.jobs))
            pause = max(_PAUSE, _SHARE * (time.monotonic() - began))
    except asyncio.CancelledError:  # the process ends
        if noting := network_loop().state(PageWrites).tasks:  # what the jobs' pages are about to say belongs to it
            await asyncio.wait(noting)
        await _try(lambda: write_summary(flow_run_id, page.jobs))
        raise


async def write_summary(flow_run_id: str, job_ids: Iterable[str] = ()) -> None:
    """Write the summary of a flow run now. Runs on the network loop.

    Args:
        flow_run_id: The flow run.
        job_ids: Jobs of it that may be noted elsewhere: by the run that bought what this one attached to.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    family = await prefect_api.family(UUID(flow_run_id))
    jobs: dict[str, Mapping[str, str]] = {}
    for record in await find_records("job", flow_run_ids=family):
        jobs.setdefault(record.meta["id"], record.meta)  # the newest note of a job comes first
    if missing := [job_id for job_id in job_ids if job_id not in jobs]:
        for record in await find_records("job", identifiers=missing):
            # Another flow run paid for it, and counts it.
            jobs.setdefault(record.meta["id"], {**record.meta, "shared": "true"} if record.flow_run_id else record.meta)
    # Without a state it was neither bought nor waited for here, only read.
    listed = sorted((facts for facts in jobs.values() if "state" in facts), key=lambda facts: facts.get("noted", ""))
    if not listed:
        return
    total = sum(float(facts.get("usage_seconds", 0)) for facts in listed if "shared" not in facts)
    meta = {"jobs": str(len(listed)), "usage_seconds": f"{total:g}", "flow_run": flow_run_id}
    await upsert("summary", flow_run_id, summary_card(listed), meta, flow_run_id=flow_run_id)


def in_background(work: Callable[[], Awaitable[None]], *, again: bool = True) -> asyncio.Task[None]:
    """Do something for the run page that nobody waits for. Call it on the network loop.

    Args:
        work: What to do.
        again: Whether to do it once more if the process ends in the middle of it.

    Returns:
        The task that does it, for who wants to wait a little.
    """

    async def cared_for() -> None:
        try:
            await _try(work)
        except asyncio.CancelledError:
            if again:
                await _try(work)
            raise

    tasks = network_loop().state(PageWrites).tasks
    task = asyncio.create_task(cared_for())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:
        log.warning("the run page could not be completed", exc_info=True)
