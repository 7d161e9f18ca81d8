"""Admit a submission: first the budget, then the create rate.

A reservation is known to its own process only, so from then until the service lists the job no other process may
count under the same budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from prefect_qruntime.admission.budget import Budget, BudgetLike, budgets_in_force
from prefect_qruntime.admission.ledger import Ledger, Reservation, ledger, scopes
from prefect_qruntime.admission.locks import HeldLock, budget_lock
from prefect_qruntime.admission.rate_limit import Permit, acquire
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.errors import BudgetExhausted, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.models import JobRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.prefect_api import in_run
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.settings import current_settings

__all__ = ["AdmissionGuard", "admission_guard"]


@dataclass(slots=True)
class AdmissionGuard:
    """One submission on its way through budget and rate limit."""

    client: QuantumRuntimeClient
    spec: JobSpec
    where: RunContext
    budget: BudgetLike | None
    _ledger: Ledger
    _reservation: Reservation | None = None
    _turn: Permit | None = None
    _posting: bool = False
    _alone: AsyncExitStack = field(default_factory=AsyncExitStack)
    _held: tuple[str, ...] = ()
    _locks: tuple[HeldLock, ...] = ()
    key_lock: HeldLock | None = None

    async def before_post(self, key: str) -> JobSpec | None:
        """Reserve QPU seconds and wait for a permit; see `submission.BeforePost`.

        Raises:
            BudgetExhausted: The budget has no room; nothing is sent.
            InvalidInput: No budget has the name.
            QuantumRuntimeError: The service or Prefect could not be asked what is left; nothing is sent.
        """
        self._posting = False
        if self._turn is not None:
            await self._turn.sent()
        spec = await self._reserve(key)
        self._turn = await acquire(self.client.connection)
        for lock in (self.key_lock, *self._locks):
            if lock is not None:
                lock.check()
        self._posting = True
        return spec

    async def _reserve(self, key: str) -> JobSpec | None:
        budgets = await budgets_in_force(self.budget)
        if not budgets or self.spec.dry_run:  # which is not charged
            return None
        await self._be_alone(budgets)
        limit = self.spec.max_execution_time
        try:
            self._reservation, cap = await self._ledger.reserve(self.client, budgets, self.where, key, limit)
        except BudgetExhausted as error:
            self._reservation = None
            notifications.budget_exhausted(error, flow_run_id=self.where.flow_run_id)
            raise
        return None if cap == limit else replace(self.spec, max_execution_time=cap)

    async def _be_alone(self, budgets: Sequence[Budget]) -> None:
        """Take the budget's locks, so that no other process counts what this one is about to spend."""
        # Outside a run there is no Prefect to ask.
        wanted = scopes(budgets, self.where, self.client.connection.crn) if in_run() else ()
        if wanted == self._held:
            return
        await self._alone.aclose()
        self._locks = await self._alone.enter_async_context(budget_lock(wanted))
        self._held = wanted

    async def listed(self) -> None:
        """Wait until other processes can count the job: the service lists it, or never will."""
        kept = self._reservation
        if kept is None or kept.job_id is None or not self._held:
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
        """A job was bought; from now on its own state counts."""
        if self._reservation is not None:
            self._reservation.job_id = ref.id

    def stopped(self, error: BaseException | None) -> None:
        """Settle the reservation and the permit without asking Prefect: the caller may be cancelled."""
        refused = isinstance(error, QuantumRuntimeError) and not (
            isinstance(error, SubmissionUncertain) or error.advice.kind == "search-first"
        )
        kept = self._reservation
        if kept is not None and kept.job_id is None and error is not None:
            if refused or not self._posting:
                self._ledger.drop(kept)
            else:
                # It may turn up in the list; until then it counts.
                kept.doubtful_until = time.monotonic() + 2 * current_settings().submission_grace_seconds
        if self._turn is not None:
            self._turn.drop(sent=True)

    async def passed(self) -> None:
        """The request was answered: the shared rate limit may have to be renewed."""
        if self._turn is not None:
            await self._turn.sent()


@asynccontextmanager
async def admission_guard(
    client: QuantumRuntimeClient, spec: JobSpec, where: RunContext, budget: BudgetLike | None
) -> AsyncIterator[AdmissionGuard]:
    """Guard one submission. Runs on the network loop.

    Args:
        client: The instance that pays.
        spec: What is to be bought.
        where: The flow run that asks.
        budget: The flow's own budget.

    Yields:
        The hooks of `client.submit`.
    """
    one = AdmissionGuard(client, spec, where, budget, ledger(client.connection.crn))
    async with one._alone:
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
