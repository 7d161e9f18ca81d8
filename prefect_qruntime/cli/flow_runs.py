"""`prefect-qruntime watch` and `resume`: continue flow runs that wait for a job, or whose worker died."""

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

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, many, needs_prefect
from prefect_qruntime.operations.stalled import resume_flow_run
from prefect_qruntime.redact import get_logger
from prefect_qruntime.suspend.watcher import run_watch

__all__ = ["resume", "watch"]


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


@needs_prefect
def resume(
    flow_run_id: Annotated[str, Parameter(help="Id of the flow run.")],
    /,
    *,
    force: Annotated[bool, Parameter(help="Run it again even if its process may be alive.")] = False,
    json: AsJson = False,
) -> int:
    """Run a flow run again, under its own id, after its worker died: it attaches to its jobs and submits none twice.

    `prefect-qruntime sweep` finds such runs. The UI's "Copy to new run" would submit their jobs again.
    """
    resumed = resume_flow_run(flow_run_id, force=force)
    if json:
        sys.stdout.write(resumed.model_dump_json(indent=2) + "\n")
        return 0
    number = len(resumed.jobs)
    jobs = f"It attaches to its {many(number, 'job')}" if number else "It had submitted no job"
    Console().print(
        f"Flow run {resumed.name} ({resumed.id}) is scheduled again under the same id. {jobs}. "
        "A worker of its work pool starts it.",
        highlight=False,
        soft_wrap=True,
    )
    return 0
