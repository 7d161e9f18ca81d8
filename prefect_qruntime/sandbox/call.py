"""Parse the common parts of all REST calls (caller, dialect, version, query) and build responses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from prefect_qruntime.sandbox.accounts import Instance, User
from prefect_qruntime.sandbox.api_errors import MAX_INPUT, ApiError, default_error, invalid, size_text
from prefect_qruntime.sandbox.service import Service
from prefect_qruntime.sandbox.views import DEFAULT_VERSION, KNOWN_VERSIONS, LEGACY

_CLIENT_PREFIX = b"qiskit-version-2/"


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def raw_json(content: bytes) -> Response:
    """Answer with JSON that is already text."""
    return Response(content, media_type="application/json")


def no_content() -> Response:
    """Answer 204."""
    return Response(status_code=204)


class Call:
    """An authenticated request; handlers take one and return a response.

    Raises:
        ApiError: 400, 401, 403 or 404 if the headers do not allow the call.
    """

    __slots__ = ("_query", "body", "caller", "dialect", "instance", "request", "service", "user", "version")

    def __init__(self, service: Service, request: Request) -> None:
        self.service = service
        self.request = request
        self._query: QueryParams | None = None
        self.body: Any = None
        self.dialect, self.version, self.caller, self.user, self.instance = authorize(service, request.scope)

    @property
    def id(self) -> str:
        """The id in the path."""
        value: str = self.request.path_params["id"]
        return value

    @property
    def now(self) -> float:
        """The service's time."""
        return self.service.clock.now()

    @property
    def query(self) -> QueryParams:
        """The query of the URL."""
        if self._query is None:
            self._query = self.request.query_params
        return self._query

    def flag(self, name: str, default: bool | None = None) -> bool | None:
        """Return a boolean of the query; upper and lower case are equal."""
        value = self.query.get(name)
        if value is None:
            return default
        if value.lower() not in ("true", "false"):
            raise invalid(f"{name} must be true or false.")
        return value.lower() == "true"

    @property
    def mocks(self) -> bool:
        """Whether mock backends and their jobs are requested; the parameter may come without a value."""
        return self.query.get("include_mocks") == "" or bool(self.flag("include_mocks", False))

    def whole(self, name: str, default: int, low: int, high: int, *, lenient: bool = False) -> int:
        """Return an integer of the query; a lenient one out of bounds becomes the default."""
        value = self.query.get(name)
        if value is None:
            return default
        # `int()` would also take "1_000", spaces and other alphabets' digits.
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 12):
            raise invalid(f"{name} must be an integer.")
        number = int(value)
        if not low <= number <= high:
            if lenient:
                return default
            raise invalid(f"{name} must be within {low}..{high}.")
        return number

    def moment(self, name: str) -> float | None:
        """Return an ISO date-time of the query as seconds since the epoch."""
        value = self.query.get(name)
        if value is None:
            return None
        try:
            # A "+" that was not escaped arrives as a space.
            parsed = datetime.fromisoformat(value.strip().replace(" ", "+"))
            if parsed.tzinfo is None:
                parsed = parsed.replace(tzinfo=UTC)
            return parsed.timestamp()
        except (ValueError, OverflowError):
            raise invalid(f"{name} must be an ISO 8601 date-time.") from None


def authorize(service: Service, scope: Any) -> tuple[str, str, str, User, Instance]:
    """Check the headers of a request or websocket handshake.

    Returns:
        Dialect, API version, the caller's name for itself, user and instance.

    Raises:
        ApiError: 400, 401, 403 or 404.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    dialect = scope["sandbox.dialect"]
    user, instance = service.accounts.authenticate(headers)
    client = headers.get(b"x-qx-client-application", b"")
    version = DEFAULT_VERSION
    if dialect == LEGACY:
        if not client.startswith(_CLIENT_PREFIX):
            raise invalid(
                "The client version is missing or too old.",
                "Send the header x-qx-client-application: qiskit-version-2/<version>/<application>.",
            )
    else:
        sent = headers.get(b"ibm-api-version")
        if sent is not None:
            version = sent.decode("latin-1")
            if version not in KNOWN_VERSIONS:
                raise invalid("The API version is not known.", "See GET /v1/versions.")
    return dialect, version, client.decode("latin-1"), user, instance


Handler = Callable[[Call], Response]


def endpoint(service: Service, handler: Handler, *, body: bool) -> Callable[[Request], Any]:
    """Wrap a handler: check the headers, read the body if the call has one, then call it."""

    async def handle(request: Request) -> Response:
        call = Call(service, request)
        if body:
            call.body = await read_json(request)
        return handler(call)

    return handle


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of at most some bytes.

    Raises:
        ApiError: 413 if it is larger.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise ApiError(413, 1208, f"The input is larger than {size_text(limit)}.", "Send less at a time.")
        chunks.append(chunk)
    return b"".join(chunks)


async def read_json(request: Request) -> Any:
    """Read a JSON body, up to the size that the service accepts.

    Raises:
        ApiError: 400 if it is not JSON, 413 if it is too large.
    """
    try:
        return orjson.loads(await read_body(request, MAX_INPUT))
    except orjson.JSONDecodeError as error:
        raise invalid(f"The body is not valid JSON: {error}") from None


def on_api_error(request: Request, error: Exception) -> Response:
    """Answer a refusal with the service's error container."""
    if not isinstance(error, ApiError):
        raise error
    return json_response(error.body(), error.status, error.headers)


def on_http_error(request: Request, error: Exception) -> Response:
    """Answer a request that the framework refuses (unknown path, wrong method) in the same form."""
    if not isinstance(error, HTTPException):
        raise error
    return json_response(default_error(error.status_code), error.status_code, dict(error.headers or {}))
