"""Serialise submissions of processes that share a key or a budget, and record in Prefect which keys were used.

Two flow runs that share a `submission_key` (a slot of a schedule, say) may start at the same moment in two processes,
and so may two that share the last seconds of a budget: each would search, find nothing, and submit. So a process takes
a lock first: a Prefect variable with a unique name, which lives in Prefect's database. (The leases of Prefect's own
concurrency limits live in the server's memory; a restart leaves their slots taken without end.) `lock_core` decides who
holds it. Locks of keys are taken before those of budgets, and those in the order of their names, so that no two
processes wait for each other.

Before its first POST under an explicit key, a caller has to exclude that another process submitted the job a moment ago
and the service does not list it yet. That takes a whole grace period of searching, and is no proof if the list lags
for longer. A mark makes it cheap and certain: every process writes one under the key's lock, before it sends and
again after a 2xx, with the job's id. A process that holds the lock and finds no mark knows that no process on this
Prefect server has ever sent the key, so one query is enough; a process that finds a job's id reads that job. A mark
without an id means "may have been sent": a process may die between mark and request, or before the answer.

The keys of a flow run have no marks. But each of its jobs is recorded in Prefect before anything waits for it, so the
job of an attempt whose process died after that is found again, however late the service lists it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from cachetools import LRUCache
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists

from prefect_qruntime.admission.lock_core import ANSWER, BEAT, SILENCE, Action, Claim, Holding, Row
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.submission import History, KeyHistory
from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError
from prefect_qruntime.observability.artifacts import find_record, find_records, upsert
from prefect_qruntime.prefect_api import (
    api,
    current_flow_run_id,
    family,
    in_run,
    is_passing,
    not_sent,
    now,
    patience,
    read_variables,
)
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import RunContext

__all__ = [
    "LockState",
    "budget_lock",
    "free_stuck_locks",
    "key_history",
    "lock_name",
    "mark_accepted",
    "mark_sent",
    "marks_and_notes",
    "noted_before",
    "noted_by_earlier_attempts",
    "read_locks",
    "submission_lock",
]


log = get_logger(__name__)

_TAG = "qruntime-lock"
_HELD_LIMIT = 1800.0  # most seconds to wait for one living holder
_LIMIT = 4 * 3600.0  # most seconds to wait in all
_TRIES = 2  # of requests in a row that fail, each with the patience of `prefect_api`
_PAUSE = (0.3, 2.0)  # seconds between two reads of another's lock, growing
_RELEASE = 5.0  # seconds to release a lock while a flow waits for that
_GIVE_BACK = 3600.0  # seconds for which the release is retried afterwards
_AGAIN = (1.0, 30.0)  # seconds between two of these attempts, growing
_STUCK = 4 * SILENCE  # seconds without a beat, by Prefect's own clock, after which doctor and sweep call a lock stuck

_KEEP = 64  # attempts of flow runs


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
async def submission_lock(tag: str, what: str = "this submission key") -> AsyncIterator[HeldLock]:
    """Hold the lock of a submission key, waiting for other processes that hold it. Runs on the network loop.

    Outside a run there is no Prefect to ask, and nothing is locked.

    Args:
        tag: The submission key's tag of the first generation.
        what: What it names, in words.

    Yields:
        The lock; `contended` says whether another process held it before, which may just have submitted the job.

    Raises:
        QuantumRuntimeError: Prefect's API failed, or another process holds the lock for too long; nothing was sent.
    """
    if not in_run():
        yield HeldLock("", None, False)
        return
    async with _hold(lock_name("submit", tag), what) as held:
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
            QuantumRuntimeError: It was lost, because Prefect's API gave no answer for a minute and a half.
        """
        if self.holding is not None and not self.holding.holds(time.monotonic()):
            raise QuantumRuntimeError(
                f"The lock {self.name} in Prefect was lost: Prefect's API gave no answer for a minute and a half, and "
                "another process may hold it now.",
                solution="This request was not sent. Run the flow again.",
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
        raise not_sent(f"The lock {name} cannot be taken: Prefect's API failed ({error!r}).") from error
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
            "This request was not sent. Wait for that process or end it, then run the flow again. "
            "If it no longer exists, "
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
            log.warning("The lock %s was lost, because Prefect's API gave no answer.", name)
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
            "The lock %s could not be released yet (%r). This is repeated; after %d s it may be taken over.",
            name,
            error,
            SILENCE,
        )
        _in_background(lambda: _remove(row_id))


def _withdraw_later(name: str, holder: str) -> None:
    """Remove the row of a claim that was abandoned while its request was in flight."""

    async def withdraw() -> None:
        with patience(_RELEASE):
            row = await _read(name)
            if row is not None and row.holder.startswith(holder):
                await _remove(row.id)

    _in_background(withdraw)


def _in_background(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do something until it succeeds, each time with the patience of `prefect_api`.

    Prefect may be away, or stand still, for longer than one patience lasts. What still fails after an hour, or is not
    done when the process ends, is left to the next claim or sweep.
    """

    async def until_done() -> None:
        pause, end = _AGAIN[0], asyncio.get_running_loop().time() + _GIVE_BACK
        while True:
            try:
                await work()
            except Exception as error:
                log.debug("A lock could not be released: %r", error)
            else:
                return
            if asyncio.get_running_loop().time() + pause > end:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _AGAIN[1])

    task = asyncio.create_task(until_done())
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
    found = []
    for one in await read_variables(await api(), "qruntime-", _TAG):
        if _TAG in (one.get("tags") or []):
            updated = datetime.fromisoformat(str(one["updated"]).replace("Z", "+00:00"))
            silent = now() - updated.replace(tzinfo=updated.tzinfo or UTC).timestamp()
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


async def noted_before(where: RunContext, tag: str, job_id: str) -> bool:
    """Whether an earlier attempt of a flow run submitted a job or attached to it, as far as Prefect has a record.

    Raises:
        Exception: Prefect's API failed.
    """
    noted = noted_by_earlier_attempts(where)
    if noted is None:
        return False
    if (await noted(tag)).job_id == job_id:
        return True
    record = await find_record("job", job_id)  # which the run that submitted it may have begun
    return record is not None and record.meta.get("flow_run") == where.flow_run_id


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


def marks_and_notes(noted: KeyHistory | None) -> KeyHistory:
    """Return a function that reads a key's mark and, if there is none, asks `noted_by_earlier_attempts`."""

    async def history(tag: str) -> History:
        known = await key_history(tag)
        return await noted(tag) if known.never_sent and noted is not None else known

    return history


async def mark_sent(tag: str) -> None:
    """Record that a request with this key is about to be sent. The caller holds the key's lock.

    Raises:
        QuantumRuntimeError: Prefect's API failed; then nothing must be sent.
    """
    text = f"The submission key `{tag}` was used. Its job carries it as a tag."
    try:
        await upsert("key", tag, text, {"tag": tag})
    except Exception as error:
        raise not_sent(f"the submission key cannot be marked as used in Prefect ({error!r})") from error


async def mark_accepted(tag: str, job_id: str | None) -> None:
    """Record that the service accepted a request with this key, and the job's id. The caller holds the key's lock.

    Raises:
        Exception: Prefect's API failed.
    """
    which = f"job `{job_id}`" if job_id else "a job whose id could not be read"
    text = f"The submission key `{tag}` was used for {which}."
    await upsert("key", tag, text, {"tag": tag, "accepted": "yes", "job": job_id})
