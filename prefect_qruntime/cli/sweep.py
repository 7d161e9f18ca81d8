"""`prefect-qruntime sweep`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks, needs_prefect
from prefect_qruntime.cli.output import many, print_rows
from prefect_qruntime.operations.sweep import rows, run_sweep

__all__ = ["sweep"]


@needs_prefect
def sweep(
    *,
    block: Blocks = None,
    dry_run: Annotated[bool, Parameter(help="Only report.")] = False,
    cancel_jobs: Annotated[bool, Parameter(help="Also cancel jobs whose flow run is over.")] = False,
    json: AsJson = False,
) -> int:
    """Close sessions whose flow run is over or whose process is gone, and report jobs that no flow run waits for.

    The exit code is 0 if nothing was left behind or all of it was dealt with, 1 if something remains or could not be
    looked into, 2 if an argument is wrong.
    """
    report = run_sweep(checked_blocks(block), dry_run=dry_run, cancel_jobs=cancel_jobs)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        print_rows(rows(report), f"Swept {many(len(report.blocks), 'block')}", "nothing was left behind")
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 0 if report.is_clean else 1
