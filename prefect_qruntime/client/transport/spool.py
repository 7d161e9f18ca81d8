"""Receive answers with limits: of time, of bytes as they arrive, and of their decompressed size.

A `BodyWriter` keeps what arrives in memory up to a limit and continues in a file from there. A file gets its
name only when it is complete, so a file of that name is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import glob
import hashlib
import math
import mmap
import os
import re
import secrets
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpcore
import httpx

from prefect_qruntime.client.failures import WHOLE
from prefect_qruntime.client.transport.replies import Reply
from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError

__all__ = ["MOST_BYTES", "MOST_VALUES", "BodyStore", "BodyWriter", "StoredBody", "exchange", "receive"]

T = TypeVar("T")

MOST_BYTES = 64_000_000
"""The largest answer that is kept, results aside."""

MOST_VALUES = 250_000
"""The most values of a JSON answer, unless its caller allows more: each is far larger as an object than as text."""

_CONTAINER = 10  # values that a list or an object weighs as much as: 25,000 of them take 10 ms to read

_SUFFIX = ".body"
_PART = ".part"
_CUT = ".cut"
_ONLY = ".only"  # the name of a file that no clean-up may take says so
_LOCK = ".lock"
_LOCK_POLL = 0.1  # seconds
_LOCK_SAID = 5.0  # seconds after which a wait for a lock is logged
_LOCK_PATIENCE = 600.0  # seconds after which one ends: a process that is stopped keeps its lock


@dataclass(frozen=True, slots=True)
class StoredBody:
    """A complete body in a file of this machine.

    Attributes:
        path: Its path.
        size: Bytes.
        sha256: Hex digest of its content.
    """

    path: str
    size: int
    sha256: str

    def head(self, length: int = 4096) -> bytes:
        """Its first bytes."""
        with Path(self.path).open("rb") as file:
            return file.read(length)

    def tail(self, length: int = 64) -> bytes:
        """Its last bytes."""
        with Path(self.path).open("rb") as file:
            file.seek(max(0, self.size - length))
            return file.read(length)

    def read(self, use: Callable[[memoryview], T]) -> T:
        """Pass the whole content to `use`, mapped rather than copied; it must not keep the view.

        Raises:
            FileNotFoundError: The file is gone.
            ValueError: It is not what was stored.
        """
        with Path(self.path).open("rb") as file:
            if os.fstat(file.fileno()).st_size != self.size:
                raise ValueError(f"{self.path} was changed")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                if hashlib.sha256(view).hexdigest() != self.sha256:
                    raise ValueError(f"{self.path} was changed")
                with contextlib.suppress(OSError):
                    os.utime(self.path)  # a file that is read is not cleaned up
                return use(view)

    def pieces(self, length: int) -> Iterator[bytes]:
        """The content, piece by piece."""
        with Path(self.path).open("rb") as file:
            while piece := file.read(length):
                yield piece

    def discard(self) -> None:
        """Remove the file, if it is still there."""
        Path(self.path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class BodyStore:
    """The folder for large bodies, and their limits.

    Attributes:
        directory: Made when needed, for its owner only; None keeps everything in memory.
        memory_limit: Most bytes of one body kept in memory.
        size_limit: Most bytes of one body at all, as they are after decompression.
        keep_seconds: A file that was not read for this long is removed when the next one is stored here.
        only_copy: The service hands the body out once: it goes to the disk whatever its size, stays there until
            removed by name, and is kept in memory if the disk cannot be used.
        is_locked: No other process receives that body.
    """

    directory: Path | None = None
    memory_limit: int = 8_000_000
    size_limit: int = 4_000_000_000
    keep_seconds: float = 7 * 86400.0
    only_copy: bool = False
    is_locked: bool = False

    def for_only_copy(self) -> BodyStore:
        """The same store for a body that cannot be fetched again."""
        return replace(self, memory_limit=0, only_copy=True)

    def place(self, name: str) -> Path | None:
        """The path of the file called `name`."""
        if self.directory is None:
            return None
        return self.directory / f"{name}{_ONLY if self.only_copy else ''}{_SUFFIX}"

    def find(self, name: str) -> StoredBody | None:
        """The complete file of that name, if there is one."""
        path = self.place(name)
        if path is None or not path.is_file():
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return StoredBody(str(path), file.tell(), digest)

    @contextlib.asynccontextmanager
    async def lock(self, name: str, what: str, say: Callable[[str], None]) -> AsyncIterator[BodyStore]:
        """The same store for one process at a time, which receives a body, stores it and removes its file.

        The system releases the lock of a process that ends. Where files cannot be locked, there is none.

        Args:
            name: Names the body.
            what: The body, for people.
            say: Logs that another process has the lock.

        Raises:
            QuantumRuntimeError: Another process has had it for minutes.
        """
        held: int | None = None
        path = None if self.directory is None else self.directory / f".{name}{_LOCK}{_PART}"
        if path is not None:
            with contextlib.suppress(OSError, ImportError):  # a full disk, or Windows, has no lock
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                held = await _lock(path, what, say)
        try:
            yield replace(self, is_locked=held is not None)
        finally:
            if held is not None and path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()
                os.close(held)

    def beginning(self, name: str) -> Path | None:
        """The file with what arrived of an only copy of that name that broke off or was damaged, if there is one.

        Under the lock, what a killed process received becomes that file if it is more.
        """
        whole, path = self.place(name), self.place(f"{name}{_CUT}")
        if whole is None or path is None:
            return None
        for part in whole.parent.glob(f".{glob.escape(whole.name)}.*{_PART}") if self.is_locked else ():
            with contextlib.suppress(OSError):
                if part.stat().st_size > (path.stat().st_size if path.is_file() else 0):
                    part.replace(path)
        return path if path.is_file() else None

    def tidy(self) -> int:
        """Remove files that were not read for `keep_seconds`, and parts left by killed processes; return how many."""
        if self.directory is None:
            return 0
        limit = time.time() - self.keep_seconds
        removed = 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.directory):
                ours = entry.name.endswith(_PART) or (
                    entry.name.endswith(_SUFFIX) and not entry.name.endswith(_ONLY + _SUFFIX)
                )
                if ours and entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < limit:
                    Path(entry.path).unlink(missing_ok=True)
                    removed += 1
        return removed


async def _lock(path: Path, what: str, say: Callable[[str], None]) -> int:
    """Wait for the lock of a file; see `BodyStore.lock`."""
    began, said = time.monotonic(), False
    while (held := _locked(path)) is None:
        waited, busy = time.monotonic() - began, f"Another process on this machine is receiving {what}"
        if waited > _LOCK_PATIENCE:
            # Not without the lock: what that process has requested is not handed out again.
            raise QuantumRuntimeError(
                f"{busy}, for {waited:.0f} seconds now, and has the lock {path}.",
                solution="Nothing was sent. Let that process go on or, if it hangs, end it. Then try again.",
                advice=SAME_REQUEST,
            )
        if waited > _LOCK_SAID and not said:
            said = True
            say(f"{busy} and has the lock {path}. Waiting for it, {_LOCK_PATIENCE:g} seconds at most.")
        await asyncio.sleep(_LOCK_POLL)
    return held


def _locked(path: Path) -> int | None:
    """Lock the file, which is made; return its descriptor, or None while another process has it."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):  # else the one before removed it meanwhile
            return file
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


class BodyWriter:
    """Receives one body.

    Args:
        shelf: The store for it.
        name: Name of its file.
        expected: Its size in bytes, if known: a large one then takes no memory even at its start.
    """

    def __init__(self, shelf: BodyStore, name: str, *, expected: int = 0) -> None:
        self.size = 0
        self._shelf = shelf
        self._memory_limit = 0 if expected > shelf.memory_limit else shelf.memory_limit
        self._name = name
        self._path = shelf.place(name)
        self._part: Path | None = None
        self._file: int | None = None
        self._pieces: list[bytes] = []
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Write the next piece.

        Raises:
            QuantumRuntimeError: Larger than the shelf's limit, or the disk is full.
        """
        self.size += len(piece)
        if self.size > self._shelf.size_limit:
            raise QuantumRuntimeError(
                f"the result is larger than {self._shelf.size_limit} bytes",
                solution="Raise the setting result_size_limit_bytes if that is expected.",
            )
        if self._file is not None:
            self._put(piece)
            return
        self._pieces.append(piece)
        if self._path is not None and self.size > self._memory_limit:
            held, self._pieces = self._pieces, []
            for waiting in held:
                self._put(waiting)

    def finish(self) -> bytes | StoredBody:
        """Return the whole body: in memory, or under its name on the disk.

        Raises:
            QuantumRuntimeError: The disk takes no more.
        """
        if self._file is None or self._part is None or self._path is None:
            return b"".join(self._pieces)
        try:
            if self._shelf.only_copy:
                os.fsync(self._file)  # safe from a loss of power too
            self._part.replace(self._path)
        except OSError as error:
            if not self._shelf.only_copy:
                raise self._no_room(error) from None
            self._back_to_memory(b"")
            return b"".join(self._pieces)
        self._part = None
        self.discard()
        if (cut := self._shelf.beginning(self._name)) is not None:
            cut.unlink(missing_ok=True)
        return StoredBody(str(self._path), self.size, self._digest.hexdigest())

    def keep_beginning(self) -> None:
        """Keep what arrived of a body that may not be handed out again, unless more of it arrived before."""
        path = self._shelf.place(f"{self._name}{_CUT}")
        if path is not None and self._part is not None:
            with contextlib.suppress(OSError):
                if not path.is_file() or path.stat().st_size < self.size:
                    self._part.replace(path)
                    self._part = None

    def is_complete(self) -> bool:
        """Whether what arrived so far is JSON of which nothing is open. Reads the part, so not on the loop."""
        with contextlib.ExitStack() as opened:
            pieces: Iterator[bytes] = iter(self._pieces)
            if self._part is not None:
                file = opened.enter_context(self._part.open("rb"))
                pieces = iter(functools.partial(file.read, _PIECE), b"")
            rest, last, in_text, balance = b"", b"", False, {b"{": 0, b"[": 0}
            for piece in pieces:
                text = _ESCAPED.sub(b"", rest + piece)
                rest = text[-1:] if text.endswith(b"\\") else b""  # the second half of it is in the next piece
                parts = text.split(b'"')
                outside = b"".join(parts[in_text::2])
                in_text ^= len(parts) % 2 == 0
                last = outside.rstrip()[-1:] or last
                for begin, end in ((b"{", b"}"), (b"[", b"]")):
                    balance[begin] += outside.count(begin) - outside.count(end)
        return last in (b"}", b"]") and not in_text and not any(balance.values())

    def discard(self) -> None:
        """Forget everything; harmless after `finish`."""
        self._pieces = []
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._part.unlink()
            self._part = None

    def _put(self, piece: bytes) -> None:
        if self._path is None:
            self._pieces.append(piece)
            return
        rest = memoryview(piece)
        try:
            file = self._file if self._file is not None else self._open(self._path)
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError as error:
            if not self._shelf.only_copy:
                raise self._no_room(error) from None
            self._back_to_memory(bytes(rest))
        self._digest.update(piece)

    def _open(self, path: Path) -> int:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._shelf.tidy()
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
        self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return self._file

    def _back_to_memory(self, rest: bytes) -> None:
        # There is no second copy, so a full disk must not cost this one.
        written = self._part.read_bytes() if self._part is not None and self._file is not None else b""
        self.discard()
        self._pieces, self._path = [written, rest], None

    def _no_room(self, error: OSError) -> QuantumRuntimeError:
        return QuantumRuntimeError(
            f"the result cannot be stored in {self._shelf.directory}: {error.strerror or error}",
            solution="Free space there, or set result_directory to another folder.",
        )


_ERROR_BYTES = 1_000_000  # of an answer that is no success; more of it is cut off
_PIECE = 1 << 18  # bytes that are unfolded at once, so that the loop can do other things in between
_ESCAPED = re.compile(rb"\\.", re.DOTALL)  # in a text of JSON
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
                body = best.finish()
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
