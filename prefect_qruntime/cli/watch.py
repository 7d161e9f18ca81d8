"""`prefect-qruntime watch`."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.logging import RichHandler

from prefect_qruntime.redact import get_logger
from prefect_qruntime.suspend.watcher import run_watch

__all__ = ["watch_and_report"]


def watch_and_report(
    blocks: list[str] | None, *, once: bool, interval: float, duration: float | None, json: bool
) -> int:
    """Watch until interrupted, and say what is done; 1 if something could not be looked after."""
    # As Ctrl-C does: what is being done is wound up, and events still go out.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with nullcontext() if json else _shown():
            report = run_watch(blocks, once=once, interval=interval, duration=duration)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        Console().print(
            f"Followed {report.followed} jobs, resumed {report.resumed} flow runs, told of {report.told} jobs, "
            f"cancelled with {report.cancelled} flow runs."
        )
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 1 if report.problems else 0


@contextmanager
def _shown() -> Iterator[None]:
    """Our log lines on standard error; what the process logged before is as before afterwards."""
    log = get_logger(__name__)
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
