"""A Prefect server for the session, a sandbox for the module, fresh for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import uuid4

import pytest
from prefect.flow_engine import BaseFlowRunEngine

from prefect_qruntime import QuantumRuntimeCredentials
from prefect_qruntime.sandbox import Sandbox


@pytest.fixture(scope="session", autouse=True)
def _no_heartbeats() -> Iterator[None]:
    """Prefect joins its heartbeat thread, which costs each sync flow a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseFlowRunEngine, "heartbeat_seconds", None)
        yield


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"queue_time": 0.05, "run_time": 0.05, "api_key": "flow-tests-key-0123456789"}


@pytest.fixture
def sandbox(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    # Stands for the default of 30 s, so that a repeated run that finds nothing does not wait long.
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_SUBMISSION_GRACE_SECONDS", "0.4")
    return sandbox


@pytest.fixture
def credentials(sandbox: Sandbox) -> QuantumRuntimeCredentials:
    # A name of its own gives each test a connection of its own: no token of the test before is used.
    return QuantumRuntimeCredentials(**sandbox.connection("cloud"), application=f"test-{uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def blocks(running_sandbox: Sandbox) -> Callable[[str], str]:
    """Saves a credentials block for a dialect, once for the module; returns its name."""

    @cache
    def saved(dialect: Any) -> str:
        name = f"flow-tests-{dialect}"
        QuantumRuntimeCredentials(**running_sandbox.connection(dialect)).save(name, overwrite=True)
        return name

    return saved


@pytest.fixture
def block(sandbox: Sandbox, blocks: Callable[[str], str], dialect: str) -> str:
    """Name of a saved credentials block in each dialect."""
    return blocks(dialect)
