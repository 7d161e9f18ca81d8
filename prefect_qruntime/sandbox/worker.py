"""Run jobs' circuits in a separate process: qiskit-aer holds the GIL, and only a process can be stopped at any time.

A request is JSON with its size on a line before it, an answer a line of JSON followed by the result's bytes; the first
answer, before any request, says that the process is ready, and an empty request is only answered. The process ends
when its standard input closes; while it simulates, the kernel ends it when the lifeline closes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any, BinaryIO

import orjson

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.encoding import INSTALL, InputError
from prefect_qruntime.sandbox.state import FAILED, Outcome, Run

_WARM_UP = {
    "pubs": [
        [
            'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c;h q[0]; cx q[0], q[1]; c = measure q;',
            None,
            10,
        ]
    ]
}


def main(lifeline: int | None) -> None:
    """Answer requests from standard input until it closes.

    Args:
        lifeline: File descriptor of a pipe that closes when the parent process ends, if there is one.
    """
    # Ctrl-C goes to the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if lifeline is not None:
        _end_with(lifeline)
    # The output of libraries must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    requests = sys.stdin.buffer
    _warm_up()
    _write(answers, Outcome())
    while (request := _read(requests)) is not None:
        _write(answers, _answer(request) if request else Outcome())


def _end_with(lifeline: int) -> None:
    """Let the kernel end this process when the other end of a pipe closes, even if other code holds the GIL."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
        # The parent may have ended before the signal was asked for.
        with contextlib.suppress(BlockingIOError):
            if not os.read(lifeline, 1):
                sys.exit(0)


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    size = stream.readline()
    if not size:
        return None
    request: dict[str, Any] = orjson.loads(stream.read(int(size)))
    return request


def _write(stream: BinaryIO, outcome: Outcome) -> None:
    fields = asdict(outcome)
    body = fields.pop("body")
    stream.write(orjson.dumps({"fields": fields, "size": None if body is None else len(body)}) + b"\n")
    if body is not None:
        stream.write(body)
    stream.flush()


def _answer(request: dict[str, Any]) -> Outcome:
    run = Run(**{**request["run"], "backend": Backend(**request["run"]["backend"])})
    return execute(request["program_id"], request["params"], run, legacy=request["legacy"])


def execute(program_id: str, params: dict[str, Any], run: Run, *, legacy: bool = False) -> Outcome:
    """Run one job's circuits here and now; never raises."""
    started = time.perf_counter_ns()
    try:
        result, shots = _program(program_id, legacy and params.get("version", 1) == 1)(params, run)
        body = orjson.dumps(result)
    except InputError as error:
        return _failed(str(error), error.code, str(error), started)
    except ImportError as error:
        # No fault of the service's, after which a new job would be worth a try.
        text = f"{error}. {INSTALL}"
        return _failed(text, 1500, text, started, solution=f"{INSTALL} Then submit a new job.")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return _failed(reason[:500], 1500, traceback.format_exc(), started)
    return Outcome(body=body, execution_ns=shots * 2000)


def _program(program_id: str, first_version: bool) -> Callable[[dict[str, Any], Run], tuple[dict[str, Any], int]]:
    from prefect_qruntime.sandbox import executor, noise_learner, primitives, primitives_v1

    if first_version:
        return {"sampler": primitives_v1.sampler, "estimator": primitives_v1.estimator}[program_id]
    return {
        "sampler": primitives.sampler,
        "estimator": primitives.estimator,
        "executor": executor.executor,
        "noise-learner": noise_learner.noise_learner,
        "calibrate": noise_learner.calibrate,
    }[program_id]


def _failed(
    reason: str, code: int, text: str, started: int, solution: str = "Correct the input and submit a new job."
) -> Outcome:
    return Outcome(
        status=FAILED,
        reason=reason,
        reason_code=code,
        solution=solution,
        text=text,
        execution_ns=time.perf_counter_ns() - started,
    )


def _warm_up() -> None:
    """Import qiskit and qiskit-aer and run one small circuit with and without noise."""
    with contextlib.suppress(ImportError):
        # Imports everything that the other modules import from these packages on first use.
        for name in ("qiskit.qpy", "qiskit_aer.library", "qiskit_qasm3_import"):
            import_module(name)
    for noisy in (False, True):
        execute("sampler", _WARM_UP, Run(Backend("warm-up", 2, noisy), 1))
