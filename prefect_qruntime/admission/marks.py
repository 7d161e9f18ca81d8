"""What Prefect knows of submission keys: marks of explicit keys, and jobs recorded by a flow run's earlier attempts.

Before its first POST under an explicit key, a caller has to exclude that another process submitted the job a moment ago
and the service does not list it yet. That takes a whole grace period of searching, and is no proof if the list lags
for longer. A mark makes it cheap and certain: every process writes one under the key's lock, before it sends and
again after a 2xx, with the job's id. A process that holds the lock and finds no mark knows that no process on this
Prefect server has ever sent the key, so one query is enough; a process that finds a job's id reads that job.

A mark without an id means "may have been sent": a process may die between mark and request, or before the answer.

The keys of a flow run have no marks. But each of its jobs is recorded in Prefect before anything waits for it, so the
job of an attempt whose process died after that is found again, however late the service lists it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from cachetools import LRUCache

from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.submission import History, KeyHistory
from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError
from prefect_qruntime.observability.artifacts import find_record, find_records, upsert
from prefect_qruntime.prefect_api import family
from prefect_qruntime.run_context import RunContext

__all__ = ["key_history", "mark_accepted", "mark_sent", "noted_by_earlier_attempts"]

_KEEP = 64  # attempts of flow runs


@dataclass(slots=True)
class _Noted:
    """Jobs by submission key, as earlier attempts recorded them. Lives on the network loop."""

    jobs: LRUCache[tuple[str, int], dict[str, str]] = field(default_factory=lambda: LRUCache(_KEEP))
    reads: SingleFlight[dict[str, str]] = field(default_factory=SingleFlight)


def noted_by_earlier_attempts(where: RunContext) -> KeyHistory | None:
    """Return a function that looks up a flow run's own keys; None if no earlier attempt can have recorded anything.

    Prefect is asked once for all jobs of an attempt; the process itself remembers what it submits.
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
    """Read what the processes on this Prefect server did with a key. The caller holds the key's lock.

    Runs on the network loop.

    Raises:
        Exception: Prefect's API failed; then nothing is known.
    """
    record = await find_record("key", tag)
    if record is None:
        return History(never_sent=True)
    return History(accepted="accepted" in record.meta, job_id=record.meta.get("job"))


async def mark_sent(tag: str) -> None:
    """Record that a request with this key is about to be sent. The caller holds the key's lock.

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
    """Record that the service accepted a request with this key, and the job's id. The caller holds the key's lock.

    Raises:
        Exception: Prefect's API failed.
    """
    which = f"job `{job_id}`" if job_id else "a job whose id could not be read"
    text = f"The submission key `{tag}` was used for {which}."
    await upsert("key", tag, text, {"tag": tag, "accepted": "yes", "job": job_id})
