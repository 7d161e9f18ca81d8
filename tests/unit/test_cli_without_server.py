"""What each command says and returns where no Prefect server answers, or something else does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLOUD_API_URL, temporary_settings
from pydantic import BaseModel, model_serializer

from prefect_qruntime.cli import app
from prefect_qruntime.cli.options import require_prefect
from tests.support.command_line import exit_code
from tests.support.loopback import answering, serving

LOCAL = {"init", "sandbox", "server", "install-completion"}
COMMANDS = sorted(name for name in app if not name.startswith("-"))


def words(command: str) -> list[str]:
    """The command with a text for each argument that it cannot do without."""
    found = app[command].assemble_argument_collection(parse_docstring=False)
    wanted = [argument.name for argument in found if argument.required]
    options = [word for name in wanted if name.startswith("--") for word in (name, "any")]
    return [command, *("d0123456789abcdefghij" for name in wanted if not name.startswith("--")), *options]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and all that was printed, in one line."""
    code = exit_code(*arguments)
    shown = capsys.readouterr()
    assert isinstance(code, int)
    return code, " ".join((shown.out + shown.err).split())


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, and nothing else can while the block runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def page() -> contextlib.AbstractContextManager[int]:
    """A web server that has a page for everything."""
    return serving(answering("200 OK", "<html>Something else</html>", **{"Content-Type": "text/html"}))


def refusing() -> contextlib.AbstractContextManager[int]:
    """A web server that has none of Prefect's paths, as Prefect's own without /api in the address."""
    return serving(answering("404 Not Found", '{"detail":"Not Found"}'))


def locked(path: bytes = b"/health") -> contextlib.AbstractContextManager[int]:
    """A Prefect server that wants a password for all but one path: a plain one tells everyone its health."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            asked = await reader.readuntil(b"\r\n\r\n")
            open_one = path in asked.split(b"\r\n")[0]
            status, body = (
                ("200 OK", "true") if open_one else ("401 Unauthorized", '{"exception_message":"Unauthorized"}')
            )
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            writer.write(f"{head}connection: close\r\n\r\n{body}".encode())
            await writer.drain()
            writer.close()

    return serving(handle)


def gibberish() -> contextlib.AbstractContextManager[int]:
    """A port that something listens on which does not speak HTTP."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"220 ready\r\n")
            await writer.drain()
            writer.close()

    return serving(handle)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in LOCAL])
@pytest.mark.parametrize("path", [b"/health", b"no path at all"], ids=["its health is told", "nothing is told"])
def test_a_command_says_that_the_server_wants_another_password(
    capsys: pytest.CaptureFixture[str], command: str, path: bytes
) -> None:
    with locked(path) as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        code, text = said(capsys, *words(command))
    assert code == 1
    if command == "doctor":
        assert "1 problem" in text
        assert "PREFECT_API_AUTH_STRING" in "".join(text.split())
        return
    assert text.startswith(f"The Prefect server at http://127.0.0.1:{port}/api refuses this client (401 Unauthorized).")
    assert "PREFECT_API_AUTH_STRING" in text
    assert len(text) < 400


def test_of_prefect_cloud_only_the_health_is_read() -> None:
    """What a server says about itself need not be there."""
    asked = list[str]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            asked.append(path)
            answer = ("200 OK", "true") if path.endswith("/health") else ("404 Not Found", '{"detail":"Not Found"}')
            head = f"HTTP/1.1 {answer[0]}\r\ncontent-type: application/json\r\ncontent-length: {len(answer[1])}\r\n"
            writer.write(f"{head}connection: close\r\n\r\n{answer[1]}".encode())
            await writer.drain()
        writer.close()

    with serving(handle) as port:
        cloud = f"http://127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_CLOUD_API_URL: cloud, PREFECT_API_URL: f"{cloud}/accounts/a/workspaces/b"}):
            require_prefect()
    assert asked == ["/api/accounts/a/workspaces/b/health"]


def test_a_server_that_wants_a_password_while_a_command_runs_is_told_from_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefect_qruntime.cli.options.require_prefect", lambda: None)
    with locked() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        code, text = said(capsys, "jobs")
    assert code == 1
    assert text.startswith(f"The Prefect server at http://127.0.0.1:{port}/api refuses this client (401 Unauthorized).")


@pytest.mark.parametrize("place", [closed_port, page, refusing], ids=lambda place: place.__name__)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in LOCAL])
def test_a_command_says_in_a_sentence_that_no_server_answers(
    capsys: pytest.CaptureFixture[str],
    command: str,
    place: Callable[[], contextlib.AbstractContextManager[int]],
) -> None:
    with place() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        code, text = said(capsys, *words(command))
    assert code == 1
    if command == "doctor":  # which has it in a table
        assert "1 problem" in text
        return
    assert text.startswith(f"The Prefect server at http://127.0.0.1:{port}/api cannot be reached: ")
    assert text.endswith("Start it with `prefect server start`, or correct PREFECT_API_URL (it ends with /api).")
    assert len(text) < 400
    assert ("something else answers there" in text) is (place is page)


def test_the_doctor_of_a_named_block_soon_says_that_something_else_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefect_qruntime.cli.operations._REPEAT", 0.5)
    began = time.monotonic()
    with page() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        code, text = said(capsys, "doctor", "--block", "any")
    assert code == 1
    assert "1 problem" in text
    assert time.monotonic() - began < 30


def test_what_speaks_no_http_is_no_server_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefect_qruntime.diagnostics.prefect_server._ANSWER", 1.0)
    with gibberish() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        code, text = said(capsys, "jobs")
    assert code == 1
    assert "cannot be reached: " in text
    assert len(text) < 400


def test_a_server_that_stops_while_a_command_runs_is_told_from_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefect_qruntime.prefect_api._PATIENCE", 0.5)
    monkeypatch.setattr("prefect_qruntime.cli.options.require_prefect", lambda: None)  # it answered a moment ago
    with closed_port() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        code, text = said(capsys, "jobs")
    assert code == 1
    assert text.startswith(f"The Prefect server at http://127.0.0.1:{port}/api cannot be reached: ")


def test_init_needs_no_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with closed_port() as port, temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        assert said(capsys, "init", str(tmp_path))[0] == 0
        code, text = said(capsys, "init", str(tmp_path))
    assert code == 2
    assert "--force" in text


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_init_names_a_place_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    code, text = said(capsys, "init", str(tmp_path / place), "--force")
    assert code == 2
    assert text.startswith(str(tmp_path / place))
    assert "cannot be written: " in text
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "iso-8859-1"])
def test_output_that_the_terminal_has_no_letters_for_is_escaped(encoding: str) -> None:
    name = "ä✓\U0001f600"
    program = f"""
import json
from prefect_qruntime import cli
cli.app = lambda *words, **options: print(json.dumps([{name!a}], ensure_ascii=False))
cli.main()
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.decode(encoding)) == [name]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in {*LOCAL, "doctor"}])
def test_a_wrong_setting_is_named_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE", "abc")
    code, text = said(capsys, *words(command))
    assert code == 2
    assert text.startswith("PREFECT_INTEGRATIONS_QRUNTIME_CREATE_RATE_PER_MINUTE: ")
    assert text.endswith("not 'abc'. Correct or remove it in the environment or the Prefect profile.")


NUMBERS = [
    (command, argument.name, bad)
    for command in COMMANDS
    for argument in app[command].assemble_argument_collection(parse_docstring=False)
    if argument.name.startswith("--") and not {int, float}.isdisjoint({argument.hint, *get_args(argument.hint)})
    for bad in ("-1", "nan", "inf", "1e400", "many")
]
"""Each numeric option of each command, with what no option takes."""


@pytest.mark.parametrize(("command", "option", "bad"), NUMBERS)
def test_a_number_out_of_bounds_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], command: str, option: str, bad: str
) -> None:
    code, text = said(capsys, *words(command), option, bad)
    assert code == 2
    assert option in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("line", "bounds"),
    [
        ("sandbox --port 99999", "at least 0 and at most 65,535"),
        ("sandbox --clock-scale 0", "above 0"),
        ("demo --shots 0", "at least 1 and at most 10,000,000"),
        ("jobs --limit 0", "at least 1"),
        ("setup --per-minute 0", "at least 1 and at most 60"),
        ("setup --per-minute 61", "at least 1 and at most 60"),
        ("watch --interval 0", "above 0"),
        ("estimate --backend any --max-execution-time 10801", "at least 1 and at most 10,800"),
        ("compare a b --false-alarm 0", "above 0 and at most 1"),
    ],
)
def test_the_bounds_of_a_number_are_told(capsys: pytest.CaptureFixture[str], line: str, bounds: str) -> None:
    code, text = said(capsys, *line.split())
    assert code == 2
    assert f"It must be {bounds}." in text.replace("│ ", "")


@pytest.mark.parametrize("line", ["--help", "sweep --help", "doctor", "doctor --json"])
def test_a_reader_that_stops_early_is_no_fault(line: str) -> None:
    with closed_port() as port:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [sys.executable, "-c", "from prefect_qruntime.cli import main; main()", *line.split()],
                env={**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
                timeout=300,
                check=False,
            )
        finally:
            os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
@pytest.mark.parametrize("line", ["--help", "doctor --json", "init"])
def test_a_closed_stream_is_no_fault(tmp_path: Path, line: str, closed: str) -> None:
    # What the command starts finds a stream there too, as the temporary server of Prefect needs one.
    code = """
import os, subprocess, sys
from prefect_qruntime.cli import main
try:
    main()
finally:
    child = "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"
    if subprocess.run([sys.executable, "-c", child]).returncode:
        os._exit(9)
"""
    script = f'exec "$@" {" ".join(f"{one}>&-" for one in closed)}'
    with closed_port() as port:
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, "-c", code, *line.split()],
            env={**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.stderr == ""
    assert bool(done.stdout) == ("1" not in closed)
    assert done.returncode == ("doctor" in line)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("line", ["--help", "init", "doctor", "doctor --json"])
def test_a_full_disk_is_named_without_a_traceback(tmp_path: Path, line: str) -> None:
    with closed_port() as port, Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from prefect_qruntime.cli import main; main()", *line.split()],
            env={**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"},
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.stderr == "The output could not be written: No space left on device. It is incomplete.\n"
    assert done.returncode == 1


def test_a_full_disk_is_named_if_the_output_is_no_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def writing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prefect_qruntime.cli.app", writing)
    assert said(capsys, "jobs") == (1, "The output could not be written: No space left on device. It is incomplete.")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_a_command_that_is_stopped_while_it_is_imported_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrapped: bool, stop: BaseException, code: int
) -> None:
    class Stopped(BaseModel):
        @model_serializer
        def _stopped(self) -> dict[str, str]:
            raise stop

    def importing(*_: object, **__: object) -> None:
        if wrapped:  # as while Prefect writes down its settings
            Stopped().model_dump()
        raise stop

    monkeypatch.setattr("prefect_qruntime.cli.app", importing)
    assert said(capsys, "jobs") == (code, "")


def test_a_command_that_is_terminated_stops_what_it_has_started() -> None:
    """Prefect stops its temporary server when the interpreter ends, which a process killed by a signal never does."""
    code = (
        "import atexit, time; from prefect_qruntime import cli; atexit.register(print, 'stopped it', flush=True); "
        "cli.app = lambda *_, **__: (print('started', flush=True), time.sleep(3600)); cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.stdout.read() == "stopped it\n"
    assert process.returncode == 143


def test_a_command_is_silent_about_events_that_prefect_still_sends(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert exit_code("--version") == 0
    for worker in ("EventsWorker", "APILogWorker"):
        log = logging.getLogger(worker)
        log.warning("Still processing items: 3 items remaining...")
        log.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"] * 2


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port() as port:
        code, text = said(capsys, "sandbox", "--port", str(port))
    assert code == 2
    assert text == (
        f"port: {port} of 127.0.0.1 is taken by another program. Give another port with --port; 0 takes a free one."
    )
