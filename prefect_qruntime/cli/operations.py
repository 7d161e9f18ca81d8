"""What an operator runs: `prefect-qruntime doctor`, `backends`, `setup`, `watch`, `resume`, `sessions` and `sweep`.

Check the saved blocks and list their backends, share the create rate, continue flow runs that wait for a job or whose
worker died, list open sessions, and close those that nothing uses any more.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from prefect_qruntime.admission.rate_limit import MOST, limit_name, set_up
from prefect_qruntime.cli.options import (
    ATTENDED,
    AsJson,
    Blocks,
    between,
    cell,
    checked_blocks,
    id_column,
    many,
    needs_prefect,
    print_json,
    print_not_known,
    print_problems,
    print_rows,
    short,
)
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import load_each, read_each
from prefect_qruntime.diagnostics.fields import Finding
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Backend
from prefect_qruntime.operations.doctor import DoctorReport, run_doctor
from prefect_qruntime.operations.session_listing import OpenSession, SessionList, close_by_id, list_sessions
from prefect_qruntime.operations.sweep import SweepReport, resume_flow_run, run_sweep
from prefect_qruntime.prefect_api import patience
from prefect_qruntime.redact import get_logger
from prefect_qruntime.settings import current_settings
from prefect_qruntime.suspend.watcher import run_watch

__all__ = ["backends", "doctor", "resume", "sessions", "setup", "sweep", "watch"]


_MARKS = {"ok": ("✓", "green"), "hint": ("•", "yellow"), "problem": ("✗", "bold red")}

_STYLES = {"online": "green", "paused": "yellow", "offline": "red"}
_REPEAT = 10.0  # seconds for which the doctor repeats a request that Prefect's API does not answer properly
_SILENCE = 120.0  # seconds that an answer of a busy server may take
_WATCHER = "prefect_qruntime.suspend"  # the loggers of the watcher and of what it resumes


def doctor(*, block: Blocks = None, json: AsJson = False) -> int:
    """Check keys, addresses, rights, clock and the Prefect side; report every problem and how to fix it.

    Submits and changes nothing. The exit code is 1 if there is a problem; hints do not count.
    """
    with patience(_REPEAT, silence=_SILENCE):
        try:
            block = checked_blocks(block, may_be_none=True)
        except InvalidInput:
            raise
        except Exception:  # Prefect's API does not answer: the doctor reports that itself
            block = block or None
        report = run_doctor(block)
    if json:
        rows = [finding.model_dump() for finding in report.findings]
        print_json(rows)
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


@needs_prefect
def backends(*, block: Blocks = None, json: AsJson = False) -> int:
    """List the instances' backends with status, size, queue and errors."""
    found, problems = network_loop().run(_backends(checked_blocks(block)))
    if json:
        rows = [{"block": name, **backend.model_dump(mode="json")} for name, backend in found]
        print_json([*rows, *({"block": name, "problem": problem} for name, problem in problems.items())])
    else:
        _print_backends(found, Console(), [*problems])
    return print_problems(problems.values())


def _print_backends(found: list[tuple[str, Backend]], console: Console, unread: Sequence[str] = ()) -> None:
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
    print_not_known(console, unread)


async def _backends(blocks: list[str] | None) -> tuple[list[tuple[str, Backend]], dict[str, str]]:
    """The backends with their blocks, and what is wrong with the instances that could not be read, by block."""
    loaded, problems = await load_each(blocks)

    async def read(_: str, client: QuantumRuntimeClient) -> list[Backend]:
        return await client.backends()

    found = await read_each(loaded, problems, read, ATTENDED)
    return [(name, one) for name, backends in found.items() for one in backends], dict(sorted(problems.items()))


@needs_prefect
def setup(
    *,
    block: Blocks = None,
    per_minute: Annotated[
        int,
        Parameter(help="Jobs created in a minute, by all users of the account together.", validator=between(1, MOST)),
    ] = 5,
    json: AsJson = False,
) -> int:
    """Create the limits in Prefect by which all processes share the service's rate of five new jobs a minute.

    May be run again at any time; a second run changes nothing.
    """
    rows, problems = network_loop().run(_set_up(checked_blocks(block), per_minute))
    if json:
        print_json([*rows, *({"blocks": name, "problem": problem} for name, problem in problems.items())])
    else:
        print_rows(rows, f"Create limits, {per_minute} jobs a minute", "nothing was done")
    print_problems(problems.values())
    return 0 if rows and not problems else 1


async def _set_up(blocks: list[str] | None, per_minute: int) -> tuple[list[dict[str, str]], dict[str, str]]:
    accounts: dict[str, tuple[str, list[str]]] = {}
    loaded, problems = await load_each(blocks)
    for name, credentials in loaded.items():
        accounts.setdefault(limit_name(credentials.crn), (credentials.crn, []))[1].append(name)
    period = current_settings().create_rate_period_seconds
    rows = [
        {"blocks": ", ".join(names), **row}
        for crn, names in accounts.values()
        for row in await set_up(crn, per_minute=per_minute, period=period)
    ]
    return rows, problems


@needs_prefect
def watch(
    *,
    block: Blocks = None,
    once: Annotated[bool, Parameter(help="Poll once and return.")] = False,
    interval: Annotated[
        float, Parameter(help="Seconds between polls for newly suspended flow runs.", validator=between(0, above=True))
    ] = 10.0,
    duration: Annotated[
        float | None, Parameter(help="Seconds to watch; no limit by default.", validator=between(0, above=True))
    ] = None,
    json: AsJson = False,
) -> int:
    """Follow the jobs that suspended flow runs wait for, and resume each flow run when its job has ended.

    It may be stopped or killed at any time; another watcher continues.
    """
    # As with Ctrl-C: work in progress is finished, and events are still sent.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with nullcontext() if json else _shown():
            report = run_watch(checked_blocks(block, may_be_none=True), once=once, interval=interval, duration=duration)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        Console().print(
            f"Watched {many(report.followed, 'job')}: resumed {many(report.resumed, 'flow run')}, "
            f"reported {many(report.told, 'finished job')}, cancelled the jobs of {many(report.cancelled, 'flow run')}."
        )
        print_problems(report.problems)
    return 1 if report.problems else 0


@contextmanager
def _shown() -> Iterator[None]:
    """Print the watcher's log lines on standard error, and restore the logger afterwards."""
    log = get_logger(_WATCHER)
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


@needs_prefect
def resume(
    flow_run_id: Annotated[str, Parameter(help="Id of the flow run.")],
    /,
    *,
    force: Annotated[bool, Parameter(help="Run it again even if its process may be alive.")] = False,
    json: AsJson = False,
) -> int:
    """Run a flow run again, under its own id, after its worker died: it attaches to its jobs and submits none twice.

    `prefect-qruntime sweep` finds such runs. The UI's "Copy to new run" would submit their jobs again.
    """
    resumed = resume_flow_run(flow_run_id, force=force)
    if json:
        sys.stdout.write(resumed.model_dump_json(indent=2) + "\n")
        return 0
    number = len(resumed.jobs)
    jobs = f"It attaches to its {many(number, 'job')}" if number else "It had submitted no job"
    Console().print(
        f"Flow run {resumed.name} ({resumed.id}) is scheduled again under the same id. {jobs}. "
        "A worker of its work pool starts it.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


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
    found = list_sessions(blocks, attended=ATTENDED)
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        _print_sessions(found, Console())
    return print_problems(found.problems)


def _close(session_id: str, blocks: list[str] | None, *, drop: bool, json: bool) -> int:
    """Close a session and print its state; 1 if it could not be closed."""
    try:
        block, session = close_by_id(session_id, blocks, drain=not drop, attended=ATTENDED)
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
    if found.sessions:
        console.print(_table(found.sessions))
        number = len(found.sessions)
        console.print(
            f"{number} {'session is' if number == 1 else 'sessions are'} open. Close one with "
            "`prefect-qruntime sessions --close ID`.",
            highlight=False,
        )
    else:
        console.print("No open session was found." if found.unread else "No session is open.")
    print_not_known(console, found.unread)


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
        bool, Parameter(help="Also cancel live jobs whose flow run failed or completed, and detached ones.")
    ] = False,
    json: AsJson = False,
) -> int:
    """Close sessions whose flow run has ended or whose process is gone, and report or cancel the jobs left behind.

    The exit code is 0 if nothing remains, 1 if something remains or could not be read, 2 if an argument is wrong.
    """
    # Locks and flow runs whose process is gone are looked at without a block, too: flows may make theirs in code.
    report = run_sweep(
        checked_blocks(block, may_be_none=True), dry_run=dry_run, cancel_jobs=cancel_jobs, attended=ATTENDED
    )
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        _print_swept(report, Console())
        print_problems(report.problems)
    return 0 if report.is_clean else 1


def _print_swept(report: SweepReport, console: Console) -> None:
    """Print sessions and jobs as a table, and the commands that continue stalled flow runs."""
    found = [("session", one) for one in report.sessions] + [("job", one) for one in report.jobs]
    swept = len(report.blocks) - len(report.unread)
    title = f"Swept {many(swept, 'block')}" if not report.unread else f"Swept {swept} of {len(report.blocks)} blocks"
    if not found and not report.stalled and not report.problems:
        console.print(f"{title}: nothing was left behind.")
    elif not found:
        console.print(f"{title}.")
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
    print_not_known(console, report.unread)
