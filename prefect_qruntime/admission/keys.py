"""Submission keys: one tag per intent, the same in every repetition of the flow run, and what Prefect knows of them.

The derived key holds: key version, CRN, the flow run, how many equal submissions came before it, the
canonical payload's digest, and a generation. What is *not* in it decides whether money is safe:

- Equal submissions are counted per payload, not per position, so a flow that submits in another
  order the second time still finds its jobs.
- The flow run is the topmost one in this process: Prefect gives a repeated subflow a new id.
- Neither backend nor session is in it: "least busy" may differ the second time.

Before its first POST under an explicit key, a caller has to exclude that another process bought the job a moment ago
and the service does not list it yet. That takes a whole grace period of searching, and is no proof if the list lags
for longer. A mark in Prefect makes it cheap and certain: every process writes one under the key's lock, before it sends
and again after a 2xx, with the job's id. A process that holds the lock and finds no mark knows that no process on this
Prefect server has ever sent the key, so one look into the list is enough; a process that finds a job's id reads that
job. A mark without an id means "may have been sent": a process may die between mark and request, or before the answer.

The keys of a flow run have no marks. But each of its jobs is noted in Prefect before anything waits for it, so the job
of an attempt whose process died after that is found again, however late the service lists it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from uuid import UUID

from cachetools import LRUCache

from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.submission import History, KeyHistory
from prefect_qruntime.errors import SAME_REQUEST, InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import FLOW_TAG, KEY_TAG, JobRef
from prefect_qruntime.observability.artifacts import find_record, find_records, upsert
from prefect_qruntime.prefect_api import family
from prefect_qruntime.run_context import RunContext

__all__ = [
    "explicit_identity",
    "flow_tag",
    "key_history",
    "key_tag",
    "mark_accepted",
    "mark_sent",
    "next_generation",
    "noted_by_earlier_attempts",
]

KEY_VERSION = "k1"

_MOST_GENERATIONS = 100
_KEEP = 64  # attempts of flow runs


def flow_tag(flow_run_id: str) -> str:
    """The tag by which all jobs of a flow run are found.

    Example:
        ```python
        from prefect_qruntime.admission.keys import flow_tag

        assert flow_tag("0b9f").startswith("qr-flow:")
        ```
    """
    return f"{FLOW_TAG}{flow_run_id}"


def key_tag(crn: str, identity: str, digest: str, *, index: int = 0, generation: int = 0) -> str:
    """The submission key's tag: `qr-key:` and 32 hex digits."""
    parts = (KEY_VERSION, crn, identity, "submit_job", str(index), digest, str(generation))
    return KEY_TAG + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def next_generation(
    replaces: JobRef, crn: str, identity: str, digest: str, *, submitted_so_far: int
) -> tuple[int, int]:
    """Find which of the equal submissions so far a job was bought for, and the generation after the job's.

    Raises:
        InvalidInput: It was bought for none of them; nothing is to be bought on a guess.
    """
    for generation in range(_MOST_GENERATIONS):
        for index in range(submitted_so_far):
            if key_tag(crn, identity, digest, index=index, generation=generation) == replaces.submission_key:
                return index, generation + 1
    raise InvalidInput(f"job {replaces.id} was not bought for this submission", field="replaces")


def explicit_identity(submission_key: str) -> str:
    """Check a key given by the caller; it replaces flow run and count.

    Raises:
        InvalidInput: Empty, too long, or not printable.
    """
    if not isinstance(submission_key, str) or not submission_key.strip():
        raise InvalidInput("must be a text that is not empty", field="submission_key")
    if len(submission_key) > 1000 or not submission_key.isprintable():
        raise InvalidInput("must be at most 1000 printable characters", field="submission_key")
    return f"explicit:{submission_key}"


# ---- what Prefect knows of keys ------------------------------------------------------------------


@dataclass(slots=True)
class _Noted:
    """Jobs by submission key, as the attempts before this one noted them. Lives on the network loop."""

    jobs: LRUCache[tuple[str, int], dict[str, str]] = field(default_factory=lambda: LRUCache(_KEEP))
    reads: SingleFlight[dict[str, str]] = field(default_factory=SingleFlight)


def noted_by_earlier_attempts(where: RunContext) -> KeyHistory | None:
    """Gives the histories of a flow run's own keys; None if no earlier attempt can have noted anything.

    Prefect is asked once for all jobs of an attempt: what this process submits, it remembers itself.
    """
    flow_run_id = where.flow_run_id
    if not where.repeated or flow_run_id is None:
        return None

    async def history(tag: str) -> History:
        noted, which = network_loop().state(_Noted), (flow_run_id, where.attempt)
        jobs = noted.jobs.get(which)
        if jobs is None:
            jobs = noted.jobs[which] = await noted.reads.join(lambda: _noted_jobs(UUID(flow_run_id)), *which)
        return History(accepted=tag in jobs, job_id=jobs.get(tag))

    return history


async def _noted_jobs(flow_run_id: UUID) -> dict[str, str]:
    records = await find_records("job", flow_run_ids=await family(flow_run_id))
    return {record.meta["key"]: record.meta["id"] for record in reversed(records) if record.meta.get("key")}


async def key_history(tag: str) -> History:
    """What the processes on this Prefect server did with a key. The caller holds the key's lock.

    Runs on the network loop.

    Raises:
        Exception: Prefect's API failed; then nothing is known.
    """
    record = await find_record("key", tag)
    if record is None:
        return History(never_sent=True)
    return History(accepted="accepted" in record.meta, job_id=record.meta.get("job"))


async def mark_sent(tag: str) -> None:
    """Note that a request with this key is about to be sent. The caller holds the key's lock.

    Raises:
        QuantumRuntimeError: Prefect's API failed; then nothing must be sent.
    """
    text = f"The submission key `{tag}` was used. Its job carries it as a tag."
    try:
        await upsert("key", tag, text, {"tag": tag})
    except Exception as error:
        raise QuantumRuntimeError(
            f"the submission key cannot be marked as used in Prefect ({error!r})",
            solution="Nothing was sent. Run the flow again when Prefect's API can be reached.",
            advice=SAME_REQUEST,
        ) from error


async def mark_accepted(tag: str, job_id: str | None) -> None:
    """Note that the service accepted a request with this key, and as which job. The caller holds the key's lock.

    Raises:
        Exception: Prefect's API failed.
    """
    which = f"job `{job_id}`" if job_id else "a job whose id could not be read"
    text = f"The submission key `{tag}` was used for {which}."
    await upsert("key", tag, text, {"tag": tag, "accepted": "yes", "job": job_id})
