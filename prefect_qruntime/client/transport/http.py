"""One HTTP call done safely: headers, token, timeouts, retries, typed errors.

Foreign errors end here: what leaves this module is a `Reply` or a `QuantumRuntimeError`, and neither
holds an httpx object.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from prefect_qruntime.client.answers import Question
from prefect_qruntime.client.connection import Connection, is_loopback
from prefect_qruntime.client.failures import Phase
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.in_flight import InFlightCreate, current_in_flight
from prefect_qruntime.client.transport.replies import Reply, accepted, no_answer, refuses_token
from prefect_qruntime.client.transport.retrying import RetryDeadlines, odd_answers, repeat
from prefect_qruntime.client.transport.spool import BodyStore, StoredBody, receive
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.redact import get_logger

__all__ = ["Transport", "http_client"]

log = get_logger(__name__)

_CONNECTIONS = 8


@functools.lru_cache(maxsize=8)
def _tls(ca_file: str | None) -> ssl.SSLContext:
    # 30 ms each, so one per CA file and process.
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as exc:  # no such file, or no certificate in it (ssl.SSLError)
            raise InvalidInput(f"cannot be read as a file of CA certificates: {exc}", field="ca_file") from None
    return context


def http_client(connection: Connection) -> httpx.AsyncClient:
    """An HTTP client with our limits; belongs to the loop that first uses it."""
    seconds = connection.request_timeout
    local = is_loopback(httpx.URL(connection.base_url).host)
    secure = any(url.startswith("https") for url in (connection.base_url, connection.iam_url))
    return httpx.AsyncClient(
        # The TLS context is costly and of no use where both hosts are this machine's, in clear.
        verify=_tls(connection.ca_file) if secure else False,
        timeout=httpx.Timeout(seconds, connect=min(10.0, seconds), pool=max(60.0, seconds)),
        # Shorter than the five seconds after which common servers drop an idle connection: a create
        # sent into a connection that is just being closed looks like a lost answer.
        limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=4.0),
        proxy=connection.proxy,
        trust_env=not local,
        follow_redirects=False,
    )


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
        # A turn is waited for before the token is taken: in the pool's own queue a token would grow old, and a
        # create that waits there could not be withdrawn any more.
        self._lanes = asyncio.Semaphore(_CONNECTIONS)
        # Large results take minutes each; looks and creates must get through beside them.
        self._slow_lanes = asyncio.Semaphore(_CONNECTIONS - 2)
        self._odd_answers = odd_answers()
        self._headers = {"Accept": "application/json", **headers}

    @property
    def tls(self) -> ssl.SSLContext:
        """The TLS context, shared with the websocket."""
        return _tls(self.connection.ca_file)

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
    ) -> Reply:
        """Send one request and see it through.

        Repeats what the failure table allows for `phase`, for as long as the patience of that phase
        lasts. A create whose answer is lost is *not* repeated: its error advises `search-first`.

        Args:
            method: HTTP method.
            path: Below `base_url`, starting with a slash; ids in it must be checked already.
            phase: What the request is for.
            params: Query.
            body: JSON body.
            accept: Further statuses to hand back instead of raising.
            job_id: For the error.

        Returns:
            The answer: any 2xx, or a status in `accept`.

        Raises:
            QuantumRuntimeError: Typed by the failure table.
        """
        in_flight = current_in_flight() if phase in ("submit", "open") else None

        async def once() -> Reply:
            try:
                return await self._authorised(method, path, phase, params, body, accept, job_id, in_flight)
            except QuantumRuntimeError:
                if in_flight is not None:
                    in_flight.stop_if_withdrawn()
                raise

        with in_flight.waiting() if in_flight else contextlib.nullcontext():
            return await repeat(
                once, phase=phase, patience=self.patience, what=f"{method} {path}", logged=self._odd_answers
            )

    async def download(
        self, path: str, *, shelf: BodyStore, name: str, accept: tuple[int, ...] = (), job_id: str | None = None
    ) -> Reply | StoredBody:
        """GET a body that may be large, piece by piece; one that breaks off is fetched again from its start.

        Args:
            path: Below `base_url`, starting with a slash; ids in it must be checked already.
            shelf: Where a body goes that is too large for memory.
            name: What its file is called.
            accept: Further statuses to hand back instead of raising.
            job_id: For the error.

        Returns:
            The answer, or the file that its body is in.

        Raises:
            QuantumRuntimeError: Typed by the failure table; or the body is too large, or the disk is full.
        """
        question = Question("fetch", "GET", path)

        async def once() -> Reply | StoredBody:
            for attempt in (1, 2):
                async with self._slow_lanes, self._lanes:
                    headers = await self.auth_headers()
                    found = await self._received(path, headers, shelf, name, job_id)
                if isinstance(found, StoredBody) or not refuses_token(found, question) or attempt == 2:
                    break
                self.tokens.discard(headers["Authorization"].removeprefix("Bearer "))
                log.info("GET %s: token refused, renewing it once", path)
            if isinstance(found, StoredBody):
                return found
            job_url = self.connection.job_url(job_id) if job_id else None
            return accepted(found, question, accept=accept, job_id=job_id, job_url=job_url)

        return await repeat(once, phase="fetch", patience=self.patience, what=f"GET {path}", logged=self._odd_answers)

    async def _received(
        self, path: str, headers: Mapping[str, str], shelf: BodyStore, name: str, job_id: str | None
    ) -> Reply | StoredBody:
        try:
            return await receive(self._http, f"{self.connection.base_url}{path}", headers, shelf, name)
        except httpx.HTTPError as exc:
            failure = no_answer(exc, "fetch", self.connection.host, job_id)
        raise failure  # out here for the reason that `_send` gives

    async def _authorised(
        self,
        method: str,
        path: str,
        phase: Phase,
        params: Mapping[str, Any] | None,
        body: Any,
        accept: tuple[int, ...],
        job_id: str | None,
        in_flight: InFlightCreate | None,
    ) -> Reply:
        content = None if body is None else orjson.dumps(body)
        question = Question(phase, method, path)
        for attempt in (1, 2):
            async with self._lanes:
                headers = await self.auth_headers()
                if content is not None:
                    headers["Content-Type"] = "application/json"
                with in_flight.sending() if in_flight else contextlib.nullcontext():
                    reply = await self._send(method, path, phase, params, content, headers, job_id)
            if attempt == 1 and refuses_token(reply, question):
                self.tokens.discard(headers["Authorization"].removeprefix("Bearer "))
                log.info("%s %s: token refused, renewing it once", method, path)
                continue
            break
        job_url = self.connection.job_url(job_id) if job_id else None
        return accepted(reply, question, accept=accept, job_id=job_id, job_url=job_url)

    async def _send(
        self,
        method: str,
        path: str,
        phase: Phase,
        params: Mapping[str, Any] | None,
        content: bytes | None,
        headers: Mapping[str, str],
        job_id: str | None,
    ) -> Reply:
        try:
            answer = await self._http.request(
                method,
                f"{self.connection.base_url}{path}",
                params=params,
                content=content,
                headers=dict(headers),
            )
        except httpx.HTTPError as exc:
            failure = no_answer(exc, phase, self.connection.host, job_id)
        else:
            return Reply.of(answer)
        # Raised out here, or httpx's exception, which holds the request with its token, would hang on
        # to ours as its context.
        raise failure
