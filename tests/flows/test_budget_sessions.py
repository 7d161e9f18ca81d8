"""Dedicated sessions under a budget, on the sandbox: how long they live, what they reserve, who closes them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow

from flows.parameter_sweep import parameter_sweep
from flows.run_circuits import run_circuits
from flows.vqe_session import vqe_session
from prefect_qruntime import (
    Budget,
    BudgetExhausted,
    QuantumRuntimeCredentials,
    close_session,
    get_usage,
    open_session,
    run_job,
    runtime_session,
    submit_job,
)
from prefect_qruntime.admission.ledger import Ledger, ledger
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, posts, until

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    """A sandbox, and so an instance, of its own: what is noted of its sessions counts for no other test."""
    return {"api_key": "budget-sessions-key-0123456789"}


@pytest.fixture
def sandbox(sandbox: Sandbox) -> Sandbox:
    """Each job costs 10 QPU seconds; 100 service seconds pass in one."""
    network_loop().forget(Ledger)
    sandbox.control.set_clock_scale(100.0)
    sandbox.control.set_times(queue_time=0, run_time=10)
    return sandbox


def test_a_session_lives_as_long_as_its_budget_and_reserves_it(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    budget = Budget(max_seconds_per_run=5000, default_max_execution_time=1000)

    @flow
    def two_sessions() -> tuple[int | None, float]:
        with runtime_session(credentials, BACKEND, budget=budget) as session:
            run_job(credentials, [FLIP], backend=BACKEND, session=session, budget=budget)
            with pytest.raises(BudgetExhausted, match="reserved by jobs and sessions"):
                submit_job(credentials, [FLIP], backend=BACKEND, budget=budget)
            with pytest.raises(BudgetExhausted, match="no room for a session"):
                open_session(credentials, BACKEND, budget=budget)
            assert posts(sandbox) == 1
        # Over, it counts with what the service tells, not with what was reserved.
        again = open_session(credentials, BACKEND, budget=budget)
        close_session(credentials, again, drain=False)
        get_usage(credentials)
        crn = credentials.crn
        first, *_ = network_loop().run(_holds(crn))
        return again.max_ttl, first

    ttl, used = two_sessions()
    assert 10 <= used < 5000
    assert ttl == int(5000 - used)


async def _holds(crn: str) -> list[float]:
    return [hold.final or -1.0 for hold in ledger(crn).sessions.holds.values()]


def test_a_session_opened_without_the_budget_must_fit_or_is_closed_at_the_limit(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SESSION_WATCH_SECONDS", "0.1")
    small = {"max_seconds_per_run": 60, "default_max_execution_time": 20}

    @flow
    def in_a_strangers_session() -> str | None:
        session = open_session(credentials, BACKEND, max_ttl=7200)
        with pytest.raises(BudgetExhausted, match="close_sessions_at_limit"):
            run_job(credentials, [FLIP], backend=BACKEND, session=session, budget=Budget(**small))
        assert posts(sandbox) == 0
        closing = Budget(**small, close_sessions_at_limit=True)
        run_job(credentials, [FLIP], backend=BACKEND, session=session, budget=closing)
        return session.id

    session_id = in_a_strangers_session()
    # Idle, it would go on for half an hour.
    until(lambda: next(one["state"] for one in sandbox.control.sessions() if one["id"] == session_id) == "closed")


@pytest.mark.parametrize("mode", ["dedicated", "batch"])
def test_what_the_service_charges_by_the_clock_is_reserved_whatever_was_asked_for(
    sandbox: Sandbox, dialect: str, mode: str
) -> None:
    """The legacy dialect has no batches: what was asked for as one is a session there."""
    credentials = sandbox.credentials(dialect)
    budget = Budget(max_seconds_per_run=1000, default_max_execution_time=200)

    @flow
    def in_one() -> bool:
        session = open_session(credentials, BACKEND, mode=mode, max_ttl=900, budget=budget)
        job = submit_job(credentials, [FLIP], backend=BACKEND, session=session, budget=budget)
        (opened,) = sandbox.control.sessions()
        assert job.session is not None
        assert job.session.mode == opened["mode"]
        try:
            submit_job(credentials, [FLIP], backend=BACKEND, budget=budget)
        except BudgetExhausted:
            return opened["mode"] == "dedicated"
        return opened["mode"] == "batch"

    assert in_one()


IN_SESSIONS: list[tuple[Any, dict[str, Any]]] = [
    (run_circuits, {"circuits": [FLIP] * 2}),
    (parameter_sweep, {"points": 2, "programs": ["sampler"], "mode": "session"}),
    (vqe_session, {"shots": 10, "max_iterations": 1}),
]
"""The flows that open sessions, each in a mode with a dedicated one."""


@pytest.mark.parametrize(("bought", "parameters"), IN_SESSIONS)
def test_a_session_of_a_flow_spends_the_budget_that_the_form_names(
    sandbox: Sandbox, bought: Any, parameters: dict[str, Any]
) -> None:
    name = f"session-{uuid4().hex[:6]}"
    QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(name)
    Budget(max_seconds_per_run=5000, default_max_execution_time=1000).save(name)
    bought(credentials_block=name, backend=BACKEND, budget_block=name, max_ttl=20_000, **parameters)
    (session,) = sandbox.control.sessions()
    assert session["mode"] == "dedicated"
    assert session["max_ttl"] <= 5000
    assert posts(sandbox) == 2


def test_each_flow_that_opens_a_session_is_run_under_a_budget() -> None:
    flows = [getattr(import_module(f"flows.{path.stem}"), path.stem, None) for path in Path("flows").glob("[a-z]*.py")]
    opening = {one.name for one in flows if one is not None and "max_ttl" in one.parameters.properties}
    assert opening == {one.name for one, _ in IN_SESSIONS}


def test_the_session_of_an_earlier_script_is_not_spent_from_the_limit_of_this_one(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    budget = Budget(max_seconds_per_run=500, default_max_execution_time=400)
    for _ in range(2):
        session = open_session(credentials, BACKEND, budget=budget)
        assert session.max_ttl == 500
        with pytest.raises(BudgetExhausted, match="no room for a session"):
            open_session(credentials, BACKEND, budget=budget)
        network_loop().forget(Ledger)  # as in another process
    close_session(credentials, session, drain=False)
