"""`prefect-qruntime sweep`."""

from __future__ import annotations

import sys

from rich.console import Console

from prefect_qruntime.cli.output import print_rows
from prefect_qruntime.operations.stalled import resume_flow_run
from prefect_qruntime.operations.sweep import rows, run_sweep

__all__ = ["resume_and_report", "sweep_and_report"]


def sweep_and_report(blocks: list[str] | None, *, dry_run: bool, cancel_jobs: bool, json: bool) -> int:
    """Sweep, and print what was found; 1 if something is left, or an instance could not be swept."""
    report = run_sweep(blocks, dry_run=dry_run, cancel_jobs=cancel_jobs)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        number = len(report.blocks)
        print_rows(rows(report), f"Swept {number} {'block' if number == 1 else 'blocks'}", "nothing was left behind")
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 0 if report.is_clean else 1


def resume_and_report(flow_run_id: str, *, force: bool, json: bool) -> int:
    """Schedule a flow run again under its id, and print what it will attach to."""
    resumed = resume_flow_run(flow_run_id, force=force)
    if json:
        sys.stdout.write(resumed.model_dump_json(indent=2) + "\n")
        return 0
    number = len(resumed.jobs)
    jobs = f"It attaches to its {number} {'job' if number == 1 else 'jobs'}" if number else "It had submitted no job"
    Console().print(
        f"Flow run {resumed.name} ({resumed.id}) is scheduled again under the same id. {jobs}. "
        "A worker of its work pool starts it.",
        highlight=False,
        soft_wrap=True,
    )
    return 0
