"""`prefect-qruntime sandbox` and `server`: serve the sandbox, or Prefect so that it does not stall on SQLite.

On SQLite a plain `prefect server start` stands still for up to a minute at times. Python collects cyclic garbage
wherever it happens to allocate, so also on the server's event loop. Closing a SQLite cursor there waits for a mutex
that another thread holds inside SQLite's busy wait, and what that thread waits for is a lock whose owner needs the
event loop. A thread of its own collects the garbage instead; it can wait without harm.
"""

from __future__ import annotations

import errno
import gc
import runpy
import sys
import threading
import time
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.console import Console

from prefect_qruntime.cli.options import AsJson
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.sandbox.server import Sandbox, run_forever

__all__ = ["run_prefect", "sandbox", "server"]


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


_PERIOD = 5.0  # seconds between collections


def server(
    *options: Annotated[str, Parameter(allow_leading_hyphen=True, help="As `prefect server start` takes them.")],
) -> int:
    """Start a Prefect server that does not stall on SQLite when many flows run. All options are Prefect's.

    For many flows on several machines, use PostgreSQL.
    """
    for option in options:
        if option in ("-b", "--background") or option.startswith("--workers"):
            raise InvalidInput(
                "starts other processes, which this command cannot control.",
                field=option,
                solution="Leave it out, or use `prefect server start` with PostgreSQL.",
            )
    return run_prefect("server", "start", *options)


def run_prefect(*arguments: str) -> int:
    """Run Prefect's command line in this process, with a thread that collects garbage; returns its exit code."""
    gc.disable()
    threading.Thread(target=_collect_for_ever, name="qruntime-garbage", daemon=True).start()
    sys.argv = ["prefect", *arguments]
    try:
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _collect_for_ever() -> None:
    while True:
        time.sleep(_PERIOD)
        gc.collect()
