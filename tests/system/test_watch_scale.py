"""Many suspended flow runs, one watcher; killed halfway, two others take over.

The flow runs are put into their state through Prefect's API, with the notes that `suspend_until_done` writes: as many
real processes would measure this machine. What a worker does with a resumed run is done by the test.
`QRUNTIME_WATCH_RUNS=500 QRUNTIME_WATCH_SECONDS=300` is the long run; see what it prints with `-s`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Running, Suspended
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from prefect_qruntime import QuantumRuntimeClient, QuantumRuntimeCredentials
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission_keys import flow_tag
from prefect_qruntime.observability.artifacts import Place
from prefect_qruntime.prefect_api import api
from prefect_qruntime.sandbox import Sandbox
from prefect_qruntime.suspend.waits import note_suspended, notes, pause_key
from prefect_qruntime.suspend.watcher import run_watch
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import until
from tests.system.nightly import BACKEND, CIRCUIT
from tests.system.test_suspend import Subscription

RUNS = int(os.environ.get("QRUNTIME_WATCH_RUNS", "12"))
SECONDS = float(os.environ.get("QRUNTIME_WATCH_SECONDS", "0"))
PATIENCE = 150 + RUNS / 2 + SECONDS  # a claim of the killed watcher holds for a minute
BLOCK = "watch-scale"
pytestmark = [pytest.mark.server, pytest.mark.timeout(120 + 10 * PATIENCE)]
T = TypeVar("T")
R = TypeVar("R")


@flow(name="scale")
def scale() -> None: ...


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.0, "run_time": 0.0, "api_key": "scale-tests-key-0123456789"}


async def each(items: list[T], work: Callable[[T], Awaitable[R]]) -> list[R]:
    """Do something for all, four at a time; Prefect on SQLite answers 503 when it is asked for too much."""
    gate = asyncio.Semaphore(4)
    patient = retry(
        retry=retry_if_exception_type(PrefectHTTPStatusError),
        stop=stop_after_attempt(20),
        wait=wait_fixed(2),
        reraise=True,
    )

    async def one(item: T) -> R:
        async with gate:
            return await patient(work)(item)

    return list(await asyncio.gather(*(one(item) for item in items)))


async def park(client: QuantumRuntimeClient, deployment: UUID) -> tuple[UUID, str]:
    """A flow run, suspended for a job as `suspend_until_done` does it."""
    prefect = await api()
    flow_run = await prefect.create_flow_run_from_deployment(deployment)
    ref = await client.post_job(make_spec([CIRCUIT], backend=BACKEND), (flow_tag(str(flow_run.id)),), None)
    await prefect.set_flow_run_state(flow_run.id, Running())
    key = pause_key(ref.id)
    place = Place(BLOCK, client.connection.instance)
    await note_suspended(ref.id, place, flow_run_id=flow_run.id, key=key, policy="cancel")
    await prefect.set_flow_run_state(flow_run.id, Suspended(pause_key=key))
    return flow_run.id, ref.id


async def work_off(deployment: UUID) -> int:
    """What a worker does with the runs that were resumed; returns how many."""
    prefect = await api()
    resumed = await prefect.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Resuming"]))),
        limit=200,
    )

    async def run(flow_run_id: UUID) -> None:
        await prefect.set_flow_run_state(flow_run_id, Running())
        await prefect.set_flow_run_state(flow_run_id, Completed())

    await each([flow_run.id for flow_run in resumed], run)
    return len(resumed)


class Meter:
    """What a watcher costs from now on."""

    def __init__(self, watch: Subscription) -> None:
        self.process = psutil.Process(watch.process.pid)
        self.began, self.cpu = time.monotonic(), sum(self.process.cpu_times()[:2])

    def __str__(self) -> str:
        wall, used = time.monotonic() - self.began, sum(self.process.cpu_times()[:2]) - self.cpu
        return f"{used:.1f} s CPU in {wall:.0f} s ({used / wall:.1%} of a core), RSS {self.megabytes():.0f} MB"

    def share(self) -> float:
        """CPU seconds in a second."""
        return (sum(self.process.cpu_times()[:2]) - self.cpu) / (time.monotonic() - self.began)

    def megabytes(self) -> float:
        return float(self.process.memory_info().rss) / 1e6


async def histories(parked: list[tuple[UUID, str]]) -> list[list[str | None]]:
    """The states that each flow run went through."""
    prefect = await api()

    async def read(one: tuple[UUID, str]) -> list[str | None]:
        return [state.name for state in await prefect.read_flow_run_states(one[0])]

    return await each(parked, read)


def test_one_watcher_for_many_killed_halfway(prefect_server: PrefectServer, sandbox: Sandbox) -> None:
    sandbox.control.hold()
    credentials = QuantumRuntimeCredentials(**sandbox.connection("cloud"))
    credentials.save(BLOCK, overwrite=True)
    client = credentials.get_client()

    async def prepare() -> tuple[UUID, list[tuple[UUID, str]]]:
        prefect = await api()
        deployment = await prefect.create_deployment(await prefect.create_flow(scale), "scale")
        return deployment, await each([deployment] * RUNS, lambda found: park(client, found))

    deployment, parked = network_loop().run(prepare())
    waiting = [job for _, job in parked]
    resumed = 0

    def go_on(*, jobs_left: int, enough: int) -> None:
        """End jobs little by little and work off the resumed runs, until there were enough of them."""
        nonlocal resumed
        end = time.monotonic() + PATIENCE
        while resumed < enough:
            assert time.monotonic() < end, f"only {resumed} resumed"
            for _ in range(min(max(1, RUNS // 40), len(waiting) - jobs_left)):
                sandbox.control.finish(waiting.pop())
            time.sleep(max(0.1, SECONDS / 40))
            resumed += network_loop().run(work_off(deployment))

    with ExitStack() as stack:

        def start() -> Subscription:
            watch = Subscription(prefect_server, "--block", BLOCK)
            stack.callback(watch.stop)
            return watch

        first = start()
        until(lambda: first.log.read_text().count("Watching job") == RUNS, PATIENCE, "all followed")
        sandbox.control.clear_journal()
        meter = Meter(first)
        time.sleep(max(SECONDS / 4, 30 if RUNS >= 200 else 0))
        print(f"\n{RUNS} suspended, nothing happens: {meter}, {len(sandbox.control.journal())} requests")
        if RUNS >= 200:  # fewer say nothing about the promise
            assert meter.share() <= 0.1
        meter = Meter(first)
        go_on(jobs_left=RUNS // 2, enough=RUNS // 4)
        print(f"{resumed} resumed: {meter}, {len(sandbox.control.journal())} requests")
        assert meter.megabytes() < 300
        first.process.kill()  # while it ends waits
        first.process.wait()

        meters = [Meter(watch) for watch in (start(), start())]
        go_on(jobs_left=0, enough=RUNS)
        print(f"the other {RUNS - RUNS // 4} by two at once, their start included: {meters[0]}; {meters[1]}")
        assert max(meter.megabytes() for meter in meters) < 300

    once = ["Scheduled", "Running", "Suspended", "Resuming", "Running", "Completed"]
    assert network_loop().run(histories(parked)) == [once] * RUNS
    # The next one that looks drops the notes of flow runs that are over.
    run_watch([BLOCK], once=True)
    assert network_loop().run(notes(flow_run_ids=[flow_run_id for flow_run_id, _ in parked[:100]])) == []
