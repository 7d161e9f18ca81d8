"""The tasks on threads, on processes, on a Dask cluster and on two workers: right results, each job bought once.

`QRUNTIME_MAP_SIZE=200` maps over that many circuits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

import prefect_qruntime as qr
from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_server import PrefectServer
from tests.support.work_pool import Site
from tests.system import spread

SIZE = int(os.environ.get("QRUNTIME_MAP_SIZE", "12"))
BLOCK = "system"
NUMBERS = [number % 251 for number in range(SIZE - 2)] + [1, 1]  # equal circuits are jobs of their own
pytestmark = [pytest.mark.server, pytest.mark.timeout(900 + 10 * SIZE)]


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.1, "run_time": 0.1, "api_key": "spread-tests-key-0123456789"}


@pytest.fixture
def sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "1")
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    return sandbox


def runner_of(name: str) -> TaskRunner[Any]:
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=8)
    if name == "processes":
        return ProcessPoolTaskRunner(max_workers=2)
    prefect_dask = pytest.importorskip("prefect_dask")
    cluster = {"n_workers": 2, "threads_per_worker": 4, "processes": True, "dashboard_address": None}
    return prefect_dask.DaskTaskRunner(cluster_kwargs=cluster)


def bought(sandbox: Sandbox) -> int:
    return sum(entry["status"] in (200, 201) for entry in sandbox.control.journal("POST", "/jobs"))


def test_a_lost_dask_worker_buys_and_opens_nothing_again(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Dask runs the tasks once more whose results were on the worker, and does not tell Prefect.
    flow_on_dask = spread.spread_and_lose.with_options(task_runner=runner_of("dask"))
    assert flow_on_dask(BLOCK, NUMBERS, str(tmp_path / "killed")) == spread.expected(NUMBERS, 7)
    assert (tmp_path / "killed").exists()
    (lost,) = [one.getMessage() for one in caplog.records if "lose already computed" in one.getMessage()]
    assert "submit_job" in lost, "no submission was run again"
    assert "open_session" in lost, "no session was opened again"
    assert bought(sandbox) == len(sandbox.control.jobs()) == SIZE
    assert len(sandbox.control.sessions()) == 4
    assert sandbox.control.open_sessions() == []


@pytest.mark.parametrize("runner", ["threads", "processes", "dask"])
def test_mapped_over_many_circuits_and_run_again(sandbox: Sandbox, runner: str) -> None:
    tries: list[list[dict[str, int]]] = []
    errors: list[BaseException] = []

    @flow(retries=1, task_runner=runner_of(runner))
    def fan_out() -> None:
        credentials = qr.load_credentials(BLOCK)
        wrong = qr.submit_job.submit(credentials, [spread.circuit(3)], backend="sandbox_nowhere")
        tries.append(spread.spread.fn(BLOCK, NUMBERS))
        wrong.wait()
        errors.append(wrong.state.result(raise_on_failure=False))
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")

    fan_out()
    assert tries == [spread.expected(NUMBERS, 7)] * 2
    assert bought(sandbox) == len(sandbox.control.jobs()) == SIZE
    for error in errors:  # from another process, with all its fields
        assert isinstance(error, qr.QuantumRuntimeError)
        assert error.code is not None
        assert error.trace_id
        assert error.status == 400 or error.status == 404
        assert "sandbox_nowhere" in str(error)


def test_two_workers_at_once_share_a_slot(prefect_server: PrefectServer, sandbox: Sandbox) -> None:
    sites = [Site(prefect_server, sandbox) for _ in range(2)]
    numbers = NUMBERS[: max(2, SIZE // 4)]
    sandbox.control.hold()
    try:
        for number, site in enumerate(sites):
            site.start_worker(name=f"worker-{number}", limit=1)
        runs = [sites[0].run(spread.spread, numbers=numbers, key="slot/2026-11-23T03:00") for _ in range(2)]
        for run in runs:  # no job ends before both run, however long the Prefect server stands still
            sites[0].reaches(run, "Running", 120)
        sandbox.control.release()
        for run in runs:
            sites[0].reaches(run, "Completed", 120 + 5 * SIZE)
    finally:
        for site in sites:
            site.stop_worker()
    assert bought(sandbox) == len(sandbox.control.jobs()) == len(numbers)
    # Each worker takes one run at a time, so runs that overlap were on both.
    first, second = (sites[0].flow_run(run) for run in runs)
    assert first.start_time is not None
    assert second.start_time is not None
    assert first.end_time is not None
    assert second.end_time is not None
    assert max(first.start_time, second.start_time) < min(first.end_time, second.end_time)
    wanted = f"{spread.expected(numbers, 7)}"
    for run in runs:
        sites[0].tells(run, wanted)
