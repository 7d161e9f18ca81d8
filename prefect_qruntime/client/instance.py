"""The calls about the instance itself: token, versions, usage, workloads, backends."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import httpx

from prefect_qruntime.client import parsing
from prefect_qruntime.client.connection import Connection, check_name
from prefect_qruntime.client.failures import Phase
from prefect_qruntime.client.network_loop import network_loop, on_network_loop
from prefect_qruntime.client.service import ServiceConnection, connection_of
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Backend, Usage

__all__ = ["MOST_PAGES", "InstanceCalls", "plain"]

T = TypeVar("T")
MOST_PAGES = 50


class InstanceCalls:
    """What `QuantumRuntimeClient` knows of an instance, and how it reaches the service."""

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

    def _wire(self) -> ServiceConnection:
        return connection_of(self.connection, self._patience)

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

    @on_network_loop
    async def authenticate(self) -> float:
        """Exchange the key if needed. Returns the token's remaining life in seconds, never the token.

        Raises:
            AuthenticationError: IAM does not know the key.
        """
        wire = self._wire()
        await wire.tokens.get()
        return wire.tokens.seconds_left or 0.0

    @on_network_loop
    async def clock_skew(self) -> float | None:
        """Seconds by which IAM's clock is ahead of this machine's, by its last token; None before one."""
        return self.known_clock_skew()

    def known_clock_skew(self) -> float | None:
        """As `clock_skew`, for code that runs on the network loop."""
        return self._wire().tokens.clock_skew

    @on_network_loop
    async def versions(self) -> tuple[str, ...]:
        """API versions the service offers."""
        return parsing.parse_versions(await self._get("/versions"))

    @on_network_loop
    async def usage(self) -> Usage:
        """QPU seconds of the instance in its current period."""
        return parsing.parse_usage(await self._get("/instances/usage"))

    @on_network_loop
    async def instance(self) -> dict[str, Any]:
        """The instance's plan, backends and limits, as the service gives them."""
        return await self._get("/instance")

    @on_network_loop
    async def instance_configuration(self) -> dict[str, Any]:
        """The instance's configuration (`instance_limit` in seconds)."""
        return await self._get("/instances/configuration")

    @on_network_loop
    async def workloads(self, *, limit: int | None = None, **filters: Any) -> list[dict[str, Any]]:
        """Workloads (jobs, batches, sessions), newest first, following the service's cursor.

        Args:
            limit: Most items to return; None for all.
            filters: `mode`, `status`, `backend`, `tags`, `created_after`, `created_before` …
        """
        found: list[dict[str, Any]] = []
        params: dict[str, Any] = {k: plain(v) for k, v in filters.items() if v is not None}
        params["limit"] = min(50, limit or 50)
        for _ in range(MOST_PAGES):
            body = await self._get("/workloads", params=params)
            found += [item for item in body.get("workloads") or () if isinstance(item, dict)]
            cursor = _cursor(body)
            if cursor is None or (limit is not None and len(found) >= limit):
                break
            params.update(cursor)
        return found[:limit]

    # ---- backends ------------------------------------------------------------------------------

    @on_network_loop
    async def backends(self) -> list[Backend]:
        """All backends of the instance, with status, queue and size."""
        query = dict(self._wire().dialect.backends_query)
        listed = parsing.parse_backends(await self._get("/backends", params=query or None))
        whole = []
        for backend in listed:
            if backend.status == "unknown" and backend.num_qubits is None:  # only its name was given
                status = await self._get(f"/backends/{check_name(backend.name, field='backend')}/status")
                configuration = await self._get(f"/backends/{backend.name}/configuration")
                backend = parsing.complete_backend(backend, status, configuration)
            whole.append(backend)
        return whole

    @on_network_loop
    async def backend_status(self, name: str) -> dict[str, Any]:
        """State and queue length of a backend."""
        return await self._get(f"/backends/{check_name(name, field='backend')}/status")

    @on_network_loop
    async def backend_configuration(self, name: str) -> dict[str, Any]:
        """Qubits, basis gates, coupling map and limits of a backend."""
        return await self._get(f"/backends/{check_name(name, field='backend')}/configuration")

    @on_network_loop
    async def backend_properties(self, name: str) -> dict[str, Any]:
        """Calibration data of a backend."""
        return await self._get(f"/backends/{check_name(name, field='backend')}/properties")


def plain(value: Any) -> Any:
    """A query value as the service reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def _cursor(body: dict[str, Any]) -> dict[str, list[str]] | None:
    """The query that `next.href` adds; only its parameters are used, never its host."""
    link = body.get("next")
    href = link.get("href") if isinstance(link, dict) else link
    if not isinstance(href, str) or not href:
        return None
    try:
        params = httpx.URL(href).params
    except httpx.InvalidURL as exc:
        raise QuantumRuntimeError(f"the service's next page has no usable address: {exc}") from None
    return {name: params.get_list(name) for name in params}
