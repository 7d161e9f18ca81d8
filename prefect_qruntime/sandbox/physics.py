"""The QPU: runs a job's circuits in a few threads, away from the server's loop."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.encoding import InputError
from prefect_qruntime.sandbox.records import FAILED, Job, Outcome
from prefect_qruntime.sandbox.settings import Settings
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
_warm = threading.Lock()
_warmed = False


class Physics:
    """Two worker threads. With a seed, the result of a job depends on its place in the submission order only."""

    def __init__(self, settings: Settings) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sandbox-qpu")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seed = 0
        self.settings = settings
        self.reset(settings)

    def reset(self, settings: Settings) -> None:
        """Start the random numbers over."""
        self.settings = settings
        # Not a secret; a seeded sandbox must repeat itself.
        self._seed = random.SystemRandom().getrandbits(31) if settings.seed is None else settings.seed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report to this loop, and import and try out the simulator in the background."""
        self._loop = loop
        if self.settings.physics:
            self._pool.submit(warm_up)

    def stop(self) -> None:
        """Take no more work; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def simulate(self, job: Job, backend: Backend, done: Callable[[Outcome], None]) -> None:
        """Run a job and call `done` with its outcome on the loop."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the sandbox is not running")
        seed = random.Random(f"{self._seed}:{job.ordinal}").getrandbits(31)  # noqa: S311
        settings = self.settings

        def work() -> None:
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

        self._pool.submit(work)


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
        from prefect_qruntime.sandbox import primitives, primitives_v1

        home: Any = primitives_v1 if legacy and params.get("version", 1) == 1 else primitives
        program = home.sampler if program_id == "sampler" else home.estimator
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


def warm_up() -> None:
    """Import qiskit and qiskit-aer and run one small circuit with and without noise, once per process."""
    global _warmed
    with _warm:
        if _warmed:
            return
        for noisy in (False, True):
            execute("sampler", _WARM_UP, Backend("warm-up", 2, noisy), 1)
        _warmed = True
