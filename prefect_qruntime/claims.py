"""Who of several watchers resumes a flow run.

Prefect checks that a run is suspended before it resumes it, but two requests at the same moment may both pass (seen on
PostgreSQL). An input of a flow run is unique by its key, so the watcher that creates it goes first.

Which claim comes after that of a dead watcher is decided by `resume_claims`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.exceptions import PrefectHTTPStatusError

from prefect_qruntime.orchestration import api
from prefect_qruntime.resume_claims import next_claim

__all__ = ["claimed"]

_MOST = 200  # claims of one resumption that are read


@asynccontextmanager
async def claimed(flow_run_id: UUID, pause_key: str) -> AsyncIterator[bool]:
    """Claim the resumption of a flow run that is suspended with this key. Runs on the home loop.

    A claim is kept, as a pause key is used once; left by an error, it is given back.

    Args:
        flow_run_id: The flow run.
        pause_key: What it is suspended with.

    Yields:
        Whether the claim is ours; else another watcher is at it.

    Raises:
        Exception: Prefect's API failed.
    """
    name = await _claim(flow_run_id, f"qruntime-resume-{uuid5(NAMESPACE_URL, pause_key).hex}")
    try:
        yield name is not None
    except BaseException:
        if name is not None:
            with suppress(Exception):
                await (await api()).delete_flow_run_input(flow_run_id, name)
        raise


async def _claim(flow_run_id: UUID, first: str) -> str | None:
    """The name of our claim, or None: the last one in the row is another's and may still be used."""
    if (now := await _create(flow_run_id, first)) is None:
        return first
    # A row of dead watchers: only who makes its next one has it.
    row = await (await api()).filter_flow_run_input(flow_run_id, first, limit=_MOST, exclude_keys=set())
    name = next_claim(first, {claim.key: claim.created for claim in row}, now)
    return name if name is not None and await _create(flow_run_id, name) is None else None


async def _create(flow_run_id: UUID, name: str) -> datetime | None:
    """Make a claim; returns None, or what time it is for Prefect where there is one of this name already."""
    try:
        await (await api()).create_flow_run_input(flow_run_id, name, "claimed")
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 409:
            raise
        # The clocks of two hosts may differ, so the age of a claim is told by Prefect's own.
        with suppress(KeyError, ValueError):
            return parsedate_to_datetime(error.response.headers["date"])
        return datetime.now(UTC)
    return None
