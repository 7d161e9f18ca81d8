"""Serialise submissions of processes that share a key or a budget.

Two flow runs that share a `submission_key` (a slot of a schedule, say) may start at the same moment in two processes,
and so may two that share the last seconds of a budget: each would search, find nothing, and submit. So a process takes
a lock first: a Prefect variable with a unique name, which lives in Prefect's database. (The leases of Prefect's own
concurrency limits live in the server's memory; a restart leaves their slots taken without end.) `lock_core` decides who
holds it. Locks of keys are taken before those of budgets, and those in the order of their names, so that no two
processes wait for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists

from prefect_qruntime.admission.lock_core import ANSWER, BEAT, SILENCE, Action, Claim, Holding, Row
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError
from prefect_qruntime.prefect_api import api, clock_offset, current_flow_run_id, in_run, is_passing, patience
from prefect_qruntime.redact import get_logger

__all__ = ["LockState", "budget_lock", "free_stuck_locks", "lock_name", "read_locks", "submission_lock"]

log = get_logger(__name__)

_TAG = "qruntime-lock"
_HELD_LIMIT = 1800.0  # most seconds to wait for one living holder
_LIMIT = 4 * 3600.0  # most seconds to wait in all
_TRIES = 2  # of requests in a row that fail, each with the patience of `prefect_api`
_PAUSE = (0.3, 2.0)  # seconds between two reads of another's lock, growing
_RELEASE = 5.0  # seconds to release a lock
_STUCK = 4 * SILENCE  # seconds without a beat, by Prefect's own clock, after which doctor and sweep call a lock stuck
_PAGE = 200


def lock_name(kind: str, text: str) -> str:
    """Name the Prefect variable that is the lock of a submission key's tag or of a budget's scope.

    Example:
        ```python
        from prefect_qruntime.admission.locks import lock_name

        assert lock_name("submit", "qr-key:00").startswith("qruntime-submit-")
        ```
    """
    return f"qruntime-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


@asynccontextmanager
async def submission_lock(tag: str) -> AsyncIterator[HeldLock]:
    """Hold the lock of a submission key, waiting for other processes that hold it. Runs on the network loop.

    Outside a run there is no Prefect to ask, and nothing is locked.

    Args:
        tag: The submission key's tag of the first generation.

    Yields:
        The lock; `contended` says whether another process held it before, which may just have submitted the job.

    Raises:
        QuantumRuntimeError: Prefect's API failed, or another process holds the lock for too long; nothing was sent.
    """
    if not in_run():
        yield HeldLock("", None, False)
        return
    async with _hold(lock_name("submit", tag), "this submission key") as held:
        yield held


@asynccontextmanager
async def budget_lock(scopes: Iterable[str]) -> AsyncIterator[tuple[HeldLock, ...]]:
    """Hold the locks of what a budget counts over, waiting for other processes. Runs on the network loop.

    Args:
        scopes: What the budget counts over: a flow run, a deployment, an instance. Empty outside a run.

    Yields:
        The locks.

    Raises:
        QuantumRuntimeError: Prefect's API failed, or another process holds a lock for too long; nothing was sent.
    """
    async with AsyncExitStack() as held:
        locks = [
            await held.enter_async_context(_hold(name, "this budget"))
            for name in sorted({lock_name("budget", scope) for scope in scopes})
        ]
        yield tuple(locks)


@dataclass(slots=True)
class HeldLock:
    """A lock that this process holds.

    Attributes:
        name: Of the variable; empty outside a run.
        holding: What `lock_core` knows of it; None outside a run.
        contended: Whether another process held it before.
    """

    name: str
    holding: Holding | None
    contended: bool

    def check(self) -> None:
        """Make sure that the lock still holds. Call it right before what it protects.

        Raises:
            QuantumRuntimeError: It was lost, because Prefect's API could not be reached for a minute.
        """
        if self.holding is not None and not self.holding.holds(time.monotonic()):
            raise QuantumRuntimeError(
                f"The lock {self.name} in Prefect was lost: Prefect's API could not be reached for a minute, and "
                "another process may hold it now.",
                solution="Nothing was sent. Run the flow again.",
                advice=SAME_REQUEST,
            )


@asynccontextmanager
async def _hold(name: str, what: str) -> AsyncIterator[HeldLock]:
    """Hold a lock."""
    # Within this process a lock in memory will do; waiting for it does not mean that another process holds the key.
    async with network_loop().lock(f"lock:{name}"):
        held = await _acquire(name, what)
        assert held.holding is not None  # noqa: S101 - `_acquire` makes no other
        beating = asyncio.create_task(_beat(name, held.holding))
        try:
            yield held
        finally:
            beating.cancel()
            await _release(name, held.holding.row.id)


async def _acquire(name: str, what: str) -> HeldLock:
    who = f"flow run {current_flow_run_id() or 'unknown'}, process {os.getpid()} on {socket.gethostname()}"
    claim = Claim(secrets.token_hex(8), _HELD_LIMIT, _LIMIT)
    row = Row("", claim.holder, 0, who)
    try:
        return await _claim(name, what, claim, row)
    except QuantumRuntimeError:
        raise
    except Exception as error:
        _withdraw_later(name, claim.holder)
        raise QuantumRuntimeError(
            f"The lock {name} cannot be taken: Prefect's API failed ({error!r}).",
            solution="Nothing was sent. Run the flow again when Prefect's API can be reached.",
            advice=SAME_REQUEST,
        ) from error
    except BaseException:
        _withdraw_later(name, claim.holder)
        raise


async def _claim(name: str, what: str, claim: Claim, row: Row) -> HeldLock:
    action, pause, told, failures = claim.start(time.monotonic()), _PAUSE[0], False, 0
    while True:
        sent = time.monotonic()
        try:
            if action.do == "create":
                action = await _create(name, claim, replace(row, holder=claim.creating(sent)))
            elif action.do == "read":
                found = await _read(name)
                action = claim.read(found, asked=sent, now=time.monotonic())
                if action.do == "read":
                    if not told and action.row is not None:
                        told = True
                        log.info("Waiting for another process that submits with %s: %s.", what, action.row.who)
                    await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311
                    pause = min(1.5 * pause, _PAUSE[1])
            elif action.do == "remove":
                assert action.row is not None  # noqa: S101 - the core names it
                if not action.row.holder.startswith(claim.holder):
                    log.warning(
                        "The lock %s is taken over: its holder (%s) has sent no heartbeat for %d seconds.",
                        name,
                        action.row.who,
                        SILENCE,
                    )
                await _remove(action.row.id)
                action = claim.removed(time.monotonic())
            failures = 0
        except Exception as error:
            failures += 1
            if failures == _TRIES or not (is_passing(error) or isinstance(error, TimeoutError)):
                raise
            action = claim.not_created()
        if action.do == "give up":
            raise _held_too_long(name, what, action)
        if action.do == "hold":
            assert action.row is not None  # noqa: S101 - the core names it
            return HeldLock(name, Holding.begin(action.row, sent=action.since), claim.contended)


def _held_too_long(name: str, what: str, action: Action) -> QuantumRuntimeError:
    who = action.row.who if action.row is not None else "several processes, one after the other"
    return QuantumRuntimeError(
        f"Another process holds the lock {name} for {what} and does not release it: {who}.",
        solution=(
            "Nothing was sent. Wait for that process or end it, then run the flow again. If it no longer exists, "
            f"delete the variable {name} in Prefect."
        ),
        advice=SAME_REQUEST,
    )


async def _beat(name: str, holding: Holding) -> None:
    while True:
        await asyncio.sleep(BEAT)
        sent = time.monotonic()
        row = holding.beat(sent)
        if row is None:
            log.warning("The lock %s was lost, because Prefect's API could not be reached.", name)
            return
        try:
            with patience(ANSWER):
                await (await api()).request(
                    "PATCH", "/variables/{id}", path_params={"id": row.id}, json={"value": _value(row)}
                )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                log.warning("The lock %s was removed by another process.", name)
                holding.gone()
                return
        except Exception as error:
            log.debug("A beat of the lock %s failed: %r", name, error)
        else:
            holding.answered(sent=sent, now=time.monotonic())


async def _release(name: str, row_id: str) -> None:
    try:
        with patience(_RELEASE):
            await _remove(row_id)
    except Exception as error:  # this must not lose a submitted job
        log.warning(
            "The lock %s could not be released yet (%r). It is released when Prefect answers, or expires in a minute.",
            name,
            error,
        )
        _in_background(_remove(row_id))


def _withdraw_later(name: str, holder: str) -> None:
    """Remove the row of a claim that was abandoned while its request was in flight."""

    async def withdraw() -> None:
        with patience(_RELEASE):
            row = await _read(name)
            if row is not None and row.holder.startswith(holder):
                await _remove(row.id)

    _in_background(withdraw())


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    """Run something in the background and ignore failures: the next claim or sweep cleans up."""

    async def quietly() -> None:
        with contextlib.suppress(Exception):
            await work

    task = asyncio.create_task(quietly())
    withdrawals = network_loop().state(_Withdrawals).tasks
    withdrawals.add(task)
    task.add_done_callback(withdrawals.discard)


class _Withdrawals:
    """Rows that this process is removing: of abandoned claims and released locks."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()


# ---- the rows in Prefect -------------------------------------------------------------------------------------


def _value(row: Row) -> dict[str, Any]:
    return {"holder": row.holder, "beat": row.beat, "who": row.who}


async def _create(name: str, claim: Claim, row: Row) -> Action:
    try:
        made = await (await api()).create_variable(VariableCreate(name=name, value=_value(row), tags=[_TAG]))
    except ObjectAlreadyExists:
        return claim.not_created()
    return claim.created(Row(str(made.id), row.holder, row.beat, row.who), time.monotonic())


async def _read(name: str) -> Row | None:
    found = await (await api()).read_variable_by_name(name)
    return None if found is None else _row(str(found.id), found.value)


def _row(row_id: str, value: Any) -> Row:
    facts: dict[str, Any] = value if isinstance(value, dict) else {}
    beat = facts.get("beat")
    return Row(
        row_id, str(facts.get("holder")), beat if isinstance(beat, int) else 0, str(facts.get("who") or "unknown")
    )


async def _remove(row_id: str) -> None:
    """Remove a row by its id, never by its name: another process may have the lock by now."""
    try:
        await (await api()).request("DELETE", "/variables/{id}", path_params={"id": row_id})
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise


# ---- for operators ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LockState:
    """The state of a lock in Prefect.

    Attributes:
        name: Of the variable.
        who: Its holder in words.
        silent: Seconds since its holder's last beat, by Prefect's clock.
        row_id: Of the row.
    """

    name: str
    who: str
    silent: float
    row_id: str

    @property
    def is_stuck(self) -> bool:
        """Whether its holder sends no heartbeats. The next process that needs the lock takes it over by itself."""
        return self.silent > _STUCK


async def read_locks() -> list[LockState]:
    """Read all locks that are held now. Runs on the network loop.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    answer = await (await api()).request(
        "POST",
        "/variables/filter",
        json={"variables": {"name": {"like_": "qruntime-"}, "tags": {"all_": [_TAG]}}, "limit": _PAGE},
    )
    now = time.time() + (clock_offset() or 0.0)
    found = []
    for one in answer.json():
        if _TAG in (one.get("tags") or []):
            updated = datetime.fromisoformat(str(one["updated"]).replace("Z", "+00:00"))
            silent = now - updated.replace(tzinfo=updated.tzinfo or UTC).timestamp()
            found.append(LockState(one["name"], _row(one["id"], one["value"]).who, silent, one["id"]))
    return found


async def free_stuck_locks() -> list[LockState]:
    """Free the locks whose holders send no heartbeats. Runs on the network loop.

    Returns:
        The freed locks.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    stuck = [one for one in await read_locks() if one.is_stuck]
    for one in stuck:
        await _remove(one.row_id)
    return stuck
