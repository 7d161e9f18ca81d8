"""What peers of one kind do alike: those inside a flow, and those with an event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks.lab import Lab


class InFlow:
    """A peer inside a flow; `load` makes `flow`, which takes a count and whether all jobs go together."""

    flow: Any

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def open(self) -> None:
        """Nothing: the flow makes the block."""

    def run(self, count: int, *, together: bool = True) -> int:
        """Run the flow."""
        return int(asyncio.run(self.flow(count, together)))

    def submit(self, count: int, *, session: bool = False) -> list[Any]:
        """Not used: what is measured alone is measured outside flows."""
        raise NotImplementedError

    def wait(self, jobs: list[Any], knows: Callable[[str], object]) -> None:
        """Not used."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to do."""


class OnRunner:
    """A peer whose calls are coroutines; `load` makes `runner`. None of them knows sessions."""

    no_session: str
    runner: asyncio.Runner

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    async def _submit(self) -> Any:
        raise NotImplementedError

    async def _wait(self, job: Any) -> None:
        raise NotImplementedError

    async def _fetch(self, job: Any) -> int:
        """The number of results: one."""
        raise NotImplementedError

    def _id(self, job: Any) -> str:
        return str(job)

    async def _run(self) -> int:
        job = await self._submit()
        await self._wait(job)
        return await self._fetch(job)

    def run(self, count: int, *, together: bool = True) -> int:
        """Submit, wait and fetch."""

        async def all_jobs() -> int:
            if not together:
                return sum([await self._run() for _ in range(count)])
            return sum(await asyncio.gather(*(self._run() for _ in range(count))))

        return self.runner.run(all_jobs())

    def submit(self, count: int, *, session: bool = False) -> list[Any]:
        """Submit at the same time."""
        if session:
            raise NotImplementedError(self.no_session)

        async def together() -> list[Any]:
            return await asyncio.gather(*(self._submit() for _ in range(count)))

        return self.runner.run(together())

    def wait(self, jobs: list[Any], knows: Callable[[str], object]) -> None:
        """Wait at the peer's own pace."""

        async def one(job: Any) -> None:
            await self._wait(job)
            knows(self._id(job))

        async def together() -> None:
            await asyncio.gather(*(one(job) for job in jobs))

        self.runner.run(together())
