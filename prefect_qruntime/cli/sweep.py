"""`prefect-qruntime sweep`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, needs_prefect
from prefect_qruntime.cli.output import cell, id_column, many, short
from prefect_qruntime.operations.sweep import SweepReport, run_sweep

__all__ = ["sweep"]


@needs_prefect
def sweep(
    *,
    block: Blocks = None,
    dry_run: Annotated[bool, Parameter(help="Report only; change nothing.")] = False,
    cancel_jobs: Annotated[
        bool, Parameter(help="Also cancel live jobs whose flow run was cancelled, failed or completed.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Close sessions whose flow run has ended or whose process is gone, and report jobs that no flow run waits for.

    The exit code is 0 if nothing remains, 1 if something remains or could not be read, 2 if an argument is wrong.
    """
    report = run_sweep(checked_blocks(block), dry_run=dry_run, cancel_jobs=cancel_jobs)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        _print(report, Console())
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 0 if report.is_clean else 1


def _print(report: SweepReport, console: Console) -> None:
    """Print sessions and jobs as a table, and the commands that continue stalled flow runs."""
    found = [("session", one) for one in report.sessions] + [("job", one) for one in report.jobs]
    title = f"Swept {many(len(report.blocks), 'block')}"
    if not found and not report.stalled:
        console.print(f"{title}: nothing was left behind.")
    if found:
        several = len({one.block for _, one in found}) > 1
        table = Table(title=title, title_justify="left", expand=True, show_lines=True)
        id_column(table, "what\nid" + several * "\nblock", (one.id for _, one in found))
        table.add_column("left by\nits state", overflow="fold", ratio=1)
        table.add_column("done", overflow="fold", ratio=1)
        for kind, one in found:
            owner = f"flow run {short(one.flow_run, console)}" if one.flow_run else one.process or "unknown"
            table.add_row(
                cell(kind, one.id, *several * (one.block,)),
                cell(owner, one.flow_state),
                cell(one.action, style="" if one.is_dealt_with else "bold red"),
            )
        console.print(table)
    for run in report.stalled:
        console.print(
            cell(f"Flow run {run.name} ({run.id}) is shown as running. {run.evidence} {run.next_step}"), soft_wrap=True
        )
