"""A client whose every request is answered in this process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from tests.support.mock_client import QUICK, TOKEN, connection


@pytest.fixture(scope="module", autouse=True)
def _nobody_else_asks() -> None:
    """What tests before left running at home (late usage, waits) would take the answers prepared here."""
    network_loop().close()


@pytest.fixture
def iam(httpx_mock: HTTPXMock) -> HTTPXMock:
    """IAM knows every key."""
    httpx_mock.add_response(
        method="POST",
        url=re.compile(r".*/identity/token$"),
        json={"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"},
        is_reusable=True,
        is_optional=True,
    )
    return httpx_mock


@pytest.fixture
def connect() -> Callable[..., QuantumRuntimeClient]:
    """Make a client: `connect("legacy", patience=…, request_timeout=…)`."""

    def make(dialect: str = "cloud", *, patience: RetryDeadlines = QUICK, **fields: Any) -> QuantumRuntimeClient:
        return QuantumRuntimeClient(connection(dialect, **fields), patience=patience)

    return make
