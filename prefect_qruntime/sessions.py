"""Sessions that always close: context managers around `open_session` and `close_session`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from prefect_qruntime import observe
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Backend, SessionRef
from prefect_qruntime.tasks import aclose_session, aopen_session, close_session, open_session

__all__ = ["aruntime_session", "runtime_session"]


@contextmanager
def runtime_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
) -> Iterator[SessionRef]:
    """Open a session or batch for the `with` block and close it whatever happens.

    Left normally, queued jobs still run; left by an error or a cancellation, queued jobs are dropped.

    Args:
        credentials: The credentials block.
        backend: Where.
        mode: `dedicated` or `batch`.
        max_ttl: Longest life in seconds; default from the settings (two hours).

    Yields:
        The session to pass to `submit_job` or `run_job`. In the legacy dialect the first job opens it,
        and other submits wait for that one.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, run_job, runtime_session

        @flow
        def five(credentials_block: str, circuit: str, backend: str) -> list[dict[str, int]]:
            credentials = QuantumRuntimeCredentials.load(credentials_block)
            with runtime_session(credentials, backend, max_ttl=600) as session:
                return [run_job(credentials, [circuit], backend=backend, session=session).counts() for _ in range(5)]
        ```
    """
    session = open_session(credentials, backend, mode=mode, max_ttl=max_ttl)
    try:
        yield session
    except BaseException:
        _close_after_error(lambda: close_session(credentials, session, drain=False), session)
        raise
    close_session(credentials, session, drain=True)


@asynccontextmanager
async def aruntime_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
) -> AsyncIterator[SessionRef]:
    """As `runtime_session`, for async flows."""
    session = await aopen_session(credentials, backend, mode=mode, max_ttl=max_ttl)
    try:
        yield session
    except BaseException:
        try:
            await aclose_session(credentials, session, drain=False)
        except QuantumRuntimeError as error:
            _not_closed(session, error)
        raise
    await aclose_session(credentials, session, drain=True)


def _close_after_error(close: object, session: SessionRef) -> None:
    try:
        close()  # type: ignore[operator]
    except QuantumRuntimeError as error:
        _not_closed(session, error)


def _not_closed(session: SessionRef, error: QuantumRuntimeError) -> None:
    # The error that ended the block is the one to report; the session is left to the sweep.
    observe.say(
        f"session {session.id} could not be closed: {error}; `prefect-qruntime sweep` looks after it",
        level=logging.ERROR,
    )
