"""The budget block: how much QPU time a flow may use and how many jobs it may submit; and what sessions hold of it.

A budget limits *new* jobs and sessions; waiting, fetching, cancelling and attaching are free and never refused.

What dedicated sessions hold of the budgets is kept in this process, and in Prefect for the other processes. A hold is
recorded under the budget's lock: before a session is opened or first used, when its id is known, at its first job, and
when the service has reported its cost. `budget_core` decides how it counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl

from prefect_qruntime.admission.budget_core import UNSEEN, Remaining, SessionHold, allotment, is_due, observed
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.cost_core import MOST_SECONDS
from prefect_qruntime.errors import BudgetExhausted, InvalidInput, NotFound, PermissionDenied, QuantumRuntimeError
from prefect_qruntime.models import SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.artifacts import Record, find_records, upsert
from prefect_qruntime.observability.markdown import card
from prefect_qruntime.observability.telemetry import emit, log_to_run
from prefect_qruntime.prefect_api import Loadable, clock_offset, in_run, load_saved, not_sent, now
from prefect_qruntime.redact import get_logger
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.settings import current_settings

__all__ = [
    "HOLD_DAYS",
    "Budget",
    "BudgetLike",
    "SessionHolds",
    "as_budget",
    "budgets_in_force",
    "close_at_limit",
    "close_if_due",
    "days_ago",
    "has_limits",
    "read_holds",
    "report_exhausted",
    "report_level",
    "scopes",
]

log = get_logger(__name__)

HOLD_DAYS = 30.0
"""Days that holds are read back at least: longer than a flow run lasts, and than a session waits for its first job."""


class Budget(Loadable, Block):
    """What a flow may spend; pass it as `budget=` to `submit_job` and `run_job`, as an object or by its name.

    It is checked before each submission. It counts the QPU seconds that the service reports for each job, failed and
    cancelled ones too; for a job whose number is not final yet, the most that it may use: its `max_execution_time`. So
    under a budget of seconds every job is sent with such a limit: its own, else the budget's
    `default_max_execution_time`, else all that is left. A job that does not fit is refused with `BudgetExhausted`
    before anything is sent.

    Each instance counts by itself: a flow run that submits to two of them may use each limit on each.

    Two submissions never share the last seconds: within a process by its own ledger, among the processes of flow
    runs by a lock in Prefect that is held until the service lists the new job. Outside a flow the process
    counts as the run. A dedicated session is charged as a whole, idle time included.

    Attributes:
        max_seconds_per_run: QPU seconds that all jobs of a flow run may use.
        max_seconds_per_deployment: QPU seconds that all runs of a deployment may use in the last `period_days`.
        period_days: Days that `max_seconds_per_deployment` looks back, 0.04 to 366.
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

    # Infinity is saved as null, and so as no limit.
    model_config = ConfigDict(allow_inf_nan=False, validate_assignment=True)

    _block_type_name = "Quantum Runtime Budget"
    _block_type_slug = "quantum-runtime-budget"
    _logo_url = HttpUrl("https://avatars.githubusercontent.com/u/1459110?s=200&v=4")
    _documentation_url = HttpUrl("https://prefect-qruntime.github.io/prefect-qruntime/how-to/budget/")
    _description = "How many QPU seconds and jobs a flow run or a deployment may use, checked before each submission."

    max_seconds_per_run: float | None = Field(
        default=None,
        gt=0,
        title="QPU seconds per run",
        description="QPU seconds that all jobs of one flow run may use together on an instance; empty for no limit.",
    )
    max_seconds_per_deployment: float | None = Field(
        default=None,
        gt=0,
        title="QPU seconds per deployment",
        description=(
            "QPU seconds that all runs of one deployment may use on an instance in the period below; empty for no "
            "limit. Runs without a deployment are not limited by it."
        ),
    )
    period_days: float = Field(
        default=28.0,
        ge=0.04,  # about an hour: what happened in much less is not limited by it
        le=366,
        title="Period in days",
        description="How many days back the limit per deployment counts, 0.04 (about an hour) to 366.",
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
        description=(
            "Most jobs that one flow run may submit to an instance, failed and cancelled ones included; "
            "empty for no limit."
        ),
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


def has_limits(values: Any) -> bool:
    """Whether the values of a budget, or of a copy of it in another block's document, limit anything."""
    limits = (name for name, field in Budget.model_fields.items() if field.default is None)
    return isinstance(values, dict) and any(values.get(name) is not None for name in limits)


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
        QuantumRuntimeError: Prefect's API failed; then nothing may be submitted.
    """
    imposed = current_settings().budget_block
    found = [own] if isinstance(own, Budget) else []
    if isinstance(own, str):
        found.append(await _load(own, "budget"))
    # An object of that name may have been changed since it was loaded, here or in Prefect.
    if imposed and imposed != own:
        found.append(await _load(imposed, "PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK"))
    return found


async def _load(name: str, field: str) -> Budget:
    try:
        return await load_saved(Budget, name, field=field, fix="This request was not sent.")
    except QuantumRuntimeError:
        raise
    except Exception as error:
        raise not_sent(f"the budget {name!r} cannot be read: Prefect's API failed ({error!r})") from error


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
    """Report that a budget refused a submission."""
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


class SessionHolds:
    """The holds that this process knows of one instance, by token. Lives on the network loop."""

    def __init__(self) -> None:
        self.holds: dict[str, SessionHold] = {}
        self.made: set[str] = set()  # tokens of those that this process made
        self._watches: set[asyncio.Task[None]] = set()
        self._shown: set[tuple[str, str]] = set()  # sessions by the key that was shown them
        self._unknown: dict[tuple[str, str], float] = {}  # when the service first did not know one of those

    def ids(self) -> set[str]:
        """The sessions that pay for their jobs."""
        return {hold.session_id for hold in self.holds.values() if hold.session_id is not None}

    async def opened(self, token: str, session_id: str | None, *, opened: bool = True) -> None:
        """Record a session's id, or that it was not opened. If Prefect fails, the hold stays, which is safe."""
        hold = self.holds.get(token)
        if hold is None or (opened and session_id in (None, hold.session_id)):
            return
        changed = replace(hold, session_id=session_id) if opened else replace(hold, over=now(), final=0.0)
        self.holds[token] = changed
        with contextlib.suppress(QuantumRuntimeError):
            await self.note(changed)

    async def make(
        self, client: QuantumRuntimeClient, where: RunContext, token: str, allotted: float, **more: Any
    ) -> SessionHold:
        """Hold back what a session may use.

        Raises:
            QuantumRuntimeError: It cannot be recorded; then the session must not be opened or used.
        """
        hold = SessionHold(
            token,
            allotted,
            client.connection.crn,
            now(),
            flow_run_id=where.flow_run_id,
            deployment_id=where.deployment_id,
            **more,
        )
        await self.note(hold)
        self.made.add(token)
        return hold

    async def note(self, hold: SessionHold) -> None:
        """Keep a hold, here and in Prefect.

        Raises:
            QuantumRuntimeError: Prefect's API failed.
        """
        if in_run():  # outside a run there is no Prefect to ask, and no other process that counts with this one
            await _write(hold)
        self.holds[hold.token] = hold

    async def of(
        self,
        client: QuantumRuntimeClient,
        budgets: Sequence[Budget],
        where: RunContext,
        session: SessionRef | None,
        rooms: Sequence[Remaining],
    ) -> SessionHold | None:
        """Find or make the hold that pays for a job; None if the job pays itself: outside a session, or in a batch."""
        counting = [budget for budget in budgets if budget.counts_seconds]
        if session is None or not counting:
            return None
        for hold in self.holds.values():
            if hold.token == session.token or (session.id is not None and hold.session_id == session.id):
                return hold
        life, mode = session.max_ttl, session.mode
        if session.id is not None:
            read = await client.session(session.id)
            life, mode = read.max_ttl, read.ref().mode
        if mode == "batch":
            return None
        closes = all(budget.close_sessions_at_limit for budget in counting)
        allotted = allotment(rooms, life, foreign=True, closes=closes)
        token = session.token or f"session-{session.id}"
        hold = await self.make(client, where, token, allotted, session_id=session.id, closes=closes)
        if closes:
            self._watch(client, token)
        return hold

    async def read(self, client: QuantumRuntimeClient, days: float) -> None:
        """Update the holds from Prefect and from the service."""
        if in_run():
            for noted in await read_holds(client.connection.crn, days_ago(days)):
                mine = self.holds.get(noted.token)
                if mine is None or (mine.final is None and noted.final is not None):
                    self.holds[noted.token] = noted
                elif mine.session_id is None:
                    self.holds[noted.token] = replace(mine, session_id=noted.session_id, begun_after=noted.begun_after)
        for hold in list(self.holds.values()):
            if hold.final is None and hold.session_id is not None:
                await self.look_at(client, hold.session_id, hold)

    async def look_at(self, client: QuantumRuntimeClient, session_id: str, hold: SessionHold) -> SessionHold:
        """Read a session and update its hold.

        Raises:
            QuantumRuntimeError: The service could not be asked.
        """
        asked, shown = now(), (client.connection.fingerprint, session_id)
        try:
            session = await client.session(session_id)
            self._shown.add(shown)
            self._unknown.pop(shown, None)
        except (NotFound, PermissionDenied) as error:
            if shown in self._shown:
                if isinstance(error, PermissionDenied):
                    raise  # of a session of one's own it says nothing
                if asked - self._unknown.setdefault(shown, asked) < UNSEEN:  # a service that restarts says so too
                    return self.holds.get(hold.token, hold)
            session = None  # another user's, perhaps, which counts by the clock
        closed = session is None or session.ref().is_closed
        live = bool(await client.jobs(session_id=session_id, pending=True)) if closed else True
        ahead = (client.known_clock_skew() or 0.0) - (clock_offset() or 0.0)
        # The hold may have changed meanwhile.
        seen = observed(self.holds.get(hold.token, hold), session, asked, live_jobs=live, ahead=ahead)
        self.holds[hold.token] = seen
        if seen.final is not None and session is not None:
            # Only what the service reported: a session that this key cannot see may belong to another user.
            with contextlib.suppress(QuantumRuntimeError):  # the next read finds it again
                await self.note(seen)
        return seen

    def _watch(self, client: QuantumRuntimeClient, token: str) -> None:
        task = asyncio.create_task(self._close_at_limit(client, token))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _close_at_limit(self, client: QuantumRuntimeClient, token: str) -> None:
        while True:
            await asyncio.sleep(current_settings().session_watch_seconds)
            hold = self.holds[token]
            if hold.over is not None:
                return
            if hold.session_id is None:
                continue
            try:
                hold = await self.look_at(client, hold.session_id, hold)
                await close_if_due(client, hold)
            except QuantumRuntimeError as error:  # tried again later
                log.warning("Session %s could not be closed at its budget's limit: %s", hold.session_id, error)


async def close_at_limit(client: QuantumRuntimeClient) -> list[str]:
    """Close the sessions that used up their allotment and whose processes are gone; return their ids.

    For a watcher; a living process closes its own sessions. Runs on the network loop.

    Raises:
        QuantumRuntimeError: The service or Prefect could not be asked.
    """
    closed, known = [], SessionHolds()
    for hold in await read_holds(client.connection.crn, days_ago(HOLD_DAYS)):
        if hold.closes and hold.final is None and hold.session_id is not None:
            try:
                seen = await known.look_at(client, hold.session_id, hold)
                if await close_if_due(client, seen):
                    closed.append(hold.session_id)
            except QuantumRuntimeError as error:
                if error.is_outage:
                    raise
                # Another user's, perhaps. The others are closed.
                log.warning("Session %s could not be closed at its budget's limit: %s", hold.session_id, error)
    return closed


async def close_if_due(client: QuantumRuntimeClient, hold: SessionHold) -> bool:
    """Close a session if it used up its allotment; return whether it was closed.

    Raises:
        QuantumRuntimeError: The service did not close it.
    """
    if not is_due(hold, now()) or hold.session_id is None:
        return False
    session = await client.close_session(hold.session_id, drain=False)
    if session is None:  # this key does not see it: it may be another user's, and open
        return False
    notifications.log_to_run(
        f"Session {hold.session_id} was closed: it used the {hold.allotted:g} s that its budget allows.",
        level=logging.WARNING,
    )
    notifications.session_event("closed", session.ref(), flow_run_id=hold.flow_run_id, at_limit=hold.allotted)
    return True


def days_ago(days: float) -> datetime:
    """The moment this many days ago, by Prefect's clock. Call it on the network loop."""
    return datetime.fromtimestamp(now(), UTC) - timedelta(days=days)


_NUMBERS = {"allotted", "opened", "begun_after", "told", "over", "final"}


async def _write(hold: SessionHold) -> None:
    meta: dict[str, str | None] = {}
    for one in fields(hold):
        value = getattr(hold, one.name)
        meta[one.name] = None if value is None else f"{value:.3f}" if one.name in _NUMBERS else str(value)
    rows = {"session": hold.session_id, "allotted": f"{hold.allotted:g} s", "used": _told(hold)}
    try:
        await upsert("hold", hold.token, card("QPU seconds held for a session", None, rows), meta)
    except Exception as error:
        raise not_sent(f"the session's part of the budget cannot be recorded in Prefect ({error!r})") from error


def _told(hold: SessionHold) -> str:
    return "not reported yet" if hold.final is None else f"{hold.final:g} s"


async def read_holds(crn: str, since: datetime) -> list[SessionHold]:
    """Read the holds of an instance's sessions whose records were written since a moment.

    Raises:
        QuantumRuntimeError: Prefect's API failed; then nothing may be submitted.
    """
    try:
        records = await find_records("hold", since=since)
    except Exception as error:
        raise not_sent(
            f"the budget cannot be checked: the sessions that spend from it could not be read from Prefect ({error!r})"
        ) from error
    found = [hold for record in records if (hold := _hold(record)) is not None]
    return [hold for hold in found if hold.crn == crn]


def _hold(record: Record) -> SessionHold | None:
    facts: dict[str, object] = {}
    with contextlib.suppress(ValueError, TypeError):
        for one in fields(SessionHold):
            text = record.meta.get(one.name)
            if text is not None:
                facts[one.name] = float(text) if one.name in _NUMBERS else text
        facts["closes"] = facts.get("closes") == "True"
        # A sum with what is no number would be below every limit.
        if all(math.isfinite(fact) for fact in facts.values() if isinstance(fact, float)):
            return SessionHold(**facts)  # type: ignore[arg-type]
    return None
