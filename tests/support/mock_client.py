"""Connections and retry deadlines for clients whose requests `pytest_httpx` answers."""

from __future__ import annotations

import itertools
from typing import Any

from pytest_httpx import HTTPXMock

from prefect_qruntime.client.connection import Connection
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


def sent(httpx_mock: HTTPXMock, path: str = "") -> list[Any]:
    """The requests that left, IAM's aside."""
    found = [r for r in httpx_mock.get_requests() if not r.url.path.endswith("/identity/token")]
    return [r for r in found if path in r.url.path]
