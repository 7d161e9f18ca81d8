"""What one connection shares within a process: HTTP client, token, transport. Lives on the network loop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import httpx

from prefect_qruntime.client.connection import Connection
from prefect_qruntime.client.dialects import Dialect, dialect_of
from prefect_qruntime.client.network_loop import network_loop
from prefect_qruntime.client.transport.auth import TokenSource
from prefect_qruntime.client.transport.http import Transport, http_client
from prefect_qruntime.client.transport.retrying import RetryDeadlines
from prefect_qruntime.redact import install

__all__ = ["ServiceConnection", "connection_of"]


@dataclass(slots=True)
class ServiceConnection:
    """One connection's sockets and token."""

    connection: Connection
    http: httpx.AsyncClient = field(repr=False)
    tokens: TokenSource = field(repr=False)
    transport: Transport = field(repr=False)
    dialect: Dialect
    stream_refused: float = -math.inf
    """When this host turned a websocket down last, on the monotonic clock; for a while it is not asked again."""
    unfinished: dict[str, set[str]] = field(default_factory=dict)
    """Jobs bought here, by session, that were not seen at their end yet: a list may not show them yet."""


def connection_of(connection: Connection, patience: RetryDeadlines | None = None) -> ServiceConnection:
    """The wire of a connection; the same one for every caller of this process.

    Must be called on the network loop.
    """
    here, key = network_loop(), (connection.fingerprint, repr(patience))
    wire = here.find(ServiceConnection, *key)
    if wire is None:
        install()
        http = http_client(connection)
        dialect = dialect_of(connection)
        tokens = TokenSource(connection, http, patience=patience)
        transport = Transport(connection, http, tokens, headers=dialect.headers(connection), patience=patience)
        wire = ServiceConnection(connection, http, tokens, transport, dialect)
        here.keep(wire, *key)
        here.on_close(http.aclose)
    return wire
