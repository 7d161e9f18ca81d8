"""`prefect-qruntime demo`: the main flow in both dialects, with its counts on the last screen."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from prefect import flow
from rich.console import Console

from prefect_qruntime.cli.options import require_prefect
from prefect_qruntime.cli.output import many
from prefect_qruntime.client.hosts import DIALECTS, Dialects
from prefect_qruntime.flows.run_circuits import CIRCUITS, print_table, run_circuits

__all__ = ["demo"]

Route = Literal["service", "executor", "auto"]

# An embedded Prefect server takes 11 to 15 s on two cores, and Prefect gives up after 20.
_START_LIMIT = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"


@flow(name="demo", log_prints=False)
def demo_flow(
    dialects: list[Dialects], shots: int, route: Route | None = None, dry_run: bool = False
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Run the main flow as subflows: each dialect, on the noisy and on the ideal backend.

    Args:
        dialects: Dialects in order.
        shots: Shots of each circuit.
        route: How the circuits run, in the cloud dialect.
        dry_run: Whether they run on mock backends.

    Returns:
        A title and the rows of each run.
    """
    flip, bell, ghz = (str(CIRCUITS / name) for name in ("flip.qasm", "bell.qasm", "ghz5.qasm"))
    tables = []
    for dialect in dialects:
        for backend, circuits in (
            # One job that opens the session, then five of it in the same session.
            ("sandbox_noisy", [flip] * 6 + [bell, ghz]),
            ("sandbox_ideal", [flip, bell, ghz]),
        ):
            rows = run_circuits(circuits, backend=backend, shots=shots, dialect=dialect, route=route, dry_run=dry_run)
            tables.append((f"{dialect} dialect, {backend}, {shots} shots each", rows))
    return tables


def demo(
    *,
    dialect: Literal["both"] | Dialects = "both",
    shots: Annotated[int, Parameter(help="Shots of each circuit.")] = 1000,
    route: Annotated[Route | None, Parameter(help="How the circuits run; executor in the cloud dialect only.")] = None,
    dry_run: Annotated[bool, Parameter(help="On mock backends, in the cloud dialect only: random counts.")] = False,
) -> int:
    """Run the main flow on the embedded sandbox: a bit flip, a Bell state and a GHZ state, in sessions.

    Needs no account. Shows the counts from a noisy and from an ideal backend.
    """
    os.environ.setdefault(_START_LIMIT, "120")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    require_prefect()
    both: list[Dialects] = ["cloud"] if dry_run or route == "executor" else list(DIALECTS[::-1])
    tables = demo_flow(both if dialect == "both" else [dialect], shots, route, dry_run)
    console = Console()
    console.rule("Counts")
    wrong = 0
    for title, rows in tables:
        print_table(rows, title)
        wrong += sum(_implausible(row) for row in rows if row["circuit"] == 1 and not dry_run)
    if wrong:
        console.print(f"[red]{many(wrong, 'run')} of the flip circuit did not give nearly all ones.[/red]")
    return 1 if wrong else 0


def _implausible(row: dict[str, Any]) -> bool:
    """Whether the flip circuit gave anything but nearly all ones (all of them, without noise)."""
    share = row["frequencies"].get("1", 0) / row["shots"]
    return bool(share < (1.0 if row["backend"] == "sandbox_ideal" else 0.9))
