"""`prefect-qruntime server`: Prefect's own server, with its garbage collected outside the event loop.

On SQLite a plain `prefect server start` stands still for up to a minute at times. Python collects cyclic garbage
wherever it happens to allocate, so also on the server's event loop. Closing a SQLite cursor there waits for a mutex
that another thread holds inside SQLite's busy wait, and what that thread waits for is a lock whose owner needs the
event loop. A thread of its own can wait without harm.
"""

from __future__ import annotations

import gc
import itertools
import runpy
import sys
import threading
import time
from typing import Annotated

from cyclopts import Parameter

from prefect_qruntime.errors import InvalidInput

__all__ = ["run_prefect", "server"]

_PERIOD = 5.0  # seconds between collections
_START = 12  # collections after which everything that a server needs from its start on has been made


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
    for number in itertools.count():
        time.sleep(_PERIOD)
        gc.collect()
        if number < _START:
            # The modules, routes and models of the start stay for ever; to look at them each time would take a third
            # of a busy server's time.
            gc.freeze()
