"""`prefect-qruntime jobs`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, needs_prefect
from prefect_qruntime.cli.output import cell, id_column, many, short
from prefect_qruntime.operations.job_listing import GroupBy, JobList, ListedJob, list_jobs

__all__ = ["jobs"]

_STYLES = {"queued": "yellow", "running": "cyan", "completed": "green", "cancelled": "magenta", "failed": "red"}
_GROUPED: dict[GroupBy, tuple[str, str]] = {
    "deployment": ("deployment", "no deployment"),
    "owner": ("flow run", "no flow run"),
    "tag": ("tag", "no tag"),
    "flow-state": ("state of the flow run", "not in this Prefect"),
}
"""The heading of each grouping, and what stands for jobs without a value."""


@needs_prefect
def jobs(
    *,
    block: Blocks = None,
    state: Annotated[
        list[Literal["queued", "running", "completed", "cancelled", "failed"]] | None,
        Parameter(help="Only jobs in these states."),
    ] = None,
    limit: Annotated[int, Parameter(help="Most jobs of each instance, newest first.")] = 50,
    since: Annotated[
        str | None, Parameter(help="Only jobs created since then: 2026-05-01, 2026-05-01T08:00, 90m, 24h or 7d.")
    ] = None,
    by: Annotated[
        GroupBy | None, Parameter(help="Sum them up by deployment, owner (flow run), tag or the flow run's state.")
    ] = None,
    json: AsJson = False,
) -> int:
    """List the instances' jobs with state, QPU seconds and the flow run that owns each, or sum them up by group."""
    found = list_jobs(checked_blocks(block), states=[*(state or ())] or None, limit=limit, since=since, by=by)
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        _print(found, Console(), by)
    for problem in found.problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if found.problems else 0


def _print(found: JobList, console: Console, by: GroupBy | None) -> None:
    if found.jobs and by is not None:
        console.print(_group_table(found, by))
    elif found.jobs:
        console.print(_table(found.jobs, console))
    totals = found.totals
    line = f"{many(totals.jobs, 'job')}, {totals.qpu_seconds:g} QPU seconds"
    if totals.not_final:
        line += f" ({totals.not_final} not final)"
    if totals.without_owner:
        line += f"; {totals.without_owner} without a flow run, {totals.qpu_seconds_without_owner:g} QPU seconds"
    elif totals.jobs:
        line += "; every one belongs to a flow run"
    console.print(f"{line}.", highlight=False)
    if found.more:
        console.print("There are more: raise --limit, or narrow with --since and --state.", style="yellow")


def _table(jobs: list[ListedJob], console: Console) -> Table:
    several = len({job.block for job in jobs}) > 1
    table = Table(expand=True, show_lines=True)
    id_column(table, "job\ncreated" + several * "\nblock", (job.id for job in jobs))
    for name in ("state", "backend\nprogram"):
        table.add_column(name, overflow="fold")
    table.add_column("QPU s", justify="right", no_wrap=True)
    table.add_column("flow run\nid", overflow="fold", ratio=1)
    for job in jobs:
        created = f"{job.created_at.astimezone():%m-%d %H:%M}" if job.created_at else ""
        seconds = "" if job.qpu_seconds is None else f"{job.qpu_seconds:g}" + ("" if job.qpu_seconds_final else " …")
        table.add_row(
            cell(job.id, created, *several * (job.block,)),
            cell(job.state, style=_STYLES.get(job.state, "")),
            cell(job.backend or "", job.program or ""),
            seconds,
            _owner(job, console),
        )
    return table


def _group_table(found: JobList, by: GroupBy) -> Table:
    title, none = _GROUPED[by]
    table = Table(expand=True)
    table.add_column(title, overflow="fold", ratio=1)
    for name in ("jobs", "live", "QPU s"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in found.groups:
        seconds = f"{group.qpu_seconds:g}" + (" …" if group.not_final else "")
        value = cell(group.value) if group.value is not None else cell(none, style="bold red")
        table.add_row(value, str(group.jobs), str(group.live or ""), seconds)
    return table


def _owner(job: ListedJob, console: Console) -> Text:
    if job.flow_run_id is None:
        return cell("no flow run", style="bold red")
    return cell(job.flow_run or "not in this Prefect", short(job.flow_run_id, console))
