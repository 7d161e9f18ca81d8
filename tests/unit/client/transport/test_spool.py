"""Large bodies over real sockets: in pieces to the disk, whole or not at all, and never beyond a limit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport import spool
from prefect_qruntime.client.transport.http import download_elsewhere, tls_context
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.transport.spool import BodyStore, BodyWriter
from prefect_qruntime.errors import JobFailed, NotFound, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.models import JobStatus
from tests.support.mock_client import connection

BODY = b'{"results": [{"data": {"c": {"samples": [' + b'"0x3",' * 50_000 + b'"0x0"], "num_bits": 2}}, "metadata": {}}]}'
QUICK = RetryDeadlines(token=5.0, read=5.0, fetch=5.0, first_pause=0.01)


class Service(ThreadingHTTPServer):
    """Answers with IAM tokens, jobs, and whatever the test queued as results; the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Callable[[Handler], None]] = []
        self.asked: list[str] = []
        self.status = "Completed"
        self.private = False

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(b'{"access_token": "token-0123456789", "expires_in": 3600}')

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if "/results" in self.path or "/bucket" in self.path:
            answers = self.server.answers
            (answers.pop(0) if len(answers) > 1 else answers[0])(self)
        else:
            job_id = self.path.split("/")[2].partition("?")[0]
            job = (
                f'{{"id": "{job_id}", "status": "{self.server.status}", "private": {str(self.server.private).lower()}}}'
            )
            self.reply(job.encode())

    def reply(self, body: bytes, status: int = 200, *, promised: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(promised or len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        if promised is not None:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


GONE = b'{"errors": [{"code": 1291, "message": "Result not found."}], "trace": "t"}'


def whole(body: bytes = BODY, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.reply(body, **headers)


def broken_off(handler: Handler) -> None:
    handler.reply(BODY[: len(BODY) // 2], promised=len(BODY))


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(service: Service) -> QuantumRuntimeClient:
    return QuantumRuntimeClient(connection(base_url=service.url, iam_url=service.url), patience=QUICK)


@pytest.fixture
def shelf(tmp_path: Path) -> BodyStore:
    return BodyStore(directory=tmp_path / "private" / "results", memory_limit=10_000)


def files(shelf: BodyStore) -> list[str]:
    assert shelf.directory is not None
    return sorted(path.name for path in shelf.directory.iterdir()) if shelf.directory.exists() else []


def test_a_large_body_is_a_private_file_with_its_digest(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.answers = [whole()]
    result = client.run(client.result("d1", shelf=shelf))
    assert result.file is not None
    assert (result.file.size, result.file.sha256) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    path = Path(result.file.path)
    assert path.read_bytes() == BODY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert files(shelf) == [path.name]
    assert result.counts() == {"11": 50_000, "00": 1}


def test_a_small_body_stays_in_memory(service: Service, client: QuantumRuntimeClient, tmp_path: Path) -> None:
    service.answers = [whole()]
    result = client.run(client.result("d1", shelf=BodyStore(directory=tmp_path / "r", memory_limit=len(BODY))))
    assert result.file is None
    assert result.counts() == {"11": 50_000, "00": 1}
    assert not (tmp_path / "r").exists()


def test_a_body_that_breaks_off_is_fetched_again(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.answers = [broken_off, lambda handler: handler.reply(b"", 503), broken_off, whole()]
    result = client.run(client.result("d1", shelf=shelf))
    assert result.counts() == {"11": 50_000, "00": 1}
    assert len(service.asked) == 4
    assert len(files(shelf)) == 1


def test_a_body_that_always_breaks_off_leaves_nothing_behind(service: Service, shelf: BodyStore) -> None:
    patience = RetryDeadlines(fetch=0.2, first_pause=0.01)
    client = QuantumRuntimeClient(connection(base_url=service.url, iam_url=service.url), patience=patience)
    service.answers = [broken_off]
    with pytest.raises(ServiceUnavailable):
        client.run(client.result("d1", shelf=shelf))
    assert files(shelf) == []


def test_a_cut_body_whose_length_nobody_promised(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.answers = [whole(BODY[:30_000])]
    with pytest.raises(ServiceUnavailable, match="cut off") as caught:
        client.run(client.result("d1", shelf=shelf))
    assert caught.value.advice.kind == "same-request"
    assert files(shelf) == []


def test_a_large_text_of_a_failed_job_is_its_error(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.status = "Failed"
    service.answers = [whole(b"[stderr] Traceback\n" + b"x" * 90_000 + b"\nRuntimeError: boom")]
    with pytest.raises(JobFailed, match="RuntimeError: boom"):
        client.run(client.result("d1", shelf=shelf))
    assert files(shelf) == []


def test_packed_bodies_are_unpacked_to_the_disk(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.answers = [whole(gzip.compress(BODY), Content_Encoding="gzip")]
    result = client.run(client.result("d1", shelf=shelf))
    assert result.file is not None
    assert Path(result.file.path).read_bytes() == BODY


@pytest.mark.parametrize("after", [b"", b"\0" * 512, b"trailing garbage"])
def test_all_members_of_a_packed_body_count_and_what_follows_them_does_not(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, after: bytes
) -> None:
    pieces = [BODY[at : at + 70_000] for at in range(0, len(BODY), 70_000)]
    service.answers = [whole(b"".join(map(gzip.compress, pieces)) + after, Content_Encoding="gzip")]
    assert client.run(client.result("d1", shelf=shelf)).counts() == {"11": 50_000, "00": 1}


@pytest.mark.parametrize(
    ("body", "endless"),
    [(gzip.compress(b"{}"), b"\0" * 4096), (zlib.compress(b"")[:2], b"\0\0\0\xff\xff" * 800)],
    ids=["after its end", "empty blocks"],
)
def test_a_packed_body_that_gives_nothing_more_has_an_end(
    service: Service, shelf: BodyStore, body: bytes, endless: bytes
) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip" if body[:1] == b"\x1f" else "deflate")
        handler.end_headers()
        handler.close_connection = True
        with contextlib.suppress(OSError):  # the client hangs up
            handler.wfile.write(body)
            while True:
                handler.wfile.write(endless)

    service.answers = [answer]
    there = connection(base_url=service.url, iam_url=service.url, request_timeout=0.5)
    client = QuantumRuntimeClient(there, patience=RetryDeadlines(fetch=0.01))
    with contextlib.suppress(QuantumRuntimeError):
        client.run(client.result("d1", shelf=shelf))


def test_a_body_that_unfolds_beyond_the_limit_is_refused(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, tmp_path: Path
) -> None:
    small = BodyStore(directory=tmp_path / "r", memory_limit=10_000, size_limit=1_000_000)
    service.answers = [whole(gzip.compress(b"[" + b" " * 50_000_000 + b"]"), Content_Encoding="gzip")]
    with pytest.raises(QuantumRuntimeError, match="larger than 1000000") as caught:
        client.run(client.result("d1", shelf=small))
    assert "result_size_limit_bytes" in str(caught.value.solution)
    assert len(service.asked) == 1
    assert files(small) == []


def test_a_damaged_packing_is_fetched_again(service: Service, client: QuantumRuntimeClient, shelf: BodyStore) -> None:
    packed = gzip.compress(BODY)
    service.answers = [whole(packed[:20] + b"\0" * 20 + packed[40:], Content_Encoding="gzip"), whole()]
    assert client.run(client.result("d1", shelf=shelf)).counts() == {"11": 50_000, "00": 1}


def test_a_large_body_kept_elsewhere(service: Service, client: QuantumRuntimeClient, shelf: BodyStore) -> None:
    moved = f'{{"url": "{service.url}/bucket/r?Signature=0123456789"}}'.encode()
    service.answers = [whole(moved), broken_off, whole()]
    result = client.run(client.result("d1", shelf=shelf))
    assert result.file is not None
    assert result.counts() == {"11": 50_000, "00": 1}
    assert [path.partition("?")[0] for path in service.asked] == ["/jobs/d1/results", "/bucket/r", "/bucket/r"]


def _full(*args: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answers = [whole()]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", _full)
        with pytest.raises(QuantumRuntimeError, match="No space left") as caught:
            client.run(client.result("d1", shelf=shelf))
    assert "result_directory" in str(caught.value.solution)
    assert caught.value.advice.kind == "never"
    assert len(service.asked) == 1
    assert files(shelf) == []


@pytest.mark.parametrize("writes", [0, 1])
def test_a_full_disk_does_not_cost_the_only_copy(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    write, left = os.write, [writes]

    def sometimes(file: int, data: Any) -> int:
        left[0] -= 1
        return write(file, data[:1000]) if left[0] >= 0 else _full()

    service.answers = [whole(), lambda handler: handler.reply(GONE, 404)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", sometimes)
        result = client.run(client.result("d1", shelf=shelf.for_only_copy()))
    assert result.file is None
    assert result.counts() == {"11": 50_000, "00": 1}
    assert files(shelf) == []


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_only_copy_is_made_safe_beside_the_loop_and_kept_if_its_caller_is_cancelled_then(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """A slow disk takes seconds for a large one, during which no other call of the process went on."""
    fsync, where, begun, gate = os.fsync, list[str](), threading.Event(), threading.Event()

    def slow(file: int) -> None:
        where.append(threading.current_thread().name)
        begun.set()
        gate.wait()
        fsync(file)

    async def loop_thread() -> str:
        return threading.current_thread().name

    async def fetched() -> Any:
        task = asyncio.create_task(client.result("d1", shelf=shelf.for_only_copy()))
        await asyncio.to_thread(begun.wait)
        assert await network_loop().arun(loop_thread()) not in where, "the loop goes on"
        if cancelled:
            task.cancel()
            await asyncio.wait([task])
        gate.set()
        return await task

    monkeypatch.setattr(os, "fsync", slow)
    service.answers = [whole()]
    if cancelled:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(fetched())
        assert files(shelf) == [name for name in files(shelf) if name.endswith(".only.body")] != []
        result = client.run(client.result("d1", shelf=shelf.for_only_copy()))
    else:
        result = asyncio.run(fetched())
    assert result.counts() == {"11": 50_000, "00": 1}
    assert len([path for path in service.asked if "results" in str(path)]) == 1


CALLS = ("mkdir", "open", "write", "fsync", "replace", "unlink", "scandir")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("only_copy", [True, False])
def test_whatever_the_disk_refuses_no_only_copy_is_lost_and_the_error_is_ours(
    shelf: BodyStore, monkeypatch: pytest.MonkeyPatch, name: str, code: int, only_copy: bool
) -> None:
    """Each call to the system fails in its turn, once and from then on."""
    asked, real, folder = 0, getattr(os, name), str(shelf.directory)
    fails: Callable[[int], bool] = bool

    def call(path: Any, *rest: Any, **named: Any) -> Any:
        nonlocal asked
        if isinstance(path, int) or str(path).startswith(folder):
            asked += 1
            if fails(asked):
                raise OSError(code, os.strerror(code), str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(os, name, call)
    place = shelf.for_only_copy() if only_copy else shelf
    turns: list[Callable[[int], bool]] = [lambda _: False]
    for number in range(1, 6):
        turns += [lambda asked, number=number: asked == number, lambda asked, number=number: asked >= number]  # type: ignore[misc]
    for turn, refuses in enumerate(turns):
        asked, fails = 0, refuses
        body = BODY + str(turn).encode()
        cut = BodyWriter(place, f"b{turn}")
        writer = BodyWriter(place, f"b{turn}")
        try:
            cut.write(BODY)
            cut.keep_beginning()
            for begin in range(0, len(body), 100_000):
                writer.write(body[begin : begin + 100_000])
            writer.secure()
            found = writer.finish()
        except QuantumRuntimeError as error:
            refused = error
        else:
            refused = None
            assert (found if isinstance(found, bytes) else Path(found.path).read_bytes()) == body
            if not isinstance(found, bytes):
                found.discard()
        finally:
            cut.discard()
            writer.discard()
        if refused is not None:
            assert not only_copy
            assert refused.solution is not None
            assert os.strerror(code) in str(refused)


def test_the_only_copy_is_found_again_on_the_disk(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.private = True
    service.answers = [whole(b'{"results": []}'), lambda handler: handler.reply(GONE, 404)]
    only = shelf.for_only_copy()
    client.run(client.result("d1", shelf=only))  # and the process dies before it can hand it on
    again = client.run(client.result("d1", shelf=only))
    assert again.raw == {"results": []}
    assert len(service.asked) == 1
    assert again.file is not None
    again.file.discard()
    with pytest.raises(NotFound, match="read before"):
        client.run(client.result("d1", shelf=only))


@pytest.mark.parametrize("body", [b'{"results": [{"data": {"c": {"sam', b'{"results": [{"data": {}', b"no JSON"])
def test_a_damaged_only_copy_is_kept_and_named(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, body: bytes
) -> None:
    service.private = True
    service.answers = [whole(body), lambda handler: handler.reply(GONE, 404)]
    for _ in range(2):  # the second time from the disk
        with pytest.raises(ServiceUnavailable, match="no second copy") as caught:
            client.run(client.result("d1", shelf=shelf.for_only_copy()))
        assert caught.value.advice.kind == "never"
        (name,) = files(shelf)
        path = (shelf.directory or Path()) / name
        assert str(path) in str(caught.value)
        assert path.read_bytes() == body
    assert len([path for path in service.asked if "/results" in path]) == 1


TEXTS = ("[", "}{[", 'a "quote" [', "\\\\", '\\\\" {', "\\n]", "\u2022[")


@pytest.mark.parametrize("kept", TEXTS)
@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
def test_brackets_and_quotes_in_a_text_close_and_open_nothing(shelf: BodyStore, kept: str, piece: int) -> None:
    body = json.dumps({kept: [1, kept, {"x": kept}], "y": kept}).encode()
    for end in range(len(body) + 1):
        spool = BodyWriter(shelf if end % 2 else BodyStore(), "b")
        for start in range(0, end, piece):
            spool.write(body[start : min(start + piece, end)])
        assert spool.is_complete() is (end == len(body)), body[:end]
        spool.discard()


@pytest.mark.parametrize("piece", [1, 1000, len(BODY)])
@pytest.mark.parametrize("missing", [0, 1, 2, 30])
@pytest.mark.parametrize("length", ["too long", "chunks without end"])
@pytest.mark.parametrize("disk", [True, False])
def test_an_only_copy_that_arrived_as_a_whole_is_taken_although_the_transfer_broke_off(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, length: str, missing: int, piece: int, disk: bool
) -> None:
    body = b'{"results": [{"data": {"c": {"samples": ["0x3", "0x0"], "num_bits": 2}}, "metadata": {}}]} \n '
    body = BODY + b"\n" if piece > 1 else body
    part = body.rstrip()[: len(body.rstrip()) - missing] if missing else body

    def breaks_off(handler: Handler) -> None:
        handler.send_response(200)
        chunked = length != "too long"
        handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(part) + 9))))
        handler.end_headers()
        for start in range(0, len(part), piece):
            sent = part[start : start + piece]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if chunked else sent)
        handler.close_connection = True

    service.private = True
    service.answers = [breaks_off, lambda handler: handler.reply(GONE, 404)]
    only = (shelf if disk else BodyStore()).for_only_copy()
    if missing:
        with pytest.raises(NotFound, match="read before") as caught:
            client.run(client.result("d1", shelf=only))
        kept = [(shelf.directory or Path()) / name for name in files(shelf)]
        assert [path.read_bytes() for path in kept] == [part] * disk
        assert all(str(path) in str(caught.value) for path in kept)
    else:
        assert client.run(client.result("d1", shelf=only)).counts()["11"] > 0
    assert len([path for path in service.asked if "/results" in path]) == (2 if missing else 1)


ZIPPED = gzip.compress(BODY, mtime=0)
UNDECODED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "not asked for": (b"\x0b\x02\x80{]", {"Content_Encoding": "br"}, 200),
    "two": (gzip.compress(ZIPPED), {"Content_Encoding": "gzip, gzip"}, 200),
    "one of two": (gzip.compress(ZIPPED), {"Content_Encoding": "gzip"}, 200),
    "checksum": (ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], {"Content_Encoding": "gzip"}, 200),
    "damaged": (ZIPPED[:90] + bytes(9) + ZIPPED[99:], {"Content_Encoding": "gzip"}, 200),
    "large, damaged at the start": (ZIPPED[:20] + bytes(500_000), {"Content_Encoding": "gzip"}, 200),
    "cut": (ZIPPED[: len(ZIPPED) // 2], {"Content_Encoding": "gzip"}, 203),
    "cut deflate": (zlib.compress(BODY)[:60], {"Content_Encoding": "deflate"}, 200),
    "a part": (BODY[:1000], {"Content_Range": f"bytes 0-999/{len(BODY)}"}, 206),
    "another part": (BODY[1000:], {"Content_Range": f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"}, 206),
    "an encoded part": (ZIPPED[:60], {"Content_Encoding": "gzip"}, 206),
}
DECODED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "none": (BODY, {"Content_Encoding": "gzip"}, 200),
    "none, and not asked for": (BODY, {"Content_Encoding": "zstd"}, 200),
    "no checksum": (ZIPPED[:-8], {"Content_Encoding": "gzip"}, 200),
    "half a checksum": (ZIPPED[:-6], {"Content_Encoding": "x-gzip"}, 200),
    "no checksum of deflate": (zlib.compress(BODY)[:-4], {"Content_Encoding": "deflate"}, 200),
    "the whole as a part": (BODY, {"Content_Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}, 206),
    "the whole as an encoded part": (ZIPPED, {"Content_Encoding": "gzip"}, 206),
}


@pytest.mark.parametrize("case", UNDECODED)
def test_an_only_copy_that_cannot_be_decoded_is_kept_as_it_arrived(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, case: str
) -> None:
    sent, headers, status = UNDECODED[case]
    service.private = True
    service.answers = [
        lambda handler: handler.reply(sent, status, **headers),
        lambda handler: handler.reply(GONE, 404),
    ]
    whole_file = case == "one of two"  # decoded, and no JSON
    with pytest.raises(ServiceUnavailable if whole_file else NotFound, match="no second copy") as caught:
        client.run(client.result("d1", shelf=shelf.for_only_copy()))
    (name,) = files(shelf)
    path = (shelf.directory or Path()) / name
    assert str(path) in str(caught.value)
    assert path.read_bytes() == (ZIPPED if whole_file else sent)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("case", [case for case in UNDECODED if case != "one of two"])
def test_an_only_copy_that_cannot_be_decoded_is_asked_for_again(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, case: str, elsewhere: bool
) -> None:
    sent, headers, status = UNDECODED[case]
    service.private = True
    moved = whole(f'{{"url": "{service.url}/bucket/r?Signature=0123456789"}}'.encode())
    service.answers = [moved] * elsewhere + [lambda handler: handler.reply(sent, status, **headers), whole()]
    assert client.run(client.result("d1", shelf=shelf.for_only_copy())).counts() == {"11": 50_000, "00": 1}
    (name,) = files(shelf)
    assert ((shelf.directory or Path()) / name).read_bytes() == BODY


@pytest.mark.parametrize("case", ["damaged", "a part"])
def test_what_arrived_of_an_only_copy_that_never_arrives_undamaged_is_named(
    service: Service, shelf: BodyStore, case: str
) -> None:
    sent, headers, status = UNDECODED[case]
    service.answers = [lambda handler: handler.reply(sent, status, **headers)]
    patience = RetryDeadlines(fetch=0.2, first_pause=0.01)
    client = QuantumRuntimeClient(connection(base_url=service.url, iam_url=service.url), patience=patience)
    with pytest.raises(ServiceUnavailable) as caught:
        client.run(client.result("d1", shelf=shelf.for_only_copy()))
    (name,) = files(shelf)
    assert f"{shelf.directory}/{name}" in str(caught.value)


@pytest.mark.parametrize("disk", [True, False])
@pytest.mark.parametrize("case", DECODED)
def test_an_only_copy_of_which_only_the_end_of_its_encoding_is_missing_is_taken(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, case: str, disk: bool
) -> None:
    sent, headers, status = DECODED[case]
    service.private = True
    service.answers = [
        lambda handler: handler.reply(sent, status, **headers),
        lambda handler: handler.reply(GONE, 404),
    ]
    only = (shelf if disk else BodyStore()).for_only_copy()
    assert client.run(client.result("d1", shelf=only)).counts() == {"11": 50_000, "00": 1}


@pytest.mark.parametrize("headers", [{}, {"Content_Encoding": "gzip"}])
def test_the_longest_beginning_of_an_only_copy_is_kept_until_the_whole_is_there(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore, headers: dict[str, str]
) -> None:
    sent = ZIPPED if headers else BODY
    only, lengths = shelf.for_only_copy(), []

    def cut(length: int) -> Callable[[Handler], None]:
        def answer(handler: Handler) -> None:
            lengths.append([((shelf.directory or Path()) / name).stat().st_size for name in files(shelf)])
            handler.reply(sent[:length], promised=len(sent), **headers)

        return answer

    half, most = len(sent) // 2, len(sent) * 3 // 4
    service.private = True
    service.answers = [cut(half), cut(most), cut(half), whole(sent, **headers)]
    assert client.run(client.result("d1", shelf=only)).counts() == {"11": 50_000, "00": 1}
    first, second = (one[0] for one in lengths[1:])
    assert lengths[0] == []
    assert 0 < first < second < len(BODY)
    (name,) = files(shelf)
    assert ((shelf.directory or Path()) / name).read_bytes() == BODY


KILLED = """
import os, pathlib, signal, sys
from prefect_qruntime.client.transport.spool import BodyStore, BodyWriter

BodyWriter(BodyStore(directory=pathlib.Path(sys.argv[1])).for_only_copy(), sys.argv[2]).write(b"{" * int(sys.argv[3]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_received_of_an_only_copy_is_named(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    for length in (7, 9, 8):
        name = f"d1-{client.connection.instance}"
        command = [sys.executable, "-c", KILLED, str(shelf.directory), name, str(length)]
        assert subprocess.run(command, timeout=300, check=False).returncode < 0
    service.private = True
    service.answers = [lambda handler: handler.reply(GONE, 404)]

    async def fetched() -> None:
        async with shelf.lock("d1", "d1", print) as locked:
            await client.result("d1", shelf=locked.for_only_copy())

    with pytest.raises(NotFound) as caught:
        client.run(fetched())
    (kept,) = [path for path in (shelf.directory or Path()).iterdir() if str(path) in str(caught.value)]
    assert kept.read_bytes() == b"{" * 9
    service.answers = [whole()]
    client.run(fetched())
    assert not kept.exists()


STOPPED = """
import asyncio, os, pathlib, signal, sys
from prefect_qruntime.client.transport.spool import BodyStore

async def hold():
    async with BodyStore(directory=pathlib.Path(sys.argv[1])).lock("d1", "d1", print):
        print("locked", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(hold())
"""


def test_a_wait_for_a_process_that_is_stopped_is_said_and_ends(
    shelf: BodyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_LOCK_SAID", 0.0)
    monkeypatch.setattr(spool, "_LOCK_PATIENCE", 0.5)
    said: list[str] = []

    async def locked() -> bool:
        async with shelf.lock("d1", "the result of d1", said.append) as store:
            return store.is_locked

    command = [sys.executable, "-c", STOPPED, str(shelf.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(QuantumRuntimeError, match="the result of d1") as caught:
                asyncio.run(asyncio.wait_for(locked(), 60))
        finally:
            holder.kill()
    assert caught.value.advice.may_repeat
    assert len(said) == 1
    assert all("the result of d1" in text and str(shelf.directory) in text for text in (*said, str(caught.value)))
    assert asyncio.run(locked())


def test_a_page_is_not_the_only_copy(service: Service, client: QuantumRuntimeClient, shelf: BodyStore) -> None:
    service.private = True
    service.answers = [whole(b"<html>gateway</html>"), whole(), lambda handler: handler.reply(GONE, 404)]
    assert client.run(client.result("d1", shelf=shelf.for_only_copy())).counts() == {"11": 50_000, "00": 1}


def test_the_traceback_of_a_failed_private_job_is_no_copy_to_keep(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    service.private, service.status = True, "Failed"
    service.answers = [whole(b"Traceback: boom")]
    with pytest.raises(JobFailed, match="boom"):
        client.run(client.result("d1", shelf=shelf.for_only_copy()))
    assert files(shelf) == []


@pytest.mark.parametrize(
    "address",
    [
        *("{here}/admin", "http://169.254.169.254/latest", "https://169.254.169.254/", "http://localhost.evil/x"),
        *("file:///etc/passwd", "http://127.0.0.1@evil.example/", "https://user:pw@s3.example.com/", "https://127.1/"),
        *(
            "https://10.0.0.1/x",
            "https://localhost/x",
            "https://metadata/x",
            "https://[::1]/x",
            "http://s3.example.com/",
        ),
    ],
)
def test_a_remote_service_sends_nobody_to_private_hosts(service: Service, address: str) -> None:
    remote = connection()
    with pytest.raises(QuantumRuntimeError, match="an address that cannot be trusted"):
        network_loop().run(
            download_elsewhere(
                address.format(here=service.url),
                connection=remote,
                tls=tls_context(None),
                patience=QUICK,
                shelf=BodyStore(),
                name="n",
                job_id="d1",
            )
        )
    assert service.asked == []


def test_a_cancelled_download_leaves_nothing_behind(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    gate = threading.Event()

    def slow(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:100_000])
        gate.wait(20)

    service.answers = [slow]

    async def cancelled() -> None:
        task = asyncio.create_task(client.result("d1", shelf=shelf))
        while not files(shelf):  # noqa: ASYNC110 - a folder tells nobody
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    gate.set()
    assert files(shelf) == []


def test_the_file_of_another_machine(service: Service, client: QuantumRuntimeClient, shelf: BodyStore) -> None:
    service.answers = [whole()]
    result = client.run(client.result("d1", shelf=shelf))
    assert result.file is not None
    changed = result.model_copy()
    path = Path(result.file.path)
    path.write_bytes(BODY.replace(b"0x0", b"0x1"))
    with pytest.raises(NotFound, match="changed") as caught:
        changed.counts()
    path.unlink()
    with pytest.raises(NotFound, match="no longer, on this machine") as caught:
        result.counts()
    assert "fetch_results(credentials, 'd1')" in str(caught.value.solution)
    assert caught.value.job_id == "d1"


def test_what_nobody_reads_is_cleaned_up(service: Service, client: QuantumRuntimeClient, shelf: BodyStore) -> None:
    service.answers = [whole()]
    assert shelf.directory is not None
    names = ("old.body", ".old.body.0a.part", "read.body", "private.only.body", "note.txt")
    shelf.directory.mkdir(parents=True)
    for name in names:
        (shelf.directory / name).write_bytes(b"{}")
        os.utime(shelf.directory / name, (time.time() - 8 * 86400,) * 2)
    found = shelf.find("read")
    assert found is not None
    assert found.read(bytes) == b"{}"
    client.run(client.result("d1", shelf=shelf))
    kept = [name for name in files(shelf) if not name.startswith("d1-")]
    assert kept == ["note.txt", "private.only.body", "read.body"]


@pytest.mark.timeout(30)
def test_large_results_leave_room_for_other_requests(
    service: Service, client: QuantumRuntimeClient, shelf: BodyStore
) -> None:
    go_on = threading.Event()

    def slow(handler: Handler) -> None:
        go_on.wait(20)
        handler.reply(BODY)

    service.answers = [slow]

    async def main() -> None:
        downloads = [asyncio.create_task(client.result(f"d{n}", shelf=shelf)) for n in range(8)]
        while len([path for path in service.asked if "/results" in path]) < 6:  # noqa: ASYNC110 - a thread counts
            await asyncio.sleep(0.01)
        assert (await client.job("d1")).status is JobStatus.COMPLETED, "while six are under way and two stand in line"
        assert not any(download.done() for download in downloads)
        go_on.set()
        await asyncio.gather(*downloads)

    try:
        asyncio.run(main())
    finally:
        go_on.set()


MEMORY = """
import sys, threading
from pathlib import Path
import psutil
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.transport.spool import BodyStore, BodyWriter
from prefect_qruntime.client.connection import Connection

url, folder = sys.argv[1:]
crn = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123abcd:11aa-22bb::"
client = QuantumRuntimeClient(Connection(api_key="memory-test-key", crn=crn, base_url=url, iam_url=url))
shelf = BodyStore(directory=Path(folder))
client.run(client.result("d1", shelf=shelf))
me, most, done = psutil.Process(), 0, threading.Event()

def watch():
    global most
    while not done.wait(0.002):
        most = max(most, me.memory_info().rss)

before = me.memory_info().rss
watcher = threading.Thread(target=watch)
watcher.start()
result = client.run(client.result("d2", shelf=shelf))
done.set()
watcher.join()
print(result.file.size, max(most, me.memory_info().rss) - before, shelf.memory_limit)
"""


def test_300_megabytes_cost_no_more_memory_than_one_piece(service: Service, tmp_path: Path) -> None:
    piece = b" " * 1_000_000

    def large(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(300 * len(piece)))
        handler.end_headers()
        handler.wfile.write(b'{"results": []' + piece[14:])
        for _ in range(298):
            handler.wfile.write(piece)
        handler.wfile.write(piece[:-1] + b"}")

    # The first, small one brings in what every download needs: certificates aside, modules and buffers.
    service.answers = [whole(b'{"results": []}'), large]
    command = [sys.executable, "-c", MEMORY, service.url, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    size, grown, limit = map(int, shown.split())
    assert size == 300_000_000
    assert grown <= 1.5 * limit, f"grew by {grown / 1e6:.1f} MB"
