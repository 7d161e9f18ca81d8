"""Bodies too large for memory: received piece by piece into a file, and read back once.

A `Spool` keeps what arrives in memory up to a limit and goes on in a file from there. A file gets its
name only when it is complete, so whoever finds it by that name may rely on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import httpx

from prefect_qruntime.client.connection import Connection, is_loopback
from prefect_qruntime.client.transport.replies import Reply
from prefect_qruntime.client.transport.retrying import RetryDeadlines, repeat
from prefect_qruntime.errors import QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.redact import register_secret

__all__ = ["BodyStore", "BodyWriter", "StoredBody", "download_elsewhere", "receive"]

T = TypeVar("T")

_SUFFIX = ".body"
_PART = ".part"
_ONLY = ".only"  # the name of a file that no clean-up may take says so


@dataclass(frozen=True, slots=True)
class StoredBody:
    """A complete body in a file of this machine.

    Attributes:
        path: Where it is.
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
        """Give the whole content to `use`, mapped rather than copied; it must not keep the view.

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
                    os.utime(self.path)  # what is read is not cleaned up
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
    """Where large bodies are put, and how large they may be.

    Attributes:
        directory: Made when needed, for its owner only; None keeps everything in memory.
        memory_limit: Most bytes of one body kept in memory.
        size_limit: Most bytes of one body at all, as they are after decompression.
        keep_seconds: A file that nobody read for so long is removed when the next one is put here.
        only_copy: The service hands the body out once: it goes to the disk whatever its size, stays there until
            removed by name, and is kept in memory where the disk is of no use.
    """

    directory: Path | None = None
    memory_limit: int = 8_000_000
    size_limit: int = 4_000_000_000
    keep_seconds: float = 7 * 86400.0
    only_copy: bool = False

    def for_only_copy(self) -> BodyStore:
        """The same for a body that cannot be fetched again."""
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

    def tidy(self) -> int:
        """Remove files that nobody read for `keep_seconds`, and parts left by killed processes; how many."""
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


class BodyWriter:
    """One body on its way in.

    Args:
        shelf: Where it may go.
        name: What its file is called.
        expected: Its size in bytes, where known: a large one then takes no memory even at its start.
    """

    def __init__(self, shelf: BodyStore, name: str, *, expected: int = 0) -> None:
        self.size = 0
        self._shelf = shelf
        self._memory_limit = 0 if expected > shelf.memory_limit else shelf.memory_limit
        self._path = shelf.place(name)
        self._part: Path | None = None
        self._file: int | None = None
        self._pieces: list[bytes] = []
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            QuantumRuntimeError: Larger than the shelf's limit, or the disk takes no more.
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
        """The whole body: in memory, or under its name on the disk.

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
        return StoredBody(str(self._path), self.size, self._digest.hexdigest())

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
        # There is no second copy to be had, so a full disk must not cost it.
        written = self._part.read_bytes() if self._part is not None and self._file is not None else b""
        self.discard()
        self._pieces, self._path = [written, rest], None

    def _no_room(self, error: OSError) -> QuantumRuntimeError:
        return QuantumRuntimeError(
            f"the result cannot be stored in {self._shelf.directory}: {error.strerror or error}",
            solution="Make room there, or set result_directory to another folder.",
        )


_ERROR_LIMIT = 10_000_000  # bytes of an answer that is no result


async def receive(
    http: httpx.AsyncClient, url: str | httpx.URL, headers: Mapping[str, str], shelf: BodyStore, name: str
) -> Reply | StoredBody:
    """Send one GET. A body of status 200 that is too large for memory ends up in a file on the shelf.

    Raises:
        httpx.HTTPError: No answer, one that broke off, or one whose encoding is damaged. Not to be let out of floor 1.
        QuantumRuntimeError: Larger than the shelf's limit, or the disk takes no more.
    """
    async with http.stream("GET", url, headers=dict(headers)) as answer:
        length = answer.headers.get("content-length", "")
        expected = int(length) if length.isdigit() else 0
        spool = BodyWriter(
            shelf if answer.status_code == 200 else BodyStore(size_limit=_ERROR_LIMIT), name, expected=expected
        )
        try:
            # The limit counts what comes out of a Content-Encoding, so that a small answer cannot unfold without end.
            async for piece in answer.aiter_bytes():
                spool.write(piece)
            body = spool.finish()
        finally:
            spool.discard()
        return body if isinstance(body, StoredBody) else Reply(answer.status_code, dict(answer.headers), body)


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
        url: Its address; the signature in it opens the body to anybody.
        connection: For the timeout and the proxy.
        tls: The TLS context.
        patience: How long to go on repeating.
        shelf: Where a body goes that is too large for memory.
        name: What its file is called.
        job_id: For the error.

    Raises:
        ServiceUnavailable: No answer, one other than 200, or it broke off, until the patience ended.
        QuantumRuntimeError: No address to be trusted, too large, or the disk is full.
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
                text = f"the stored result of job {job_id} cannot be read"
                raise ServiceUnavailable(text, status=found.status, job_id=job_id)
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
