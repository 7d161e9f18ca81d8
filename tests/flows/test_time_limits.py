"""Time limits of Prefect's on blocking waits: called, submitted, and through the flow; the job lives on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task, unmapped
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.task_worker import TaskWorker

import prefect_qruntime as qr
from prefect_qruntime.sandbox import Sandbox
from tests.support.flow_runs import BACKEND, FLIP, ran
from tests.support.prefect_calls import asked

# pytest's own limit must not take the alarm signal: Prefect would not use it either, but throw its exception into the
# main thread at any instruction, which can be one of another test's. In users' processes the alarm is free.
pytestmark = [pytest.mark.server, pytest.mark.timeout(600, method="thread")]
LIMIT = 1.5
ENOUGH_TO_BUY = 6.0
ENOUGH_TO_NEST = 4.0
LATEST = 90.0  # far above what a busy machine needs; without a limit these waits would not end at all


@pytest.fixture(autouse=True)
def held(sandbox: Sandbox) -> Iterator[None]:
    sandbox.control.hold()
    yield
    sandbox.control.release()


def limited(one: Any) -> Any:
    return one.with_options(timeout_seconds=LIMIT, retries=0)


@pytest.mark.parametrize("way", ["called", "submitted", "mapped"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_wait_ends_at_the_limit_of_its_task(sandbox: Sandbox, credentials: Any, way: str, kind: str) -> None:
    wait = limited(qr.wait_for_completion if kind == "sync" else qr.await_for_completion)

    @flow
    def waits() -> list[tuple[str, float]]:
        job = qr.submit_job(credentials, [FLIP], backend=BACKEND)
        began = time.monotonic()
        if way == "called":
            state = wait(credentials, job, return_state=True)
            states = [asyncio.run(state) if asyncio.iscoroutine(state) else state]
        elif way == "submitted":
            future = wait.submit(credentials, job)
            future.wait()
            states = [future.state]
        else:
            futures = wait.map(unmapped(credentials), [job] * 3)
            futures.wait()
            states = [future.state for future in futures]
        return [(state.name, time.monotonic() - began) for state in states]

    ended = waits()
    assert {name for name, _ in ended} == {"TimedOut"}
    assert all(LIMIT - 0.2 < seconds < LATEST for _, seconds in ended), ended
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


@flow
def bought(credentials: Any) -> Any:
    """A job that a later flow run waits for: how long a purchase takes is no matter of these limits."""
    return qr.submit_job(credentials, [FLIP], backend=BACKEND)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_flow_with_a_submitted_wait_ends_at_its_limit(sandbox: Sandbox, credentials: Any, kind: str) -> None:
    job = bought(credentials)

    @flow(timeout_seconds=LIMIT)
    def sync_flow() -> None:
        qr.wait_for_completion.submit(credentials, job).result()

    @flow(timeout_seconds=LIMIT)
    async def async_flow() -> None:
        waiting = qr.await_for_completion.submit(credentials, job)
        while not waiting.state.is_final():  # noqa: ASYNC110 - Prefect's future has nothing to await
            await asyncio.sleep(0.05)

    began = time.monotonic()
    _, state = ran(sync_flow if kind == "sync" else async_flow)
    assert state.name == "TimedOut"
    assert time.monotonic() - began < LATEST
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


def test_a_flow_ends_at_its_limit_while_submitted_purchases_wait_for_their_turn(
    sandbox: Sandbox, credentials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "1")

    @flow(timeout_seconds=LIMIT, task_runner=ThreadPoolTaskRunner(max_workers=4))
    def buys_too_much() -> None:
        for future in [qr.submit_job.submit(credentials, [FLIP], backend=BACKEND) for _ in range(4)]:
            future.result()

    began = time.monotonic()
    _, state = ran(buys_too_much)
    assert state.name == "TimedOut"
    assert time.monotonic() - began < LATEST
    assert len(sandbox.control.jobs()) <= 1


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_session_of_a_flow_that_reached_its_limit_is_drained(sandbox: Sandbox, credentials: Any, kind: str) -> None:
    @flow(timeout_seconds=ENOUGH_TO_BUY)
    def sync_flow() -> None:
        with qr.runtime_session(credentials, BACKEND, max_ttl=300) as session:
            qr.run_job(credentials, [FLIP], backend=BACKEND, session=session)

    @flow(timeout_seconds=ENOUGH_TO_BUY)
    async def async_flow() -> None:
        async with qr.aruntime_session(credentials, BACKEND, max_ttl=300) as session:
            await qr.arun_job(credentials, [FLIP], backend=BACKEND, session=session)

    _, state = ran(sync_flow if kind == "sync" else async_flow)
    assert state.name == "TimedOut"
    (session,) = sandbox.control.sessions()
    assert session["accepting_jobs"] is False
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_submitted_wait_ends_at_the_limit_of_a_flow_around_its_subflow(
    sandbox: Sandbox, credentials: Any, kind: str, depth: int
) -> None:
    job = bought(credentials)

    @flow
    def sync_flow() -> None:
        qr.wait_for_completion.submit(credentials, job).result()

    @flow
    async def async_flow() -> None:
        waiting = qr.await_for_completion.submit(credentials, job)
        while not waiting.state.is_final():  # noqa: ASYNC110 - Prefect's future has nothing to await
            await asyncio.sleep(0.05)

    def around(inner: Any, **options: Any) -> Any:
        @flow(**options)
        def sync_outer() -> None:
            inner()

        @flow(**options)
        async def async_outer() -> None:
            await inner()

        return sync_outer if kind == "sync" else async_outer

    nested: Any = sync_flow if kind == "sync" else async_flow
    for _ in range(depth - 1):
        nested = around(nested)
    began = time.monotonic()
    _, state = ran(around(nested, timeout_seconds=ENOUGH_TO_NEST))
    assert state.name == "TimedOut"
    assert time.monotonic() - began < LATEST
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_submitted_wait_ends_at_the_limit_of_a_task_of_the_users_own_around_it(
    sandbox: Sandbox, credentials: Any, kind: str, depth: int
) -> None:
    job = bought(credentials)

    @task
    def sync_task() -> None:
        qr.wait_for_completion.submit(credentials, job).result()

    @task
    async def async_task() -> None:
        waiting = qr.await_for_completion.submit(credentials, job)
        while not waiting.state.is_final():  # noqa: ASYNC110 - Prefect's future has nothing to await
            await asyncio.sleep(0.05)

    def around(inner: Any, make: Any, **options: Any) -> Any:
        @make(**options)
        def sync_outer() -> None:
            inner()

        @make(**options)
        async def async_outer() -> None:
            await inner()

        return sync_outer if kind == "sync" else async_outer

    nested: Any = sync_task if kind == "sync" else async_task
    if depth == 1:
        nested = nested.with_options(timeout_seconds=ENOUGH_TO_NEST)
    else:
        nested = around(nested, task, timeout_seconds=ENOUGH_TO_NEST)
    began = time.monotonic()
    _, state = ran(around(nested, flow))
    assert state.is_failed()
    assert time.monotonic() - began < LATEST
    assert [job["status"] for job in sandbox.control.jobs()] == ["Queued"]


def test_a_wait_that_a_task_left_behind_does_not_end_at_that_tasks_limit(sandbox: Sandbox, credentials: Any) -> None:
    job = bought(credentials)

    @flow
    def collects() -> str:
        futures: list[Any] = []

        @task(timeout_seconds=LIMIT)
        def starts() -> None:
            wait = qr.wait_for_completion.with_options(retries=0)
            futures.append(wait.submit(credentials, job, timeout=3 * LIMIT))

        starts()
        futures[0].wait()
        return str(futures[0].state.name)

    assert collects() == "Failed", "its own timeout, not the limit of the task that is over"


@pytest.mark.parametrize("way", ["called", "submitted"])
@pytest.mark.parametrize("scheduled_in", ["flow", "task"])
def test_a_deferred_wait_ends_at_no_limit_of_the_run_that_deferred_it(
    sandbox: Sandbox, credentials: Any, way: str, scheduled_in: str
) -> None:
    job, deferred, ended = bought(credentials).id, list[UUID](), list[str]()
    credentials.save("deferred-waits", overwrite=True)

    @task
    def later(job: str) -> None:  # with a parameter, as Prefect stores the runs around it beside that only
        block = qr.load_credentials("deferred-waits")
        wait = qr.wait_for_completion.with_options(retries=0)
        try:
            if way == "called":
                wait(block, job, timeout=ENOUGH_TO_NEST + LIMIT)
            else:
                wait.submit(block, job, timeout=ENOUGH_TO_NEST + LIMIT).result()
        except Exception as error:
            ended.append(type(error).__name__)

    @task(timeout_seconds=ENOUGH_TO_NEST)
    def defers() -> None:
        deferred.append(later.delay(job).task_run_id)

    @flow(timeout_seconds=ENOUGH_TO_NEST)
    def parent() -> None:
        (defers if scheduled_in == "task" else defers.fn)()

    async def work() -> None:
        await TaskWorker(later).execute_task_run(task_run)

    ran(parent)
    (task_run_id,) = deferred
    task_run = asked(lambda client: client.read_task_run(task_run_id))
    asyncio.run(work())
    assert ended == ["JobTimeout"]
