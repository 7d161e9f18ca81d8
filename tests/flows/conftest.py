"""A Prefect server for the session, a sandbox for the module, fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from prefect.flow_engine import BaseFlowRunEngine

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.client.home import home
from prefect_qruntime.client.submission import submission_memory
from prefect_qruntime.sandbox import Sandbox
from tests.prefect_server import PrefectServer


@pytest.fixture(scope="session", autouse=True)
def _no_heartbeats() -> Iterator[None]:
    """Prefect joins its heartbeat thread, which costs each sync flow a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)
        yield


@pytest.fixture(scope="module")
def running_sandbox(prefect_server: PrefectServer) -> Iterator[Sandbox]:
    with Sandbox(queue_time=0.05, run_time=0.05, api_key="flow-tests-key-0123456789") as running:
        running.warm_up()
        yield running


@pytest.fixture
def sandbox(running_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    # Stands for the default of 30 s, so that a repeated run that finds nothing does not wait long.
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.4")
    running_sandbox.reset()
    home().run(forget_submissions())
    return running_sandbox


async def forget_submissions() -> None:
    submission_memory().forget()


@pytest.fixture(params=["cloud", "legacy"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def credentials(sandbox: Sandbox) -> QuantumRuntimeCredentials:
    # A name of its own gives each test a connection of its own: no token of the test before is used.
    return QuantumRuntimeCredentials(**sandbox.connection("cloud"), application=f"test-{uuid4().hex[:8]}")


@pytest.fixture
def block(sandbox: Sandbox, dialect: str) -> str:
    """Name of a saved credentials block in each dialect."""
    name = f"flow-tests-{dialect}"
    QuantumRuntimeCredentials(**sandbox.connection(dialect)).save(name, overwrite=True)
    return name


def posts(sandbox: Sandbox) -> int:
    """How many `POST /jobs` the service handled; a 401 for a token of the test before is none."""
    return sum(entry["path"] == "/jobs" and entry["status"] != 401 for entry in sandbox.control.journal("POST"))
