"""A SOCKS proxy of the environment that never answers takes no connection from the calls after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.transport import http
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import ServiceUnavailable
from tests.support.loopback import serving
from tests.support.mock_client import connection

ONCE = RetryDeadlines(**dict.fromkeys(("token", "read", "wait", "fetch", "change", "submit", "open"), 0.01))
CALLS = 2 * http._CONNECTIONS
GREETED = b"\x05\x00"  # version 5, no name and password wanted
REACHED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"  # the host is reached; its address and port


@pytest.mark.parametrize("says", [(), (GREETED,), (GREETED, REACHED)], ids=["nothing", "greeting", "no TLS"])
@pytest.mark.parametrize("cancels", [False, True], ids=["timeout", "cancelled"])
def test_a_silent_proxy_uses_up_no_connections(
    monkeypatch: pytest.MonkeyPatch, says: tuple[bytes, ...], cancels: bool
) -> None:
    opened: list[bool] = []
    asked = itertools.count()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(True)
        next(asked)
        with contextlib.suppress(OSError):
            for piece in says:
                await reader.read(4096)
                writer.write(piece)
            while await reader.read(4096):
                pass
        opened.pop()
        writer.close()

    async def given_up(client: QuantumRuntimeClient) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.versions()

    with serving(handle) as port:
        monkeypatch.setenv("ALL_PROXY", f"socks5://127.0.0.1:{port}")
        client = QuantumRuntimeClient(connection(request_timeout=2 if cancels else 0.2), patience=ONCE)
        if cancels:
            for _ in range(CALLS):
                client.run(given_up(client))
        for _ in range(1 if cancels else CALLS):
            with pytest.raises(ServiceUnavailable) as caught:
                client.run(client.versions())
            assert "PoolTimeout" not in str(caught.value)
        assert cancels or next(asked) >= CALLS, "calls that did not reach the proxy"
        end = time.monotonic() + 60
        while opened and time.monotonic() < end:
            time.sleep(0.05)
    assert not opened, "connections that nobody uses stay open"
