"""A client of a running sandbox, with short pauses, and the service behind it, seen from both sides."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.submission import Intent, submission_memory
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals
from prefect_qruntime.models import Job, JobRef
from prefect_qruntime.sandbox import Control, Sandbox

BELL = 'OPENQASM 2.0; include "qelib1.inc"; qreg q[2]; creg c[2]; h q[0]; cx q[0],q[1]; measure q -> c;'
BACKEND = "sandbox_ideal"
# A whole test in a second: short pauses, and patience for a few of them.
QUICK = RetryDeadlines(
    token=3.0, read=3.0, wait=0.3, fetch=3.0, change=3.0, submit=3.0, open=3.0, first_pause=0.02, longest_pause=0.2
)
PACE = PollIntervals(queued=0.03, lively=0.03, streamed=0.5, outage=0.03)


@dataclass
class World:
    """A client and the service behind it, seen from both sides."""

    client: QuantumRuntimeClient
    sandbox: Sandbox
    dialect: str

    @property
    def control(self) -> Control:
        return self.sandbox.control

    def run(self, work: Any) -> Any:
        return self.client.run(work)

    def another(self, number: int = 0, *, patience: RetryDeadlines = QUICK, **fields: Any) -> QuantumRuntimeClient:
        """A client of its own, of the sandbox's `number`-th user."""
        key, crn = self.sandbox.instances[number]
        plain = {**self.sandbox.connection(self.dialect), "api_key": key, "crn": crn, **fields}
        return QuantumRuntimeClient(Connection(**plain), patience=patience)

    def intent(self, key: str = "qr-key:test", **options: Any) -> Intent:
        spec = make_spec(
            [BELL],
            backend=options.pop("backend", BACKEND),
            shots=10,
            private=options.pop("private", False),
            max_execution_time=options.pop("max_execution_time", None),
        )
        return Intent(spec, lambda g: f"{key}{g}", **{"tags": ("qr-flow:test",), "grace": 0.5, **options})

    def submit(self, key: str = "qr-key:test", **options: Any) -> JobRef:
        return self.run(self.client.submit(self.intent(key, **options)))

    def wait(self, job: JobRef, *, stream: Any = "never", deadlines: Deadlines | None = None, **options: Any) -> Job:
        limits = deadlines or Deadlines(total=20.0)
        return self.run(self.client.wait(job.id, deadlines=limits, stream=stream, pace=PACE, **options))

    def asked(self, method: str | None = None, path: str | None = None) -> list[dict[str, Any]]:
        return self.control.journal(method, path)

    @property
    def posts(self) -> int:
        return len(self.asked("POST", "/jobs"))


def stop_background() -> None:
    """Cancel what this process would still read of jobs that the service is about to forget."""
    module = sys.modules.get("prefect_qruntime.observability.run_summary")
    if module is None:
        return

    async def stop() -> None:
        background = network_loop().state(module.Background)
        if tasks := background.tasks | background.optional:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    network_loop().run(stop())


def forget_submissions() -> None:
    """Drop what this process remembers of its submissions, for a service that forgot all jobs."""

    async def forget() -> None:
        submission_memory().forget()

    network_loop().run(forget())
