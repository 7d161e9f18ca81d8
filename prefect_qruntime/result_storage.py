"""Pass large results through Prefect as references to files.

If results are persisted, the content is in the run's result storage as well, once, in pieces: from there
another machine, or this one after a clean-up, gets it back.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore, aresolve_result_storage, get_result_store, should_persist_result
from prefect.serializers import PickleSerializer
from prefect.settings import get_current_settings

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import DaemonThreads, SingleFlight, network_loop
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.transport.spool import BodyStore, BodyWriter, StoredBody
from prefect_qruntime.errors import NotFound
from prefect_qruntime.models import JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.settings import current_settings

__all__ = ["SharedJobResult", "keep_private", "private_result", "read_private", "share", "share_if_persisted", "shelf"]

T = TypeVar("T")

_PIECE = 1_000_000  # bytes; Prefect's records hold each several times while they are written
_AT_ONCE = 40  # records that are stored or read at the same time
_PATIENCE = 60.0  # seconds in which a result storage must have taken or given one record
_SETTLE = 10.0  # seconds a cancelled caller waits for the only copy of a result


async def _in_storage(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Let a result storage do one thing. One that hangs, also if it blocks its loop, holds up nothing else.

    It has threads of its own, for which the end of the process does not wait, and which it also gets at that end.

    Raises:
        TimeoutError: It did not answer in time.
    """
    threads = DaemonThreads()

    def run() -> T:
        with asyncio.Runner() as runner:
            runner.get_loop().set_default_executor(threads)
            return runner.run(work())

    async with network_loop().state(_turns):
        # A caller that is cancelled leaves it to end by itself.
        answer = asyncio.wrap_future(threads.submit(contextvars.copy_context().run, run))
        try:
            await asyncio.wait([answer], timeout=_PATIENCE)
            if not answer.done():
                raise TimeoutError(f"the result storage did not answer within {_PATIENCE:g} seconds")
            return answer.result()
        finally:
            answer.cancel()


def _turns() -> asyncio.Semaphore:
    """Bound what is done at the same time: each piece of work takes two threads and three file descriptors."""
    return asyncio.Semaphore(_AT_ONCE)


def shelf() -> BodyStore:
    """The store for large results on this machine, according to the settings."""
    settings = current_settings()
    return BodyStore(
        directory=settings.result_directory or get_current_settings().home / "qruntime" / "results",
        memory_limit=settings.result_memory_limit_bytes,
        size_limit=settings.result_size_limit_bytes,
        keep_seconds=settings.result_keep_days * 86400.0,
    )


class SharedJobResult(JobResult):
    """A large result whose content is in a result storage as well.

    Attributes:
        storage_key: What its pieces are called there.
        storage_pieces: How many there are.
        storage_block_id: The saved storage block they are in.
        storage_folder: The folder they are in, for a local storage that is no saved block.
    """

    storage_key: str
    storage_pieces: int
    storage_block_id: UUID | None = None
    storage_folder: str | None = None

    def _restored(self, reason: str) -> StoredBody:
        try:
            return network_loop().run(self._fetched())
        except Exception as error:
            return super()._restored(f"{reason}; the result storage does not have it either: {error}")

    async def _fetched(self) -> StoredBody:
        """Fetch the pieces into a file on this machine, unless another copy of this result did so before."""
        assert self.file is not None  # noqa: S101 - nothing else is shared
        here, name = replace(shelf(), memory_limit=0), Path(self.storage_key).name
        found = await asyncio.to_thread(here.find, name)
        if found is not None and found.sha256 == self.file.sha256:
            return found
        store = await self._store()
        spool = BodyWriter(here, name, expected=self.file.size)
        try:
            for number in range(self.storage_pieces):
                record = await _in_storage(functools.partial(store.aread, f"{self.storage_key}-{number}"))
                spool.write(record.result)
            body = spool.finish()
        finally:
            spool.discard()
        if not isinstance(body, StoredBody) or body.sha256 != self.file.sha256:
            raise ValueError("its pieces there do not make up the result")
        return body

    async def _store(self) -> ResultStore:
        if self.storage_block_id is not None:
            return _store(await aresolve_result_storage(self.storage_block_id))
        return _store(LocalFileSystem(basepath=self.storage_folder) if self.storage_folder else None)


async def share_if_persisted(result: JobResult) -> JobResult:
    """`share` the result if Prefect stores what this task returns; a storage that fails is logged and costs nothing."""
    if result.file is None or not should_persist_result():
        return result
    try:
        return await share(result)
    except Exception as error:
        notifications.log_to_run(
            f"The content of job {result.job_id}'s result could not be stored in the result storage ({error}). "
            f"It can only be read on this machine, in {result.file.path}.",
            level=logging.WARNING,
        )
        return result


async def share(result: JobResult) -> JobResult:
    """Store the content of a large result in the run's result storage; a small one is returned unchanged."""
    if result.file is None:
        return result
    run = get_result_store()
    store = _store(run.result_storage)
    key = f"qruntime-result-{result.job_id}-{result.file.sha256[:16]}"
    number = -1
    for number, piece in enumerate(result.file.pieces(_PIECE)):
        await _in_storage(functools.partial(store.awrite, obj=piece, key=f"{key}-{number}"))
    # Asked after writing: the default storage is found then.
    used = store.result_storage
    return SharedJobResult(
        **{name: getattr(result, name) for name in JobResult.model_fields},
        storage_key=key,
        storage_pieces=number + 1,
        storage_block_id=store.result_storage_block_id,
        storage_folder=str(used.basepath) if isinstance(used, LocalFileSystem) and used.basepath else None,
    )


def _store(storage: object) -> ResultStore:
    """A store that writes bytes independently of the run's serializer and keeps none of them in memory."""
    return ResultStore(result_storage=storage, serializer=PickleSerializer(), cache_result_in_memory=False)


def _private_key(crn: str, job_id: str) -> str:
    """The key of a private result; it includes the instance, so that the job's id alone does not expose the result."""
    return f"qruntime-private-{hashlib.sha256(crn.encode()).hexdigest()[:20]}-{job_id}"


async def read_private(crn: str, job_id: str) -> JobResult | None:
    """The stored copy of an instance's private result, or None; from a storage that does not answer, too."""
    store, key = get_result_store(), _private_key(crn, job_id)
    try:
        if not await _in_storage(lambda: store.aexists(key)):
            return None
        kept = (await _in_storage(lambda: store.aread(key))).result
    except Exception as error:
        notifications.log_to_run(
            f"No stored copy of private job {job_id}'s result could be read: {_first_line(error).rstrip('.')}.",
            level=logging.WARNING,
        )
        return None
    return kept if isinstance(kept, JobResult) else None


async def _stored_elsewhere(crn: str, job_id: str, gone: NotFound, end: float) -> JobResult:
    """The stored copy, which another machine may still be receiving; nothing locks two machines out of one result.

    Raises:
        NotFound: `gone`; of a result that was read before, with the reason why there is no copy.
    """
    read_before = gone.details.get("read_before")
    kept = await read_private(crn, job_id)
    while kept is None and read_before and time.monotonic() < end:
        await asyncio.sleep(0.5)
        kept = await read_private(crn, job_id)
    if kept is not None:
        return kept
    if not read_before:
        raise gone
    # `aexists` does not tell a damaged copy from no one.
    store, key = get_result_store(), _private_key(crn, job_id)
    try:
        kept = (await _in_storage(lambda: store.aread(key))).result
        if isinstance(kept, JobResult):
            return kept
        reason = f"it is a {type(kept).__name__}"
    except Exception as error:
        reason = _first_line(error)
    storage = store.result_storage
    where = storage.basepath if isinstance(storage, LocalFileSystem) else type(storage).__name__
    said = f"The stored copy, {key!r} in the result storage ({where}), cannot be read: {reason.rstrip('.')}."
    raise NotFound(f"{gone.message}. {said}", **gone.fields) from None


def _first_line(error: Exception) -> str:
    """What went wrong with a record; further lines of an error may quote its content."""
    return next(iter(str(error).splitlines()), "")[:300] or type(error).__name__


class _Reading(SingleFlight[tuple[JobResult, bool]]):
    """Read private results, by instance and job. All who ask for one at the same time get it.

    Attributes:
        callers: How many wait for each.
        locked: The tasks that no other process keeps waiting: they may have received the only copy.
        unstored: Results that neither the disk nor the result storage took: this process has the only copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.callers: Counter[tuple[str, str]] = Counter()
        self.locked: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self.unstored: dict[tuple[str, str], JobResult] = {}


async def private_result(client: QuantumRuntimeClient, ref: JobRef, *, grace: float = 15.0) -> tuple[JobResult, bool]:
    """A private job's result, which the service hands out once: the stored copy, else fetched and then stored.

    The service may have handed it out when the caller is cancelled, so it is received and stored nevertheless, unless
    another process is receiving it.

    Args:
        client: The client of its instance.
        ref: The job.
        grace: Seconds for which a result that is not there yet is waited for.

    Returns:
        The result, and whether it was fetched now.

    Raises:
        NotFound: It was read before, and no copy is stored here.
        QuantumRuntimeError: It could not be fetched.
    """
    reading, which, end = network_loop().state(_Reading), (client.connection.crn, ref.id), time.monotonic() + grace
    reading.callers[which] += 1
    try:
        return await reading.join(lambda: _private_result(client, ref, grace), *which)
    except asyncio.CancelledError:
        if (task := reading.locked.get(which)) is not None:  # the process may end with its caller
            notifications.log_to_run(
                f"The fetch was interrupted. The result of private job {ref.id} is received and stored nevertheless, "
                f"within {_SETTLE:g} seconds. Another interruption may lose it.",
                level=logging.WARNING,
            )
            await asyncio.wait([task], timeout=_SETTLE)
        elif reading.callers[which] == 1:
            reading.cancel(*which)  # nothing was sent
        raise
    except NotFound as error:
        gone = error
    finally:
        reading.callers[which] -= 1
        if not reading.callers[which]:
            del reading.callers[which]
    # Without the lock, and not in the work that a cancelled caller lets go on: no copy is on its way to this process.
    return await _stored_elsewhere(*which, gone, end), False


async def _private_result(client: QuantumRuntimeClient, ref: JobRef, grace: float) -> tuple[JobResult, bool]:
    crn, what = client.connection.crn, f"the result of private job {ref.id}"
    say = functools.partial(notifications.log_to_run, level=logging.WARNING)
    # Another process would take, or remove, the file of this one.
    async with shelf().lock(_private_key(crn, ref.id), what, say) as place:
        reading, task = network_loop().state(_Reading), asyncio.current_task()
        assert task is not None  # noqa: S101 - of `_Reading`
        reading.locked[crn, ref.id] = task
        network_loop().finish(task, what)  # the process may end while its caller is not waiting any more
        try:
            return await _read_or_fetched(client, ref, grace, place)
        finally:
            del reading.locked[crn, ref.id]


async def _read_or_fetched(
    client: QuantumRuntimeClient, ref: JobRef, grace: float, place: BodyStore
) -> tuple[JobResult, bool]:
    crn = client.connection.crn
    if (only := network_loop().state(_Reading).unstored.get((crn, ref.id))) is not None:
        return await keep_private(crn, only, memory_limit=place.memory_limit), False
    if (kept := await read_private(crn, ref.id)) is not None:
        return kept, False
    notifications.log_to_run(
        f"Receiving the result of private job {ref.id}, which the service hands out once. It may be lost if this "
        "process is killed before it is stored."
    )
    found = await client.result(ref, grace=grace, shelf=place.for_only_copy())
    return await keep_private(crn, found, memory_limit=place.memory_limit), True


async def keep_private(crn: str, result: JobResult, *, memory_limit: int) -> JobResult:
    """Store the only copy of a private result and read it back. A failure is logged and loses no copy in hand.

    Args:
        crn: The instance that ran it.
        result: The result, in the file that it was received into.
        memory_limit: Up to this many bytes it is returned in memory, and the file is removed once it is stored.

    Returns:
        The result to return.
    """
    file = result.file
    small = file is None or file.size <= memory_limit
    store, unstored = get_result_store(), network_loop().state(_Reading).unstored
    try:
        stored, key = result.in_memory() if small else await share(result), _private_key(crn, result.job_id)
        await _in_storage(lambda: store.awrite(obj=stored, key=key))
        # A storage that cuts or drops what it takes may not say so; `store` would answer from its memory.
        unread = store.model_copy(update={"cache_result_in_memory": False, "cache": {}})
        if not isinstance(back := (await _in_storage(lambda: unread.aread(key))).result, JobResult):
            raise TypeError(f"it is read back as a {type(back).__name__}")
    except Exception as error:
        if file is not None:
            where = f"is in {file.path}. Move it to a safe place"
        else:
            unstored[crn, result.job_id] = result
            where = "is in the memory of this process. Make room and fetch it again before the process ends"
        notifications.log_to_run(
            f"The result of private job {result.job_id} could not be stored ({_first_line(error)}). "
            f"The only copy {where}.",
            level=logging.ERROR,
        )
        return result
    unstored.pop((crn, result.job_id), None)
    _warn_of_local(store, result.job_id)
    if file is not None and small:
        file.discard()
    return stored


def _warn_of_local(store: ResultStore, job_id: str) -> None:
    """Warn if the only copy is in the default local storage: in a container it is lost with the run."""
    storage = store.result_storage
    if isinstance(storage, LocalFileSystem) and store.result_storage_block_id is None:
        notifications.log_to_run(
            f"The only copy of private job {job_id}'s result is on this machine, in {storage.basepath}. Choose a "
            "storage that outlives it: result_storage= of the flow, or PREFECT_DEFAULT_RESULT_STORAGE_BLOCK.",
            level=logging.WARNING,
        )
