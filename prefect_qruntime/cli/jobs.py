"""`prefect-qruntime jobs`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.operations.job_listing import JobList, ListedJob, list_jobs

__all__ = ["list_and_report"]

_STYLES = {"queued": "yellow", "running": "cyan", "completed": "green", "cancelled": "magenta", "failed": "red"}
_WIDE = 110
"""Columns from which whole flow run ids fit; below, their first eight digits are shown."""


def list_and_report(
    blocks: list[str] | None, *, states: list[str] | None, limit: int, since: str | None, json: bool
) -> int:
    """List jobs and print them; 1 if an instance could not be asked, 2 if an argument is wrong."""
    try:
        found = list_jobs(blocks, states=states, limit=limit, since=since)
    except InvalidInput as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        _print(found, Console())
    for problem in found.problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if found.problems else 0


def _print(found: JobList, console: Console) -> None:
    if found.jobs:
        console.print(_table(found.jobs, whole=console.width >= _WIDE))
    totals = found.totals
    line = f"{_many(totals.jobs, 'job')}, {totals.qpu_seconds:g} QPU seconds"
    if totals.not_final:
        line += f" ({totals.not_final} not final)"
    if totals.without_owner:
        line += f"; {totals.without_owner} without a flow run, {totals.qpu_seconds_without_owner:g} QPU seconds"
    elif totals.jobs:
        line += "; every one belongs to a flow run"
    console.print(f"{line}.", highlight=False)
    if found.more:
        console.print("There are more: raise --limit, or narrow with --since and --state.", style="yellow")


def _table(jobs: list[ListedJob], *, whole: bool) -> Table:
    several = len({job.block for job in jobs}) > 1
    table = Table(expand=True, show_lines=True)
    table.add_column("job\ncreated", overflow="fold", min_width=20)
    for name in (*(("block",) if several else ()), "state", "backend\nprogram"):
        table.add_column(name, overflow="fold")
    table.add_column("QPU s", justify="right", no_wrap=True)
    table.add_column("flow run\nid", overflow="fold", ratio=1)
    for job in jobs:
        created = f"{job.created_at.astimezone():%m-%d %H:%M}" if job.created_at else ""
        seconds = "" if job.qpu_seconds is None else f"{job.qpu_seconds:g}" + ("" if job.qpu_seconds_final else " …")
        table.add_row(
            Text(f"{job.id}\n{created}"),
            *((Text(job.block),) if several else ()),
            Text(job.state, style=_STYLES.get(job.state, "")),
            Text(f"{job.backend or ''}\n{job.program or ''}"),
            seconds,
            _owner(job, whole=whole),
        )
    return table


def _owner(job: ListedJob, *, whole: bool) -> Text:
    if job.flow_run_id is None:
        return Text("no flow run", style="bold red")
    identifier = job.flow_run_id if whole else job.flow_run_id[:8]
    return Text(f"{job.flow_run}\n{identifier}") if job.flow_run else Text(f"not in this Prefect\n{identifier}")


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
