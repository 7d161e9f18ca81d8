"""The job websocket as a hint: every way it can end, against a server of our own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http
import itertools
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.utils import accept_key

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.transport.http import tls_context
from prefect_qruntime.client.waiting.subscription import JobStream, StreamSettings, _Socket
from prefect_qruntime.errors import ServiceUnavailable
from tests.support.loopback import Authority, tunnelling
from tests.support.mock_client import connection

ACK = "Listening to results for job: d1\n"
QUICK = StreamSettings(open_timeout=2.0, ping_interval=0.1, ping_timeout=0.2, first_pause=0.01, longest_pause=0.05)
Talk = Callable[[ServerConnection], Awaitable[None]]


class Tokens:
    def __init__(self) -> None:
        self.discarded: list[str] = []

    def discard(self, value: str) -> None:
        self.discarded.append(value)


@dataclass
class Transport:
    """Gives another token at each connect."""

    connection: Connection
    tokens: Tokens = field(default_factory=Tokens)
    given: int = 0
    trouble: int = 0
    tls: ssl.SSLContext | None = None

    async def auth_headers(self) -> dict[str, str]:
        if self.trouble:
            self.trouble -= 1
            raise ServiceUnavailable("no token")
        self.given += 1
        return {"Accept": "application/json", "Authorization": f"Bearer token-{self.given}", "Service-CRN": "crn"}


@dataclass
class Server:
    """What a test sees of its server and its stream."""

    stream: JobStream
    transport: Transport
    requests: list[Request]
    wakes: list[bool]

    @property
    def tokens(self) -> list[str]:
        return [request.headers["Authorization"] for request in self.requests]


@asynccontextmanager
async def serving(
    *talks: Talk,
    refuse: Callable[[int], Response | None] = lambda number: None,
    settings: StreamSettings = QUICK,
    **options: Any,
) -> AsyncIterator[Server]:
    """A server whose n-th connection is handled by the n-th of `talks` (the last one again)."""
    requests: list[Request] = []
    wakes: list[bool] = []
    talked = iter(range(10**6))

    async def handler(socket: ServerConnection) -> None:
        await talks[min(next(talked), len(talks) - 1)](socket)

    def gate(socket: ServerConnection, request: Request) -> Response | None:
        requests.append(request)
        return refuse(len(requests))

    async with serve(handler, "127.0.0.1", 0, process_request=gate, **options) as server:
        port = server.sockets[0].getsockname()[1]
        transport = Transport(connection("legacy", base_url=f"http://127.0.0.1:{port}"))
        stream: JobStream
        stream = JobStream(
            transport,  # type: ignore[arg-type]
            "/stream/jobs/d1",
            lambda: wakes.append(stream.connected),
            settings=settings,
        )
        yield Server(stream, transport, requests, wakes)


def says(*messages: str | bytes, code: int = 1000) -> Talk:
    async def talk(socket: ServerConnection) -> None:
        for message in messages:
            await socket.send(message)
        await socket.close(code)

    return talk


def status(code: int, **headers: str) -> Response:
    return Response(code, http.HTTPStatus(code).phrase, Headers(Content_Length="0", **headers), b"")


async def test_an_acknowledgement_alone_wakes_nobody_until_the_close() -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(ACK)
        await asyncio.sleep(0.2)
        await socket.close(1000)

    async with serving(talk) as seen:
        following = asyncio.create_task(seen.stream.follow())
        await asyncio.sleep(0.1)
        assert (seen.wakes, seen.stream.connected) == ([], True)
        assert await following == "done"
        assert (seen.wakes, seen.stream.connected) == ([False], False)


async def test_the_result_wakes() -> None:
    async with serving(says(ACK, '{"interim":1}', '{"results":[]}')) as seen:
        assert await seen.stream.follow() == "done"
        assert len(seen.wakes) == 3
    request = seen.requests[0]
    assert request.path == "/stream/jobs/d1"
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.headers["Service-CRN"] == "crn"


async def test_a_finished_job_has_one_message_and_wakes() -> None:
    async with serving(says("Job is not running. Job status is 'Completed', reason is ''.")) as seen:
        assert await seen.stream.follow() == "done"
        assert seen.wakes == [False]


@pytest.mark.parametrize("code", [1000, 4002, 4003])
async def test_closes_that_mean_the_end(code: int) -> None:
    async with serving(says(ACK, code=code)) as seen:
        assert await seen.stream.follow() == "done"
        assert len(seen.requests) == 1


@pytest.mark.parametrize("code", [1001, 1011, 1012, 4001])
async def test_other_closes_lead_to_another_connect_with_a_token_of_that_moment(code: int) -> None:
    async with serving(says(ACK, code=code), says(ACK, code=code), says(ACK, "{}")) as seen:
        assert await seen.stream.follow() == "done"
        assert seen.tokens == ["Bearer token-1", "Bearer token-2", "Bearer token-3"]
        assert len(seen.wakes) >= 3  # each disconnect is a reason to look


async def test_a_connection_that_is_cut_leads_to_another() -> None:
    async def cut(socket: ServerConnection) -> None:
        await socket.send(ACK)
        socket.transport.abort()

    async with serving(cut, says(ACK)) as seen:
        assert await seen.stream.follow() == "done"
        assert len(seen.requests) == 2


async def test_too_many_broken_connections_are_given_up() -> None:
    async with serving(says(ACK, code=1011)) as seen:
        assert await seen.stream.follow() == "given-up"
        assert len(seen.requests) == 1 + QUICK.reconnects


async def test_messages_of_a_connection_that_lasts_give_new_courage() -> None:
    async with serving(
        *[says(ACK, "{}", code=1011)] * 12, says(ACK), settings=dataclasses.replace(QUICK, lasting=0.0)
    ) as seen:
        assert await seen.stream.follow() == "done"
        assert len(seen.requests) == 13


@pytest.mark.parametrize("code", [1001, 1006, 1011, 3000, 4001, 4999])
async def test_connections_that_break_after_a_message_each_are_given_up(code: int) -> None:
    async def talk(socket: ServerConnection) -> None:
        await socket.send(ACK)
        await socket.send("{}")
        if code == 1006:
            socket.transport.abort()
        await socket.close(code)

    async with serving(talk) as seen:
        assert await seen.stream.follow() == "given-up"
        assert len(seen.requests) == 1 + QUICK.reconnects


async def test_silence_is_found_out_by_pings() -> None:
    async def silent(socket: ServerConnection) -> None:
        await socket.send(ACK)
        socket.transport.pause_reading()  # pings are not even read
        await asyncio.sleep(0.7)
        socket.transport.abort()

    async with serving(silent, says(ACK)) as seen:
        began = time.monotonic()
        assert await seen.stream.follow() == "done"
        assert 0.25 <= time.monotonic() - began <= 5
        assert len(seen.requests) == 2


@pytest.mark.parametrize("code", [400, 403, 404, 410, 426])
async def test_a_refusal_is_final(code: int) -> None:
    async with serving(says(ACK), refuse=lambda n: status(code)) as seen:
        assert await seen.stream.follow() == "refused"
        assert len(seen.requests) == 1
        assert seen.wakes == []


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
async def test_a_refusal_for_now_is_tried_again(code: int) -> None:
    async with serving(says(ACK), refuse=lambda n: status(code) if n <= 2 else None) as seen:
        assert await seen.stream.follow() == "done"
        assert len(seen.requests) == 3


async def test_an_expired_token_is_renewed_once() -> None:
    async with serving(says(ACK), refuse=lambda n: status(401) if n == 1 else None) as seen:
        assert await seen.stream.follow() == "done"
        assert seen.transport.tokens.discarded == ["token-1"]
        assert seen.tokens == ["Bearer token-1", "Bearer token-2"]


async def test_a_fresh_token_that_is_refused_is_the_end() -> None:
    async with serving(says(ACK), refuse=lambda n: status(401)) as seen:
        assert await seen.stream.follow() == "refused"
        assert len(seen.requests) == 2


async def test_a_redirect_is_not_followed_with_the_token() -> None:
    async with serving(says(ACK)) as other:
        elsewhere = f"{other.transport.connection.base_url.replace('http', 'ws')}/stream/jobs/d1"
        async with serving(says(ACK), refuse=lambda n: status(302, Location=elsewhere)) as seen:
            assert await seen.stream.follow() == "refused"
            assert len(seen.requests) == 1
        assert other.requests == []


async def test_a_frame_that_is_too_large_was_the_result() -> None:
    async with serving(says(ACK, "x" * (2**20 + 1))) as seen:
        assert await seen.stream.follow() == "done"
        assert seen.wakes
        assert len(seen.requests) == 1


async def test_a_host_that_is_down_is_given_up_and_no_token_too() -> None:
    async with serving(says(ACK)) as seen:
        pass  # and now nobody listens there
    assert await seen.stream.follow() == "given-up"
    seen.transport.trouble = 99
    assert await seen.stream.follow() == "given-up"
    assert seen.requests == []


async def test_without_the_package_for_a_socks_proxy_there_is_no_websocket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def missing(*_: Any, **__: Any) -> None:
        raise ImportError("connecting through a SOCKS proxy requires python-socks")

    monkeypatch.setattr("websockets.asyncio.client.connect_socks_proxy", missing)
    monkeypatch.setattr(
        "prefect_qruntime.client.waiting.subscription.proxy_of", lambda *_: "socks5://proxy.example:1080"
    )
    async with serving(says(ACK)) as server:
        assert await server.stream.follow() == "refused"
        assert "python-socks" in str(await server.stream.knock())


async def test_the_certificate_of_a_proxy_is_checked_as_the_service_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = Authority.make("ours")
    server = await asyncio.start_server(tunnelling, "127.0.0.1", 0, ssl=ours.tls(tmp_path, "localhost")[0])
    proxy = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setattr("prefect_qruntime.client.waiting.subscription.proxy_of", lambda *_: proxy)
    async with server, serving(says(ACK)) as seen:
        seen.transport.tls = tls_context(ours.write(tmp_path))
        assert await seen.stream.follow() == "done"
        assert len(seen.requests) == 1


async def test_a_host_that_speaks_no_http_is_refused() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport = Transport(connection("legacy", base_url=f"http://127.0.0.1:{port}"))
        stream = JobStream(transport, "/stream/jobs/d1", lambda: None, settings=QUICK)  # type: ignore[arg-type]
        assert await stream.follow() in ("refused", "given-up")


async def test_a_handshake_that_breaks_off_is_tried_again() -> None:
    tries = 0

    async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switch")
        writer.close()

    server = await asyncio.start_server(drops, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport = Transport(connection("legacy", base_url=f"http://127.0.0.1:{port}"))
        stream = JobStream(transport, "/stream/jobs/d1", lambda: None, settings=QUICK)  # type: ignore[arg-type]
        assert await stream.follow() == "given-up"
    assert tries == QUICK.reconnects + 1


async def test_no_handshake_is_waited_for_forever() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        transport = Transport(connection("legacy", base_url=f"http://127.0.0.1:{port}"))
        settings = StreamSettings(open_timeout=0.1, reconnects=1, first_pause=0.01)
        stream = JobStream(transport, "/stream/jobs/d1", lambda: None, settings=settings)  # type: ignore[arg-type]
        assert await stream.follow() == "given-up"


async def test_cancelled_it_leaves_a_silent_server_at_once() -> None:
    gone = asyncio.Event()

    async def silent(socket: ServerConnection) -> None:
        await socket.send(ACK)
        socket.transport.pause_reading()
        await gone.wait()
        socket.transport.abort()

    async with serving(silent, settings=StreamSettings()) as seen:
        following = asyncio.create_task(seen.stream.follow())
        async with asyncio.timeout(60):
            while not seen.stream.connected:  # noqa: ASYNC110 - the stream offers a flag only
                await asyncio.sleep(0.01)
        began = time.monotonic()
        following.cancel()
        await asyncio.wait([following])
        assert following.cancelled()
        assert time.monotonic() - began < 0.5
        gone.set()


async def test_cancelled_in_the_middle_of_a_message_it_shows_no_token() -> None:
    gone = asyncio.Event()

    async def half(socket: ServerConnection) -> None:
        await socket.send(ACK)
        socket.transport.write(b"\x01\x01x")  # a message that goes on
        await gone.wait()
        socket.transport.abort()

    async with serving(half, settings=StreamSettings()) as seen:
        sockets: list[_Socket] = []
        process, arrived = _Socket.process_event, asyncio.Event()

        def processed(socket: _Socket, event: Any) -> None:
            process(socket, event)
            sockets.append(socket)
            if len(sockets) == 3:  # the handshake, the acknowledgement, and the half
                arrived.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Socket, "process_event", processed)
            following = asyncio.create_task(seen.stream.follow())
            async with asyncio.timeout(60):
                await arrived.wait()
                await asyncio.sleep(0)
        sockets[0].data_received(b"\x00\x01x")  # more of it, at the moment of the cancellation
        following.cancel()
        await asyncio.wait([following])
        gone.set()
    with pytest.raises((asyncio.CancelledError, AssertionError)) as caught:
        following.result()
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert not [frame for frame in frames[1:] if "token-1" in repr(frame.f_locals)]


async def test_a_flood_is_given_up_and_holds_nothing_up() -> None:
    async def flood(socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for number in itertools.count():
                await socket.send("x" * 100)
                if number % 200 == 0:  # the server shares this loop
                    await asyncio.sleep(0)

    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.005)

    async with serving(flood) as seen:
        ticking = asyncio.create_task(tick())
        began = time.monotonic()
        async with asyncio.timeout(60):
            assert await seen.stream.follow() == "given-up"
        ticking.cancel()
    assert time.monotonic() - began < 2
    assert len(seen.wakes) <= 102
    assert len(seen.requests) == 1
    assert max((after - before for before, after in itertools.pairwise(ticks)), default=0.0) < 0.5


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("first", "frames"),
    [(b"", b"\x89\x00"), (b"", b"\x8a\x00"), (b"\x01\x00", b"\x00\x00"), (b"\x02\x00", b"\x00\x01x")],
    ids=["pings", "pongs", "empty fragments", "fragments of a byte"],
)
@pytest.mark.usefixtures("frozen_heap")
async def test_frames_that_make_no_message_are_a_flood_too(first: bytes, frames: bytes) -> None:
    async def flood(socket: ServerConnection) -> None:
        socket.transport.write(first)
        while not socket.transport.is_closing():
            socket.transport.write(frames * 100_000)
            await asyncio.sleep(0.01)

    standstill = 0.0
    read = _Socket.data_received

    def measured(socket: _Socket, data: bytes) -> None:
        nonlocal standstill
        began = time.thread_time()
        read(socket, data)
        standstill = max(standstill, time.thread_time() - began)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Socket, "data_received", measured)
        async with serving(flood, ping_interval=None) as seen, asyncio.timeout(60):
            assert await seen.stream.follow() == "given-up"
    assert len(seen.requests) == 1
    assert len(seen.wakes) == 1
    assert 0 < standstill < 0.1


async def test_messages_at_a_bearable_pace_are_no_flood() -> None:
    async def talk(socket: ServerConnection) -> None:
        for _ in range(8):
            await socket.send("interim")
            await asyncio.sleep(0.02)
        await socket.close(1000)

    settings = StreamSettings(open_timeout=2.0, burst=3.0, rate=1000.0)
    async with serving(talk, settings=settings) as seen:
        assert await seen.stream.follow() == "done"


@pytest.mark.parametrize("after", [b"\x81\x01x" * 200, b"\x88\x02\x03\xe8", b""], ids=["a flood", "a close", "nothing"])
async def test_a_connection_lost_with_its_handshake_logs_no_error_later(
    after: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(
            line.partition(": ")[2] for line in asked.split("\r\n") if line.lower().startswith("sec-websocket-key")
        )
        head = f"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}"
        writer.write(f"{head}\r\n\r\n".encode() + after)  # at once
        writer.close()

    settings = dataclasses.replace(QUICK, ping_interval=0.02, reconnects=1)
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server, asyncio.timeout(60):
        port = server.sockets[0].getsockname()[1]
        transport: Any = Transport(connection("legacy", base_url=f"http://127.0.0.1:{port}"))
        await JobStream(transport, "/stream/jobs/d1", lambda: None, settings=settings).follow()
        await asyncio.sleep(0.1)  # until a first ping
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
