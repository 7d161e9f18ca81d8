"""`QuantumRuntimeClient`: every call of the service, one method each, safe from any event loop.

Usable without Prefect. Methods are coroutines that may be awaited from any loop. Each passes to the process's network
loop once; there it calls `Service`, or what loops over it (submission, sessions, waiting, fetching).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn, TypeVar, Unpack

from prefect_qruntime.client.connection import Connection, check_id
from prefect_qruntime.client.cost_core import CostEstimate, PastJob, estimate
from prefect_qruntime.client.dialects import dialect_of
from prefect_qruntime.client.fetching import fetch_result
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.network_loop import network_loop, on_network_loop
from prefect_qruntime.client.programs import make_spec
from prefect_qruntime.client.provenance import Calibration
from prefect_qruntime.client.results.job_result import JobResult
from prefect_qruntime.client.service import JobFilters, Service
from prefect_qruntime.client.submission import Intent, submit_or_attach
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.client.transport.spool import BodyStore
from prefect_qruntime.client.waiting.job_list import Page
from prefect_qruntime.client.waiting.plan import Deadlines, PollIntervals
from prefect_qruntime.client.waiting.poller import JobPoller, OnChange, OnTimeout, Stream, follow_job
from prefect_qruntime.client.waiting.subscription import Ending, JobStream
from prefect_qruntime.errors import InvalidInput, QuantumRuntimeError
from prefect_qruntime.models import Backend, Job, JobRef, Session, SessionRef, Usage

__all__ = ["QuantumRuntimeClient"]

T = TypeVar("T")

_REFUSED_FOR = 300.0  # seconds


class _Service(Service):
    """The calls, with two that only the poller needs: the websocket and one page of the list."""

    async def list_page(self, page: Page) -> list[dict[str, Any]]:
        """Read one page of the job list as the service sends it, newest first, giving up quickly."""
        entries, _ = await self.job_page(
            phase="wait", limit=page.limit, offset=page.offset, created_before=page.created_before
        )
        return entries

    def job_stream(self, job_id: str, wake: Callable[[], None], stream: Stream) -> JobStream | None:
        """The job's websocket, or None if there is none to try."""
        if stream == "never" or not (stream == "always" or self.dialect.offers_stream):
            return None
        if time.monotonic() < self.stream_refused + _REFUSED_FOR:
            return None
        return JobStream(self.transport, self.dialect.stream_path(job_id), wake)

    def stream_ended(self, ending: Ending) -> None:
        """Remember for a while that a host refused a websocket; the refusal may concern one job or be transient."""
        if ending == "refused":
            self.stream_refused = time.monotonic()


def service_of(connection: Connection, patience: RetryDeadlines | None = None) -> _Service:
    """The service of a connection, the same for every caller of this process. Only on the network loop."""
    here, key = network_loop(), (connection.fingerprint, repr(patience))
    service = here.find(_Service, *key)
    if service is None:
        service = here.keep(_Service(connection, patience), *key)
        here.on_close(service.http.aclose)
    if connection.block is not None:
        service.transport.blocks.add(connection.block)
    return service


class QuantumRuntimeClient:
    """A client of one instance, in either dialect.

    Args:
        connection: Address and credentials.
        patience: How long calls are retried; the default suits unattended flows.

    Example:
        ```python
        from prefect_qruntime import QuantumRuntimeCredentials

        client = QuantumRuntimeCredentials.load("BLOCK_NAME").get_client()
        backends = client.run(client.backends())
        ```
    """

    def __init__(self, connection: Connection, *, patience: RetryDeadlines | None = None) -> None:
        self.connection = connection
        self._patience = patience

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.host}, {self.connection.dialect})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client holds an API key and is not pickled; pass the credentials block instead")

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run one of the client's coroutines from code without an event loop and block until it ends."""
        return network_loop().run(work)

    def _service(self) -> _Service:
        """The calls of this connection, shared by all clients of it in this process. Only on the network loop."""
        return service_of(self.connection, self._patience)

    def _poller(self) -> JobPoller:
        """The one poller of this connection."""
        here, key = network_loop(), (self.connection.fingerprint, repr(self._patience))
        return here.find(JobPoller, *key) or here.keep(JobPoller(self._service()), *key)

    # ---- the instance --------------------------------------------------------------------------

    @on_network_loop
    async def authenticate(self) -> float:
        """Exchange the key if needed. Returns the token's remaining life in seconds, never the token.

        Raises:
            AuthenticationError: IAM does not know the key.
        """
        return await self._service().authenticate()

    @on_network_loop
    async def clock_skew(self) -> float | None:
        """Seconds by which IAM's clock is ahead of this machine's, by its last token; None before one."""
        return self.known_clock_skew()

    def known_clock_skew(self) -> float | None:
        """As `clock_skew`, for code that runs on the network loop."""
        return self._service().tokens.clock_skew

    @on_network_loop
    async def versions(self) -> tuple[str, ...]:
        """API versions the service offers."""
        return await self._service().versions()

    @on_network_loop
    async def usage(self) -> Usage:
        """QPU seconds of the instance in its current period."""
        return await self._service().usage()

    @on_network_loop
    async def instance(self) -> dict[str, Any]:
        """The instance's plan, backends and limits, as the service gives them."""
        return await self._service().instance()

    @on_network_loop
    async def instance_configuration(self) -> dict[str, Any]:
        """The instance's configuration (`instance_limit` in seconds)."""
        return await self._service().instance_configuration()

    @on_network_loop
    async def workloads(self, *, limit: int | None = None, **filters: Any) -> list[dict[str, Any]]:
        """Workloads (jobs, batches, sessions), newest first, following the service's cursor.

        Args:
            limit: Most items to return; None for all.
            filters: `mode`, `status`, `backend`, `tags`, `created_after`, `created_before` …
        """
        return await self._service().workloads(limit=limit, **filters)

    @on_network_loop
    async def backends(self) -> list[Backend]:
        """All backends of the instance, with status, queue and size."""
        return await self._service().backends()

    @on_network_loop
    async def backend_status(self, name: str) -> dict[str, Any]:
        """State and queue length of a backend."""
        return await self._service().backend_status(name)

    @on_network_loop
    async def backend_configuration(self, name: str) -> dict[str, Any]:
        """Qubits, basis gates, coupling map and limits of a backend."""
        return await self._service().backend_configuration(name)

    @on_network_loop
    async def backend_properties(self, name: str, *, calibration_id: str | None = None) -> dict[str, Any]:
        """Calibration data of a backend: the present ones, or those of a calibration."""
        return await self._service().backend_properties(name, calibration_id=calibration_id)

    @on_network_loop
    async def estimate_cost(self, pubs: Any, *, past: Sequence[PastJob] = (), **fields: Any) -> CostEstimate:
        """Estimate the QPU seconds of one job without submitting it; reads the instance's usage.

        Args:
            pubs: PUBs, as `submit_job` takes them.
            past: Finished jobs of the same backend and program, newest first; the client keeps none itself.
            fields: `backend`, `shots`, `options` and the other parameters of `make_spec`.

        Raises:
            InvalidInput: A field is wrong; it is named.
        """
        spec = await asyncio.to_thread(lambda: make_spec(pubs, **fields))
        return estimate([spec], past, remaining_seconds=(await self._service().usage()).remaining_seconds)

    # ---- jobs ----------------------------------------------------------------------------------

    @on_network_loop
    async def submit(self, intent: Intent, **hooks: Any) -> JobRef:
        """Submit the intent's one job, or attach to it. See `submission.submit_or_attach`."""
        service = self._service()
        try:
            ref = await submit_or_attach(service, intent, scope=self.connection.instance, **hooks)
        except QuantumRuntimeError as error:
            await service.suggest_backend(error, intent.spec.backend)
            raise
        if not ref.attached:
            self._poller().note(ref.id)
        return ref

    @on_network_loop
    async def post_job(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> JobRef:
        """Send one `POST /jobs`. Creates one job; prefer `submit`, which survives a lost answer."""
        ref = await self._service().post_job(spec, tags, session)
        self._poller().note(ref.id)
        return ref

    @on_network_loop
    async def job(self, job_id: str) -> Job:
        """Read the job's present state, without its input."""
        return await self._service().job(job_id)

    @on_network_loop
    async def fetch_job(self, job_id: str) -> Job:
        """As `job`, giving up quickly."""
        return await self._service().fetch_job(job_id)

    @on_network_loop
    async def job_input(self, job_id: str) -> dict[str, Any]:
        """The job's `params`, as the service kept them."""
        return await self._service().job_input(job_id)

    @on_network_loop
    async def jobs(
        self, *, tags: Iterable[str] = (), limit: int | None = None, mocks: bool = False, **filters: Unpack[JobFilters]
    ) -> list[Job]:
        """Jobs of the instance, newest first, that carry all of the tags. See `Service.jobs`."""
        return await self._service().jobs(tags=tags, limit=limit, mocks=mocks, **filters)

    async def jobs_tagged(self, tag: str, *, mocks: bool = False) -> list[Job]:
        """All jobs that carry `tag` exactly; those on mock backends on request."""
        return await self.jobs(tags=(tag,), mocks=mocks)

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
        known: bool = False,
    ) -> Job:
        """Wait until the job is over, through outages. See `waiting.poller.follow_job`.

        All waits of this process on the instance share one poller.
        """
        return await follow_job(
            self._service(),
            check_id(job_id, field="job"),
            watcher=self._poller(),
            deadlines=deadlines or Deadlines(),
            on_timeout=on_timeout,
            stream=stream,
            in_session=in_session,
            pace=pace,
            on_change=on_change,
            known=known,
        )

    @on_network_loop
    async def look(self, job_id: str, *, deadlines: Deadlines | None = None, known: bool = False) -> Job:
        """Read the job's state as `wait` does: sit out a short outage, and believe a refusal only if it repeats.

        Raises:
            JobTimeout: No answer for longer than a refusal must repeat; `is_outage` is set.
            NotFound: There is no such job.
            QuantumRuntimeError: The service refused to show it.
        """
        limits = (deadlines or Deadlines()).check()
        return await follow_job(
            self._service(),
            check_id(job_id, field="job"),
            watcher=self._poller(),
            deadlines=replace(limits, outage=1.25 * max(limits.refused, limits.unseen, limits.unknown)),
            stream="never",
            once=True,
            known=known,
        )

    @on_network_loop
    async def result(self, job: JobRef | str, *, grace: float = 15.0, shelf: BodyStore | None = None) -> JobResult:
        """The job's result and its provenance; with a `shelf`, a large one goes to a file.

        Args:
            job: The job or its id.
            grace: Seconds for which a result that is not there yet is waited for.
            shelf: Where a large result is stored; None keeps it in memory.

        Raises:
            QuantumRuntimeError: See `fetching.fetch_result`.
        """
        ref = JobRef(id=job) if isinstance(job, str) else job
        check_id(ref.id, field="job")
        if isinstance(grace, bool) or not (isinstance(grace, int | float) and 0 <= grace < math.inf):
            raise InvalidInput("must be a number of seconds, 0 or more", field="grace")
        service, known = self._service(), self._poller().knows(ref.id)
        result = await fetch_result(service.transport, service.fetch_job, ref, grace=grace, known=known, shelf=shelf)
        # The only copy of a private result is in a file at first, whatever its size.
        reference = result.file is not None and not (shelf is not None and shelf.only_copy)
        origin = await service.provenance.of(ref, small=reference)
        return result.model_copy(update={"provenance": origin})

    def look_at_calibration(self, job: Job) -> asyncio.Task[Calibration] | None:
        """Read the properties of a job's backend in the background, once for each calibration.

        For code that runs on the network loop. Results that are fetched then carry them as their provenance.
        """
        return self._service().provenance.look(job)

    def note_times(self, job_id: str, queue_seconds: float | None, run_seconds: float | None) -> None:
        """Keep the times of a job, as a wait observed them, for its provenance. On the network loop."""
        self._service().provenance.timed(job_id, queue_seconds, run_seconds)

    @on_network_loop
    async def cancel(self, job_id: str) -> Job:
        """Cancel a job and read back what became of it. A job that is over already is left as it is.

        Waits for it in this process end at once. The service may take a while to end a running job; its state is
        read until it says so, for five seconds at most.
        """
        service = self._service()
        job = await service.cancel(job_id)
        if job.is_terminal:
            self._poller().hurry_for(job_id)
        return job

    @on_network_loop
    async def delete_job(self, job_id: str) -> None:
        """Delete a finished job and its data from the service."""
        await self._service().delete_job(job_id)

    @on_network_loop
    async def logs(self, job_id: str) -> str:
        """The job's log text; empty if there is none."""
        return await self._service().logs(job_id)

    @on_network_loop
    async def metrics(self, job_id: str) -> dict[str, Any]:
        """Timestamps, usage and execution times of a job."""
        return await self._service().metrics(job_id)

    @on_network_loop
    async def replace_tags(self, job_id: str, tags: Iterable[str]) -> None:
        """Replace all tags of a job. Dropping its `qr-key:` tag makes it unfindable for a repeated run."""
        await self._service().replace_tags(job_id, tags)

    # ---- sessions ------------------------------------------------------------------------------

    @on_network_loop
    async def open_session(self, backend: str, *, mode: str = "dedicated", max_ttl: int | None = None) -> SessionRef:
        """Open a session or batch; its clock starts with its first job.

        If a session begins with its first job (legacy), nothing is sent and the session is unbound. It is no batch.
        """
        from prefect_qruntime.client import sessions  # only here, as few jobs are in one

        service = self._service()
        try:
            return await sessions.open_session(
                service, backend, mode=mode, max_ttl=max_ttl, scope=self.connection.instance
            )
        except QuantumRuntimeError as error:
            await service.suggest_backend(error, backend)
            raise

    @on_network_loop
    async def close_session(self, session_id: str, *, drain: bool) -> Session | None:
        """Close a session and read back that it is. See `sessions.close_session`."""
        from prefect_qruntime.client import sessions

        service = self._service()
        session = await sessions.close_session(service, session_id, drain=drain)
        if session is None or session.ref().is_closed:
            service.forget_session(session_id)
        return session

    @on_network_loop
    async def post_session(self, backend: str, *, mode: str, max_ttl: int | None) -> SessionRef:
        """Send one `POST /sessions`; prefer `open_session`, which survives a lost answer."""
        return await self._service().post_session(backend, mode=mode, max_ttl=max_ttl)

    @on_network_loop
    async def session(self, session_id: str) -> Session:
        """A session's state, times and limits."""
        return await self._service().session(session_id)

    @on_network_loop
    async def stop_accepting(self, session_id: str) -> None:
        """Let the session's queued jobs run and take no new ones (`PATCH accepting_jobs=false`)."""
        await self._service().stop_accepting(session_id)

    @on_network_loop
    async def drop_session(self, session_id: str) -> None:
        """End the session now: its queued jobs are not run, a running one finishes (`DELETE …/close`)."""
        await self._service().drop_session(session_id)

    def session_mode(self, mode: str) -> Literal["dedicated", "batch"]:
        """What is opened in a mode: a dedicated session, charged by the clock, or a batch, charged for its jobs."""
        return dialect_of(self.connection).session_mode(mode)

    # ---- the websocket -------------------------------------------------------------------------

    @property
    def expects_stream(self) -> bool:
        """Whether hosts of this dialect are known to have the job websocket."""
        return dialect_of(self.connection).offers_stream

    @on_network_loop
    async def knock(self, job_id: str) -> str | None:
        """Open a job's websocket and close it again; returns why it does not open, None if it does."""
        stream = self._service().job_stream(check_id(job_id, field="job"), lambda: None, "always")
        return "it was refused before" if stream is None else await stream.knock()
