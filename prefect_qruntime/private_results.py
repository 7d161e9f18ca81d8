"""Results of private jobs: the service hands them out once, so they are stored before they are handed on."""

from __future__ import annotations

import logging

from prefect.results import ResultStore, get_result_store

from prefect_qruntime import observe
from prefect_qruntime.client.results import JobResult

__all__ = ["keep", "read"]


def _key(job_id: str) -> str:
    return f"qruntime-private-{job_id}"


def _store() -> ResultStore:
    return get_result_store()


async def read(job_id: str) -> JobResult | None:
    """The stored copy, or None."""
    store = _store()
    if not await store.aexists(_key(job_id)):
        return None
    record = await store.aread(_key(job_id))
    kept = record.result
    return kept if isinstance(kept, JobResult) else None


async def keep(result: JobResult) -> None:
    """Store the only copy. A failure is told and does not lose the copy in hand."""
    try:
        await _store().awrite(obj=result, key=_key(result.job_id))
    except Exception as error:
        observe.say(
            f"the result of private job {result.job_id} could not be stored ({error}); "
            "the copy handed on now is the only one",
            level=logging.ERROR,
        )
