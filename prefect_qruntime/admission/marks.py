"""Marks in Prefect that tell what was done with an explicit submission key, for other processes.

Before its first POST under an explicit key, a caller has to exclude that another process bought the job a moment ago
and the service does not list it yet, which takes a whole grace period of searching, and is no proof if the list lags
for longer. A mark makes that cheap and certain: every process writes it under the key's lock, before it sends and
again after a 2xx, with the job's id. A process that holds the lock and finds no mark knows that no process on this
Prefect server has ever sent the key, and one look into the list is enough; one that finds a job's id reads that job.

A mark without an id says "may have been sent": a process may die between mark and request, or before the answer.
"""

from __future__ import annotations

from prefect_qruntime.client.submission import History
from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError
from prefect_qruntime.observability.artifacts import find_record, upsert

__all__ = ["key_history", "mark_accepted", "mark_sent"]


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
