"""The uvicorn server: protocols that the middleware can reach, and an immediate shutdown."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from prefect_qruntime.sandbox.service import Service

# Only errors are logged, and uvicorn's loggers belong to other servers of the process as well.
_logger = logging.getLogger("prefect_qruntime.sandbox")
_logger.addHandler(logging.NullHandler())
_logger.setLevel(logging.ERROR)


class _Config(uvicorn.Config):
    """The configuration of uvicorn, which passes the service to the protocols."""

    service: Service


def _put_into_scope(protocol: Any) -> None:
    """Let the app find the protocol in the scope, and the protocol log by our logger."""
    protocol.logger = _logger
    inner = protocol.app

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["sandbox.protocol"] = protocol
        await inner(scope, receive, send)

    protocol.app = app


class _Http(H11Protocol):
    """HTTP protocol that puts itself into the scope, so that a fault can close the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Only here: uvicorn's own switch would silence every other server of the process.
        self.access_log = False
        self.is_control = False
        _put_into_scope(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection."""
        config = self.config
        if isinstance(config, _Config):
            config.service.tcp_connections += 1
        super().connection_made(transport)


class _Socket(WebSocketsSansIOProtocol):
    """Websocket protocol that puts itself into the scope."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _put_into_scope(self)


class Server(uvicorn.Server):
    """A server that sleeps until `stop` is called, and then closes every connection."""

    def __init__(self, app: Any, service: Service) -> None:
        config = _Config(
            app,
            http=_Http,
            ws=_Socket,
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            # A client that keeps connections must not find them gone in the middle of a test.
            timeout_keep_alive=600,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
        )
        config.service = service
        super().__init__(config)
        self._stop = asyncio.Event()
        self.ready = asyncio.Event()

    def stop(self) -> None:
        """Stop; call this on the server's loop."""
        self._stop.set()

    async def main_loop(self) -> None:
        """Wait for `stop` without periodic wake-ups."""
        self.ready.set()
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close everything now, without waiting for pending answers."""
        for server in self.servers:
            server.close()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # One turn of the loop lets the protocols see that their connections are lost.
        await asyncio.sleep(0)
        for sock in sockets or []:
            sock.close()
