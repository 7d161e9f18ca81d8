"""`prefect-qruntime`: the command line.

Each command is a function in a module that is loaded when the command is called, so `--help` imports no other.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path

import httpx
from cyclopts import App, CycloptsError, Parameter

from prefect_qruntime import __version__
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError

__all__ = ["app", "main"]

_COMMANDS = {
    "demo": ("local", "Run the main job on the embedded sandbox."),
    "init": ("local", "Write a deployment file, example circuits and automations."),
    "doctor": ("operations", "Check settings, network, keys and the Prefect side."),
    "setup": ("operations", "Create the limits in Prefect by which processes share the create rate."),
    "backends": ("operations", "List backends with status, size, queue and errors."),
    "jobs": ("jobs", "List jobs with state, QPU seconds and owner."),
    "estimate": ("jobs", "Estimate what a job will cost."),
    "usage": ("jobs", "Report QPU seconds by deployment, flow, tag, user or month."),
    "result": ("jobs", "Show a finished job's result."),
    "compare": ("jobs", "Test whether the results of two jobs agree."),
    "cancel": ("jobs", "Cancel a job."),
    "sessions": ("operations", "List open sessions, or close one."),
    "watch": ("operations", "Resume suspended flow runs when their jobs have ended."),
    "sweep": ("operations", "Close sessions whose flow run or process is gone."),
    "resume": ("operations", "Run a flow run again, under its own id, after its worker died."),
    "sandbox": ("local", "Serve the sandbox."),
    "server": ("local", "Start a Prefect server that does not stall on SQLite."),
}
"""Each command's module, and its line in the list of commands."""

_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes as a shell has them

app = App(
    name="prefect-qruntime",
    help="Run quantum jobs from Prefect on IBM's Qiskit Runtime REST API.",
    version=__version__,
    # `--no-json` and the like would double each help page.
    default_parameter=Parameter(negative=()),
)
for _name, (_module, _help) in _COMMANDS.items():
    app.command(f"prefect_qruntime.cli.{_module}:{_name}", name=_name, help=_help)
app.register_install_completion_command(name="install-completion")


def main() -> None:
    """Entry point of the `prefect-qruntime` command."""
    codecs.register_error("qruntime-escape", _escaped)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="qruntime-escape")
    # Killed at once, the process would leave behind the temporary server that Prefect starts without PREFECT_API_URL.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    # A short command ends while Prefect still sends its events. It waits for them and needs to say nothing about it.
    for worker in ("EventsWorker", "APILogWorker"):
        logging.getLogger(worker).addFilter(_is_news)
    try:
        result = app(sys.argv[1:], exit_on_error=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        _drop_output()
        sys.exit(1)
    except CycloptsError:  # printed already
        sys.exit(2)
    except KeyboardInterrupt:  # while modules are imported; cyclopts does the same while a command runs
        sys.exit(_INTERRUPTED)
    except QuantumRuntimeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2 if isinstance(error, InvalidInput) else 1)
    except Exception as error:
        causes = _causes(error)
        for kind, code in ((KeyboardInterrupt, _INTERRUPTED), (SystemExit, _TERMINATED)):
            if any(isinstance(cause, kind) for cause in causes):  # pydantic makes an error of it
                sys.exit(code)
        if (said := _disk_full(error) or _no_server(causes)) is None:
            raise
        sys.stderr.write(f"{said}\n")
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _open_closed_streams() -> None:
    """Put the null device where the caller has closed a standard stream: Python has none there, nor would a child."""
    for name in ("stdin", "stdout", "stderr"):  # in this order each takes the lowest free descriptor, which is its own
        if getattr(sys, name) is None:
            null = Path(os.devnull).open("r" if name == "stdin" else "w")  # noqa: SIM115 - until the process ends
            os.set_inheritable(null.fileno(), True)
            setattr(sys, name, null)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""What a terminal or a pipe cannot show, as `\uXXXX`: nothing is lost, and JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Prefect's own senders is more than that they still send."""
    return not str(record.msg).startswith("Still processing items")


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what led to it."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _drop_output() -> None:
    """Discard what is still buffered, so that the interpreter's end does not fail on it again."""
    with contextlib.suppress(OSError, AttributeError):  # closed by the caller, or replaced by what is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _disk_full(error: BaseException) -> str | None:
    """Return the message if an error means that there is no room for the output; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    _drop_output()
    return f"The output could not be written: {error.strerror}. It is incomplete."


def _no_server(causes: list[BaseException]) -> str | None:
    """Return the message if one of the causes means that Prefect's API stopped answering or refuses; else None."""
    from prefect.settings import get_current_settings

    from prefect_qruntime.diagnostics.prefect_server import refusal, unreachable

    url = get_current_settings().api.url
    for one in causes:
        if (refused := refusal(one)) is not None:
            return str(refused)
        failed_start = isinstance(one, RuntimeError) and "server" in str(one).lower()
        if failed_start if url is None else isinstance(one, httpx.TransportError | TimeoutError):
            return str(unreachable(url, str(one).split("\n")[0] or type(one).__name__))
    return None
