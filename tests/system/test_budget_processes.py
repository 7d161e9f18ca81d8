"""Several processes spend from one budget: what one bought counts for the others, however late the lists show it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, unmapped
from prefect.task_runners import ProcessPoolTaskRunner

from prefect_qruntime import Budget, BudgetExhausted, load_credentials, submit_job
from prefect_qruntime.sandbox import Sandbox
from tests.system.spread import circuit

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
WANTED = 10


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    """A job is in no list for a second after it was bought."""
    return {"list_lag": 1.0, "physics": False, "api_key": "budget-tests-key-0123456789"}


@pytest.mark.parametrize("limit", ["max_seconds_per_run", "max_jobs_per_run"])
def test_of_ten_jobs_wanted_in_three_processes_two_are_bought(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    # With turns to wait for, a reservation is older than its job by far.
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "1")
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS", "1")
    sandbox.control.hold()
    block = f"budget-{uuid4().hex[:6]}"
    sandbox.credentials().save(block)
    allowed: dict[str, Any] = {"max_seconds_per_run": {limit: 100}, "max_jobs_per_run": {limit: 2}}[limit]
    budget = Budget(default_max_execution_time=40, **allowed)

    @flow(task_runner=ProcessPoolTaskRunner(max_workers=3))
    def fan_out() -> list[Any]:
        futures = submit_job.map(
            unmapped(load_credentials(block)),
            [circuit(number) for number in range(WANTED)],
            backend="sandbox_ideal",
            budget=unmapped(budget),
        )
        return [future.result(raise_on_failure=False) for future in futures]

    found = fan_out()
    refused = [one for one in found if isinstance(one, BudgetExhausted)]
    assert (len(sandbox.control.jobs()), len(refused)) == (2, WANTED - 2), found
    assert {error.fields["limit"] for error in refused} == {limit}
    assert sum(entry["status"] != 401 for entry in sandbox.control.journal("POST", "/jobs")) == 2
