"""Move jobs from Queued to Running to their end, by timers and events, without polling."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from prefect_qruntime.sandbox.catalog import ONLINE, Backend, Catalog
from prefect_qruntime.sandbox.clock import Clock
from prefect_qruntime.sandbox.sessions import SessionBook
from prefect_qruntime.sandbox.settings import Settings
from prefect_qruntime.sandbox.simulator import Simulator
from prefect_qruntime.sandbox.state import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    RAN_TOO_LONG,
    RUNNING,
    Job,
    Outcome,
)

# Statuses that end a job; in any other status of a script the job stays.
_ENDS = frozenset({COMPLETED, CANCELLED, FAILED, "Ran too long"})


class Runner:
    """Move jobs from creation to their end.

    Args:
        clock: The service's clock.
        catalog: The backends.
        sessions: The sessions, which decide whose turn it is.
        simulator: Runs a job's circuits in another process and calls back on the server's loop.
        booked: Called when the usage of a job becomes final.
        may_run: Whether the instance of a job has usage left.
    """

    def __init__(
        self,
        clock: Clock,
        settings: Settings,
        catalog: Catalog,
        sessions: SessionBook,
        simulator: Simulator,
        booked: Callable[[Job], None],
        may_run: Callable[[Job], bool],
    ) -> None:
        self._clock = clock
        self.settings = settings
        self._catalog = catalog
        self._sessions = sessions
        self._simulator = simulator
        self._booked = booked
        self._may_run = may_run
        self.held = False
        # Jobs that are due but blocked by something else.
        self._parked: dict[str, Job] = {}
        self._epoch = 0
        sessions.next_up = self.advance
        sessions.drop = self.drop

    def reset(self, settings: Settings) -> None:
        """Forget every job; results still being computed are discarded."""
        self.settings = settings
        self.held = False
        self._parked.clear()
        self._epoch += 1

    def admit(self, job: Job, backend: Backend) -> None:
        """Accept a new job."""
        backend.pending += 1
        delay = self.settings.queue_time if backend.queue_time is None else backend.queue_time
        session = self._sessions.of(job)
        if session is not None:
            if session.state == "active":
                delay = 0.0  # The QPU is reserved: no queue but the session's own.
            self._sessions.enqueue(session, job)
        job.timer = self._clock.call_later(delay, self._ready, job)

    def _ready(self, job: Job) -> None:
        job.ready = True
        self.advance(job)

    def advance(self, job: Job) -> None:
        """Move the job to its next state if it is due and nothing blocks it."""
        if job.status == QUEUED and (job.ready or job.forced):
            if self._kept_back(job):
                self._parked[job.id] = job
            else:
                self._parked.pop(job.id, None)
                self._start(job)
        elif job.status == RUNNING and job.time_up:
            if self.held and not job.forced:
                self._parked[job.id] = job
            elif job.outcome is not None:
                self._parked.pop(job.id, None)
                self._conclude(job, job.outcome)

    def _kept_back(self, job: Job) -> bool:
        if job.forced:
            return False
        if self.held or self._catalog.backends[job.backend].status != ONLINE or not self._may_run(job):
            return True
        session = self._sessions.of(job)
        return session is not None and not self._sessions.is_turn(session, job)

    def wake(self) -> None:
        """Check the blocked jobs again, because something that may have blocked them changed."""
        for job in list(self._parked.values()):
            self.advance(job)

    def _start(self, job: Job) -> None:
        backend = self._catalog.backends[job.backend]
        job.status = RUNNING
        job.started = self._clock.now()
        if job.timer is not None:
            job.timer.cancel()
        session = self._sessions.of(job)
        if session is not None:
            self._sessions.started(session, job)
        job.run_time = self.settings.run_time if backend.run_time is None else backend.run_time
        if job.run_time > job.cost:
            job.run_time = float(job.cost)
            job.outcome = Outcome(status=CANCELLED, reason="Ran too long", reason_code=RAN_TOO_LONG)
        elif job.script is not None and job.script.status != COMPLETED:
            job.outcome = scripted(job)
        else:
            self._compute(job)
        if job.forced:
            job.time_up = True
            self.advance(job)
        else:
            job.timer = self._clock.call_later(job.run_time, self._elapsed, job)

    def _compute(self, job: Job) -> None:
        epoch = self._epoch
        backend = self._catalog.backends[job.backend]
        self._simulator.simulate(job, backend, lambda outcome: self._simulated(job, outcome, epoch))

    def _elapsed(self, job: Job) -> None:
        job.time_up = True
        self.advance(job)

    def _simulated(self, job: Job, outcome: Outcome, epoch: int) -> None:
        if epoch == self._epoch and not job.is_terminal:
            job.outcome = outcome
            self.advance(job)

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        lead = self.settings.ws_lead
        if lead and job.stream_waiters:
            _wake(job.stream_waiters)
            job.timer = self._clock.call_later(lead, self._end_with, job, outcome)
        else:
            self._end_with(job, outcome)

    def _end_with(self, job: Job, outcome: Outcome) -> None:
        if job.status != RUNNING:
            return
        if outcome.status not in (COMPLETED, CANCELLED, FAILED):
            # An unknown status: the job stays in it until it is finished or cancelled.
            job.status, job.reason, job.reason_code = outcome.status, outcome.reason, outcome.reason_code
            job.outcome = None
            return
        if outcome.reason_code == RAN_TOO_LONG:
            job.run_time = float(job.cost)
        self.end(job, outcome.status, outcome.reason, outcome.reason_code, outcome.solution)

    def end(self, job: Job, status: str, reason: str = "", code: int | None = None, solution: str = "") -> None:
        """End the job now."""
        if job.is_terminal:
            return
        now = self._clock.now()
        job.status, job.reason, job.reason_code, job.solution = status, reason, code, solution
        job.ended = now
        self._parked.pop(job.id, None)
        self._simulator.cancel(job.id)
        for timer in (job.timer, job.cancel_timer):
            if timer is not None:
                timer.cancel()
        job.timer = job.cancel_timer = None
        backend = self._catalog.backends[job.backend]
        backend.pending = max(0, backend.pending - 1)
        if job.started is not None:
            # The charge is the time on the QPU, not the time this simulation happened to take.
            job.usage_seconds = round(min(now - job.started, job.run_time), 6)
            if status in (COMPLETED, FAILED) and not job.forced:
                job.usage_seconds = job.run_time
        if self.settings.whole_seconds:
            job.usage_seconds = math.ceil(job.usage_seconds)
        if self.settings.usage_lag and job.usage_seconds:
            job.usage_timer = self._clock.call_later(self.settings.usage_lag, self._book, job)
        else:
            self._book(job)
        session = self._sessions.of(job)
        if session is not None:
            self._sessions.ended(session, job)
        _wake(job.stream_waiters)
        _wake(job.waiters)

    def _book(self, job: Job) -> None:
        job.usage_final = True
        self._booked(job)

    def drop(self, job: Job, status: str, reason: str) -> None:
        """End a queued job because its session is over."""
        self.end(job, status, reason, 4001, "Open a new session.")

    def cancel(self, job: Job) -> None:
        """Cancel a job that has not ended; a running one after `cancel_lag`."""
        if job.status == QUEUED or not self.settings.cancel_lag:
            self.end(job, CANCELLED)
        elif job.cancel_timer is None:
            job.cancel_timer = self._clock.call_later(self.settings.cancel_lag, self.end, job, CANCELLED)

    async def finish(self, job: Job) -> None:
        """Run a job to its end now, even if it is blocked."""
        if job.is_terminal:
            return
        ended = asyncio.get_running_loop().create_future()
        job.waiters.append(ended)
        job.forced = job.ready = job.time_up = True
        if job.script is not None and job.script.status not in _ENDS:
            job.script = None
            if job.status != QUEUED:
                job.status, job.reason, job.reason_code, job.outcome = RUNNING, "", None, None
                self._compute(job)
        self.advance(job)
        await ended


def scripted(job: Job) -> Outcome:
    """Return the outcome that the job's script asks for."""
    script = job.script
    if script is None:
        raise ValueError("the job has no script")
    if script.status == "Ran too long":
        return Outcome(status=CANCELLED, reason="Ran too long", reason_code=RAN_TOO_LONG)
    reason = script.reason or ("The job failed as scripted." if script.status == FAILED else "")
    text = script.results_text if script.results_text is not None else reason
    return Outcome(status=script.status, reason=reason, reason_code=script.reason_code, text=text)


def _wake(waiters: list[Any]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
