"""Certificates that are not trusted: at first a wrong setting, later an outage, in which the CA file is read again."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.transport import http
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import ServiceUnavailable
from tests.support.loopback import Authority, serving, tunnelling
from tests.support.mock_client import connection

SPEC = make_spec(["OPENQASM 3.0; qubit q; bit[1] c; c[0] = measure q;"], backend="b")
# The exchange of a token gives up at once, so that its failure reaches the request that needs the token.
PATIENT = RetryDeadlines(token=0.001, first_pause=0.001)
CALLS: dict[str, Callable[[QuantumRuntimeClient], Any]] = {
    "read": lambda client: client.job("d1"),
    "create": lambda client: client.post_job(SPEC, (), None),
    "change": lambda client: client.cancel("d1"),
}


@dataclass
class Host:
    """IAM and the service behind TLS; each answer closes its connection."""

    folder: Path
    ours: Authority
    client: QuantumRuntimeClient | None = None
    life: float = 3600.0
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tls, self.good = self.ours.tls(self.folder, "localhost")

    def shows(self, certificate: str) -> None:
        """Show another certificate from now on."""
        self.tls.load_cert_chain(certificate, Path(certificate).with_suffix(".key"))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            head = await reader.readuntil(b"\r\n\r\n")
            line = head.split(b" HTTP")[0].decode()
            self.requests.append(line)
            body = b'{"id": "d1", "state": {"status": "Completed"}}'
            if "token" in line:
                body = b'{"access_token": "tok-Zk39vQx1-not-a-real-one", "expires_in": %g}' % self.life
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, Authority.make("ours"))
    with serving(host.handle, host.tls) as port:
        root = f"https://localhost:{port}"
        host.client = QuantumRuntimeClient(
            connection(base_url=root, iam_url=root, ca_file=host.ours.write(tmp_path)), patience=PATIENT
        )
        yield host
        network_loop().close()


@pytest.mark.parametrize("life", [3600.0, 0.001], ids=["token at hand", "token needed"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wrong", ["expired", "other CA", "other name"])
def test_a_host_that_was_trusted_before_is_asked_again(
    host: Host, monkeypatch: pytest.MonkeyPatch, wrong: str, call: Callable[..., Any], life: float
) -> None:
    assert host.client is not None
    client, host.life = host.client, life
    network_loop().run(client.job("d1"))
    authority = Authority.make("other") if wrong == "other CA" else host.ours
    _, bad = authority.tls(
        host.folder, "elsewhere" if wrong == "other name" else "localhost", expired=wrong == "expired"
    )
    before, seen = http._read_cas_again, list[str | None]()

    def good_again(ca_file: str | None) -> None:
        seen.append(ca_file)
        host.shows(host.good)
        before(ca_file)

    monkeypatch.setattr(http, "_read_cas_again", good_again)
    host.shows(bad)
    host.requests.clear()
    network_loop().run(call(client))
    assert seen == [client.connection.ca_file]
    posts = [line for line in host.requests if line == "POST /jobs"]
    assert len(posts) == (call is CALLS["create"])


def test_a_renewed_ca_is_trusted_when_its_file_is_replaced(host: Host) -> None:
    assert host.client is not None
    assert host.client.connection.ca_file is not None
    network_loop().run(host.client.job("d1"))
    renewed = Authority.make("renewed")
    host.shows(renewed.tls(host.folder, "localhost")[1])
    Path(renewed.write(host.folder)).replace(host.client.connection.ca_file)
    assert network_loop().run(host.client.job("d1")).id == "d1"


def test_a_host_that_was_never_trusted_is_asked_once(host: Host) -> None:
    assert host.client is not None
    host.shows(host.ours.tls(host.folder, "localhost", expired=True)[1])
    with pytest.raises(ServiceUnavailable, match="not trusted") as caught:
        network_loop().run(host.client.job("d1"))
    assert str(caught.value.advice) == "never"
    assert host.requests == []


@pytest.mark.skipif(httpx.__version__ == "0.27.0", reason="httpx 0.27.0 drops what a proxy is to be checked by")
@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
@pytest.mark.parametrize("trusted", [True, False], ids=["by ca_file", "by nobody"])
def test_the_certificate_of_a_proxy_is_checked_by_the_ca_file_too(host: Host, scheme: str, trusted: bool) -> None:
    assert host.client is not None
    authority = host.ours if trusted else Authority.make("other")
    with serving(tunnelling, authority.tls(host.folder, "localhost")[0]) as port:
        through = dataclasses.replace(host.client.connection, proxy=f"{scheme}://user:pass-Zk39@localhost:{port}")
        client = QuantumRuntimeClient(through, patience=PATIENT)
        if trusted:
            assert network_loop().run(client.job("d1")).id == "d1"
        else:
            with pytest.raises(ServiceUnavailable, match="not trusted"):
                network_loop().run(client.job("d1"))
    assert bool(host.requests) is trusted
