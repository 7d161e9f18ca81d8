"""`prefect-qruntime doctor`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

import orjson
from rich.console import Console
from rich.table import Table

from prefect_qruntime.cli.options import AsJson, Blocks, checked_blocks
from prefect_qruntime.cli.output import cell, many
from prefect_qruntime.diagnostics.finding import Finding
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.operations.doctor import DoctorReport, run_doctor

__all__ = ["doctor"]

_MARKS = {"ok": ("✓", "green"), "hint": ("•", "yellow"), "problem": ("✗", "bold red")}


def doctor(*, block: Blocks = None, json: AsJson = False) -> int:
    """Check keys, addresses, rights, clock and the Prefect side; report every problem and how to fix it.

    Submits and changes nothing. The exit code is 1 if there is a problem; hints do not count.
    """
    try:
        block = checked_blocks(block)
    except InvalidInput:
        raise
    except Exception:  # Prefect's API does not answer: the doctor reports that itself
        block = block or None
    report = run_doctor(block)
    if json:
        rows = [finding.model_dump() for finding in report.findings]
        sys.stdout.write(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print(report, Console())
    return 0 if report.ok else 1


def _print(report: DoctorReport, console: Console) -> None:
    for block, found in groupby(report.findings, key=lambda finding: finding.block):
        console.print(_table("Prefect" if block is None else f"Block {block}", list(found)))
    counts = {level: sum(finding.level == level for finding in report.findings) for level in _MARKS}
    console.print(
        f"{many(counts['problem'], 'problem')}, {many(counts['hint'], 'hint')}, {counts['ok']} in order.",
        style="bold red" if counts["problem"] else "green",
        highlight=False,
    )


def _table(title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=True, show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("finding", ratio=1, overflow="fold")
    table.add_column("fix", ratio=1, overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        # As Text, because square brackets in a message are no markup.
        table.add_row(cell(f"{mark} {finding.check}", style=style), cell(finding.finding), cell(finding.fix))
    return table
