"""`QuantumRuntimeClient`: every call of the service, one method each, safe from any event loop.

Usable without Prefect. Methods are coroutines that may be awaited from any loop; the work itself runs
on the process's one network loop. Without a loop use `client.run(client.usage())`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from prefect_qruntime.client import parsing, sessions
from prefect_qruntime.client.connection import check_id, check_name
from prefect_qruntime.client.dialects import dialect_of
from prefect_qruntime.client.failures import Phase
from prefect_qruntime.client.fetching import fetch_result
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.instance import MOST_PAGES, InstanceCalls, plain
from prefect_qruntime.client.network_loop import network_loop, on_network_loop
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.submission import Intent, submit_or_attach
from prefect_qruntime.client.transport.replies import unreadable_create
from prefect_qruntime.client.transport.spool import BodyStore
from prefect_qruntime.client.waiting.follow import OnChange, OnTimeout, Stream, follow_job
from prefect_qruntime.client.waiting.job_list import Page
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals
from prefect_qruntime.client.waiting.poller import JobPoller
from prefect_qruntime.client.waiting.websocket import Ending, JobStream
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Job, JobRef, Session, SessionRef

__all__ = ["QuantumRuntimeClient"]

_PAGE = 200  # the service's largest page; out of range it silently falls back to it
_REFUSED_FOR = 300.0  # seconds
_CANCEL_LOOKS = (0.1, 0.2, 0.4, 0.8, 1.5, 2.0)  # seconds between the looks after a cancel


class QuantumRuntimeClient(InstanceCalls):
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

    # ---- jobs ----------------------------------------------------------------------------------

    @on_network_loop
    async def submit(self, intent: Intent, **hooks: Any) -> JobRef:
        """Buy the intent's one job, or attach to it. See `submission.submit_or_attach`."""
        return await submit_or_attach(self, intent, scope=self._instance, **hooks)

    @property
    def _instance(self) -> str:
        """What callers of one process share jobs and sessions by."""
        return f"{self.connection.base_url} {self.connection.crn}"

    def job_params(self, spec: JobSpec) -> dict[str, Any]:
        """The `params` that `post_job` sends for a submission."""
        return self._wire().dialect.params(spec)

    @on_network_loop
    async def post_job(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef:
        """Send one `POST /jobs`. Creates one job; prefer `submit`, which survives a lost answer."""
        wire = self._wire()
        body = wire.dialect.job_body(spec, tags, session)
        reply = await wire.transport.request("POST", "/jobs", phase="submit", body=body)
        try:
            ref = wire.dialect.created(reply.object(), spec, session)
        except QuantumRuntimeError as error:
            raise unreadable_create(reply, error) from None
        if ref.session is not None and ref.session.id is not None:
            wire.unfinished.setdefault(ref.session.id, set()).add(ref.id)
        self._poller().note(ref.id)
        return ref.model_copy(update={"url": self.connection.job_url(ref.id), "tags": tags})

    @on_network_loop
    async def job(self, job_id: str, *, phase: Phase = "read") -> Job:
        """The job as the service sees it now, without its input."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        body = await self._get(path, phase=phase, params={"exclude_params": "true"}, job_id=job_id)
        whole = body if body.get("id") else {**body, "id": job_id}
        return self.read_listed(whole)

    async def fetch_job(self, job_id: str) -> Job:
        """As `job`, giving up quickly: the wait around it repeats."""
        return await self.job(job_id, phase="wait")

    @on_network_loop
    async def job_input(self, job_id: str) -> dict[str, Any]:
        """The job's `params`, as the service kept them."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        body = await self._get(path, params={"exclude_params": "false"}, job_id=job_id)
        params = body.get("params")
        return params if isinstance(params, dict) else {}

    @on_network_loop
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
        params.update({name: plain(value) for name, value in given.items() if value is not None})
        if wanted:
            params["tags"] = list(wanted)
        found: dict[str, Job] = {}  # by id: a job created between two pages moves others to the next one
        offset = 0
        for _ in range(MOST_PAGES):
            if offset:
                params["offset"] = offset
            page, count = parsing.parse_job_page(await self._get("/jobs", params=params))
            for item in page:
                job = parsing.parse_job(item, url=self.connection.job_url(str(item.get("id"))))
                if set(wanted) <= set(job.tags):
                    found.setdefault(job.id, job)
            offset += len(page)
            done = offset >= count if count is not None else len(page) < int(params["limit"])
            if not page or done or (limit is not None and len(found) >= limit):
                break
        else:
            # Never hand out a part as the whole: an earlier job could be among the rest.
            raise QuantumRuntimeError(
                f"the service lists more than {offset} jobs; narrow the search by created_after or a limit"
            )
        return list(found.values())[:limit]

    async def jobs_tagged(self, tag: str) -> list[Job]:
        """All jobs that carry `tag` exactly."""
        return await self.jobs(tags=(tag,))

    @on_network_loop
    async def wait(
        self,
        job_id: str,
        *,
        deadlines: Deadlines | None = None,
        on_timeout: OnTimeout = "leave",
        stream: Stream = "auto",
        in_session: bool = False,
        pace: PollIntervals | None = None,
        on_change: OnChange | None = None,
    ) -> Job:
        """Wait until the job is over, through outages. See `following.follow_job`.

        All waits of this process on the instance share one watcher, and with it their looks.
        """
        return await follow_job(
            self,
            check_id(job_id, field="job"),
            watcher=self._poller(),
            deadlines=deadlines or Deadlines(),
            on_timeout=on_timeout,
            stream=stream,
            in_session=in_session,
            pace=pace,
            on_change=on_change,
        )

    @on_network_loop
    async def result(self, job: JobRef | str, *, grace: float = 15.0, shelf: BodyStore | None = None) -> JobResult:
        """The job's result; with a `shelf`, a large one goes to a file. See `fetching.fetch_result`."""
        ref = JobRef(id=job) if isinstance(job, str) else job
        check_id(ref.id, field="job")
        known = self._poller().knows(ref.id)
        return await fetch_result(self._wire().transport, self.fetch_job, ref, grace=grace, known=known, shelf=shelf)

    @on_network_loop
    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and read back what became of it. A job that is over already is left as it is.

        Waits for it in this process end at once. The service may take a while to end a running job; its state is
        read until it says so, for five seconds at most.
        """
        path = f"/jobs/{check_id(job_id, field='job')}/cancel"
        await self._wire().transport.request("POST", path, phase="change", accept=(409,), job_id=job_id)
        for pause in _CANCEL_LOOKS:
            job = await self.job(job_id)
            if job.is_terminal:
                self._poller().hurry_for(job_id)
                return job
            await asyncio.sleep(pause)
        return await self.job(job_id)

    @on_network_loop
    async def delete_job(self, job_id: str) -> None:
        """Delete a finished job and its data from the service."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        await self._wire().transport.request("DELETE", path, phase="change", job_id=job_id)

    @on_network_loop
    async def logs(self, job_id: str) -> str:
        """The job's log text; empty where there is none."""
        path = f"/jobs/{check_id(job_id, field='job')}/logs"
        reply = await self._wire().transport.request("GET", path, phase="read", accept=(404,), job_id=job_id)
        return "" if reply.status in (204, 404) else reply.text

    @on_network_loop
    async def metrics(self, job_id: str) -> dict[str, Any]:
        """Timestamps, usage and execution times of a job."""
        return await self._get(f"/jobs/{check_id(job_id, field='job')}/metrics", job_id=job_id)

    @on_network_loop
    async def replace_tags(self, job_id: str, tags: Iterable[str]) -> None:
        """Replace all tags of a job. Dropping its `qr-key:` tag makes it unfindable for a repeated run."""
        path = f"/jobs/{check_id(job_id, field='job')}/tags"
        await self._wire().transport.request("PUT", path, phase="change", body={"tags": list(tags)}, job_id=job_id)

    # ---- sessions ------------------------------------------------------------------------------

    @on_network_loop
    async def open_session(self, backend: str, *, mode: str = "dedicated", max_ttl: int | None = None) -> SessionRef:
        """Open a session or batch; its clock starts with its first job.

        Where a session begins with its first job (legacy), nothing is sent and the session is unbound.
        """
        return await sessions.open_session(self, backend, mode=mode, max_ttl=max_ttl, scope=self._instance)

    @on_network_loop
    async def close_session(self, session_id: str, *, drain: bool) -> Session | None:
        """Close a session and read back that it is. See `sessions.close_session`."""
        session = await sessions.close_session(self, session_id, drain=drain)
        if session is None or session.ref().is_closed:
            self._wire().unfinished.pop(session_id, None)
        return session

    def unfinished_jobs(self, session_id: str) -> list[str]:
        """Jobs this process bought in a session and has not seen at their end."""
        return sorted(self._wire().unfinished.get(session_id, ()))

    @on_network_loop
    async def post_session(self, backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
        """Send one `POST /sessions`; prefer `open_session`, which survives a lost answer."""
        wire = self._wire()
        body = wire.dialect.session_body(check_name(backend, field="backend"), mode, max_ttl)
        if body is None:
            return wire.dialect.unbound_session(backend, mode, max_ttl)
        reply = await wire.transport.request("POST", "/sessions", phase="open", body=body)
        try:
            return parsing.parse_session(reply.object()).ref()
        except QuantumRuntimeError as error:
            raise unreadable_create(reply, error) from None

    @on_network_loop
    async def session(self, session_id: str) -> Session:
        """A session's state, times and limits."""
        return parsing.parse_session(await self._get(f"/sessions/{check_id(session_id, field='session')}"))

    @on_network_loop
    async def stop_accepting(self, session_id: str) -> None:
        """Let the session's queued jobs run and take no new ones (`PATCH accepting_jobs=false`)."""
        path = f"/sessions/{check_id(session_id, field='session')}"
        await self._wire().transport.request(
            "PATCH", path, phase="change", body={"accepting_jobs": False}, accept=(404,)
        )

    @on_network_loop
    async def drop_session(self, session_id: str) -> None:
        """End the session now: its queued jobs are not run, a running one finishes (`DELETE …/close`)."""
        path = f"/sessions/{check_id(session_id, field='session')}/close"
        await self._wire().transport.request("DELETE", path, phase="change", accept=(404,))

    # ---- the poller ---------------------------------------------------------------------------

    def _poller(self) -> JobPoller:
        """The one poller of this connection."""
        here, key = network_loop(), (self.connection.fingerprint, repr(self._patience))
        return here.find(JobPoller, *key) or here.keep(JobPoller(self), *key)

    async def list_page(self, page: Page) -> list[dict[str, Any]]:
        """One page of the job list as the service words it, newest first, giving up quickly."""
        params: dict[str, Any] = {"exclude_params": "true", "limit": page.limit}
        if page.offset:
            params["offset"] = page.offset
        if page.created_before is not None:
            params["created_before"] = plain(page.created_before)
        return parsing.parse_job_page(await self._get("/jobs", phase="wait", params=params))[0]

    def read_listed(self, entry: dict[str, Any]) -> Job:
        """A job's entry as a `Job`; its end is noted for its session."""
        job = parsing.parse_job(entry, url=self.connection.job_url(str(entry.get("id"))))
        if job.is_terminal and job.session_id is not None:
            self._wire().unfinished.get(job.session_id, set()).discard(job.id)
        return job

    # ---- the socket ----------------------------------------------------------------------------

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None:
        """The job's websocket, or None where there is none to try."""
        wire = self._wire()
        if stream == "never" or not (stream == "always" or wire.dialect.offers_stream):
            return None
        if time.monotonic() < wire.stream_refused + _REFUSED_FOR:
            return None
        return JobStream(wire.transport, wire.dialect.stream_path(job_id), wake)

    @property
    def expects_stream(self) -> bool:
        """Whether hosts of this dialect are known to have the job websocket."""
        return dialect_of(self.connection).offers_stream

    @on_network_loop
    async def knock(self, job_id: str) -> str | None:
        """Open a job's websocket and close it again; returns why it does not open, None if it does."""
        stream = self.job_stream(check_id(job_id, field="job"), lambda: None, "always")
        return "it was refused before" if stream is None else await stream.knock()

    def stream_ended(self, ending: Ending) -> None:
        """Remember for a while a host that has no websocket; it may also have been one job's, or a moment's."""
        if ending == "refused":
            self._wire().stream_refused = time.monotonic()
