"""What each command says and returns where no Prefect server answers, or something else does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_qruntime.cli import app
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


def gibberish() -> contextlib.AbstractContextManager[int]:
    """A port that something listens on which does not speak HTTP."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(b"220 ready\r\n")
            await writer.drain()
            writer.close()

    return serving(handle)


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


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_port() as port:
        code, text = said(capsys, "sandbox", "--port", str(port))
    assert code == 2
    assert text == (
        f"port: {port} of 127.0.0.1 is taken by another program. Give another port with --port; 0 takes a free one."
    )
