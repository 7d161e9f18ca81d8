"""`QuantumRuntimeClient`: every call of the service, one method each, safe from any event loop.

Usable without Prefect. Methods are coroutines that may be awaited from any loop; the work itself runs
on the process's one network loop. Without a loop use `client.run(client.usage())`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import httpx

from prefect_qruntime.client import parsing, sessions
from prefect_qruntime.client.fetching import fetch_result
from prefect_qruntime.client.following import OnChange, OnTimeout, Stream, follow_job
from prefect_qruntime.client.home import at_home, home
from prefect_qruntime.client.results import JobResult
from prefect_qruntime.client.retrying import Patience
from prefect_qruntime.client.stream import Ending, JobStream
from prefect_qruntime.client.submission import Intent, submit_or_attach
from prefect_qruntime.client.waiting import Deadlines, Pace
from prefect_qruntime.client.wire import Wire, wire_of
from prefect_qruntime.connection import Connection, check_id, check_name
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.failures import Phase
from prefect_qruntime.models import Backend, Job, JobRef, Session, SessionRef, Usage
from prefect_qruntime.spec import JobSpec

__all__ = ["QuantumRuntimeClient"]

T = TypeVar("T")
_PAGE = 200  # the service's largest page; out of range it silently falls back to it
_MOST_PAGES = 50


class QuantumRuntimeClient:
    """A client of one instance, in either dialect.

    Args:
        connection: Where and as whom.
        patience: How long calls go on repeating; the default suits unattended flows.

    Example:
        ```python
        from prefect_qruntime import QuantumRuntimeCredentials

        client = QuantumRuntimeCredentials.load("BLOCK_NAME").get_client()
        backends = client.run(client.backends())
        ```
    """

    def __init__(self, connection: Connection, *, patience: Patience | None = None) -> None:
        self.connection = connection
        self._patience = patience

    def __repr__(self) -> str:
        return f"QuantumRuntimeClient({self.connection.host}, {self.connection.dialect})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client holds an API key and is not pickled; pass the credentials block instead")

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run one of the client's coroutines from code without an event loop and block until it ends."""
        return home().run(work)

    def _wire(self) -> Wire:
        return wire_of(self.connection, self._patience)

    async def _get(
        self,
        path: str,
        *,
        phase: Phase = "read",
        params: dict[str, Any] | None = None,
        job_id: str | None = None,
    ) -> dict[str, Any]:
        reply = await self._wire().transport.request("GET", path, phase=phase, params=params, job_id=job_id)
        return reply.object()

    # ---- instance ------------------------------------------------------------------------------

    @at_home
    async def authenticate(self) -> float:
        """Exchange the key if needed. Returns the token's remaining life in seconds, never the token.

        Raises:
            AuthenticationError: IAM does not know the key.
        """
        wire = self._wire()
        await wire.tokens.get()
        return wire.tokens.seconds_left or 0.0

    @at_home
    async def versions(self) -> tuple[str, ...]:
        """API versions the service offers."""
        return parsing.parse_versions(await self._get("/versions"))

    @at_home
    async def usage(self) -> Usage:
        """QPU seconds of the instance in its current period."""
        return parsing.parse_usage(await self._get("/instances/usage"))

    @at_home
    async def instance(self) -> dict[str, Any]:
        """The instance's plan, backends and limits, as the service gives them."""
        return await self._get("/instance")

    @at_home
    async def instance_configuration(self) -> dict[str, Any]:
        """The instance's configuration (`instance_limit` in seconds)."""
        return await self._get("/instances/configuration")

    @at_home
    async def workloads(self, *, limit: int | None = None, **filters: Any) -> list[dict[str, Any]]:
        """Workloads (jobs, batches, sessions), newest first, following the service's cursor.

        Args:
            limit: Most items to return; None for all.
            filters: `mode`, `status`, `backend`, `tags`, `created_after`, `created_before` …
        """
        found: list[dict[str, Any]] = []
        params: dict[str, Any] = {k: _plain(v) for k, v in filters.items() if v is not None}
        params["limit"] = min(50, limit or 50)
        for _ in range(_MOST_PAGES):
            body = await self._get("/workloads", params=params)
            found += [item for item in body.get("workloads") or () if isinstance(item, dict)]
            cursor = _cursor(body)
            if cursor is None or (limit is not None and len(found) >= limit):
                break
            params.update(cursor)
        return found[:limit]

    # ---- backends ------------------------------------------------------------------------------

    @at_home
    async def backends(self) -> list[Backend]:
        """All backends of the instance, with status, queue and size."""
        listed = parsing.parse_backends(await self._get("/backends"))
        whole = []
        for backend in listed:
            if backend.status == "unknown" and backend.num_qubits is None:  # only its name was given
                status = await self._get(f"/backends/{check_name(backend.name, field='backend')}/status")
                configuration = await self._get(f"/backends/{backend.name}/configuration")
                backend = parsing.complete_backend(backend, status, configuration)
            whole.append(backend)
        return whole

    @at_home
    async def backend_status(self, name: str) -> dict[str, Any]:
        """State and queue length of a backend."""
        return await self._get(f"/backends/{check_name(name, field='backend')}/status")

    @at_home
    async def backend_configuration(self, name: str) -> dict[str, Any]:
        """Qubits, basis gates, coupling map and limits of a backend."""
        return await self._get(f"/backends/{check_name(name, field='backend')}/configuration")

    @at_home
    async def backend_properties(self, name: str) -> dict[str, Any]:
        """Calibration data of a backend."""
        return await self._get(f"/backends/{check_name(name, field='backend')}/properties")

    # ---- jobs ----------------------------------------------------------------------------------

    @at_home
    async def submit(self, intent: Intent, **hooks: Any) -> JobRef:
        """Buy the intent's one job, or attach to it. See `submission.submit_or_attach`."""
        return await submit_or_attach(self, intent, **hooks)

    @at_home
    async def post_job(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef:
        """Send one `POST /jobs`. Creates one job; prefer `submit`, which survives a lost answer."""
        wire = self._wire()
        body = wire.dialect.job_body(spec, tags, session)
        reply = await wire.transport.request("POST", "/jobs", phase="submit", body=body)
        ref = wire.dialect.created(reply.object(), spec, session)
        return ref.model_copy(update={"url": self.connection.job_url(ref.id), "tags": tags})

    @at_home
    async def job(self, job_id: str, *, phase: Phase = "read") -> Job:
        """The job as the service sees it now, without its input."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        body = await self._get(path, phase=phase, params={"exclude_params": "true"}, job_id=job_id)
        return parsing.parse_job(body, url=self.connection.job_url(job_id))

    async def look(self, job_id: str) -> Job:
        """As `job`, giving up quickly: the wait around it repeats."""
        return await self.job(job_id, phase="wait")

    @at_home
    async def job_input(self, job_id: str) -> dict[str, Any]:
        """The job's `params`, as the service kept them."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        body = await self._get(path, params={"exclude_params": "false"}, job_id=job_id)
        params = body.get("params")
        return params if isinstance(params, dict) else {}

    @at_home
    async def jobs(
        self,
        *,
        tags: Iterable[str] = (),
        pending: bool | None = None,
        backend: str | None = None,
        program: str | None = None,
        session_id: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Jobs of the instance, newest first.

        All `tags` must be on a job: the service is asked for them, and the answer is filtered again
        here, because how it combines several is not documented.

        Args:
            tags: Tags that a job must carry.
            pending: True for queued and running ones, False for finished ones.
            backend: Only this backend's.
            program: Only this program's.
            session_id: Only this session's.
            created_after: Only younger ones.
            created_before: Only older ones.
            limit: Most jobs to return; None for all.
        """
        wanted = tuple(tags)
        params: dict[str, Any] = {
            "exclude_params": "true",
            "limit": _PAGE if limit is None or wanted else min(limit, _PAGE),
        }
        given = {
            "pending": pending,
            "backend": backend,
            "program": program,
            "session_id": session_id,
            "created_after": created_after,
            "created_before": created_before,
        }
        params.update({name: _plain(value) for name, value in given.items() if value is not None})
        if wanted:
            params["tags"] = list(wanted)
        found: list[Job] = []
        offset = 0
        for _ in range(_MOST_PAGES):
            if offset:
                params["offset"] = offset
            page, count = parsing.parse_job_page(await self._get("/jobs", params=params))
            for item in page:
                job = parsing.parse_job(item, url=self.connection.job_url(str(item.get("id"))))
                if set(wanted) <= set(job.tags):
                    found.append(job)
            offset += len(page)
            done = offset >= count if count is not None else len(page) < int(params["limit"])
            if not page or done or (limit is not None and len(found) >= limit):
                break
        return found[:limit]

    async def jobs_tagged(self, tag: str) -> list[Job]:
        """All jobs that carry `tag` exactly."""
        return await self.jobs(tags=(tag,))

    @at_home
    async def wait(
        self,
        job_id: str,
        *,
        deadlines: Deadlines | None = None,
        on_timeout: OnTimeout = "leave",
        stream: Stream = "auto",
        in_session: bool = False,
        pace: Pace | None = None,
        on_change: OnChange | None = None,
    ) -> Job:
        """Wait until the job is over, through outages. See `following.follow_job`."""
        return await follow_job(
            self,
            check_id(job_id, field="job"),
            deadlines=deadlines or Deadlines(),
            on_timeout=on_timeout,
            stream=stream,
            in_session=in_session,
            pace=pace,
            on_change=on_change,
        )

    @at_home
    async def result(self, job: JobRef | str, *, grace: float = 15.0) -> JobResult:
        """The job's result. See `fetching.fetch_result`."""
        ref = JobRef(id=job) if isinstance(job, str) else job
        check_id(ref.id, field="job")
        return await fetch_result(self._wire().transport, self.look, ref, grace=grace)

    @at_home
    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and read back what became of it. A job that is over already is left as it is."""
        path = f"/jobs/{check_id(job_id, field='job')}/cancel"
        await self._wire().transport.request("POST", path, phase="change", accept=(409,), job_id=job_id)
        return await self.job(job_id)

    @at_home
    async def delete_job(self, job_id: str) -> None:
        """Delete a finished job and its data from the service."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        await self._wire().transport.request("DELETE", path, phase="change", job_id=job_id)

    @at_home
    async def logs(self, job_id: str) -> str:
        """The job's log text; empty where there is none."""
        path = f"/jobs/{check_id(job_id, field='job')}/logs"
        reply = await self._wire().transport.request("GET", path, phase="read", accept=(404,), job_id=job_id)
        return "" if reply.status in (204, 404) else reply.text

    @at_home
    async def metrics(self, job_id: str) -> dict[str, Any]:
        """Timestamps, usage and execution times of a job."""
        return await self._get(f"/jobs/{check_id(job_id, field='job')}/metrics", job_id=job_id)

    @at_home
    async def replace_tags(self, job_id: str, tags: Iterable[str]) -> None:
        """Replace all tags of a job. Dropping its `qr-key:` tag makes it unfindable for a repeated run."""
        path = f"/jobs/{check_id(job_id, field='job')}/tags"
        await self._wire().transport.request("PUT", path, phase="change", body={"tags": list(tags)}, job_id=job_id)

    # ---- sessions ------------------------------------------------------------------------------

    @at_home
    async def open_session(self, backend: str, *, mode: str = "dedicated", max_ttl: int | None = None) -> SessionRef:
        """Open a session or batch; its clock starts with its first job.

        Where a session begins with its first job (legacy), nothing is sent and the session is unbound.
        """
        return await sessions.open_session(self, backend, mode=mode, max_ttl=max_ttl)

    @at_home
    async def close_session(self, session_id: str, *, drain: bool) -> Session | None:
        """Close a session and read back that it is. See `sessions.close_session`."""
        return await sessions.close_session(self, session_id, drain=drain)

    @at_home
    async def post_session(self, backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
        """Send one `POST /sessions`; prefer `open_session`, which survives a lost answer."""
        wire = self._wire()
        body = wire.dialect.session_body(check_name(backend, field="backend"), mode, max_ttl)
        if body is None:
            return wire.dialect.unbound_session(backend, mode, max_ttl)
        reply = await wire.transport.request("POST", "/sessions", phase="open", body=body)
        return parsing.parse_session(reply.object()).ref()

    @at_home
    async def session(self, session_id: str) -> Session:
        """A session's state, times and limits."""
        return parsing.parse_session(await self._get(f"/sessions/{check_id(session_id, field='session')}"))

    @at_home
    async def stop_accepting(self, session_id: str) -> None:
        """Let the session's queued jobs run and take no new ones (`PATCH accepting_jobs=false`)."""
        path = f"/sessions/{check_id(session_id, field='session')}"
        await self._wire().transport.request(
            "PATCH", path, phase="change", body={"accepting_jobs": False}, accept=(404,)
        )

    @at_home
    async def drop_session(self, session_id: str) -> None:
        """End the session now: its queued jobs are not run, a running one finishes (`DELETE …/close`)."""
        path = f"/sessions/{check_id(session_id, field='session')}/close"
        await self._wire().transport.request("DELETE", path, phase="change", accept=(404,))

    # ---- the socket ----------------------------------------------------------------------------

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None:
        """The job's websocket, or None where there is none to try."""
        wire = self._wire()
        if stream == "never" or wire.stream_refused or not (stream == "always" or wire.dialect.offers_stream):
            return None
        return JobStream(wire.transport, wire.dialect.stream_path(job_id), wake)

    def stream_ended(self, ending: Ending) -> None:
        """Remember a host that has no websocket."""
        if ending == "refused":
            self._wire().stream_refused = True


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def _cursor(body: dict[str, Any]) -> dict[str, str] | None:
    """The query that `next.href` adds; only its parameters are used, never its host."""
    link = body.get("next")
    href = link.get("href") if isinstance(link, dict) else link
    if not isinstance(href, str) or not href:
        return None
    try:
        return dict(httpx.URL(href).params)
    except httpx.InvalidURL as exc:
        raise QuantumRuntimeError(f"the service's next page has no usable address: {exc}") from None
