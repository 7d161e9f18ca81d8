"""Hand a sandbox's jobs to the process that simulates them, and their outcomes back to the server's loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from prefect_qruntime.sandbox.catalog import Backend
from prefect_qruntime.sandbox.settings import Settings
from prefect_qruntime.sandbox.state import Job, Outcome
from prefect_qruntime.sandbox.views import LEGACY
from prefect_qruntime.sandbox.worker_process import Task, worker_process


class Simulator:
    """The simulations of one sandbox. With a seed, a result depends only on the place in the submission order."""

    def __init__(self, settings: Settings) -> None:
        self._tasks: dict[str, Task] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seed = 0
        self.settings = settings
        self.reset(settings)

    def reset(self, settings: Settings) -> None:
        """Cancel all simulations and start the random numbers over."""
        self.stop()
        self.settings = settings
        # Not a secret; a seeded sandbox must repeat itself.
        self._seed = random.SystemRandom().getrandbits(31) if settings.seed is None else settings.seed

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report to this loop, and warm up the simulator in the background."""
        self._loop = loop
        if self.settings.physics:
            worker_process().warm_up()

    def wait_until_warm(self, timeout: float) -> None:
        """Block until the simulator is imported and warm.

        Raises:
            TimeoutError: If it takes longer than `timeout` real seconds.
        """
        worker_process().warm_up().result(timeout)

    def stop(self) -> None:
        """Cancel all simulations."""
        for job_id in list(self._tasks):
            self.cancel(job_id)

    @property
    def busy(self) -> bool:
        """Whether a simulation is under way."""
        return bool(self._tasks)

    def cancel(self, job_id: str) -> None:
        """Cancel the simulation of a job, if it has one."""
        task = self._tasks.pop(job_id, None)
        if task is not None:
            worker_process().cancel(task)

    def simulate(self, job: Job, backend: Backend, done: Callable[[Outcome], None]) -> None:
        """Run a job and call `done` with its outcome on the loop; at most for its `cost` in real seconds."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("the sandbox is not running")
        request: dict[str, Any] = {
            "program_id": job.program_id,
            "params": job.params,
            "legacy": job.dialect == LEGACY,
            "run": {
                "backend": {
                    "name": backend.name,
                    "qubits": backend.qubits,
                    "noisy": backend.noisy,
                    "mock": backend.mock,
                },
                "seed": random.Random(f"{self._seed}:{job.ordinal}").getrandbits(31),  # noqa: S311
                "strict": self.settings.strict_isa,
                "simulated": self.settings.physics,
                "started": job.started or 0.0,
                "duration": job.run_time,
            },
        }

        def finish(outcome: Outcome) -> None:
            if self._tasks.get(job.id) is task:
                del self._tasks[job.id]
                done(outcome)

        def report(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: the sandbox was stopped.
                loop.call_soon_threadsafe(finish, outcome)

        self.cancel(job.id)
        task = self._tasks[job.id] = Task(request, report, limit=float(job.cost) or None)
        worker_process().submit(task)
