"""What a connection shows before an answer can be read: its first line, a proxy's own answer, what is left over."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent
from prefect_qruntime.client.transport.exchange import _Progress, exchange
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import ServiceUnavailable, SubmissionUncertain
from tests.support.loopback import Authority, Handler, request_head, serving, tunnelling
from tests.support.mock_client import TOKEN, connection

SPEC = make_spec(["OPENQASM 3.0; qubit q; bit[1] c; c[0] = measure q;"], backend="b")
ONCE = RetryDeadlines(**dict.fromkeys(("token", "read", "wait", "fetch", "change", "submit", "open"), 0.01))
CREATED = b'{"id": "d1", "backend": "b"}'
_numbers = itertools.count()


def answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def key() -> Callable[[int], str]:
    tag = f"qr-key:{next(_numbers):031d}e"
    return lambda generation: tag


@dataclass
class Service:
    """Keeps connections open, lists no jobs, and gives creates the answer of the test."""

    created: list[bytes] = field(default_factory=lambda: [answer(CREATED)])
    job: bytes = answer(b'{"id": "d1", "status": "Queued"}')
    silent: bool = False
    lasting: bool = True
    posts: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                asked, size = await request_head(reader)
                await reader.readexactly(size)
                method, target = asked.split()[:2]
                if "/identity/" in target:
                    head = b"HTTP/1.1 200 OK\r\n" + (b"" if self.lasting else b"Connection: close\r\n")
                    writer.write(answer(b'{"access_token": "%s", "expires_in": 3600}' % TOKEN.encode(), head))
                elif target.endswith("/results"):  # doubled, and of the job that was asked for
                    writer.write(2 * answer(b'{"schema_version": 1, "of": "%s"}' % target.split("/")[-2].encode()))
                elif method == "GET":
                    writer.write(self.job if "/jobs/" in target else answer(b'{"jobs": [], "count": 0}'))
                else:
                    self.posts += 1
                    for piece in self.created:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    if self.silent:
                        await reader.read()  # until the client goes
                    if self.created != [answer(CREATED)]:
                        break
                await writer.drain()
                if not self.lasting:
                    break
        writer.close()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(service: Service) -> Iterator[QuantumRuntimeClient]:
    with serving(service.handle) as port:
        url = f"http://127.0.0.1:{port}"
        there = connection(base_url=f"{url}/api/v1", iam_url=url, request_timeout=20.0)
        yield QuantumRuntimeClient(there, patience=ONCE)


BROKEN = {
    "a line without a colon": answer(CREATED, b"%s\r\nno header\r\n"),
    "a blank in a name": answer(CREATED, b"%s\r\nX Y: z\r\n"),
    "a NUL": answer(CREATED, b"%s\r\nX: a\0b\r\n"),
    "two lengths": answer(CREATED, b"%s\r\nContent-Length: 3\r\n"),
    "a length that is a word": b"%s\r\nContent-Length: abc\r\n\r\n" + CREATED,
    "a negative length": b"%s\r\nContent-Length: -1\r\n\r\n" + CREATED,
    "an unknown transfer encoding": b"%s\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + CREATED,
    "a header without end": b"%s\r\nX: " + b"a" * 200_000,
    "cut in the headers": b"%s\r\nContent-Le",
    "cut behind the first line": b"%s\r\n",
    "cut in the first line": b"%s",
    "no TCP end": b"%s\r\nX: a",
}
FIRST_LINES = {
    b"HTTP/1.1 200 OK": True,
    b"HTTP/1.0 201 Created": True,
    b"HTTP/1.1 200": True,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 OK": True,
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK": True,
    b"HTTP/1.1 503 Service Unavailable": False,
    b"HTTP/1.1 429 Too Many Requests": False,
    b"HTTP/1.1 302 Found": False,
    b"HTTP/1.1 2": False,
    b"HTTP/1.1 2000 OK": False,
    b"SSH-2.0 200 OK": False,
}
CREATES: dict[str, Callable[[QuantumRuntimeClient], Any]] = {
    "job": lambda client: client.post_job(SPEC, (), None),
    "session": lambda client: client.post_session("b", mode="batch", max_ttl=None),
}


@pytest.mark.parametrize("create", CREATES)
@pytest.mark.parametrize("first", FIRST_LINES, ids=lambda line: line.decode().replace("\r\n", "|"))
@pytest.mark.parametrize("broken", BROKEN)
def test_a_2xx_in_the_first_line_is_an_acceptance_whatever_follows(
    service: Service, client: QuantumRuntimeClient, broken: str, first: bytes, create: str
) -> None:
    whole = BROKEN[broken].replace(b"%s", first)
    cut = len(first) // 2
    service.created = [whole[:cut], whole[cut:]]  # the first line need not arrive in one piece
    with pytest.raises(ServiceUnavailable) as caught:
        client.run(CREATES[create](client))
    assert service.posts == 1
    assert caught.value.advice.kind == "search-first"
    assert bool(caught.value.details.get("accepted")) is FIRST_LINES[first]


@pytest.mark.parametrize("broken", [one for one in BROKEN if "cut" not in one])
def test_nothing_is_posted_after_it_however_long_the_list_hides_the_job(
    service: Service, client: QuantumRuntimeClient, broken: str
) -> None:
    service.created = [BROKEN[broken].replace(b"%s", b"HTTP/1.1 200 OK")]
    with pytest.raises(SubmissionUncertain, match="accepted a job"):
        client.run(client.submit(Intent(SPEC, key_tag=key(), grace=0.05)))
    assert service.posts == 1


def test_headers_that_never_end_are_an_acceptance_when_the_time_is_over(service: Service) -> None:
    service.created, service.silent = [b"HTTP/1.1 200 OK\r\nX: a"], True
    with serving(service.handle) as port:
        url = f"http://127.0.0.1:{port}"
        there = connection(base_url=f"{url}/api/v1", iam_url=url, request_timeout=0.5)
        client = QuantumRuntimeClient(there, patience=RetryDeadlines())
        client.run(client.authenticate())
        with pytest.raises(ServiceUnavailable, match="accepted"):
            client.run(client.post_job(SPEC, (), None))


# ---- what is left over ---------------------------------------------------------------------------


def test_an_answer_that_was_there_before_the_request_belongs_to_no_create(
    service: Service, client: QuantumRuntimeClient
) -> None:
    service.job *= 2
    assert client.run(client.job("d1")).id == "d1"
    with pytest.raises(ServiceUnavailable, match="before the request") as caught:
        client.run(client.post_job(SPEC, (), None))
    assert caught.value.advice.kind == "search-first"
    assert not caught.value.details.get("accepted")
    assert client.run(client.post_job(SPEC, (), None)).id == "d1"  # on a new connection


def test_an_answer_that_was_there_before_the_request_is_no_result(
    service: Service, client: QuantumRuntimeClient
) -> None:
    patient = QuantumRuntimeClient(client.connection, patience=RetryDeadlines(first_pause=0.001))
    for job in ("d1", "d2", "d3"):
        assert patient.run(patient.result(job)).raw["of"] == job


@pytest.mark.parametrize("cut", range(1, 60, 4))
@pytest.mark.parametrize("ending", [b"\r\n", b"\n"])
def test_an_answer_whose_beginning_was_there_before_the_request_is_not_taken(cut: int, ending: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            for number in itertools.count():
                target = (await reader.readuntil(b"\r\n\r\n")).split()[1]
                said = answer(target, b"HTTP/1.1 200 OK\r\n").replace(b"\r\n", ending)
                if number == 0:
                    writer.write(said + said[:cut])
                    await writer.drain()
                    await reader.readuntil(b"\r\n\r\n")
                    said = said[cut:]
                writer.write(said)
                await writer.drain()
        writer.close()

    async def story(url: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            for target in ("/first", "/other"):
                with contextlib.suppress(httpx.RemoteProtocolError):
                    found = await exchange(http, "GET", url + target, seconds=20.0, headers={})
                    assert found.content == target.encode()

    with serving(handle) as port:
        asyncio.run(story(f"http://127.0.0.1:{port}"))


# ---- through a proxy -----------------------------------------------------------------------------

REFUSALS: dict[str, bytes | None] = {
    "407": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
    "damaged headers": b"HTTP/1.1 200 Connection established\r\nno header\r\n\r\n",
    "cut": b"HTTP/1.1 200 Conn",
    "closed": b"",
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "silent": None,
}


@pytest.fixture
def secure(tmp_path: Path, service: Service) -> Iterator[Callable[..., QuantumRuntimeClient]]:
    """Makes clients of the service, behind TLS, that have a token."""
    authority = Authority.make("ours")
    context, _ = authority.tls(tmp_path, "127.0.0.1")
    with serving(service.handle, context) as port:
        url = f"https://127.0.0.1:{port}"

        def make(**fields: Any) -> QuantumRuntimeClient:
            there = {"base_url": f"{url}/api/v1", "iam_url": url, "ca_file": authority.write(tmp_path), **fields}
            return QuantumRuntimeClient(connection(**there), patience=ONCE)

        yield make


def refusing(said: bytes | None, passed: int) -> Handler:
    """A proxy that makes so many connections, and answers so when it is asked for another."""
    numbers = itertools.count()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(numbers) < passed:
            await tunnelling(reader, writer)
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            if said is None:
                await reader.read()
            writer.write(said or b"")
            await writer.drain()
        writer.close()

    return handle


@pytest.mark.parametrize("create", CREATES)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_create_for_which_the_proxy_made_no_connection_was_not_sent(
    service: Service, secure: Callable[..., QuantumRuntimeClient], refusal: str, create: str
) -> None:
    service.lasting = False
    with serving(refusing(REFUSALS[refusal], passed=1)) as port:
        client = secure(proxy=f"http://127.0.0.1:{port}", request_timeout=1.0 if refusal == "silent" else 20.0)
        client.run(client.authenticate())
        with pytest.raises(ServiceUnavailable, match="cannot reach") as caught:
            client.run(CREATES[create](client))
    assert service.posts == 0
    assert caught.value.advice.may_repeat
    assert refusal == "silent" or "`proxy`" in str(caught.value.solution)


def test_a_create_whose_answer_the_proxy_lost_was_sent(
    service: Service, secure: Callable[..., QuantumRuntimeClient]
) -> None:
    service.created = [b""]
    with serving(tunnelling) as port:
        client = secure(proxy=f"http://127.0.0.1:{port}", request_timeout=20.0)
        with pytest.raises(ServiceUnavailable, match="no answer") as caught:
            client.run(client.post_job(SPEC, (), None))
    assert service.posts == 1
    assert caught.value.advice.kind == "search-first"


def test_the_time_for_a_large_body_does_not_end_when_the_proxy_is_asked_for_the_connection() -> None:
    sent: list[str] = []
    progress = _Progress(lambda: sent.append("body"))

    async def story() -> None:
        for method in (b"CONNECT", b"POST"):
            await progress("http11.send_request_headers.started", {"request": httpcore.Request(method, "https://a/b")})
            assert progress.connecting is (method == b"CONNECT")
            await progress("http11.send_request_body.complete", {"return_value": None})
            assert sent == ([] if method == b"CONNECT" else ["body"])

    asyncio.run(story())
