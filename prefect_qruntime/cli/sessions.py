"""`prefect-qruntime sessions` and `sweep`: which sessions are open, and which of them nothing uses any more."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime.cli.options import (
    AsJson,
    Blocks,
    cell,
    checked_blocks,
    id_column,
    many,
    needs_prefect,
    print_json,
    short,
)
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.operations.session_listing import OpenSession, SessionList, close_by_id, list_sessions
from prefect_qruntime.operations.sweep import SweepReport, run_sweep

__all__ = ["sessions", "sweep"]


@needs_prefect
def sessions(
    *,
    block: Blocks = None,
    close: Annotated[str | None, Parameter(help="Close the session of this id; its queued jobs run first.")] = None,
    drop: Annotated[bool, Parameter(help="With --close: drop its queued jobs.")] = False,
    json: AsJson = False,
) -> int:
    """List the instances' open sessions and batches with age, jobs and opener; with --close, close one by its id."""
    if close is None:
        if drop:
            raise InvalidInput("has no effect alone.", field="drop", solution="Give the session with --close ID.")
        return _list(checked_blocks(block), json=json)
    return _close(close, checked_blocks(block), drop=drop, json=json)


def _list(blocks: list[str] | None, *, json: bool) -> int:
    """List open sessions and print them; 1 if an instance could not be read."""
    found = list_sessions(blocks)
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        _print_sessions(found, Console())
    for problem in found.problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if found.problems else 0


def _close(session_id: str, blocks: list[str] | None, *, drop: bool, json: bool) -> int:
    """Close a session and print its state; 1 if it could not be closed."""
    try:
        block, session = close_by_id(session_id, blocks, drain=not drop)
    except InvalidInput:
        raise
    except QuantumRuntimeError as error:
        sys.stderr.write(f"Session {session_id} could not be closed. {error}\n")
        return 1
    drains = not session.is_closed and not drop and session.accepting_jobs is False
    if json:
        facts = {"block": block, **session.model_dump(exclude={"token"}), "is_closed": session.is_closed}
        print_json(facts)
    elif session.is_closed:
        Console().print(f"Session {session_id} is closed.", highlight=False, soft_wrap=True)
    elif drains:
        Console().print(
            f"Session {session_id} takes no more jobs and closes when its queued jobs are done. "
            "To drop them, use --drop.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        sys.stderr.write(f"Session {session_id} was asked to close but is still {session.state!r}. Try again.\n")
    return 0 if session.is_closed or drains else 1


def _print_sessions(found: SessionList, console: Console) -> None:
    if not found.sessions:
        console.print("No session is open.")
        return
    console.print(_table(found.sessions))
    number = len(found.sessions)
    console.print(
        f"{number} {'session is' if number == 1 else 'sessions are'} open. Close one with "
        "`prefect-qruntime sessions --close ID`.",
        highlight=False,
    )


def _table(sessions: list[OpenSession]) -> Table:
    several = len({one.block for one in sessions}) > 1
    table = Table(expand=True, show_lines=True)
    id_column(table, "session\nage" + several * "\nblock", (one.id for one in sessions))
    table.add_column("backend\nmode, state\njobs", overflow="fold")
    table.add_column("opened by", overflow="fold", ratio=1)
    for one in sessions:
        jobs = many(one.unfinished_jobs, "job")
        state = "draining" if one.accepting_jobs is False else one.state or "?"
        table.add_row(
            cell(one.id, _span(one.age_seconds), *several * (one.block,)),
            cell(one.backend or "", f"{one.mode}, {state}", jobs),
            _opener(one),
        )
    return table


def _opener(one: OpenSession) -> Text:
    if one.process is not None:
        style = "bold red" if one.process_state == "ended" else ""
        return cell(one.process, one.process_state, style=style)
    if one.flow_run_id is None:
        return cell("not known here", style="yellow")
    return cell(f"flow run {one.flow_run or one.flow_run_id}", one.flow_run_state or "not in this Prefect")


def _span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


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
        _print_swept(report, Console())
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 0 if report.is_clean else 1


def _print_swept(report: SweepReport, console: Console) -> None:
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
