"""Send HTTP calls safely: headers, token, timeouts, retries, typed errors.

Foreign errors end here: what leaves this module is a `Reply` or a `QuantumRuntimeError`, and neither
holds an httpx object.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx
import orjson

from prefect_qruntime.client.connection import Connection, check_proxy, is_loopback, is_public, register_proxy
from prefect_qruntime.client.encodings.arrays import PIECE, json_pieces, weight
from prefect_qruntime.client.failures import CREATES, WHOLE, Phase, Question
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.exchange import MOST_VALUES, exchange, receive
from prefect_qruntime.client.transport.replies import Reply, accepted, no_answer, refuses_token
from prefect_qruntime.client.transport.retrying import IN_FLIGHT, InFlightCreate, RetryDeadlines, odd_answers, repeat
from prefect_qruntime.client.transport.spool import BodyStore, StoredBody
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
    ServiceUnavailable,
)
from prefect_qruntime.redact import get_logger, redact, register_secret

__all__ = [
    "Probe",
    "Transport",
    "Trouble",
    "download_elsewhere",
    "http_client",
    "is_secure",
    "probe",
    "proxy_of",
    "reaches_proxy",
]

R = TypeVar("R", bound=Reply | StoredBody)

log = get_logger(__name__)

_CONNECTIONS = 8
_WITH_PORT = re.compile(r"(\[.*\]|[^:]*):[0-9]+")  # the address of a network has colons too
_INSTANCE = re.compile(r"\b(?:instance|crn)\b", re.IGNORECASE)


@functools.lru_cache(maxsize=8)
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    # 30 ms each, so one per CA file and process.
    field = "SSL_CERT_FILE"  # of the environment, in place of the usual CAs
    try:
        if named := os.environ.get(field):
            Path(named).open("rb").close()  # httpx before 0.28 goes on without it
        context = httpx.create_ssl_context()
        field = "ca_file"
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ValueError) as exc:  # no such file, no certificate in it (ssl.SSLError), no name of a file
        raise InvalidInput(f"cannot be read as a file of CA certificates: {exc}", field=field) from None
    return context


def _read_cas_again(ca_file: str | None) -> None:
    """Trust what a CA file holds by now, in connections made from now on: it may be renewed while a job waits."""
    with contextlib.suppress(OSError, ValueError):
        if ca_file is not None:
            tls_context(ca_file).load_verify_locations(cafile=ca_file)


def _host_pattern(url: str) -> str:
    """The pattern by which httpx finds the proxy of a URL's host."""
    host = urlsplit(url).hostname or ""
    return f"all://[{host}]" if ":" in host else f"all://{host}"


def _limits(connections: int | None) -> httpx.Limits:
    return httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=_CONNECTIONS,
        # Shorter than the five seconds after which common servers drop an idle connection: a create
        # sent into a connection that is just being closed looks like a lost answer.
        keepalive_expiry=4.0,
    )


def http_client(connection: Connection, *urls: str) -> httpx.AsyncClient:
    """An HTTP client with our limits, which keeps no cookies; belongs to the loop that first uses it.

    Args:
        connection: Gives timeout, CA file and proxy.
        urls: The hosts that it is for; those of the connection if none is given.
    """
    seconds = connection.request_timeout
    urls = urls or (connection.base_url, connection.iam_url)
    # The environment is read here and not by httpx, which fails on a network in NO_PROXY and would read .netrc too.
    proxies = {_host_pattern(url): proxy for url in urls if (proxy := proxy_of(connection, url))}
    # The TLS context is costly, and not needed if all hosts are on this machine, without TLS.
    secure = any(url.startswith("https") for url in urls) or any(map(is_secure, proxies.values()))
    tls = tls_context(connection.ca_file) if secure else None
    # One more than there are lanes: a token request never waits behind the requests that need it.
    limits = _limits(_CONNECTIONS + 1)
    return httpx.AsyncClient(
        verify=tls or False,
        timeout=httpx.Timeout(seconds, connect=min(10.0, seconds), pool=max(60.0, seconds)),
        limits=limits,
        mounts={
            # httpcore counts a connection as open for ever if its caller is cancelled while SOCKS is agreed on.
            pattern: httpx.AsyncHTTPTransport(
                verify=tls or False,
                limits=_limits(None) if proxy.startswith("socks") else limits,
                # httpx would trust the usual CAs only.
                proxy=httpx.Proxy(proxy, ssl_context=tls if is_secure(proxy) else None),
                trust_env=False,
            )
            for pattern, proxy in proxies.items()
        },
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


def is_secure(proxy: str) -> bool:
    """Whether the connection to a proxy is TLS itself."""
    return urlsplit(proxy).scheme == "https"


def proxy_of(connection: Connection, url: str) -> str | None:
    """The connection's proxy, else that of the environment unless NO_PROXY names the host; None for this machine.

    Raises:
        InvalidInput: That of the environment is not the address of a proxy, or cannot be used; its variable is named.
    """
    if connection.proxy is not None:
        return connection.proxy
    parts = urlsplit(url)
    if is_loopback(parts.hostname):
        return None
    found = getproxies()
    variable = parts.scheme if found.get(parts.scheme) else "all"
    proxy = found.get(variable)
    if not proxy or _is_direct(parts.hostname or "", found.get("no", "")):
        return None
    # Checked here, as httpx repeats a wrong one with its password.
    proxy = check_proxy(proxy if "://" in proxy else f"http://{proxy}", field=f"{variable.upper()}_PROXY", socks=True)
    register_proxy(proxy)
    return proxy


def _is_direct(host: str, no_proxy: str) -> bool:
    """Whether an entry of NO_PROXY is `*`, the host, a domain above it, or a network with its address."""
    for entry in no_proxy.lower().split(","):
        name = entry.strip().rpartition("://")[2].rstrip("/")
        if (with_port := _WITH_PORT.fullmatch(name)) is not None:
            name = with_port[1]
        name = name.replace("[", "").replace("]", "")
        if name == "*":
            return True
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        name = name.lstrip("*").strip(".")
        if name and (host.lower() == name or host.lower().endswith(f".{name}")):
            return True
    return False


class Transport:
    """Sends requests of one connection. Lives on the network loop."""

    def __init__(
        self,
        connection: Connection,
        http: httpx.AsyncClient,
        tokens: TokenSource,
        *,
        headers: Mapping[str, str],
        patience: RetryDeadlines | None = None,
    ) -> None:
        self.connection = connection
        self.tokens = tokens
        self.patience = patience or RetryDeadlines()
        self._http = http
        # The lane is awaited before the token is taken: in the pool's own queue a token would age, and a
        # create that waits there could no longer be withdrawn.
        self._lanes = asyncio.Semaphore(_CONNECTIONS)
        # Large results take minutes each; polls and creates must get through meanwhile.
        self._slow_lanes = asyncio.Semaphore(_CONNECTIONS - 2)
        self._odd_answers = odd_answers()
        self._answered = False
        self.blocks: set[str] = set()
        """Names of the saved blocks that this connection comes from."""
        self._headers = {"Accept": "application/json", **headers}

    @property
    def tls(self) -> ssl.SSLContext:
        """The TLS context, shared with the websocket."""
        return tls_context(self.connection.ca_file)

    async def auth_headers(self) -> dict[str, str]:
        """Headers of a request or handshake made now, with a token that is valid now."""
        return {
            **self._headers,
            "Authorization": f"Bearer {await self.tokens.get()}",
            "Service-CRN": self.connection.crn,
        }

    async def request(
        self,
        method: str,
        path: str,
        *,
        phase: Phase,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        accept: tuple[int, ...] = (),
        job_id: str | None = None,
        most_values: int = MOST_VALUES,
    ) -> Reply:
        """Send one request, and repeat it as the failure table allows.

        Repeats for `phase` until the time for retries of that phase
        ends. A create whose answer is lost is *not* repeated: its error advises `search-first`.

        Args:
            method: HTTP method.
            path: Below `base_url`, starting with a slash; ids in it must be checked already.
            phase: What the request is for.
            params: Query.
            body: JSON body.
            accept: Further statuses to return instead of raising.
            job_id: For the error.
            most_values: Most values in the answer.

        Returns:
            The answer: any 2xx, or a status in `accept`.

        Raises:
            QuantumRuntimeError: Typed by the failure table.
        """
        in_flight = IN_FLIGHT.get() if phase in CREATES else None
        more = {} if body is None else {"Content-Type": "application/json"}
        with in_flight.waiting() if in_flight else contextlib.nullcontext():
            content = None if body is None else await _written(body)
            send = functools.partial(
                exchange,
                self._http,
                method,
                f"{self.connection.base_url}{path}",
                seconds=self.connection.request_timeout,
                params=params,
                content=content,
                most_values=most_values,
            )
            question = Question(phase, method, path, size=sum(map(len, content or ())))
            once = functools.partial(self._accepted, send, question, accept, job_id, more, in_flight)
            return await repeat(
                once, phase=phase, patience=self.patience, what=f"{method} {path}", logged=self._odd_answers
            )

    async def download(
        self, path: str, *, shelf: BodyStore, name: str, accept: tuple[int, ...] = (), job_id: str | None = None
    ) -> Reply | StoredBody:
        """GET a body that may be large, piece by piece; an interrupted one is fetched again from its start.

        Args:
            path: Below `base_url`, starting with a slash; ids in it must be checked already.
            shelf: Store for a body that is too large for memory.
            name: Name of its file.
            accept: Further statuses to return instead of raising.
            job_id: For the error.

        Returns:
            The answer, or the file that its body is in.

        Raises:
            QuantumRuntimeError: Typed by the failure table; or the body is too large, or the disk is full.
        """
        send = functools.partial(
            receive,
            self._http,
            f"{self.connection.base_url}{path}",
            shelf=shelf,
            name=name,
            seconds=self.connection.request_timeout,
        )
        once = functools.partial(self._accepted, send, Question("fetch", "GET", path), accept, job_id, {}, None)
        return await repeat(once, phase="fetch", patience=self.patience, what=f"GET {path}", logged=self._odd_answers)

    async def _accepted(
        self,
        send: Callable[..., Awaitable[R]],
        question: Question,
        accept: tuple[int, ...],
        job_id: str | None,
        more: Mapping[str, str],
        in_flight: InFlightCreate | None,
    ) -> R:
        """Send with a token, again with a new one if the first was refused, and judge the answer."""
        found = await self._answer(send, question, job_id, more, in_flight)
        if isinstance(found, Reply) and refuses_token(found, question):
            # Refused means not accepted, so a create may go out again too.
            log.info("%s %s: the token was refused, renewing it once", question.method, question.path)
            found = await self._answer(send, question, job_id, more, in_flight)
        if isinstance(found, Reply):
            url = self.connection.job_url(job_id) if job_id else None
            try:
                accepted(found, question, accept=accept, job_id=job_id, job_url=url)
            except QuantumRuntimeError as error:
                raise self._raised(error, in_flight) from None
        if isinstance(found, QuantumRuntimeError):
            raise self._raised(found, in_flight)
        return found

    def _raised(self, error: QuantumRuntimeError, in_flight: InFlightCreate | None) -> BaseException:
        """The error to raise; a create whose caller is gone is not repeated, and its end still has to be known."""
        if in_flight is not None and in_flight.withdrawn and error.advice.may_repeat:
            return asyncio.CancelledError()
        return self.with_block(error).with_traceback(None)

    def with_block(self, error: QuantumRuntimeError) -> QuantumRuntimeError:
        """Name the block, and the region that its CRN names, in an error about the key or the instance."""
        named = " or ".join(repr(name) for name in sorted(self.blocks))
        where = f"block {named}" if named else "the credentials"
        if isinstance(error, AuthenticationError):
            error.solution = f"{error.solution or 'Create a new key.'} The key is that of {where}."
        elif isinstance(error, NotFound | PermissionDenied) and _INSTANCE.search(error.message):
            error.solution = (
                f"The CRN of {where} is for an instance in {self.connection.region}: copy it again from the instance's "
                "page there, and take a key of the same account. `prefect-qruntime doctor` shows more."
            )
        return error

    async def _answer(
        self,
        send: Callable[..., Awaitable[R]],
        question: Question,
        job_id: str | None,
        more: Mapping[str, str],
        in_flight: InFlightCreate | None,
    ) -> R | QuantumRuntimeError:
        """Return the answer or the error; raised here, the error's traceback would show this frame's token.

        httpx's exception would show it too: it holds the request, and would stay attached to ours as its context.
        """
        try:
            async with self._slow_lanes if question.phase == "fetch" else contextlib.nullcontext(), self._lanes:
                headers = {**await self.auth_headers(), **more}
                with in_flight.sending() if in_flight else contextlib.nullcontext():
                    found = await send(headers=headers)
                self._answered = True
                if isinstance(found, Reply) and refuses_token(found, question):
                    self.tokens.discard(headers["Authorization"].removeprefix("Bearer "))
                return found
        except httpx.HTTPError as exc:
            error = no_answer(exc, question.phase, self.connection.host, job_id, trusted=self._answered)
        except QuantumRuntimeError as exc:  # no token; larger than its limit; the disk is full
            error = exc.with_traceback(None)
        if error.details.get("untrusted"):
            await asyncio.to_thread(_read_cas_again, self.connection.ca_file)
        return error


async def _written(body: Any) -> list[bytes]:
    """Write a body as JSON; a large one in another thread, in pieces between which the loop can run."""
    if weight(body, PIECE) <= PIECE:
        return [orjson.dumps(body)]
    return await asyncio.to_thread(lambda: list(json_pieces(body)))


async def download_elsewhere(
    url: str,
    *,
    connection: Connection,
    tls: ssl.SSLContext,
    patience: RetryDeadlines,
    shelf: BodyStore,
    name: str,
    job_id: str,
) -> Reply | StoredBody:
    """GET a body kept in object storage: without our token and CRN, following no redirect.

    Args:
        url: Its address; its signature gives anyone access to the body.
        connection: For the timeout and the proxy.
        tls: The TLS context.
        patience: How long to retry.
        shelf: Store for a body that is too large for memory.
        name: Name of its file.
        job_id: For the error.

    Raises:
        ServiceUnavailable: No complete answer until the time for retries ended.
        QuantumRuntimeError: The address is not trusted, the answer is no result or too large, or the disk is full.
    """
    address = _trusted(url, connection, job_id)

    async def once() -> Reply | StoredBody:
        try:
            async with http_client(connection, str(address)) as http:
                found = await receive(
                    http, address, headers={}, shelf=shelf, name=name, seconds=connection.request_timeout
                )
        except httpx.HTTPError as exc:
            trouble = type(exc).__name__  # its text and its request hold the address with the signature
        else:
            if isinstance(found, Reply) and found.status not in WHOLE:
                text = f"the stored result of job {job_id} cannot be read"
                raise ServiceUnavailable(text, status=found.status, job_id=job_id)
            return found
        raise ServiceUnavailable(f"the stored result of job {job_id} cannot be read: {trouble}", job_id=job_id)

    return await repeat(once, phase="fetch", patience=patience, what=f"GET the stored result of job {job_id}")


def _trusted(url: str, connection: Connection, job_id: str) -> httpx.URL:
    """Check the address of a result in object storage: https to a public host, or this machine if the service is here.

    The service chooses the address, so without this check it could point to hosts of this machine's network.
    """
    register_secret(url.partition("?")[2], passing=True)
    try:
        address = httpx.URL(url)
        host = address.host
    except (httpx.InvalidURL, ValueError):  # ValueError: a host that IDNA cannot decode
        address, host = httpx.URL(), ""
    local = is_loopback(host) and is_loopback(httpx.URL(connection.base_url).host)
    safe = local if is_loopback(host) else address.scheme == "https" and is_public(host)
    whole = address.scheme in ("http", "https") and bool(host) and not address.userinfo
    if not safe or not whole or not 0 < (address.port or 443) < 65536:
        raise QuantumRuntimeError(
            f"Job {job_id} points to its result by an address that cannot be trusted, so the result was not fetched.",
            solution="A result that is kept elsewhere must be at an https address of a public host.",
            job_id=job_id,
        )
    register_secret(address.query.decode("ascii"), passing=True)
    return address


# ---- reachability ---------------------------------------------------------------------------

Trouble = Literal["name", "refused", "silent", "untrusted", "expired", "other-name", "no-tls", "proxy", "broken"]
"""Why there is no answer: the host's name is unknown; no process listens; no answer in time; the certificate is of an
unknown CA, not valid now, of another name; no TLS there; the proxy refused; the connection broke."""

_LONGEST = 10.0
# OpenSSL's verification results (x509_vfy.h): not yet valid, expired; host name or address mismatch.
_OUT_OF_TIME = (9, 10)
_OTHER_NAME = (62, 64)


@dataclass(frozen=True, slots=True)
class Probe:
    """An answer, or the reason why there is none."""

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
        url: The address.
        method: HTTP method; the body is empty.

    Raises:
        InvalidInput: The CA file cannot be used.
    """
    async with http_client(connection, url) as http:
        try:
            reply = await exchange(http, method, url, headers={}, seconds=min(_LONGEST, connection.request_timeout))
        except httpx.HTTPError as error:
            return Probe(url, trouble=_trouble(error), text=redact(str(error)))
    if reply.status == 407:
        return Probe(url, trouble="proxy", text="407 Proxy Authentication Required")
    return Probe(url, reply)


async def reaches_proxy(proxy: str) -> bool:
    """Whether a process listens at the proxy's address."""
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
