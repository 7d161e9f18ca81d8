"""`prefect-qruntime`: the command line. Thin: each command calls what the package offers."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

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

    dialects = ("legacy", "cloud") if dialect == "both" else (dialect,)
    return run_demo(dialects, shots)


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
    from prefect_qruntime.serve_sandbox import serve_sandbox

    return serve_sandbox(port=port, queue_time=queue_time, run_time=run_time, clock_scale=clock_scale, as_json=json)


def main() -> None:
    """Entry point of the `prefect-qruntime` command."""
    result = app()
    sys.exit(result if isinstance(result, int) else 0)
