"""Tasks that open and close sessions and batches."""

from __future__ import annotations

from prefect_qruntime import arguments, work
from prefect_qruntime.arguments import SessionLike
from prefect_qruntime.client.home import home
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import InvalidInput
from prefect_qruntime.models import Backend, SessionRef
from prefect_qruntime.tasks.kinds import once, repeatable

__all__ = ["aclose_session", "aopen_session", "close_session", "open_session"]


@once("open session", "open {mode} session on {backend}")
def open_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
) -> SessionRef:
    """Open a session or a batch. Costs money from its first job on; prefer `runtime_session`, which closes it.

    Args:
        credentials: The credentials block.
        backend: Where.
        mode: `dedicated` keeps the QPU between jobs and is charged by the clock; `batch` is not.
        max_ttl: Longest life in seconds; default from the settings (two hours).

    Returns:
        The session. In the legacy dialect it has no id until its first job is accepted.

    Raises:
        PermissionDenied: The plan has no dedicated sessions (code 1352): use `batch`.
        SubmissionUncertain: The answer was lost and looking did not settle it.
    """
    return home().run(work.open_session(credentials, arguments.plain_backend(backend), mode, max_ttl))


@once("open session", "open {mode} session on {backend}")
async def aopen_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
) -> SessionRef:
    """As `open_session`, for async flows."""
    return await home().arun(work.open_session(credentials, arguments.plain_backend(backend), mode, max_ttl))


@repeatable("close session", "close {session}")
def close_session(credentials: QuantumRuntimeCredentials, session: SessionLike, *, drain: bool = True) -> SessionRef:
    """Close a session or batch and read back that it is closed.

    Args:
        credentials: The credentials block.
        session: The session or its id.
        drain: True lets queued jobs run first, False drops them; a running one finishes either way.

    Returns:
        The session as read back.
    """
    ref = arguments.as_session(session)
    if ref is None:
        raise InvalidInput("must be a SessionRef or a session id", field="session")
    return home().run(work.close_session(credentials, ref, drain))


@repeatable("close session", "close {session}")
async def aclose_session(
    credentials: QuantumRuntimeCredentials, session: SessionLike, *, drain: bool = True
) -> SessionRef:
    """As `close_session`, for async flows."""
    ref = arguments.as_session(session)
    if ref is None:
        raise InvalidInput("must be a SessionRef or a session id", field="session")
    return await home().arun(work.close_session(credentials, ref, drain))
