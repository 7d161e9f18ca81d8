"""The QPU: runs jobs' circuits one after another in a thread of its own, away from the server's loop.

The thread is one per process and never ends. qiskit-aer runs one thing at a time anyway, and a process crashes when
the thread that first imported numpy for it has ended and another one goes on (seen with qiskit-aer 0.18.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import orjson

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.settings import Settings
from prefect_qruntime.sandbox.state import FAILED, Job, Outcome
from prefect_qruntime.sandbox.views import LEGACY

_WARM_UP = {
    "pubs": [
        [
            'OPENQASM 3.0; include "stdgates.inc"; qubit[2] q; bit[2] c;h q[0]; cx q[0], q[1]; c = measure q;',
            None,
            10,
        ]
    ]
}
_lock = threading.Lock()
_thread: ThreadPoolExecutor | None = None
_imported = threading.Event()
_warmed = False
# Everything that the other modules import from these packages where they need it.
_SIMULATOR = (
    "qiskit",
    "qiskit.primitives",
    "qiskit.qasm2",
    "qiskit.qasm3",
    "qiskit.qpy",
    "qiskit.quantum_info",
    "qiskit_aer",
    "qiskit_aer.library",
    "qiskit_aer.noise",
    "qiskit_qasm3_import",
)


def _qpu() -> ThreadPoolExecutor:
    global _thread
    with _lock:
        if _thread is None:
            _thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-qpu")
        return _thread


def _after_fork() -> None:
    # A forked process has the executor but not its thread.
    global _thread, _lock
    _thread, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Simulator:
    """One sandbox's way to the QPU. With a seed, a result depends on the place in the submission order only."""

    def __init__(self, settings: Settings) -> None:
        self._round = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seed = 0
        self.settings = settings
        self.reset(settings)

    def reset(self, settings: Settings) -> None:
        """Start the random numbers over; work that has not begun is not done."""
        self._round += 1
        self.settings = settings
        # Not a secret; a seeded sandbox must repeat itself.
        self._seed = random.SystemRandom().getrandbits(31) if settings.seed is None else settings.seed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report to this loop, and try out the simulator in the background."""
        self._loop = loop
        if self.settings.physics:
            _qpu().submit(warm_up)

    def wait_until_warm(self, timeout: float) -> None:
        """Block until the simulator is imported and tried out.

        Raises:
            TimeoutError: If it takes longer than `timeout` real seconds.
        """
        _qpu().submit(warm_up).result(timeout)

    def stop(self) -> None:
        """Drop the work that has not begun; what runs ends by itself."""
        self._round += 1

    def simulate(self, job: Job, backend: Backend, done: Callable[[Outcome], None]) -> None:
        """Run a job and call `done` with its outcome on the loop."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the sandbox is not running")
        seed = random.Random(f"{self._seed}:{job.ordinal}").getrandbits(31)  # noqa: S311
        settings = self.settings
        current = self._round

        def work() -> None:
            if current != self._round:
                return
            outcome = execute(
                job.program_id,
                job.params,
                backend,
                seed,
                legacy=job.dialect == LEGACY,
                strict=settings.strict_isa,
                simulated=settings.physics,
            )
            try:
                loop.call_soon_threadsafe(done, outcome)
            except RuntimeError:  # The loop is closed: the sandbox was stopped, nobody asks any more.
                return

        _qpu().submit(work)


def execute(
    program_id: str,
    params: dict[str, Any],
    backend: Backend,
    seed: int,
    *,
    legacy: bool = False,
    strict: bool = False,
    simulated: bool = True,
) -> Outcome:
    """Run one job's circuits here and now; never raises."""
    started = time.perf_counter_ns()
    try:
        from prefect_qruntime.sandbox import executor, primitives, primitives_v1

        home: Any = primitives_v1 if legacy and params.get("version", 1) == 1 else primitives
        program = getattr(executor if program_id == "executor" else home, program_id)
        result, shots = program(params, backend, seed, strict=strict, simulated=simulated)
        body = orjson.dumps(result)
    except InputError as error:
        return _failed(str(error), error.code, str(error), started)
    except ImportError as error:
        text = f"{error}. Install prefect-qruntime[sandbox] to run circuits."
        return _failed(text, 1000, text, started)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return _failed(reason[:500], 1500, traceback.format_exc(), started)
    return Outcome(body=body, execution_ns=shots * 2000)


def _failed(reason: str, code: int, text: str, started: int) -> Outcome:
    return Outcome(
        status=FAILED,
        reason=reason,
        reason_code=code,
        solution="Correct the input and submit a new job.",
        text=text,
        execution_ns=time.perf_counter_ns() - started,
    )


def import_simulator() -> None:
    """Import qiskit and qiskit-aer, 0.4 s once per process; without them a job says what to install.

    Done in the lasting thread, but waited for: qiskit's modules import each other in circles, so a caller that
    imported a part of it meanwhile would now and then get a half-imported one.
    """
    if not _imported.is_set():
        _qpu().submit(_import_all).result()


def _import_all() -> None:
    with contextlib.suppress(ImportError):
        for name in _SIMULATOR:
            import_module(name)
    _imported.set()


def warm_up() -> None:
    """Import qiskit and qiskit-aer and run one small circuit with and without noise, once per process."""
    global _warmed
    if not _warmed:  # Only ever called in the one thread.
        for noisy in (False, True):
            execute("sampler", _WARM_UP, Backend("warm-up", 2, noisy), 1)
        _warmed = True
