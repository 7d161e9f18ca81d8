"""Decide which claim on a resumption is the next one: a rule without clock and network, for `claims`.

A claim is a row that only one of several watchers can create, because its name is unique. A watcher that dies leaves
its claim behind. No watcher deletes the claim of another, which may be new: a watcher that finds only claims that
are too old makes the next one, `…-2`, `…-3`, and again only one of several can.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

__all__ = ["STALE", "next_claim"]

STALE = timedelta(seconds=60)
"""Age from which a claim counts as that of a dead watcher. Resuming a flow run must never take as long."""


def next_claim(first: str, row: Mapping[str, datetime | None], now: datetime) -> str | None:
    """The name of the claim to create after `first` could not be created.

    Args:
        first: The name of the first claim.
        row: The claims there are, and when each was created.
        now: The time by the clock that dated them.

    Returns:
        The name; None if a claim may still be in use, or if there is no claim any more: it was just released, and the
        next check may create the first one again.

    Example:
        ```python
        from datetime import UTC, datetime, timedelta
        from prefect_qruntime.suspend.resume_claims import next_claim

        made = datetime(2026, 1, 1, tzinfo=UTC)
        assert next_claim("resume", {"resume": made}, made + timedelta(minutes=2)) == "resume-2"
        ```
    """
    if not row or any(now - (created or now) <= STALE for created in row.values()):
        return None
    turns = [int(name.removeprefix(f"{first}-") or 1) for name in row if name != first]
    return f"{first}-{max(turns, default=1) + 1}"
