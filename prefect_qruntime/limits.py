"""The create limits in Prefect: one pace for all tasks and worker processes of an account.

The service takes five jobs a minute from a user and refuses more with 429. `prefect-qruntime setup` makes as
many Prefect global concurrency limits as creates fit in a minute, each with one slot that decays to free after a
minute and a margin; whoever wants to create a job takes one of them first. Several slots in *one* limit would
not do: such a bucket refills while it is being emptied, so that nearly twice the rate gets through in its first
minute.
"""

from __future__ import annotations

import hashlib
import math

from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound

from prefect_qruntime.crn import parse_crn
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.orchestration import api

__all__ = ["MARGIN", "MOST", "limit_name", "limit_names", "set_up", "shared_limits"]

MARGIN = 1.05
"""A limit stays taken this much longer than a period: the request goes out a little after it is granted."""
MOST = 60
"""Most creates a minute that can be set up."""


def limit_name(crn: str) -> str:
    """What the names of an account's limits begin with.

    The service counts per user. A user is known to us by a secret only, so the CRN's account stands for it:
    several users of one account share the pace, which is slower than need be but never too fast; `setup
    --per-minute` raises it for them.

    Example:
        ```python
        from prefect_qruntime.limits import limit_name

        crn = "crn:v1:bluemix:public:quantum-computing:eu-de:a/0123abcd:11aa-22bb::"
        assert limit_name(crn).startswith("qruntime-create-")
        ```
    """
    account = parse_crn(crn).account
    return "qruntime-create-" + hashlib.sha256(f"account:{account}".encode()).hexdigest()[:10]


def limit_names(crn: str, count: int) -> list[str]:
    """The Prefect global concurrency limits of an account, one for each create a minute."""
    return [f"{limit_name(crn)}-{number}" for number in range(1, count + 1)]


async def shared_limits(crn: str) -> list[GlobalConcurrencyLimitResponse]:
    """The account's limits in Prefect that can be used: active, with a decay. Runs on the home loop.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    client, found = await api(), []
    for name in limit_names(crn, MOST):
        try:
            limit = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            break
        if limit.active and limit.slot_decay_per_second > 0:
            found.append(limit)
    return found


async def set_up(crn: str, *, per_minute: int, period: float) -> list[dict[str, str]]:
    """Create or update an account's limits in Prefect; a second call changes nothing. Runs on the home loop.

    Args:
        crn: Of any instance of the account.
        per_minute: Creates in a period.
        period: Seconds; the service's is a minute.

    Returns:
        What was done: a `limit` and an `action` each.

    Raises:
        InvalidInput: `per_minute` is not between 1 and 60.
        Exception: Whatever Prefect's API raises.
    """
    if not 1 <= per_minute <= MOST:
        raise InvalidInput(f"must be between 1 and {MOST}", field="per_minute")
    client, rows = await api(), []
    decay = 1 / (period * MARGIN)
    for number, name in enumerate(limit_names(crn, MOST), start=1):
        try:
            known = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            if number > per_minute:
                break
            await client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=1, slot_decay_per_second=decay)
            )
            rows.append({"limit": name, "action": "created"})
            continue
        if number > per_minute:
            await client.delete_global_concurrency_limit_by_name(name)
            action = "removed"
        elif (known.limit, known.active) == (1, True) and math.isclose(known.slot_decay_per_second, decay):
            action = "unchanged"
        else:
            change = GlobalConcurrencyLimitUpdate(limit=1, active=True, slot_decay_per_second=decay)
            await client.update_global_concurrency_limit(name, change)
            action = "updated"
        rows.append({"limit": name, "action": action})
    return rows
