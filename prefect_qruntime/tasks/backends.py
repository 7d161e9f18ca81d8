"""Read an instance's rights, backends and usage: the tasks and their bodies."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from dataclasses import dataclass, field

from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.inputs.spec import check_flag, check_integer
from prefect_qruntime.client.network_loop import SingleFlight, network_loop
from prefect_qruntime.client.parsing import parse_backend_status
from prefect_qruntime.client.waiting.plan import is_seconds
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import (
    AuthenticationError,
    BackendOffline,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
)
from prefect_qruntime.models import Backend, InstanceReport, JobRef, Usage
from prefect_qruntime.observability import notifications
from prefect_qruntime.observability.progress import backend_words, line_of, was_waited_for
from prefect_qruntime.observability.run_summary import in_background
from prefect_qruntime.redact import many, number_text, shown
from prefect_qruntime.tasks.definitions import blocking, in_flow, repeats

__all__ = [
    "HELD_AFTER",
    "STATE_AGE",
    "aauthenticate",
    "aget_usage",
    "alist_backends",
    "aselect_backend",
    "authenticate",
    "backend_now",
    "check_online",
    "get_usage",
    "list_backends",
    "say_if_held",
    "select_backend",
]

HELD_AFTER = 5.0
"""Seconds after a submission from which a job that is not running may be held by its backend."""
STATE_AGE = 270.0
"""Seconds for which a backend's state and queue are recent enough for the log and the run page."""
_STATUSES = ("online", "paused", "offline")
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
    from prefect_qruntime.diagnostics.instance import check_instance

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
        f"authenticated at {report.host}, region {report.region}, {many(len(report.backends), 'backend')}, "
        + (f"{number_text(left)} QPU seconds left" if left is not None else "no usage limit known")
    )
    return report


authenticate = blocking(aauthenticate)
"""As `aauthenticate`, for sync flows."""


async def _fitting(client: QuantumRuntimeClient, min_qubits: int | None, simulator: bool | None) -> list[Backend]:
    """The instance's backends of at least a size and of a kind, in the service's order.

    Raises:
        InvalidInput: `min_qubits` is not a whole number, or `simulator` not True or False.
    """
    simulator = None if simulator is None else check_flag(simulator, field="simulator")
    least = None if min_qubits is None else check_integer(min_qubits, field="min_qubits")
    return [
        backend
        for backend in await client.backends()
        if (least is None or (backend.num_qubits or 0) >= least)
        and (simulator is None or backend.simulator is simulator)
    ]


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

    Raises:
        InvalidInput: There is no such status, `min_qubits` is not a whole number, or `simulator` not True or False.
    """
    if status is not None and not (isinstance(status, str) and status in _STATUSES):
        raise InvalidInput(f"must be 'online', 'paused' or 'offline', not {shown(status)}", field="status")
    fitting = await _fitting(credentials.get_client(), min_qubits, simulator)
    found = [backend for backend in fitting if status is None or backend.status == status]
    listed = [f"{backend.name} ({backend.status})" for backend in found]
    count = many(len(found), "backend")
    notifications.log_to_run(line_of(count, *(f"{', ' if place else ': '}{one}" for place, one in enumerate(listed))))
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
        InvalidInput: `timeout` is negative or no number, `min_qubits` is not a whole number, or `simulator` not True
            or False.
    """
    if not is_seconds(timeout, finite=True):
        raise InvalidInput("must be a number of seconds, 0 or more", field="timeout")
    client, end, pause, told = credentials.get_client(), time.monotonic() + timeout, _FIRST_PAUSE, ""
    while True:
        fitting = await _fitting(client, min_qubits, simulator)
        if online := [backend for backend in fitting if backend.is_online]:
            best = min(online, key=lambda b: (b.queue_length or 0, -(b.num_qubits or 0), b.name))
            queue = "queue unknown" if best.queue_length is None else many(best.queue_length, "queued job")
            notifications.log_to_run(f"least busy: {best.name}, {best.num_qubits} qubits, {queue}")
            return best
        states = ", ".join(f"{backend.name} is {backend.status}" for backend in fitting) or "it has no such backend"
        left = end - time.monotonic()
        if not fitting or left <= 0:
            wanted = f" with at least {many(min_qubits, 'qubit')}" if min_qubits else ""
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
        f"{number_text(usage.consumed_seconds)} QPU seconds used"
        + (f", {number_text(left)} left" if left is not None else ", no limit set")
    )
    return usage


get_usage = blocking(aget_usage)
"""As `aget_usage`, for sync flows."""


# ---- one backend's state -------------------------------------------------------------------------


@dataclass(slots=True)
class _States:
    """States and queues of backends as this process last read them, and when."""

    known: dict[tuple[str, str], tuple[float, Backend | None]] = field(default_factory=dict)
    asking: SingleFlight[Backend | None] = field(default_factory=SingleFlight)


async def backend_now(client: QuantumRuntimeClient, name: str, *, max_age: float) -> Backend | None:
    """A backend's state, reason and queue, read once for all waits of this process; None if they are not known.

    Args:
        client: The instance.
        name: The backend.
        max_age: Seconds for which an earlier answer is new enough.
    """
    states, which = network_loop().state(_States), (client.connection.crn, name)
    asked, backend = states.known.get(which, (-math.inf, None))
    if time.monotonic() - asked > max_age:
        asked = time.monotonic()
        backend = await states.asking.join(lambda: _ask_state(client, name), *which)
        states.known[which] = asked, backend
    return backend


async def _ask_state(client: QuantumRuntimeClient, name: str) -> Backend | None:
    try:
        return parse_backend_status(name, await client.backend_status(name))
    except QuantumRuntimeError:
        return None


def say_if_held(client: QuantumRuntimeClient, ref: JobRef) -> None:
    """Say in the log that a submitted job waits for a backend that is paused or offline. On the network loop.

    A moment later, so that a job that runs at once costs no request; a wait for the job says it by itself.
    """

    async def look() -> None:
        await asyncio.sleep(HELD_AFTER)
        if ref.backend and not was_waited_for(ref.id):
            backend = await backend_now(client, ref.backend, max_age=STATE_AGE)
            if backend is not None and not backend.is_online:
                notifications.job_held(ref.id, backend)

    in_background(look, optional=True)


async def check_online(client: QuantumRuntimeClient, name: str) -> None:
    """Refuse a backend that runs no jobs now.

    Raises:
        BackendOffline: It is paused or offline.
        QuantumRuntimeError: The service does not say.
    """
    backend = parse_backend_status(name, await client.backend_status(name))
    if not backend.is_online:
        raise BackendOffline(
            f"{backend_words(backend)}, and the submission asks for a backend that is online.",
            solution=(
                "This request was not sent. Wait until it is back, name another backend, or submit without "
                "`require_online` to queue there."
            ),
        )
