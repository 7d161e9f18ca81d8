"""`prefect-qruntime watch`."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.logging import RichHandler

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, needs_prefect
from prefect_qruntime.cli.output import many
from prefect_qruntime.redact import get_logger
from prefect_qruntime.suspend.watcher import run_watch

__all__ = ["watch"]

_WATCHER = "prefect_qruntime.suspend"  # the loggers of the watcher and of what it resumes


@needs_prefect
def watch(
    *,
    block: Blocks = None,
    once: Annotated[bool, Parameter(help="Poll once and return.")] = False,
    interval: Annotated[float, Parameter(help="Seconds between polls for newly suspended flow runs.")] = 10.0,
    duration: Annotated[float | None, Parameter(help="Seconds to watch; no limit by default.")] = None,
    json: AsJson = False,
) -> int:
    """Follow the jobs that suspended flow runs wait for, and resume each flow run when its job has ended.

    It may be stopped or killed at any time; another watcher continues.
    """
    # As with Ctrl-C: work in progress is finished, and events are still sent.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with nullcontext() if json else _shown():
            report = run_watch(checked_blocks(block), once=once, interval=interval, duration=duration)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        Console().print(
            f"Watched {many(report.followed, 'job')}: resumed {many(report.resumed, 'flow run')}, "
            f"reported {many(report.told, 'finished job')}, cancelled the jobs of {many(report.cancelled, 'flow run')}."
        )
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 1 if report.problems else 0


@contextmanager
def _shown() -> Iterator[None]:
    """Print the watcher's log lines on standard error, and restore the logger afterwards."""
    log = get_logger(_WATCHER)
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
