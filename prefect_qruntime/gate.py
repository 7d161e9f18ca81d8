"""What every purchase passes: first the budget, then the pace of creates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from prefect_qruntime import keys, observe
from prefect_qruntime.budget import BudgetLike, budgets_in_force
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.errors import BudgetExhausted, QuantumRuntimeError, SubmissionUncertain
from prefect_qruntime.ledger import Ledger, Reservation, ledger
from prefect_qruntime.models import JobRef
from prefect_qruntime.pacing import Turn, take_turn
from prefect_qruntime.settings import current_settings
from prefect_qruntime.spec import JobSpec

__all__ = ["Gate", "gate"]


@dataclass(slots=True)
class Gate:
    """One submission on its way through budget and pace."""

    client: QuantumRuntimeClient
    spec: JobSpec
    where: keys.Origin
    budget: BudgetLike | None
    _ledger: Ledger
    _reservation: Reservation | None = None
    _turn: Turn | None = None
    _posting: bool = False

    async def before_post(self, key: str) -> JobSpec | None:
        """Reserve QPU seconds and wait for a turn; see `submission.BeforePost`.

        Raises:
            BudgetExhausted: The budget has no room; nothing is sent.
            InvalidInput: No budget has the name.
        """
        self._posting = False
        if self._turn is not None:
            await self._turn.sent()
        spec = await self._reserve(key)
        self._turn = await take_turn(self.client.connection)
        self._posting = True
        return spec

    async def _reserve(self, key: str) -> JobSpec | None:
        budgets = await budgets_in_force(self.budget)
        if not budgets:
            return None
        limit = self.spec.max_execution_time
        try:
            self._reservation, cap = await self._ledger.reserve(self.client, budgets, self.where, key, limit)
        except BudgetExhausted as error:
            self._reservation = None
            observe.budget_exhausted(error, flow_run_id=self.where.flow_run_id)
            raise
        return None if cap == limit else replace(self.spec, max_execution_time=cap)

    def bought(self, ref: JobRef) -> None:
        """A job was bought; from now on its own state counts."""
        if self._reservation is not None:
            self._reservation.job_id = ref.id

    def stopped(self, error: BaseException | None) -> None:
        """Settle the reservation and end the turn, without a word to anybody: the caller may be cancelled."""
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
        """The request was answered: the shared pace may have to be told."""
        if self._turn is not None:
            await self._turn.sent()


@asynccontextmanager
async def gate(
    client: QuantumRuntimeClient, spec: JobSpec, where: keys.Origin, budget: BudgetLike | None
) -> AsyncIterator[Gate]:
    """Guard one submission. Runs on the home loop.

    Args:
        client: The instance that pays.
        spec: What is to be bought.
        where: The flow run that asks.
        budget: The flow's own budget.

    Yields:
        The hooks of `client.submit`.
    """
    one = Gate(client, spec, where, budget, ledger(client.connection.crn))
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
