"""Tasks that read what an instance has: rights, backends, usage."""

from __future__ import annotations

from prefect_qruntime import work
from prefect_qruntime.client.home import home
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.models import Backend, InstanceReport, Usage
from prefect_qruntime.tasks.kinds import repeatable

__all__ = [
    "aauthenticate",
    "aget_usage",
    "alist_backends",
    "aselect_backend",
    "authenticate",
    "get_usage",
    "list_backends",
    "select_backend",
]


@repeatable("authenticate", "authenticate")
def authenticate(credentials: QuantumRuntimeCredentials) -> InstanceReport:
    """Check that the key works on the instance; reads only.

    Args:
        credentials: The credentials block.

    Returns:
        What the key can do, never a token.

    Raises:
        AuthenticationError: The key is unknown or refused.
        PermissionDenied: The key may not use the instance.

    Example:
        ```python
        from prefect import flow
        from prefect_qruntime import QuantumRuntimeCredentials, authenticate

        @flow
        def check(credentials_block: str) -> None:
            report = authenticate(QuantumRuntimeCredentials.load(credentials_block))
            print(report.backends)
        ```
    """
    return home().run(work.authenticate(credentials))


@repeatable("authenticate", "authenticate")
async def aauthenticate(credentials: QuantumRuntimeCredentials) -> InstanceReport:
    """As `authenticate`, for async flows."""
    return await home().arun(work.authenticate(credentials))


@repeatable("list backends", "list backends")
def list_backends(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    status: str | None = None,
    simulator: bool | None = None,
) -> list[Backend]:
    """List the instance's backends with status, size and queue; reads only.

    Args:
        credentials: The credentials block.
        min_qubits: Only backends of at least this size.
        status: Only `online`, `paused` or `offline` ones.
        simulator: True for simulators only, False for QPUs only.

    Returns:
        The backends that fit, in the service's order.
    """
    return home().run(work.list_backends(credentials, min_qubits, status, simulator))


@repeatable("list backends", "list backends")
async def alist_backends(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    status: str | None = None,
    simulator: bool | None = None,
) -> list[Backend]:
    """As `list_backends`, for async flows."""
    return await home().arun(work.list_backends(credentials, min_qubits, status, simulator))


@repeatable("select backend", "select backend")
def select_backend(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    simulator: bool | None = None,
    timeout: float = 0.0,
) -> Backend:
    """Pick the least busy backend that is online; reads only.

    Args:
        credentials: The credentials block.
        min_qubits: Least number of qubits.
        simulator: True for simulators only, False for QPUs only.
        timeout: Seconds to wait for one that fits to come online, where all of them are paused or offline.

    Returns:
        The backend with the shortest queue.

    Raises:
        NotFound: None that fits is online, or none is that large.
        InvalidInput: `timeout` is negative or no number.
    """
    return home().run(work.select_backend(credentials, min_qubits, simulator, timeout))


@repeatable("select backend", "select backend")
async def aselect_backend(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    simulator: bool | None = None,
    timeout: float = 0.0,
) -> Backend:
    """As `select_backend`, for async flows."""
    return await home().arun(work.select_backend(credentials, min_qubits, simulator, timeout))


@repeatable("get usage", "get usage")
def get_usage(credentials: QuantumRuntimeCredentials) -> Usage:
    """Read how many QPU seconds the instance used and has left; reads only.

    Args:
        credentials: The credentials block.

    Returns:
        Usage of the current period.
    """
    return home().run(work.get_usage(credentials))


@repeatable("get usage", "get usage")
async def aget_usage(credentials: QuantumRuntimeCredentials) -> Usage:
    """As `get_usage`, for async flows."""
    return await home().arun(work.get_usage(credentials))
