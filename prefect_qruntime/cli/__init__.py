"""`prefect-qruntime`: the command line. Thin: each command calls what the package offers."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from prefect_qruntime import __version__
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

__all__ = ["app", "main"]

app = App(
    name="prefect-qruntime",
    help="Run quantum jobs from Prefect on IBM's Qiskit Runtime REST API.",
    version=__version__,
)

# An embedded Prefect server takes 11 to 15 s on two cores, and Prefect gives up after 20.
_START_LIMIT = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"


@app.command
def demo(
    *,
    dialect: Literal["both", "legacy", "cloud"] = "both",
    shots: Annotated[int, Parameter(help="Shots of each circuit.")] = 1000,
) -> int:
    """Run the main job on the embedded sandbox: six times one circuit in a session, a Bell and a GHZ state.

    Needs no account. Shows the counts from a noisy and from an ideal backend.
    """
    os.environ.setdefault(_START_LIMIT, "120")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    from prefect_qruntime.cli.demo import run_demo

    return run_demo(["legacy", "cloud"] if dialect == "both" else [dialect], shots)


@app.command
def sandbox(
    *,
    port: Annotated[int, Parameter(help="Port on 127.0.0.1; 0 picks a free one.")] = 8765,
    queue_time: Annotated[float, Parameter(help="Seconds a job stays queued.")] = 1.0,
    run_time: Annotated[float, Parameter(help="Seconds a job runs.")] = 1.0,
    clock_scale: Annotated[float, Parameter(help="How much faster the service's clock goes.")] = 1.0,
    json: Annotated[bool, Parameter(help="Print the connection as JSON.")] = False,
) -> int:
    """Serve the sandbox until interrupted: both dialects, IAM and a websocket on one port of this machine."""
    from prefect_qruntime.cli.sandbox import serve_sandbox

    return serve_sandbox(port=port, queue_time=queue_time, run_time=run_time, clock_scale=clock_scale, json=json)


@app.command
def sweep(
    *,
    block: Annotated[
        list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="Only report.")] = False,
    cancel_jobs: Annotated[bool, Parameter(help="Also cancel jobs whose flow run is over.")] = False,
    json: Annotated[bool, Parameter(help="Print the report as JSON.")] = False,
) -> int:
    """Close sessions whose flow run is over, and report jobs that nobody waits for."""
    from prefect_qruntime.cli.sweep import sweep_and_report

    return sweep_and_report(block or None, dry_run=dry_run, cancel_jobs=cancel_jobs, json=json)


@app.command
def doctor(
    *,
    block: Annotated[
        list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")
    ] = None,
    json: Annotated[bool, Parameter(help="Print one row for each finding as JSON.")] = False,
) -> int:
    """Check keys, addresses, rights, clock and the Prefect side, and say for each thing wrong what mends it.

    Buys and changes nothing. The exit code is 1 if something must be mended; hints do not count.
    """
    from prefect_qruntime.cli.doctor import doctor_and_report

    return doctor_and_report(block or None, json=json)


@app.command
def jobs(
    *,
    block: Annotated[
        list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")
    ] = None,
    state: Annotated[
        list[Literal["queued", "running", "completed", "cancelled", "failed"]] | None,
        Parameter(help="Only jobs in these states."),
    ] = None,
    limit: Annotated[int, Parameter(help="Most jobs of each instance, newest first.")] = 50,
    since: Annotated[
        str | None, Parameter(help="Only jobs created since then: 2026-05-01, 2026-05-01T08:00, 90m, 24h or 7d.")
    ] = None,
    json: Annotated[bool, Parameter(help="Print jobs and totals as JSON.")] = False,
) -> int:
    """List the instances' jobs with state, QPU seconds and the flow run that owns each."""
    from prefect_qruntime.cli.jobs import list_and_report

    return list_and_report(block or None, states=[*(state or ())] or None, limit=limit, since=since, json=json)


@app.command
def setup(
    *,
    block: Annotated[
        list[str] | None, Parameter(help="Names of credentials blocks; all saved ones by default.")
    ] = None,
    per_minute: Annotated[int, Parameter(help="Jobs created in a minute, by all who share the account.")] = 5,
    json: Annotated[bool, Parameter(help="Print what was done as JSON.")] = False,
) -> int:
    """Make the create limits in Prefect that share the service's pace of five jobs a minute among all processes.

    May be run again at any time; a second run changes nothing.
    """
    from prefect_qruntime.cli.setup import set_up_and_report

    return set_up_and_report(block or None, per_minute=per_minute, json=json)


@app.command
def watch(
    *,
    block: Annotated[
        list[str] | None, Parameter(help="Names of credentials blocks to look after; all by default.")
    ] = None,
    once: Annotated[bool, Parameter(help="Look once and return.")] = False,
    interval: Annotated[float, Parameter(help="Seconds between looks for newly suspended flow runs.")] = 10.0,
    duration: Annotated[float | None, Parameter(help="Seconds to watch; for ever by default.")] = None,
    json: Annotated[bool, Parameter(help="Print the report as JSON.")] = False,
) -> int:
    """Follow the jobs that suspended flow runs wait for, and resume each flow run when its job is over.

    May be stopped or killed at any time: another one goes on.
    """
    from prefect_qruntime.cli.watch import watch_and_report

    return watch_and_report(block or None, once=once, interval=interval, duration=duration, json=json)


app.command(
    "prefect_qruntime.cli.server:server",
    name="server",
    help="Start a Prefect server that does not stand still on SQLite when many flows run.",
)


def main() -> None:
    """Entry point of the `prefect-qruntime` command."""
    try:
        result = app(sys.argv[1:], exit_on_error=False)
    except CycloptsError:  # said already
        sys.exit(2)
    except QuantumRuntimeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2 if isinstance(error, InvalidInput) else 1)
    sys.exit(result if isinstance(result, int) else 0)
