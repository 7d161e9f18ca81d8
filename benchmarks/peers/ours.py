"""This package's client, without Prefect, as an async program uses it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from benchmarks.lab import BACKEND, BELL, Lab


class Ours:
    """The client in either dialect."""

    def __init__(self, name: str, lab: Lab) -> None:
        self.lab = lab
        self.dialect = "legacy" if name.endswith("legacy") else "cloud"
        self.session: Any = None

    def load(self) -> None:
        """Import the client and check the submission."""
        from prefect_qruntime import QuantumRuntimeClient
        from prefect_qruntime.client.programs import make_spec
        from prefect_qruntime.client.submission import Intent

        self._client, self._intent = QuantumRuntimeClient, Intent
        self.spec = make_spec([BELL], backend=BACKEND, shots=10)
        self.runner = asyncio.Runner()

    def open(self) -> None:
        """Make a client."""
        from prefect_qruntime.client.connection import Connection

        legacy = self.dialect == "legacy"
        connection = Connection(
            api_key=self.lab.api_key,
            crn=self.lab.crn,
            dialect="legacy" if legacy else "cloud",
            base_url=self.lab.url if legacy else self.lab.base_url,
            iam_url=self.lab.url,
        )
        self.client = self._client(connection)

    async def _submit(self) -> Any:
        # A key of its own for each job, as the tasks make one.
        tag = f"qr-key:{uuid.uuid4().hex}"
        return await self.client.submit(self._intent(self.spec, lambda generation: tag, session=self.session))

    async def _run(self) -> int:
        job = await self._submit()
        await self.client.wait(job.id)
        return sum((await self.client.result(job)).counts().values()) // 10

    def run(self, count: int, *, together: bool = True) -> int:
        """Submit, wait and fetch."""

        async def all_jobs() -> int:
            if not together:
                return sum([await self._run() for _ in range(count)])
            return sum(await asyncio.gather(*(self._run() for _ in range(count))))

        return self.runner.run(all_jobs())

    def submit(self, count: int, *, session: bool = False) -> list[Any]:
        """Submit at the same time, in a session where asked for."""

        async def together() -> list[Any]:
            if session and self.session is None:
                self.session = await self.client.open_session(BACKEND, max_ttl=3600)
            return await asyncio.gather(*(self._submit() for _ in range(count)))

        return self.runner.run(together())

    def wait(self, jobs: list[Any], knows: Callable[[str], object]) -> None:
        """Wait for all at the same time."""

        async def one(job: Any) -> None:
            await self.client.wait(job.id, in_session=self.session is not None)
            knows(job.id)

        async def together() -> None:
            await asyncio.gather(*(one(job) for job in jobs))

        self.runner.run(together())

    def close(self) -> None:
        """Close the session and the loop."""
        if self.session is not None:
            self.runner.run(self.client.close_session(self.session.id, drain=True))
        self.runner.close()


def make(name: str, lab: Lab) -> Ours:
    """Make the peer."""
    return Ours(name, lab)
