"""ASGI middleware that records every request and applies injected faults."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefect_qruntime.sandbox.api_errors import default_error
from prefect_qruntime.sandbox.faults import Entry, Fault
from prefect_qruntime.sandbox.service import Service
from prefect_qruntime.sandbox.views import CLOUD, LEGACY

CLOUD_PREFIX = "/api/v1"
CONTROL_PREFIX = "/_control"


def split(path: str) -> tuple[str, str]:
    """Return the dialect of a path and the path without its prefix."""
    if path.startswith(CLOUD_PREFIX + "/"):
        return CLOUD, path[len(CLOUD_PREFIX) :]
    return ("iam" if path.startswith("/identity/") else LEGACY), path


class SandboxMiddleware:
    """Record requests in the journal and apply faults; control calls are neither recorded nor faulted."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or websocket."""
        kind = scope["type"]
        if kind not in ("http", "websocket") or scope["path"].startswith(CONTROL_PREFIX):
            if kind == "http" and not scope.get("sandbox.control"):
                _forget_connection(scope, self._service)
            await self._app(scope, receive, send)
            return
        service = self._service
        dialect, bare = split(scope["path"])
        method = scope["method"] if kind == "http" else "WS"
        client = scope.get("client")
        entry = service.journal.add(
            service.clock.now(),
            method,
            service.accounts.masked(bare),
            service.accounts.masked(scope["query_string"].decode("latin-1")),
            dialect,
            client[1] if client else 0,
        )
        scope["sandbox.dialect"] = dialect
        fault = service.faults.match(method, bare)
        if fault is None:
            await self._app(scope, receive, _noting(entry, send))
            return
        entry.fault = fault.id
        if kind == "http":
            await self._faulty(fault, entry, scope, receive, send)
        else:
            await self._faulty_socket(fault, entry, scope, receive, send)

    async def _faulty(self, fault: Fault, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        clock = self._service.clock
        if fault.drop == "before":
            await clock.sleep(fault.delay)
            await _hang_up(entry, scope, receive)
            return
        held: list[Message] = []
        if fault.status is None or fault.after_handler or fault.drop is not None:

            async def hold(message: Message) -> None:
                held.append(message)

            await self._app(scope, receive, hold)
        await clock.sleep(fault.delay)
        if fault.drop == "after":
            await _hang_up(entry, scope, receive)
            return
        answer = held if fault.status is None else _answer(fault)
        if fault.drop == "middle":
            await _send_half(answer, send)
            await _hang_up(entry, scope, receive)
            return
        for message in answer:
            _note(entry, message)
            await send(message)

    async def _faulty_socket(self, fault: Fault, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service.clock.sleep(fault.delay)
        if fault.drop == "before":
            await _hang_up(entry, scope, receive)
            return
        if fault.status is not None:
            await receive()
            for message in _answer(fault):
                _note(entry, message)
                await send({**message, "type": f"websocket.{message['type']}"})
            return
        scope["sandbox.fault"] = fault
        await self._app(scope, receive, _noting(entry, send))


def _noting(entry: Entry, send: Send) -> Send:
    async def noting(message: Message) -> None:
        _note(entry, message)
        await send(message)

    return noting


def _note(entry: Entry, message: Message) -> None:
    kind = message["type"]
    if kind in ("http.response.start", "websocket.http.response.start"):
        entry.status = message["status"]
    elif kind == "websocket.accept":
        entry.status = 101


def _forget_connection(scope: Scope, service: Service) -> None:
    # The connections of `Control.connect` are not the client's under test.
    protocol = scope.get("sandbox.protocol")
    if protocol is not None and not protocol.is_control:
        protocol.is_control = True
        service.tcp_connections -= 1


def _answer(fault: Fault) -> list[Message]:
    if fault.status is None:
        raise ValueError("the fault has no answer")
    headers = {"content-type": "application/json"}
    if fault.body is None:
        body = orjson.dumps(default_error(fault.status)) if fault.status >= 400 else b""
    elif isinstance(fault.body, str):
        headers["content-type"] = "text/plain; charset=utf-8"
        body = fault.body.encode()
    else:
        body = orjson.dumps(fault.body)
    if fault.retry_after is not None:
        headers["retry-after"] = str(fault.retry_after)
    headers.update({name.lower(): value for name, value in (fault.headers or {}).items()})
    if fault.status not in (204, 304):
        headers.setdefault("content-length", str(len(body)))
    else:
        body = b""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return [
        {"type": "http.response.start", "status": fault.status, "headers": raw},
        {"type": "http.response.body", "body": body},
    ]


async def _send_half(answer: list[Message], send: Send) -> None:
    for message in answer:
        if message["type"] == "http.response.start":
            await send(message)
        elif message.get("body"):
            body = message["body"]
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


async def _hang_up(entry: Entry, scope: Scope, receive: Receive) -> None:
    """Close the TCP connection and wait until the server has noticed."""
    entry.status = 0
    transport: asyncio.Transport = scope["sandbox.protocol"].transport
    transport.close()
    while True:
        message: dict[str, Any] = dict(await receive())
        if message["type"] in ("http.disconnect", "websocket.disconnect"):
            return
