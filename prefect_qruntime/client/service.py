"""The service's REST API: one coroutine per call. Lives on the network loop, below everything that loops over calls."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import re
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol, TypedDict, Unpack

import httpx
from cachetools import LRUCache

from prefect_qruntime.client import parsing
from prefect_qruntime.client.connection import Connection, check_id, check_name, check_session
from prefect_qruntime.client.dialects import dialect_of
from prefect_qruntime.client.failures import Phase
from prefect_qruntime.client.inputs.spec import JobSpec, check_flag, check_integer, check_texts
from prefect_qruntime.client.provenance import ProvenanceNotes
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.exchange import MOST_BYTES, MOST_VALUES
from prefect_qruntime.client.transport.http import Transport, http_client
from prefect_qruntime.client.transport.replies import unreadable_create
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError, ServiceUnavailable
from prefect_qruntime.models import Backend, Job, JobRef, Session, SessionRef, Usage
from prefect_qruntime.redact import install, nearest, shown

__all__ = ["JobFilters", "Service", "each_job"]

_BACKEND_VALUES = 1_000_000  # of a backend's properties: those of a QPU with 156 qubits have 127,000
_PAGE = 200  # the service's largest page; out of range it silently falls back to it
_MOST_PAGES = 50
_MOST_WORKLOADS = 10_000
_OVERLAP = timedelta(milliseconds=1)  # a page begins with the last millisecond of the page before
_SESSIONS = 1000  # of which the jobs are remembered
_NO_BACKEND = re.compile(r"\b(?:backend|device)\b", re.IGNORECASE)
_SHOWN = 8  # backends named in a message
_CANCEL_LOOKS = (0.1, 0.2, 0.4, 0.8, 1.5, 2.0)  # seconds between polls after a cancel


class JobFilters(TypedDict, total=False):
    """Filters of the job list; those that are None or left out do not apply.

    Attributes:
        pending: True for queued and running ones, False for finished ones.
        backend: Only this backend's.
        program: Only this program's.
        session_id: Only this session's.
        created_after: Only younger ones.
        created_before: Only older ones.
    """

    pending: bool | None
    backend: str | None
    program: str | None
    session_id: str | None
    created_after: datetime | None
    created_before: datetime | None


_JOB_FILTERS = (*JobFilters.__annotations__, "tags", "include_mocks")
_WORKLOAD_FILTERS = ("backend", "created_after", "created_before", "mode", "search", "sort", "status", "tags", "user")


class _ListsJobs(Protocol):
    async def jobs(
        self, *, tags: Iterable[str] = (), limit: int | None = None, **filters: Unpack[JobFilters]
    ) -> list[Job]: ...


async def each_job(
    client: _ListsJobs, *, tags: Iterable[str] = (), page: int = _PAGE, **filters: Unpack[JobFilters]
) -> AsyncIterator[Job]:
    """Yield all jobs that match, newest first, however many there are.

    The list is read by time. A list that changes while it is read repeats no job and omits none.

    Args:
        client: The client.
        tags: Tags that a job must carry.
        page: Jobs in the first request.
        **filters: Which jobs; see `JobFilters`.

    Raises:
        QuantumRuntimeError: The service did not answer, or does not say when a job was created.
    """
    before, size, seen = filters.get("created_before"), page, set[str]()
    while True:
        wanted: JobFilters = {**filters, "created_before": before}
        listed = await client.jobs(tags=tags, limit=size, **wanted)
        for job in listed:
            if job.id not in seen:
                yield job
        if len(listed) < size:
            return
        last = listed[-1].created_at
        if last is None:
            raise QuantumRuntimeError(
                f"The service does not say when job {listed[-1].id} was created, so the list cannot be continued."
            )
        moved = before is None or last + _OVERLAP < before
        # More jobs of one millisecond than fit on a page: ask for a larger page.
        before, size = last + _OVERLAP, max(page, _PAGE) if moved else 2 * size
        seen = {job.id for job in listed}


class Service:
    """The calls of one instance, with the HTTP client, token and transport that they share.

    Args:
        connection: Address and credentials.
        patience: How long calls are repeated; the default suits unattended flows.
    """

    def __init__(self, connection: Connection, patience: RetryDeadlines | None = None) -> None:
        install()
        self.connection = connection
        self.dialect = dialect_of(connection)
        self.http = http_client(connection)
        self.tokens = TokenSource(connection, self.http, patience=patience)
        self.transport = Transport(
            connection, self.http, self.tokens, headers=self.dialect.headers(connection), patience=patience
        )
        self.stream_refused = -math.inf
        """When this host last refused a websocket, on the monotonic clock; it is not tried again for a while."""
        self._unfinished: LRUCache[str, set[str]] = LRUCache(_SESSIONS)
        """Jobs submitted here, by session, whose end was not seen yet: a list may not show them yet."""
        self.provenance = ProvenanceNotes(self._properties_of_run)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.host}, {self.dialect.name})"

    async def _get(
        self,
        path: str,
        *,
        phase: Phase = "read",
        params: dict[str, Any] | None = None,
        job_id: str | None = None,
        most_values: int = MOST_VALUES,
    ) -> dict[str, Any]:
        reply = await self.transport.request(
            "GET", path, phase=phase, params=params, job_id=job_id, most_values=most_values
        )
        return reply.object()

    # ---- the instance --------------------------------------------------------------------------

    async def authenticate(self) -> float:
        """Exchange the key if needed. Returns the token's remaining life in seconds, never the token.

        Raises:
            AuthenticationError: IAM does not know the key.
        """
        try:
            await self.tokens.get()
        except QuantumRuntimeError as error:
            raise self.transport.with_block(error).with_traceback(None) from None
        return self.tokens.seconds_left or 0.0

    async def versions(self) -> tuple[str, ...]:
        """API versions the service offers."""
        return parsing.parse_versions(await self._get("/versions"))

    async def usage(self) -> Usage:
        """QPU seconds of the instance in its current period."""
        return parsing.parse_usage(await self._get("/instances/usage"))

    async def instance(self) -> dict[str, Any]:
        """The instance's plan, backends and limits, as the service gives them."""
        return await self._get("/instance")

    async def instance_configuration(self) -> dict[str, Any]:
        """The instance's configuration (`instance_limit` in seconds)."""
        return await self._get("/instances/configuration")

    async def workloads(self, *, limit: int | None = None, **filters: Any) -> list[dict[str, Any]]:
        """Workloads (jobs, batches, sessions), newest first, following the service's cursor.

        Args:
            limit: Most items to return; None for all.
            filters: `mode`, `status`, `backend`, `tags`, `created_after`, `created_before` …

        Raises:
            InvalidInput: There is no such filter, or it has a wrong value.
            QuantumRuntimeError: There are more than 10,000, or the cursor has no end.
        """
        found: list[dict[str, Any]] = []
        params = _query(filters, _WORKLOAD_FILTERS)
        params["limit"] = min(50, _limit(limit) or 50)
        for _ in range(_MOST_WORKLOADS // 50):
            body = await self._get("/workloads", params=params)
            found += [item for item in body.get("workloads") or () if isinstance(item, dict)]
            cursor = _cursor(body)
            if cursor is None or (limit is not None and len(found) >= limit):
                return found[:limit]
            params.update(cursor)
        # Never return a part as the whole.
        raise QuantumRuntimeError(
            f"The service lists more than {len(found)} workloads.",
            solution="Narrow the search by created_after or a limit.",
        )

    # ---- backends ------------------------------------------------------------------------------

    async def backends(self) -> list[Backend]:
        """All backends of the instance, with status, queue and size."""
        listed = parsing.parse_backends(await self._get("/backends", params=dict(self.dialect.backends_query) or None))
        whole = []
        for backend in listed:
            if backend.status == "unknown" and backend.num_qubits is None:  # only its name was given
                status = await self.backend_status(backend.name)
                backend = parsing.complete_backend(backend, status, await self.backend_configuration(backend.name))
            whole.append(backend)
        return whole

    async def backend_status(self, name: str) -> dict[str, Any]:
        """State and queue length of a backend."""
        return await self._backend(name, "status")

    async def backend_configuration(self, name: str) -> dict[str, Any]:
        """Qubits, basis gates, coupling map and limits of a backend."""
        return await self._backend(name, "configuration")

    async def backend_properties(
        self, name: str, *, calibration_id: str | None = None, phase: Phase = "read"
    ) -> dict[str, Any]:
        """Calibration data of a backend: the present ones, or those of a calibration."""
        params = {"calibration_id": calibration_id} if calibration_id is not None else None
        return await self._backend(name, "properties", phase=phase, params=params)

    async def _properties_of_run(self, name: str, calibration_id: str | None) -> dict[str, Any]:
        # No caller waits for it, so it gives up as quickly as a poll.
        return await self.backend_properties(name, calibration_id=calibration_id, phase="wait")

    async def _backend(
        self, name: str, what: str, *, phase: Phase = "read", params: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        path = f"/backends/{check_name(name, field='backend')}/{what}"
        try:
            return await self._get(path, phase=phase, params=params, most_values=_BACKEND_VALUES)
        except QuantumRuntimeError as error:
            await self.suggest_backend(error, name)
            raise

    async def suggest_backend(self, error: QuantumRuntimeError, name: str) -> None:
        """Add the existing backends to the refusal of an unknown one. Asks the service for the list."""
        if error.status not in (400, 404) or not _NO_BACKEND.search(error.message):
            return
        with contextlib.suppress(QuantumRuntimeError):  # the refusal is what matters
            listed = parsing.parse_backends(await self._get("/backends"))
            names = sorted(backend.name for backend in listed)
            if name not in names:
                has = f"The instance has {', '.join(names[:_SHOWN])}" if names else "The instance has no backend"
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                error.solution = f"{nearest(name, names, most=2)} {has}{more}.".strip()

    # ---- jobs ----------------------------------------------------------------------------------

    def job_params(self, spec: JobSpec) -> dict[str, Any]:
        """The `params` that `post_job` sends for a submission."""
        return self.dialect.params(spec)

    async def post_job(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef:
        """Send one `POST /jobs`. Creates one job; `submit_or_attach` survives a lost answer."""
        # A circuit that is no text may have to be read by qiskit, and its parameters are encoded.
        make = functools.partial(self.dialect.job_body, spec, tags, session)
        body = await asyncio.to_thread(make) if spec.support_qiskit else make()
        reply = await self.transport.request("POST", "/jobs", phase="submit", body=body)
        try:
            ref = self.dialect.created(reply.object(), spec, session)
        except QuantumRuntimeError as error:
            raise unreadable_create(reply, error) from None
        if ref.session is not None and ref.session.id is not None:
            self._unfinished.setdefault(ref.session.id, set()).add(ref.id)
        return ref.model_copy(update={"url": self.connection.job_url(ref.id), "tags": tags})

    async def job(self, job_id: str, *, phase: Phase = "read") -> Job:
        """Read the job's present state, without its input.

        Raises:
            ServiceUnavailable: The answer is about another job, or unreadable.
        """
        path = f"/jobs/{check_id(job_id, field='job')}"
        body = await self._get(path, phase=phase, params={"exclude_params": "true"}, job_id=job_id)
        job = self.read_listed(body if body.get("id") else {**body, "id": job_id})
        if job.id != job_id:
            raise ServiceUnavailable(f"The service answered about job {job.id}, not {job_id}.", job_id=job_id)
        return job

    async def fetch_job(self, job_id: str) -> Job:
        """As `job`, giving up quickly, because the wait around it repeats."""
        return await self.job(job_id, phase="wait")

    def read_listed(self, entry: dict[str, Any]) -> Job:
        """Parse a job's entry; its end is recorded for its session."""
        job = parsing.parse_job(entry, url=self.connection.job_url(str(entry.get("id"))))
        self.provenance.saw(job)
        if job.is_terminal and job.session_id is not None:
            self._unfinished.get(job.session_id, set()).discard(job.id)
        return job

    async def job_input(self, job_id: str) -> dict[str, Any]:
        """The job's `params`, as the service kept them."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        params = {"exclude_params": "false"}
        kept = (await self._get(path, params=params, job_id=job_id, most_values=MOST_BYTES)).get("params")
        return kept if isinstance(kept, dict) else {}

    async def job_page(
        self, *, phase: Phase = "read", limit: int = _PAGE, offset: int = 0, **filters: Any
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Read one page of the job list as the service sends it, newest first, and the total count if there is one.

        Args:
            phase: How long to repeat the call.
            limit: Most jobs on the page.
            offset: Jobs to leave out at the start.
            filters: `tags`, `pending`, `backend`, `program`, `session_id`, `created_after`, `created_before`.
        """
        params: dict[str, Any] = {"exclude_params": "true", "limit": limit, **_query(filters, _JOB_FILTERS)}
        if offset:
            params["offset"] = offset
        body = await self._get("/jobs", phase=phase, params=params)
        return parsing.parse_job_page(body, tags=filters.get("tags") or ())

    async def jobs(
        self, *, tags: Iterable[str] = (), limit: int | None = None, mocks: bool = False, **filters: Unpack[JobFilters]
    ) -> list[Job]:
        """Jobs of the instance, newest first.

        All `tags` must be on a job: the service is asked for them, and the answer is filtered again
        here, because how it combines several is not documented.

        Args:
            tags: Tags that a job must carry.
            limit: Most jobs to return; None for all.
            mocks: Whether those on mock backends (dry runs) are among them.
            **filters: Backend, program, session, state and age: see `JobFilters`.

        Raises:
            InvalidInput: There is no such filter, or it has a wrong value.
        """
        wanted, limit, mocks = tuple(check_texts(tags, field="tags")), _limit(limit), check_flag(mocks, field="mocks")
        size = _PAGE if limit is None or wanted else min(limit, _PAGE)
        found: dict[str, Job] = {}  # by id: a job created between two pages moves others to the next one
        offset = 0
        for _ in range(_MOST_PAGES):
            page, count = await self.job_page(
                limit=size, offset=offset, tags=wanted or None, include_mocks=mocks or None, **filters
            )
            for place, item in enumerate(page):
                if place % _PAGE == _PAGE - 1:  # a host may list more at once than it was asked for
                    await asyncio.sleep(0)
                job = parsing.parse_job(item, url=self.connection.job_url(str(item.get("id"))))
                if not wanted or set(wanted) <= set(item["tags"]):  # those of the model are masked
                    found.setdefault(job.id, job)
            offset += len(page)
            done = offset >= count if count is not None else len(page) < size
            if not page or done or (limit is not None and len(found) >= limit):
                break
        else:
            # Never return a part as the whole: an earlier job could be among the rest.
            raise QuantumRuntimeError(
                f"The service lists more than {offset} jobs.",
                solution="Narrow the search by created_after or a limit.",
            )
        return list(found.values())[:limit]

    async def jobs_tagged(self, tag: str, *, mocks: bool = False) -> list[Job]:
        """All jobs that carry `tag` exactly; those on mock backends on request."""
        return await self.jobs(tags=(tag,), mocks=mocks)

    async def request_cancel(self, job_id: str) -> None:
        """Ask for a job's cancellation. A job that is over already is left as it is."""
        path = f"/jobs/{check_id(job_id, field='job')}/cancel"
        await self.transport.request("POST", path, phase="change", accept=(409,), job_id=job_id)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and read its state until it is over, for five seconds at most.

        Raises:
            QuantumRuntimeError: The service refused, or, with `requested`, accepted it and its state cannot be read.
        """
        await self.request_cancel(job_id)
        try:
            for pause in _CANCEL_LOOKS:
                job = await self.job(job_id)
                if job.is_terminal:
                    return job
                await asyncio.sleep(pause)
            return await self.job(job_id)
        except QuantumRuntimeError as error:
            said = f"The cancellation of job {job_id} was accepted, but its state could not be read: {error.message}"
            raise type(error)(said, **{**error.fields, "requested": True}) from None

    async def delete_job(self, job_id: str) -> None:
        """Delete a finished job and its data from the service."""
        path = f"/jobs/{check_id(job_id, field='job')}"
        await self.transport.request("DELETE", path, phase="change", job_id=job_id)

    async def logs(self, job_id: str) -> str:
        """The job's log text; empty if there is none."""
        path = f"/jobs/{check_id(job_id, field='job')}/logs"
        reply = await self.transport.request("GET", path, phase="read", accept=(404,), job_id=job_id)
        return "" if reply.status in (204, 404) else reply.text

    async def metrics(self, job_id: str) -> dict[str, Any]:
        """Timestamps, usage and execution times of a job."""
        return await self._get(f"/jobs/{check_id(job_id, field='job')}/metrics", job_id=job_id)

    async def replace_tags(self, job_id: str, tags: Iterable[str]) -> None:
        """Replace all tags of a job."""
        path = f"/jobs/{check_id(job_id, field='job')}/tags"
        await self.transport.request(
            "PUT", path, phase="change", body={"tags": check_texts(tags, field="tags")}, job_id=job_id
        )

    # ---- sessions ------------------------------------------------------------------------------

    def unfinished_jobs(self, session_id: str) -> list[str]:
        """Jobs that this process submitted in a session and whose end it has not seen."""
        return sorted(self._unfinished.get(session_id, ()))

    def forget_session(self, session_id: str) -> None:
        """Forget the jobs of a session that is closed."""
        self._unfinished.pop(session_id, None)

    async def post_session(self, backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
        """Send one `POST /sessions`; `open_session` survives a lost answer."""
        check_session(mode, max_ttl)
        body = self.dialect.session_body(check_name(backend, field="backend"), mode, max_ttl)
        if body is None:
            return self.dialect.unbound_session(backend, mode, max_ttl)
        reply = await self.transport.request("POST", "/sessions", phase="open", body=body)
        try:
            return parsing.parse_session(reply.object()).ref()
        except QuantumRuntimeError as error:
            raise unreadable_create(reply, error) from None

    async def session(self, session_id: str) -> Session:
        """A session's state, times and limits."""
        return parsing.parse_session(await self._get(f"/sessions/{check_id(session_id, field='session')}"))

    async def stop_accepting(self, session_id: str) -> None:
        """Let the session's queued jobs run and take no new ones (`PATCH accepting_jobs=false`)."""
        path = f"/sessions/{check_id(session_id, field='session')}"
        await self.transport.request("PATCH", path, phase="change", body={"accepting_jobs": False})

    async def drop_session(self, session_id: str) -> None:
        """End the session now: its queued jobs are not run, a running one finishes (`DELETE …/close`)."""
        path = f"/sessions/{check_id(session_id, field='session')}/close"
        await self.transport.request("DELETE", path, phase="change")


def _query(filters: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The filters of a list as the service reads them; those that are None do not apply.

    The service ignores a filter that it does not know: the list would have everything in it.
    """
    for name in filters:
        if name not in known:
            raise InvalidInput(f"the list has no such filter. {nearest(name, known)}".strip(), field=name)
    return {name: _plain(name, value) for name, value in filters.items() if value is not None}


def _plain(name: str, value: Any) -> Any:
    if name in ("pending", "include_mocks"):
        return "true" if check_flag(value, field=name) else "false"
    if name.startswith("created_"):
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise InvalidInput(f"must be a datetime with a time zone, not {shown(value)}", field=name)
        return value.isoformat().replace("+00:00", "Z")
    return value if isinstance(value, str) else check_texts(value, field=name)


def _limit(value: Any) -> int | None:
    number = None if value is None else check_integer(value, field="limit")
    if number is not None and number < 0:
        raise InvalidInput(f"must be 0 or more, not {number}", field="limit")
    return number


def _cursor(body: dict[str, Any]) -> dict[str, list[str]] | None:
    """The query that `next.href` adds; only its parameters are used, never its host."""
    link = body.get("next")
    href = link.get("href") if isinstance(link, dict) else link
    if not isinstance(href, str) or not href:
        return None
    try:
        params = httpx.URL(href).params
    except httpx.InvalidURL as exc:
        raise QuantumRuntimeError(f"The address of the service's next page cannot be read: {exc}.") from None
    return {name: params.get_list(name) for name in params}
