"""`prefect-qruntime sweep`."""

from __future__ import annotations

import sys

from prefect_qruntime.cli.output import print_rows
from prefect_qruntime.operations.sweep import rows, run_sweep

__all__ = ["sweep_and_report"]


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
