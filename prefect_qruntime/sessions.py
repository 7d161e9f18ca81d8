"""Sessions that always close: context managers around `open_session` and `close_session`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from prefect.exceptions import Pause

from prefect_qruntime.cancellation import cancelled_by_user, policy
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.session_core import says_nothing_about_jobs
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Backend, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.tasks.sessions import aclose_session, aopen_session, close, close_session, open_session

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

    Left normally, queued jobs still run; left by an error or a user's cancellation, they are dropped; left
    because of an outage, because the process goes away (SIGTERM of a worker) or because the flow run is suspended,
    they run on, to be attached to, and the session closes after them.

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
    except BaseException as left_by:
        try:
            if isinstance(left_by, Pause):  # a suspended flow run starts no task any more
                network_loop().run(close(credentials, session, drain=True))
            else:
                close_session(credentials, session, drain=network_loop().run(_drains(left_by)))
        except QuantumRuntimeError as error:
            _not_closed(session, error)
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
    except BaseException as left_by:
        try:
            if isinstance(left_by, Pause):
                await close(credentials, session, drain=True)
            else:
                await aclose_session(credentials, session, drain=await network_loop().arun(_drains(left_by)))
        except QuantumRuntimeError as error:
            _not_closed(session, error)
        raise
    await aclose_session(credentials, session, drain=True)


async def _drains(left_by: BaseException) -> bool:
    """Whether queued jobs still run when a block was left by `left_by`.

    An error or a user's cancellation drops them. An outage and the loss of the process do not: the flow may run
    again and attach to them; the session just takes no more.
    """
    if isinstance(left_by, Exception):
        return says_nothing_about_jobs(left_by)
    return policy() == "detach" or not await cancelled_by_user()


def _not_closed(session: SessionRef, error: QuantumRuntimeError) -> None:
    # The error that ended the block is the one to report; the session is left to the sweep.
    notifications.log_to_run(
        f"session {session.id} could not be closed: {error}; `prefect-qruntime sweep` looks after it",
        level=logging.ERROR,
    )
