"""`prefect-qruntime demo`, `init`, `sandbox` and `server`: what needs no account.

On SQLite a plain `prefect server start` stands still for up to a minute at times. Python collects cyclic garbage
wherever it happens to allocate, so also on the server's event loop. Closing a SQLite cursor there waits for a mutex
that another thread holds inside SQLite's busy wait, and what that thread waits for is a lock whose owner needs the
event loop. With `prefect-qruntime server` a thread of its own collects the garbage instead; it can wait without harm.
"""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import re
import runpy
import sys
import threading
import time
from contextlib import redirect_stdout
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from cyclopts import Parameter
from prefect import flow
from rich.console import Console

from prefect_qruntime.cli.options import MOST_SHOTS, AsJson, between, many, require_prefect
from prefect_qruntime.client.connection import DIALECTS, Dialects
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

if TYPE_CHECKING:
    from prefect_qruntime.sandbox import Sandbox

__all__ = ["demo", "init", "run_prefect", "sandbox", "server"]


Route = Literal["service", "executor", "auto"]

# An embedded Prefect server takes 11 to 15 s on two cores, and Prefect gives up after 20.
_START_LIMIT = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"

_ENV = """\
# The address of Prefect's server. Without it each command starts a temporary server of its own.
PREFECT_API_URL=http://127.0.0.1:4200/api
# The API key belongs in a credentials block, not here: see `prefect block register -m prefect_qruntime.blocks`.
"""
_NEXT = """\
Next:
  prefect server start                              # in a terminal of its own
  export PREFECT_API_URL=http://127.0.0.1:4200/api
  prefect block register -m prefect_qruntime.blocks
  prefect work-pool create quantum --type process
  prefect --no-prompt deploy --all
  prefect worker start --pool quantum               # in a terminal of its own
  prefect deployment run run-circuits/circuits-on-demand --watch
"""
_PORT_PROBLEMS = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "needs a privileged user"}
_PERIOD = 5.0  # seconds between collections
_START = 12  # collections after which everything that a server needs from its start on has been made


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
    from prefect_qruntime.flows.run_circuits import CIRCUITS, run_circuits  # a server needs none of it

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
    shots: Annotated[int, Parameter(help="Shots of each circuit.", validator=between(1, MOST_SHOTS))] = 1000,
    route: Annotated[Route | None, Parameter(help="How the circuits run; executor in the cloud dialect only.")] = None,
    dry_run: Annotated[bool, Parameter(help="On mock backends, in the cloud dialect only: random counts.")] = False,
) -> int:
    """Run the main flow on the embedded sandbox: a bit flip, a Bell state and a GHZ state, in sessions.

    Needs no account. Shows the counts from a noisy and from an ideal backend.
    """
    from prefect_qruntime.flows.run_circuits import print_table

    if cannot_run := _missing():
        raise QuantumRuntimeError(cannot_run)
    os.environ.setdefault(_START_LIMIT, "120")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    require_prefect()
    both: list[Dialects] = ["cloud"] if dry_run or route == "executor" else list(DIALECTS[::-1])
    with redirect_stdout(io.StringIO()):  # each run prints its table; the demo shows all of them at its end
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


def _missing() -> str:
    """What to install so that the sandbox here runs circuits; empty if it does."""
    from prefect_qruntime.sandbox.service import missing_packages

    if not (absent := missing_packages(physics=True)):
        return ""
    return (
        f"The sandbox cannot run circuits here. Not installed: {', '.join(absent)}. "
        "Install them with `pip install 'prefect-qruntime[sandbox]'`."
    )


def _implausible(row: dict[str, Any]) -> bool:
    """Whether the flip circuit gave anything but nearly all ones (all of them, without noise)."""
    share = row["frequencies"].get("1", 0) / row["shots"]
    return bool(share < (1.0 if row["backend"] == "sandbox_ideal" else 0.9))


def init(
    folder: Annotated[Path, Parameter(help="Where to write the files.")] = Path(),
    /,
    *,
    force: Annotated[bool, Parameter(help="Overwrite existing files.")] = False,
) -> int:
    """Write a deployment file for the installed flows, example circuits, automations and an .env example.

    Changes nothing in Prefect and sends nothing. If a file exists already, writes nothing; the exit code is 2.
    """
    contents = _contents()
    if not force and (there := [name for name in contents if (folder / name).exists()]):
        raise InvalidInput(
            f"{folder.resolve()} already has {', '.join(there)}; nothing was written.",
            solution="Choose another folder, or overwrite with --force.",
        )
    for name, text in contents.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InvalidInput(
                f"{path} cannot be written: {error.strerror or type(error).__name__}.",
                solution="Choose a folder that you may write to.",
            ) from None
    console = Console()
    console.print(f"Wrote {', '.join(contents)}.", highlight=False, soft_wrap=True)
    console.print(_NEXT, highlight=False, soft_wrap=True, markup=False)
    return 0


def _contents() -> dict[str, str]:
    """Return the text of each file by its path in the folder."""
    flows, automations = files("prefect_qruntime.flows"), files("prefect_qruntime.automations")
    deployments = (flows / "prefect.yaml").read_text(encoding="utf-8")
    deployments = re.sub(r"\bflows/(\w+)\.py:(\w+)", r"prefect_qruntime.flows.\1:\2", deployments)
    deployments = deployments.replace("flows/circuits/", "circuits/").replace(
        "of the flows in flows/ on a process work pool. In a clone of this repository:",
        "of the installed flows on a process work pool:",
    )
    found = {"prefect.yaml": deployments, ".env.example": _ENV}
    found |= _texts(flows / "circuits", "circuits", ".qasm") | _texts(automations, "automations", ".yaml")
    return found


def _texts(folder: Traversable, name: str, suffix: str) -> dict[str, str]:
    return {
        f"{name}/{one.name}": one.read_text(encoding="utf-8")
        for one in sorted(folder.iterdir(), key=lambda one: one.name)
        if one.name.endswith(suffix)
    }


def sandbox(
    *,
    port: Annotated[int, Parameter(help="Port on 127.0.0.1; 0 picks a free one.", validator=between(0, 65_535))] = 8765,
    queue_time: Annotated[float, Parameter(help="Seconds a job stays queued.", validator=between(0))] = 1.0,
    run_time: Annotated[float, Parameter(help="Seconds a job runs.", validator=between(0))] = 1.0,
    clock_scale: Annotated[
        float,
        Parameter(help="How much faster than real time the service's clock runs.", validator=between(0, above=True)),
    ] = 1.0,
    json: AsJson = False,
) -> int:
    """Serve the sandbox until interrupted: both dialects, IAM and a websocket on one port of this machine."""
    from prefect_qruntime.sandbox.server import run_forever

    def show(running: Sandbox) -> None:
        facts = running.connection()
        if cannot_run := _missing():
            sys.stderr.write(f"{cannot_run}\n")
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
            # The modules, routes and models of the start stay as long as the server runs. Checking them at each
            # collection took a third of a busy server's time.
            gc.freeze()
