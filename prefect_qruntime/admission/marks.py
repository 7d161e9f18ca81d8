"""Marks in Prefect that tell which explicit submission keys were ever sent.

Before its first POST under an explicit key, a caller has to exclude that another process bought the job a moment ago
and the service does not list it yet, which takes a whole grace period of searching. A mark makes that cheap: every
process writes it under the key's lock before it sends. A process that holds the lock and finds no mark knows that no
process on this Prefect server has ever sent the key, and one look into the list is enough.

A mark says "may have been sent", never "was accepted": a process may die between mark and request.
"""

from __future__ import annotations

from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError
from prefect_qruntime.observability.artifacts import find_record, upsert

__all__ = ["mark_sent", "never_sent"]


async def never_sent(tag: str) -> bool:
    """Whether no process has sent this key. The caller holds the key's lock. Runs on the network loop.

    Raises:
        Exception: Prefect's API failed; then it is not known.
    """
    return await find_record("key", tag) is None


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
