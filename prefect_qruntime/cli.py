"""`prefect-qruntime`: the command line. Thin: each command calls what the package offers."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from prefect_qruntime._version import __version__

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
    from prefect_qruntime.demo import run_demo

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
    import orjson
    from rich.console import Console

    from prefect_qruntime.sandbox.server import Sandbox, run_forever

    def tell(running: Sandbox) -> None:
        facts = running.connection()
        if json:
            sys.stdout.write(orjson.dumps(facts).decode() + "\n")
            sys.stdout.flush()
            return
        console = Console()
        console.print(f"Sandbox on {running.url}: the cloud dialect under /api/v1, legacy and IAM at the root.")
        for name, value in facts.items():
            console.print(f"  {name:<9} {value}", soft_wrap=True, highlight=False)
        console.print("For the legacy dialect use base_url without /api/v1. Stop with Ctrl-C.")

    run_forever(port=port, on_start=tell, queue_time=queue_time, run_time=run_time, clock_scale=clock_scale)
    return 0


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
    from prefect_qruntime.sweep import rows, run_sweep

    report = run_sweep(block or None, dry_run=dry_run, cancel_jobs=cancel_jobs)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        _print_rows(rows(report), f"Swept {len(report.blocks)} instances", "nothing left behind")
        for problem in report.problems:
            sys.stderr.write(f"{problem}\n")
    return 1 if report.problems else 0


def _print_rows(found: list[dict[str, Any]], title: str, none: str) -> None:
    """Print rows of equal keys as a table."""
    from rich.console import Console
    from rich.table import Table

    if not found:
        Console().print(f"{title}: {none}.")
        return
    table = Table(title=title, title_justify="left")
    for name in found[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in found:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)


def main() -> None:
    """Entry point of the `prefect-qruntime` command."""
    result = app()
    sys.exit(result if isinstance(result, int) else 0)
