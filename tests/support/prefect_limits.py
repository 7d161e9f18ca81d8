"""Prefect's global concurrency limits as its server 3.8 keeps them, on the virtual clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound

from tests.support.virtual_clock import clock


@dataclass
class Limit:
    """One row of the server's table."""

    name: str
    decay: float
    limit: int = 1
    active: bool = True
    slots: int = 0
    updated: float = -math.inf

    def now_taken(self) -> int:
        """`active_slots` after decay: whole slots only."""
        gone = self.decay * (clock() - self.updated)
        return 0 if math.isinf(gone) else max(0, self.slots - math.floor(gone + 1e-9))


class PrefectLimits:
    """The client calls that pacing makes.

    Attributes:
        limits: What is set up.
        refusals: How often a slot was asked for in vain.
        trouble: Raised by every call.
        hiccups: Raised by the next calls, one each.
    """

    def __init__(self, count: int = 0, life: float = 63.0) -> None:
        self.limits = {f"slot-{i}": Limit(f"slot-{i}", 1 / life) for i in range(count)}
        self.refusals = 0
        self.reads = 0
        self.trouble: Exception | None = None
        self.hiccups: list[Exception] = []

    def _get(self, name: str) -> Limit:
        if self.trouble is not None:
            raise self.trouble
        if self.hiccups:
            raise self.hiccups.pop()
        if name not in self.limits:
            raise ObjectNotFound(Exception("404"))
        return self.limits[name]

    async def read_global_concurrency_limit_by_name(self, name: str) -> GlobalConcurrencyLimitResponse:
        self.reads += 1
        one = self._get(name)
        age = timedelta(seconds=min(clock() - one.updated, 1e6))
        return GlobalConcurrencyLimitResponse(
            name=one.name,
            limit=one.limit,
            active=one.active,
            active_slots=one.now_taken(),
            slot_decay_per_second=one.decay,
            updated=datetime.now(UTC) - age,
        )

    async def increment_concurrency_slots(self, names: list[str], slots: int, mode: str) -> httpx.Response:
        (name,) = names
        one = self._get(name)
        taken, request = one.now_taken(), httpx.Request("POST", "http://prefect/increment")
        if taken + slots > one.limit:
            self.refusals += 1
            one.updated = clock()  # as the server does: its decay begins anew, with the slots as they were
            raise httpx.HTTPStatusError("locked", request=request, response=httpx.Response(423, request=request))
        one.slots, one.updated = taken + slots, clock()
        return httpx.Response(200, json=[{"name": name}], request=request)

    async def update_global_concurrency_limit(self, name: str, change: Any) -> None:
        one = self._get(name)
        one.slots, one.updated = change.active_slots, clock()
