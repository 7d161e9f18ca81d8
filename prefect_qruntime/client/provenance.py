"""The origin of a result: calibration, properties of the backend, times, package versions.

Most of it needs no request: the job as it was seen, its times as a wait observed them. One request is added: it reads
the properties of the backend, once for each of its calibrations, in the background from the moment at which a job
runs. Nothing waits for it longer than `PATIENCE`, and if it fails, the provenance says so.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson
from cachetools import LRUCache

from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.parsing import read_moment, read_string
from prefect_qruntime.models import Job, JobRef, Provenance
from prefect_qruntime.redact import get_logger

__all__ = ["PATIENCE", "Calibration", "ProvenanceNotes", "package_versions", "read_versions"]

log = get_logger(__name__)

PATIENCE = 0.25
"""Most seconds that a fetched result waits for a request that is in flight."""
_PACKAGES = ("prefect-qruntime", "prefect", "qiskit", "qiskit-ibm-runtime", "samplomatic")
_KEEP = 4096  # jobs
_CALIBRATIONS = 128
_CURRENT_FOR = 600.0  # seconds for which properties without an id of their calibration count as the present ones
_FAILED_FOR = 300.0  # seconds until another request after one that failed
_LARGEST = 200_000  # characters of compressed properties that a result carries

ReadProperties = Callable[[str, str | None], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The properties of a backend as they were read; `trouble` if they could not be read."""

    backend_version: str | None = None
    calibrated_at: datetime | None = None
    data: str | None = None
    trouble: str | None = None


@dataclass(slots=True)
class _Look:
    task: asyncio.Task[Calibration]
    began: float


class ProvenanceNotes:
    """What this process knows about the jobs of one instance. Lives on the network loop.

    Args:
        read: Reads the properties of a backend, those of a calibration if its id is given.
        clock: Monotonic seconds.
    """

    def __init__(self, read: ReadProperties, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._jobs: LRUCache[str, Job] = LRUCache(_KEEP)
        self._times: LRUCache[str, tuple[float | None, float | None]] = LRUCache(_KEEP)
        self._looks: LRUCache[tuple[str, str | None], _Look] = LRUCache(_CALIBRATIONS)

    def saw(self, job: Job) -> None:
        """Keep the state of a job that runs or is over."""
        if job.status is not None and job.status.value != "queued":
            self._jobs[job.id] = job

    def timed(self, job_id: str, queue_seconds: float | None, run_seconds: float | None) -> None:
        """Keep a job's times as a wait observed them."""
        self._times[job_id] = queue_seconds, run_seconds

    def look(self, job: Job) -> asyncio.Task[Calibration] | None:
        """Read the properties of the job's backend during its run, unless that was done; returns the request."""
        if job.backend is None:
            return None
        which, now = (job.backend, job.calibration_id), self._clock()
        known = self._looks.get(which)
        if known is None or now - known.began > self._lasts(known, job):
            known = self._looks[which] = _Look(asyncio.create_task(self._find(*which)), now)
        return known.task

    def _lasts(self, look: _Look, job: Job) -> float:
        failed = look.task.done() and (look.task.cancelled() or look.task.result().trouble is not None)
        current = _CURRENT_FOR if job.calibration_id is None else float("inf")
        return min(_FAILED_FOR, current) if failed else current

    async def _find(self, backend: str, calibration_id: str | None) -> Calibration:
        try:
            return await asyncio.to_thread(_calibration, await self._read(backend, calibration_id))
        except Exception as error:  # their loss must not cost a result
            log.info("The properties of backend %s cannot be read: %s", backend, error)
            return Calibration(trouble=f"The properties of {backend} could not be read: {error}")

    async def of(self, ref: JobRef, *, small: bool = False, patience: float = PATIENCE) -> Provenance:
        """Return the known origin of a job's result. Never raises and sends nothing by itself.

        Args:
            ref: The job.
            small: Whether the result is a reference to a file, which is to stay small: the properties are left out.
            patience: Seconds to wait for a request that is in flight.
        """
        packages = await read_versions()
        job = self._jobs.get(ref.id)
        missing: list[str] = []
        found = Calibration()
        if job is None:
            missing.append("This process has not seen the job's state: its calibration, times and usage are not known.")
            job = Job(id=ref.id, status=None, backend=ref.backend)
        else:
            found = await self._looked(job, patience)
            if found.trouble is not None:
                missing.append(found.trouble)
            elif job.calibration_id is None and _is_later(found.calibrated_at, job.created_at):
                missing.append(
                    "The backend was calibrated after the job was submitted, and the service does not say which "
                    "calibration it ran with: these properties may be later than the run."
                )
        if small and found.data is not None:
            found = replace(found, data=None)
            missing.append(
                "A reference to a large result carries no properties; "
                "client.backend_properties(backend, calibration_id=...) reads them."
            )
        queued, ran = self._times.get(ref.id, (None, None))
        if job.is_terminal and ran is None:
            missing.append("The job was not seen running from its start: its queue and run times are not known.")
        return Provenance(
            job_id=ref.id,
            backend=job.backend or ref.backend,
            program_id=ref.program_id or job.program_id,
            wire_program=job.program_id,
            calibration_id=job.calibration_id,
            calibrated_at=found.calibrated_at,
            backend_version=found.backend_version,
            properties_data=found.data,
            payload_digest=ref.payload_digest,
            submission_key=ref.submission_key,
            created_at=job.created_at,
            queue_seconds=queued,
            run_seconds=ran,
            usage_seconds=job.usage_seconds,
            usage_final=job.usage_final,
            packages=packages,
            missing=tuple(missing),
        )

    async def _looked(self, job: Job, patience: float) -> Calibration:
        known = self._looks.get((job.backend or "", job.calibration_id))
        if known is None:
            return Calibration(trouble="The backend's properties were not read.")
        await asyncio.wait({known.task}, timeout=patience)
        if not known.task.done() or known.task.cancelled():
            return Calibration(trouble=f"The properties of {job.backend} did not arrive in time.")
        return known.task.result()


def _is_later(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and other is not None and one > other


def _calibration(properties: dict[str, Any]) -> Calibration:
    """The part of a backend's properties that a result keeps. Compressed, they are a tenth of their size."""
    data: str | None = base64.b64encode(zlib.compress(orjson.dumps(properties))).decode()
    trouble = None
    if len(data or "") > _LARGEST:
        data, trouble = None, "The backend's properties are too large to be kept with each result."
    return Calibration(
        backend_version=read_string(properties.get("backend_version"), 100),
        calibrated_at=read_moment(properties.get("last_update_date")),
        data=data,
        trouble=trouble,
    )


class _Reading(SingleFlight[dict[str, str]]):
    """The first read of the versions."""


async def read_versions() -> dict[str, str]:
    """As `package_versions`, for code on the network loop."""
    if not package_versions.cache_info().currsize:
        with contextlib.suppress(RuntimeError):  # the process is ending and can start no threads
            # Jobs that are submitted together share the read.
            await network_loop().state(_Reading).join(lambda: asyncio.to_thread(package_versions))
    return package_versions()


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide what is sent and how results are read.

    The first call reads the file system; do not make it on the network loop.
    """
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
