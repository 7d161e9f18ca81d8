"""Keep the service's state and apply its rules, without HTTP. Everything here runs on the server's loop."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections import deque
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

import orjson

from prefect_qruntime.sandbox import control_token
from prefect_qruntime.sandbox.accounts import Accounts, Instance, User
from prefect_qruntime.sandbox.api_errors import ApiError, invalid, job_not_found
from prefect_qruntime.sandbox.catalog import OFFLINE, Catalog
from prefect_qruntime.sandbox.clock import Clock, iso
from prefect_qruntime.sandbox.encoding import INSTALL
from prefect_qruntime.sandbox.faults import FaultBook, Journal
from prefect_qruntime.sandbox.request_schema import check, check_params
from prefect_qruntime.sandbox.runner import Runner
from prefect_qruntime.sandbox.sessions import SessionBook
from prefect_qruntime.sandbox.settings import Settings
from prefect_qruntime.sandbox.simulator import Simulator
from prefect_qruntime.sandbox.state import QUEUED, Job, Script, Session
from prefect_qruntime.sandbox.views import LEGACY, MAX_COST

_ID_LETTERS = "0123456789abcdefghijklmnopqrstuv"


@cache
def missing_packages(*, physics: bool) -> tuple[str, ...]:
    """The packages of the extra `sandbox` without which no circuit runs, as far as they are not installed.

    Args:
        physics: Whether circuits are simulated.
    """
    wanted = ("jsonschema", "qiskit", "qiskit_qasm3_import", *(("qiskit_aer",) if physics else ()))
    return tuple(name for name in wanted if find_spec(name) is None)


class Service:
    """Accounts, backends, jobs, sessions, faults and the journal of one sandbox."""

    def __init__(self, settings: Settings, api_key: str | None = None, crn: str | None = None) -> None:
        self._initial = settings
        self.settings = settings
        self.clock = Clock(settings.clock_scale)
        self.accounts = Accounts(self.clock, settings, api_key, crn)
        self.catalog = Catalog()
        self.sessions = SessionBook(self.clock, settings)
        self.simulator = Simulator(settings)
        # The token that a control call over HTTP must send; not changed by a reset.
        self.control_token = control_token.new_token()
        self.runner = Runner(
            self.clock, settings, self.catalog, self.sessions, self.simulator, self._book, self._may_run
        )
        self.sessions.booked = self._book_session
        self.faults = FaultBook()
        self.journal = Journal()
        self.jobs: dict[str, Job] = {}
        self._by_tag: dict[str, dict[str, Job]] = {}
        # Whether the index may be out of the order of creation.
        self._retagged = False
        self.scripts: deque[Script] = deque()
        self._ordinal = 0
        self.tcp_connections = 0
        self.streams: set[asyncio.Transport] = set()

    def reset(self) -> None:
        """Remove jobs, sessions, faults, journal, usage and changed options; create new API keys."""
        waiting = [waiter for job in self.jobs.values() for waiter in (*job.waiters, *job.stream_waiters)]
        settings = self.settings = self._initial
        self.clock.reset(settings.clock_scale)
        self.accounts.reset(settings)
        self.catalog.reset()
        self.sessions.reset(settings)
        self.simulator.reset(settings)
        self.runner.reset(settings)
        self.faults.clear()
        self.journal = Journal()
        self.jobs.clear()
        self._by_tag.clear()
        self._retagged = False
        self.scripts.clear()
        self._ordinal = 0
        self.tcp_connections = 0
        for waiter in waiting:
            if not waiter.done():
                waiter.cancel()
        for transport in self.streams:
            transport.abort()

    def use(self, settings: Settings) -> None:
        """Apply changed options."""
        if settings.clock_scale != self.settings.clock_scale:
            self.clock.set_scale(settings.clock_scale)
        self.settings = settings
        self.accounts.use(settings)
        self.sessions.settings = self.runner.settings = self.simulator.settings = settings
        self.runner.wake()

    # --- jobs

    def create_job(self, user: User, instance: Instance, dialect: str, body: Any, caller: str = "") -> Job:
        """Accept a job or refuse it as the service would.

        Raises:
            ApiError: 400 for the body, a closed session or a missing package, 404 for an unknown backend, session or
                program, 409 at the usage limit, 429 at the create limit.
        """
        legacy = dialect == LEGACY
        self.check_packages()
        _check_depth(body)
        check("LegacyJob" if legacy else "Job", "body", body)
        check_params(body["program_id"], legacy, body.get("params"))
        backend = self.catalog.get(body["backend"])
        if backend.status == OFFLINE:
            raise ApiError(400, 1004, f"The backend {backend.name} is not available.", "Use another backend.")
        calibration_id = self.catalog.calibration(backend, body.get("calibration_id"))
        session = self._session_for(user, instance, body)
        if body["program_id"] == "calibrate" and (session is None or session.mode != "dedicated"):
            raise invalid("The program 'calibrate' runs in a session only.", "Open a dedicated session.")
        if instance.limit_reached and not self.settings.usage_limit_queues:
            raise ApiError(409, 4317, "The usage limit of the instance is reached.", "Raise the limit or wait.")
        starts = legacy and str(body.get("start_session", False)).lower() == "true"
        if starts:
            self._check_dedicated("dedicated")
        self.accounts.count_create(user)
        now = round(self.clock.now(), 3)
        self._ordinal += 1
        job = Job(
            id=("c" if legacy else "d") + "".join(secrets.choice(_ID_LETTERS) for _ in range(19)),
            ordinal=self._ordinal,
            crn=instance.crn,
            user_id=user.id,
            dialect=dialect,
            backend=backend.name,
            program_id=body["program_id"],
            params=body["params"],
            tags=list(body.get("tags", ())),
            cost=min(int(body.get("cost") or MAX_COST), MAX_COST),
            created=now,
            created_iso=iso(now),
            session_id=session.id if session is not None else None,
            private=bool(body.get("private")),
            runtime=body.get("runtime"),
            calibration_id=calibration_id,
            caller=caller,
            unit_rate=self.settings.resource_unit_rate,
        )
        if starts:
            job.session_id = job.id
            self.sessions.open(
                job.id,
                crn=instance.crn,
                user_id=user.id,
                mode="dedicated",
                backend=backend.name,
                max_ttl=body.get("session_time"),
            )
        if self.scripts:
            script = self.scripts[0]
            job.script = script
            script.times -= 1
            if not script.times:
                self.scripts.popleft()
        self.jobs[job.id] = job
        self._index(job)
        self.runner.admit(job, backend)
        return job

    def check_packages(self) -> None:
        """Refuse what is for circuits that could not be run, before it is accepted.

        Raises:
            ApiError: 400, a package of the extra is not installed.
        """
        absent = missing_packages(physics=self.settings.physics)
        if absent:
            raise ApiError(
                400,
                "not_installed",
                f"This sandbox cannot run circuits. Not installed: {', '.join(absent)}.",
                f"{INSTALL} To run on a QPU instead, name a credentials block.",
            )

    def _session_for(self, user: User, instance: Instance, body: dict[str, Any]) -> Session | None:
        session_id = body.get("session_id")
        if session_id is None:
            return None
        session = self.session(user, instance, session_id)
        if session.state == "closed" or not session.accepting_jobs:
            raise ApiError(400, 1217, "The session takes no more jobs.", "Open a new session.")
        if session.backend and session.backend != body["backend"]:
            raise invalid(f"The session is on {session.backend}, the job asks for {body['backend']}.")
        return session

    def job(self, user: User, instance: Instance, job_id: str) -> Job:
        """Return a job of the caller.

        Raises:
            ApiError: 404 if it does not exist (or not yet, see `get_lag`), 403 if it belongs to another user.
        """
        job = self.jobs.get(job_id)
        if job is None or job.crn != instance.crn:
            raise job_not_found(job_id)
        if job.user_id != user.id:
            raise ApiError(403, 1200, "You have no access to this job.")
        if self.settings.get_lag and self.clock.now() < job.created + self.settings.get_lag:
            raise job_not_found(job_id)
        return job

    def visible_jobs(self, user: User, instance: Instance, wanted: list[str], *, mocks: bool = False) -> Iterable[Job]:
        """Return the caller's jobs that lists show by now, oldest first, having all wanted tags.

        Jobs on mock backends are among them on request only.
        """
        pool: Iterable[Job] = self.jobs.values()
        if wanted:
            pool = self._by_tag.get(wanted[0], {}).values()
            if self._retagged:
                pool = sorted(pool, key=lambda job: job.ordinal)
        newest = self.clock.now() - self.settings.list_lag if self.settings.list_lag else float("inf")
        crn, user_id, others = instance.crn, user.id, wanted[1:]
        for job in pool:
            if job.user_id != user_id or job.crn != crn or job.created > newest:
                continue
            if not mocks and self.catalog.backends[job.backend].mock:
                continue
            if not others or all(tag in job.tags for tag in others):
                yield job

    def visible_sessions(self, user: User, instance: Instance) -> Iterable[Session]:
        """Return the caller's sessions that lists show by now."""
        newest = self.clock.now() - self.settings.list_lag if self.settings.list_lag else float("inf")
        for session in self.sessions.sessions.values():
            if session.crn == instance.crn and session.user_id == user.id and session.created <= newest:
                yield session

    def delete_job(self, job: Job) -> None:
        """Delete a job that has ended or not begun; the latter is cancelled first.

        Raises:
            ApiError: 400 if it is running.
        """
        if job.status == QUEUED:
            self.runner.cancel(job)
        if not job.is_terminal:
            raise ApiError(400, 1208, "The job has not ended.", "Cancel it first.")
        del self.jobs[job.id]
        self._unindex(job)

    def cancel_job(self, job: Job) -> None:
        """Cancel a job.

        Raises:
            ApiError: 409 if it has ended.
        """
        if job.is_terminal:
            raise ApiError(409, 1208, f"The job cannot be cancelled: it is {job.status}.")
        self.runner.cancel(job)

    def replace_tags(self, job: Job, wanted: list[str]) -> None:
        """Replace a job's tags."""
        self._retagged = True
        self._unindex(job)
        job.tags = list(wanted)
        self._index(job)

    def tags_like(self, user: User, instance: Instance, search: str) -> list[str]:
        """Return the caller's tags that contain a text."""
        jobs = self.visible_jobs(user, instance, [])
        return sorted({tag for job in jobs for tag in job.tags if search in tag})

    def _index(self, job: Job) -> None:
        for tag in job.tags:
            self._by_tag.setdefault(tag, {})[job.id] = job

    def _unindex(self, job: Job) -> None:
        for tag in set(job.tags):
            bucket = self._by_tag.get(tag)
            if bucket is not None:
                bucket.pop(job.id, None)
                if not bucket:
                    del self._by_tag[tag]

    # --- sessions

    def open_session(self, user: User, instance: Instance, body: Any) -> Session:
        """Open a session or batch.

        Raises:
            ApiError: 400 for the body, an unknown or offline backend or a missing package, or code 1352 if the plan
                forbids it.
        """
        self.check_packages()
        check("CreateSessionRequest", "body", body)
        name = body.get("backend") or body.get("backend_name")
        if name:
            if name not in self.catalog.backends:
                raise ApiError(400, "not_found", f"device not found: {name}")
            if self.catalog.backends[name].status == OFFLINE:
                raise ApiError(400, 1004, f"The backend {name} is not available.", "Use another backend.")
        self._check_dedicated(body["mode"])
        return self.sessions.open(
            str(uuid.uuid4()),
            crn=instance.crn,
            user_id=user.id,
            mode=body["mode"],
            backend=name or None,
            max_ttl=body.get("max_ttl"),
            interactive_ttl=body.get("interactive_ttl"),
            active_ttl=body.get("active_ttl"),
        )

    def session(self, user: User, instance: Instance, session_id: str) -> Session:
        """Return a session of the caller.

        Raises:
            ApiError: 404 if there is none.
        """
        session = self.sessions.sessions.get(session_id)
        if session is None or session.crn != instance.crn or session.user_id != user.id:
            raise ApiError(404, "not_found", f"unknown session: {session_id}")
        return session

    def _check_dedicated(self, mode: str) -> None:
        if mode == "dedicated" and not self.settings.allow_dedicated:
            raise ApiError(400, 1352, "Sessions are not allowed on your plan.", "Use job or batch mode.")

    # --- usage

    def _book(self, job: Job) -> None:
        session = self.sessions.of(job)
        # A dedicated session is charged as a whole, by the clock.
        if session is None or session.mode == "batch":
            self._charge(job.crn, job.backend, job.usage_seconds, job.unit_rate)

    def _book_session(self, session: Session) -> None:
        if session.mode != "batch":  # of a batch each job is charged
            self._charge(session.crn, session.backend, session.usage_seconds, session.unit_rate)

    def _charge(self, crn: str, backend: str | None, seconds: float, unit_rate: float) -> None:
        instance = self.accounts.instances.get(crn)
        # The usage of a job on a mock backend is an estimate; nothing is charged for it.
        if instance is not None and not (backend and self.catalog.backends[backend].mock):
            instance.consumed += seconds
            instance.consumed_units += round(seconds * unit_rate, 6)

    def _may_run(self, job: Job) -> bool:
        instance = self.accounts.instances.get(job.crn)
        return instance is None or not (self.settings.usage_limit_queues and instance.limit_reached)


def _check_depth(body: Any) -> None:
    # JSON that can be read may be nested too deeply to be written, which a later GET would have to do.
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:
        raise invalid("The body is nested too deeply.") from None
