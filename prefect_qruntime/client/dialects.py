"""The two dialects of one service: paths, headers and bodies.

Everything above asks a `Dialect` and never which one it is. Sources: IBM's OpenAPI document 0.45.3 and
the Qiskit Runtime client 0.51 for `cloud`; the Qiskit Runtime clients 0.1 to 0.20 and IBM's migration
guides for `legacy` (switched off in July 2025, kept for mirrors and tests).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.inputs import v1_params, v2_params
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.parsing import read_id
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import JobRef, SessionRef

__all__ = ["Cloud", "Dialect", "Legacy", "dialect_of"]


class Dialect:
    """What both dialects share; each one overrides what differs."""

    name = "cloud"
    offers_stream = False
    """Whether hosts of this dialect are known to have the job websocket."""
    backends_query: Mapping[str, str] = {}
    """What `GET /backends` must be asked for beyond what it says by itself."""

    def headers(self, connection: Connection) -> dict[str, str]:
        """Headers of every request, authorization aside."""
        raise NotImplementedError

    def job_body(self, spec: JobSpec, tags: tuple[str, ...], session: SessionRef | None) -> dict[str, Any]:
        """The body of `POST /jobs`."""
        body: dict[str, Any] = {
            "program_id": spec.wire_program,
            "backend": spec.backend,
            "params": self.params(spec),
            "tags": list(tags),
        }
        if spec.max_execution_time is not None:
            body["cost"] = spec.max_execution_time
        if spec.private:
            body["private"] = True
        self._put_session(body, session)
        return body

    def params(self, spec: JobSpec) -> dict[str, Any]:
        """The program's own payload."""
        raise NotImplementedError

    def _put_session(self, body: dict[str, Any], session: SessionRef | None) -> None:
        if session is not None and session.id is not None:
            body["session_id"] = session.id

    def created(self, body: dict[str, Any], spec: JobSpec, session: SessionRef | None) -> JobRef:
        """Read the answer to `POST /jobs`."""
        job_id = read_id(body.get("id"), "accepted job")
        backend = body.get("backend")
        return JobRef(
            id=job_id,
            backend=backend if isinstance(backend, str) else spec.backend,
            program_id=spec.program_id,
            session=self._bind(body, session),
            private=spec.private,
            widths=spec.widths,
        )

    def _bind(self, body: dict[str, Any], session: SessionRef | None) -> SessionRef | None:
        return session

    def session_body(self, backend: str, mode: str, max_ttl: int | None) -> dict[str, Any] | None:
        """The body of `POST /sessions`, or None where a session begins with its first job."""
        body: dict[str, Any] = {"mode": mode, "backend": backend}
        if max_ttl is not None:
            body["max_ttl"] = max_ttl
        return body

    def unbound_session(self, backend: str, mode: str, max_ttl: int | None) -> SessionRef:
        """A session that its first job will make."""
        return SessionRef(
            mode="batch" if mode == "batch" else "dedicated",
            backend=backend,
            max_ttl=max_ttl,
        )

    def stream_path(self, job_id: str) -> str:
        """Where the job's websocket is, if there is one."""
        return f"/stream/jobs/{job_id}"


class Cloud(Dialect):
    """The present IBM Quantum Compute Service."""

    name = "cloud"
    backends_query: Mapping[str, str] = {"fields": "wait_time_seconds"}

    def headers(self, connection: Connection) -> dict[str, str]:
        """The version is always sent: without one the service falls back to an old default."""
        return {
            "IBM-API-Version": connection.api_version,
            "X-Qx-Client-Application": connection.application,
        }

    def params(self, spec: JobSpec) -> dict[str, Any]:
        """V2 PUBs, or the raw payload."""
        return v2_params(spec)


class Legacy(Dialect):
    """The service of 2022 to 2024."""

    name = "legacy"
    offers_stream = True

    def headers(self, connection: Connection) -> dict[str, str]:
        """The service asked for this prefix in the application's name."""
        return {"x-qx-client-application": f"qiskit-version-2/0.39.2/{connection.application}"}

    def params(self, spec: JobSpec) -> dict[str, Any]:
        """V1 `circuits`, or the raw payload."""
        return v1_params(spec)

    def _put_session(self, body: dict[str, Any], session: SessionRef | None) -> None:
        if session is None:
            return
        if session.id is not None:
            body["session_id"] = session.id
            return
        body["start_session"] = True
        if session.max_ttl is not None:
            body["session_time"] = session.max_ttl

    def _bind(self, body: dict[str, Any], session: SessionRef | None) -> SessionRef | None:
        if session is None or session.id is not None:
            return session
        return session.model_copy(update={"id": read_id(body.get("session_id") or body.get("id"), "session")})

    def session_body(self, backend: str, mode: str, max_ttl: int | None) -> dict[str, Any] | None:
        """Nothing to send: the first job opens the session."""
        return None


_DIALECTS: dict[str, Dialect] = {"cloud": Cloud(), "legacy": Legacy()}


def dialect_of(connection: Connection) -> Dialect:
    """The dialect a connection speaks."""
    try:
        return _DIALECTS[connection.dialect]
    except KeyError:
        raise InvalidInput("must be 'cloud' or 'legacy'", field="dialect") from None
