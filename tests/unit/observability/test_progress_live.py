"""The line that shows what a process waits for: where it is shown, what it says, and that it never disturbs."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.models import Job, JobStatus
from prefect_qruntime.observability import progress
from prefect_qruntime.observability.progress import (
    NotebookDisplay,
    TerminalDisplay,
    WaitProgress,
    _Waits,
    find_display,
    shown_while_waiting,
    waits_now,
)


def closed() -> io.StringIO:
    """A stream that its process has closed."""
    stream = io.StringIO()
    stream.close()
    return stream


class Terminal(io.StringIO):
    """A file that is a terminal."""

    def isatty(self) -> bool:
        return True


class Shown:
    """A display that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown, self.closed = asyncio.Event(), asyncio.Event()

    def show(self, line: str) -> None:
        self.lines.append(line)
        self.shown.set()

    def close(self) -> None:
        self.closed.set()


class Broken(Shown):
    """A display that cannot show anything."""

    def show(self, line: str) -> None:
        super().show(line)
        raise OSError("the terminal is gone")


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    network_loop().forget(_Waits)
    yield
    network_loop().forget(_Waits)


def running(job_id: str = "d1") -> WaitProgress:
    progress = WaitProgress(job_id, 0.0)
    progress.saw(Job(id=job_id, status=JobStatus.RUNNING, raw_status="Running"), 0.0)
    return progress


def shown_by(display: Shown, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
    monkeypatch.setattr(progress, "_AFTER", 0.0)
    monkeypatch.setattr(progress, "find_display", lambda: display)
    network_loop().run(work())


def test_all_waits_share_a_line_that_ends_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Shown()

    async def work() -> None:
        with shown_while_waiting(running("d1")):
            with shown_while_waiting(running("d2")):
                assert waits_now() == 2
                await display.shown.wait()
            assert waits_now() == 1
            assert not display.closed.is_set()
        assert waits_now() == 0
        await display.closed.wait()

    shown_by(display, monkeypatch, work)
    assert display.lines[0].startswith("2 jobs: 2 running, for ")


def test_a_display_that_breaks_stops_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Broken()

    async def work() -> None:
        with shown_while_waiting(running()):
            await display.closed.wait()

    shown_by(display, monkeypatch, work)
    assert len(display.lines) == 1


def test_a_terminal_shows_the_line_once_and_takes_it_away() -> None:
    file = Terminal()
    display = TerminalDisplay(Console(file=file, force_terminal=True, width=60))
    display.show("job d1: [bold]queued[/bold] 2.0 s" + " and more" * 20)
    display.close()
    shown = file.getvalue()
    assert "job d1: [bold]queued[/bold] 2.0 s" in shown, "other people's words are no markup"
    assert "…" in shown
    assert shown.endswith("\x1b[2K"), "the line is erased"


def test_a_notebook_shows_one_output_that_is_renewed_and_emptied() -> None:
    updates: list[str] = []
    handle = SimpleNamespace(update=updates.append)
    first: list[str] = []

    def show(shown: str, *, display_id: bool) -> Any:
        assert display_id
        first.append(shown)
        return handle

    display = NotebookDisplay(show, str)
    display.show("job <b>d1</b>")
    display.show("job d1: running")
    display.close()
    assert first == ["<em>⏳ job &lt;b&gt;d1&lt;/b&gt;</em>"]
    assert updates == ["<em>⏳ job d1: running</em>", ""]


@pytest.mark.parametrize("holder", ["prefect", None], ids=["Prefect's logger", "the root logger"])
@pytest.mark.parametrize(
    ("file", "variables", "expected"),
    [
        (io.StringIO(), {}, None),
        (io.StringIO(), {"FORCE_COLOR": "1"}, None),
        (closed(), {"TERM": "xterm"}, None),
        (Terminal(), {"TERM": "xterm"}, TerminalDisplay),
        (Terminal(), {"TERM": "dumb"}, None),
        (Terminal(), {"TERM": "xterm", "PREFECT_INTEGRATIONS_QRUNTIME_LIVE_LINE": "false"}, None),
    ],
    ids=["a file", "a file with colours", "a closed stream", "a terminal", "a dumb terminal", "switched off"],
)
def test_a_line_is_shown_by_the_console_of_prefect_s_log_where_it_is_read_live(
    file: io.StringIO,
    variables: dict[str, str],
    expected: type | None,
    holder: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    handler = logging.StreamHandler(file)
    handler.console = Console(file=file)  # type: ignore[attr-defined]
    for name in ("prefect", None):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [handler] if name == holder else [])
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    found = find_display()
    assert type(found) is (expected or type(None))


def test_a_notebook_is_known_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = SimpleNamespace(display=print, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", tools)  # type: ignore[arg-type]
    assert isinstance(find_display(), NotebookDisplay)
