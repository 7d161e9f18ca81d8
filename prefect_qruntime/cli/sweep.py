"""`prefect-qruntime sweep`."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from prefect_qruntime.cli.options import AsJson, Blocks
from prefect_qruntime.cli.output import print_rows
from prefect_qruntime.operations.sweep import rows, run_sweep

__all__ = ["sweep"]


def sweep(
    *,
    block: Blocks = None,
    dry_run: Annotated[bool, Parameter(help="Only report.")] = False,
    cancel_jobs: Annotated[bool, Parameter(help="Also cancel jobs whose flow run is over.")] = False,
    json: AsJson = False,
) -> int:
    """Close sessions whose flow run is over, and report jobs that no flow run waits for."""
    report = run_sweep(block or None, dry_run=dry_run, cancel_jobs=cancel_jobs)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        print_rows(rows(report), f"Swept {len(report.blocks)} instances", "nothing left behind")
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 1 if report.problems else 0
