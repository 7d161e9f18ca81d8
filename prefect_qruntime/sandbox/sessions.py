"""Run the jobs of sessions and batches in order, close sessions in time, and charge dedicated ones by the clock."""

from __future__ import annotations

from collections.abc import Callable

from prefect_qruntime.sandbox.clock import Clock
from prefect_qruntime.sandbox.settings import Settings
from prefect_qruntime.sandbox.state import CANCELLED, FAILED, Job, Session


class SessionBook:
    """Keep all sessions. Jobs of one session run one after another; the runner sets `next_up`, `drop` and `booked`.

    A dedicated session is charged while it is active, idle or not, and until its last job has ended.
    """

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self.settings = settings
        self.sessions: dict[str, Session] = {}
        self.next_up: Callable[[Job], None] = lambda job: None
        self.drop: Callable[[Job, str, str], None] = lambda job, status, reason: None
        self.booked: Callable[[Session], None] = lambda session: None

    def reset(self, settings: Settings) -> None:
        """Forget all sessions."""
        self.settings = settings
        self.sessions.clear()

    def open(
        self,
        session_id: str,
        *,
        crn: str,
        user_id: str,
        mode: str,
        backend: str | None,
        max_ttl: int | None,
        interactive_ttl: int | None = None,
        active_ttl: int | None = None,
    ) -> Session:
        """Open a session; its clock starts with its first job."""
        now = self._clock.now()
        session = Session(
            id=session_id,
            crn=crn,
            user_id=user_id,
            mode=mode,
            backend=backend,
            created=now,
            max_ttl=max_ttl or self.settings.max_ttl,
            interactive_ttl=interactive_ttl or self.settings.interactive_ttl,
            active_ttl=active_ttl,
            unit_rate=self.settings.resource_unit_rate,
        )
        self.sessions[session_id] = session
        session.timestamps.append(("open", now))
        self._start_idling(session)
        return session

    def of(self, job: Job) -> Session | None:
        """Return the session of a job, if it has one."""
        return self.sessions.get(job.session_id) if job.session_id is not None else None

    def enqueue(self, session: Session, job: Job) -> None:
        """Append a job to the session's queue."""
        session.queue.append(job)
        session.job_ids.append(job.id)
        if session.backend is None:
            session.backend = job.backend
        _cancel_idle(session)

    def is_turn(self, session: Session, job: Job) -> bool:
        """Whether this job is the next of its session to run."""
        return session.current is None and bool(session.queue) and session.queue[0] is job

    def started(self, session: Session, job: Job) -> None:
        """Record that a job of the session has started."""
        now = self._clock.now()
        if job in session.queue:
            session.queue.remove(job)
        if session.current is None:  # It is set if `finish` runs a job out of turn.
            session.current = job
        session.last_job_started = now
        _cancel_idle(session)
        if session.activated is None:
            session.activated = now
            session.ttl_timer = self._clock.call_later(session.max_ttl, self._expire, session)
        if session.state in ("open", "inactive"):
            self._move(session, "active")

    def ended(self, session: Session, job: Job) -> None:
        """Record that a job of the session has ended, and start the next one."""
        if session.current is job:
            session.current = None
            session.last_job_completed = self._clock.now()
            if session.mode == "batch":
                session.usage_seconds += job.usage_seconds
            elif session.state == "closed":
                self._stop_charging(session)
        elif job in session.queue:
            session.queue.remove(job)
        if session.current is not None:
            return
        if session.queue:
            self.next_up(session.queue[0])
        elif session.state == "closed":
            self._settle(session)
        elif session.accepting_jobs:
            self._start_idling(session)
        else:
            self._close(session, "All jobs of the session have ended.")

    def stop_accepting(self, session: Session) -> None:
        """Accept no more jobs; those already queued still run, then the session closes."""
        session.accepting_jobs = False
        if session.state != "closed" and session.current is None and not session.queue:
            self._close(session, "The session takes no more jobs.")

    def accept_again(self, session: Session) -> None:
        """Accept jobs again, unless the session is closed."""
        session.accepting_jobs = True
        if session.current is None and not session.queue:
            self._start_idling(session)

    def close(self, session: Session, *, fail: bool) -> None:
        """Close now: queued jobs are dropped, a running one finishes."""
        if session.state == "closed":
            return
        self._close(session, "The session was closed.")
        self._drop_queued(session, FAILED if fail else CANCELLED, "The session was closed before the job ran.")

    def _expire(self, session: Session) -> None:
        if session.state == "closed":
            return
        self._close(session, "The maximum time of the session is over.")
        self._drop_queued(session, FAILED, "The maximum time of the session was over before the job ran.")

    def _drop_queued(self, session: Session, status: str, reason: str) -> None:
        queued = list(session.queue)
        session.queue.clear()
        for job in queued:
            self.drop(job, status, reason)

    def _start_idling(self, session: Session) -> None:
        _cancel_idle(session)
        if session.state == "active":
            session.idle_timer = self._clock.call_later(session.interactive_ttl, self._idle, session)
        session.close_timer = self._clock.call_later(self.settings.idle_close, self._abandon, session)

    def _idle(self, session: Session) -> None:
        if session.state == "active":
            self._move(session, "inactive")

    def _abandon(self, session: Session) -> None:
        if session.state != "closed":
            self._close(session, "The session had no job for a long time.")

    def _close(self, session: Session, reason: str) -> None:
        session.accepting_jobs = False
        session.closed = self._clock.now()
        session.state_reason = reason
        self._move(session, "closed")
        _cancel_idle(session)
        if session.ttl_timer is not None:
            session.ttl_timer.cancel()
        if session.current is None:
            self._settle(session)

    def _move(self, session: Session, state: str) -> None:
        now = self._clock.now()
        session.state = state
        session.timestamps.append((state, now))
        if session.mode == "batch":
            return
        if state == "active" and session.charged_since is None:
            session.charged_since = now
        elif state != "active" and session.current is None:
            self._stop_charging(session)

    def _stop_charging(self, session: Session) -> None:
        session.usage_seconds, session.charged_since = session.charge(self._clock.now()), None

    def _settle(self, session: Session) -> None:
        """Make the usage of a session that is over final, after the lag."""
        if session.usage_final or session.usage_timer is not None:
            return
        if self.settings.usage_lag and session.usage_seconds:
            session.usage_timer = self._clock.call_later(self.settings.usage_lag, self._book, session)
        else:
            self._book(session)

    def _book(self, session: Session) -> None:
        session.usage_final = True
        self.booked(session)


def _cancel_idle(session: Session) -> None:
    for timer in (session.idle_timer, session.close_timer):
        if timer is not None:
            timer.cancel()
    session.idle_timer = session.close_timer = None
