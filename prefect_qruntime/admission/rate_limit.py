"""Keep the service's create rate, in this process and among all processes.

The guarantee: in no window of a minute are more jobs created than there are limits (`limit_names`), because two
creates under the same limit are a minute apart, counted from the end of the earlier request. The exception is a request
that itself takes longer than a minute (it waits after a 429). Without limits in Prefect, or while Prefect cannot be
reached, the same holds within each process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectNotFound

from prefect_qruntime.client.connection import Connection, is_loopback, parse_crn
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import api, in_run, patience, reason
from prefect_qruntime.redact import get_logger, many
from prefect_qruntime.settings import current_settings

__all__ = [
    "MARGIN",
    "MOST",
    "Permit",
    "RateLimiter",
    "Shared",
    "acquire",
    "limit_name",
    "limit_names",
    "pace",
    "set_up",
    "shared_limits",
]

_REMEMBER = 60.0  # seconds after which Prefect is asked again whether limits are set up
_TRIES = 3  # failures of Prefect's API in a row until this process continues without it
_ANSWER = 5.0  # seconds for which a failing request to Prefect is repeated
_SAY_AFTER = 2.0  # seconds after which a wait is logged
_ALONE = "The rate is limited within this process only."

log = get_logger(__name__)


def pace(connection: Connection) -> tuple[int, float] | None:
    """The rate limit of a connection within this process, as creates and seconds; None for no limit.

    A host on this machine (the sandbox) has no limit unless `create_rate_per_minute` is set explicitly.
    """
    settings = current_settings()
    limited = "create_rate_per_minute" in settings.model_fields_set or not is_loopback(
        urlsplit(connection.base_url).hostname
    )
    if settings.create_rate_per_minute == 0 or not limited:
        return None
    return settings.create_rate_per_minute, settings.create_rate_period_seconds


@dataclass(slots=True)
class Permit:
    """A permit for one create. Its holder reports when the request is over."""

    pacer: RateLimiter
    slot: str | None
    granted: float
    over: bool = False

    async def sent(self) -> None:
        """Note that the request was answered or is lost: its minute begins now. Idempotent."""
        if not self.over:
            self.drop(sent=True)
            if self.slot is not None:
                await self.pacer.restamp(self.slot, self.granted)

    def drop(self, *, sent: bool) -> None:
        """Return the permit without asking Prefect; `sent` says whether a request may have been sent."""
        if not self.over:
            self.over = True
            self.pacer.ended(sent=sent)


@dataclass(frozen=True, slots=True)
class Shared:
    """An account's limits in Prefect.

    Attributes:
        names: Of the limits.
        life: Seconds until a taken one is free again.
        client: Prefect's.
    """

    names: tuple[str, ...]
    life: float
    client: PrefectClient

    @property
    def period(self) -> float:
        """Seconds of the service's own limit, without our margin."""
        return self.life / MARGIN


async def _find_shared(crn: str) -> Shared | None:
    found = await shared_limits(crn)
    if not found:
        return None
    life = max(1 / limit.slot_decay_per_second for limit in found)
    return Shared(tuple(limit.name for limit in found), life, await api())


@dataclass
class RateLimiter:
    """Grants permits of one account in this process, first come, first served. Lives on the network loop."""

    crn: str
    find: Callable[[str], Awaitable[Shared | None]] = _find_shared
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: int = 0
    _out: int = 0  # permits whose request is not over
    _ends: list[float] = field(default_factory=list)  # when requests were over, in the last period
    _free: dict[str, float] = field(default_factory=dict)  # when it is worth asking for a limit again
    _shared: Shared | None = None
    _looked: float | None = None
    _warned: set[str] = field(default_factory=set)

    async def take(self, count: int, period: float, *, shared: bool = True) -> Permit:
        """Wait for a permit.

        Args:
            count: Creates in a period, if Prefect has no limits for the account.
            period: Seconds.
            shared: Whether Prefect may be asked.
        """
        told = asyncio.get_running_loop().call_later(_SAY_AFTER, self._tell)
        self._waiting += 1
        try:
            async with self._turn:
                known = await self._known() if shared else None
                if known is not None:
                    count, period = len(known.names), known.period
                await self._room_here(count, period)
                slot, granted = None, _now()
                if known is not None:
                    slot, granted = await self._shared_slot(known)
                self._out += 1
                return Permit(self, slot, granted)
        finally:
            told.cancel()
            self._waiting -= 1

    def ended(self, *, sent: bool) -> None:
        """Note that a permit was returned."""
        self._out -= 1
        if sent:
            self._ends.append(_now())
        self._changed.set()

    async def restamp(self, slot: str, granted: float) -> None:
        """Restart the slot's minute if the request took longer than the margin allows."""
        known = self._shared
        if known is None or _now() - granted <= known.life - known.period:
            return
        try:
            with patience(_ANSWER):
                await known.client.update_global_concurrency_limit(slot, GlobalConcurrencyLimitUpdate(active_slots=1))
            self._free[slot] = _now() + known.life
        except Exception as error:
            log.warning("The create limit %s could not be renewed: %s", slot, reason(error))

    # ---- within this process -------------------------------------------------------------------

    async def _room_here(self, count: int, period: float) -> None:
        while True:
            now = _now()
            self._ends = [end for end in self._ends if end > now - period]
            if len(self._ends) + self._out < count:
                return
            self._changed.clear()
            pause = max(0.001, self._ends[0] + period - now) if self._ends else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    # ---- among all processes -------------------------------------------------------------------

    async def _known(self) -> Shared | None:
        """The account's limits in Prefect, read once a minute."""
        if self._looked is not None and _now() - self._looked < _REMEMBER:
            return self._shared
        asked, found = _now(), None
        try:
            found = await self.find(self.crn)
        except Exception as error:
            self._looked, self._shared = asked, None
            self._warn(
                "The create limit cannot be read from Prefect (%s). The rate is limited within this process only.",
                error,
            )
            return None
        # Only now: a read that is cancelled must not switch the shared limits off for the submissions after it.
        self._looked, self._shared = asked, found
        if self._shared is None:
            self._warn(
                f"No create limit is set up in Prefect. {_ALONE} "
                "Run `prefect-qruntime setup` once to share the limit among all processes."
            )
        return self._shared

    async def _shared_slot(self, known: Shared) -> tuple[str | None, float]:
        """Take one of the limits as `_room_everywhere`; no slot if Prefect keeps failing."""
        for attempt in range(_TRIES):
            try:
                return await self._room_everywhere(known)
            except Exception as error:
                if isinstance(error, LookupError | ObjectNotFound) or attempt + 1 == _TRIES:
                    self._shared = None
                    self._warn("The create limit in Prefect failed (%s). " + _ALONE, error)
                    break
                await asyncio.sleep(known.life / 40)
        return None, _now()

    async def _room_everywhere(self, known: Shared) -> tuple[str, float]:
        """Take one of the limits; return it with a time before it was granted."""
        off = set()
        while True:
            for name in sorted(known.names, key=self._due):
                now = _now()
                if self._due(name) > now:
                    continue
                left = await self._try(known.client, name)
                if left <= 0:
                    self._free[name] = now + known.life
                    if _now() - now > known.life / 2:
                        continue  # the grant took so long that most of it is over
                    return name, now
                if left == float("inf"):
                    off.add(name)
                # Prefect's clock may differ from ours: ask neither too late nor too often.
                self._free[name] = _now() + min(max(left, known.life / 40), known.life / 5)
            if len(off) == len(known.names):
                raise LookupError("all limits are switched off")
            pause = max(0.001, min(self._due(name) for name in known.names) - _now())
            await asyncio.sleep(pause * random.uniform(1.0, 1.1))  # noqa: S311

    def _due(self, name: str) -> float:
        return self._free.get(name, float("-inf"))

    async def _try(self, client: PrefectClient, name: str) -> float:
        """Take a slot; return 0, or the seconds until it may be free."""
        # Read it before asking for it: each refusal would make Prefect restart its decay.
        limit = await client.read_global_concurrency_limit_by_name(name)
        if not limit.active:
            return float("inf")
        if limit.active_slots >= limit.limit:
            age = (datetime.now(UTC) - limit.updated).total_seconds() if limit.updated else 0.0
            return max(0.001, 1 / limit.slot_decay_per_second - age)
        try:
            granted = await client.increment_concurrency_slots([name], 1, "rate_limit")
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.LOCKED:
                raise
            return 1 / limit.slot_decay_per_second
        if not granted.json():
            raise LookupError(f"{name} is gone")
        return 0.0

    def _warn(self, text: str, *args: object) -> None:
        """Log a warning once in this process."""
        if text not in self._warned:
            self._warned.add(text)
            notifications.log_to_run(text % args, level=logging.WARNING)

    def _tell(self) -> None:
        others = many(self._waiting - 1, "other submission")
        notifications.log_to_run(f"waiting for the service's create limit, with {others} of this process")


def _now() -> float:
    return asyncio.get_running_loop().time()


async def acquire(connection: Connection) -> Permit | None:
    """Wait until a job may be created; return None if there is no limit. Runs on the network loop.

    Never fails because of Prefect: without it, the rate is limited within this process.
    """
    allowed = pace(connection)
    if allowed is None:
        return None
    here, name = network_loop(), limit_name(connection.crn)
    pacer = here.find(RateLimiter, name) or here.keep(RateLimiter(connection.crn), name)
    with patience(_ANSWER):
        return await pacer.take(*allowed, shared=in_run())


MARGIN = 1.05
"""A limit stays taken this much longer than a period: the request goes out a little after it is granted."""
MOST = 60
"""Most creates a minute that can be set up."""


def limit_name(crn: str) -> str:
    """The prefix of the names of an account's limits.

    The service counts per user. A user is known to us by a secret only, so the CRN's account stands for it:
    several users of one account share the rate, which is slower than necessary but never too fast; `setup
    --per-minute` raises it for them.

    Example:
        ```python
        from prefect_qruntime.admission.rate_limit import limit_name

        crn = "crn:v1:bluemix:public:quantum-computing:eu-de:a/0123abcd:11aa-22bb::"
        assert limit_name(crn).startswith("qruntime-create-")
        ```
    """
    account = parse_crn(crn).account
    return "qruntime-create-" + hashlib.sha256(f"account:{account}".encode()).hexdigest()[:10]


def limit_names(crn: str, count: int) -> list[str]:
    """Name the Prefect global concurrency limits of an account, one for each create a minute."""
    return [f"{limit_name(crn)}-{number}" for number in range(1, count + 1)]


async def shared_limits(crn: str) -> list[GlobalConcurrencyLimitResponse]:
    """Read the account's usable limits in Prefect: active, with a decay. Runs on the network loop.

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
    """Create or update an account's limits in Prefect; a second call changes nothing. Runs on the network loop.

    Args:
        crn: Of any instance of the account.
        per_minute: Creates in a period.
        period: Seconds; the service's is a minute.

    Returns:
        One row for each limit: its name as `limit`, and the `action`.

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
