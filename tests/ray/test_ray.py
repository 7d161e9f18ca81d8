"""`.map` on Ray as on Dask: keys, the rate limit, errors whole, results right, and each job bought once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from prefect import flow, unmapped
from prefect_ray import RayTaskRunner

import prefect_qruntime as qr
from prefect_qruntime.cli.operations import setup
from prefect_qruntime.sandbox import Sandbox
from tests.support.prefect_server import PrefectServer
from tests.system import spread

ROOT = Path(__file__).resolve().parents[2]
BLOCK = "ray"
NUMBERS = [*range(8), 1, 1]  # equal circuits are jobs of their own
SCALE = 24.0  # a minute of the service passes in two and a half seconds
PACE = {
    "PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE": "5",
    "PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PERIOD_SECONDS": str(60 / SCALE),
}
pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.1, "run_time": 0.1, "create_limit": 5, "clock_scale": SCALE}


@pytest.fixture(scope="module")
def cluster(prefect_server: PrefectServer) -> Iterator[Any]:
    """Two CPUs of this machine, for all tests: its processes take ten seconds to start."""
    env = {**PACE, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": prefect_server.url}
    env["PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS"] = "1"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": env})
    yield RayTaskRunner()
    ray.shutdown()


@pytest.fixture
def sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in PACE.items():
        monkeypatch.setenv(name, value)
    qr.QuantumRuntimeCredentials(**sandbox.connection("cloud")).save(BLOCK, overwrite=True)
    return sandbox


def statuses(sandbox: Sandbox) -> list[int]:
    return [entry["status"] for entry in sandbox.control.journal("POST", "/jobs")]


def test_mapped_at_the_service_s_pace_and_run_again(sandbox: Sandbox, cluster: Any) -> None:
    assert setup(block=[BLOCK], per_minute=5, json=True) == 0
    tries: list[list[dict[str, int]]] = []

    @flow(retries=1, task_runner=cluster)
    def fan_out() -> None:
        tries.append(spread.spread.fn(BLOCK, NUMBERS))
        if len(tries) == 1:
            raise RuntimeError("something downstream broke")

    fan_out()
    assert tries == [spread.expected(NUMBERS, 7)] * 2
    jobs = sandbox.control.jobs()
    keys = [tag for job in jobs for tag in job["tags"] if tag.startswith("qr-key:")]
    assert len(jobs) == len(set(keys)) == len(NUMBERS)
    assert statuses(sandbox) == [200] * len(NUMBERS), "nobody was refused, nothing was bought twice"


def test_an_error_arrives_whole(sandbox: Sandbox, cluster: Any) -> None:
    caught: list[BaseException] = []

    @flow(task_runner=cluster)
    def refused() -> None:
        wrong = qr.submit_job.map(
            unmapped(qr.load_credentials(BLOCK)), [[spread.circuit(3)]], backend="sandbox_nowhere"
        )
        for one in wrong:
            one.wait()
            caught.append(one.state.result(raise_on_failure=False))

    refused()
    (error,) = caught
    assert isinstance(error, qr.QuantumRuntimeError)
    assert error.status in (400, 404)
    assert error.code is not None
    assert error.trace_id
    assert "sandbox_nowhere" in str(error)
