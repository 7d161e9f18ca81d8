"""Read what an instance has (rights, backends, usage): the tasks and what they do."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time

from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.diagnostics.instance import check_instance
from prefect_qruntime.errors import AuthenticationError, InvalidInput, NotFound, PermissionDenied
from prefect_qruntime.models import Backend, InstanceReport, Usage
from prefect_qruntime.observability import notifications
from prefect_qruntime.tasks.decorators import blocking, in_flow, repeats

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

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds between polls for a backend that is online


@in_flow
@repeats("authenticate", "authenticate")
async def aauthenticate(credentials: QuantumRuntimeCredentials) -> InstanceReport:
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
    client = credentials.get_client()
    await client.authenticate()
    report = await check_instance(client)
    if not report.ok and not report.backends:
        kind = PermissionDenied if report.missing_rights else AuthenticationError
        raise kind("; ".join(report.problems))
    for problem in report.problems:
        notifications.log_to_run(problem, level=logging.WARNING)
    left = report.usage.remaining_seconds if report.usage else None
    notifications.log_to_run(
        f"authenticated at {report.host}, region {report.region}, {len(report.backends)} backends, "
        + (f"{left:g} QPU seconds left" if left is not None else "no usage limit known")
    )
    return report


authenticate = blocking(aauthenticate)
"""As `aauthenticate`, for sync flows."""


@in_flow
@repeats("list backends", "list backends")
async def alist_backends(
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
    found = [
        backend
        for backend in await credentials.get_client().backends()
        if (min_qubits is None or (backend.num_qubits or 0) >= min_qubits)
        and (status is None or backend.status == status)
        and (simulator is None or backend.simulator is simulator)
    ]
    notifications.log_to_run(f"{len(found)} backends: " + ", ".join(f"{b.name} ({b.status})" for b in found))
    return found


list_backends = blocking(alist_backends)
"""As `alist_backends`, for sync flows."""


@in_flow
@repeats("select backend", "select backend")
async def aselect_backend(
    credentials: QuantumRuntimeCredentials,
    *,
    min_qubits: int | None = None,
    simulator: bool | None = None,
    timeout: float = 0.0,
) -> Backend:
    """Pick the least busy backend that is online; reads only.

    Ties go to the larger one, then to the first by name.

    Args:
        credentials: The credentials block.
        min_qubits: Least number of qubits.
        simulator: True for simulators only, False for QPUs only.
        timeout: Seconds to wait for one that fits to come online, if all of them are paused or offline.

    Returns:
        The backend with the shortest queue.

    Raises:
        NotFound: None that fits is online, or none is that large.
        InvalidInput: `timeout` is negative or no number.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < math.inf:
        raise InvalidInput("must be a number of seconds, 0 or more", field="timeout")
    client, end, pause, told = credentials.get_client(), time.monotonic() + timeout, _FIRST_PAUSE, ""
    while True:
        fitting = [
            backend
            for backend in await client.backends()
            if (min_qubits is None or (backend.num_qubits or 0) >= min_qubits)
            and (simulator is None or backend.simulator is simulator)
        ]
        if online := [backend for backend in fitting if backend.is_online]:
            best = min(online, key=lambda b: (b.queue_length or 0, -(b.num_qubits or 0), b.name))
            notifications.log_to_run(
                f"least busy: {best.name}, {best.num_qubits} qubits, {best.queue_length} jobs queued"
            )
            return best
        states = ", ".join(f"{backend.name} is {backend.status}" for backend in fitting) or "there is none at all"
        left = end - time.monotonic()
        if not fitting or left <= 0:
            wanted = f" with at least {min_qubits} qubits" if min_qubits else ""
            raise NotFound(
                f"no backend of the instance{wanted} is online: {states}",
                solution="Wait (`timeout=`), or ask for fewer qubits.",
            )
        if states != told:
            notifications.log_to_run(f"waiting up to {left:.0f} s for a backend: {states}")
            told = states
        await asyncio.sleep(min(left, pause * random.uniform(0.9, 1.1)))  # noqa: S311  # spreads polls, no secret
        pause = min(_LONGEST_PAUSE, 1.5 * pause)


select_backend = blocking(aselect_backend)
"""As `aselect_backend`, for sync flows."""


@in_flow
@repeats("get usage", "get usage")
async def aget_usage(credentials: QuantumRuntimeCredentials) -> Usage:
    """Read how many QPU seconds the instance used and has left; reads only.

    Args:
        credentials: The credentials block.

    Returns:
        Usage of the current period.
    """
    usage = await credentials.get_client().usage()
    left = usage.remaining_seconds
    notifications.log_to_run(
        f"{usage.consumed_seconds:g} QPU seconds used" + (f", {left:g} left" if left is not None else ", no limit set")
    )
    return usage


get_usage = blocking(aget_usage)
"""As `aget_usage`, for sync flows."""
