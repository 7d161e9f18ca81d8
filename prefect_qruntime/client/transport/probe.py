"""One request without a token: does anything answer at this address, and if not, what is in the way?"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import httpx

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.transport.http import http_client
from prefect_qruntime.client.transport.replies import Reply
from prefect_qruntime.redact import redact

__all__ = ["Probe", "Trouble", "probe", "reaches_proxy"]

Trouble = Literal["name", "refused", "silent", "untrusted", "expired", "other-name", "no-tls", "proxy", "broken"]
"""Why there is no answer: the host's name is unknown; nobody listens; no answer in time; the certificate is of an
unknown CA, out of its time, of another name; no TLS there; the proxy said no; the connection broke."""

_LONGEST = 10.0
# OpenSSL's verification results (x509_vfy.h): not yet valid, expired; host name or address mismatch.
_OUT_OF_TIME = (9, 10)
_OTHER_NAME = (62, 64)


@dataclass(frozen=True, slots=True)
class Probe:
    """An answer, or what stood in its way."""

    url: str
    reply: Reply | None = None
    trouble: Trouble | None = None
    text: str = ""

    @property
    def status(self) -> int | None:
        """The HTTP status, if there was an answer."""
        return self.reply.status if self.reply else None


async def probe(connection: Connection, url: str, *, method: str = "GET") -> Probe:
    """Send one request that carries neither key, token nor CRN, by the connection's proxy and CA.

    Args:
        connection: Gives proxy, CA file and timeout (10 s at most).
        url: Where to.
        method: HTTP method; the body is empty.

    Raises:
        InvalidInput: The CA file cannot be used.
    """
    async with http_client(connection) as http:
        try:
            answer = await http.request(method, url, timeout=min(_LONGEST, connection.request_timeout))
        except httpx.HTTPError as error:
            return Probe(url, trouble=_trouble(error), text=redact(str(error)))
    if answer.status_code == 407:
        return Probe(url, trouble="proxy", text="407 Proxy Authentication Required")
    return Probe(url, Reply.of(answer))


async def reaches_proxy(proxy: str) -> bool:
    """Whether somebody listens at the proxy's address."""
    parts = urlsplit(proxy)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(parts.hostname, port), timeout=_LONGEST)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):  # several addresses of one name, each with its own error
            todo += one.exceptions


def _trouble(error: httpx.HTTPError) -> Trouble:
    causes = list(_chain(error))
    if isinstance(error, httpx.ProxyError):
        return "proxy"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code in _OUT_OF_TIME:
                return "expired"
            return "other-name" if cause.verify_code in _OTHER_NAME else "untrusted"
        if isinstance(cause, ssl.SSLError):
            return "no-tls"
        if isinstance(cause, socket.gaierror):
            return "name"
    if isinstance(error, httpx.TimeoutException):
        return "silent"
    if isinstance(error, httpx.ConnectError):
        return "refused"
    return "broken"
