"""Serve the control methods over HTTP (`POST /_control/<name>`), for tests in other processes."""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefect_qruntime.sandbox.call import json_response, read_body
from prefect_qruntime.sandbox.control_actions import ControlActions
from prefect_qruntime.sandbox.control_token import HEADER
from prefect_qruntime.sandbox.service import Service

MAX_BODY = 16 * 1024 * 1024
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def control_routes(service: Service) -> list[Route]:
    """Build the route; the body is a JSON object of keyword arguments, the answer `{"result": …}`."""
    actions = ControlActions(service)

    async def act(request: Request) -> Response:
        # A page in a browser can post to loopback, but not with this content type and host without asking first.
        host = request.headers.get("host", "").rsplit(":", 1)[0]
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or host not in _LOOPBACK:
            return _refuse("send JSON to the loopback address", 403)
        if not hmac.compare_digest(request.headers.get(HEADER, "").encode(), service.control_token.encode()):
            return _refuse("the token of the control is missing or wrong", 403)
        name = request.path_params["name"]
        method: Callable[..., Any] | None = None if name.startswith("_") else getattr(actions, name, None)
        if not callable(method):
            return _refuse(f"no control method {name!r}", 404)
        try:
            fields = orjson.loads(await read_body(request, MAX_BODY) or b"{}")
            result = method(**fields)
            if inspect.isawaitable(result):
                result = await result
        except (TypeError, ValueError, LookupError) as error:
            return _refuse(str(error), 400, type(error).__name__)
        return json_response({"result": result})

    return [Route("/_control/{name}", act, methods=["POST"])]


def _refuse(message: str, status: int, kind: str = "ValueError") -> Response:
    return json_response({"error": message, "kind": kind}, status)
