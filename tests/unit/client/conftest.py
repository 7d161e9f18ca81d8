"""A client whose every request is answered in this process."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from pytest_httpx import HTTPXMock

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport.retrying import RetryDeadlines

CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
TOKEN = "tok-Zk39vQx1-not-a-real-one"
# Short pauses, so that a repeated call ends at once; patient enough for three repeats.
QUICK = RetryDeadlines(
    **dict.fromkeys(("token", "read", "wait", "fetch", "change", "submit", "open"), 0.5), first_pause=0.01
)
_numbers = itertools.count()


def connection(dialect: str = "cloud", **fields: Any) -> Connection:
    """Each with a key of its own, so that no token or socket is shared between tests."""
    return Connection(**{"api_key": f"test-key-{next(_numbers):06d}", "crn": CRN, "dialect": dialect, **fields})


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


def sent(httpx_mock: HTTPXMock, path: str = "") -> list[Any]:
    """The requests that left, IAM's aside."""
    found = [r for r in httpx_mock.get_requests() if not r.url.path.endswith("/identity/token")]
    return [r for r in found if path in r.url.path]
