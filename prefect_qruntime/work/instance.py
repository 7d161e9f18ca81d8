"""What the tasks do that read what an instance has. Runs on the network loop."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time

from prefect_qruntime import observe
from prefect_qruntime.checkup import check_instance
from prefect_qruntime.client import QuantumRuntimeClient
from prefect_qruntime.client.home import home
from prefect_qruntime.credentials import QuantumRuntimeCredentials
from prefect_qruntime.errors import (
    AuthenticationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuantumRuntimeError,
)
from prefect_qruntime.models import Backend, InstanceReport, Usage

__all__ = ["authenticate", "get_usage", "list_backends", "queue_length", "select_backend"]

_QUEUE_AGE = 60.0  # seconds for which the length of a queue is news enough
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds between looks for a backend that is online


async def authenticate(credentials: QuantumRuntimeCredentials) -> InstanceReport:
    """Verify; a key that cannot work is an error here, unlike in `verify`."""
    client = credentials.get_client()
    await client.authenticate()
    report = await check_instance(client)
    if not report.ok and not report.backends:
        kind = PermissionDenied if report.missing_rights else AuthenticationError
        raise kind("; ".join(report.problems))
    for problem in report.problems:
        observe.say(problem, level=logging.WARNING)
    left = report.usage.remaining_seconds if report.usage else None
    observe.say(
        f"authenticated at {report.host}, region {report.region}, {len(report.backends)} backends, "
        + (f"{left:g} QPU seconds left" if left is not None else "no usage limit known")
    )
    return report


async def list_backends(
    credentials: QuantumRuntimeCredentials,
    min_qubits: int | None,
    status: str | None,
    simulator: bool | None,
) -> list[Backend]:
    """All backends that fit."""
    found = [
        backend
        for backend in await credentials.get_client().backends()
        if (min_qubits is None or (backend.num_qubits or 0) >= min_qubits)
        and (status is None or backend.status == status)
        and (simulator is None or backend.simulator is simulator)
    ]
    observe.say(f"{len(found)} backends: " + ", ".join(f"{b.name} ({b.status})" for b in found))
    return found


async def select_backend(
    credentials: QuantumRuntimeCredentials, min_qubits: int | None, simulator: bool | None, timeout: float
) -> Backend:
    """The online backend with the shortest queue; ties go to the larger, then to the first by name."""
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
            observe.say(f"least busy: {best.name}, {best.num_qubits} qubits, {best.queue_length} jobs queued")
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
            observe.say(f"waiting up to {left:.0f} s for a backend: {states}")
            told = states
        await asyncio.sleep(min(left, pause * random.uniform(0.9, 1.1)))  # noqa: S311  # spreads looks, no secret
        pause = min(_LONGEST_PAUSE, 1.5 * pause)


async def get_usage(credentials: QuantumRuntimeCredentials) -> Usage:
    """QPU seconds of the instance."""
    usage = await credentials.get_client().usage()
    left = usage.remaining_seconds
    observe.say(
        f"{usage.consumed_seconds:g} QPU seconds used" + (f", {left:g} left" if left is not None else ", no limit set")
    )
    return usage


async def queue_length(client: QuantumRuntimeClient, backend: str) -> int | None:
    """Jobs in a backend's queue, asked once a minute for all waits of this process; None where it is not told."""
    known: dict[tuple[str, str], tuple[float, asyncio.Task[int | None]]] = home().shared.setdefault("queues", {})
    which, now = (client.connection.crn, backend), time.monotonic()
    if which not in known or now - known[which][0] > _QUEUE_AGE:
        known[which] = now, asyncio.create_task(_ask_queue(client, backend))
    return await asyncio.shield(known[which][1])


async def _ask_queue(client: QuantumRuntimeClient, backend: str) -> int | None:
    try:
        length = (await client.backend_status(backend)).get("length_queue")
    except QuantumRuntimeError:
        return None
    return length if type(length) is int else None
