"""Serve the websocket `/stream/jobs/{id}` of 2022-2024: an acknowledgement, the final result, close 1000."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from prefect_qruntime.sandbox.api_errors import ApiError
from prefect_qruntime.sandbox.call import authorize, json_response
from prefect_qruntime.sandbox.faults import Fault
from prefect_qruntime.sandbox.service import Service
from prefect_qruntime.sandbox.state import Job
from prefect_qruntime.sandbox.views import CLOUD


def stream_job(service: Service) -> Callable[[WebSocket], Awaitable[None]]:
    """Build the endpoint."""

    async def stream(socket: WebSocket) -> None:
        try:
            job = _job(service, socket)
        except ApiError as error:
            await socket.send_denial_response(json_response(error.body(), error.status, error.headers))
            return
        await socket.accept()
        transport: asyncio.Transport = socket.scope["sandbox.protocol"].transport
        service.streams.add(transport)
        try:
            await _talk(socket, job, socket.scope.get("sandbox.fault"))
        except (WebSocketDisconnect, OSError, RuntimeError):
            # The client went away in the middle, or the sandbox was reset: nothing is left to send.
            return
        finally:
            service.streams.discard(transport)

    return stream


def _job(service: Service, socket: WebSocket) -> Job:
    dialect, _, _, user, instance = authorize(service, socket.scope)
    offered = service.settings.websocket
    if not offered or (dialect == CLOUD and offered != "both"):
        raise ApiError(404, "not_found", "There is no such resource.")
    return service.job(user, instance, socket.path_params["id"])


async def _talk(socket: WebSocket, job: Job, fault: Fault | None) -> None:
    if job.is_terminal and fault is None:
        await socket.send_text(
            f"Job is not running. Job status is '{job.status}', reason is '{job.reason}'.  "
            f"Check '/jobs/{job.id}/results' for results"
        )
        await socket.close(1000)
        return
    waiter = None
    if not job.is_terminal:
        # Before the first await: an end in between must not be missed.
        waiter = asyncio.get_running_loop().create_future()
        job.stream_waiters.append(waiter)
    await socket.send_text(f"Listening to results for job: {job.id}\n")
    if fault is not None and await _act(socket, fault):
        return
    if waiter is not None and not await _ended(socket, job, waiter):
        return
    outcome = job.outcome
    # The only copy of a private result is left for the REST call.
    if outcome is not None and outcome.body is not None and not job.private:
        await socket.send_text(outcome.body.decode())
    await socket.close(1000)


async def _act(socket: WebSocket, fault: Fault) -> bool:
    """Apply a fault to an open socket; return whether that ends the conversation."""
    if fault.ws_silence:
        # Nothing is read from now on, so pings stay unanswered and even a close goes unnoticed.
        transport: asyncio.Transport = socket.scope["sandbox.protocol"].transport
        transport.pause_reading()
        await socket.receive()
        return True
    if fault.ws_close is not None:
        await socket.close(fault.ws_close)
        return True
    if fault.drop is not None:
        socket.scope["sandbox.protocol"].transport.abort()
        return True
    return False


async def _ended(socket: WebSocket, job: Job, waiter: asyncio.Future[None]) -> bool:
    """Wait until the job ends or the client disconnects; return whether the job ended."""
    gone = asyncio.ensure_future(_client_gone(socket))
    try:
        await asyncio.wait({waiter, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiter.done() and not waiter.cancelled()
    finally:
        gone.cancel()
        if waiter in job.stream_waiters:
            job.stream_waiters.remove(waiter)


async def _client_gone(socket: WebSocket) -> None:
    # Anything a client sends here is ignored.
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
