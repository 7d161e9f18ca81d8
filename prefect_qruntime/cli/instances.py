"""`prefect-qruntime doctor`, `backends` and `setup`: check the saved blocks, list backends, share the create rate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from prefect_qruntime.admission.rate_limit import limit_name, set_up
from prefect_qruntime.cli.options import (
    AsJson,
    Blocks,
    cell,
    checked_blocks,
    many,
    needs_prefect,
    print_json,
    print_rows,
)
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import load_each
from prefect_qruntime.diagnostics.fields import Finding
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Backend
from prefect_qruntime.operations.doctor import DoctorReport, run_doctor
from prefect_qruntime.settings import QuantumRuntimeSettings

__all__ = ["backends", "doctor", "setup"]


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
        _print_report(report, Console())
    return 0 if report.ok else 1


def _print_report(report: DoctorReport, console: Console) -> None:
    for block, found in groupby(report.findings, key=lambda finding: finding.block):
        console.print(_findings("Prefect" if block is None else f"Block {block}", list(found)))
    counts = {level: sum(finding.level == level for finding in report.findings) for level in _MARKS}
    console.print(
        f"{many(counts['problem'], 'problem')}, {many(counts['hint'], 'hint')}, {counts['ok']} in order.",
        style="bold red" if counts["problem"] else "green",
        highlight=False,
    )


def _findings(title: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=True, show_lines=False)
    table.add_column("check", no_wrap=True)
    table.add_column("finding", ratio=1, overflow="fold")
    table.add_column("fix", ratio=1, overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        # As Text, because square brackets in a message are no markup.
        table.add_row(cell(f"{mark} {finding.check}", style=style), cell(finding.finding), cell(finding.fix))
    return table


_STYLES = {"online": "green", "paused": "yellow", "offline": "red"}


@needs_prefect
def backends(*, block: Blocks = None, json: AsJson = False) -> int:
    """List the instances' backends with status, size, queue and errors."""
    found, problems = network_loop().run(_backends(checked_blocks(block)))
    if json:
        print_json([{"block": name, **backend.model_dump(mode="json")} for name, backend in found])
    else:
        _print_backends(found, Console())
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


def _print_backends(found: list[tuple[str, Backend]], console: Console) -> None:
    several = len({name for name, _ in found}) > 1
    table = Table(expand=True)
    for title in (*(("block",) if several else ()), "backend", "status"):
        table.add_column(title, overflow="fold")
    for title in ("qubits", "queue", "2q error"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, backend in found:
        reason = (backend.status_reason,) if backend.status_reason and not backend.is_online else ()
        table.add_row(
            *((cell(name),) if several else ()),
            cell(backend.name),
            cell(backend.status, *reason, style=_STYLES.get(backend.status, "")),
            str(backend.num_qubits or ""),
            "" if backend.queue_length is None else str(backend.queue_length),
            "" if backend.two_qubit_error is None else f"{backend.two_qubit_error:.2%}",
        )
    if found:
        console.print(table)
    console.print(f"{many(len(found), 'backend')}.", highlight=False)


async def _backends(blocks: list[str] | None) -> tuple[list[tuple[str, Backend]], list[str]]:
    found: list[tuple[str, Backend]] = []
    loaded, problems = await load_each(blocks)
    for name, credentials in loaded.items():
        try:
            found += [(name, backend) for backend in await credentials.get_client().backends()]
        except QuantumRuntimeError as error:
            problems[name] = f"{name}: {error}"
    return found, [problems[name] for name in sorted(problems)]


@needs_prefect
def setup(
    *,
    block: Blocks = None,
    per_minute: Annotated[int, Parameter(help="Jobs created in a minute, by all users of the account together.")] = 5,
    json: AsJson = False,
) -> int:
    """Create the limits in Prefect by which all processes share the service's rate of five new jobs a minute.

    May be run again at any time; a second run changes nothing.
    """
    rows, problems = network_loop().run(_set_up(checked_blocks(block), per_minute))
    if json:
        sys.stdout.write(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print_rows(rows, f"Create limits, {per_minute} jobs a minute", "no credentials block is saved")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 0 if rows and not problems else 1


async def _set_up(blocks: list[str] | None, per_minute: int) -> tuple[list[dict[str, str]], list[str]]:
    accounts: dict[str, tuple[str, list[str]]] = {}
    loaded, problems = await load_each(blocks)
    for name, credentials in loaded.items():
        accounts.setdefault(limit_name(credentials.crn), (credentials.crn, []))[1].append(name)
    period = QuantumRuntimeSettings().create_rate_period_seconds
    rows = [
        {"blocks": ", ".join(names), **row}
        for crn, names in accounts.values()
        for row in await set_up(crn, per_minute=per_minute, period=period)
    ]
    return rows, list(problems.values())
