"""Keep large bodies in files of this machine.

A `BodyWriter` keeps what arrives in memory up to a limit and continues in a file from there. A file gets its
name only when it is complete, so a file of that name is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import glob
import hashlib
import mmap
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from prefect_qruntime.errors import SAME_REQUEST, QuantumRuntimeError

__all__ = ["BodyStore", "BodyWriter", "StoredBody"]

T = TypeVar("T")

_SUFFIX = ".body"
_PART = ".part"
_CUT = ".cut"
_ONLY = ".only"  # the name of a file that no clean-up may take says so
_LOCK = ".lock"
_LOCK_POLL = 0.1  # seconds
_LOCK_SAID = 5.0  # seconds after which a wait for a lock is logged
_LOCK_PATIENCE = 600.0  # seconds after which one ends: a process that is stopped keeps its lock
_PIECE = 1 << 18  # bytes of a file that are read at once
_ESCAPED = re.compile(rb"\\.", re.DOTALL)  # in a text of JSON


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
        """Remove the file, if it is still there and can be removed: who has its content is not stopped by it."""
        with contextlib.suppress(OSError):
            Path(self.path).unlink()


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
        self._unsafe: OSError | None = None
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

    def secure(self) -> None:
        """Make an only copy safe from a loss of power too, before `finish`; it takes long, so not on the loop."""
        if self._shelf.only_copy and (file := self._file) is not None:
            try:
                os.fsync(file)
            except OSError as error:
                self._unsafe = error  # the system reports it once

    def finish(self) -> bytes | StoredBody:
        """Return the whole body: in memory, or under its name on the disk.

        Raises:
            QuantumRuntimeError: The disk takes no more.
        """
        if self._file is None or self._part is None or self._path is None:
            return b"".join(self._pieces)
        try:
            if self._unsafe is not None:
                raise self._unsafe
            self._part.replace(self._path)
        except OSError as error:
            if not self._shelf.only_copy:
                raise self._no_room(error) from None
            self._back_to_memory(b"")
            return b"".join(self._pieces)
        self._part = None
        self.discard()
        if (cut := self._shelf.beginning(self._name)) is not None:
            with contextlib.suppress(OSError):
                cut.unlink()
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
