"""Look for a Cancel that nobody tells this process of.

Prefect tells a flow's process by a signal, which reaches only what its main thread waits for: waits that were
submitted or mapped to threads hear nothing, and a run without a deployment is not told at all. So while jobs are
waited for, Prefect is asked now and then whether the flow run is being cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect_qruntime import keys
from prefect_qruntime.cancellation import cancel_jobs_of, cancelled_by_user, policy
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.home import home
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.orchestration import current_flow_run_id
from prefect_qruntime.settings import current_settings

__all__ = ["looks_out"]

log = logging.getLogger("prefect_qruntime.hooks")


class _Lookout:
    """Looks out for all waits of a flow run on one instance."""

    def __init__(self, client: QuantumRuntimeClient, every: float) -> None:
        self.jobs: Counter[str] = Counter()  # by how many waits
        self._client = client
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def watch(self, job_id: str) -> None:
        """Look out for one more wait."""
        self.jobs[job_id] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())

    def forget(self, job_id: str) -> bool:
        """A wait is over; returns whether it was the last one."""
        self.jobs[job_id] -= 1
        self.jobs += Counter()  # those without waits leave
        if self.jobs:
            return False
        if self._task is not None:
            self._task.cancel()
        return True

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            # An outage of Prefect's API would else be told of at each look.
            if await cancelled_by_user(level=logging.DEBUG) and await self._cancel():
                return

    async def _cancel(self) -> bool:
        """Cancel the jobs: their waits end as soon as the service says so."""
        where = await keys.origin()
        if where.flow_run_id is None:
            return True
        try:
            done = await cancel_jobs_of(self._client, where.flow_run_id, list(self.jobs))
        except QuantumRuntimeError:  # told of already
            return False
        log.info("flow run cancelled: %d jobs cancelled with it", len(done))
        return True


@asynccontextmanager
async def looks_out(client: QuantumRuntimeClient, job_id: str) -> AsyncIterator[None]:
    """Cancel the flow run's jobs when it is cancelled while this block runs. Runs on the home loop.

    Args:
        client: The instance.
        job_id: The job waited for.
    """
    flow_run_id, every = current_flow_run_id(), current_settings().cancel_look_seconds
    if flow_run_id is None or not every or policy() != "cancel":
        yield
        return
    lookouts: dict[tuple[str, str], _Lookout] = home().shared.setdefault("lookouts", {})
    which = (client.connection.crn, flow_run_id)
    here = lookouts.setdefault(which, _Lookout(client, every))
    here.watch(job_id)
    try:
        yield
    finally:
        if here.forget(job_id) and lookouts.get(which) is here:
            del lookouts[which]
