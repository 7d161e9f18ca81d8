"""Results of private jobs: the service hands them out once, so they are stored before they are handed on."""

from __future__ import annotations

import logging

from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore, get_result_store

from prefect_qruntime import observe, stored_results
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


async def keep(result: JobResult, *, memory_limit: int) -> JobResult:
    """Store the only copy. A failure is told and does not lose the copy in hand.

    Args:
        result: The result, in the file that it was received into.
        memory_limit: Up to this many bytes it goes on in memory, and the file is removed once it is stored.

    Returns:
        What to hand on.
    """
    file = result.file
    small = file is None or file.size <= memory_limit
    store = _store()
    try:
        stored = result.in_memory() if small else await stored_results.share(result)
        await store.awrite(obj=stored, key=_key(result.job_id))
    except Exception as error:
        where = f" is in {file.path}; move it to a safe place" if file else " handed on now is the only one"
        observe.say(
            f"the result of private job {result.job_id} could not be stored ({error}); the copy{where}",
            level=logging.ERROR,
        )
        return result
    _warn_of_local(store, result.job_id)
    if file is not None and small:
        file.discard()
    return stored


def _warn_of_local(store: ResultStore, job_id: str) -> None:
    """Say where the only copy is, if that is no storage anybody chose: in a container it ends with the run."""
    storage = store.result_storage
    if isinstance(storage, LocalFileSystem) and store.result_storage_block_id is None:
        observe.say(
            f"the only copy of private job {job_id}'s result is on this machine, in {storage.basepath}. Choose a "
            "storage that outlives it: result_storage= of the flow, or PREFECT_DEFAULT_RESULT_STORAGE_BLOCK",
            level=logging.WARNING,
        )
