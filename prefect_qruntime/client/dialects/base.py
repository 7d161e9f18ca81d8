"""The interface of a dialect: paths, headers and bodies.

Callers use a `Dialect` and never ask which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.inputs.spec import JobSpec
from prefect_qruntime.client.parsing import read_id
from prefect_qruntime.models import JobRef, SessionRef

__all__ = ["Dialect"]


class Dialect:
    """What both dialects share; each one overrides what differs."""

    name = ""
    offers_stream = False
    """Whether hosts of this dialect are known to have the job websocket."""
    backends_query: Mapping[str, str] = {}
    """Fields that `GET /backends` returns only on request."""

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
        """The body of `POST /sessions`, or None if a session begins with its first job."""
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
