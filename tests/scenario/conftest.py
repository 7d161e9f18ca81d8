"""A sandbox per module, reset for each test, and a client of it; every test runs in both dialects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.sandbox import Sandbox
from tests.support.scenario import QUICK, World, forget_submissions


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox(physics=False, queue_time=0.02, run_time=0.02, websocket="both") as sandbox:
        yield sandbox


@pytest.fixture(params=["cloud", "legacy"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(running: Sandbox, dialect: str) -> World:
    running.reset()
    connection = Connection(**running.connection(dialect))
    client = QuantumRuntimeClient(connection, patience=QUICK)
    client.run(forget_submissions())
    return World(client, running, dialect)
