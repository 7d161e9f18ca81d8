"""`prefect-qruntime jobs`, `estimate`, `usage`, `result`, `compare` and `cancel`.

Which jobs there are, what more would cost, who used what, and what one job gave.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefect_qruntime import result_storage
from prefect_qruntime.cli.options import (
    ATTENDED,
    MOST_SHOTS,
    WIDE,
    AsJson,
    Blocks,
    JobId,
    OneBlock,
    between,
    cell,
    checked_blocks,
    client_of,
    id_column,
    many,
    needs_prefect,
    only_credentials,
    print_json,
    print_not_known,
    print_problems,
    print_rows,
    short,
)
from prefect_qruntime.client.cost_core import MOST_SECONDS, CostEstimate
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs.agreement import checked_rate, compare_results
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.flow_parameters import circuit_text, own_files, read_file
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.operations.job_listing import GroupBy, JobList, ListedJob, list_jobs
from prefect_qruntime.operations.usage import report_usage
from prefect_qruntime.operations.usage_tables import Reconciled, UsageLine, UsageReport, to_csv, write_parquet
from prefect_qruntime.redact import number_text, shown
from prefect_qruntime.tasks.definitions import Submission
from prefect_qruntime.tasks.estimate import estimate_jobs

__all__ = ["cancel", "compare", "estimate", "jobs", "result", "usage"]


_STYLES = {"queued": "yellow", "running": "cyan", "completed": "green", "cancelled": "magenta", "failed": "red"}
_GROUPED: dict[GroupBy, tuple[str, str]] = {
    "deployment": ("deployment", "no deployment"),
    "owner": ("flow run", "no flow run"),
    "tag": ("tag", "no tag"),
    "flow-state": ("state of the flow run", "not in this Prefect"),
}
"""The heading of each grouping, and the text for jobs without a value."""

_ROWS = 20


@needs_prefect
def jobs(
    *,
    block: Blocks = None,
    state: Annotated[
        list[Literal["queued", "running", "completed", "cancelled", "failed"]] | None,
        Parameter(help="Only jobs in these states."),
    ] = None,
    limit: Annotated[
        int, Parameter(help="Most jobs to list of each instance, newest first.", validator=between(1))
    ] = 50,
    since: Annotated[
        str | None,
        Parameter(help="Only jobs created since then: 2026-05-01 or 2026-05-01T08:00 (UTC), 90m, 24h or 7d."),
    ] = None,
    by: Annotated[
        GroupBy | None, Parameter(help="Show sums by deployment, owner (flow run), tag or the flow run's state.")
    ] = None,
    json: AsJson = False,
) -> int:
    """List the instances' jobs with state, QPU seconds and the flow run that owns each, or sum them up by group."""
    found = list_jobs(
        checked_blocks(block), states=[*(state or ())] or None, limit=limit, since=since, by=by, attended=ATTENDED
    )
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        _print(found, Console(), by)
    return print_problems(found.problems)


def _print(found: JobList, console: Console, by: GroupBy | None) -> None:
    if found.jobs and by is not None:
        console.print(_group_table(found, by))
    elif found.jobs:
        console.print(_table(found.jobs, console))
    totals = found.totals
    line = f"{many(totals.jobs, 'job')}, {number_text(totals.qpu_seconds)} QPU seconds"
    if totals.not_final:
        line += f" ({totals.not_final} not final)"
    if totals.without_owner:
        line += (
            f"; {totals.without_owner} without a flow run, {number_text(totals.qpu_seconds_without_owner)} QPU seconds"
        )
    elif totals.jobs:
        line += "; every one belongs to a flow run"
    console.print(f"{line}.", highlight=False)
    if found.more:
        console.print("There are more: raise --limit, or narrow with --since and --state.", style="yellow")
    print_not_known(console, found.unread)


def _table(jobs: list[ListedJob], console: Console) -> Table:
    several = len({job.block for job in jobs}) > 1
    table = Table(expand=True, show_lines=True)
    id_column(table, "job\ncreated (UTC)" + several * "\nblock", (job.id for job in jobs))
    for name in ("state", "backend\nprogram"):
        table.add_column(name, overflow="fold")
    table.add_column("QPU s", justify="right", no_wrap=True)
    table.add_column("flow run\nid", overflow="fold", ratio=1)
    for job in jobs:
        created = f"{job.created_at.astimezone(UTC):%m-%d %H:%M}" if job.created_at else ""
        seconds = (
            "" if job.qpu_seconds is None else number_text(job.qpu_seconds) + ("" if job.qpu_seconds_final else " …")
        )
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
        seconds = number_text(group.qpu_seconds) + (" …" if group.not_final else "")
        value = cell(group.value) if group.value is not None else cell(none, style="bold red")
        table.add_row(value, str(group.jobs), str(group.live or ""), seconds)
    return table


def _owner(job: ListedJob, console: Console) -> Text:
    if job.flow_run_id is None:
        return cell("no flow run", style="bold red")
    return cell(job.flow_run or "not in this Prefect", short(job.flow_run_id, console))


@needs_prefect
def estimate(
    circuits: Annotated[list[str] | None, Parameter(help="OpenQASM, as text or as paths of files.")] = None,
    /,
    *,
    backend: Annotated[str, Parameter(help="Name of the backend.")],
    program: Annotated[str, Parameter(help="sampler, estimator, executor, or with --params any other.")] = "sampler",
    observable: Annotated[
        list[str] | None,
        Parameter(help="For the estimator: a Pauli string to measure on every circuit; can be repeated."),
    ] = None,
    pubs: Annotated[
        Path | None, Parameter(help="JSON file with a list of PUBs in place of circuits, as submit_job takes them.")
    ] = None,
    params: Annotated[
        Path | None, Parameter(help="JSON file with a program's raw payload in place of circuits.")
    ] = None,
    options: Annotated[Path | None, Parameter(help="JSON file with the options of the primitive.")] = None,
    shots: Annotated[
        int | None,
        Parameter(help="Shots of each circuit; by default the program's own.", validator=between(1, MOST_SHOTS)),
    ] = None,
    route: Annotated[
        Literal["service", "executor", "auto"] | None, Parameter(help="How PUBs run; by default as set.")
    ] = None,
    one_job_each: Annotated[bool, Parameter(help="One job for each circuit or PUB; by default one for all.")] = False,
    max_execution_time: Annotated[
        int | None, Parameter(help="Limit of QPU seconds for each job.", validator=between(1, MOST_SECONDS))
    ] = None,
    block: Annotated[str | None, Parameter(help="Name of the credentials block, if several are saved.")] = None,
    json: AsJson = False,
) -> int:
    """Estimate what a job will cost, learnt from finished jobs; nothing is submitted.

    What it would run is given as circuits (OpenQASM, as text or as paths), as PUBs or as a raw payload.
    """
    if bool(circuits) + (pubs is not None) + (params is not None) != 1:
        raise InvalidInput("give circuits, --pubs or --params: one of the three", field="circuits")
    each = 1 if one_job_each else None
    with own_files():
        given: Submission = {
            "backend": backend,
            "program_id": program,
            "shots": shots,
            "options": _json_file(options, "options"),
            "params": _json_file(params, "params"),
            "route": route,
            "max_execution_time": max_execution_time,
        }
        wanted = _json_file(pubs, "pubs") if pubs is not None else _pubs_of(circuits or [], observable or [], program)

        async def work() -> CostEstimate:
            return await estimate_jobs(await only_credentials(block), wanted, given, pubs_per_job=each)

        found = network_loop().run(work())
    if json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        Console().print(cell(str(found)))
    return 0


def _pubs_of(circuits: list[str], observables: list[str], program: str) -> list[Any] | None:
    """Circuits as PUBs, each with all observables for the estimator; None without circuits."""
    if observables and program != "estimator":
        raise InvalidInput(f"is for the program estimator, not {shown(program)}", field="observable")
    if circuits and program == "estimator" and not observables:
        raise InvalidInput("the estimator needs one at least, for instance --observable ZZ", field="observable")
    texts = [circuit_text(circuit, field=f"circuits[{place}]") for place, circuit in enumerate(circuits)]
    if observables:
        return [(text, observables if len(observables) > 1 else observables[0]) for text in texts]
    return list(texts) or None


def _json_file(path: Path | None, field: str) -> Any:
    """The content of a JSON file.

    Raises:
        InvalidInput: It cannot be read, or is not JSON. The message never holds its content.
    """
    if path is None:
        return None
    try:
        return orjson.loads(read_file(path, field=field))
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{path} is not JSON (line {error.lineno}, column {error.colno})", field=field) from None


@needs_prefect
def usage(
    *,
    by: Annotated[
        list[Literal["flow", "deployment", "flow-run", "tag", "user", "session", "month", "day", "backend", "block"]]
        | None,
        Parameter(help="What to group by; may be given more than once. The deployment by default."),
    ] = None,
    since: Annotated[
        str, Parameter(help="Only what was created since then: 2026-05-01 or 2026-05-01T08:00 (UTC), 24h or 7d.")
    ] = "28d",
    until: Annotated[str | None, Parameter(help="Only what was created before then, in the same form.")] = None,
    block: Blocks = None,
    csv: Annotated[bool, Parameter(help="Print CSV.")] = False,
    json: AsJson = False,
    parquet: Annotated[Path | None, Parameter(help="Write the rows to this Parquet file (needs pyarrow).")] = None,
) -> int:
    """Report QPU seconds by owner, failed and cancelled jobs included, and reconcile them with the service's own sums.

    A dedicated session is charged by the clock: its own usage counts, divided among its jobs. Numbers that may change
    are marked. The exit code is 0 if everything was read, 1 if something could not be read, 2 if an argument is wrong.
    """
    if csv and json:
        raise InvalidInput("cannot be given together with --json", field="csv")
    report = report_usage(
        checked_blocks(block), by=[*(by or ("deployment",))], since=since, until=until, attended=ATTENDED
    )
    if parquet is not None:
        write_parquet(report, parquet)
    if csv:
        sys.stdout.write(to_csv(report))
    elif json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        _print_usage(report, Console())
    return print_problems(report.problems)


_FLOW_RUN = re.compile(r"\(([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\)\Z")
_SHOWN = 10
"""Jobs without an owner that are shown; `--json` lists more."""


def _print_usage(report: UsageReport, console: Console) -> None:
    units = report.total.resource_units is not None
    if report.rows:
        # Three columns of names beside the numbers would be a few letters wide: one column has all, in lines.
        stacked = len(report.by) > 2 and console.width < WIDE
        table = Table(expand=True, show_lines=stacked)
        for names in (report.by,) if stacked else ((name,) for name in report.by):
            if "session" in names:
                id_column(table, "\n".join(names), (row.keys["session"] for row in report.rows))
            else:
                table.add_column("\n".join(names), overflow="fold", ratio=1)
        for name in ("jobs", "failed", "cancelled", "QPU s", *(("resource\nunits",) if units else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for row in report.rows:
            keys = [_FLOW_RUN.sub(lambda found: f"({short(found[1], console)})", key) for key in row.keys.values()]
            table.add_row(*([cell(*keys)] if stacked else map(cell, keys)), *_numbers(row, units=units))
        if len(report.rows) > 1:
            table.add_section()
            blank = [""] * (0 if stacked else len(report.by) - 1)
            table.add_row("total", *blank, *_numbers(report.total, units=units), style="bold")
        console.print(table)
    line = f"{many(report.total.jobs, 'job')}, {number_text(report.total.qpu_seconds)} QPU seconds"
    if units:
        line += f"; in another account of the same work, {number_text(report.total.resource_units or 0)} resource units"
    console.print(f"{line}.", highlight=False)
    if report.total.not_final:
        console.print(
            f"{number_text(report.total.pending_qpu_seconds)} QPU seconds, of jobs or of sessions, are not final yet "
            "(…).",
            style="yellow",
            highlight=False,
        )
    if report.without_owner:
        console.print(
            f"Without an owner: {many(report.jobs_without_owner, 'job')}, "
            f"{number_text(report.qpu_seconds_without_owner)} QPU seconds. "
            f"{'It carries' if report.jobs_without_owner == 1 else 'They carry'} no flow run's tag.",
            style="red",
            highlight=False,
        )
        for job in report.without_owner[:_SHOWN]:
            created = f"{job.created_at:%Y-%m-%d %H:%M} UTC" if job.created_at else "at an unknown time"
            facts = f"{created}, {job.state}, {number_text(job.qpu_seconds)} QPU s, {job.user or 'unknown user'}"
            console.print(cell(f"{job.id} {facts}"))
        if more := report.jobs_without_owner - len(report.without_owner[:_SHOWN]):
            listed = len(report.without_owner)
            which = "them" if listed == report.jobs_without_owner else f"the {listed} with the most QPU seconds"
            console.print(f"… and {more} more; --json lists {which}.", highlight=False)
    for one in report.reconciled:
        console.print(cell(_reconciled(one)))
    for note in report.notes:
        console.print(cell(note))
    print_not_known(console, report.unread)


def _numbers(row: UsageLine, *, units: bool) -> list[str]:
    """Format a row's numbers; those that may still change end with dots."""
    dots = " …" if row.not_final else ""
    found = [str(row.jobs), str(row.states.get("failed", 0)), str(row.states.get("cancelled", 0))]
    found.append(f"{number_text(row.qpu_seconds)}{dots}")
    return [*found, f"{number_text(row.resource_units or 0)}{dots}"] if units else found


def _reconciled(one: Reconciled) -> str:
    return (
        f"{one.block}, {one.what}: the service says {number_text(one.service_says)} {one.unit}, "
        f"counted {number_text(one.counted)}; difference {number_text(one.difference, '+')}. {one.meaning}"
    )


async def _result_of(job_id: str, block: str | None) -> JobResult:
    """Fetch a job's result. That of a private job, which can be read once, is stored before anything is shown."""
    client = await client_of(job_id, block)
    if not (await client.job(job_id)).private:
        return await client.result(job_id)
    return (await result_storage.private_result(client, JobRef(id=job_id, private=True)))[0]


@needs_prefect
def result(job_id: JobId, /, *, block: OneBlock = None, json: AsJson = False) -> int:
    """Fetch a finished job's result and show it; `--json` prints it as the service returned it.

    The service hands out a private job's result only once, so it is stored first, and shown again from there.
    """
    found = network_loop().run(_result_of(job_id, block))
    if json:
        print_json(found.raw)
        return 0
    rows, console = found.to_table(), Console()
    if not rows:
        console.print(f"The result of job {job_id} has no counts or values; --json prints it.", highlight=False)
        return 0
    table = Table(expand=True)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows[:_ROWS]:
        table.add_row(*(f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    if len(rows) > _ROWS:
        console.print(f"{len(rows) - _ROWS} more rows; --json prints all.", highlight=False)
    return 0


@needs_prefect
def compare(
    job_id: JobId,
    other_id: Annotated[str, Parameter(help="Id of the other job.")],
    /,
    *,
    false_alarm: Annotated[
        float,
        Parameter(
            help="How often two runs of the same PUBs may be said to differ.", validator=between(0, 1, above=True)
        ),
    ] = 0.001,
    block: OneBlock = None,
    json: AsJson = False,
) -> int:
    """Test statistically whether the results of two finished jobs of the same PUBs agree; submits nothing.

    For instance the two jobs of `compare_routes`, or one before and one after a change. Ends with 1 if they differ
    or cannot be compared.
    """
    rate = checked_rate(false_alarm)

    async def work() -> list[JobResult]:
        return [await _result_of(one, block) for one in (job_id, other_id)]

    found = compare_results(*network_loop().run(work()), false_alarm=rate)
    if json:
        print_json({"jobs": [job_id, other_id], **dataclasses.asdict(found)})
        return 0 if found.agrees else 1
    rows = [
        {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in found.to_table()
    ]
    print_rows(rows[:_ROWS], f"Jobs {job_id} and {other_id}", "nothing to compare")
    console = Console()
    if len(rows) > _ROWS:
        console.print(f"{len(rows) - _ROWS} more rows, each at least as likely; --json prints all.", highlight=False)
    console.print(str(found), highlight=False)
    return 0 if found.agrees else 1


@needs_prefect
def cancel(job_id: JobId, /, *, block: OneBlock = None, json: AsJson = False) -> int:
    """Cancel a job. A job that has already ended is left as it is.

    The exit code is 1 if the service still shows the job as queued or running some seconds later.
    """

    async def work() -> Job:
        return await (await client_of(job_id, block)).cancel(job_id)

    job = network_loop().run(work())
    if json:
        print_json(job.model_dump(mode="json"))
    else:
        Console().print(f"Job {job.id} is {job.raw_status or 'in an unknown state'}.", highlight=False)
    return 0 if job.is_terminal else 1
