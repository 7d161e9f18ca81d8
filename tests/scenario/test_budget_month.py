"""A simulated month under budgets: teams, sessions, crashes, late usage; none overspends by more than the bound.

The service's clock stands still but for `control.advance`, and the ledgers tell time by it, so the month is the same on
every machine. A crash forgets all that a process knew; what it noted in Prefect stays.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest

from prefect_qruntime.admission import budget, ledger as ledger_module
from prefect_qruntime.admission.budget import Budget
from prefect_qruntime.admission.budget_core import SessionHold
from prefect_qruntime.admission.ledger import Ledger
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.errors import BudgetExhausted
from prefect_qruntime.models import SessionRef
from prefect_qruntime.run_context import RunContext
from prefect_qruntime.sandbox import Sandbox
from tests.support.scenario import BELL, QUICK

DAY = 86400.0
LAG = 0.8 * DAY
ALLOWED, CAP, WATCH = 300, 40, 30
WEEKS, ROUNDS = 4, 9  # a week has a flow run for each team, with a budget of its own
TEAMS = {"single jobs": 0, "sessions under the budget": 0, "sessions of others": 1}


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {
        "queue_time": 2.0,
        "run_time": 25.0,
        "clock_scale": 1e-9,
        "token_lifetime": 1e9,
        "usage_lag": LAG,
        "physics": False,
        "interactive_ttl": 3600,
        "idle_close": 3600,
    }


@dataclass
class Prefect:
    """What is noted in Prefect, whatever process noted it."""

    holds: dict[str, SessionHold] = field(default_factory=dict)

    async def write(self, hold: SessionHold) -> None:
        self.holds[hold.token] = hold

    async def read(self, crn: str, since: datetime) -> list[SessionHold]:
        return [one for one in self.holds.values() if one.crn == crn and one.opened >= since.timestamp()]


class Run:
    """A team's flow run: its processes, one after the other, and its budget."""

    def __init__(self, month: Month, team: str, week: int) -> None:
        self.month, self.team = month, team
        self.id = f"00000000-0000-4000-8000-{week:04d}{[*TEAMS].index(team):08d}"
        self.where = RunContext(self.id, f"flow-run:{self.id}", False, False, 1, 0.0)
        closes = team == "sessions of others"
        self.budget = Budget(
            max_seconds_per_run=ALLOWED, default_max_execution_time=CAP, close_sessions_at_limit=closes
        )
        self.client = month.clients[TEAMS[team]]
        self.refused = self.crashes = self.lost = 0
        self.session: SessionRef | None = None
        self.ledger = Ledger()

    def act(self) -> None:
        """One of the things that happen in a flow run."""
        draw = self.month.random
        try:
            if self.team != "single jobs" and self.session is None:
                self.open_session()
            for _ in range(draw.randint(1, 2)):
                self.submit(lost=draw.random() < 0.15)
        except BudgetExhausted:
            self.refused += 1
        if draw.random() < 0.25:
            self.crash()
        elif self.session is not None and draw.random() < 0.2:
            self.client.run(self.client.close_session(str(self.session.id), drain=False))
            self.session = None

    def submit(self, *, lost: bool) -> None:
        """Buy a job as `AdmissionGuard` does; its answer may be lost, and its process with it."""
        key = f"qr-key:{self.month.random.getrandbits(128):032x}"
        session = self.session if self.session and self.is_open(self.session) else None
        self.session = session
        made, cap = self.client.run(self.ledger.reserve(self.client, [self.budget], self.where, key, None, session))
        assert cap is not None
        assert cap <= CAP
        backend = self.month.random.choice(["sandbox_ideal", "sandbox_noisy"]) if session is None else "sandbox_ideal"
        spec = make_spec([BELL], backend=backend, shots=1, max_execution_time=cap)
        ref = self.client.run(self.client.post_job(spec, (key, f"qr-flow:{self.id}"), session))
        if lost:
            self.lost += 1
            self.crash()
        else:
            made.job_id = ref.id

    def is_open(self, session: SessionRef) -> bool:
        return self.month.control.session(str(session.id))["state"] != "closed"

    def open_session(self) -> None:
        """Open a session under the budget, or take one that somebody opened for an hour."""
        token, life = f"t{self.month.random.getrandbits(64):016x}", 3600
        mine = self.team == "sessions under the budget"
        if mine:
            life = self.client.run(self.ledger.reserve_session(self.client, [self.budget], self.where, token, 90))
        ref = self.client.run(self.client.post_session("sandbox_ideal", mode="dedicated", max_ttl=life))
        self.session = ref.model_copy(update={"token": token}) if mine else ref
        if mine:
            self.client.run(self.ledger.sessions.opened(token, ref.id))

    def crash(self) -> None:
        """Lose all that the process knew; the next one finds what is in Prefect."""
        self.crashes += 1
        self.ledger = Ledger()

    def spent(self) -> float:
        """What the service charges for it, added up in the plainest way."""
        sessions = {one["id"]: one for one in self.month.control.sessions()}
        jobs = self.month.control.jobs(tag=f"qr-flow:{self.id}")
        own = sum(job["usage_seconds"] for job in jobs if job["session_id"] is None)
        return own + sum(sessions[name]["usage_seconds"] for name in {job["session_id"] for job in jobs} - {None})


class Month:
    """The instance, its runs, and the watcher that closes sessions at their limits."""

    def __init__(self, sandbox: Sandbox, seed: int, *, watches: bool = True) -> None:
        self.control, self.random, self.watches = sandbox.control, random.Random(seed), watches
        self.clients = [
            QuantumRuntimeClient(
                Connection(**{**sandbox.connection("cloud"), "api_key": key, "crn": crn}), patience=QUICK
            )
            for key, crn in sandbox.instances[:2]
        ]
        self.control.set_times(run_time=300.0, backend="sandbox_noisy")  # its jobs are stopped at their limits
        self.runs: list[Run] = []
        self.closed: list[str] = []

    def pass_time(self, seconds: float) -> None:
        """Let time pass; while sessions are open the watcher looks once in its interval."""
        while seconds > 0:
            step = min(seconds, WATCH) if self.watches and self.control.open_sessions() else seconds
            self.control.advance(step)
            seconds -= step
            if self.watches:
                for client in self.clients:
                    self.closed += client.run(budget.close_at_limit(client))

    def live(self, weeks: int = WEEKS, rounds: int = ROUNDS) -> None:
        for week in range(weeks):
            runs = [Run(self, team, week) for team in TEAMS]
            self.runs += runs
            for _ in range(rounds):
                for run in self.random.sample(runs, k=len(runs)):
                    run.act()
                self.pass_time(self.random.choice([5, 60, 90, 90, 0.6 * DAY, 0.8 * DAY]))
        self.pass_time(2 * DAY)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> Prefect:
    """Notes that outlive processes, and the service's clock for all processes."""
    noted, control = Prefect(), sandbox.control
    monkeypatch.setattr(budget, "_write", noted.write)
    monkeypatch.setattr(budget, "read_holds", noted.read)
    monkeypatch.setattr(budget, "in_run", lambda: True)
    monkeypatch.setattr(budget, "now", control.now)
    monkeypatch.setattr(budget, "clock_offset", lambda: 0.0)
    monkeypatch.setattr(ledger_module, "now", control.now)
    monkeypatch.setattr(QuantumRuntimeClient, "known_clock_skew", lambda self: 0.0)
    # The month's own watcher looks, in the service's time.
    monkeypatch.setattr(budget.SessionHolds, "_watch", lambda *args: None)
    monkeypatch.setattr(ledger_module, "report_level", lambda *args, **more: None)
    for name in ("session_event", "log_to_run"):
        monkeypatch.setattr(budget.notifications, name, lambda *args, **more: None)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_USAGE_GRACE_SECONDS", "0")
    return noted


def test_no_budget_of_the_month_is_overspent_beyond_the_bound(
    sandbox: Sandbox, prefect: Prefect, capsys: pytest.CaptureFixture[str]
) -> None:
    month = Month(sandbox, seed=15)
    month.live()
    spent = {team: [run.spent() for run in month.runs if run.team == team] for team in TEAMS}
    runs = month.runs
    with capsys.disabled():
        print(
            f"\nbudgets: {len(runs)} of {ALLOWED} s in a month, {len(month.control.jobs())} jobs, "
            f"{len(month.control.sessions())} sessions, {len(month.closed)} closed at their limits, "
            f"{sum(run.crashes for run in runs)} crashes, {sum(run.lost for run in runs)} lost answers, "
            f"{sum(run.refused for run in runs)} refusals; most spent: "
            + ", ".join(f"{team} {max(numbers):g} s" for team, numbers in spent.items())
        )
    # A job of its own is stopped at its limit; one that runs when its session ends may go on to it.
    assert max(spent["single jobs"]) <= ALLOWED
    assert max(spent["sessions under the budget"]) <= ALLOWED + CAP
    assert max(spent["sessions of others"]) <= ALLOWED + CAP + WATCH
    # It was no month without pressure.
    assert all(run.refused for run in runs)
    assert all(max(numbers) > 0.9 * ALLOWED for numbers in spent.values())
    assert sum(run.crashes for run in runs) > len(runs)
    assert sum(run.lost for run in runs) > 5
    assert len(month.closed) >= WEEKS / 2


def test_without_the_watcher_a_session_of_somebody_else_would_overspend(sandbox: Sandbox, prefect: Prefect) -> None:
    month = Month(sandbox, seed=15, watches=False)
    month.live(weeks=1)
    assert max(run.spent() for run in month.runs) > ALLOWED + CAP + WATCH
