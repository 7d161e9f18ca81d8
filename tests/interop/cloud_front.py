"""IBM Cloud before a sandbox: an HTTP proxy that leads IBM's host names to it, for clients that know nothing of it.

IBM's client builds the hosts of all services out of one URL: `http://cloud.sandbox` has its tokens at
`iam.cloud.sandbox` and its jobs at `quantum.cloud.sandbox`. With `http_proxy` in its environment all of them come here.
The sandbox answers what belongs to the service; the account's instances, plans and names are answered here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prefect_qruntime.sandbox import Sandbox

# Without "dev" and "test", which IBM's tests take for a staging system.
CLOUD = "cloud.sandbox"
URL = f"http://{CLOUD}"
INSTANCE = "sandbox-instance"
PLAN = "sandbox-plan"
TAGS = ["sandbox-tag"]
_HOP = {
    "connection",
    "content-encoding",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
}


class CloudFront:
    """Answer the requests of IBM's client.

    Args:
        sandbox: Where those for the service go.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._http = httpx.AsyncClient(base_url=sandbox.url, timeout=120, trust_env=False)

    async def answer(self, request: Request) -> Response:
        """Answer one request by the host it is for."""
        host = request.headers.get("host", "").rsplit(":", 1)[0].removesuffix(f".{CLOUD}")
        if host == "iam" or host == "quantum" or host.endswith(".quantum"):
            return await self._forward(request)
        body: Any = None
        if host == "api.global-search-tagging":
            body = {"items": [self._found()], "limit": 100}
        elif host == "globalcatalog":
            body = {
                "id": PLAN,
                "overview_ui": {"en": {"display_name": "Internal"}},
                "metadata": {"pricing": {"type": "free"}},
            }
        elif host == "resource-controller":
            one = {"id": self._sandbox.crn, "crn": self._sandbox.crn, "name": INSTANCE}
            if _path(request).endswith("/resource_instances"):
                found = [one] if request.query_params.get("name") == INSTANCE else []
                body = {"rows_count": len(found), "resources": found}
            else:
                body = one
        if body is None:
            return JSONResponse({"error": f"no such host: {host}"}, 502)
        return JSONResponse(body)

    def _found(self) -> dict[str, Any]:
        return {
            "crn": self._sandbox.crn,
            "name": INSTANCE,
            "service_plan_unique_id": PLAN,
            "tags": TAGS,
            "doc": {"extensions": {"backends": "all"}},
        }

    async def _forward(self, request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        answer = await self._http.request(
            request.method,
            _path(request),
            params=request.url.query.encode(),
            headers=headers,
            content=await request.body(),
        )
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
        return Response(answer.content, answer.status_code, kept)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve in a thread, and give the proxy's address."""
        app = Starlette()
        app.add_route("/{path:path}", self.answer, ["GET", "POST", "PUT", "PATCH", "DELETE"])
        server = uvicorn.Server(uvicorn.Config(_Absolute(app), "127.0.0.1", 0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the proxy did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


class _Absolute:
    """Let an application see the path alone where the request line has the whole URL, as a proxy's has."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith("http://"):
            scope = {**scope, "path": "/" + scope["path"].split("/", 3)[3]}
        await self._app(scope, receive, send)


def _path(request: Request) -> str:
    return request.url.path
