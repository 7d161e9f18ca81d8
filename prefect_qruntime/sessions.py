"""Sessions that always close: context managers around `open_session` and `close_session`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from prefect.exceptions import Pause

from prefect_qruntime.admission.budget import BudgetLike
from prefect_qruntime.cancellation import cancelled_run, policy
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import QuantumRuntimeError
from prefect_qruntime.models import Backend, SessionRef
from prefect_qruntime.observability import notifications
from prefect_qruntime.tasks.sessions import (
    aclose_session,
    aopen_session,
    close,
    close_session,
    notes_opened,
    open_session,
)

__all__ = ["aruntime_session", "runtime_session"]


@contextmanager
def runtime_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
    budget: BudgetLike | None = None,
) -> Iterator[SessionRef]:
    """Open a session or batch for the `with` block and close it in every case.

    If the block ends normally, queued jobs still run. If it ends by an error or a user's cancellation, they are
    dropped, unless the flow has `hooks.detach` and was cancelled. If it ends because of an outage, a time limit, a
    process that is stopped (SIGTERM of a worker) or a suspended flow run, they live on, to be attached to, and the
    session closes after them.

    Args:
        credentials: The credentials block.
        backend: The backend or its name.
        mode: `dedicated` or `batch`.
        max_ttl: Longest life in seconds; default from the settings (two hours).
        budget: A `Budget` or the name of a saved one, which the session may use up but not exceed.

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
    opened: list[SessionRef] = []
    try:
        with notes_opened(opened):
            session = open_session(credentials, backend, mode=mode, max_ttl=max_ttl, budget=budget)
        opened[:] = [session]
        yield session
    except BaseException as left_by:
        if not opened:
            raise
        session = opened[0]
        try:
            drain = network_loop().run(_drains(left_by))
            if isinstance(left_by, Pause):  # a suspended flow run starts no more tasks
                network_loop().run(close(credentials, session, drain))
            else:
                _close(credentials, session, drain)
        except Exception as error:
            _report_open(session, error)
        raise
    _close(credentials, session, drain=True)


@asynccontextmanager
async def aruntime_session(
    credentials: QuantumRuntimeCredentials,
    backend: str | Backend,
    *,
    mode: str = "dedicated",
    max_ttl: int | None = None,
    budget: BudgetLike | None = None,
) -> AsyncIterator[SessionRef]:
    """As `runtime_session`, for async flows."""
    opened: list[SessionRef] = []
    try:
        with notes_opened(opened):
            session = await aopen_session(credentials, backend, mode=mode, max_ttl=max_ttl, budget=budget)
        opened[:] = [session]
        yield session
    except BaseException as left_by:
        if not opened:
            raise
        session = opened[0]
        # Prefect's timeout cancels again at every await; closing has its own time limits.
        with anyio.CancelScope(shield=True):
            try:
                drain = await network_loop().arun(_drains(left_by))
                if isinstance(left_by, Pause):
                    await close(credentials, session, drain)
                else:
                    await _aclose(credentials, session, drain)
            except Exception as error:
                _report_open(session, error)
        raise
    await _aclose(credentials, session, drain=True)


def _close(credentials: QuantumRuntimeCredentials, session: SessionRef, drain: bool) -> None:
    """Close the session in a task run, or without one if Prefect fails or the task run is interrupted (Ctrl-C)."""
    try:
        close_session(credentials, session, drain=drain)
    except QuantumRuntimeError:
        raise
    except BaseException as error:
        with _finishing(session, error):
            drain = drain and (isinstance(error, Exception) or network_loop().run(_drains(error)))
            network_loop().run(close(credentials, session, drain))


async def _aclose(credentials: QuantumRuntimeCredentials, session: SessionRef, drain: bool) -> None:
    """As `_close`, for async flows."""
    try:
        await aclose_session(credentials, session, drain=drain)
    except QuantumRuntimeError:
        raise
    except BaseException as error:
        with _finishing(session, error), anyio.CancelScope(shield=True):
            drain = drain and (isinstance(error, Exception) or await network_loop().arun(_drains(error)))
            await close(credentials, session, drain)


async def _drains(left_by: BaseException) -> bool:
    """Whether queued jobs still run after a block that ended by `left_by`.

    If a user cancelled the flow run, its policy decides, whatever error that became in the block. Else an error drops
    them. An outage, a time limit, a suspension and the loss of the process do not: the flow may run again and attach
    to them, while the session takes no more jobs.
    """
    if isinstance(left_by, Pause):
        return True
    failed = isinstance(left_by, Exception)
    if await cancelled_run(level=logging.DEBUG if failed else logging.WARNING) is not None:
        return policy() == "detach"
    if failed:
        from prefect_qruntime.client.session_core import says_nothing_about_jobs

        return says_nothing_about_jobs(left_by)
    return True


@contextmanager
def _finishing(session: SessionRef, stopped_by: BaseException) -> Iterator[None]:
    """Around the closing of a session without a task run, after the task run was stopped."""
    what = f"{type(stopped_by).__name__}: {stopped_by}".removesuffix(": ")
    notifications.log_to_run(
        f"The task run that closes session {_name(session)} was stopped ({what}). The session is closed without one.",
        level=logging.WARNING,
    )
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):  # stopped again; any other error is reported by who catches it
            _report_open(session, error)
        raise
    if not isinstance(stopped_by, Exception):
        raise stopped_by


def _report_open(session: SessionRef, error: BaseException) -> None:
    # The error that ended the block is the one to raise; the session is left to the sweep.
    notifications.log_to_run(
        f"Session {_name(session)} could not be closed: {type(error).__name__}: {error}. It may still be open and "
        "charging. `prefect-qruntime sweep` closes it once its flow run is over.",
        level=logging.ERROR,
    )


def _name(session: SessionRef) -> str:
    return session.id or "(opened by its first job)"
