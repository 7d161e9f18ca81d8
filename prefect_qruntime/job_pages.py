"""The page of a job: its artifact, written at once or behind the flow's back, and the summary told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from prefect_qruntime import keys, summary
from prefect_qruntime.cards import job_card
from prefect_qruntime.client.home import home
from prefect_qruntime.orchestration import in_run
from prefect_qruntime.records import Write, put_record

__all__ = ["note", "note_later", "note_soon"]

log = logging.getLogger("prefect_qruntime.tasks")

_PATIENCE = 0.3  # seconds; the API needs some hundredths unless hundreds of jobs come at once
_TOGETHER = 0.25  # seconds over which news of a job are noted in one write


@dataclass(slots=True)
class _Late:
    """What is still to be noted of a job."""

    meta: dict[str, str | None]
    section: str | None
    news: int = 0


async def note(
    job_id: str,
    meta: dict[str, str | None],
    *,
    text: Write = job_card,
    unknown: Mapping[str, str] | None = None,
    new: bool = False,
    flow_run_id: str | None = None,
) -> None:
    """Note something of a job now; a failure is logged. Runs on the home loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        text: What makes the page.
        unknown: Facts to note only where nothing was noted of them before.
        new: Whether nothing can be noted yet, which saves a look.
        flow_run_id: The flow run that owns the job, where the caller is in none.
    """
    if not (in_run() or flow_run_id):
        return
    try:
        page = None if in_run() else flow_run_id
        await put_record("job", job_id, text, meta, unknown=unknown, new=new, flow_run_id=page)
        owner = flow_run_id or (await keys.origin()).flow_run_id
        if owner is not None:
            summary.touch(owner, job_id)
    except Exception:
        log.warning("the artifact of job %s could not be written", job_id, exc_info=True)


async def note_soon(
    job_id: str, meta: dict[str, str | None], *, unknown: Mapping[str, str], new: bool, flow_run_id: str | None
) -> None:
    """As `note`, but a Prefect API that is slow to answer holds nothing up: then it is noted behind the flow's back."""
    if in_run() or flow_run_id:
        noting = summary.behind(lambda: note(job_id, meta, unknown=unknown, new=new, flow_run_id=flow_run_id))
        await asyncio.wait({noting}, timeout=_PATIENCE)


def note_later(job_id: str, meta: dict[str, str | None], section: str | None = None) -> None:
    """Note something of a job in one go with what comes in the next moment: its end and its result do.

    Nobody waits for it. Call it on the home loop.

    Args:
        job_id: The job.
        meta: Plain facts.
        section: Its result as shown on the page.
    """
    if not in_run():
        return
    waiting: dict[str, _Late] = home().shared.setdefault("late notes", {})
    if (late := waiting.get(job_id)) is not None:
        late.meta |= meta
        late.section = section or late.section
        late.news += 1
        return
    late = waiting[job_id] = _Late(meta, section)

    async def write() -> None:
        await asyncio.sleep(_TOGETHER)
        while True:
            noted = late.news
            await note(job_id, late.meta, text=lambda facts, old: job_card(facts, old, late.section))
            if late.news == noted:
                waiting.pop(job_id, None)
                return

    summary.behind(write)
