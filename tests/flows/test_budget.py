"""Budgets: what is refused before a POST, what is counted, and who hears of it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow, unmapped
from prefect.client.orchestration import PrefectClient
from prefect.flow_engine import run_flow
from prefect.futures import PrefectFuture

from prefect_qruntime import (
    Budget,
    BudgetExhausted,
    InvalidInput,
    JobFailed,
    QuantumRuntimeCredentials,
    QuantumRuntimeJob,
    asubmit_job,
    cancel_job,
    run_job,
    submit_job,
    wait_for_completion,
)
from prefect_qruntime.admission.ledger import DeploymentJobs, Ledger, ledger
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, events, posts, until
from tests.support.prefect_calls import asked

pytestmark = pytest.mark.server
SCALE = 200.0  # 40 service seconds pass in 0.2


@pytest.fixture
def sandbox(sandbox: Sandbox) -> Sandbox:
    """Each job costs 40 QPU seconds."""
    network_loop().forget(Ledger)  # the sandbox forgot its jobs, so this process does too
    sandbox.control.set_clock_scale(SCALE)
    sandbox.control.set_times(queue_time=1, run_time=40)
    return sandbox


def outcomes(futures: list[PrefectFuture[Any]]) -> tuple[list[Any], list[BudgetExhausted]]:
    """What came of mapped calls: results, and refusals of the budget."""
    found = [future.result(raise_on_failure=False) for future in futures]
    refused = [one for one in found if isinstance(one, BudgetExhausted)]
    return [one for one in found if not isinstance(one, Exception)], refused


def fan_out(credentials: QuantumRuntimeCredentials, budget: Any, number: int = 10) -> Any:
    @flow
    def fan() -> tuple[list[Any], list[BudgetExhausted]]:
        jobs, refused = outcomes(
            submit_job.map(unmapped(credentials), [FLIP] * number, backend=BACKEND, budget=unmapped(budget))
        )
        for job in jobs:
            wait_for_completion(credentials, job)
        return jobs, refused

    return fan()


@pytest.mark.parametrize("usage_lag", [0, 60])
def test_of_ten_mapped_jobs_two_fit_into_the_run(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, usage_lag: float
) -> None:
    sandbox.control.set_option("usage_lag", usage_lag)
    jobs, refused = fan_out(credentials, Budget(max_seconds_per_run=100, default_max_execution_time=40))
    assert (len(jobs), len(refused), posts(sandbox)) == (2, 8, 2)
    assert {job["cost"] for job in sandbox.control.jobs()} == {40}
    assert refused[0].fields["limit"] == "max_seconds_per_run"
    # A job may use a little more than its limit before the service stops it; that counts too.
    assert all(80 <= error.used + error.reserved < 100 and error.needed == 40 for error in refused)


def test_of_ten_mapped_jobs_two_fit_above_the_minimum_of_the_instance(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.set_usage(limit=100)
    sandbox.control.set_option("usage_lag", 60)
    budget = Budget(min_remaining_seconds=10, default_max_execution_time=40)
    jobs, refused = fan_out(credentials, budget)
    assert (len(jobs), len(refused), posts(sandbox)) == (2, 8, 2)
    assert {error.limit for error in refused} == {"min_remaining_seconds"}
    # A later run sees what is used up, not what was reserved.
    until(lambda: sandbox.control.usage()["usage_consumed_seconds"] == 80)
    jobs, refused = fan_out(credentials, budget, 1)
    assert (jobs, refused[0].used, refused[0].reserved) == ([], 80, 0)
    assert posts(sandbox) == 2


def test_final_usage_takes_the_place_of_what_was_reserved(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.set_times(run_time=10)
    sandbox.control.set_option("usage_lag", 50)  # a quarter of a second after the end of each job

    @flow
    def one_by_one() -> None:
        budget = Budget(max_seconds_per_run=45, default_max_execution_time=20)
        for _ in range(10):
            run_job(credentials, [FLIP], backend=BACKEND, budget=budget)

    # 10 + 10 + 20 fit, 10 + 10 + 10 + 20 do not. At 20 reserved for each, the third had been refused.
    with pytest.raises(BudgetExhausted) as caught:
        one_by_one()
    assert (caught.value.used, caught.value.reserved) == (30, 0)
    assert posts(sandbox) == 3


def test_usage_that_never_becomes_final_counts_as_what_the_job_may_use(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_USAGE_GRACE_SECONDS", "0.3")
    sandbox.control.set_times(run_time=10)
    sandbox.control.set_option("usage_lag", 1_000_000)

    @flow
    def two() -> None:
        budget = Budget(max_seconds_per_run=45, default_max_execution_time=40)
        run_job(credentials, [FLIP], backend=BACKEND, budget=budget)
        run_job(credentials, [FLIP], backend=BACKEND, budget=budget)

    with pytest.raises(BudgetExhausted) as caught:
        two()
    assert (caught.value.used, caught.value.reserved) == (0, 40)
    assert posts(sandbox) == 1


def test_without_a_limit_of_its_own_a_job_may_use_all_that_is_left(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    @flow
    def two() -> None:
        for _ in range(2):
            run_job(credentials, [FLIP], backend=BACKEND, budget=Budget(max_seconds_per_run=100.5))

    two()
    assert [job["cost"] for job in sandbox.control.jobs()] == [100, 60]


def test_the_jobs_own_limit_goes_first_and_one_that_fits_nowhere_is_refused(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    budget = Budget(max_seconds_per_run=100, default_max_execution_time=90)

    @flow
    def one(seconds: int) -> Any:
        return submit_job(credentials, [FLIP], backend=BACKEND, max_execution_time=seconds, budget=budget)

    one(20)
    with pytest.raises(BudgetExhausted, match=r"this one may use 101 s.*Raise max_seconds_per_run"):
        one(101)
    assert [job["cost"] for job in sandbox.control.jobs()] == [20]


def test_failed_and_cancelled_jobs_count_too(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.script_job(status="Failed", reason="broken", reason_code=1000)

    @flow
    def three() -> None:
        budget = Budget(max_seconds_per_run=100, max_jobs_per_run=3, default_max_execution_time=40)
        with pytest.raises(JobFailed):
            run_job(credentials, [FLIP], backend=BACKEND, budget=budget)
        queued = submit_job(credentials, [FLIP], backend="sandbox_paused", budget=budget)
        cancel_job(credentials, queued)  # never ran: no seconds, but one of three jobs
        run_job(credentials, [FLIP], backend=BACKEND, budget=budget)
        run_job(credentials, [FLIP], backend=BACKEND, budget=budget)

    with pytest.raises(BudgetExhausted, match="max_jobs_per_run of 3 is reached"):
        three()
    assert posts(sandbox) == 3


def test_attaching_is_free_and_the_limit_is_no_part_of_the_key(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    tries: list[int] = []

    @flow(retries=1)
    def unlucky() -> Any:
        budget = Budget(max_jobs_per_run=1, max_seconds_per_run=50, default_max_execution_time=50 - len(tries))
        job = submit_job(credentials, [FLIP], backend=BACKEND, budget=budget)
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")
        return job

    assert unlucky().attached
    assert posts(sandbox) == 1


def test_a_lost_answer_leaves_one_job_and_one_reservation(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials
) -> None:
    sandbox.control.add_fault("POST", "/jobs", drop="after")

    @flow
    def two() -> list[bool]:
        budget = Budget(max_seconds_per_run=80, default_max_execution_time=40)
        return [submit_job(credentials, [FLIP], backend=BACKEND, budget=budget).attached for _ in range(2)]

    assert two() == [True, False]
    assert len(sandbox.control.jobs()) == 2


def test_a_refused_job_gives_its_reservation_back(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    budget = Budget(max_seconds_per_run=40, default_max_execution_time=40)

    @flow
    async def refused_then_fine() -> Any:
        with pytest.raises(Exception, match="paused_forever"):
            await asubmit_job(credentials, [FLIP], backend="paused_forever", budget=budget)
        return await asubmit_job(credentials, [FLIP], backend=BACKEND, budget=budget)

    assert asyncio.run(refused_then_fine()).id  # type: ignore[arg-type]


def test_a_saved_budget_by_name_and_one_that_the_installation_imposes(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, imposed = f"own-{uuid4().hex[:6]}", f"imposed-{uuid4().hex[:6]}"
    Budget(max_seconds_per_run=80, default_max_execution_time=40, period_days=7).save(own)
    Budget(max_jobs_per_run=1).save(imposed)
    loaded: Any = Budget.load(own)
    assert (loaded.max_seconds_per_run, loaded.period_days, loaded.shown_name) == (80, 7, own)

    jobs, refused = fan_out(credentials, own, 3)
    assert (len(jobs), {error.budget for error in refused}) == (2, {own})

    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK", imposed)
    changed: Any = Budget.load(imposed)
    changed.max_jobs_per_run = 5
    for given in (None, loaded, imposed, changed):
        jobs, refused = fan_out(credentials, given, 2)
        assert len(jobs) == 1
        assert {(error.budget, error.limit) for error in refused} == {(imposed, "max_jobs_per_run")}
        if given is loaded:
            assert sandbox.control.jobs()[-1]["cost"] == 40


@pytest.mark.parametrize(
    ("budget", "imposed", "field"),
    [
        ("no-such-budget", "", "budget"),
        ("", "", "budget"),
        (5, "", "budget"),
        (None, "no-such-budget", "PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK"),
    ],
)
def test_a_budget_that_cannot_be_found_buys_nothing(
    sandbox: Sandbox,
    credentials: QuantumRuntimeCredentials,
    monkeypatch: pytest.MonkeyPatch,
    budget: Any,
    imposed: str,
    field: str,
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_BUDGET_BLOCK", imposed)

    @flow
    def one() -> None:
        submit_job(credentials, [FLIP], backend=BACKEND, budget=budget)

    with pytest.raises(InvalidInput) as caught:
        one()
    assert caught.value.field == field
    assert posts(sandbox) == 0


def test_the_refusal_is_an_event_about_the_budget(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    sandbox.control.hold()
    name = f"seen-{uuid4().hex[:6]}"
    Budget(max_seconds_per_run=50, default_max_execution_time=40).save(name)

    @flow
    def two() -> None:
        for _ in range(2):
            submit_job(credentials, [FLIP], backend=BACKEND, budget=name)

    state: Any = two(return_state=True)
    assert state.is_failed()
    *told, event = events(f"qruntime.budget.{name}", 3, last="qruntime.budget.exhausted")
    assert event["event"] == "qruntime.budget.exhausted"
    # The first job held back 40 of 50, once each.
    assert {one["event"] for one in told} == {"qruntime.budget.level"}
    assert sorted(one["payload"]["percent"] for one in told) == [50, 80]
    assert event["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{state.state_details.flow_run_id}"
    assert {key: event["payload"][key] for key in ("limit", "allowed", "reserved", "needed")} == {
        "limit": "max_seconds_per_run",
        "allowed": 50,
        "reserved": 40,
        "needed": 40,
    }


@pytest.mark.parametrize("deleted", [False, True])
def test_all_runs_of_a_deployment_share_a_budget(
    sandbox: Sandbox, credentials: QuantumRuntimeCredentials, deleted: bool
) -> None:
    budget = Budget(max_seconds_per_deployment=100, default_max_execution_time=40)

    @flow(name=f"slot-{uuid4().hex[:6]}")
    def slot() -> str:
        return str(run_job(credentials, [FLIP], backend=BACKEND, budget=budget).job_id)

    async def deployment(client: PrefectClient) -> Any:
        return await client.create_deployment(await client.create_flow(slot), name="nightly")

    first = asked(deployment)

    def run_of(deployment_id: Any) -> Any:
        run = asked(lambda client: client.create_flow_run_from_deployment(deployment_id))
        job_id = run_flow(slot, flow_run=run)
        if deleted:  # what it used stays used, also for a process that never saw it
            asked(lambda client: client.delete_flow_run(run.id))
            forget()
        return job_id

    def forget() -> None:
        book = network_loop().run(_ledger(credentials))
        book.reservations, book._deployments = [], DeploymentJobs()

    assert run_of(first)
    assert run_of(first)
    with pytest.raises(BudgetExhausted, match="max_seconds_per_deployment allows 100") as caught:
        run_of(first)
    assert (caught.value.used, caught.value.reserved) == (80, 0)
    slot()  # without a deployment, and
    other = asked(lambda client: _another(client, slot))
    assert run_of(other)  # another one, are other accounts
    assert posts(sandbox) == 4


async def _ledger(credentials: QuantumRuntimeCredentials) -> Ledger:
    return ledger(credentials.get_client().connection.crn)


async def _another(client: PrefectClient, slot: Any) -> Any:
    return await client.create_deployment(await client.create_flow(slot), name="hourly")


def test_a_saved_job_keeps_its_budget(sandbox: Sandbox, credentials: QuantumRuntimeCredentials) -> None:
    name = f"job-{uuid4().hex[:6]}"
    credentials.save(name)
    Budget(max_jobs_per_run=1, default_max_execution_time=33).save(name)
    budget: Any = Budget.load(name)
    QuantumRuntimeJob(credentials=credentials, backend=BACKEND, pubs=[FLIP], budget=budget).save(name)

    @flow
    async def twice() -> None:
        loaded: Any = await QuantumRuntimeJob.aload(name)
        await loaded.trigger()
        await loaded.trigger()

    with pytest.raises(BudgetExhausted) as caught:
        asyncio.run(twice())  # type: ignore[arg-type]
    assert (caught.value.budget, caught.value.limit) == (name, "max_jobs_per_run")
    assert [job["cost"] for job in sandbox.control.jobs()] == [33]
