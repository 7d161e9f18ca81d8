"""A sandbox per module, reset for each test, and a client of it; every test runs in both dialects."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.sandbox import Sandbox
from tests.support.scenario import QUICK, World


@pytest.fixture(scope="module")
def sandbox_options() -> dict[str, Any]:
    return {"physics": False, "queue_time": 0.02, "run_time": 0.02, "websocket": "both"}


@pytest.fixture
def world(sandbox: Sandbox, dialect: str) -> World:
    connection = Connection(**sandbox.connection(dialect))
    client = QuantumRuntimeClient(connection, patience=QUICK)
    return World(client, sandbox, dialect)
