"""Show the progress of waits: in log lines, on pages, and in one line of a terminal or notebook.

How a wait is described and how often it is written is pure: times in, text out. The line of a terminal or notebook is
updated each second and removed at the end. It is not shown if output is not read live: in a pipe, a file, a worker's
log, a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import importlib
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from cachetools import LRUCache
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.models import Backend, Job, JobStatus
from prefect_qruntime.redact import get_logger, many, printable, redact
from prefect_qruntime.settings import current_settings

__all__ = [
    "LINE",
    "Display",
    "NotebookDisplay",
    "PageTurn",
    "ProgressPace",
    "TerminalDisplay",
    "WaitProgress",
    "backend_words",
    "duration",
    "find_display",
    "is_held",
    "line_of",
    "shown_while_waiting",
    "waits_line",
    "waits_now",
    "was_waited_for",
]


LINE = 120
"""Most characters of a log line, unless a part of it is longer by itself."""
_REASON = 60

log = get_logger(__name__)

_AFTER = 1.5  # seconds of waiting after which the line is shown
_EVERY = 1.0  # seconds between two updates
_KEEP = 4096  # jobs whose waits are remembered


def duration(seconds: float) -> str:
    """Format a duration for people.

    Example:
        ```python
        from prefect_qruntime.observability.progress import duration

        assert [duration(seconds) for seconds in (2.14, 40, 720, 7500)] == ["2.1 s", "40 s", "12 min", "2 h 05 min"]
        ```
    """
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def line_of(start: str, *extras: str, end: str = "", limit: int = LINE) -> str:
    """Join a line from its parts; extras that do not fit are left out, the last ones first.

    Args:
        start: Always there.
        extras: Each with the punctuation before it, the most important one first.
        end: Always there, after the extras.
        limit: Most characters.
    """
    kept = list(extras)
    while kept and len(start) + sum(map(len, kept)) + len(end) > limit:
        kept.pop()
    return "".join((start, *kept, end))


def backend_words(backend: Backend) -> str:
    """Describe whether a backend runs jobs now, with the service's reason if not; empty if that is not known."""
    if backend.status == "unknown":
        return ""
    if backend.is_online:
        return f"{backend.name} online"
    reason = printable(backend.status_reason or "", _REASON).rstrip(".")
    return f"{backend.name} is {printable(backend.status, 20)}" + (f" ({reason})" if reason else "")


@dataclass(slots=True)
class WaitProgress:
    """The state of a wait for a job.

    Attributes:
        job_id: The job.
        started: When the wait began, on a monotonic clock.
        job: The job as last read.
        since: When its present state was first observed, on the same clock.
        backend: The job's backend as last read.
    """

    job_id: str
    started: float
    job: Job | None = None
    since: float = 0.0
    backend: Backend | None = None

    def saw(self, job: Job, now: float) -> None:
        """Note an answer of the service."""
        if self.job is None or job.raw_status != self.job.raw_status:
            self.since = now
        self.job = job

    @property
    def status(self) -> JobStatus | None:
        """The job's state; None if it was not read yet or is unknown."""
        return None if self.job is None else self.job.status

    def spent(self, now: float, today: datetime | None = None) -> float:
        """Seconds in the present state; a queued job counts from its creation, which may be before the wait."""
        seen = now - (self.since if self.job is not None else self.started)
        if self.status is JobStatus.QUEUED and self.job is not None and self.job.created_at is not None and today:
            # From another clock than ours, so it counts only if it is more.
            return max(seen, (today - self.job.created_at).total_seconds())
        return seen

    def words(self, now: float, today: datetime | None = None) -> str:
        """Describe what the job is doing, for instance `queued 12 min, 14 jobs in the queue, ibm_torino online`.

        Args:
            now: The monotonic clock.
            today: The present time, to count time in the queue before the wait.
        """
        return ", ".join(self.parts(now, today))

    def parts(self, now: float, today: datetime | None = None) -> list[str]:
        """The parts of `words`, the most important one first."""
        spent = duration(self.spent(now, today))
        if self.job is None:
            return [f"no answer from the service yet after {spent}"]
        if self.status is JobStatus.QUEUED:
            said = backend_words(self.backend) if self.backend is not None else ""
            # The reason that holds the job comes first.
            notes = (said, self._queue()) if is_held(self) else (self._queue(), said)
            return [note for note in (f"queued {spent}", *notes) if note]
        if self.status is JobStatus.RUNNING:
            estimate = self.job.estimated_running_seconds
            return [f"running {spent}" + (f" of about {duration(estimate)}" if estimate else "")]
        if self.status is None:
            return [f"in the unknown state {printable(self.job.raw_status, 30)!r} for {spent}"]
        return [self.status.value]

    def _queue(self) -> str:
        queue = None if self.backend is None else self.backend.queue_length
        return "" if queue is None else f"{many(queue, 'job')} in the queue"


@dataclass(frozen=True, slots=True)
class ProgressPace:
    """How often pages show progress: once a minute each, less often if a process waits for many jobs.

    Attributes:
        every: Seconds between two writes of a page.
        pages: Most pages that a process writes in that time.
    """

    every: float = 60.0
    pages: int = 20

    def pause(self, waits: int) -> float:
        """Seconds until a page is written again if nothing changes."""
        return self.every * max(1.0, waits / self.pages)


@dataclass(slots=True)
class PageTurn:
    """When a watcher writes a job's page: at a change or after a while, but no page more than once a minute.

    Attributes:
        written: When it was written last, on a monotonic clock; before that, when the job was taken up.
        due: When it is written next.
    """

    written: float
    due: float = math.inf
    least: float = 60.0

    def changed(self) -> None:
        """The job is in another state."""
        self.due = min(self.due, self.written + self.least)

    def taken(self, now: float, every: float) -> None:
        """The page is written now, or that was tried; the next time is `every` seconds later if nothing changes."""
        self.written, self.due = now, now + max(every, self.least)


def waits_line(waits: Collection[WaitProgress], now: float, today: datetime | None = None) -> str:
    """Describe all jobs that a process waits for in one line."""
    if len(waits) == 1:
        (wait,) = waits
        first, *others = wait.parts(now, today)
        return line_of(f"job {wait.job_id}: {first}", *(f", {part}" for part in others))
    states = Counter("not seen yet" if one.job is None else _word(one.job) for one in waits)
    oldest = duration(max((now - one.started for one in waits), default=0.0))
    counted = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    offline = sorted({backend_words(one.backend) for one in waits if one.backend is not None and is_held(one)})
    return line_of(f"{many(len(waits), 'job')}: {counted}, for {oldest}", *(f", {said}" for said in offline))


def is_held(wait: WaitProgress) -> bool:
    """Whether a job is queued at a backend that is known to run none now."""
    backend = wait.backend
    return (
        wait.status is JobStatus.QUEUED
        and backend is not None
        and backend.status != "unknown"
        and not backend.is_online
    )


def _word(job: Job) -> str:
    return job.status.value if job.status is not None else "in an unknown state"


class Display(Protocol):
    """Where the line is shown."""

    def show(self, line: str) -> None:
        """Show a line in place of the one before."""

    def close(self) -> None:
        """Remove the line."""


class TerminalDisplay:
    """A line at the bottom of a terminal, below what is printed and logged meanwhile."""

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
