"""`prefect-qruntime`: the command line.

Each command is a function in a module that is loaded when the command is called, so `--help` imports no other.
"""

from __future__ import annotations

import sys

import httpx
from cyclopts import App, CycloptsError, Parameter

from prefect_qruntime import __version__
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

__all__ = ["app", "main"]

_COMMANDS = {
    "demo": "Run the main job on the embedded sandbox.",
    "init": "Write a deployment file, example circuits and automations.",
    "doctor": "Check settings, network, keys and the Prefect side.",
    "setup": "Create the limits in Prefect by which processes share the create rate.",
    "backends": "List backends with status, size, queue and errors.",
    "jobs": "List jobs with state, QPU seconds and owner.",
    "estimate": "Estimate what a job will cost.",
    "usage": "Report QPU seconds by deployment, flow, tag, user or month.",
    "result": "Show a finished job's result.",
    "compare": "Test whether the results of two jobs agree.",
    "cancel": "Cancel a job.",
    "sessions": "List open sessions, or close one.",
    "watch": "Resume suspended flow runs when their jobs have ended.",
    "sweep": "Close sessions whose flow run or process is gone.",
    "resume": "Run a flow run again, under its own id, after its worker died.",
    "sandbox": "Serve the sandbox.",
    "server": "Start a Prefect server that does not stall on SQLite.",
}
"""Commands with their lines in the list of commands."""
_MODULES = {"estimate": "jobs", "usage": "jobs"}
"""Modules of commands that share one; each other command has a module of its own name."""

app = App(
    name="prefect-qruntime",
    help="Run quantum jobs from Prefect on IBM's Qiskit Runtime REST API.",
    version=__version__,
    # `--no-json` and the like would double each help page.
    default_parameter=Parameter(negative=()),
)
for _name, _help in _COMMANDS.items():
    app.command(f"prefect_qruntime.cli.{_MODULES.get(_name, _name)}:{_name}", name=_name, help=_help)
app.register_install_completion_command(name="install-completion")


def main() -> None:
    """Entry point of the `prefect-qruntime` command."""
    try:
        result = app(sys.argv[1:], exit_on_error=False)
    except CycloptsError:  # printed already
        sys.exit(2)
    except QuantumRuntimeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2 if isinstance(error, InvalidInput) else 1)
    except Exception as error:
        if (said := _no_server(error)) is None:
            raise
        sys.stderr.write(f"{said}\n")
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _no_server(error: BaseException) -> str | None:
    """Return the message if an error means that Prefect's API stopped answering; None for any other error."""
    from prefect.settings import get_current_settings

    from prefect_qruntime.diagnostics.prefect_server import unreachable

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    url = get_current_settings().api.url
    for one in causes:
        failed_start = isinstance(one, RuntimeError) and "server" in str(one).lower()
        if failed_start if url is None else isinstance(one, httpx.TransportError | TimeoutError):
            return str(unreachable(url, str(one).split("\n")[0] or type(one).__name__))
    return None
