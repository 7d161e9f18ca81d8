"""What callers pass to the tasks, checked and brought into one form each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect_qruntime.client.inputs import check_isa as isa_check
from prefect_qruntime.client.inputs import make_spec, transpile_pubs
from prefect_qruntime.connection import check_id
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Backend, Job, JobRef, SessionRef
from prefect_qruntime.spec import JobSpec

__all__ = ["JobLike", "Plan", "SessionLike", "as_job", "as_session", "configuration", "plain_backend", "plan"]

JobLike = JobRef | Job | str
SessionLike = SessionRef | str


def as_job(job: JobLike) -> JobRef:
    """A handle from whatever names a job.

    Raises:
        InvalidInput: It names none.
    """
    if isinstance(job, Job):
        job = job.ref()
    if isinstance(job, str):
        return JobRef(id=check_id(job.strip(), field="job"), private=None)
    if isinstance(job, JobRef):
        check_id(job.id, field="job")
        return job
    raise InvalidInput("must be a JobRef, a Job or a job id", field="job")


def as_session(session: SessionLike | None) -> SessionRef | None:
    """A session handle from whatever names one.

    Raises:
        InvalidInput: It names none.
    """
    if session is None:
        return None
    if isinstance(session, str):
        return SessionRef(id=check_id(session.strip(), field="session"))
    if isinstance(session, SessionRef):
        if session.id is not None:
            check_id(session.id, field="session")
        return session
    raise InvalidInput("must be a SessionRef or a session id", field="session")


def plain_backend(backend: Any) -> str:
    """The name, from a name or a `Backend`."""
    if isinstance(backend, Backend):
        return backend.name
    if isinstance(backend, str):
        return backend
    raise InvalidInput("must be a Backend or its name", field="backend")


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked submission, and the digest that identifies what was wanted.

    The digest is that of the circuits as given: transpiled for another backend, they are still the same work.
    `transpiled` says that those of `spec` are made for its backend.
    """

    spec: JobSpec
    digest: str
    transpiled: bool = False


async def configuration(
    credentials: QuantumRuntimeCredentials, backend: str | Backend, *, needed: bool
) -> dict[str, Any] | None:
    """The backend's configuration, where a check or a transpilation needs it."""
    return await credentials.get_client().backend_configuration(plain_backend(backend)) if needed else None


def plan(
    pubs: Any,
    *,
    configuration: dict[str, Any] | None,
    check_isa: bool,
    transpile: bool,
    program_id: str,
    **fields: Any,
) -> Plan:
    """Check everything that costs nothing to check; transpile only if asked to.

    Raises:
        InvalidInput: A field is wrong; it is named.
    """
    spec = make_spec(pubs, program_id=program_id, **fields)
    digest = spec.digest()
    transpiled = configuration is not None and transpile
    if configuration is not None and transpile:
        spec = make_spec(transpile_pubs(pubs, configuration, program_id=program_id), program_id=program_id, **fields)
    if configuration is not None and check_isa:
        isa_check(spec, configuration)
    return Plan(spec, digest, transpiled)
