"""The budget block: how much QPU time a flow may use and how many jobs it may submit.

A budget limits *new* jobs and sessions; waiting, fetching, cancelling and attaching are free and never refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from prefect_qruntime.admission.budget_core import Remaining
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.errors import BudgetExhausted, InvalidInput
from prefect_qruntime.observability.events import emit, log_to_run
from prefect_qruntime.prefect_api import Loadable, in_run, load_saved
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.settings import current_settings

__all__ = [
    "Budget",
    "BudgetLike",
    "as_budget",
    "budgets_in_force",
    "report_exhausted",
    "report_level",
    "scopes",
]


class Budget(Loadable, Block):
    """What a flow may spend; pass it as `budget=` to `submit_job` and `run_job`, as an object or by its name.

    It is checked before each submission. It counts the QPU seconds that the service reports for each job, failed and
    cancelled ones too; for a job whose number is not final yet, the most that it may use: its `max_execution_time`. So
    under a budget of seconds every job is sent with such a limit: its own, else the budget's
    `default_max_execution_time`, else all that is left. A job that does not fit is refused with `BudgetExhausted`
    before anything is sent.

    Two submissions never share the last seconds: within a process by its own ledger, among the processes of flow
    runs by a lock in Prefect that is held until the service lists the new job. Outside a flow the process
    counts as the run. A dedicated session is charged as a whole, idle time included.

    Attributes:
        max_seconds_per_run: QPU seconds that all jobs of a flow run may use.
        max_seconds_per_deployment: QPU seconds that all runs of a deployment may use in the last `period_days`.
        period_days: Days that `max_seconds_per_deployment` looks back.
        min_remaining_seconds: QPU seconds that must stay on the instance.
        default_max_execution_time: QPU seconds that a job without a limit of its own may use.
        max_jobs_per_run: Most jobs that a flow run may submit.
        close_sessions_at_limit: Whether a session that was opened without the budget may be used although it could
            outlive the budget; it is closed when the budget is used up.

    Example:
        ```python
        from prefect_qruntime import Budget

        budget = Budget.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Quantum Runtime Budget"
    _block_type_slug = "quantum-runtime-budget"
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/1459110?s=200&v=4")
    _documentation_url = HttpUrl("https://quantum.cloud.ibm.com/docs/en/guides/max-execution-time")
    _description = "How many QPU seconds and jobs a flow run or a deployment may use, checked before each submission."

    max_seconds_per_run: float | None = Field(
        default=None,
        gt=0,
        title="QPU seconds per run",
        description="QPU seconds that all jobs of one flow run may use together; empty for no limit.",
    )
    max_seconds_per_deployment: float | None = Field(
        default=None,
        gt=0,
        title="QPU seconds per deployment",
        description=(
            "QPU seconds that all runs of one deployment may use in the period below; empty for no limit. "
            "Runs without a deployment are not limited by it."
        ),
    )
    period_days: float = Field(
        default=28.0,
        gt=0,
        le=366,
        title="Period in days",
        description="How many days back the limit per deployment counts.",
    )
    min_remaining_seconds: float | None = Field(
        default=None,
        ge=0,
        title="QPU seconds to keep",
        description="QPU seconds of the instance that must stay unused; empty for none. Needs a limit on the instance.",
    )
    default_max_execution_time: int | None = Field(
        default=None,
        ge=1,
        le=MOST_SECONDS,
        title="Default job limit",
        description=(
            "QPU seconds, 1 to 10800, that a job may use if it names no limit itself; the service stops it there. "
            "Empty: all that the budget has left, so that one live job holds it all."
        ),
    )
    max_jobs_per_run: int | None = Field(
        default=None,
        ge=1,
        title="Jobs per run",
        description="Most jobs that one flow run may submit, failed and cancelled ones included; empty for no limit.",
    )

    close_sessions_at_limit: bool = Field(
        default=False,
        title="Close sessions at the limit",
        description=(
            "Whether a dedicated session that was opened without this budget may be used although it could live longer "
            "than the budget lasts. It is then closed when the budget is used up; otherwise its jobs are refused."
        ),
    )

    @property
    def counts_seconds(self) -> bool:
        """Whether it limits QPU seconds, not only jobs."""
        limits = (self.max_seconds_per_run, self.max_seconds_per_deployment, self.min_remaining_seconds)
        return any(limit is not None for limit in limits)

    @property
    def shown_name(self) -> str:
        """The block's name, or `unsaved`."""
        name = self._block_document_name
        return name if isinstance(name, str) else "unsaved"


BudgetLike = Budget | str


def as_budget(budget: Any) -> BudgetLike | None:
    """Check the argument `budget`; a name is looked up only when something is to be submitted.

    Raises:
        InvalidInput: It is neither a `Budget` nor a name.
    """
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, str) and budget.strip():
        return budget.strip()
    raise InvalidInput("must be a Budget or the name of a saved one", field="budget")


async def budgets_in_force(own: BudgetLike | None) -> list[Budget]:
    """Load the flow's own budget and the one that the settings impose; both apply.

    Raises:
        InvalidInput: No budget has the name, or a field of it is wrong.
    """
    imposed = current_settings().budget_block
    found = [own] if isinstance(own, Budget) else []
    if isinstance(own, str):
        found.append(await _load(own, "budget"))
    if imposed and imposed not in {budget.shown_name for budget in found}:
        found.append(await _load(imposed, "PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK"))
    return found


async def _load(name: str, field: str) -> Budget:
    return await load_saved(Budget, name, field=field, fix="Nothing was sent.")


def scopes(budgets: Iterable[Budget], where: RunContext, crn: str) -> tuple[str, ...]:
    """Name what the budgets count over, if other processes may spend there too."""
    found = set()
    for one in budgets:
        per_run = one.max_seconds_per_run is not None or one.max_jobs_per_run is not None
        if per_run and where.flow_run_id is not None:
            found.add(f"run:{where.flow_run_id}")
        if one.max_seconds_per_deployment is not None and where.deployment_id is not None:
            found.add(f"deployment:{where.deployment_id}")
        if one.min_remaining_seconds is not None:
            found.add(f"instance:{crn}")
    return tuple(sorted(found))


def report_exhausted(error: BudgetExhausted, *, flow_run_id: str | None) -> None:
    """Report that a budget refused a submission.

    Args:
        error: The refusal.
        flow_run_id: The flow run that asked.
    """
    log_to_run(str(error), level=logging.WARNING)
    name = str(error.fields.get("budget", "unsaved"))
    emit(
        "qruntime.budget.exhausted",
        {"prefect.resource.id": f"qruntime.budget.{name}", "prefect.resource.name": name},
        {key: error.fields.get(key) for key in ("budget", "limit", "allowed", "used", "reserved", "needed")},
        flow_run_id=flow_run_id,
    )


def report_level(room: Remaining, level: int, *, about: str, flow_run_id: str | None) -> None:
    """Report that a limit has reached a level, once for each run, deployment or instance that it counts over.

    Args:
        room: The limit.
        level: Percent.
        about: What it counts over, and which of its periods this is.
        flow_run_id: The flow run that submits.
    """
    if not in_run():
        return
    cause = f"qruntime-budget:{room.budget}:{room.limit}:{room.allowed:g}:{about}:{level}"
    facts = {"budget": room.budget, "limit": room.limit, "allowed": room.allowed, "percent": level}
    emit(
        "qruntime.budget.level",
        {
            "prefect.resource.id": f"qruntime.budget.{room.budget}",
            "prefect.resource.name": room.budget,
            "qruntime.percent": str(level),
        },
        {**facts, "used": room.used, "reserved": room.reserved},
        flow_run_id=flow_run_id,
        event_id=uuid5(NAMESPACE_URL, cause),
    )
