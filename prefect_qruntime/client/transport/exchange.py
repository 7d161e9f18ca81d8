"""One exchange with the service: send a request, and receive its answer within limits.

The limits are of time, of bytes as they arrive, and of their decompressed size.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpx

from prefect_qruntime.client.failures import WHOLE
from prefect_qruntime.client.transport.replies import Reply
from prefect_qruntime.client.transport.spool import BodyStore, BodyWriter, StoredBody
from prefect_qruntime.errors import QuantumRuntimeError

__all__ = ["MOST_BYTES", "MOST_VALUES", "exchange", "receive"]

MOST_BYTES = 64_000_000
"""The largest answer that is kept, results aside."""

MOST_VALUES = 250_000
"""The most values of a JSON answer, unless its caller allows more: each is far larger as an object than as text."""

_CONTAINER = 10  # values that a list or an object weighs as much as: 25,000 of them take 10 ms to read

_ERROR_BYTES = 1_000_000  # of an answer that is no success; more of it is cut off
_PIECE = 1 << 18  # bytes that are unfolded at once, so that the loop can do other things in between
_PART_OF_IT = 206  # what a proxy may make of a whole result, too
_GZIP = b"\x1f"  # begins each member of a gzip body
_SLOWEST = 8_000  # bytes a second below which a large body does not count as moving
_HEAD = 4096  # first bytes of an answer that are kept until its headers can be read
_STATUS_LINE = re.compile(rb"\s*HTTP/\d(?:\.\d)? +(\d{3})(?!\d)")
_STALE = "an answer that came before the request"
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_SENT = (".send_request_headers.failed", ".send_request_body.failed", ".send_request_body.complete")
_AT_ONCE = 1 << 14  # bytes that the buffer of a connection takes at once


@dataclass(slots=True)
class _Progress:
    """How far a request has come, as httpcore reports it, and the first bytes that arrived since it was sent.

    httpx keeps nothing of an answer whose headers are damaged or cut off, but its first line may say that a create was
    accepted.
    """

    on_sent: Callable[[], None] = lambda: None
    is_large: bool = False
    is_sending: bool = False  # a large one
    is_read: bool = False  # something of what arrived
    connecting: bool = False
    _tunnelling: bool = False
    _stream: Any = None
    _first: bytearray = field(default_factory=bytearray)

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        """Note an event of httpcore's `trace` extension."""
        if event.endswith(".connect_tcp.started"):
            self.connecting = True
        elif event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._stream = info["return_value"]
            with contextlib.suppress(AttributeError):  # one that cannot be changed
                _Wire(self._stream)
        elif event.endswith((".setup_socks5_connection.failed", ".start_tls.failed")):
            await self._stream.aclose()  # httpcore leaves it open when its caller is cancelled
        elif event.endswith(".send_request_headers.started"):
            # A proxy is asked for the connection in a request of its own.
            self.connecting = self._tunnelling = info["request"].method == b"CONNECT"
            self.is_sending = self.is_large and not self._tunnelling
            self.is_read = False
            self._first.clear()
            _asking.set(self)
        elif event.endswith(_SENT) and not self._tunnelling:
            self.is_sending = False
            self.on_sent()

    def hear(self, data: bytes) -> None:
        """Note what arrived on the connection of the request."""
        if len(self._first) < _HEAD:
            self._first += data[:_HEAD]

    def is_stale(self, answer: httpx.Response) -> bool:
        """Whether an answer, or the beginning of it, was left over in the connection when the request was sent."""
        stream = answer.extensions.get("network_stream")
        is_heard = isinstance(getattr(getattr(stream, "read", None), "__self__", None), _Wire)
        return is_heard and not (self.is_read and _STATUS_LINE.match(self._first))

    def accepted(self) -> Reply | None:
        """A 2xx, without headers and body, of which only the first line arrived undamaged."""
        status = self._status()
        return Reply(status, {}, b"") if 200 <= status < 300 else None

    def is_refused(self) -> bool:
        """Whether the first line of an answer that is no success arrived: the rest of the body need not be sent."""
        return self._status() >= 300

    def _status(self) -> int:
        """The status in the first line of the final answer, 0 before that has arrived."""
        head = b"" if self._tunnelling else bytes(self._first)
        while (found := _STATUS_LINE.match(head)) is not None and found[1].startswith(b"1"):
            head = _BLANK_LINE.split(head, maxsplit=1)[1] if _BLANK_LINE.search(head) else b""
        return int(found[1]) if found is not None else 0

    def error(self, error: Exception, seconds: float) -> httpx.HTTPError:
        """The error as one of httpx, which lets others through: it parses the address of a redirect that it ignores.

        What goes wrong before the request itself is sent is a failure to connect, with or without a proxy's answer.
        """
        if isinstance(error, TimeoutError):
            kind = httpx.ConnectTimeout if self.connecting else httpx.ReadTimeout
            return kind(f"not done within {seconds:g} s")
        if self.connecting and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
            return httpx.ProxyError(f"no connection through the proxy: {str(error) or type(error).__name__}")
        if isinstance(error, httpx.HTTPError):
            return error
        return httpx.TransportError(f"an answer that cannot be read ({type(error).__name__})")


_asking: ContextVar[_Progress | None] = ContextVar("qruntime_asking", default=None)


class _Wire:
    """The reads and writes of one connection; what arrives is noted for the request that it answers.

    A server may answer, and close, before it has the whole of a large body. asyncio drops a connection of which a write
    fails, with all that has not been read from it: so the answer is read while the body is sent.
    """

    def __init__(self, stream: Any) -> None:
        self._read, self._write, self._extra_info = stream.read, stream.write, stream.get_extra_info
        self._early = bytearray()
        self._is_used_up = False
        stream.read, stream.write, stream.get_extra_info = self.read, self.write, self.get_extra_info

    def get_extra_info(self, info: str) -> Any:
        """Whether there is something to read on an idle connection, for which httpcore closes it; or something else.

        None is used again on which something came early: the rest of it would be taken for the next answer.
        """
        return (info == "is_readable" and self._is_used_up) or self._extra_info(info)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what arrived while the request was sent, then what arrives."""
        progress = _asking.get()
        if progress is not None:
            progress.is_read = True
        if self._early:
            early, self._early = bytes(self._early[:max_bytes]), self._early[max_bytes:]
            return early
        data: bytes = await self._read(max_bytes, timeout)
        if progress is not None:
            progress.hear(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write a part of a request, unless its refusal arrives meanwhile: httpcore reads the answer then."""
        progress = _asking.get()
        if progress is None or not progress.is_sending:
            await self._write(buffer, timeout)
            return
        hearing = asyncio.ensure_future(self._refusal(progress))
        sending = asyncio.ensure_future(self._write_after_reading(buffer, timeout))
        try:
            await asyncio.wait((sending, hearing), return_when=asyncio.FIRST_COMPLETED)
            if progress.is_refused():
                raise httpcore.WriteError
            await sending
        finally:
            sending.cancel()
            hearing.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def _write_after_reading(self, buffer: bytes, timeout: float | None) -> None:
        for _ in range(2):  # the loop reads what has arrived before a write can fail
            await asyncio.sleep(0)
        await self._write(buffer, timeout)

    async def _refusal(self, progress: _Progress) -> None:
        """Read until a refusal is there, nothing more will come, or too much did."""
        while not progress.is_refused() and len(self._early) < _ERROR_BYTES and (data := await self._read(_HEAD)):
            progress.hear(data)
            self._early += data
            self._is_used_up = True


async def _one_by_one(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def exchange(
    http: httpx.AsyncClient,
    method: str,
    url: str | httpx.URL,
    *,
    seconds: float,
    headers: Mapping[str, str],
    params: Mapping[str, Any] | None = None,
    content: Sequence[bytes] | None = None,
    most_values: int = MOST_VALUES,
) -> Reply:
    """Send one request and receive its answer, both within `seconds` and with a limit to what is kept.

    A success whose body is too large comes without it, so that it is an unreadable answer; any other is cut off.

    Args:
        http: The client.
        method: HTTP method.
        url: The address.
        seconds: For the whole exchange, however slow. A large `content` gets more, by its size.
        headers: Its headers.
        params: Its query.
        content: Its body in pieces, which are sent one by one.
        most_values: Most values in a JSON answer, counted by its separators.

    Raises:
        httpx.HTTPError: No answer, one that broke off, or one whose encoding is damaged. Must not leave
            `client.transport`.
    """

    def on_sent() -> None:
        if not deadline.expired():  # what is left is the answer's
            deadline.reschedule(min(deadline.when() or math.inf, asyncio.get_running_loop().time() + seconds))

    sent = content or ()
    size = sum(map(len, sent))
    progress = _Progress(on_sent, is_large=size > _AT_ONCE)
    deadline = asyncio.timeout(seconds + size / _SLOWEST)
    length = {"Content-Length": str(size)} if len(sent) > 1 else {}
    body = bytearray()
    values, too_large = 0, ""
    accepted: Reply | None = None
    try:
        async with (
            deadline,
            http.stream(
                method,
                url,
                params=params,
                # Sent at once, it would be encrypted at once, which blocks the loop.
                content=_one_by_one(sent) if length else b"".join(sent) or None,
                headers={**headers, **length, "Accept-Encoding": "gzip, deflate"},
                extensions={"trace": progress},
            ) as answer,
        ):
            if progress.is_stale(answer):
                raise httpx.RemoteProtocolError(_STALE)
            good = answer.is_success
            if good and method == "POST":
                # The status says that it was accepted: a body that breaks off is an unreadable answer, no lost one.
                accepted = Reply.of(answer, b"")
            limit = MOST_BYTES if good else _ERROR_BYTES
            async with contextlib.aclosing(_unfolded(answer, None)) as pieces:
                async for piece in pieces:
                    body += piece
                    values += piece.count(b",") + _CONTAINER * (piece.count(b"[") + piece.count(b"{"))
                    if len(body) > limit or values > most_values:
                        too_large = f"more than {limit} bytes" if len(body) > limit else f"over {most_values} values"
                        break
    except Exception as error:
        accepted = accepted or (progress.accepted() if method == "POST" else None)
        if accepted is not None:
            return accepted
        raise progress.error(error, seconds) from None
    if too_large:
        return Reply.of(answer, too_large.encode() if good else bytes(body[:limit]))
    return Reply.of(answer, bytes(body))


async def receive(
    http: httpx.AsyncClient,
    url: str | httpx.URL,
    *,
    headers: Mapping[str, str],
    shelf: BodyStore,
    name: str,
    seconds: float,
) -> Reply | StoredBody:
    """Send one GET. A result that is too large for memory ends up in a file on the shelf.

    What arrived of an only copy that broke off or cannot be decoded stays on the shelf.

    Args:
        http: The client.
        url: The address.
        headers: Its headers.
        shelf: Store for the body.
        name: Name of its file.
        seconds: Until the headers are there; a body that keeps arriving gets more, by its size.

    Raises:
        httpx.HTTPError: No answer, one that broke off, or one whose encoding is damaged. Must not leave
            `client.transport`.
        QuantumRuntimeError: Larger than the shelf's limit, or the disk is full.
    """
    progress = _Progress()
    try:
        async with (
            asyncio.timeout(seconds) as deadline,
            http.stream(
                "GET",
                url,
                headers={**headers, "Accept-Encoding": "gzip, deflate"},
                extensions={"trace": progress},
            ) as answer,
        ):
            if progress.is_stale(answer):
                raise httpx.RemoteProtocolError(_STALE)
            # No other copy may come, so whatever arrives of one is kept.
            only = shelf.only_copy and answer.status_code in (*WHOLE, _PART_OF_IT)
            found = only or answer.status_code in WHOLE
            length = answer.headers.get("content-length", "")
            expected = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
            spool = BodyWriter(shelf if found else BodyStore(), name, expected=expected)
            encoded = BodyWriter(shelf, name, expected=expected) if only else None
            body: bytes | StoredBody | None = None
            best = spool
            try:
                # The limit counts what comes out of a Content-Encoding, so that a small answer cannot unfold without
                # limit; the deadline what goes into it.
                try:
                    async with contextlib.aclosing(_unfolded(answer, deadline if found else None, encoded)) as pieces:
                        async for piece in pieces:
                            spool.write(piece)
                            if not found and spool.size > _ERROR_BYTES:
                                break
                    if only and answer.status_code not in WHOLE:
                        raise _CutOff("a part of the result")
                except (httpx.TransportError, httpx.DecodingError) as error:
                    # One of which only the end of the transfer, or of its encoding, is missing is taken, and one that
                    # is not encoded although the answer says so.
                    is_cut = isinstance(error, httpx.TransportError | _CutOff)
                    if not (only and is_cut and await asyncio.to_thread(spool.is_complete)):
                        if encoded is None or not encoded.size or isinstance(error, httpx.TransportError):
                            raise
                        best = encoded
                        if not await asyncio.to_thread(best.is_complete):
                            raise
                try:
                    if only:
                        deadline.reschedule(None)  # all is there
                        await asyncio.to_thread(best.secure)
                        deadline.reschedule(asyncio.get_running_loop().time() + seconds)
                finally:
                    body = best.finish()  # also if the caller is cancelled meanwhile
            finally:
                if only and body is None:
                    best.keep_beginning()
                spool.discard()
                if encoded is not None:
                    encoded.discard()
    except TimeoutError:
        raise httpx.ReadTimeout(f"not done within {seconds:g} s, and slower than {_SLOWEST} bytes a second") from None
    except QuantumRuntimeError:
        raise
    except Exception as error:
        raise progress.error(error, seconds) from None
    if isinstance(body, StoredBody):
        return body
    return Reply(WHOLE[0], dict(answer.headers), body) if only else Reply.of(answer, body)


class _CutOff(httpx.DecodingError):
    """What was decoded may be the whole body although the answer says otherwise."""


async def _unfolded(
    answer: httpx.Response, deadline: asyncio.Timeout | None, encoded: BodyWriter | None = None
) -> AsyncGenerator[bytes]:
    """Decode the body's Content-Encoding, in small pieces.

    httpx would unfold each piece that arrives as a whole, which is a thousandfold with gzip.

    Args:
        answer: Its headers are there.
        deadline: Extended by what arrives and unfolds to something.
        encoded: Receives what is decoded, as it arrived. With it, an encoding that was not asked for is left as it is.

    Raises:
        httpx.DecodingError: The encoding is damaged, or one that was not asked for.
    """
    damage: httpx.DecodingError | None = None
    encodings = [name.strip().lower() for name in answer.headers.get("content-encoding", "").split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    if encodings not in ([], ["gzip"], ["x-gzip"], ["deflate"]):
        damage = _CutOff(f"an encoding that was not asked for: {encodings[0][:40]!r}")
        if encoded is None:
            raise damage
        encodings = []
    assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101
    unfold: Any = None
    async for arrived in answer.stream:
        came, given, rest = len(arrived), 0, arrived
        if encodings and encoded is not None:
            encoded.write(arrived)
        if not encodings:
            given = came
            for start in range(0, came, _PIECE):
                yield arrived[start : start + _PIECE]
        while rest and encodings and damage is None:
            if unfold is None or unfold.eof:
                # What follows the end is another member of a gzip body, or nothing that belongs to the answer.
                if unfold is not None and (encodings == ["deflate"] or rest[:1] != _GZIP):
                    return
                bare = encodings == ["deflate"] and rest[0] & 0x0F != 8  # some servers leave zlib's header out
                unfold = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
            try:
                piece = unfold.decompress(rest, _PIECE)
            except zlib.error as error:
                damage = httpx.DecodingError(str(error))
                break
            rest = unfold.unused_data if unfold.eof else unfold.unconsumed_tail
            given += len(piece)
            if piece:
                yield piece
                await asyncio.sleep(0)
        if damage is not None:
            if encoded is None:
                break
            given = came  # the rest is kept as it arrives
        # What unfolds to nothing is no progress.
        if deadline is not None and not deadline.expired():
            deadline.reschedule((deadline.when() or 0.0) + min(came, given) / _SLOWEST)
    if damage is not None:
        raise damage
    if unfold is not None and not unfold.eof:
        raise _CutOff("the encoded body is cut off")
