"""Show in a terminal or notebook what this process waits for: one line, updated each second, removed at the end.

Nothing is shown if output is not read live: in a pipe, a file, a worker's log, a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

from cachetools import LRUCache
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.observability.progress import WaitProgress, waits_line
from prefect_qruntime.redact import get_logger, redact
from prefect_qruntime.settings import current_settings

__all__ = [
    "Display",
    "NotebookDisplay",
    "TerminalDisplay",
    "find_display",
    "shown_while_waiting",
    "waits_now",
    "was_waited_for",
]

log = get_logger(__name__)

_AFTER = 1.5  # seconds of waiting after which the line is shown
_EVERY = 1.0  # seconds between two updates
_KEEP = 4096  # jobs whose waits are remembered


class Display(Protocol):
    """Where the line is shown."""

    def show(self, line: str) -> None:
        """Show a line in place of the one before."""

    def close(self) -> None:
        """Remove the line."""


class TerminalDisplay:
    """A line at the bottom of a terminal, below what is printed and logged meanwhile.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._spinner = Spinner("dots")
        self._live = Live(self._spinner, console=console, auto_refresh=False, transient=True)

    def show(self, line: str) -> None:
        """Show a line in place of the one before."""
        width = max(20, self._live.console.width - 4)
        # Not as markup: names come from the service.
        self._spinner.update(text=Text(line if len(line) <= width else f"{line[: width - 1]}…"))
        if not self._live.is_started:
            self._live.start()
        self._live.refresh()

    def close(self) -> None:
        """Remove the line."""
        self._live.stop()


class NotebookDisplay:
    """A line in the output of the cell that waits.

    Args:
        display: IPython's `display`.
        wrap: Makes an object that a notebook shows as HTML.
    """

    def __init__(self, display: Callable[..., Any], wrap: Callable[[str], Any]) -> None:
        self._display = display
        self._wrap = wrap
        self._handle: Any = None

    def show(self, line: str) -> None:
        """Show a line in place of the one before."""
        shown = self._wrap(f"<em>⏳ {html.escape(line)}</em>")
        if self._handle is None:
            self._handle = self._display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self) -> None:
        """Remove the line."""
        if self._handle is not None:
            self._handle.update(self._wrap(""))


def find_display() -> Display | None:
    """Find where a line can be shown; None if output is not read live or the setting `live_line` is off."""
    if not current_settings().live_line:
        return None
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    if running is not None and hasattr(running, "kernel"):
        tools: Any = importlib.import_module("IPython.display")
        return NotebookDisplay(tools.display, tools.HTML)
    console = _prefect_console() or Console(stderr=True)
    # Ask the file itself, because FORCE_COLOR makes rich treat anything as a terminal.
    try:
        is_terminal = console.file.isatty()
    except (AttributeError, ValueError):  # the process has no such stream, or has closed it
        is_terminal = False
    return TerminalDisplay(console) if is_terminal and not console.is_dumb_terminal else None


def _prefect_console() -> Console | None:
    """The console of Prefect's own log: output of the same console does not collide with the line."""
    logger: logging.Logger | None = logging.getLogger("prefect")
    while logger is not None:
        for handler in logger.handlers:
            console = getattr(handler, "console", None)
            if isinstance(console, Console):
                return console
        logger = logger.parent if logger.propagate else None
    return None


class _Waits:
    """The waits of this process, and the task that shows them. Lives on the network loop."""

    def __init__(self) -> None:
        self.open: dict[int, WaitProgress] = {}
        self.seen: LRUCache[str, bool] = LRUCache(_KEEP)
        self.task: asyncio.Task[None] | None = None


def waits_now() -> int:
    """Count the jobs that this process waits for. Call it on the network loop."""
    return len(network_loop().state(_Waits).open)


def was_waited_for(job_id: str) -> bool:
    """Whether this process waits or waited for a job. Call it on the network loop."""
    return job_id in network_loop().state(_Waits).seen


@contextlib.contextmanager
def shown_while_waiting(progress: WaitProgress) -> Iterator[None]:
    """Count a wait among those of this process, and show them all live. On the network loop.

    Args:
        progress: The state of the wait; read again for each line.
    """
    waits = network_loop().state(_Waits)
    waits.open[id(progress)] = progress  # two waits may be for one job
    waits.seen[progress.job_id] = True
    if waits.task is None and (display := find_display()) is not None:
        waits.task = asyncio.create_task(_show(waits, display))
    try:
        yield
    finally:
        del waits.open[id(progress)]
        if not waits.open and waits.task is not None:
            waits.task.cancel()
            waits.task = None


async def _show(waits: _Waits, display: Display) -> None:
    """Show the waits until there are none. A display that breaks ends the line, never a wait."""
    try:
        await asyncio.sleep(_AFTER)
        while waits.open:
            display.show(redact(waits_line(waits.open.values(), time.monotonic(), datetime.now(UTC))))
            await asyncio.sleep(_EVERY)
    except Exception:
        log.debug("the live line could not be shown", exc_info=True)
    finally:
        with contextlib.suppress(Exception):
            display.close()
