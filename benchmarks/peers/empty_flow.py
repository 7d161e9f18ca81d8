"""Tasks that do nothing: what Prefect itself costs for as many task runs."""

from __future__ import annotations

import asyncio

from benchmarks.lab import Lab
from benchmarks.peers.shared import InFlow

TASKS = 3  # submit, wait, fetch: as many as ours has for a job


class EmptyInFlow(InFlow):
    """An async flow of empty tasks, three for each job."""

    def load(self) -> None:
        """Import Prefect and make the flow."""
        from prefect import flow, task

        @task
        async def nothing(number: int) -> int:
            return number

        async def one(number: int) -> int:
            for _ in range(TASKS):
                await nothing(number)
            return 1

        @flow(name="benchmark")
        async def many(count: int, together: bool) -> int:
            jobs = (one(number) for number in range(count))
            return sum(await asyncio.gather(*jobs) if together else [await job for job in jobs])

        self.flow = many


def make(name: str, lab: Lab) -> EmptyInFlow:
    """Make the peer."""
    return EmptyInFlow(lab)
