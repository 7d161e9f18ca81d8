"""Admit a submission: policy, the team's turn, budget, create rate. Admit a session: budget.

A reservation is known to its own process only, so until the service lists the job no other process may check the same
budget.

Teams get their shares of the create rate, among all processes, through Prefect's database alone. `share_core` decides;
this module keeps the rows, which are Prefect variables. No process holds anything while others wait, so a killed one
delays them by seconds only. If Prefect fails for longer, the order is lost and the rate kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from prefect.client.schemas.actions import VariableCreate

from prefect_qruntime.admission import policy
from prefect_qruntime.admission.budget import Budget, BudgetLike, budgets_in_force, report_exhausted, scopes
from prefect_qruntime.admission.budget_core import Reservation, lowest
from prefect_qruntime.admission.ledger import Ledger, ledger
from prefect_qruntime.admission.locks import HeldLock, budget_lock
from prefect_qruntime.admission.policy import policy_in_force, share_of, tenant_of
from prefect_qruntime.admission.rate_limit import Permit, acquire, limit_name, pace, shared_limits
from prefect_qruntime.admission.share_core import Row, Share, Turn, Waiter
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.errors import BudgetExhausted, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import JobRef, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import api, in_run, now, read_variables
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.settings import current_settings

__all__ = [
    "AdmissionGuard",
    "BudgetsAlone",
    "SessionAdmission",
    "admission_guard",
    "read_queue",
    "session_guard",
    "share_turn",
]


log = get_logger(__name__)

_TAG = "qruntime-share"
_SAY_AFTER = 30.0  # seconds after which a wait is logged
_FRESH = 30.0  # seconds for which what was checked before a wait is not checked again


@asynccontextmanager
async def share_turn(connection: Connection, where: RunContext, block: str | None) -> AsyncIterator[None]:
    """Wait for the team's turn; release it if the block ends with an error. Runs on the network loop.

    Raises:
        QuantumRuntimeError: Prefect could not be asked for the policy; nothing was sent.
    """
    policy = await policy_in_force()
    allowed = pace(connection)
    if policy is None or not policy.shares or allowed is None or not in_run():
        yield
        return
    share = share_of(policy, await tenant_of(where, block))
    team = share.name if share is not None else ""
    shares = {one.name: Share(one.weight, one.max_creates_per_minute) for one in policy.shares}
    prefix = _prefix(connection.crn)
    # One ticket for each process and team: its other submissions wait in memory.
    async with network_loop().lock(f"share:{prefix}:{team}"):
        taken: str | None = None
        try:
            taken = await _wait(connection, prefix, team, shares, allowed)
        except Exception as error:
            log.warning("Prefect cannot be asked whose turn it is (%r). Continuing without the teams' shares.", error)
    try:
        yield
    except BaseException:
        if taken is not None:
            await asyncio.shield(_remove(taken))
        raise


def _prefix(crn: str) -> str:
    return limit_name(crn).replace("qruntime-create-", "qruntime-share-")


async def _wait(
    connection: Connection, prefix: str, team: str, shares: dict[str, Share], allowed: tuple[int, float]
) -> str:
    """Wait for a turn; return the name of its row."""
    limits = await shared_limits(connection.crn)
    count, period = (len(limits), allowed[1]) if limits else allowed
    row = Row(secrets.token_hex(8), team, now())
    name = f"{prefix}-{row.id}"
    waiter, began, told = Waiter(row.id, count, period), time.monotonic(), False
    try:
        await _create(name, row)
        while True:
            rows = await _read(prefix)
            turn = waiter.look(rows, shares, server=now(), now=time.monotonic())
            for one in turn.drop:
                await _remove(f"{prefix}-{one}")
            if turn.do == "go":
                await _write(name, row, turn)
                return name
            if turn.do == "renew":
                await _create(name, row)
                continue
            if not told and time.monotonic() - began > _SAY_AFTER:
                told = True
                waiting = sum(one.granted is None for one in rows) - 1
                others = "1 other waits" if waiting == 1 else f"{waiting} others wait"
                notifications.log_to_run(f"waiting for the turn of team {team or '(none)'} to create a job; {others}")
            await asyncio.sleep(turn.pause * random.uniform(0.8, 1.2))  # noqa: S311
    except BaseException:
        with contextlib.suppress(Exception):
            await asyncio.shield(_remove(name))
        raise


# ---- the rows in Prefect -------------------------------------------------------------------------------------


def _value(row: Row) -> dict[str, Any]:
    return {"team": row.team, "since": row.since, "start": row.start, "finish": row.finish, "granted": row.granted}


async def _create(name: str, row: Row) -> None:
    await (await api()).create_variable(VariableCreate(name=name, value=_value(row), tags=[_TAG]))


async def _write(name: str, row: Row, turn: Turn) -> None:
    granted = replace(row, granted=now(), start=turn.start, finish=turn.finish)
    try:
        await (await api()).request(
            "PATCH", "/variables/name/{name}", path_params={"name": name}, json={"value": _value(granted)}
        )
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        await _create(name, granted)  # it was skipped just now


async def _remove(name: str) -> None:
    with contextlib.suppress(Exception):  # another process removes it too
        await (await api()).request("DELETE", "/variables/name/{name}", path_params={"name": name})


async def _read(prefix: str) -> list[Row]:
    found = await read_variables(await api(), f"{prefix}-", _TAG)
    return [_row(one["name"].removeprefix(f"{prefix}-"), one["value"]) for one in found]


def _row(name: str, value: Any) -> Row:
    facts: dict[str, Any] = value if isinstance(value, dict) else {}

    def number(key: str) -> float:
        return float(facts[key]) if isinstance(facts.get(key), int | float) else 0.0

    granted = number("granted") if facts.get("granted") is not None else None
    return Row(name, str(facts.get("team") or ""), number("since"), granted, number("start"), number("finish"))


async def read_queue(crn: str) -> list[Row]:
    """Read all tickets and recent grants of an account. Runs on the network loop.

    Raises:
        Exception: Whatever Prefect's API raises.
    """
    return await _read(_prefix(crn))


@dataclass(slots=True)
class BudgetsAlone:
    """The budgets in force and their locks, so that no other process spends the same seconds.

    Attributes:
        own: The flow's own budget.
        where: The flow run that submits.
        crn: Of the instance.
        stack: Releases the locks; enter it before.
        locks: Those that are held.
        held: What they are for.
    """

    own: BudgetLike | None
    where: RunContext
    crn: str
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    locks: tuple[HeldLock, ...] = ()
    held: tuple[str, ...] = ()

    async def read(self, needs_locks: Callable[[Sequence[Budget]], bool] = bool) -> list[Budget]:
        """Read the budgets and take their locks; read again after that, as they may have been changed meanwhile.

        Args:
            needs_locks: Whether budgets are about what is spent here.
        """
        while True:
            budgets = await budgets_in_force(self.own)
            # Outside a run there is no Prefect to ask.
            wanted = scopes(budgets, self.where, self.crn) if needs_locks(budgets) and in_run() else ()
            if wanted == self.held:
                return budgets
            self.locks, self.held = (), ()  # should the next line or the one after it fail, none is held
            await self.stack.aclose()
            self.locks = await self.stack.enter_async_context(budget_lock(wanted))
            self.held = wanted


@dataclass(slots=True)
class AdmissionGuard:
    """The checks of one submission: policy, budget and rate limit."""

    client: QuantumRuntimeClient
    spec: JobSpec
    where: RunContext
    budgets: BudgetsAlone
    session: SessionRef | None = None
    _reservation: Reservation | None = None
    _turn: Permit | None = None
    _posting: bool = False
    _posted: bool = False
    key_lock: HeldLock | None = None
    still_wanted: Callable[[], Awaitable[None]] | None = None
    block: str | None = None

    @property
    def _ledger(self) -> Ledger:
        return ledger(self.client.connection.crn)

    async def before_post(self, key: str) -> JobSpec | None:
        """Reserve QPU seconds and wait for a permit; see `submission.BeforePost`.

        Raises:
            BudgetExhausted: Not enough of the budget is left; nothing is sent.
            InvalidInput: No budget has the name.
            JobCancelled: The flow run is being cancelled; nothing is sent.
            PolicyRefused: The installation's policy does not allow it; nothing is sent.
            QuantumRuntimeError: The service or Prefect could not be asked what is left; nothing is sent.
        """
        self._posting = False
        if self._turn is not None:
            await self._turn.sent()
        began, ceiling = time.monotonic(), await self._ceiling()
        # The team's turn comes first: a process that waits with a budget's lock would delay the other teams.
        async with share_turn(self.client.connection, self.where, self.block):
            spec = await self._reserve(key, ceiling)
            self._turn = await acquire(self.client.connection)
            if time.monotonic() - began > _FRESH:  # meanwhile an administrator may have changed what is allowed
                spec = await self._reserve(key, await self._ceiling())
            if self.still_wanted is not None:
                await self.still_wanted()
            for lock in (self.key_lock, *self.budgets.locks):
                if lock is not None:
                    lock.check()
        self._posting = self._posted = True
        return spec

    async def _ceiling(self) -> int | None:
        """The most QPU seconds that the policy allows the job, whose own limit must not be higher; a dry run uses none.

        Raises:
            PolicyRefused: The policy does not allow it.
        """
        if self.spec.dry_run:
            return None
        asked = policy.Asked(self.spec.backend, self.spec.program_id, self.spec.max_execution_time)
        most, _ = await policy.admit(self.client.connection, self.where, self.block, [asked])
        return most

    async def _reserve(self, key: str, ceiling: int | None) -> JobSpec | None:
        wanted = self.spec.max_execution_time
        seconds = wanted if ceiling is None else lowest(wanted, ceiling)
        budgets = await self.budgets.read(lambda _: not self.spec.dry_run)
        if budgets and not self.spec.dry_run:  # a dry run is not charged
            try:
                self._reservation, seconds = await self._ledger.reserve(
                    self.client, budgets, self.where, key, wanted, self.session, ceiling=ceiling
                )
            except BudgetExhausted as error:
                report_exhausted(error, flow_run_id=self.where.flow_run_id)
                raise
        return None if seconds == wanted else replace(self.spec, max_execution_time=seconds)

    async def listed(self) -> None:
        """Wait until other processes can count the job: the service lists it, or never will."""
        kept = self._reservation
        if kept is None or kept.job_id is None or not self.budgets.held:
            return
        end, pause = time.monotonic() + current_settings().submission_grace_seconds, 0.25
        while True:
            with contextlib.suppress(QuantumRuntimeError):
                if any(job.id == kept.job_id for job in await self.client.jobs_tagged(kept.key)):
                    return
            left = end - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, 3.0)

    def bought(self, ref: JobRef) -> None:
        """Note the accepted job; from now on its own state counts."""
        if self._reservation is not None:
            self._reservation.job_id = ref.id

    def stopped(self, error: BaseException | None) -> None:
        """Settle the reservation and the permit without asking Prefect: the caller may be cancelled."""
        refused = isinstance(error, QuantumRuntimeError) and not (
            isinstance(error, SubmissionUncertain) or error.advice.kind == "search-first"
        )
        kept = self._reservation
        if kept is not None and kept.job_id is None and error is not None:
            if refused if self._posting else not self._posted:
                self._ledger.drop(kept)
            else:
                # This POST or an earlier one may still appear in the list, so it counts until then.
                kept.doubtful_until = time.monotonic() + 2 * current_settings().submission_grace_seconds
        if self._turn is not None:
            self._turn.drop(sent=self._posting)

    async def passed(self) -> None:
        """The request was answered: the shared rate limit may have to be renewed."""
        if self._turn is not None:
            await self._turn.sent()

    async def in_session(self, ref: JobRef) -> None:
        """Note the session's id, if the session is opened by its first job."""
        kept = self._reservation
        if kept is not None and kept.hold is not None and ref.session is not None:
            await self._ledger.sessions.opened(kept.hold, ref.session.id)


@asynccontextmanager
async def admission_guard(
    client: QuantumRuntimeClient,
    spec: JobSpec,
    where: RunContext,
    budget: BudgetLike | None,
    session: SessionRef | None = None,
) -> AsyncIterator[AdmissionGuard]:
    """Guard one submission. Runs on the network loop.

    Args:
        client: The instance that pays.
        spec: The checked submission.
        where: The flow run that submits.
        budget: The flow's own budget.
        session: The session that it is to run in.

    Yields:
        The hooks of `client.submit`.
    """
    one = AdmissionGuard(client, spec, where, BudgetsAlone(budget, where, client.connection.crn), session)
    async with one.budgets.stack:
        try:
            yield one
        except QuantumRuntimeError as error:
            with contextlib.suppress(Exception):
                await one.passed()
            one.stopped(error)
            raise
        except BaseException as error:
            one.stopped(error)
            raise
        await one.passed()
        one.stopped(None)
        await one.listed()


@dataclass(slots=True)
class SessionAdmission:
    """A session that is about to be opened.

    Attributes:
        life: Its longest life in seconds.
    """

    life: int
    _ledger: Ledger
    _token: str

    async def opened(self, session: SessionRef) -> None:
        """Note that it was opened; in the legacy dialect its first job opens it."""
        await self._ledger.sessions.opened(self._token, session.id)


def _count_seconds(budgets: Sequence[Budget]) -> bool:
    return any(one.counts_seconds for one in budgets)


@asynccontextmanager
async def session_guard(
    client: QuantumRuntimeClient, where: RunContext, budget: BudgetLike | None, token: str, *, mode: str, life: int
) -> AsyncIterator[SessionAdmission]:
    """Guard the opening of a session. Runs on the network loop.

    Args:
        client: The instance that pays.
        where: The flow run that submits.
        budget: The flow's own budget.
        token: Identifies the session.
        mode: `dedicated`; a batch is charged by its jobs and needs no reservation.
        life: Its wanted life in seconds.

    Yields:
        Its admission, with its longest life.

    Raises:
        BudgetExhausted: Not enough of the budget is left for it.
        InvalidInput: No budget has the name.
        QuantumRuntimeError: The service or Prefect could not be asked what is left; nothing is sent.
    """
    book = ledger(client.connection.crn)
    alone = BudgetsAlone(budget, where, client.connection.crn)
    async with alone.stack:
        budgets = await alone.read(_count_seconds) if mode == "dedicated" else []
        if not _count_seconds(budgets):
            yield SessionAdmission(life, book, token)
            return
        try:
            allowed = await book.reserve_session(client, budgets, where, token, life)
        except BudgetExhausted as error:
            report_exhausted(error, flow_run_id=where.flow_run_id)
            raise
        try:
            for lock in alone.locks:
                lock.check()
            yield SessionAdmission(allowed, book, token)
        except QuantumRuntimeError as error:
            if not isinstance(error, SubmissionUncertain):  # else it may be open
                await book.sessions.opened(token, None, opened=False)
            raise
