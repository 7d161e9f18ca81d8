"""Bodies that may be large, received piece by piece: from the service, or from its object storage."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx

from prefect_qruntime.client.replies import Reply
from prefect_qruntime.client.retrying import Patience, repeat
from prefect_qruntime.client.spool import Shelf, Spool, StoredBody
from prefect_qruntime.connection import Connection, is_loopback
from prefect_qruntime.errors import QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.redact import register_secret

__all__ = ["download_elsewhere", "receive"]

_ERROR_LIMIT = 10_000_000  # bytes of an answer that is no result


async def receive(
    http: httpx.AsyncClient, url: str | httpx.URL, headers: Mapping[str, str], shelf: Shelf, name: str
) -> Reply | StoredBody:
    """Send one GET. A body of status 200 that is too large for memory ends up in a file on the shelf.

    Raises:
        httpx.HTTPError: No answer, one that broke off, or one whose encoding is damaged. Not to be let out of floor 1.
        QuantumRuntimeError: Larger than the shelf's limit, or the disk takes no more.
    """
    async with http.stream("GET", url, headers=dict(headers)) as answer:
        length = answer.headers.get("content-length", "")
        expected = int(length) if length.isdigit() else 0
        spool = Spool(shelf if answer.status_code == 200 else Shelf(size_limit=_ERROR_LIMIT), name, expected=expected)
        try:
            # The limit counts what comes out of a Content-Encoding, so that a small answer cannot unfold without end.
            async for piece in answer.aiter_bytes():
                spool.write(piece)
            body = spool.finish()
        finally:
            spool.discard()
        return body if isinstance(body, StoredBody) else Reply(answer.status_code, dict(answer.headers), body)


async def download_elsewhere(
    url: str, *, connection: Connection, tls: ssl.SSLContext, patience: Patience, shelf: Shelf, name: str, job_id: str
) -> Reply | StoredBody:
    """GET a body kept in object storage: without our token and CRN, following no redirect.

    Args:
        url: Its address; the signature in it opens the body to anybody.
        connection: For the timeout and the proxy.
        tls: The TLS context.
        patience: How long to go on repeating.
        shelf: Where a body goes that is too large for memory.
        name: What its file is called.
        job_id: For the error.

    Raises:
        ServiceUnavailable: No answer, or it broke off, until the patience ended.
        QuantumRuntimeError: No address to be trusted, an answer other than 200, too large, or the disk is full.
    """
    address = _trusted(url, job_id)

    async def once() -> Reply | StoredBody:
        try:
            async with httpx.AsyncClient(
                timeout=connection.request_timeout,
                proxy=connection.proxy,
                verify=tls,
                trust_env=not is_loopback(address.host),
            ) as http:
                found = await receive(http, address, {}, shelf, name)
        except httpx.HTTPError as exc:
            trouble = type(exc).__name__  # its text and its request hold the address with the signature
        else:
            if isinstance(found, Reply) and found.status != 200:
                kind = ServiceUnavailable if found.status >= 500 else QuantumRuntimeError
                raise kind(f"the stored result of job {job_id} cannot be read", status=found.status, job_id=job_id)
            return found
        raise ServiceUnavailable(f"the stored result of job {job_id} cannot be read: {trouble}", job_id=job_id)

    return await repeat(once, phase="fetch", patience=patience, what=f"GET the stored result of job {job_id}")


def _trusted(url: str, job_id: str) -> httpx.URL:
    register_secret(url.partition("?")[2])
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    safe = address.scheme == "https" or (address.scheme == "http" and is_loopback(address.host))
    if not safe or not address.host or not 0 < (address.port or 443) < 65536:
        raise QuantumRuntimeError(
            f"job {job_id} points to its result by no address that can be trusted; not fetched", job_id=job_id
        )
    register_secret(address.query.decode("ascii"))
    return address
