"""Looks at single jobs: in the order they were asked for, a few at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from prefect_qruntime.client.waiting import Throttle
from prefect_qruntime.models import Job

__all__ = ["SingleLooks"]


class SingleLooks:
    """Asks for jobs one by one and tells what came of it.

    Args:
        look: Asks the service.
        told: Given the job's id and the job, or the error instead.
        lanes: Looks under way at once, unless `freely`.
        throttle: How many a second, unless `freely`.
    """

    def __init__(
        self,
        look: Callable[[str], Awaitable[Job]],
        told: Callable[[str, Job | Exception], None],
        *,
        lanes: int,
        throttle: Throttle,
    ) -> None:
        self.queue: dict[str, None] = {}  # in order, each once
        self.flying: dict[str, asyncio.Task[None]] = {}
        self._look = look
        self._told = told
        self._lanes = lanes
        self._throttle = throttle

    def ask(self, job_id: str, *, at_once: bool = False) -> None:
        """Have a job looked at in its turn, or past all others."""
        if at_once:
            self.queue.pop(job_id, None)
            self._fly(job_id)
        elif job_id not in self.flying:
            self.queue[job_id] = None

    def settled(self, job_id: str) -> None:
        """The job was answered for otherwise, its turn is not needed."""
        self.queue.pop(job_id, None)

    def forget(self, job_id: str) -> None:
        """Nobody wants to know any more."""
        self.queue.pop(job_id, None)
        if (flight := self.flying.pop(job_id, None)) is not None:
            flight.cancel()

    def start(self, now: float, *, freely: bool) -> float:
        """Begin as many looks as allowed. Returns the seconds until another may begin."""
        while self.queue and (freely or len(self.flying) < self._lanes):
            if not freely:
                if (delay := self._throttle.wait(now)) > 0:
                    return delay
                self._throttle.take(now)
            job_id = next(iter(self.queue))
            del self.queue[job_id]
            self._fly(job_id)
        return math.inf

    def _fly(self, job_id: str) -> None:
        if job_id not in self.flying:
            self.flying[job_id] = asyncio.get_running_loop().create_task(self._flight(job_id))

    async def _flight(self, job_id: str) -> None:
        outcome: Job | Exception
        try:
            outcome = await self._look(job_id)
        except Exception as error:
            outcome = error
        finally:
            if self.flying.get(job_id) is asyncio.current_task():  # a forgotten one may have a successor
                del self.flying[job_id]
        self._told(job_id, outcome)
