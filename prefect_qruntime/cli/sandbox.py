"""`prefect-qruntime sandbox`."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.console import Console

from prefect_qruntime.cli.options import AsJson
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.sandbox.server import Sandbox, run_forever

__all__ = ["sandbox"]

_PORT_PROBLEMS = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "needs a privileged user"}


def sandbox(
    *,
    port: Annotated[int, Parameter(help="Port on 127.0.0.1; 0 picks a free one.")] = 8765,
    queue_time: Annotated[float, Parameter(help="Seconds a job stays queued.")] = 1.0,
    run_time: Annotated[float, Parameter(help="Seconds a job runs.")] = 1.0,
    clock_scale: Annotated[float, Parameter(help="How much faster than real time the service's clock runs.")] = 1.0,
    json: AsJson = False,
) -> int:
    """Serve the sandbox until interrupted: both dialects, IAM and a websocket on one port of this machine."""

    def show(running: Sandbox) -> None:
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

    try:
        run_forever(port=port, on_start=show, queue_time=queue_time, run_time=run_time, clock_scale=clock_scale)
    except OSError as error:
        if error.errno not in _PORT_PROBLEMS:
            raise
        raise InvalidInput(
            f"{port} of 127.0.0.1 {_PORT_PROBLEMS[error.errno]}.",
            field="port",
            solution="Give another port with --port; 0 takes a free one.",
        ) from None
    return 0
