"""Answers that a server gives before it has the whole of a large body, whatever it does with the connection then."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import AuthenticationError, InvalidInput, QuantumRuntimeError, ServiceUnavailable
from tests.support.loopback import Authority, passing_on, request_head, serving, tunnelling
from tests.support.mock_client import TOKEN, connection

# Larger than the buffers between two processes, so that it is not sent as a whole.
LARGE = make_spec([f"OPENQASM 3.0; // {'x' * 8_000_000}\nqubit q; bit[1] c; c[0] = measure q;"], backend="b")
ONCE = RetryDeadlines(**dict.fromkeys(("token", "read", "wait", "fetch", "change", "submit", "open"), 0.01))
CREATED = b'{"id": "d1", "backend": "b"}'
REFUSED = b'{"errors": [{"code": 1206, "message": "too much"}], "trace": "t"}'
AFTER = ("reset", "close", "stall", "drain")
OUTCOMES: dict[str, type[QuantumRuntimeError] | None] = {
    "413 Payload Too Large": InvalidInput,
    "401 Unauthorized": AuthenticationError,
    "503 Service Unavailable": ServiceUnavailable,
    "100 Continue\r\n\r\nHTTP/1.1 413 Payload Too Large": InvalidInput,
    "201 Created": None,
}
# A success does not end the sending, so that one is not read before a limit of time if the server stalls.
CASES = [(status, after) for status in OUTCOMES for after in AFTER if OUTCOMES[status] or after != "stall"]


def answer(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


class Hasty:
    """Answers creates by their headers."""

    def __init__(self, status: str, after: str) -> None:
        self.status, self.after, self.posts = status, after, 0
        self.refusals = 1_000

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                asked, size = await request_head(reader)
                if "/identity/" in asked:
                    await reader.readexactly(size)
                    token = b'{"access_token": "%s-%d", "expires_in": 3600}' % (TOKEN.encode(), self.posts)
                    writer.write(answer("200 OK", token))
                    continue
                self.posts += 1
                if self.posts > self.refusals:
                    await reader.readexactly(size)
                    writer.write(answer("201 Created", CREATED))
                    continue
                writer.write(answer(self.status, CREATED if self.status.startswith("2") else REFUSED))
                await writer.drain()
                await self.go_on(reader, writer, size)
        writer.close()

    async def go_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> None:
        if self.after in ("reset", "close"):
            # In the middle of the body, when the client has had the time to read the answer.
            await reader.readexactly(100_000)
            await asyncio.sleep(0.5)
        match self.after:
            case "reset":
                if (raw := writer.get_extra_info("socket")) is not None:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                raise ConnectionResetError
            case "close":
                raise ConnectionResetError
            case "stall":
                await asyncio.Event().wait()
            case _:
                await reader.readexactly(size)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(("status", "after"), CASES, ids=lambda word: word.replace("\r\n", "|"))
def test_an_early_answer_is_read_though_the_body_cannot_be_sent(
    tmp_path: Path, status: str, after: str, tls: bool
) -> None:
    there: dict[str, Any] = {}
    context = None
    if tls:
        authority = Authority.make("Early CA")
        context, _ = authority.tls(tmp_path, "127.0.0.1")
        there["ca_file"] = authority.write(tmp_path)
    service = Hasty(status, after)
    with serving(service.handle, context) as port:
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        # The limit only ends a test that hangs.
        client = QuantumRuntimeClient(
            connection(base_url=f"{url}/api/v1", iam_url=url, request_timeout=60.0, **there), patience=ONCE
        )
        wanted = OUTCOMES[status]
        if wanted is None:
            assert client.run(client.post_job(LARGE, (), None)).id == "d1"
        else:
            with pytest.raises(wanted, match="too much"):
                client.run(client.post_job(LARGE, (), None))
        assert service.posts == (2 if wanted is AuthenticationError else 1)


@pytest.mark.parametrize("proxy", ["http", "socks5"])
def test_after_a_refusal_the_next_attempt_gets_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    authority = Authority.make("Early CA")
    context, _ = authority.tls(tmp_path, "service.test")
    service = Hasty("401 Unauthorized", "reset")
    service.refusals = 1

    async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        length = (await reader.readexactly(5))[4]
        port = int.from_bytes((await reader.readexactly(length + 2))[-2:])
        writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
        await passing_on(port)(reader, writer)

    with serving(service.handle, context) as port, serving(tunnelling if proxy == "http" else socks) as proxy_port:
        monkeypatch.setenv("ALL_PROXY", f"{proxy}://127.0.0.1:{proxy_port}")
        url = f"https://service.test:{port}"
        there = connection(
            base_url=f"{url}/api/v1", iam_url=url, request_timeout=60.0, ca_file=authority.write(tmp_path)
        )
        client = QuantumRuntimeClient(there, patience=ONCE)
        assert client.run(client.post_job(LARGE, (), None)).id == "d1"
        assert service.posts == 2


@pytest.mark.parametrize("behind", ["the token", "an early success"])
def test_no_answer_that_was_left_over_is_taken_for_that_of_a_large_create(behind: str) -> None:
    stray = answer("201 Created", b'{"id": "stray", "backend": "b", "x": "%s"}' % (b"x" * 70_000))
    posts = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal posts
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                asked, size = await request_head(reader)
                if "/identity/" in asked:
                    await reader.readexactly(size)
                    token = answer("200 OK", b'{"access_token": "%s", "expires_in": 3600}' % TOKEN.encode())
                    # Short enough to be read together with the token.
                    writer.write(token + answer("201 Created", CREATED) if behind == "the token" else token)
                    continue
                posts += 1
                if behind != "the token" and posts == 1:
                    writer.write(answer("201 Created", CREATED) + stray)
                    await reader.readexactly(size)
                    continue
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await reader.readexactly(size)
                writer.write(answer("201 Created", b'{"id": "d2", "backend": "b"}'))
        writer.close()

    with serving(handle) as port:
        url = f"http://127.0.0.1:{port}"
        client = QuantumRuntimeClient(
            connection(base_url=f"{url}/api/v1", iam_url=url, request_timeout=60.0), patience=ONCE
        )
        if behind == "the token":
            # On a busy machine the service's own 201 may be heard while the last piece is sent: then it was accepted.
            with pytest.raises(ServiceUnavailable, match=r"came before the request|it was accepted"):
                client.run(client.post_job(LARGE, (), None))
            assert posts == 1
        else:
            assert client.run(client.post_job(LARGE, (), None)).id == "d1"
            assert client.run(client.post_job(LARGE, (), None)).id == "d2"
