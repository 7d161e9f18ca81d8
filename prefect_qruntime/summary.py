"""One artifact a flow run: all its jobs with what they cost, written behind the flow's back.

Nothing waits for it. It is written from the jobs' own records, so that any process can; writes are bundled,
and what is still to be told when the process ends goes out then. A process that was killed leaves it to the
flow's hooks and to the sweep.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from prefect_qruntime import flow_runs
from prefect_qruntime.cards import summary_card
from prefect_qruntime.client.home import home
from prefect_qruntime.records import find_records, put_record

__all__ = ["behind", "touch", "write_summary"]

log = logging.getLogger("prefect_qruntime.tasks")

_PAUSE = 1.0  # seconds over which news are bundled
_SHARE = 10  # so much longer than the last write took is the pause after it
_KEEP = 256


@dataclass
class _Page:
    jobs: dict[str, None] = field(default_factory=dict)
    news: bool = False
    writer: asyncio.Task[None] | None = None


def touch(flow_run_id: str, job_id: str) -> None:
    """Have the summary of a flow run written soon, because a job of it changed. Call it on the home loop.

    Args:
        flow_run_id: The flow run that owns the job.
        job_id: The job; it may be noted on another flow run's page, where it was attached to.
    """
    pages: OrderedDict[str, _Page] = home().shared.setdefault("summaries", OrderedDict())
    page = pages.setdefault(flow_run_id, _Page())
    pages.move_to_end(flow_run_id)
    while len(pages) > _KEEP:
        pages.popitem(last=False)
    page.jobs[job_id] = None
    page.news = True
    if page.writer is None or page.writer.done():
        page.writer = asyncio.create_task(_keep_writing(flow_run_id, page))


async def _keep_writing(flow_run_id: str, page: _Page) -> None:
    pause = _PAUSE
    try:
        while page.news:
            await asyncio.sleep(pause)
            page.news = False
            began = time.monotonic()
            await _try(lambda: write_summary(flow_run_id, page.jobs))
            pause = max(_PAUSE, _SHARE * (time.monotonic() - began))
    except asyncio.CancelledError:  # the process ends
        if noting := home().shared.get("behind"):  # what the jobs' pages are about to say belongs to it
            await asyncio.wait(noting)
        await _try(lambda: write_summary(flow_run_id, page.jobs))
        raise


async def write_summary(flow_run_id: str, job_ids: Iterable[str] = ()) -> None:
    """Write the summary of a flow run now. Runs on the home loop.

    Args:
        flow_run_id: The flow run.
        job_ids: Jobs of it that may be noted elsewhere: by the run that bought what this one attached to.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    family = await flow_runs.family(UUID(flow_run_id))
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
    await put_record("summary", flow_run_id, summary_card(listed), meta, flow_run_id=flow_run_id)


def behind(work: Callable[[], Awaitable[None]], *, again: bool = True) -> asyncio.Task[None]:
    """Do something for the run page that nobody waits for. Call it on the home loop.

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

    tasks: set[asyncio.Task[None]] = home().shared.setdefault("behind", set())
    task = asyncio.create_task(cared_for())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:
        log.warning("the run page could not be completed", exc_info=True)
