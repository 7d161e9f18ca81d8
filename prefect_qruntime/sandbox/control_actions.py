"""Implement the methods of `Control` inside the server, on its loop; plain JSON in and out."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect_qruntime.sandbox.catalog import OFFLINE, ONLINE, PAUSED, Backend
from prefect_qruntime.sandbox.service import Service
from prefect_qruntime.sandbox.state import Job, Script, Session


class ControlActions:
    """The control methods; each public one is callable through `Control` and `/_control/<name>`.

    Raises:
        ValueError: For values that do not fit.
        LookupError: For ids and names that do not exist.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.add_fault, self.faults, self.clear_faults = service.faults.add, service.faults.view, service.faults.clear
        self.revoke_tokens, self.replace_key = service.accounts.revoke_tokens, service.accounts.replace_key
        self.now, self.reset = service.clock.now, service.reset

    def connection(self) -> dict[str, Any]:
        """Return the keys and CRNs, for clients in other processes."""
        return {"instances": self._service.accounts.pairs}

    def jobs(self, **filters: Any) -> list[dict[str, Any]]:
        """Return the jobs, oldest first; filters are equal values of the shown fields, `tag` one of the tags."""
        tag = filters.pop("tag", None)
        found = [_job(job) for job in self._service.jobs.values() if tag is None or tag in job.tags]
        for name, value in filters.items():
            if found and name not in found[0]:
                raise ValueError(f"jobs have no field {name!r}")
            found = [job for job in found if job[name] == value]
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        """Return one job."""
        return _job(self._known(job_id))

    def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions, oldest first."""
        return [_session(session) for session in self._service.sessions.sessions.values()]

    def session(self, session_id: str) -> dict[str, Any]:
        """Return one session."""
        session = self._service.sessions.sessions.get(session_id)
        if session is None:
            raise LookupError(f"no session {session_id}")
        return _session(session)

    def open_sessions(self) -> list[dict[str, Any]]:
        """Return the sessions that are not closed."""
        return [session for session in self.sessions() if session["state"] != "closed"]

    def journal(self, method: str | None = None, path: str | None = None) -> list[dict[str, Any]]:
        """Return the requests so far."""
        return self._service.journal.view(method, path)

    def clear_journal(self) -> None:
        """Clear the journal."""
        self._service.journal.clear()

    def set_option(self, name: str, value: Any) -> None:
        """Change an option."""
        self._service.use(self._service.settings.changed(name, value))

    async def advance(self, seconds: float) -> None:
        """Let service time pass at once, each timer at its own moment; simulations end first."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            raise ValueError("seconds must be a number, 0 or more")
        clock, simulator = self._service.clock, self._service.simulator
        end = clock.now() + seconds
        passed = True
        while passed:
            while simulator.busy:  # noqa: ASYNC110  what is waited for is the state itself
                await asyncio.sleep(0.001)
            passed = clock.step(end)
            await asyncio.sleep(0)

    def set_times(
        self, queue_time: float | None = None, run_time: float | None = None, backend: str | None = None
    ) -> None:
        """Change the queue and run time of new jobs, everywhere or on one backend."""
        for name, value in (("queue_time", queue_time), ("run_time", run_time)):
            if value is None:
                continue
            settings = self._service.settings.changed(name, value)
            if backend is None:
                self._service.use(settings)
            else:
                setattr(self._backend(backend), name, value)

    def set_backend(self, name: str, status: str | None = None, queue_length: int | None = None) -> None:
        """Change a backend's status or the queue length it shows."""
        backend = self._backend(name)
        if status is not None:
            if status not in (ONLINE, PAUSED, OFFLINE):
                raise ValueError(f"status must be online, paused or offline, not {status!r}")
            backend.status = status
            self._service.runner.wake()
        if queue_length is not None:
            backend.queue_length = queue_length

    def add_backend(
        self, name: str, qubits: int = 27, noisy: bool = True, basis_gates: list[str] | None = None
    ) -> None:
        """Add a backend and its mock backend."""
        self._service.catalog.add(Backend(name, qubits, noisy, tuple(basis_gates or ())))

    def script_job(self, times: int = 1, **fields: Any) -> None:
        """Decide how the next created jobs end."""
        if times < 1:
            raise ValueError("times must be at least 1")
        self._service.scripts.append(Script(times=times, **fields))

    def hold(self) -> None:
        """Keep every job in its state until `release`."""
        self._service.runner.held = True

    def release(self) -> None:
        """Let the jobs continue."""
        self._service.runner.held = False
        self._service.runner.wake()

    async def finish(self, job_id: str) -> dict[str, Any]:
        """Run one job to its end now."""
        job = self._known(job_id)
        await self._service.runner.finish(job)
        return _job(job)

    async def wait_job(self, job_id: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait (real seconds) until a job has ended."""
        job = self._known(job_id)
        if not job.is_terminal:
            ended = asyncio.get_running_loop().create_future()
            job.waiters.append(ended)
            try:
                await asyncio.wait_for(ended, timeout)
            except TimeoutError:
                raise ValueError(f"job {job_id} is still {job.status} after {timeout} s") from None
        return _job(job)

    def set_usage(self, crn: str | None = None, consumed: float | None = None, limit: float | None = None) -> None:
        """Change what an instance has used and may use, in QPU seconds."""
        instance = self._service.accounts.instances[crn or self._service.accounts.crns[0]]
        if consumed is not None:
            instance.consumed = consumed
        if limit is not None:
            instance.limit = limit
        self._service.runner.wake()

    def usage(self, crn: str | None = None) -> dict[str, Any]:
        """Return the usage of an instance as the API shows it."""
        accounts = self._service.accounts
        return accounts.usage_view(accounts.instances[crn or accounts.crns[0]])

    def tcp_connections(self) -> int:
        """Return how many TCP connections were accepted, those of `Control` aside."""
        return self._service.tcp_connections

    def iam_calls(self) -> int:
        """Return how many tokens were requested."""
        return self._service.accounts.iam_calls

    def _known(self, job_id: str) -> Job:
        job = self._service.jobs.get(job_id)
        if job is None:
            raise LookupError(f"no job {job_id}")
        return job

    def _backend(self, name: str) -> Any:
        backend = self._service.catalog.backends.get(name)
        if backend is None:
            raise LookupError(f"no backend {name}")
        return backend


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "reason": job.reason,
        "reason_code": job.reason_code,
        "tags": list(job.tags),
        "backend": job.backend,
        "session_id": job.session_id,
        "crn": job.crn,
        "user": job.user_id,
        "program_id": job.program_id,
        "dialect": job.dialect,
        "cost": job.cost,
        "private": job.private,
        "result_read": job.result_read,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "usage_seconds": job.usage_seconds,
        "usage_final": job.usage_final,
        "params": job.params,
    }


def _session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "state": session.state,
        "state_reason": session.state_reason,
        "mode": session.mode,
        "backend": session.backend,
        "accepting_jobs": session.accepting_jobs,
        "max_ttl": session.max_ttl,
        "interactive_ttl": session.interactive_ttl,
        "crn": session.crn,
        "user": session.user_id,
        "created": session.created,
        "activated": session.activated,
        "closed": session.closed,
        "jobs": list(session.job_ids),
        "history": [{"state": state, "t": moment} for state, moment in session.timestamps],
        "usage_seconds": session.usage_seconds,
        "usage_final": session.usage_final,
    }
